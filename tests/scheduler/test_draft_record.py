"""What a request learns of its drafts."""

from __future__ import annotations

from itertools import pairwise

from fastserve.scheduler.draft_record import FIRST_GUESS, Acceptance, DraftRecord


def make_record() -> DraftRecord:
    return DraftRecord(acceptance=Acceptance(FIRST_GUESS, weight=2, fade=0.9))


def test_longer_matches_are_trusted_more_before_anything_is_known() -> None:
    acceptance = Acceptance(FIRST_GUESS, weight=2, fade=0.9)
    firsts = [acceptance.of(match_class)[0] for match_class in range(4)]
    assert firsts == sorted(firsts)


def test_shares_follow_what_was_right() -> None:
    acceptance = Acceptance(FIRST_GUESS, weight=2, fade=0.9)
    for _ in range(30):
        acceptance.add(0, num_drafted=4, num_right=4)
        acceptance.add(3, num_drafted=4, num_right=0)
        acceptance.add(2, num_drafted=4, num_right=1)
    assert min(acceptance.of(0)) > 0.95
    assert acceptance.of(3)[0] < 0.05
    first, after = acceptance.of(2)
    assert first > 0.95
    assert after < 0.1


def test_what_comes_behind_a_wrong_draft_says_nothing() -> None:
    acceptance = Acceptance(FIRST_GUESS, weight=2, fade=0.9)
    before = acceptance.of(1)[1]
    acceptance.add(1, num_drafted=5, num_right=0)
    assert acceptance.of(1)[1] == before


def test_a_class_that_does_not_pay_is_tried_again_ever_more_rarely() -> None:
    record = make_record()
    tries = []
    for num_tokens in range(2000):
        if record.retry_drafts(0, num_tokens):
            tries.append(num_tokens)
            record.observe_drafts(0, 1, 0)
    waits = [after - before for before, after in pairwise(tries)]
    assert waits == sorted(waits)
    assert waits[-1] > 500
    assert len(tries) < 8


def test_a_retry_that_is_right_starts_over() -> None:
    record = make_record()
    assert not record.retry_drafts(0, 100)
    assert record.retry_drafts(0, 132)
    record.observe_drafts(0, 1, 1)
    assert not record.retry_drafts(0, 133)
    assert record.retry_drafts(0, 165)
