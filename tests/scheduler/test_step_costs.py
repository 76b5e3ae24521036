"""Costs are learned from steps: made up here, so that no clock is involved."""

from __future__ import annotations

from random import Random

import pytest

from fastserve.scheduler.step_costs import StepCosts


def ratio(costs: StepCosts, num_rows: int) -> float:
    return costs.of(num_rows) / costs.of(1)


def test_before_anything_ran_a_row_costs_a_fifth_of_a_step() -> None:
    assert [round(StepCosts().of(rows), 2) for rows in (1, 2, 6)] == [1.0, 1.2, 2.0]


def test_steps_of_one_size_tell_nothing_of_others() -> None:
    costs = StepCosts()
    for _ in range(100):
        costs.observe(1, 5000)
    assert costs.of(1) == pytest.approx(5000)
    assert ratio(costs, 6) == pytest.approx(2.0)


@pytest.mark.parametrize("per_row", [0.0, 0.03, 0.5, 1.0])
def test_what_rows_cost_is_learned_through_noise(per_row: float) -> None:
    random, costs = Random(1), StepCosts()
    for _ in range(300):
        rows = random.choice([1, 1, 1, 3, 5, 8])
        costs.observe(rows, (1 + per_row * (rows - 1)) * random.uniform(0.9, 1.1))
    for rows in (2, 3, 5, 8, 12):
        assert ratio(costs, rows) == pytest.approx(1 + per_row * (rows - 1), rel=0.15)


def test_a_number_of_rows_that_is_dearer_than_its_neighbours_is_known() -> None:
    costs = StepCosts()
    for _ in range(60):
        for rows, time in ((1, 1.0), (4, 1.1), (5, 2.0)):  # a second tile begins
            costs.observe(rows, time)
    assert ratio(costs, 5) > 1.25 * ratio(costs, 4)


def test_a_step_that_was_disturbed_changes_little() -> None:
    costs = StepCosts()
    for _ in range(50):
        costs.observe(1, 1.0)
        costs.observe(4, 1.3)
    before = ratio(costs, 4)
    costs.observe(4, 100.0)
    assert ratio(costs, 4) < 1.15 * before


def test_a_machine_that_changes_is_followed() -> None:
    costs = StepCosts()
    for per_row in (0.02, 0.8):
        for i in range(200):
            rows = 1 + i % 4
            costs.observe(rows, 1 + per_row * (rows - 1))
    assert ratio(costs, 4) == pytest.approx(3.4, rel=0.1)
