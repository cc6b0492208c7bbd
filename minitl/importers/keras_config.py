"""The model_config of a whole Keras model -> the layers it describes, with their weights, connections, strides, padding, activations.

Enters: the JSON of a functional or sequential model (Keras 2 and 3), with models inside of it, and the arrays by layer name. Leaves: a list
of Seen in order, the input's shape, epsilon and momentum. Everything in the JSON is checked before use: it may be hostile. Left out:
training settings, layers that are used twice, preprocessing inside the network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MinitlError
from ..geometry import Pair
from ..layers import Add, AveragePool, Concat, Conv2D, Dense, DepthwiseConv2D, GlobalAveragePool, Layer, MaxPool
from .names import IMAGE, NORM, Seen

KINDS = {"Conv2D": Conv2D, "DepthwiseConv2D": DepthwiseConv2D, "Dense": Dense}
JOINS: dict[str, type[Layer]] = {"Add": Add, "Concatenate": Concat}
POOLS: dict[str, type[Layer]] = {
    "MaxPooling2D": MaxPool,
    "AveragePooling2D": AveragePool,
    "GlobalAveragePooling2D": GlobalAveragePool,
}
VIEWS = ("RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast", "RandomBrightness")  # in training only
PASS = ("Dropout", "Flatten", "Reshape", *VIEWS)  # the values go through unchanged; their order is ours
MODELS = ("Functional", "Model", "Sequential")
ACTIVATIONS = ("linear", "relu", "relu6")
MOST_LAYERS, DEEPEST = 1000, 4


def norm_of(arrays: list[np.ndarray], label: str, what: str) -> dict[str, np.ndarray]:
    """The four vectors of a BatchNorm by name; or three, without gamma."""
    if len(arrays) not in (3, 4) or any(a.shape != arrays[0].shape or a.ndim != 1 for a in arrays):
        raise MinitlError(f"{what}: {label} holds {[a.shape for a in arrays]}, a BatchNorm needs four vectors: {', '.join(NORM)}")
    return dict(zip(NORM[-len(arrays) :], arrays, strict=True))


def kernel_and_bias(arrays: list[np.ndarray], kind: type[Layer], label: str, what: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(kernel in our layout, bias or None) of a convolution or dense layer. Keras' depthwise kernels end with an axis of 1."""
    axes = 2 if kind is Dense else 4
    good = len(arrays) in (1, 2) and arrays[0].ndim == axes and (len(arrays) == 1 or arrays[1].ndim == 1)
    if good and kind is DepthwiseConv2D:
        good = arrays[0].shape[3] == 1
    if not good:
        raise MinitlError(f"{what}: {label} holds {[a.shape for a in arrays]}, expected a {axes}-dimensional kernel and perhaps a bias")
    kernel, bias = arrays[0], arrays[1] if len(arrays) == 2 else None
    kernel = kernel[..., 0] if kind is DepthwiseConv2D else kernel
    if bias is not None and bias.shape != kernel.shape[-1:]:
        raise MinitlError(f"{what}: {label} has {kernel.shape[-1]} outputs and a bias of shape {bias.shape}")
    return kernel, bias


@dataclass
class _Value:
    """What a layer of the file computes.

    source: index of the Seen it belongs to. stage: 0 the layer itself, 1 normalised, 2 activated. pads: zeros to put around it.
    """

    source: int
    stage: int = 2
    pads: tuple[int, int, int, int] | None = None
    pooled: bool = False


class Walk:
    """The loop over the layers of one configuration, in Keras' words: layer() for each in order, then finish()."""

    def __init__(self, arrays: dict[str, list[np.ndarray]], what: str) -> None:
        self.arrays, self.what = dict(arrays), what
        self.seen: list[Seen] = []
        self.values: dict[str, _Value] = {}
        self.read_at: dict[int, set[int]] = {}  # Seen -> stages at which others read it
        self.norms: set[tuple[float, float]] = set()
        self.input_shape: tuple[int, int, int] | None = None
        self.ended = False

    def fail(self, what: str) -> MinitlError:
        """The error that names the file."""
        return MinitlError(f"{self.what} is no network that minitl knows: {what}")

    def layer(self, kind: str, name: str, config: dict[str, Any], inputs: list[str], weights: str = "") -> None:
        """Take one layer; `inputs` are the names of the layers that it reads, `weights` that of its arrays, if it is another one."""
        label = f"layer {name!r} ({kind})"
        if name in self.values:
            raise self.fail(f"it has two layers called {name!r}")
        if unknown := [i for i in inputs if i not in self.values]:
            raise self.fail(f"{label} reads {unknown[0]!r}, which does not come before it")
        if self.ended and kind not in PASS:
            raise self.fail(f"{label} comes after the classifier's softmax")
        if kind == "InputLayer":
            self._input(label, config)
            self.values[name] = _Value(IMAGE)
            return
        if not inputs or (kind not in JOINS and len(inputs) != 1):
            raise self.fail(f"{label} reads {len(inputs)} layers")
        value = self.values[inputs[0]]
        if config.get("data_format", "channels_last") != "channels_last":
            raise self.fail(f"{label} has data_format {config['data_format']!r}, expected channels_last")
        if kind in KINDS:
            self.values[name] = self._weighted(kind, weights or name, label, config, value)
        elif kind == "BatchNormalization":
            self.values[name] = self._norm(weights or name, label, config, value)
        elif kind in ("ReLU", "Activation", "Softmax"):
            self.values[name] = self._activation(kind, label, config, value)
        elif kind == "ZeroPadding2D":
            if value.pads:
                raise self.fail(f"{label} pads what is padded already")
            self.values[name] = _Value(value.source, value.stage, _pads(config.get("padding"), self, label), value.pooled)
        elif kind in JOINS:
            if kind == "Concatenate" and config.get("axis", -1) not in (3, -1):
                raise self.fail(f"{label} joins along axis {config['axis']!r:.20}, expected that of the channels")
            sources = tuple(self._read(self.values[i], label) for i in inputs)
            self.values[name] = self._new(Seen(label, JOINS[kind], sources, activation="linear"))
        elif kind in POOLS:
            self.values[name] = self._pool(kind, label, config, value)
        elif kind in PASS:
            if kind == "Reshape" and not value.pooled:
                raise self.fail(f"{label} comes before the pooling")
            self.values[name] = _Value(value.source, value.stage, value.pads, value.pooled or kind == "Flatten")
        else:
            raise self.fail(f"{label} is of a kind that networks here do not have")

    def _new(self, entry: Seen, pooled: bool = False) -> _Value:
        """What a layer computes that joins none before it."""
        self.seen.append(entry)
        return _Value(len(self.seen) - 1, 0, pooled=pooled)

    def _pool(self, kind: str, label: str, config: dict[str, Any], value: _Value) -> _Value:
        """An average without padding is taken for a global one: no network here has another, and its size is compared later.

        Zeros around the image are as good as nothing for the maximum of what a ReLU gives, which is what networks here pool.
        """
        entry = Seen(label, POOLS[kind], (self._read(value, label, may_pad=kind == "MaxPooling2D"),), activation="linear")
        if entry.kind is not GlobalAveragePool:
            entry.window, entry.padding = _pair(config.get("pool_size"), self, f"{label} pool_size"), config.get("padding")
            entry.strides = _pair(config.get("strides") or config.get("pool_size"), self, f"{label} strides")
            if entry.padding not in ("same", "valid") or (value.pads and entry.padding == "same"):
                raise self.fail(f"{label} has padding {entry.padding!r:.40}")
            if value.pads and (value.stage != 2 or value.source == IMAGE):
                raise self.fail(f"{label} follows a ZeroPadding2D without a ReLU before it")
            if entry.kind is AveragePool and entry.padding == "valid":
                entry.kind, entry.padding, entry.strides = GlobalAveragePool, None, None
            else:
                entry.padding = value.pads or entry.padding
        return self._new(entry, entry.kind is GlobalAveragePool)

    def _input(self, label: str, config: dict[str, Any]) -> None:
        shape = config.get("batch_input_shape", config.get("batch_shape"))
        if self.input_shape is not None:
            raise self.fail("it has two inputs")
        if not (isinstance(shape, list) and len(shape) == 4 and shape[3] == 3) or not (
            all(type(n) is int for n in shape[1:]) or shape[1:3] == [None, None]
        ):
            raise self.fail(f"{label} has shape {shape!r:.60}, expected [null, height, width, 3]")
        self.input_shape = (shape[1] or 0, shape[2] or 0, shape[3])

    def _read(self, value: _Value, label: str, may_pad: bool = False) -> int:
        """The source of a value; notes how far it was computed when read."""
        if value.pads and not may_pad:
            raise self.fail(f"{label} follows a ZeroPadding2D, expected a convolution there")
        self.read_at.setdefault(value.source, set()).add(value.stage)
        return value.source

    def _weighted(self, kind: str, name: str, label: str, config: dict[str, Any], value: _Value) -> _Value:
        arrays = self.arrays.pop(name, None)
        if arrays is None:
            raise self.fail(f"{label} has no weights in the file")
        kernel, bias = kernel_and_bias(arrays, KINDS[kind], label, self.what)
        entry = Seen(label, KINDS[kind], (self._read(value, label, may_pad=True),), kernel, bias, activation="linear")
        if kind != "Dense":
            if _pair(config.get("dilation_rate", [1, 1]), self, label) != (1, 1) or config.get("groups", 1) != 1:
                raise self.fail(f"{label} is dilated or grouped")
            entry.strides = _pair(config.get("strides"), self, f"{label} strides")
            entry.padding = config.get("padding")
            if entry.padding not in ("same", "valid") or (value.pads and entry.padding == "same"):
                raise self.fail(f"{label} has padding {entry.padding!r:.40}")
            entry.padding = value.pads or entry.padding
        result = self._new(entry, value.pooled)
        inner = config.get("activation", "linear")
        return result if inner == "linear" else self._activation("Activation", label, config, result)

    def _norm(self, name: str, label: str, config: dict[str, Any], value: _Value) -> _Value:
        if value.source == IMAGE or value.stage != 0 or value.pads:
            raise self.fail(f"{label} does not follow a convolution")
        entry = self.seen[value.source]
        axis = config.get("axis")
        if entry.norm or entry.activation not in (None, "linear") or axis not in (3, -1, [3], [-1]):
            raise self.fail(f"{label} is a second one, comes beside an activation, or normalises axis {axis!r:.20} instead of the channels")
        numbers: tuple[Any, Any] = config.get("epsilon"), config.get("momentum")
        if config.get("center", True) is not True:
            raise self.fail(f"{label} has no beta")
        if not all(type(n) in (int, float) and 0 <= n <= 1 for n in numbers):
            raise self.fail(f"{label} has epsilon and momentum {numbers!r:.80}, expected two numbers between 0 and 1")
        self.norms.add((float(numbers[0]), float(numbers[1])))
        entry.norm = norm_of(self.arrays.pop(name, []), label, self.what)
        if entry.kernel is not None and entry.norm["beta"].shape != entry.kernel.shape[-1:]:
            raise self.fail(f"{label} has {entry.norm['beta'].size} channels and follows {entry.channels}")
        return _Value(value.source, 1, pooled=value.pooled)

    def _activation(self, kind: str, label: str, config: dict[str, Any], value: _Value) -> _Value:
        function = "softmax" if kind == "Softmax" else config.get("activation", "relu")
        if kind == "ReLU":
            top, slope, threshold = config.get("max_value"), config.get("negative_slope", 0), config.get("threshold", 0)
            if slope not in (0, [0.0]) or threshold not in (0, [0.0]) or top not in (None, 6):
                raise self.fail(f"{label} is no plain ReLU or ReLU6")
            function = "relu" if top is None else "relu6"
        if function == "softmax" and value.pooled and value.source != IMAGE:
            self.ended = True  # we compute logits
            return value
        if not isinstance(function, str) or function not in ACTIVATIONS:
            raise self.fail(f"{label} has the activation {function!r:.40}, expected relu or relu6")
        if value.source == IMAGE or value.stage == 2 or value.pads:
            raise self.fail(f"{label} does not follow a convolution")
        entry = self.seen[value.source]
        if entry.activation not in (None, "linear") or (entry.norm and value.stage == 0):
            raise self.fail(f"{label} comes beside another activation or a BatchNorm")
        entry.activation = function
        return _Value(value.source, 2, pooled=value.pooled)

    def model(self, model: dict[str, Any], feed: str = "", within: str = "", deep: int = 0) -> str:
        """Take all layers of a model, or of one inside another that reads `feed`; -> the name of the layer whose value it gives."""
        kind, config = model.get("class_name"), model.get("config")
        config = {"layers": config} if isinstance(config, list) else config  # a Sequential of old
        layers = config.get("layers") if isinstance(config, dict) else None
        if kind not in MODELS or not isinstance(layers, list) or not layers or len(layers) > MOST_LAYERS or deep > DEEPEST:
            raise self.fail(f"it is a Keras {kind!r:.40}, expected a functional or sequential model with layers")
        names: dict[str, str] = {}  # in this model -> in the whole
        last = feed
        for layer in layers:
            own = layer.get("config") if isinstance(layer, dict) else None
            name, of_kind = (layer.get("name", own.get("name")), layer.get("class_name")) if isinstance(own, dict) else (None, None)
            if not (isinstance(name, str) and isinstance(of_kind, str) and isinstance(own, dict)):
                raise MinitlError(f"{self.what} is damaged: its model_config lists something that is no layer")
            if name in names:
                raise self.fail(f"it has two layers called {name!r}")
            inputs: list[str] | None = [last] if last else []
            if kind != "Sequential":
                found = _inputs(layer.get("inbound_nodes"))
                inputs = None if found is None else [names.get(i, i) for i in found]
            elif not inputs and of_kind not in ("InputLayer", *MODELS):  # Keras 2: the first layer says the shape
                inputs = [f"the input of {name}"]
                self.layer("InputLayer", inputs[0], own, [])
            if inputs is None:
                raise self.fail(f"layer {name!r} is used twice, or its connections cannot be read")
            names[name] = last = within + name
            if of_kind in MODELS:
                if len(inputs) > 1 or (inputs and inputs[0] not in self.values):
                    raise self.fail(f"the model {name!r} inside of it reads {inputs!r:.80}, expected one layer before it")
                names[name] = last = self.model(layer, inputs[0] if inputs else "", f"{within}{name}/", deep + 1)
            elif of_kind == "InputLayer" and feed:
                names[name] = last = feed
            else:
                self.layer(of_kind, last, own, inputs, name)
        if kind != "Sequential" and deep:
            ends = config.get("output_layers") if isinstance(config, dict) else None
            end = _inputs([ends if ends and isinstance(ends[0], list) else [ends]] if isinstance(ends, list) else None)
            if not end or len(end) != 1 or end[0] not in names:
                raise self.fail(f"a model inside of it has the outputs {ends!r:.80}, expected one of its layers")
            last = names[end[0]]
        return last

    def finish(self, output: str | None = None) -> tuple[list[Seen], tuple[int, int, int], dict[str, float]]:
        """(layers, input shape, 0 for any size, {'epsilon', 'momentum'}), once whoever reads a layer reads all of it.

        That is, not what is before its activation.

        output: name of the layer whose value the network gives; where a file says it, it must be the last one.
        """
        if output is not None and (output not in self.values or self._read(self.values[output], "its output") != len(self.seen) - 1):
            raise self.fail("its output is not what its last layer computes")
        for source, stages in self.read_at.items():
            if source == IMAGE:
                continue
            entry = self.seen[source]
            final = 2 if entry.activation not in (None, "linear") else 1 if entry.norm else 0
            if stages != {final}:
                raise self.fail(f"{entry.label} is read before its BatchNorm or activation")
        if self.arrays:
            raise self.fail(f"layer {next(iter(self.arrays))!r} has weights and no place in the network")
        if self.input_shape is None or not self.seen:
            raise self.fail("it has no input or no layers")
        if len(self.norms) > 1:
            raise self.fail(f"its BatchNorms differ in (epsilon, momentum): {sorted(self.norms)[:3]}")
        known = dict(zip(("epsilon", "momentum"), next(iter(self.norms)), strict=True)) if self.norms else {}
        return self.seen, self.input_shape, known


def read(text: str | bytes, arrays: dict[str, list[np.ndarray]], what: str) -> tuple[list[Seen], tuple[int, int, int], dict[str, float]]:
    """What Walk.finish gives, of a model. `what` names the file in errors."""
    walk = Walk(arrays, what)
    try:
        model = json.loads(text)
    except (ValueError, RecursionError):
        raise MinitlError(f"{what} is damaged: its model_config is no JSON") from None
    walk.model(model if isinstance(model, dict) else {})
    return walk.finish()


def _inputs(nodes: Any) -> list[str] | None:
    """Names of the layers that a layer reads; None if this is not one plain call. [] for an input.

    Keras 2: [[["conv1", 0, 0, {}], ...]]. Keras 3: [{"args": [tensor or [tensor, ...]], "kwargs": ...}] with the name in keras_history.
    """
    if nodes == []:
        return []
    if not isinstance(nodes, list) or len(nodes) != 1:
        return None
    call = nodes[0]
    if isinstance(call, dict):
        args = call.get("args")
        if not isinstance(args, list) or len(args) != 1:
            return None
        tensors = args[0] if isinstance(args[0], list) else [args[0]]
        configs = [t.get("config") if isinstance(t, dict) else None for t in tensors]
        history = [c.get("keras_history") if isinstance(c, dict) else None for c in configs]
    else:
        history = call if isinstance(call, list) else [None]
    names = [h[0] for h in history if isinstance(h, list) and len(h) >= 3 and isinstance(h[0], str) and type(h[1]) is int and h[2] == 0]
    return names if len(names) == len(history) else None


def _pair(value: Any, walk: Walk, label: str) -> Pair:
    """[2, 2] or 2 as two whole numbers."""
    pair = [value, value] if type(value) is int else value
    if not (isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and 0 < n < 1 << 16 for n in pair)):
        raise walk.fail(f"{label}: {value!r:.40} is no pair of whole numbers")
    return pair[0], pair[1]


def _pads(value: Any, walk: Walk, label: str) -> tuple[int, int, int, int]:
    """ZeroPadding2D's ((top, bottom), (left, right))."""
    sides = [n for axis in value for n in (axis if isinstance(axis, list) else [axis])] if isinstance(value, list) else []
    if len(sides) != 4 or not all(type(n) is int and 0 <= n < 1 << 16 for n in sides):
        raise walk.fail(f"{label}: padding {value!r:.40} is not [[top, bottom], [left, right]]")
    return sides[0], sides[1], sides[2], sides[3]
