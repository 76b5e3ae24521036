from __future__ import annotations

import signal
import threading

from fastserve.engine.deferred_interrupt import DeferredInterrupt


def interrupt(*, times: int) -> list[str]:
    """What happens, in order."""
    seen = []
    try:
        with DeferredInterrupt():
            for _ in range(times):
                seen.append("interrupt")
                signal.raise_signal(signal.SIGINT)
            seen.append("work")
    except KeyboardInterrupt:
        seen.append("raised")
    return seen


def test_an_interrupt_takes_effect_when_the_work_is_done() -> None:
    assert interrupt(times=1) == ["interrupt", "work", "raised"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_takes_effect_at_once() -> None:
    assert interrupt(times=2) == ["interrupt", "interrupt", "raised"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_between_steps_an_interrupt_takes_effect_and_is_done_with() -> None:
    seen: list[int | str] = []
    with DeferredInterrupt() as deferred:
        for step in range(3):
            if step == 1:
                signal.raise_signal(signal.SIGINT)
            seen.append(step)
            try:
                deferred.settle()
            except KeyboardInterrupt:
                seen.append("raised")
    assert seen == [0, 1, "raised", 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interrupt_nothing_happens_and_it_may_be_used_again() -> None:
    deferred = DeferredInterrupt()
    for _ in range(2):
        with deferred:
            pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_leave_the_handler_alone() -> None:
    seen = []

    def work() -> None:
        with DeferredInterrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
