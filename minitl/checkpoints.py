"""A training run that can be stopped at any moment and continued to the very same end.

In: the path of a file, and after every step the state of the training (training.State). Out: that file, written whole every half minute and
when Ctrl-C asks for an end, and read again by a run with `resume`. A run is several trainings one after the other (the classifier,
then more); those that are over are not repeated. What a run depends on (photos, weights, settings, versions) is kept as hashes and
compared. Left out: the features of the photos, which have a cache of their own (features.py).
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .errors import MinitlError
from .files import printable, write_atomically
from .graph import Graph
from .layers import Array, Params
from .training import Epoch, History, Settings, State, begin
from .weights import pack, unpack

SECONDS = 30.0
"""Between two saves: what a kill can cost, beside the step that runs."""

JSON = "checkpoint.json"


class Stopped(KeyboardInterrupt):
    """Ctrl-C, after the step was finished and the state was saved."""


class Checkpoint:
    """The file of one run. path None: nothing is kept. depends: {what: its hash}, all that the numbers of the run follow from.

    resume: go on with what the file holds; where there is none, begin. Raises MinitlError for a file of another run, or a damaged one.
    say: hears when the file cannot be written.
    """

    def __init__(
        self, path: Path | None, depends: Mapping[str, str], resume: bool = False, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.path, self.depends, self.say = path, dict(depends), say
        self.problem = ""
        self.resumed, self._going_on = False, resume
        self._besides: Checkpoint | None = None
        self._facts: dict[str, Any] = {"histories": [], "step": None, "trials": []}
        self._arrays: dict[str, Array] = {}
        self._saved, self._asked = time.monotonic(), False
        if resume and path and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        name = printable(path)
        with _in_words(name):
            arrays = {name: array.copy() for name, array in unpack(path.read_bytes(), name).items()}
            facts = json.loads(arrays.pop(JSON).tobytes())
            depends = dict(facts.pop("depends"))
            histories = [_history(entry) for entry in facts["histories"]]
            for trial in facts["trials"]:
                _numbers(trial[figure] for figure in ("accuracy", "error", "photos", "seconds"))
            depths = [trial["depth"] for trial in facts["trials"]]
            if depths[:1] not in ([], [None]) or not all(isinstance(depth, str) for depth in depths[1:]):
                raise ValueError("the depths that were tried are not what is tried")
            if not isinstance(facts["step"], (dict, type(None))):
                raise ValueError("its parts do not fit together")
        if other := sorted(what for what in self.depends.keys() | depends.keys() if self.depends.get(what) != depends.get(what)):
            raise MinitlError(
                f"{name} is of another run: it was made with other {', '.join(other)}; "
                "give the same command as then, or leave --resume out to begin anew"
            )
        self._facts, self._arrays, self.resumed = facts | {"histories": histories}, arrays, True

    @property
    def trials(self) -> list[dict[str, Any]]:
        """What was tried before the first training."""
        trials: list[dict[str, Any]] = self._facts["trials"]
        return trials

    def add_trial(self, trial: dict[str, Any]) -> None:
        """Remember a trial, at once: it took long."""
        self._facts["trials"] = [*self.trials, trial]
        if self.path:
            self._save(None, None)

    # ---- one training of the run

    def finished(self, number: int, graph: Graph) -> History | None:
        """What came of training `number` (from 0), if it is over; the graph gets the parameters that it left."""
        histories: list[History] = self._facts["histories"]
        if number >= len(histories):
            return None
        if number == len(histories) - 1:
            self._restore(graph, "now")
        return histories[number]

    def state(self, number: int, graph: Graph, settings: Settings, factors: Mapping[str, float] | None, photos: int) -> State | None:
        """Where training `number` of so many photos was stopped; the graph gets the parameters of then. None: it has not begun."""
        step = self._facts["step"]
        if step is None or number != len(self._facts["histories"]):
            return None
        self._restore(graph, "now")
        with _in_words(printable(self.path or "")):
            at = begin(graph, settings, np.inf, factors)
            at.best_params = {node: dict(params) for node, params in graph.params.items()}
            _put(at.best_params, self._arrays, "best")
            for slot, values in at.optimiser.slots.items():
                for key in self._arrays:
                    kind, _, rest = key.partition("/")
                    if kind == slot:
                        node, _, name = rest.rpartition("/")
                        values[node, name] = _like(graph.params[node][name], self._arrays, key)
            if at.average:
                _put(at.average.params, self._arrays, "average")
                at.average.steps = _whole(step["averaged"])
            at.order = np.frombuffer(self._arrays["order"].tobytes(), np.int64)
            if not np.array_equal(np.sort(at.order), np.arange(photos)):
                raise ValueError(f"its order is not one of {photos} photos")
            at.random.bit_generator.state = step["random"]
            at.best_loss = np.inf if step["best_loss"] is None else _numbers([step["best_loss"]])[0]
            (at.loss,) = _numbers([step["loss"]])
            at.epoch, at.step, at.correct = (_whole(step[name]) for name in ("epoch", "step", "correct"))
            at.optimiser.steps = _whole(step["steps"])
            at.history = _history(step["history"])
            return at

    def keeper(self, number: int, graph: Graph) -> Callable[[State], None] | None:
        """What training.fit calls after every step: saves now and then, and ends the run where Ctrl-C was pressed."""
        if self.path is None:
            return None

        def keep(at: State) -> None:
            if self._asked or time.monotonic() - self._saved > SECONDS:
                self._save(graph, at)
            if self._asked:
                raise Stopped

        return keep

    def finish(self, number: int, graph: Graph, history: History) -> None:
        """Training `number` is over."""
        assert number == len(self._facts["histories"])
        self._facts |= {"histories": [*self._facts["histories"], history], "step": None}
        self._arrays = {}
        if self.path and (self.resumed or time.monotonic() - self._saved > SECONDS / 10):
            self._save(graph, None)

    def _save(self, graph: Graph | None, at: State | None) -> None:
        """Write the file. A disk that cannot be written costs the checkpoint, not the work."""
        assert self.path is not None
        histories = [asdict(history) for history in self._facts["histories"]]
        facts: dict[str, Any] = {"depends": self.depends, "histories": histories, "trials": self.trials, "step": None}
        arrays = _flat(graph.params, "now") if graph else {}
        if at:
            facts["step"] = {
                "epoch": at.epoch, "step": at.step, "loss": at.loss, "correct": at.correct, "random": at.random.bit_generator.state,
                "best_loss": at.best_loss if np.isfinite(at.best_loss) else None, "history": asdict(at.history),
                "steps": at.optimiser.steps, "averaged": at.average.steps if at.average else 0,
            }  # fmt: skip
            arrays |= _flat(at.best_params, "best") | {"order": np.frombuffer(at.order.astype(np.int64).tobytes(), np.uint8)}
            arrays |= _flat(at.average.params, "average") if at.average else {}
            for slot, values in at.optimiser.slots.items():
                arrays |= {f"{slot}/{node}/{name}": array for (node, name), array in values.items()}
        arrays[JSON] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        try:
            write_atomically(self.path, pack(arrays))
            self.problem = ""
        except MinitlError as error:
            if not self.problem:
                self.say(f"the run cannot be saved on its way: {error}")
            self.problem = str(error)
        self._saved = time.monotonic()

    def beside(self, name: str, graph: Graph, depends: Mapping[str, str]) -> Checkpoint:
        """A file of its own for a last training on another graph, that of int8; this one is saved first, with what came before."""
        if self.path is None:
            return Checkpoint(None, {})
        self._save(graph, None)
        self._besides = Checkpoint(self.path.with_name(name), self.depends | dict(depends), self._going_on, self.say)
        return self._besides

    def remove(self) -> None:
        """The run is over and its results are written."""
        if self.path:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
        if self._besides:
            self._besides.remove()

    # ---- Ctrl-C

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """In here, the first Ctrl-C waits for the end of the step and the save; a second one does not."""
        if self.path is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
            if self._asked:  # between two steps that save
                raise Stopped
        finally:
            signal.signal(signal.SIGINT, before)

    def _restore(self, graph: Graph, kind: str) -> None:
        restored = {node: dict(params) for node, params in graph.params.items()}
        with _in_words(printable(self.path or "")):
            _put(restored, self._arrays, kind)
        graph.params = restored


def _flat(params: Mapping[str, Params], kind: str) -> dict[str, Array]:
    return {f"{kind}/{node}/{name}": array for node, of_node in params.items() for name, array in of_node.items()}


def _put(params: dict[str, Params], arrays: Mapping[str, Array], kind: str) -> None:
    """Replace the parameters by those of the file."""
    for node, of_node in params.items():
        for name, old in of_node.items():
            of_node[name] = _like(old, arrays, f"{kind}/{node}/{name}")


# ---- a file that may be damaged, or made by somebody else


@contextlib.contextmanager
def _in_words(name: str) -> Iterator[None]:
    """Whatever is wrong with the contents of the file becomes a MinitlError that says what to do."""
    try:
        yield
    except (MinitlError, OSError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise MinitlError(f"{name} is no checkpoint that can be read ({error!s:.200}); leave --resume out to begin anew") from None


def _like(old: Array, arrays: Mapping[str, Array], key: str) -> Array:
    """An array of the file, which has the shape and the type of another. ValueError where it has not."""
    new = arrays[key]
    if new.shape != old.shape or new.dtype != old.dtype:
        raise ValueError(f"{key} is {new.dtype} {new.shape} there, the network has {old.dtype} {old.shape}")
    return new


def _numbers(values: Iterable[Any]) -> list[float]:
    """Finite numbers. ValueError for anything else that JSON can hold."""
    found = list(values)
    if not all(type(value) in (int, float) and np.isfinite(value) for value in found):
        raise ValueError("something in it is no number")
    return found


def _whole(value: Any) -> int:
    """A count. ValueError for anything else that JSON can hold."""
    if type(value) is not int or not 0 <= value < 10**12:
        raise ValueError(f"a count in it is {value!r:.40}")
    return value


def _history(entry: Mapping[str, Any]) -> History:
    epochs = [Epoch(**line) for line in entry["epochs"]]
    for line in epochs:
        _numbers(asdict(line).values())
    return History(epochs, _whole(entry["best"]), bool(entry["diverged"]))
