"""zentorch's products are taken for a peer where they are right, on weights as it wants them; here it is a stand-in."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastserve.benchmark.torch_matmul import UnfitPeerError
from fastserve.benchmark.zentorch_matmul import zentorch_matmul
from fastserve.ops.weight_rows import QUANT_BLOCK


class StandIn:
    """Its ops, in plain torch; `wrong` makes the int8 product what zentorch 2.13.0.2 makes of some shapes."""

    wrong = False

    @staticmethod
    def zentorch_weight_prepack_for_linear(weight: Tensor) -> Tensor:
        return weight

    @staticmethod
    def zentorch_linear_unary(x: Tensor, weight: Tensor, *, is_weight_prepacked: bool) -> Tensor:
        assert is_weight_prepacked
        return x @ weight.T

    @staticmethod
    def zentorch_weight_prepack_for_dynamic_qlinear(codes: Tensor) -> Tensor:
        assert codes.dtype == torch.int8
        return codes

    def zentorch_dynamic_qlinear(
        self, x: Tensor, codes: Tensor, scales: Tensor, *, is_weight_prepacked: bool
    ) -> Tensor:
        assert is_weight_prepacked
        return (x.float() @ codes.float().T) * scales * (7 if self.wrong else 1)

    @staticmethod
    def zentorch_woq_repack_weight(codes: Tensor) -> Tensor:
        assert codes.dtype == torch.int8
        assert int(codes.abs().max()) <= 7
        return codes

    @staticmethod
    def zentorch_woq_linear(x: Tensor, codes: Tensor, scales: Tensor, zero_points: None) -> Tensor:
        return x.float() @ (codes.float() * scales.float().repeat_interleave(QUANT_BLOCK, 0))


@pytest.fixture
def zentorch(monkeypatch: pytest.MonkeyPatch) -> Any:
    torch.manual_seed(5)
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "zentorch", ModuleType("zentorch"))
    monkeypatch.setattr(torch.ops, "zentorch", stand_in, raising=False)
    return stand_in


@pytest.mark.usefixtures("zentorch")
@pytest.mark.parametrize(
    ("weight_type", "tolerance"), [("bf16", 0.02), ("q8", 0.02), ("q4", 0.2), ("q4m", 0.2)]
)
def test_every_copy_multiplies_the_matrix(weight_type: Any, tolerance: float) -> None:
    weight, x = torch.randn(48, 96), torch.randn(3, 96)
    name, calls = zentorch_matmul(weight, weight_type, lambda num_bytes: 48 * 96 * 4 // num_bytes)
    assert name.startswith("zentorch ")
    assert len(calls) == {"bf16": 2, "q8": 4}.get(weight_type, 8)
    expected = x @ weight.T
    for call in calls:
        product = call(x.bfloat16())
        assert isinstance(product, Tensor)
        assert float((product.float() - expected).abs().max() / expected.abs().max()) < tolerance


def test_a_product_that_is_lacking_or_wrong_is_no_peer(zentorch: Any) -> None:
    with pytest.raises(UnfitPeerError, match="no product of its own for f32"):
        zentorch_matmul(torch.randn(48, 96), "f32", lambda _: 1)
    zentorch.wrong = True
    with pytest.raises(UnfitPeerError, match=r"zentorch int8 \[48, 96\] is wrong by"):
        zentorch_matmul(torch.randn(48, 96), "q8", lambda _: 1)
