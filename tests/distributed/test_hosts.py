"""Groups whose ranks are on several hosts: the same sums, the same bits, and a host that is cut off is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastserve.distributed.hosts import Layout
from tests.distributed.hosts import Hosts

GROUP_SCRIPT = Path(__file__).with_name("group_rank.py")
TORCH_SCRIPT = Path(__file__).with_name("torch_rank.py")
TIMEOUT_S = 90


class Run:
    """Ranks of a script, equally many on every host, with the variables that torchrun would give them."""

    def __init__(
        self, hosts: Hosts, num_hosts: int, per_host: int, *arguments: str, **variables: str
    ) -> None:
        self.processes = []
        for rank in range(num_hosts * per_host):
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank % per_host),
                "WORLD_SIZE": str(num_hosts * per_host),
                "LOCAL_WORLD_SIZE": str(per_host),
                "MASTER_ADDR": hosts.address(0),
                "MASTER_PORT": "29500",
                "TORCHELASTIC_RUN_ID": "several-hosts",
                "OMP_NUM_THREADS": "1",
                "TORCH_CPP_LOG_LEVEL": "ERROR",  # torch warns of addresses without names
                **variables,
            }
            self.processes.append(
                subprocess.Popen(
                    hosts.command(rank // per_host, [sys.executable, "-W", "ignore", *arguments]),
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )

    def outputs(self) -> list[str]:
        return [process.communicate(timeout=TIMEOUT_S)[0].strip() for process in self.processes]

    def wait_for_line(self, rank: int) -> str:
        stdout = self.processes[rank].stdout
        assert stdout is not None
        return stdout.readline().strip()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Hosts(3) as hosts:
        yield hosts


def start(request: pytest.FixtureRequest, run: Run) -> Run:
    request.addfinalizer(run.kill)
    return run


@pytest.mark.parametrize(("num_hosts", "per_host"), [(2, 1), (3, 1), (2, 2), (3, 2)])
def test_sums_are_right_and_the_same_bits_everywhere(
    request: pytest.FixtureRequest, hosts: Hosts, num_hosts: int, per_host: int
) -> None:
    run = start(request, Run(hosts, num_hosts, per_host, str(GROUP_SCRIPT), "reduce_large"))
    outputs = run.outputs()
    assert len(set(outputs)) == 1
    assert len(outputs[0]) > 64, outputs[0]


@pytest.mark.parametrize(("num_hosts", "per_host"), [(2, 1), (2, 2)])
def test_eight_bits_are_near_and_the_same_everywhere(
    request: pytest.FixtureRequest, hosts: Hosts, num_hosts: int, per_host: int
) -> None:
    run = start(
        request, Run(hosts, num_hosts, per_host, str(GROUP_SCRIPT), "reduce_in_8_bits", WIRE_BITS="8")
    )
    outputs = run.outputs()
    assert len(set(outputs)) == 1
    assert outputs[0].startswith("near"), outputs[0]


def test_a_bad_network_is_only_slow(request: pytest.FixtureRequest, hosts: Hosts) -> None:
    if not hosts.worsen(delay="2ms", loss="1%"):
        pytest.skip("this kernel has no netem")
    outputs = start(request, Run(hosts, 2, 2, str(GROUP_SCRIPT), "reduce_large")).outputs()
    assert len(set(outputs)) == 1
    assert len(outputs[0]) > 64, outputs[0]


@pytest.mark.parametrize(
    ("behaviour", "victim"),
    [("wait_and_tell", 3), ("sum_large_and_tell", 3), ("sum_large_and_tell", 1), ("sum_large_and_tell", 2)],
)
def test_a_rank_that_dies_is_named_on_all_hosts(
    request: pytest.FixtureRequest, hosts: Hosts, behaviour: str, victim: int
) -> None:
    run = start(request, Run(hosts, 2, 2, str(GROUP_SCRIPT), behaviour))
    assert run.wait_for_line(0) == "waiting"
    time.sleep(0.2)
    pid = pid_of_script(run.processes[victim].pid)
    killed_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    for rank in {0, 1, 2, 3} - {victim}:
        text = run.processes[rank].communicate(timeout=TIMEOUT_S)[0]
        where = f"(pid {pid})" if rank // 2 == victim // 2 else "(on another host)"
        assert f"RankLostError: rank {victim} of 4 {where} died" in text
    assert time.monotonic() - killed_s < 2


def test_a_host_that_is_cut_off_counts_as_dead(request: pytest.FixtureRequest, hosts: Hosts) -> None:
    run = start(request, Run(hosts, 2, 1, str(GROUP_SCRIPT), "wait_and_tell", SILENCE_S="2"))
    assert run.wait_for_line(0) == "waiting"
    hosts.cut_off(1)
    cut_s = time.monotonic()
    outputs = run.outputs()
    for rank in (0, 1):
        assert (
            f"RankLostError: rank {1 - rank} of 2 (on another host) could not be reached any more"
            in outputs[rank]
        )
    assert 1 < time.monotonic() - cut_s < 8


def test_torch_trains_across_hosts_as_it_does_on_one(request: pytest.FixtureRequest, hosts: Hosts) -> None:
    behaviours = ("collectives", "ddp")
    across = start(request, Run(hosts, 2, 1, str(TORCH_SCRIPT), "fastserve", *behaviours)).outputs()
    gloo = start(
        request, Run(hosts, 1, 2, str(TORCH_SCRIPT), "gloo", *behaviours, GLOO_SOCKET_IFNAME="lo")
    ).outputs()
    assert across == gloo


def test_messages_cross_hosts(request: pytest.FixtureRequest, hosts: Hosts) -> None:
    outputs = start(request, Run(hosts, 2, 1, str(TORCH_SCRIPT), "fastserve", "messages")).outputs()
    assert outputs == ["ok", "ok"]


def test_torch_collectives_with_ranks_beside_each_other(request: pytest.FixtureRequest, hosts: Hosts) -> None:
    across = start(request, Run(hosts, 2, 2, str(TORCH_SCRIPT), "fastserve", "collectives")).outputs()
    gloo = start(
        request, Run(hosts, 1, 4, str(TORCH_SCRIPT), "gloo", "collectives", GLOO_SOCKET_IFNAME="lo")
    ).outputs()
    assert across == gloo


def test_fused_ops_span_hosts(request: pytest.FixtureRequest, hosts: Hosts) -> None:
    script = Path(__file__).parents[1] / "ops" / "matmul_all_reduce_example.py"
    outputs = start(request, Run(hosts, 2, 1, str(script))).outputs()
    assert outputs == [f"rank {rank} of 2: equal to torch" for rank in (0, 1)]


def test_layout_knows_who_shares_a_host() -> None:
    layout = Layout.of(["a", "b", "a", "b", "c", "c"])
    assert layout.hosts == ((0, 2), (1, 3), (4, 5))
    assert layout.local(3) == (1, 3)
    assert layout.remote(3) == (0, 2, 4, 5)
    assert layout.across(3) == (2, 3, 5)


@pytest.mark.parametrize("host_of", ["aa", "abc", "aab"])
def test_levels_need_equally_many_ranks_on_each_host_and_more_than_one(host_of: str) -> None:
    assert Layout.of(host_of).across(0) == ()


def pid_of_script(pid: int) -> int:
    """`ip netns exec` becomes its command, so the process is the script itself."""
    assert "python" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
    return pid
