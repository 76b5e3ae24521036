"""What the launchers of paged_attention and sample launch at a model's shapes, compiled for GPUs that are not here.

A launcher runs on tensors without data; the kernels it would launch are replaced by recorders.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from fastserve.kernels import paged_attention as attention_module
from fastserve.kernels import sample as sample_module
from fastserve.kernels.paged_attention import paged_attention
from fastserve.kernels.sample import sample
from torch import Tensor

from .ahead_of_time import ARCHITECTURES, Case, Compiled, compile_cases

TRITON_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64"}
MMA = {80: "HMMA.16816", 90: "HGMMA", 100: "UTCHMMA"}
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # that a block may have
REGISTERS = 64 * 1024  # of an SM
SLOTS, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 64, 32, 8, 128, 128256


def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def attend(num_rows: int) -> Callable[[int], None]:
    """A launch for an architecture: a decode or a prefill of Llama 3 8B in bf16."""
    q = empty(num_rows, HEADS * HEAD_DIM, dtype=torch.bfloat16)
    cache = empty(999, KV_HEADS, 16, HEAD_DIM, dtype=torch.bfloat16)
    rows = empty(num_rows)
    return lambda architecture: paged_attention(
        q, cache, cache, rows, rows, empty(SLOTS, 512), empty(HEADS), q,
        scale=0.1, max_group=HEADS // KV_HEADS, architecture=architecture,
    )  # fmt: skip


def sample_rows(dtype: torch.dtype, *, filtered: bool) -> Callable[[int], None]:
    numbers = empty(SLOTS, dtype=torch.float32)
    filters = {"top_k": empty(SLOTS), "top_p": numbers, "min_p": numbers} if filtered else {}
    return lambda _: sample(
        empty(SLOTS, VOCABULARY, dtype=dtype), numbers, empty(SLOTS, dtype=torch.int64), empty(SLOTS),
        **filters, token_ids=empty(SLOTS), logprobs=numbers, ranks=empty(SLOTS),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Expected:
    """blocks: that fit an SM, by registers and shared memory."""

    module: ModuleType
    kernel: str
    launch: Callable[[int], None]
    blocks: int
    architectures: tuple[int, ...] = ARCHITECTURES


FILTERED, PLAIN = sample_rows(torch.float32, filtered=True), sample_rows(torch.bfloat16, filtered=False)
EXPECTED = {
    "rows": Expected(attention_module, "attend_rows", attend(8), 2),
    "tiles": Expected(attention_module, "attend_tiles", attend(512), 1),
    "merge": Expected(attention_module, "merge_partitions", attend(8), 32, (90,)),
    "find lone rows": Expected(attention_module, "find_lone_rows", attend(512), 16, (90,)),
    "draw": Expected(sample_module, "draw", FILTERED, 4, (80, 90)),
    "draw of bf16": Expected(sample_module, "draw", PLAIN, 5, (90,)),
    "pick": Expected(sample_module, "pick", FILTERED, 32, (90,)),
    "count": Expected(sample_module, "count_larger", FILTERED, 12, (90,)),
    "find highest": Expected(sample_module, "find_highest", FILTERED, 12, (90,)),
    "levels": Expected(sample_module, "weigh_levels", FILTERED, 4, (90,)),
    "cut": Expected(sample_module, "find_cut", FILTERED, 1, (90,)),
}
ATTENTION = ("rows", "tiles", "merge")
KEYS = [(name, architecture) for name, one in EXPECTED.items() for architecture in one.architectures]


class Recorder:
    """Stands where a kernel was, and keeps what it was last launched with."""

    def __init__(self) -> None:
        self.arguments: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self._launch

    def _launch(self, *arguments: object, **options: object) -> None:
        self.arguments, self.options = arguments, options


def case_of(name: str, architecture: int, patch: pytest.MonkeyPatch) -> Case:
    """The launch, specialised as Triton would: aligned pointers, integers that are 1 or multiples of 16."""
    expected = EXPECTED[name]
    kernel = getattr(expected.module, expected.kernel)
    unspecialised = kernel.kwargs["do_not_specialize"] or ()
    recorders: dict[str, Recorder] = {}
    with patch.context() as context:
        for one in EXPECTED.values():
            recorders[one.kernel] = Recorder()
            context.setattr(one.module, one.kernel, recorders[one.kernel])
        expected.launch(architecture)
    launched = recorders[expected.kernel]
    options = {
        option: launched.options.pop(option, None)
        for option in ("num_warps", "num_stages", "enable_fp_fusion")
    }
    assert (options["enable_fp_fusion"] is False) == (name in ATTENTION)
    bound = inspect.signature(kernel.fn).bind(*launched.arguments, **launched.options)
    types: dict[str, str] = {}
    constants: dict[str, object] = {}
    aligned: list[str] = []
    for parameter, value in bound.arguments.items():
        specialised = isinstance(value, int) and parameter not in unspecialised
        constexpr = bound.signature.parameters[parameter].annotation == "tl.constexpr"
        if constexpr or value is None or (specialised and value == 1):
            constants[parameter] = value
        elif isinstance(value, Tensor):
            types[parameter] = TRITON_TYPES[value.dtype]
            aligned.append(parameter)
        else:
            types[parameter] = "fp32" if isinstance(value, float) else "i32"
            aligned += [parameter] if specialised and value % 16 == 0 else []
    return Case(
        expected.module.__name__, expected.kernel,
        architecture, types, constants, tuple(aligned), options["num_warps"] or 4, options["num_stages"] or 3,
    )  # fmt: skip


Results = dict[tuple[str, int], Compiled]


@pytest.fixture(scope="module")
def compiled() -> Results:
    results: Results = {}
    with pytest.MonkeyPatch.context() as patch:
        for fusion in ("0", "1"):  # what enable_fp_fusion is at a launch
            keys = [key for key in KEYS if (key[0] in ATTENTION) == (fusion == "0")]
            patch.setenv("TRITON_DEFAULT_FP_FUSION", fusion)
            cases = [case_of(name, architecture, patch) for name, architecture in keys]
            results |= dict(zip(keys, compile_cases(cases), strict=True))
    return results


def num_threads(result: Compiled) -> int:
    found = re.search(r"\.reqntid (\d+)", result.ptx)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize(("name", "architecture"), KEYS)
def test_nothing_spills_and_blocks_share_an_sm(compiled: Results, name: str, architecture: int) -> None:
    result, blocks = compiled[name, architecture], EXPECTED[name].blocks
    assert result.local_bytes == 0
    allocated = -(-result.registers // 8) * 8 * num_threads(result)  # of a warp, in units of 256
    assert blocks * allocated <= REGISTERS
    assert blocks * (result.shared_bytes + 1024) <= SHARED_BYTES[architecture] + 1024


def products(ptx: str) -> set[str]:
    """Instructions with their shapes; those of tcgen05.mma are in a descriptor, its last operand but one."""
    named = set(re.findall(r"(?:mma\.sync|wgmma\.mma_async)[.\w]*", ptx))
    registers = set(re.findall(r"tcgen05\.mma\.[^;]*%rd\d+, (%r\d+), %p", ptx))
    described = (re.search(rf"mov\.b32\s+{register}, (\d+);", ptx) for register in registers)
    return named | {f"tcgen05.mma {found[1]}" for found in described if found is not None}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_and_tiles_multiply_with_the_same_instructions(compiled: Results, architecture: int) -> None:
    rows, tiles = (compiled[name, architecture] for name in ("rows", "tiles"))
    assert products(rows.ptx) == products(tiles.ptx)
    assert len(products(rows.ptx)) == (1 if architecture == 80 else 2)  # from sm_90 on with n in the shape
    assert MMA[architecture] in rows.sass


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["rows", "tiles"])
def test_keys_and_values_are_copied_ahead_16_bytes_at_a_time(
    compiled: Results, name: str, architecture: int
) -> None:
    copies = re.findall(r"LDGSTS\S*", compiled[name, architecture].sass)
    assert set(copies) == {"LDGSTS.E", "LDGSTS.E.BYPASS.128"}  # table entries, keys and values
    assert copies.count("LDGSTS.E") < copies.count("LDGSTS.E.BYPASS.128")


@pytest.mark.parametrize(
    ("name", "architecture"), [key for key in KEYS if key[0] in ATTENTION and key[1] < 100]
)
def test_no_sum_of_products_is_more_than_an_fma(compiled: Results, name: str, architecture: int) -> None:
    ptx = compiled[name, architecture].ptx
    products = set(re.findall(r"\bmul(?:\.\w+)*\.f32\s+(%\w+),", ptx))
    sums = re.findall(r"\b(?:add|sub)(?:\.\w+)*\.f32\s+%\w+, (%\w+), (%\w+);", ptx)
    assert products
    assert sums
    assert not products & {operand for operands in sums for operand in operands}


@pytest.mark.parametrize(("name", "architecture"), [key for key in KEYS if key[0] in ("draw", "count")])
def test_logits_come_16_bytes_at_a_time(compiled: Results, name: str, architecture: int) -> None:
    assert "LDG.E.128" in compiled[name, architecture].sass
