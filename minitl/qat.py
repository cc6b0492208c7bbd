"""Quantisation-aware fine-tuning: training by what int8 computes, for networks that lose accuracy by rounding.

In: a calibrated model with its freeze mask, photos and labels as for training.fit, Settings. Out: the same model with other parameters,
if its int8 network answers more validation photos rightly with them; otherwise as it was.

trainable_int8() makes the integer network itself a graph that training.fit can train. Its values are int8, computed by the operations of
integer.py, so nothing is imitated and nothing can differ; its kernels are made anew from float ones in each pass, as quantize.py does it,
bias correction included. Rounding has the slope 0 nearly everywhere, so backward takes it for the identity where a value was not
clamped, and for a constant where it was (straight-through: Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2017, arXiv:1712.05877,
section 3).

BatchNorms stay folded, on their stored statistics. What trains are kernels as they are before folding, and one shift per channel: beta,
or the bias where there is no BatchNorm. So the model's own arrays are trained, nothing has to be unfolded, and a frozen channel keeps its
bits. Scales of values keep the ranges of the calibration: do not calibrate anew afterwards.

Measured on the monkeys with every range between input and logits 8 times too wide, which leaves 32 of 256 steps: MobileNetV1 0.25 at 128,
88.6 % in float, 82.0 % in int8; fine-tuned, the classifier alone 85.9 % (three seeds, rate 0.01), all above conv_pw_10 87.5 % (rate 0.002;
0.008 was too much). V2 0.35 at 96, 90.1 and 64.7 %; the classifier alone 75.7 % (three seeds), all above block_12 79.4 %.

Left out: gamma (a kernel's channel has a scale of its own), Dropout, mixup, and training of the ranges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, ClassVar, Protocol

import numpy as np

from . import int8_engine, kernels_int8, training
from .errors import MinitlError
from .features import Features
from .folding import fold
from .graph import INPUT, Graph, Node
from .images import Recipe
from .integer import IntegerGraph, Op, Requantise, Tensor, Weighted, quantise_multipliers
from .layers import Array, BatchNorm, Layer, Params, Shape, Training
from .quantize import Calibration, input_mean, quantise, quantise_kernel
from .training import Epoch, History, Settings, Source, State

PIXELS, LOGITS = "input/int8", "output/float"
"""The first and the last node of a graph that trains: images to int8, int8 to float logits."""

LARGEST_ROWS = 1 << 30
"""Bytes; the int8 values at the border of the frozen part are computed once and kept if they are no more than this, or than the pixels."""


class Network(Protocol):
    """What fine_tune needs of a model.Model."""

    graph: Graph

    @property
    def recipe(self) -> Recipe:
        """How a photo becomes the input."""

    @property
    def calibration(self) -> Calibration:
        """Statistics of the values."""


# ---- int8 with gradients


@dataclass(frozen=True)
class Pixels(Layer):
    """Images (N, H, W, 3) as Recipe.normalise gives them -> int8."""

    recipe: Recipe

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """Back to pixels, and from there in whole numbers, as a microcontroller does."""
        return quantised_pixels(self.recipe, xs[0]), None


@dataclass(frozen=True)
class Logits(Layer):
    """Int8 -> the real numbers that it stands for, float32."""

    tensor: Tensor

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """Needs no cache."""
        return real(xs[0], self.tensor), None

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """Gradients are those of real numbers everywhere."""
        return [dy] if need_dx else [], {}


@dataclass(frozen=True)
class Int8(Layer):
    """An operation of an integer network, int8 -> int8, with the gradients of the float layer that it stands for (None: the identity)."""

    arity: ClassVar[int] = 0  # that of the operation, which has been checked

    op: Op
    ins: tuple[Tensor, ...]
    out: Tensor
    layer: Layer | None

    def output_shape(self, *shapes: Shape) -> Shape:
        """That of the operation."""
        return self.out.shape

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """Keeps its inputs, a byte a value."""
        return self.op.run(kernels_int8, xs, list(self.ins), self.out), (xs, {}, training)

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """The float layer, forward and backward, at the real values of inputs and kernel; straight through the rounding of its output."""
        xs, rounded, training = cache
        xs = [real(x, tensor, dy.dtype) for x, tensor in zip(xs, self.ins, strict=True)]
        y, cache = self.layer.forward(ops, rounded, xs, training, None) if self.layer else (xs[0], None)
        low, high = (
            y.dtype.type(self.out.scale * (getattr(self.op, name, end) - self.out.zero_point))
            for name, end in (("act_min", -128), ("act_max", 127))
        )
        dy = dy * ((y > low) & (y < high))
        return self.layer.backward(ops, rounded, dy, cache, need_dx) if self.layer else ([dy] if need_dx else [], {})


@dataclass(frozen=True)
class Int8Kernel(Int8):
    """A convolution or Dense layer. Its integers are made anew in every pass, as quantise() makes them.

    params: kernel and shift, which may train; factor and offset (O,), with which BatchNorm is folded: kernel * factor, offset + shift;
    mean (I,) of what it reads, for the bias correction. That correction is the difference between a kernel and its rounded self, which
    straight-through takes for 0: it has no gradient.
    """

    op: Weighted
    trainable: tuple[str, ...] = field(default=(), kw_only=True)  # type: ignore[misc]  # here it depends on the freeze mask

    def param_shapes(self, *shapes: Shape) -> dict[str, Shape]:
        """Kernel, and vectors."""
        kernel = self.op.kernel.shape
        return {"kernel": kernel, **dict.fromkeys(("shift", "factor", "offset"), kernel[-1:]), "mean": shapes[0][-1:]}

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """Keeps the rounded kernel and bias, too, as real numbers: what x met."""
        read = self.ins[0]
        with np.errstate(all="ignore"):  # what explodes is noticed below
            kernel, bias = params["kernel"] * params["factor"], params["offset"] + params["shift"]
            q, b, scales = quantise_kernel(kernel, bias, read.scale, params["mean"])
            factors = read.scale * scales / self.out.scale
        if not (factors < 2.0**30).all():  # or not a number
            raise Diverged(f"the weights of {self.op.name!r} grew without bounds: use a smaller learning rate")
        multiplier, shift = quantise_multipliers(factors)
        op = replace(self.op, kernel=q, bias=b, multiplier=multiplier, shift=shift)
        rounded = {"kernel": (q * scales).astype(kernel.dtype), "bias": (b * (read.scale * scales)).astype(kernel.dtype)}
        return op.run(kernels_int8, xs, [read], self.out), (xs, rounded, training)

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """The gradient of a rounded kernel is that of the one behind it."""
        dxs, grads = super().backward(ops, params, dy, cache, need_dx)
        return dxs, {"kernel": grads["kernel"] * params["factor"], "shift": grads["bias"]} if grads else {}


class Diverged(MinitlError):
    """The weights are no longer numbers that int8 could stand for."""


def real(q: Array, tensor: Tensor, dtype: Any = np.float32) -> Array:
    """What int8 values stand for."""
    return (q.astype(dtype) - np.dtype(dtype).type(tensor.zero_point)) * np.dtype(dtype).type(tensor.scale)


def quantised_pixels(recipe: Recipe, x: Array) -> Array:
    """(N, H, W, 3) as Recipe.normalise gives it -> int8, from the pixels that it was made of."""
    pixels = np.rint(x.astype(np.float64) * recipe.std + recipe.mean)
    return recipe.quantise_pixels(np.clip(pixels, 0, 255).astype(np.uint8))


# ---- the integer network as a graph that trains


Places = dict[str, tuple[str, str]]
"""{"kernel" and "shift" of an Int8Kernel, if they train: (node, parameter) of the model whose array that is}."""


def trainable_int8(graph: Graph, calibration: Calibration, recipe: Recipe) -> tuple[Graph, IntegerGraph, dict[str, Places]]:
    """The integer network of a graph as a graph that training.fit can train, freeze mask included; the network; {node: what it trains}.

    A node for each operation, called as the tensor that leaves it; before them PIXELS, after them LOGITS. Raises MinitlError where
    statistics are missing or a layer has no integer form.
    """
    folded = fold(graph)
    network = quantise(folded, calibration, recipe)
    norms = _folded_norms(graph, folded)
    nodes = [Node(PIXELS, Pixels(recipe), (INPUT,))]
    params: dict[str, Params] = {}
    places: dict[str, Places] = {}
    masks: dict[str, Array] = {}
    for op in network.ops:
        ins, out = network.ends(op)
        reads = tuple(PIXELS if name == INPUT else name for name in op.inputs)
        if isinstance(op, Weighted):
            numbers, places[op.output], masks[op.output] = _parameters(graph, folded, op.name, norms.get(op.name, []))
            params[op.output] = numbers | {"mean": input_mean(ins[0], calibration[op.inputs[0]])}
            nodes.append(Node(op.output, Int8Kernel(op, tuple(ins), out, folded[op.name].layer, trainable=tuple(places[op.output])), reads))
        else:
            layer = None if isinstance(op, Requantise) else folded[op.name].layer
            nodes.append(Node(op.output, Int8(op, tuple(ins), out, layer), reads))
    nodes.append(Node(LOGITS, Logits(network.tensors[network.output]), (network.output,)))
    twin = Graph(nodes, graph.input_shape)
    twin.params = params
    for value, channels in masks.items():
        if not channels.all():
            twin.freeze("=" + value, ~channels)
    return twin, network, places


def _folded_norms(graph: Graph, folded: Graph) -> dict[str, list[Node]]:
    """{node with a kernel: the BatchNorms that fold() has put into it}."""
    alias: dict[str, str] = {}
    norms: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.name not in folded.shapes:  # a Dropout or such a BatchNorm
            alias[node.name] = alias.get(node.inputs[0], node.inputs[0])
            if isinstance(node.layer, BatchNorm):
                norms.setdefault(alias[node.name], []).append(node)
    return norms


def _parameters(graph: Graph, folded: Graph, name: str, norms: list[Node]) -> tuple[Params, Places, Array]:
    """What an Int8Kernel starts with, but for the mean; what of it trains; (O,) bool: in which channels, for kernel and shift alike."""
    of_node = folded.params[name]
    zeros = np.zeros_like(of_node["kernel"], shape=of_node["kernel"].shape[-1:])
    if isinstance(graph[name].layer, BatchNorm) or len(norms) > 1:  # in no network of ours: taken as it is
        return {"kernel": of_node["kernel"], "shift": zeros, "factor": zeros + 1, "offset": of_node.get("bias", zeros)}, {}, zeros != 0
    before, places = graph.params[name], {"kernel": (name, "kernel")}
    factor, offset = zeros + 1, zeros
    if norms:  # the formulas of folding.py
        layer, norm = norms[0].layer, graph.params[norms[0].name]
        assert isinstance(layer, BatchNorm)
        factor = layer.gamma(norm) / np.sqrt(norm["moving_variance"] + norm["beta"].dtype.type(layer.epsilon))
        offset = (before.get("bias", 0) - norm["moving_mean"]) * factor
        places["shift"] = (norms[0].name, "beta")
    elif "bias" in before:
        places["shift"] = (name, "bias")
    numbers = {part: graph.params[node][parameter] for part, (node, parameter) in places.items()}
    masks = {part: graph.in_training(node) for part, (node, _) in places.items()}
    places = {part: place for part, place in places.items() if np.any(masks[part])}
    channels = factor != 0  # a channel that BatchNorm multiplies by 0 has nothing to learn
    for part in places:
        channels = channels & masks[part]
    return {"shift": zeros, "factor": factor, "offset": offset} | numbers, places, channels & bool(places)


# ---- the frozen part, once


@dataclass
class Rows:
    """A training.Source: rows (N, F) int8 of what the trained part reads, and tensors: (node, tensor) in the order of the row."""

    rows: Array
    tensors: list[tuple[str, Tensor]]
    ahead: ClassVar[int] = 0

    def __len__(self) -> int:
        return len(self.rows)

    def feeds(self, indices: Any = slice(None), epoch: int = 0) -> dict[str, Array]:
        """{node: (n, *shape) int8} of the chosen photos."""
        rows, first, feeds = self.rows[indices], 0, {}
        for name, tensor in self.tensors:
            feeds[name] = np.ascontiguousarray(rows[:, first : first + tensor.size]).reshape(-1, *tensor.shape)
            first += tensor.size
        return feeds


def frozen_once(twin: Graph, network: IntegerGraph, recipe: Recipe, source: Source) -> Source:
    """The same photos as what the trained part reads of them, computed by the integer network, where that is the same in every epoch."""
    if not isinstance(source, Features):
        return source
    tensors = [(name, network.tensors[INPUT if name == PIXELS else name]) for name in twin.border()]
    width = sum(tensor.size for _, tensor in tensors)
    if len(source) * width > max(LARGEST_ROWS, source.rows.nbytes):
        return source
    names = {tensor.name for _, tensor in tensors}
    engine = int8_engine.make(network, names)
    rows = np.empty((len(source), width), np.int8)
    for i in range(0, len(source), int8_engine.BATCH):
        batch = slice(i, i + int8_engine.BATCH)
        values = engine.run(quantised_pixels(recipe, source.feeds(batch)[INPUT]))
        rows[batch] = np.concatenate([values[tensor.name].reshape(-1, tensor.size) for _, tensor in tensors], axis=1)
    return Rows(rows, tensors)


# ---- training

Course = tuple[State | None, Callable[[State], None] | None]


def accuracy(network: IntegerGraph, recipe: Recipe, source: Source, labels: Array) -> float:
    """Share of photos, 0..1, that the integer network answers rightly: as evaluate() measures it of what is deployed."""
    engine, size = int8_engine.make(network), int8_engine.BATCH
    batches = (source.feeds(slice(i, i + size))[INPUT] for i in range(0, len(source), size))
    answers = [engine.run(quantised_pixels(recipe, x))[network.output].argmax(axis=1) for x in batches]
    return float((np.concatenate(answers) == labels).mean())


def fine_tune(
    model: Network,
    train: Source,
    train_labels: Array,
    val: Source,
    val_labels: Array,
    settings: Settings,
    report: Callable[[Epoch, float], None] | None = None,
    course: Callable[[Graph, Settings], Course] | None = None,
) -> History:
    """Train what is not frozen as int8 will compute it; keep that only if int8 then answers more validation photos rightly.

    train, val: sources of images {INPUT: ...} from the model's recipe; from Features of pixels the frozen part is computed only once.
    The losses of the history are those of the int8 network; `best` is 0 where the model was left as it was. The calibration stays.
    course: called with the graph that trains: the state to go on from, and what keeps it, as training.fit takes them.
    Raises MinitlError for a model that was never calibrated or has no integer form, and where nothing can be trained.
    """
    twin, network, places = trainable_int8(model.graph, model.calibration, model.recipe)
    training.check_trainable(twin)
    train_rows, val_rows = (frozen_once(twin, network, model.recipe, source) for source in (train, val))
    baseline, _ = training.loss_and_accuracy(training.predict(twin, val_rows), val_labels)
    settings = replace(settings, mixup=0.0)  # there are no int8 values between those of two photos
    state, keep = course(twin, settings) if course else (None, None)
    try:
        history = training.fit(twin, train_rows, train_labels, val_rows, val_labels, settings, report, baseline, state=state, keep=keep)
    except Diverged:
        return History([], diverged=True)
    if history.best:
        before = model.graph.params
        model.graph.params = adopted(before, twin, places)
        try:
            trained = quantise(fold(model.graph), model.calibration, model.recipe)
            better = accuracy(trained, model.recipe, val, val_labels) > accuracy(network, model.recipe, val, val_labels)
        except MinitlError:  # what it learned has no integer form: as bad as worse
            better = False
        if not better:
            model.graph.params, history.best = before, 0
    return history


def adopted(params: dict[str, Params], twin: Graph, places: dict[str, Places]) -> dict[str, Params]:
    """The parameters of a model with those that its twin has trained; arrays are replaced, none is changed."""
    adopted = {node: dict(of_node) for node, of_node in params.items()}
    for value, trained in places.items():
        for part, (node, parameter) in trained.items():
            adopted[node][parameter] = twin.params[value][part]
    return adopted
