"""A network as a list of named nodes, the mask of what is frozen, and the two loops: forward and backward.

In: nodes in topological order. A residual is an Add with two inputs, an Inception branch ends in a Concat. Out: values, gradients.
The parameters live here (`params[node][name]`), and so does the freeze mask, and nowhere else. Left out: losses and updates
(training.py), files (weights.py).

The one rule of transfer learning: a node needs a gradient if it has unfrozen parameters, or if any of its inputs needs one.
Backward is one reversed loop over exactly these nodes, so it visibly stops at the lowest trainable layer. The nodes below keep no
cache, and the values that cross that border are the features worth computing once and keeping.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import wraps
from types import ModuleType
from typing import Any

import numpy as np

from . import kernels_fast
from .errors import MinitlError
from .layers import Array, BatchNorm, Dropout, Layer, Params, ReLU, ReLU6, Shape, Training

INPUT = "input"
"""The name of the image in `inputs` of a node."""


@dataclass(frozen=True)
class Node:
    """A layer with a name and the names of the nodes that it reads."""

    name: str
    layer: Layer
    inputs: tuple[str, ...]


Tape = dict[str, Any]
"""What a forward pass leaves for the backward pass: {node: cache} for the nodes that need a gradient."""


def _until_frozen(method: Callable[[Graph], Any]) -> Callable[[Graph], Any]:
    """Remember the answer until the freeze mask changes: every step of a training asks."""

    @wraps(method)
    def remembering(graph: Graph) -> Any:
        mask = [(name, mask if isinstance(mask, bool) else mask.tobytes()) for name, mask in graph.frozen.items()]
        known = graph._known.get(method.__name__)
        if known is None or known[0] != mask:
            known = graph._known[method.__name__] = (mask, method(graph))
        return known[1]

    return remembering


class Graph:
    """Nodes, their parameters, and the freeze mask.

    nodes: in topological order; the last one is the output. input_shape: (H, W, C).
    params: {node: {name: array}}, empty until initialise() or load(). shapes: {node: output shape without the batch}.
    frozen: {node: True, or (C,) bool over output channels where True means frozen}; an absent node is trainable.
    """

    def __init__(self, nodes: Iterable[Node], input_shape: Shape) -> None:
        self.nodes = list(nodes)
        self.input_shape = tuple(input_shape)
        self.params: dict[str, Params] = {}
        self.frozen: dict[str, bool | Array] = {}
        self._known: dict[str, Any] = {}
        self.shapes: dict[str, Shape] = {INPUT: self.input_shape}
        for node in self.nodes:
            if node.name in self.shapes:
                raise MinitlError(f"two nodes are called {node.name!r}: names must differ")
            try:
                if node.layer.arity not in (0, len(node.inputs)):
                    raise ValueError(f"reads {node.layer.arity} nodes, found {len(node.inputs)}: {', '.join(node.inputs)}")
                self.shapes[node.name] = node.layer.output_shape(*self.input_shapes(node))
            except KeyError as unknown:
                raise MinitlError(f"node {node.name!r} reads {unknown}, which does not come before it") from None
            except ValueError as problem:
                raise MinitlError(f"node {node.name!r} ({type(node.layer).__name__}): {problem}") from None

    def __getitem__(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        names = [node.name for node in self.nodes]
        close = [known for known in names if name.lower() in known.lower()][:5] or get_close_matches(name, names, n=5)
        raise MinitlError(f"there is no layer {name!r}" + (f"; did you mean {', '.join(close)}?" if close else "; see `minitl info`"))

    @property
    def output(self) -> str:
        """Name of the last node."""
        return self.nodes[-1].name

    def input_shapes(self, node: Node) -> list[Shape]:
        """Shapes of the inputs of a node, without the batch."""
        return [self.shapes[name] for name in node.inputs]

    # ---- parameters

    def param_shapes(self) -> dict[str, dict[str, Shape]]:
        """{node: {name: shape}} for the nodes that have parameters."""
        shapes = {node.name: node.layer.param_shapes(*self.input_shapes(node)) for node in self.nodes}
        return {name: of_node for name, of_node in shapes.items() if of_node}

    def initialise(self, seed: int) -> Graph:
        """Draw all parameters anew; the same seed, a whole number from 0, gives the same numbers. Returns self."""
        if seed < 0:
            raise MinitlError(f"seed must be a whole number from 0, found {seed}")
        self.params = {name: {} for name in self.param_shapes()}
        for node, own_seed in zip(self.nodes, np.random.SeedSequence(seed).spawn(len(self.nodes)), strict=True):
            if node.name in self.params:
                self.params[node.name] = node.layer.initialise(np.random.default_rng(own_seed), *self.input_shapes(node))
        return self

    def load(self, arrays: Mapping[str, Array]) -> Graph:
        """Take parameters from {'node/name': array}; all must be there, none may be left over, shapes must agree. Returns self."""
        expected = {f"{node}/{name}": shape for node, of_node in self.param_shapes().items() for name, shape in of_node.items()}
        if missing := sorted(expected.keys() - arrays.keys()):
            raise MinitlError(f"{len(missing)} arrays are missing, the first is {missing[0]!r}: these weights are of another network")
        if extra := sorted(arrays.keys() - expected.keys()):
            raise MinitlError(f"{len(extra)} arrays have no layer, the first is {extra[0]!r}: these weights are of another network")
        for key, shape in expected.items():
            if arrays[key].shape != shape:
                raise MinitlError(f"{key} has shape {arrays[key].shape}, the layer needs {shape}: wrong alpha or wrong number of classes?")
            if key.endswith("/moving_variance") and (arrays[key] < 0).any():
                raise MinitlError(f"{key} holds a negative variance: the file is damaged")
        self.params = {
            node: {name: np.ascontiguousarray(arrays[f"{node}/{name}"]) for name in s} for node, s in self.param_shapes().items()
        }
        return self

    def arrays(self) -> dict[str, Array]:
        """The inverse of load: {'node/name': array} in the order of the nodes."""
        return {f"{node}/{name}": array for node, params in self.params.items() for name, array in params.items()}

    def astype(self, dtype: type) -> Graph:
        """A copy that computes in another float type; shares nothing with this one."""
        copy = Graph(self.nodes, self.input_shape)
        copy.params = {node: {name: array.astype(dtype) for name, array in params.items()} for node, params in self.params.items()}
        copy.frozen = {name: np.copy(mask) if isinstance(mask, np.ndarray) else mask for name, mask in self.frozen.items()}
        return copy

    # ---- the freeze mask

    def match(self, pattern: str) -> list[str]:
        """Names of the nodes that a pattern means, in order.

        'conv_pw_13'    that node and all whose name goes on with '_': conv_pw_13_bn, conv_pw_13_relu (not conv_pw_130)
        'conv_dw_*'     a glob (*, ?, [abc])
        '..conv_pw_11'  everything up to there: that node, those that share its prefix (conv_pw_11_bn, ...) and all before them
        '=conv_pw_13'   that node only
        Raises MinitlError where nothing matches.
        """
        names = [node.name for node in self.nodes]
        if pattern.startswith(".."):
            last = names.index(self.match(pattern[2:])[-1])
            return names[: last + 1]
        if pattern.startswith("="):
            return [self[pattern[1:]].name]
        if any(c in pattern for c in "*?["):
            found = [str(name) for name in names if fnmatchcase(name, pattern)]
        else:
            found = [name for name in names if name == pattern or name.startswith(pattern + "_")]
        if not found:
            self[pattern]  # raises, with suggestions
        return found

    def freeze(self, pattern: str = "*", channels: Array | None = None) -> Graph:
        """Freeze what the pattern matches; channels (C,) bool freezes exactly the output channels that are True. Returns self."""
        channels = None if channels is None else np.asarray(channels)
        for name in self.match(pattern):
            size = self.shapes[name][-1]
            if channels is not None and (channels.dtype != bool or channels.shape != (size,)):
                raise MinitlError(
                    f"the mask for {name!r} must be {size} booleans, one per output channel, not {channels.dtype} {channels.shape}"
                )
            self.frozen[name] = True if channels is None or channels.all() else channels.copy()
        return self

    def unfreeze(self, pattern: str = "*") -> Graph:
        """Make what the pattern matches trainable. Returns self."""
        for name in self.match(pattern):
            self.frozen.pop(name, None)
        return self

    def in_training(self, name: str) -> Training:
        """True, False, or (C,) bool: which output channels of a node train."""
        mask = self.frozen.get(name, False)
        return ~mask if isinstance(mask, np.ndarray) else not mask

    @_until_frozen
    def trainable(self) -> list[tuple[str, str, Training]]:
        """(node, parameter, in_training) for everything that an optimiser may touch."""
        masks = [(node, self.in_training(node.name)) for node in self.nodes]
        return [
            (node.name, name, mask)
            for node, mask in masks
            if mask is True or (mask is not False and mask.any())  # NumPy takes long to see that a bool is one
            for name in node.layer.trainable
            if name in node.layer.param_shapes(*self.input_shapes(node))
        ]

    @_until_frozen
    def needs_gradient(self) -> frozenset[str]:
        """The one rule, see the head of this file."""
        needing = {node for node, _, _ in self.trainable()}
        for node in self.nodes:
            if any(name in needing for name in node.inputs):
                needing.add(node.name)
        return frozenset(needing)

    def frozen_prefix(self) -> list[str]:
        """Nodes whose value for a photo never changes while training: nothing to train at or below them, and no unfrozen Dropout."""
        prefix: list[str] = []
        changing = set(self.needs_gradient())
        for node in self.nodes:
            random = isinstance(node.layer, Dropout) and node.layer.rate > 0 and np.any(self.in_training(node.name))
            if random or any(name in changing for name in node.inputs):
                changing.add(node.name)
            if node.name not in changing:
                prefix.append(node.name)
        return prefix

    def border(self) -> list[str]:
        """The values of the frozen prefix (or the input) that the rest of the network reads: the features worth caching."""
        prefix = {INPUT, *self.frozen_prefix()}
        read = {name for node in self.nodes if node.name not in prefix for name in node.inputs}
        return [name for name in self.shapes if name in prefix and name in read]

    @_until_frozen
    def steps(self) -> list[Node]:
        """The nodes as training runs them: a BatchNorm in training and the ReLU or ReLU6 that alone reads it are one step, the BatchNorm's.

        That saves two of five passes over the largest values, forward and again backward. Readers of the ReLU read the BatchNorm instead.
        """
        readers = Counter(name for node in self.nodes for name in node.inputs)
        steps: dict[str, Node] = {}
        alias: dict[str, str] = {}
        for node in self.nodes:
            inputs = tuple(alias.get(name, name) for name in node.inputs)
            before = steps.get(inputs[0])
            if (
                isinstance(node.layer, ReLU | ReLU6) and node.name != self.output
                and before and isinstance(before.layer, BatchNorm) and before.layer.high is None
                and readers[before.name] == 1 and np.any(self.in_training(before.name))
            ):  # fmt: skip
                steps[before.name] = replace(before, layer=replace(before.layer, high=node.layer.high))
                alias[node.name] = before.name
            else:
                steps[node.name] = replace(node, inputs=inputs)
        return list(steps.values())

    # ---- the two loops

    def evaluate(self, feeds: Array | Mapping[str, Array], wanted: Iterable[str] = (), ops: ModuleType = kernels_fast) -> dict[str, Array]:
        """Values of the wanted nodes (default: the output) as a trained network gives them, {name: (N, ...)}.

        feeds: images (N, H, W, C), or {node: value} to start in the middle. Every value is dropped after its last reader.
        """
        values = dict(feeds) if isinstance(feeds, Mapping) else {INPUT: feeds}
        targets = list(dict.fromkeys(wanted)) or [self.output]
        for name in targets:
            if name not in self.shapes:
                self[name]  # raises, with suggestions
        needed = self.ancestors(set(targets), set(values))
        last_reader = {name: node.name for node in needed for name in node.inputs}
        for node in needed:
            xs = [values[name] for name in node.inputs]
            values[node.name] = node.layer.forward(ops, self.params.get(node.name, {}), xs, False, None)[0]
            for name in node.inputs:
                if last_reader[name] == node.name and name not in targets:
                    values.pop(name, None)
        return {name: values[name] for name in targets}

    def ancestors(self, targets: set[str], given: set[str], nodes: Sequence[Node] = ()) -> list[Node]:
        """The nodes (of these, all where empty) to compute for the targets, in order, when the values of `given` are known."""
        wanted, nodes = targets - given, nodes or self.nodes
        for node in reversed(nodes):
            if node.name in wanted:
                wanted |= set(node.inputs) - given
        missing = wanted & {INPUT}
        assert not missing, "the image is needed and was not given"
        return [node for node in nodes if node.name in wanted]

    def forward(self, feeds: Array | Mapping[str, Array], rng: Any = None, ops: ModuleType = kernels_fast) -> tuple[Array, Tape]:
        """One forward pass in training: the output (N, ...) and the tape for backward.

        feeds as in evaluate, but nothing that training changes. rng: numpy Generator for Dropout.
        Frozen layers behave as in a trained network.
        """
        values = dict(feeds) if isinstance(feeds, Mapping) else {INPUT: feeds}
        needing = self.needs_gradient()
        assert not needing & values.keys(), "a value that training changes was fed"
        tape: Tape = {}
        steps = self.ancestors({self.output}, set(values), self.steps())
        last_reader = {name: node.name for node in steps for name in node.inputs}
        for node in steps:
            xs = [values[name] for name in node.inputs]
            training = self.in_training(node.name)
            values[node.name], tape[node.name] = node.layer.forward(ops, self.params.get(node.name, {}), xs, training, rng)
            if node.name not in needing:
                del tape[node.name]
            for name in node.inputs:
                if last_reader[name] == node.name:
                    values.pop(name, None)
        return values[self.output], tape

    def backward(self, dy: Array, tape: Tape, ops: ModuleType = kernels_fast) -> dict[str, Params]:
        """Gradients {node: {parameter: array}} of a loss whose gradient with respect to the output is dy.

        Visits the nodes that need a gradient, in reverse, each once; where a value has several readers, their gradients are summed.
        """
        needing = self.needs_gradient()
        gradients: dict[str, Array] = {self.output: dy} if self.output in needing else {}
        grads: dict[str, Params] = {}
        for node in reversed(self.steps()):
            if node.name not in gradients:  # frozen below here, or nothing reads it
                continue
            need_dx = any(name in needing for name in node.inputs)
            params, cache = self.params.get(node.name, {}), tape.pop(node.name)
            dxs, grads_of_node = node.layer.backward(ops, params, gradients.pop(node.name), cache, need_dx)
            if grads_of_node:
                grads[node.name] = grads_of_node
            for name, dx in zip(node.inputs if need_dx else (), dxs, strict=True):
                if name in needing:
                    gradients[name] = gradients[name] + dx if name in gradients else dx
        return grads

    def update_statistics(self, tape: Tape) -> None:
        """After forward, before backward (which empties the tape): move the statistics of the BatchNorms in training."""
        for node in self.nodes:
            if isinstance(node.layer, BatchNorm) and node.name in tape and np.any(self.in_training(node.name)):
                self.params[node.name].update(node.layer.updated_statistics(self.params[node.name], tape[node.name]))
