"""The steps of a GPU's rank on the fake GPU: the CPU engine's answers, from graphs wherever a step fits one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fastserve import _C, LLM, SamplingParams
from fastserve.config import EngineConfig
from fastserve.cuda import device_program
from fastserve.errors import RankLostError
from fastserve.step import GREEDY, BlockGrant, Chunk, SlotOpening, Step
from fastserve.testing.convert import convert
from fastserve.testing.fake_cuda import FakeRuntime
from fastserve.worker.sizing import plan_execution
from fastserve.worker.step_codec import StepEncoder, decode_result

from .in_process import make_program, open_llm

LIMITS = {"max_num_seqs": 4, "max_num_tokens": 16, "max_model_len": 128, "speculation": "off"}
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a little girl who lived near the forest, where nobody ever went, until",
    "def f(x):",
    "One, two, three",
]


@dataclass(frozen=True)
class Pair:
    gpu: LLM
    cpu: LLM
    runtime: FakeRuntime


@pytest.fixture(scope="module")
def pair(short_model: Path) -> Iterator[Pair]:
    runtime = FakeRuntime()
    with (
        open_llm(short_model, runtime, **LIMITS) as gpu,
        LLM(str(short_model), num_threads=1, **LIMITS) as cpu,
    ):
        yield Pair(gpu, cpu, runtime)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=8, temperature=0.0),
        SamplingParams(max_tokens=8, temperature=0.8, seed=7),
        SamplingParams(max_tokens=8, temperature=1.2, seed=3, top_k=20, top_p=0.8, min_p=0.02),
        SamplingParams(max_tokens=8, temperature=0.7, seed=5, repetition_penalty=1.3, presence_penalty=0.4,
                       frequency_penalty=0.3),
        SamplingParams(max_tokens=8, temperature=0.0, logit_bias={100: 9.0, 5: -100.0}, min_tokens=4),
        SamplingParams(max_tokens=4, temperature=0.9, seed=1, logprobs=3, prompt_logprobs=2,
                       repetition_penalty=1.5),
        SamplingParams(max_tokens=4, temperature=0.9, seed=1, logprobs=0),
    ],
)  # fmt: skip
def test_answers_are_those_of_the_cpu_engine(pair: Pair, params: SamplingParams) -> None:
    """Prompts of several chunks, rows with graphs and without: tokens alike, logprobs to the last bits."""
    for ours, theirs in zip(
        pair.gpu.generate(PROMPTS, params), pair.cpu.generate(PROMPTS, params), strict=True
    ):
        assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids
        for own, other in zip(
            [*(ours.prompt_logprobs or [])[1:], *(ours.outputs[0].logprobs or [])],
            [*(theirs.prompt_logprobs or [])[1:], *(theirs.outputs[0].logprobs or [])],
            strict=True,
        ):
            assert own is not None
            assert other is not None
            assert own.sampled.rank == other.sampled.rank
            assert own.sampled.logprob == pytest.approx(other.sampled.logprob, abs=2e-6)
            assert [top.token_id for top in own.top] == [top.token_id for top in other.top]


def test_a_sliding_window_is_that_of_the_cpu_engine(smollm2_path: Path, tmp_path: Path) -> None:
    path = convert(smollm2_path, tmp_path / "windowed.gguf", "Q8_0", num_layers=2, sliding_window=7)
    params = SamplingParams(max_tokens=8, temperature=0.0)
    with open_llm(path, FakeRuntime(), **LIMITS) as gpu, LLM(str(path), num_threads=1, **LIMITS) as cpu:
        ours, theirs = (
            [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)] for llm in (gpu, cpu)
        )
    assert ours == theirs


def test_a_decode_step_replays_two_graphs_and_enqueues_nothing_else_of_the_model(pair: Pair) -> None:
    before = [graph.num_replays for graph in pair.runtime.graphs]
    pair.gpu.generate(PROMPTS[0], SamplingParams(max_tokens=5, temperature=0.0))
    replays = [graph.num_replays - old for graph, old in zip(pair.runtime.graphs, before, strict=True)]
    assert replays[-2:] == [4, 4]  # of one row: what follows the prompt's step
    assert sum(replays) == 8 + 2 * (len(pair.gpu.tokenizer.encode(PROMPTS[0], add_special=True)) <= 4)


def program_steps(short_model: Path, runtime: FakeRuntime, steps: list[Step]) -> list[list[int]]:
    """What each step of a program drew."""
    program = make_program(
        plan_execution(EngineConfig(model=str(short_model), **LIMITS), short_model), runtime
    )
    program.prepare()
    encoder = StepEncoder()
    return [
        [sample.token_id for sample in decode_result(program.run(encoder.encode(step))).samples]
        for step in steps
    ]


def opening(slot: int, block: int, tokens: tuple[int, ...], *, sample: bool = True) -> dict[str, object]:
    return {
        "opened": (SlotOpening(slot, len(tokens), GREEDY),),
        "blocks": (BlockGrant(slot, 0, block),),
        "chunks": (Chunk(slot, tokens, sample),),
    }


def test_padding_touches_no_block_of_a_request(short_model: Path) -> None:
    """Three rows run in the graph of four; the fourth row's keys go to a block that nobody is granted."""
    first = Step(1, **opening(0, 0, (5, 6, 7)))  # type: ignore[arg-type]
    lone = program_steps(short_model, FakeRuntime(), [first, *(Step(i, decodes=(0,)) for i in range(2, 6))])
    others = Step(2, decodes=(0,), **opening(1, 1, (9, 10)))  # type: ignore[arg-type]
    crowd = program_steps(
        short_model, FakeRuntime(), [first, others, *(Step(i, decodes=(0, 1)) for i in range(3, 6))]
    )
    assert [drawn[0] for drawn in lone] == [crowd[0][0], crowd[1][1], *(drawn[0] for drawn in crowd[2:])]


def test_a_step_that_draws_nothing_still_stores_its_keys(short_model: Path) -> None:
    tokens = tuple(range(20, 32))
    whole = Step(1, **opening(0, 3, tokens))  # type: ignore[arg-type]
    part = Step(1, **opening(0, 3, tokens[:7], sample=False))  # type: ignore[arg-type]
    rest = Step(2, chunks=(Chunk(0, tokens[7:], sample=True),))
    nothing, drawn = program_steps(short_model, FakeRuntime(), [part, rest])
    assert nothing == []
    assert [drawn] == program_steps(short_model, FakeRuntime(), [whole])


def test_a_step_of_nothing_but_endings_is_answered(short_model: Path) -> None:
    drawn = program_steps(short_model, FakeRuntime(), [Step(1, **opening(0, 0, (5,))), Step(2, closed=(0,))])  # type: ignore[arg-type]
    assert drawn[1] == []


def test_a_step_whose_group_was_lost_takes_nothing_in(short_model: Path) -> None:
    program = make_program(
        plan_execution(EngineConfig(model=str(short_model), **LIMITS), short_model), FakeRuntime()
    )
    program.prepare()
    program.exchange.raise_epoch()
    with pytest.raises(RankLostError, match="in the middle of a step"):
        program.run(StepEncoder().encode(Step(1, **opening(0, 0, (5, 6)))))  # type: ignore[arg-type]


def test_memory_that_ends_is_torchs_own_error(short_model: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        program_steps(short_model, FakeRuntime(memory_bytes=1 << 20), [])


class SlowEvent:
    def __init__(self, num_looks: int) -> None:
        self.num_looks = num_looks

    def done(self) -> bool:
        self.num_looks -= 1
        return self.num_looks < 0


def test_a_rank_that_waits_for_its_gpu_beats_until_it_has_waited_too_long(
    short_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = make_program(
        plan_execution(EngineConfig(model=str(short_model), **LIMITS), short_model), FakeRuntime()
    )
    region = _C.SharedRegion.create(1, 1 << 20)
    program.exchange = _C.Exchange(region, 0)

    before = region.beats(0)
    program._wait(SlowEvent(5))
    assert region.beats(0) == before + 5
    monkeypatch.setattr(device_program, "STEP_TIMEOUT_S", 0.0)
    program._wait(SlowEvent(5))
    assert region.beats(0) == before + 5


def test_a_gpu_that_stays_in_a_lost_step_ends_its_rank(
    short_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_program, "LEAVE_TIMEOUT_S", 0.01)
    program = make_program(
        plan_execution(EngineConfig(model=str(short_model), **LIMITS), short_model), FakeRuntime()
    )
    program.exchange.raise_epoch()
    with pytest.raises(RankLostError):
        program._wait(SlowEvent(1))
    with pytest.raises(RuntimeError, match="did not come out of a step"):
        program._wait(SlowEvent(10**9))
