"""The backend of torch.distributed: gloo's results on whatever gloo can do, and an exception where a rank is gone."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("torch_rank.py")
README = Path(__file__).parents[2] / "README.md"
TIMEOUT_S = 120


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Run:
    """Ranks that init_process_group from their environment."""

    def __init__(self, size: int, backend: str, *behaviours: str, **variables: str) -> None:
        common = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", str(SCRIPT), backend, *behaviours],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(size)
        ]

    def outputs(self) -> list[str]:
        """What each rank printed; fails where one did not end well."""
        try:
            texts = [process.communicate(timeout=TIMEOUT_S)[0] for process in self.processes]
        finally:
            self.kill()
        assert [process.returncode for process in self.processes] == [0] * len(texts), "\n".join(texts)
        return texts

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()


def test_results_are_gloos_bits() -> None:
    behaviours = ("collectives", "functional", "ddp", "fsdp")
    ours = Run(2, "fastserve", *behaviours).outputs()
    assert ours == Run(2, "gloo", *behaviours).outputs()
    assert len(ours[0].splitlines()) == 24 + 4 + 4 + 1


def test_three_ranks_reduce_move_and_send_what_gloo_cannot() -> None:
    outputs = Run(
        3, "fastserve", "beyond_gloo", "messages", "objects_and_groups", "strided_and_async"
    ).outputs()
    for text in outputs:
        assert text.splitlines() == [
            "tensors of torch.float8_e5m2 cannot be reduced",
            "collectives take dense tensors on the CPU, got torch.sparse_coo on cpu",
            *["ok"] * 4,
        ]


def test_a_dead_peer_is_an_exception_out_of_backward_within_a_second() -> None:
    run = Run(3, "fastserve", "lose_rank_1")
    try:
        texts = [run.processes[rank].communicate(timeout=TIMEOUT_S)[0] for rank in (0, 2)]
        pid = run.processes[1].pid
    finally:
        run.kill()
    for text in texts:
        assert re.match(rf"True .*DistBackendError: rank 1 of 3 \(pid {pid}\) died", text), text


def test_a_peer_that_does_not_come_in_time_is_an_exception() -> None:
    run = Run(2, "fastserve", "time_out", TIMEOUT_S="1")
    try:
        text, _ = run.processes[0].communicate(timeout=TIMEOUT_S)
    finally:
        run.kill()
    assert text.strip() == "a collective took longer than the timeout of 1 s"


def test_readmes_training_script_gives_gloos_parameters(tmp_path: Path) -> None:
    (script,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
        if "DistributedDataParallel" in block
    ]
    printed = []
    for backend in ("fastserve", "gloo"):
        path = tmp_path / f"train_with_{backend}.py"
        path.write_text(script.replace('backend="fastserve"', f'backend="{backend}"'))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        done = subprocess.run(
            [*command, str(path)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        # gloo's own threads may abort a process that ends; all is printed by then.
        aborted = backend == "gloo" and "terminate called without an active exception" in done.stderr
        assert done.returncode == 0 or aborted, done.stderr
        printed.append(done.stdout)
    assert printed[0] == printed[1]
    assert printed[0].startswith("loss ")


@pytest.mark.parametrize("order", ["torch, fastserve.distributed", "fastserve.distributed, torch"])
def test_the_backend_is_known_whichever_is_imported_first(order: str) -> None:
    code = f"import {order}; print('fastserve' in torch.distributed.Backend.backend_list)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
