"""Prompts are fresh for every call; a step's least work comes from the file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fastserve.benchmark.peers import FIRST_ORDINARY_ID, model_work, random_prompt


def test_prompts_differ_and_repeat_with_the_seed() -> None:
    first = random.Random(7)
    prompts = [random_prompt(first, 64, 1000) for _ in range(2)]
    assert prompts[0] != prompts[1]
    assert prompts[0] == random_prompt(random.Random(7), 64, 1000)
    assert all(FIRST_ORDINARY_ID <= token_id < 1000 for prompt in prompts for token_id in prompt)


def test_a_step_reads_the_file_once_and_multiplies_every_row(smollm2_path: Path) -> None:
    one, many = (model_work(smollm2_path, num_tokens=num_tokens) for num_tokens in (1, 512))
    assert one.num_bytes == many.num_bytes == pytest.approx(smollm2_path.stat().st_size, rel=0.05)
    # 30 layers of q, k, v, o and the MLP
    assert one.num_operations == 2 * 30 * 576 * (576 * 2 + 192 * 2 + 1536 * 3)
    assert many.num_operations == 512 * one.num_operations
    assert one.arithmetic == "int8"
