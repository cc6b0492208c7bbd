"""Threads that stay: parts run at the same time, errors arrive, and a signal at any moment leaves nothing that hangs."""

import _thread
import signal
import threading

import pytest

from minitl import threads
from minitl.threads import together


def meeting(parts):
    """Work whose parts wait for each other; -> (work, the parts that were there)."""
    barrier, there = threading.Barrier(parts, timeout=20), []

    def work(part, of):
        barrier.wait()
        there.append((part, of))

    return work, there


@pytest.mark.parametrize("waiting", [False, True])
def test_all_parts_run_at_the_same_time(waiting):
    for parts in (2, 5, 3):
        work, there = meeting(parts)
        together(work, parts, waiting)
        assert sorted(there) == [(part, parts) for part in range(parts)]


def test_the_exception_of_any_part_is_raised_and_the_next_call_is_as_ever():
    for bad in range(3):

        def work(part, of, bad=bad):
            if part == bad:
                raise ValueError(part)

        for waiting in (False, True):
            with pytest.raises(ValueError, match=str(bad)):
                together(work, 3, waiting)
    test_all_parts_run_at_the_same_time(True)


def test_a_call_within_a_part_and_one_beside_it_do_all_parts_themselves():
    inner = []

    def work(part, of):
        together(lambda part, of: inner.append((part, of)), 2)

    together(work, 2)
    assert inner == [(0, 1), (0, 1)]


@pytest.mark.parametrize("method", ["start", "wait"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_between_two_parts_is_raised_when_all_have_ended(monkeypatch, method, when):
    real, left = getattr(threads._Helper, method), [2]

    def interrupted(self, *arguments):
        if when == "after":
            real(self, *arguments)
        left[0] -= 1
        if left[0] == 0:
            _thread.interrupt_main()  # KeyboardInterrupt, at the next call or jump
            for _ in range(1000):
                pass
        if when == "before":
            real(self, *arguments)

    together(lambda part, of: None, 3, True)
    monkeypatch.setattr(threads._Helper, method, interrupted)
    work, there = meeting(3)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            together(work, 3, True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(there) == 3
    monkeypatch.undo()
    assert not threads._user
    test_all_parts_run_at_the_same_time(True)


def test_where_no_thread_can_be_started_one_does_everything(monkeypatch):
    def refused():
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_helpers", [])
    monkeypatch.setattr(threads, "_Helper", refused)
    done = []
    together(lambda part, of: done.append((part, of)), 4)
    assert done == [(0, 1)]
