"""Work on several processors at once: threads of Python that stay, and kernels that let go of the GIL.

A thread is started once and then waits at a lock, which costs some 20 microseconds a time; starting one anew costs ten times as much.
In: functions. Out: their effects; nothing is returned. Left out: processes, and any order between the parts.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

MOST = 256
"""Threads that a kernel has room for."""


def threads() -> int:
    """How many at most: MINITL_THREADS, else the processors that this process may use."""
    chosen = os.environ.get("MINITL_THREADS", "")
    if chosen.isascii() and chosen.isdigit() and int(chosen) > 0:
        return min(MOST, int(chosen))
    return min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class _Helper:
    """A thread that does what it is given, one thing after the other. What it raises is raised where it is waited for."""

    def __init__(self) -> None:
        self.work: Callable[[], object] | None = None
        self.error: BaseException | None = None
        self.given, self.done = threading.Lock(), threading.Lock()
        self.given.acquire()
        self.done.acquire()
        threading.Thread(target=self._run, daemon=True, name="minitl").start()

    def _run(self) -> None:
        while True:
            self.given.acquire()
            assert self.work
            try:
                self.work()
            except BaseException as raised:  # raised again by wait's caller
                self.error = raised
            self.done.release()

    def start(self, work: Callable[[], object]) -> None:
        """Begin; wait() must follow."""
        self.work = work
        self.given.release()

    def wait(self) -> BaseException | None:
        """Until it is done, also when interrupted: its kernels write to memory of the caller. -> what it raised."""
        interrupted: BaseException | None = None
        while True:
            try:
                self.done.acquire()
                break
            except KeyboardInterrupt as signal:
                interrupted = signal
        raised, self.error, self.work = self.error, None, None
        return interrupted or raised


_helpers: list[_Helper] = []
_busy = threading.Lock()


def together(work: Callable[[int, int], object], parts: int) -> None:
    """work(0, parts), ..., work(parts - 1, parts) at the same time, the first on the calling thread. They may wait for each other.

    Where they cannot all run at once, since another call or a part of this one is at it, work(0, 1) does everything. The first
    exception of a part is raised once all have ended.
    """
    if parts <= 1 or not _busy.acquire(blocking=False):
        work(0, 1)
        return
    errors: list[BaseException | None] = []
    try:
        while len(_helpers) < parts - 1:
            _helpers.append(_Helper())
        for part, helper in enumerate(_helpers[: parts - 1], 1):
            helper.start(lambda part=part: work(part, parts))  # type: ignore[misc]
        try:
            work(0, parts)
        except BaseException as raised:  # raised below
            errors.append(raised)
        errors.extend(helper.wait() for helper in _helpers[: parts - 1])
    finally:
        _busy.release()
    for failure in errors:
        if failure is not None:
            raise failure


def _forget() -> None:
    """A child of fork has none of its parent's threads."""
    global _busy
    _helpers.clear()
    _busy = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
