"""A training step of DistributedDataParallel, over either backend of torch.distributed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fastserve.benchmark.contestants import OURS, Contestants
from fastserve.distributed.group import Group

WIDTHS = (1024, 2048, 2048, 1024, 1024, 512)  # of an MLP of 10 million parameters
ROWS = (8, 32)  # per rank: a step that the exchange bounds, and one that computes as long


@dataclass(frozen=True, slots=True)
class DdpStep:
    """Forward, backward and update, with gradients averaged by our backend and by gloo."""

    rows: int
    op: str = "ddp_step"
    dtype: str = "f32"
    num_bytes: int | None = None

    @property
    def shape(self) -> str:
        parameters = sum(n * (k + 1) for k, n in pairwise(WIDTHS))
        return f"{parameters / 1e6:.1f}M parameters, {self.rows} rows"

    def contestants(self, group: Group) -> Contestants:
        calls: Contestants = {}  # "no exchange" is what no backend can be faster than
        digests = []
        for name in (OURS, "gloo"):
            torch.manual_seed(0)
            layers = [nn.Sequential(nn.Linear(k, n), nn.ReLU()) for k, n in pairwise(WIDTHS)]
            backend = distributed.new_group(backend="fastserve" if name == OURS else name)
            model = DistributedDataParallel(nn.Sequential(*layers), process_group=backend)
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            x, y = torch.randn(self.rows, WIDTHS[0]), torch.randn(self.rows, WIDTHS[-1])
            calls[name] = partial(_train, model, optimizer, x, y)
            calls[name]()
            if name == OURS:
                calls["no exchange"] = partial(_train_alone, model, optimizer, x, y)
            digests.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert torch.equal(*digests), "the backends' parameters differ"
        return calls


def _train_alone(
    model: DistributedDataParallel, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> None:
    with model.no_sync():
        _train(model, optimizer, x, y)


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss: Any = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
