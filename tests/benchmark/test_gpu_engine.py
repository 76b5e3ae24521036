"""How whole engines are timed, with engines and clocks that do as told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from fastserve.benchmark import gpu_command, gpu_engine
from fastserve.benchmark.gpu_engine import CASES, DECODE_STEPS, EngineRun
from fastserve.benchmark.gpu_lines import Failure, GpuLine

from .fake_gpu import DEVICE, FakeClock, Lines

TWO_GPUS = replace(DEVICE, num_gpus=2)
DEADLINE = 1000.0


@dataclass
class Stage:
    """What engines are opened on, and what happened."""

    clock: FakeClock = field(default_factory=lambda: FakeClock(per_run_s=0.0))
    events: list[str] = field(default_factory=list)
    prompts: list[tuple[int, ...]] = field(default_factory=list)

    def opener(self, name: str, first_s: float, step_s: float, **options: Any) -> Callable[..., FakeEngine]:
        def open_engine(path: Path, num_gpus: int) -> FakeEngine:
            self.events.append(f"open {name} {num_gpus}")
            return FakeEngine(self, f"{name} of {num_gpus}", first_s, step_s, **options)

        return open_engine

    def run(self, path: Path, **options: Any) -> EngineRun:
        given = {
            "device": DEVICE,
            "clock": self.clock,
            "open_own": self.opener("ours", 3.0, 0.5),
            "peers": {},
            "rounds": 2,
            "monotonic": lambda: 0.0,
        }
        return EngineRun(path, **{**given, **options})


@dataclass
class FakeEngine:
    stage: Stage
    name: str
    first_s: float
    step_s: float
    calls_left: int = 10**9
    packed_bytes: tuple[int, ...] = (50_000_000, 60_000_000)

    def generate(self, prompts: list[list[int]], num_tokens: int) -> None:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise RuntimeError("a rank is gone")
        self.stage.prompts += [tuple(prompt) for prompt in prompts]
        self.stage.clock.now += self.first_s + (num_tokens - 1) * self.step_s

    def close(self) -> None:
        self.stage.events.append(f"close {self.name}")


@pytest.fixture
def stage() -> Stage:
    return Stage()


def lines_of(found: list[GpuLine | Failure]) -> list[GpuLine]:
    assert [entry for entry in found if isinstance(entry, Failure)] == []
    return [entry for entry in found if isinstance(entry, GpuLine)]


def test_decode_is_what_more_tokens_take_and_prefill_what_the_first_does(
    stage: Stage, smollm2_path: Path
) -> None:
    run = stage.run(smollm2_path, peers={"theirs": stage.opener("theirs", 6.0, 2.0)})
    found = lines_of(list(run.lines(DEADLINE)))
    assert [(line.line.op, line.line.shape) for line in found] == [
        ("decode", "1 x 32 tokens, 1 GPU"),
        ("decode", "64 x 32 tokens, 1 GPU"),
        ("prefill", "1 x 2048 tokens, 1 GPU"),
        ("prefill", "1 x 512 tokens, 1 GPU"),
        ("first token", "1 x 32 tokens, 1 GPU"),
    ]
    assert [line.line.seconds.median for line in found] == pytest.approx([0.5, 0.5, 3.0, 3.0, 3.0])
    assert [line.line.ratio for line in found] == pytest.approx([4.0, 4.0, 2.0, 2.0, 2.0])
    assert {line.line.baseline for line in found} == {"theirs of 1"}
    assert {line.line.dtype for line in found} == {"Q4_1"}
    tokens_per_s = [line.tokens_per_s for line in found]
    assert tokens_per_s == pytest.approx([2.0, 128.0, 2048 / 3, 512 / 3, 32 / 3])


def test_a_step_is_held_against_the_weights_of_the_gpu_that_holds_most(
    stage: Stage, smollm2_path: Path
) -> None:
    (line, *_) = lines_of(list(stage.run(smollm2_path).lines(DEADLINE)))
    # 30 layers, 3 KV heads of 64, keys and values in bf16; half of the steps lie before.
    kv_bytes = (32 + (DECODE_STEPS - 1) / 2 + 1) * 30 * 3 * 64 * 2 * 2
    num_bytes = 60_000_000 + kv_bytes
    assert line.line.gbps == pytest.approx(num_bytes / 0.5 / 1e9)
    assert line.line.roof_share == pytest.approx(num_bytes / 1e12 / 0.5)
    assert line.line.baseline is None


def test_no_prompt_is_given_twice(stage: Stage, smollm2_path: Path) -> None:
    lines_of(list(stage.run(smollm2_path).lines(DEADLINE)))
    assert len(set(stage.prompts)) == len(stage.prompts) > 64
    assert {len(prompt) for prompt in stage.prompts} == {case.prompt_tokens for case in CASES}


def test_one_gpu_and_then_all_of_them(stage: Stage, smollm2_path: Path) -> None:
    run = stage.run(smollm2_path, device=TWO_GPUS, peers={"theirs": stage.opener("theirs", 6.0, 2.0)})
    found = lines_of(list(run.lines(DEADLINE)))
    assert [line.line.shape.partition(", ")[2] for line in found] == ["1 GPU"] * 5 + ["2 GPUs"] * 5
    assert stage.events == [
        f"{verb} {name}{of}{count}"
        for count in (1, 2)
        for verb, name, of in (
            ("open", "ours", " "),
            ("open", "theirs", " "),
            ("close", "theirs", " of "),
            ("close", "ours", " of "),
        )
    ]


def refuse(path: Path, num_gpus: int) -> FakeEngine:
    raise ValueError("heads cannot be cut that far")


def test_without_ours_there_is_nothing_to_compare(stage: Stage, smollm2_path: Path) -> None:
    peers = {"theirs": stage.opener("theirs", 6.0, 2.0)}
    found = list(stage.run(smollm2_path, device=TWO_GPUS, open_own=refuse, peers=peers).lines(DEADLINE))
    error = "ValueError: heads cannot be cut that far"
    assert found == [Failure("model", "all", gpus, "fastserve", error) for gpus in ("1 GPU", "2 GPUs")]
    assert stage.events == []


def test_ours_is_measured_without_a_peer_that_cannot_start(stage: Stage, smollm2_path: Path) -> None:
    failure, *lines = stage.run(smollm2_path, peers={"theirs": refuse}).lines(DEADLINE)
    assert failure == Failure("model", "all", "1 GPU", "theirs", "ValueError: heads cannot be cut that far")
    assert [line.line.ratio for line in lines_of(lines)] == [None] * len(CASES)
    assert stage.events == ["open ours 1", "close ours of 1"]


def test_a_peer_that_starts_too_slowly_is_left(stage: Stage, smollm2_path: Path) -> None:
    def hang(path: Path, num_gpus: int) -> FakeEngine:
        threading.Event().wait(100)
        raise AssertionError("nobody ended it")

    run = stage.run(smollm2_path, peers={"theirs": hang})
    failure, *lines = run.lines(gpu_engine.MEASURING_S + 0.2)
    assert failure == Failure("model", "all", "1 GPU", "theirs", "SlowStartError: not ready after 0 s")
    assert len(lines_of(lines)) == len(CASES)


@pytest.mark.parametrize("calls_left", [1, 7])
def test_an_engine_that_breaks_is_told_of_every_case(
    stage: Stage, smollm2_path: Path, calls_left: int
) -> None:
    """At its first calls of a case, or in the middle of its turns."""
    broken = stage.opener("ours", 3.0, 0.5, calls_left=calls_left)
    found = list(stage.run(smollm2_path, open_own=broken, rounds=4).lines(DEADLINE))
    assert all(isinstance(entry, Failure) for entry in found)
    assert [entry.error for entry in found if isinstance(entry, Failure)] == [
        "RuntimeError: a rank is gone"
    ] * len(CASES)
    assert stage.events[-1] == "close ours of 1"


def test_what_is_not_reached_in_time_is_said(stage: Stage, smollm2_path: Path) -> None:
    """A group's share of the time is half; each one's ends while its second case is measured."""
    run = stage.run(smollm2_path, device=TWO_GPUS, monotonic=lambda: stage.clock.now)
    found = list(run.lines(600.0))
    late = [entry for entry in found if isinstance(entry, Failure)]
    assert {entry.error for entry in late} == {"not reached in time"}
    shapes = [entry.shape if isinstance(entry, Failure) else entry.line.shape for entry in found]
    assert [shape.partition(", ")[2] for shape in shapes] == ["1 GPU"] * 5 + ["2 GPUs"] * 5
    assert [isinstance(entry, Failure) for entry in found] == [False, False, True, True, True] * 2


def test_a_model_that_is_not_at_hand_is_left_out_with_a_line_that_says_so(tmp_path: Path) -> None:
    file = Lines()
    gpu_command.run_model(file, DEADLINE, str(tmp_path / "none.gguf"))
    (line,) = file.read_all()
    assert line["section"] == "model"
    assert line["error"] == f"left out: there is no file {tmp_path}/none.gguf"


def test_the_step_writes_the_device_and_its_lines(
    stage: Stage, smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_command, "describe_device", lambda *_: DEVICE)
    monkeypatch.setattr(gpu_command, "EngineRun", lambda path, device, clock: stage.run(path))
    file = Lines()
    gpu_command.run_model(file, DEADLINE, str(smollm2_path))
    device, *lines = file.read_all()
    assert device["kind"] == "device"
    assert [line["op"] for line in lines] == [case.op for case in CASES]
    assert all(line["tokens_per_s"] > 0 for line in lines)
