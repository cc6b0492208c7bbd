"""Work on several processors at once: threads of Python that stay, and kernels that let go of the GIL.

A thread is started once and then waits at a lock, which costs some 20 microseconds a time; starting one anew costs ten times as much.
In: functions. Out: their effects; nothing is returned. Left out: processes, and any order between the parts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable

from .errors import MinitlError

MOST = 256
"""Threads that a kernel has room for."""


def threads() -> int:
    """How many at most: MINITL_THREADS, else the processors that this process may use."""
    if chosen := os.environ.get("MINITL_THREADS"):
        if not (chosen.isascii() and chosen.isdigit() and int(chosen) > 0):
            raise MinitlError(f"MINITL_THREADS is {chosen!r}: expected a number of threads, at least 1")
        return min(MOST, int(chosen))
    return min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class _Helper:
    """A thread that does one job after the other.

    A signal (Ctrl-C) may interrupt who gives a job at any moment; so to give it twice, or to wait for it twice, is harmless.
    """

    def __init__(self) -> None:
        self.job: tuple[int, Callable[[], object] | None] = 0, None
        self.finished = 0
        self.error: BaseException | None = None
        self.given, self.done = threading.Lock(), threading.Lock()
        self.given.acquire()
        self.done.acquire()
        threading.Thread(target=self._run, daemon=True, name="minitl").start()

    def _run(self) -> None:
        while True:
            self.given.acquire()
            number, work = self.job
            if work and number != self.finished:
                self.error = None
                try:
                    work()
                except BaseException as raised:  # raised again by together
                    self.error = raised
                self.finished = number
                _open(self.done)
            del work  # what it holds may be large

    def start(self, number: int, work: Callable[[], object]) -> None:
        """Begin; wait() must follow. number: of the job, never used before."""
        self.job = number, work
        _open(self.given)

    def wait(self, number: int) -> None:
        """Until that job is done."""
        while self.finished != number:
            self.done.acquire()
        self.job = number, None


def _open(lock: threading.Lock) -> None:
    """Release a lock, be it held or not."""
    with contextlib.suppress(RuntimeError):
        lock.release()


_helpers: list[_Helper] = []
_user: dict[str, object] = {}  # who has the helpers
_jobs = itertools.count(1)


def together(work: Callable[[int, int], object], parts: int, waiting: bool = False) -> None:
    """work(0, parts), ..., work(parts - 1, parts) at the same time, the first on the calling thread.

    Where they cannot all run at once, since another call or a part of this one is at it, work(0, 1) does everything. The first
    exception of a part is raised once all have ended, and so is what a signal raises. waiting: whether parts wait for each other. Then the
    main thread has none: a signal may interrupt it, and it alone, at any moment, and the others would wait for ever.
    """
    errors: list[BaseException | None] = []
    me = object()
    try:
        if parts > 1 and _user.setdefault("now", me) is me:
            first = int(not waiting or threading.current_thread() is not threading.main_thread())
            with contextlib.suppress(RuntimeError):  # the system gives no more threads
                while len(_helpers) < parts - first:
                    _helpers.append(_Helper())
            if len(_helpers) >= parts - first:
                errors = _all_parts(work, parts, first)
    finally:
        if "now" in _user and _user["now"] is me:  # without a call, after which a signal would be seen
            del _user["now"]
    if not errors:
        work(0, 1)
    for failure in errors:
        if failure is not None:
            raise failure


def _all_parts(work: Callable[[int, int], object], parts: int, first: int) -> list[BaseException | None]:
    """What each part raised, and the signals. first: the first part that is not done here."""
    number, helpers = next(_jobs), _helpers[: parts - first]
    errors: list[BaseException | None] = []
    left = first
    while True:
        try:
            for part, helper in enumerate(helpers, first):
                helper.start(number, lambda part=part: work(part, parts))  # type: ignore[misc]
            if left:
                left = 0
                work(0, parts)
            for helper in helpers:
                helper.wait(number)
            return [*errors, None, *(helper.error for helper in helpers)]
        except BaseException as raised:
            errors.append(raised)


def _forget() -> None:
    """A child of fork has none of its parent's threads."""
    _helpers.clear()
    _user.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
