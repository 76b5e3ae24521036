"""How many drafts are made, by made-up costs and outcomes: no clock is involved."""

from __future__ import annotations

from dataclasses import replace

from fastserve.scheduler.request_state import RequestState
from fastserve.scheduler.speculation import MAX_DRAFTS, MAX_REQUESTS, Speculation, best_count
from fastserve.step import GREEDY, NO_DRAFTS, Drafted, Step, StepResult

CHEAP = [1 + 0.02 * count for count in range(MAX_DRAFTS + 1)]
DEAR = [1 + 1.0 * count for count in range(MAX_DRAFTS + 1)]


def make_requests(count: int, temperature: float = 0.0) -> list[RequestState]:
    sampling = replace(GREEDY, temperature=temperature)
    return [RequestState("r", i, [1, 2, 3], 1000, sampling) for i in range(count)]


def learn_costs(speculation: Speculation, per_row: float, base_rows: int = 1) -> None:
    for i in range(200):
        num_drafts = i % 6
        step = Step(i, decodes=tuple(range(base_rows)))
        drafted = (Drafted(0, 0, num_drafts),) if num_drafts else ()
        time = 1000 * (1 + per_row * (base_rows + num_drafts - 1))
        speculation.observe_step(step, StepResult(i, (), int(time), drafted))


def settle_budgets(speculation: Speculation, requests: list[RequestState]) -> list[tuple[int, ...]]:
    budgets = speculation.budgets(requests)
    for request, of_request in zip(requests, budgets, strict=True):
        request.drafts.budgets = of_request
    return budgets


def test_no_draft_pays_where_a_row_costs_as_much_as_a_step() -> None:
    assert best_count((0.95, 0.95), DEAR, 0.0) == 0


def test_sure_drafts_are_long_and_unsure_ones_short_or_none() -> None:
    counts = [best_count((right, right), CHEAP, 0.0) for right in (0.99, 0.7, 0.3, 0.01)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == MAX_DRAFTS
    assert counts[-1] == 0


def test_drafts_that_fail_stop_and_are_tried_again_later() -> None:
    speculation, (request,) = Speculation(), make_requests(1)
    learn_costs(speculation, per_row=0.2)
    assert all(settle_budgets(speculation, [request])[0][1:])
    num_drafted = 0
    for _ in range(400):
        request.output_token_ids.append(7)
        (budgets,) = settle_budgets(speculation, [request])
        drafted = Drafted(0, 2, budgets[2]) if budgets[2] else None
        num_drafted += budgets[2]
        speculation.observe(request, drafted, 1)
    assert 4 < num_drafted < 24
    assert request.drafts.budgets[2] <= 1


def test_drafts_that_are_right_grow() -> None:
    speculation, (request,) = Speculation(), make_requests(1)
    learn_costs(speculation, per_row=0.1)
    (before,) = settle_budgets(speculation, [request])
    for _ in range(20):
        (budgets,) = settle_budgets(speculation, [request])
        speculation.observe(request, Drafted(0, 1, budgets[1]), 1 + budgets[1])
    assert request.drafts.budgets[1] > before[1]


def test_a_new_request_starts_from_what_others_of_its_kind_showed() -> None:
    speculation = Speculation()
    learn_costs(speculation, per_row=0.2)
    (request,) = make_requests(1, temperature=1.0)
    settle_budgets(speculation, [request])
    for _ in range(60):
        speculation.observe(request, Drafted(0, 0, 2), 1)
    sampled, greedy = make_requests(1, temperature=0.7)[0], make_requests(1)[0]
    assert settle_budgets(speculation, [sampled])[0][0] == 0
    assert settle_budgets(speculation, [greedy])[0][0] > 0


def test_a_batch_whose_rows_are_dear_drafts_less_than_a_request_alone() -> None:
    alone, together = Speculation(), Speculation()
    learn_costs(alone, per_row=0.15)
    learn_costs(together, per_row=0.15, base_rows=8)
    budgets_alone = alone.budgets(make_requests(1))[0]
    budgets_together = together.budgets(make_requests(8))[0]
    assert sum(budgets_together) < sum(budgets_alone)
    assert budgets_together[0] == 0


def test_a_large_batch_drafts_nothing() -> None:
    assert set(Speculation().budgets(make_requests(MAX_REQUESTS + 1))) == {NO_DRAFTS}
