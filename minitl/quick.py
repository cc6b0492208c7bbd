"""The classifier alone, trained by SGD on features that stay the same: the steps of training.train_step, many in one call of fast/head.py.

In: a Graph whose one trainable layer is the Dense at its end, its optimiser, features. Out: moved parameters, with the very bits that
training.train_step would give; answers with those of Graph.evaluate. `of` and `answers` say None for everything else, and where the fast
kernels are not to be used or cannot be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import MinitlError
from .features import Features
from .graph import Graph
from .layers import Array, Dense
from .native import load, plain
from .optimisers import SGD, Optimiser
from .program import filled

MOST_STEPS = 64
MOST_WORK = 10**9
"""So many steps, or products, are done before anybody is asked whether to stop: some tenths of a second at most."""


class Head:
    """Steps of one training. targets: (N, classes) float32 of the photos in `source`; weights: (N,) what each counts, None: 1."""

    def __init__(self, graph: Graph, optimiser: SGD, source: Features, targets: Array, weights: Array | None) -> None:
        self.graph, self.optimiser, self.source = graph, optimiser, source
        self.targets = np.ascontiguousarray(targets, np.float32)
        self.weights = np.ones(len(targets), np.float32) if weights is None else np.ascontiguousarray(weights, np.float32)
        self.steps = load("head").steps

    def at_once(self, batch: int) -> int:
        """How many steps to ask for."""
        width, classes = self.graph.params[self.graph.output]["kernel"].shape
        return max(1, min(MOST_STEPS, MOST_WORK // (batch * width * classes)))

    def run(self, batches: Sequence[Array], rates: Sequence[float]) -> tuple[int, list[Array], int]:
        """A step for every batch (numbers of photos), with its rate. -> steps begun, losses of each of them, right answers.

        Where the losses of a batch are not finite, that step moves nothing and is the last.
        """
        node, slots = self.graph.output, self.optimiser.slots["velocity"]
        old = self.graph.params[node]
        (width, classes), columns = old["kernel"].shape, filled(old["kernel"].shape[1])

        moving = [_wide(old["kernel"], width, columns), _wide(old["bias"], 1, columns)]
        speeds = [_wide(slots.get((node, "kernel")), width, columns), _wide(slots.get((node, "bias")), 1, columns)]
        ends = np.cumsum([len(batch) for batch in batches])
        most = max(len(batch) for batch in batches)
        at = np.concatenate(batches).astype(np.int64, copy=False)
        rows = at if self.source.index is None else self.source.index[at]
        factor = self.optimiser.factors.get(node, 1.0)
        numbers = np.array([*(rate * factor for rate in rates), self.optimiser.momentum, self.optimiser.decay], np.float32)
        losses, result = np.empty(len(at), np.float32), np.zeros(2, np.int64)
        table: dict[str, Array | int] = {
            "count": len(batches), "features": self.source.rows, "width": width, "targets": self.targets, "classes": classes,
            "weights": self.weights, "columns": columns, "kernel": moving[0], "bias": moving[1], "velocity": speeds[0],
            "bias_velocity": speeds[1], "rates": numbers, "rows": rows, "at": at, "ends": ends, "losses": losses, "result": result,
            "photos": np.empty(most, np.int64), "dy": np.empty((most, columns), np.float32),
            "gradient": np.empty((width, columns), np.float32), "slope": np.empty(columns, np.float32),
        }  # fmt: skip
        addresses = np.array([value if isinstance(value, int) else value.ctypes.data for value in table.values()])
        self.steps(addresses.ctypes.data)
        begun, right = result.tolist()
        parts = [losses[start:end] for start, end in zip([0, *ends[: begun - 1]], ends[:begun], strict=True)]
        moved = begun - (not np.isfinite(parts[-1]).all())
        if moved:
            self.optimiser.steps += moved
            for name, new, speed in zip(("kernel", "bias"), moving, speeds, strict=True):
                shape = old[name].shape
                slots[node, name] = speed[:, :classes].copy().reshape(shape)
                self.graph.params[node][name] = new[:, :classes].copy().reshape(shape)
        return begun, parts, right


def _wide(array: Array | None, rows: int, columns: int) -> Array:
    """(rows, classes) -> (rows, columns), zeros behind; all zeros of None."""
    copy = np.zeros((rows, columns), np.float32)
    if array is not None:
        copy[:, : array.shape[-1]] = array
    return copy


def _fits(graph: Graph, source: object) -> bool:
    """Whether the rows of the source are what the Dense layer at the graph's end reads, as the fast kernels want them."""
    node = graph[graph.output]
    if plain() or not isinstance(source, Features) or not isinstance(node.layer, Dense):
        return False
    if [name for name, _ in source.parts] != list(node.inputs):
        return False
    arrays = [source.rows, *graph.params[node.name].values()]
    return source.rows.flags.c_contiguous and all(array.dtype == np.float32 for array in arrays)


def answers(graph: Graph, source: object) -> Array | None:
    """What a classifier says: (N, classes) float32."""
    if not _fits(graph, source):
        return None
    assert isinstance(source, Features)
    try:
        kernel = load("head").answers
    except MinitlError:
        return None
    params = graph.params[graph.output]
    (width, classes), columns = params["kernel"].shape, filled(params["kernel"].shape[1])
    weights, bias = _wide(params["kernel"], width, columns), _wide(params.get("bias"), 1, columns)
    rows = np.arange(len(source)) if source.index is None else source.index
    photos, found = source.rows.ctypes.data + 4 * width * rows.astype(np.int64), np.empty((len(source), columns), np.float32)
    kernel(photos.ctypes.data, len(photos), width, weights.ctypes.data, bias.ctypes.data, 4 * columns, found.ctypes.data)
    return found[:, :classes].copy()


def of(graph: Graph, optimiser: Optimiser, source: object, targets: Array, weights: Array | None) -> Head | None:
    """A Head where these are what it can do, without anything random and with the fast kernels."""
    node = graph[graph.output]
    if not _fits(graph, source) or type(optimiser) is not SGD:
        return None
    assert isinstance(source, Features)
    moving = [(name, parameter) for name, parameter, mask in graph.trainable() if mask is True or name != node.name]
    if moving != [(node.name, "kernel"), (node.name, "bias")]:
        return None
    try:
        return Head(graph, optimiser, source, targets, weights)
    except MinitlError:
        return None
