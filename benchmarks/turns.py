"""Contenders that take turns: each in a process of its own, all on the same work, one at a time.

    with Turns([Contender("ours", "contenders:inference_of_ours", {...}, threads=1), ...]) as turns:
        turns.answer("ours"), turns.medians(rounds=9, seconds=0.1), turns.memory()

A process of its own, since one process cannot tell whose memory or whose threads are whose; in turns, since machines are noisy: a round
gives every contender the same short time, figures are medians over the rounds, and only their ratios are worth quoting.

In: "module:function" and its arguments, plain values. The function imports what it needs, calls imported(), prepares the work, and
returns a function that does it once and returns an array, or None. Left out: what the work is.
"""

import importlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

PAUSE = 0.02  # seconds between turns: threads of some libraries spin for a while after their work
WARM_UP = 2
STATUS = Path("/proc/self/status")


@dataclass
class Contender:
    """Who takes part. work: "module:function" in this folder.

    ours: it must run, and is started once before, so that what it compiles is on disk by then and not in its memory.
    """

    name: str
    work: str
    arguments: dict = field(default_factory=dict)
    threads: int = 1
    ours: bool = False


@dataclass(frozen=True)
class Memory:
    """MiB of resident memory at most. growth: above that after the imports; nan where the system does not tell. process: all of it."""

    growth: float
    process: float


class Turns:
    """See the head of this file. A peer that cannot run is left out; `missing` says why: {name: sentence}."""

    def __init__(self, contenders):
        self.processes, self.missing = {}, {}
        for contender in contenders:
            for _ in range(2 if contender.ours else 1):
                self._start(contender)

    def _start(self, contender):
        if contender.name in self.processes:
            self._close(self.processes.pop(contender.name))
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MINITL_THREADS"), str(contender.threads))
        command = [sys.executable, str(Path(__file__)), contender.work, json.dumps(contender.arguments)]
        self.processes[contender.name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | counts)
        problem = self._reply(contender.name)
        if problem:
            self._close(self.processes.pop(contender.name))
            if contender.ours:
                raise RuntimeError(f"{contender.name}: {problem}")
            self.missing[contender.name] = problem

    def __enter__(self):
        return self

    def __exit__(self, *_):
        while self.processes:
            self._close(self.processes.popitem()[1])

    @staticmethod
    def _close(process):
        process.stdin.close()
        process.stdout.close()
        process.wait()

    def _reply(self, name):
        line = self.processes[name].stdout.readline()
        return json.loads(line) if line else "its process ended, see above"

    def _ask(self, name, *question):
        process = self.processes[name]
        process.stdin.write(json.dumps(question).encode() + b"\n")
        process.stdin.flush()
        found = self._reply(name)
        if isinstance(found, str):
            raise RuntimeError(f"{name}: {found}")
        return found

    def answer(self, name):
        """What the work of a contender returned the first time, as an array."""
        import numpy as np

        shape, values = self._ask(name, "answer")
        return np.array(values).reshape(shape)

    def medians(self, rounds, seconds):
        """{name: median seconds of one piece of work}, each contender getting `seconds` in each round."""
        times = {name: [] for name in self.processes}
        for _ in range(rounds):
            for name, of_it in times.items():
                of_it.append(statistics.median(self._ask(name, "work", seconds)))
                time.sleep(PAUSE)
        return {name: statistics.median(of_it) for name, of_it in times.items()}

    def memory(self):
        """{name: Memory}"""
        return {name: Memory(*self._ask(name, "memory")) for name in self.processes}


# ---- in the process of a contender

_after_imports = float("nan")


def status(key):
    """A line of /proc/self/status in MiB; nan where there is none."""
    if not STATUS.is_file():
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in STATUS.read_text().splitlines() if line.startswith(key + ":"))


def imported():
    """What follows is the work's own memory."""
    global _after_imports
    _after_imports = status("VmRSS")


def _memory():
    peak = status("VmHWM")
    if peak != peak:  # not Linux: the highest point so far is all there is
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return peak - _after_imports, peak


def _work(step, seconds):
    end = time.perf_counter() + seconds
    for _ in range(WARM_UP):
        if time.perf_counter() < end:
            step()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return times


def _serve(work, arguments):
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply

    def reply(value):
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    module, function = work.split(":")
    try:
        step = getattr(importlib.import_module(module), function)(**json.loads(arguments))
        first = step()
    except Exception as error:  # whatever another's library does, the rest goes on
        reply(f"{type(error).__name__}: {error}")
        return
    reply(None)
    for line in io.TextIOWrapper(sys.stdin.buffer):
        question, *rest = json.loads(line)
        if question == "answer":
            reply([list(first.shape), first.reshape(-1).tolist()])
        elif question == "work":
            reply(_work(step, *rest))
        else:
            reply(_memory())


if __name__ == "__main__":
    sys.modules["turns"] = sys.modules["__main__"]
    _serve(*sys.argv[1:])
