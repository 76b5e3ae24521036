"""Every op that has a kernel for GPUs, by each of its backends there, against the reference on the same tensors.

The calls on CPU tensors, in Triton's interpreter, are there to test these tests, and what the ops hand to the kernels.
bf16 is left to GPUs: the interpreter's tl.dot is wrong for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import fastserve.ops
from fastserve.benchmark.op_calls import GPU_BACKENDS
from fastserve.ops import pack, reference, registry, unpack
from tests.ops.kv_case import rows_of

from .op_table import CALLS, DTYPES, backends_of, op_of, stored_case
from .outcome import check, check_captured, outcome, restore, vary
from .place import Place

# What torch's compiler and a driver warn of on a GPU is not this project's: TF32 that is switched off, say.
pytestmark = pytest.mark.filterwarnings("default")

IN_TRITON = [name for name in CALLS if "triton" in backends_of(name, torch.float32)]
# One form of each op: these are about torch, not about what a kernel computes. A lone all_reduce launches nothing.
ONE_OF_EACH = [
    name for name in CALLS if name in (op_of(name), "paged_attention tiles") and name != "all_reduce"
]


def on_gpu(name: str, dtypes: Sequence[torch.dtype], *, only_default: bool = False) -> Iterable[Any]:
    for dtype in dtypes:
        for backend in backends_of(name, dtype)[: 1 if only_default else None]:
            place = Place("cuda", backend, dtype)
            yield pytest.param(name, place, marks=pytest.mark.cuda, id=f"{name}-{place}")


def interpreted(name: str, dtype: torch.dtype) -> Any:
    place = Place("cpu", "triton", dtype)
    return pytest.param(name, place, id=f"{name}-{place}")


EVERYTHING = [
    *(param for name in CALLS for param in on_gpu(name, DTYPES)),
    *(interpreted(name, torch.float16) for name in IN_TRITON),
    *(interpreted(name, torch.float32) for name in IN_TRITON if name in (op_of(name), "matmul q4m")),
]
DEFAULTS = [
    *(param for name in ONE_OF_EACH for param in on_gpu(name, [torch.bfloat16], only_default=True)),
    *(interpreted(name, torch.float32) for name in ("rms_norm", "add_rms_norm", "select_rows")),
]


@pytest.mark.parametrize(("name", "place"), EVERYTHING, indirect=["place"])
def test_equals_the_reference(name: str, place: Place) -> None:
    call = CALLS[name](place.setting)
    assert call.op == op_of(name)
    check(outcome(call, fastserve.ops, place), outcome(call, reference, place))


@pytest.mark.parametrize(("name", "place"), DEFAULTS, indirect=["place"])
def test_under_torch_compile(name: str, place: Place) -> None:
    call = CALLS[name](place.setting)
    backend = "inductor" if place.device == "cuda" else "aot_eager"  # which needs no compiler of C++
    compiled = torch.compile(lambda: call.apply(fastserve.ops), fullgraph=True, backend=backend)
    before = [call.operands[name].clone() for name in call.mutated]
    found = [*compiled(), *(call.operands[name] for name in call.mutated)]
    place.synchronize()
    found = [tensor.clone() for tensor in found]
    restore(call, before)
    check(found, outcome(call, reference, place))
    torch.compiler.reset()


@pytest.mark.parametrize(("name", "place"), DEFAULTS, indirect=["place"])
def test_a_captured_call_takes_what_its_operands_hold_at_each_replay(name: str, place: Place) -> None:
    check_captured(CALLS[name](place.setting), reference, place)


@pytest.mark.parametrize(("name", "place"), DEFAULTS, indirect=["place"])
def test_runs_on_the_callers_stream(name: str, place: Place) -> None:
    """Its operand arrives late there; on any other stream the call would read what was there before."""
    call = CALLS[name](place.setting)
    wanted = outcome(call, reference, place)
    outcome(call, fastserve.ops, place)  # compiles, or the wait would be over
    operand = call.operands[call.varied]
    late = operand.clone().pin_memory() if operand.is_cpu and place.device == "cuda" else operand.clone()
    vary(call)
    with place.busy_side_stream():
        operand.copy_(late, non_blocking=True)
        returned = call.apply(fastserve.ops)
    place.synchronize()
    check([*returned, *(call.operands[name] for name in call.mutated)], wanted)


ALONE_AND_TOGETHER = [
    pytest.param(Place("cpu", None, torch.float32), id="cpu"),
    *(
        pytest.param(Place("cuda", backend, torch.bfloat16), marks=pytest.mark.cuda, id=f"cuda-{backend}")
        for backend in GPU_BACKENDS
    ),
]


@pytest.mark.parametrize("place", ALONE_AND_TOGETHER, indirect=True)
def test_a_product_has_the_same_bits_whatever_rows_are_beside_it(place: Place) -> None:
    setting = place.setting
    x = setting.randn(150, 192)
    for type in (setting.plain_type, *(() if place.backend == "cuda" else ("q8", "q4", "q4m"))):
        w = pack(setting.randn(100, 192), type)
        whole = fastserve.ops.matmul(x, w)
        error = (whole.float() - x.float() @ unpack(w).T).norm() / whole.float().norm()
        assert error < 1e-2, type
        for rows in (slice(0, 1), slice(0, 16), slice(3, 20), slice(0, 65), slice(77, 78)):
            assert torch.equal(fastserve.ops.matmul(x[rows], w), whole[rows]), (type, rows)


@pytest.mark.parametrize(
    "place", [param for param in ALONE_AND_TOGETHER if param.id != "cuda-cuda"], indirect=True
)
def test_attention_gives_a_decoding_row_the_bits_that_it_had_in_its_prompt(place: Place) -> None:
    case = stored_case(place.setting, (300, 40))

    def attend(ops: Any, rows: slice) -> Tensor:
        return ops.paged_attention(case.q[rows], case.cache, rows_of(case, rows), case.kv_of_head, scale=0.2)

    whole = attend(fastserve.ops, slice(None))
    check([whole], [attend(reference, slice(None))])
    for rows in (slice(0, 64), slice(250, 300), slice(299, 300), slice(339, 340), slice(290, 310)):
        assert torch.equal(attend(fastserve.ops, rows), whole[rows]), rows


@pytest.mark.cuda
@pytest.mark.parametrize("place", [Place("cuda", "cuda", torch.bfloat16)], ids=str, indirect=True)
def test_a_backend_that_lacks_an_op_or_a_type_says_so(place: Place) -> None:
    setting = place.setting
    with pytest.raises(ValueError, match="rms_norm has no backend cuda: it has reference, cpu, triton"):
        CALLS["rms_norm"](setting).apply(fastserve.ops)
    with pytest.raises(ValueError, match="type must be bf16 or f16 for the backend cuda"):
        CALLS["matmul q4"](setting).apply(fastserve.ops)


def test_every_op_that_has_a_kernel_for_gpus_is_called() -> None:
    with_kernels = {row.name for row in registry.table() if set(row.backends) & set(GPU_BACKENDS)}
    assert with_kernels == {op_of(name) for name in CALLS}
    assert {op_of(name) for name in ONE_OF_EACH} == with_kernels - {"all_reduce"}
