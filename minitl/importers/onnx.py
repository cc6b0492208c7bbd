"""ONNX -> Imported: float networks as PyTorch's two exporters, tf2onnx and others write them.

Enters: the bytes of a .onnx file, and the files beside it that hold its numbers, if it names any. Leaves: the network, BatchNorm folded
or not as it stands there, and its preprocessing: from the first nodes where they rescale the picture, else assumed from the family.
Exporters make names up, so layers are known by the order of the graph: each node is told to keras_config.Walk as the layer that it would
be in Keras, kernels turned to Keras' layouts. Softmax at the end is dropped: we compute logits. Left out: quantised networks (refused in
words), control flow, functions, operators of other domains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..geometry import output_hw, resolve
from ..images import Recipe
from ..layers import Concat, Dense, GlobalAveragePool
from . import keras_h5, names
from .beside import Beside
from .keras_config import Walk
from .names import IMAGE, Imported
from .onnx_graph import FLOATS, MOST_TENSORS, Constants, Node, shape_of
from .protobuf import Message

MOST_NODES, LARGEST_SIZE = 20_000, 1 << 20
SIZE = 224  # of the picture where the file leaves it open
TO_CHANNELS_FIRST, TO_CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
ENDLESS = 3e38  # Clip without a limit has the largest float32


def is_model(data: bytes) -> bool:
    """Whether a file begins as writers of ONNX begin it: the version of the format, then another field of a model."""
    return len(data) > 2 and data[0] == 0x08 and 0 < data[1] < 128 and data[2] in (0x12, 0x1A, 0x22, 0x28, 0x2A, 0x32, 0x3A, 0x42)


def convert(data: bytes, what: str, beside: Beside) -> Imported:
    """The network in the bytes of a .onnx file. `what` is the file's name. Raises MinitlError."""
    model = Message(memoryview(data), what)
    graph, opsets = model.message(7), [opset.number(2) for opset in model.messages(8, 100) if opset.text(1) in ("", "ai.onnx")]
    constants, notes = Constants(graph, what, beside, len(data)), list[str]()
    walk = _Walk(graph, constants, what, notes, max(opsets, default=1))
    for message in graph.messages(1, MOST_NODES):
        walk.node(Node(message))
    outputs = [value.text(1) for value in graph.messages(12, MOST_TENSORS)]
    if len(outputs) != 1:
        raise walk.fail(f"it has {len(outputs)} outputs, expected one")
    if outputs[0] not in walk.last:
        raise walk.fail("its output is not what its last layer computes")
    seen, _, known = walk.walk.finish(outputs[0])
    if walk.folded:
        notes.append("products with constants after a layer were folded into it")
    if not any(s.bias.any() for s in seen if s.norm and s.bias is not None):  # an exporter that does not optimise writes zeros there
        for s in seen:
            s.bias = None if s.norm else s.bias
    paddings = ("same", "keras", "torch") if walk.channels_last else ("torch", "same", "keras")
    architecture, arguments, arrays, mapping = names.fit(seen, what, walk.size, paddings, **known)
    recipe = walk.recipe(notes)
    if recipe is None and arguments.get("padding", paddings[0]) == "torch":
        recipe = names.torch_recipe(arguments, notes)
    elif recipe is None:
        recipe = keras_h5.recipe_of(architecture, arguments, arrays, notes)
    return Imported(architecture, arguments, arrays, recipe, None, {"format": "onnx", "notes": notes}, mapping, list(constants.unused))


class _Walk:
    """The loop over the nodes: constants aside, what only moves numbers noted, the rest a layer in Keras' words."""

    def __init__(self, graph: Message, constants: Constants, what: str, notes: list[str], opset: int) -> None:
        self.constants, self.walk, self.opset = constants, Walk({}, what), opset
        self.fail = self.walk.fail
        self.last: dict[str, bool] = {}  # value -> whether its channels are the last axis
        self.flat: dict[str, int] = {}  # value -> channels of the image that was flattened to it, 0 if they were the last axis
        self.rows: set[str] = set()  # values that are one row of numbers, no image
        self.aliases: dict[int, list[str]] = {}  # layer -> values that are what it computes
        self.sizes: list[tuple[int, int, int]] = []  # of what the layers compute, see _size
        self.folded = False
        self.scale, self.offset, self.scaled = np.ones(3), np.zeros(3), False
        inputs = [value for value in graph.messages(11, MOST_TENSORS) if value.text(1) not in constants.arrays]
        if len(inputs) != 1:
            raise self.fail(f"it has {len(inputs)} inputs, expected one picture")
        tensor = inputs[0].message(2).message(1)
        dims = [dim.number(1) for dim in tensor.message(2).messages(1, 16)]
        if len(dims) != 4 or 3 not in (dims[1], dims[3]) or tensor.number(1) not in (*FLOATS, 2):
            raise self.fail(f"its input has shape {dims} and type {tensor.number(1)}, expected floats (N, 3, H, W) or (N, H, W, 3)")
        self.channels_last, self.bytes = dims[1] != 3, tensor.number(1) == 2
        height, width = dims[1:3] if self.channels_last else dims[2:]
        if min(height, width) <= 0:
            height, width = names.size_from_name(what, SIZE, notes)
        self.size = (height, width, 3)
        self.layer("InputLayer", inputs[0].text(1), [], batch_shape=[None, height, width, 3])
        self.last[inputs[0].text(1)], self.aliases[IMAGE] = self.channels_last, [inputs[0].text(1)]

    def layer(self, kind: str, name: str, inputs: list[str], /, **config: Any) -> None:
        """A layer in Keras' words."""
        self.walk.layer(kind, name, config, inputs)

    def weighted(self, kind: str, node: Node, arrays: dict[str, tuple[np.ndarray, str]], /, source: str = "", **config: Any) -> None:
        """A layer with arrays, in Keras' order: {our name: (array, what the file calls it)}."""
        self.walk.arrays[node.output] = [array for array, _ in arrays.values()]
        self.layer(kind, node.output, [source or node.inputs[0]], **config)
        entry = self.walk.seen[self.walk.values[node.output].source]
        entry.names.update({part: name for part, (_, name) in arrays.items()})

    def node(self, node: Node) -> None:
        """Take one node."""
        if node.kind in QUANTISED or node.kind.startswith("QLinear"):
            raise self.fail(f"{node.label} is quantised, which is read from .tflite files and not from ONNX: export the float network")
        if node.domain not in ("", "ai.onnx"):
            raise self.fail(f"{node.label} is an operator of {node.domain!r:.40}: export with ONNX's own operators")
        if not node.output or node.output in self.constants.arrays or node.output in self.walk.values:
            raise self.fail(f"{node.label} computes what is there already, or nothing")
        if self.constants.compute(node):
            return
        values = [name for name in node.inputs if name in self.last]
        if node.kind == "Shape" and values:
            self.constants.arrays[node.output] = shape_of(node, self._shape(values[0]))
            return
        unknown = [name for name in node.inputs if name and name not in self.last and name not in self.constants.arrays]
        if node.kind not in METHODS:
            raise self.fail(f"{node.label} is of a kind that networks here do not have")
        method = METHODS[node.kind]
        if not values or unknown or (node.inputs[0] not in self.last and method is not _Walk.arithmetic):
            raise self.fail(f"{node.label} reads {(unknown or node.inputs or [''])[0]!r:.80}, which nothing before it computes")
        if len({self.last[name] for name in values}) > 1:
            raise self.fail(f"{node.label} reads channels as the last axis and as the first")
        if method not in (_Walk.gemm, _Walk.flatten, _Walk.same) and any(name in self.flat for name in values):
            raise self.fail(f"{node.label} reads an image that is flattened, expected a dense layer")
        self.last[node.output] = self.last[values[0]]
        self.rows |= {node.output} if values[0] in self.rows else set()
        method(self, node)
        self.aliases.setdefault(self.walk.values[node.output].source, []).append(node.output)

    def _shape(self, name: str) -> list[int]:
        """Shape of a value, of one picture."""
        value = self.walk.values[name]
        h, w, c = self._size(value.source)
        top, bottom, left, right = value.pads or (0, 0, 0, 0)
        h, w = h + top + bottom, w + left + right
        return [1, h * w * c] if name in self.rows else [1, h, w, c] if self.last[name] else [1, c, h, w]

    def _size(self, source: int) -> tuple[int, int, int]:
        """Height, width and channels of what a layer computes."""
        for entry in self.walk.seen[len(self.sizes) : source + 1]:
            (h, w, c), *others = [self.size if i == IMAGE else self.sizes[i] for i in entry.inputs or ()]
            window = entry.window if entry.kernel is None else entry.kernel.shape[:2]
            if entry.strides is not None and entry.padding is not None and window is not None:
                try:
                    h, w = output_hw(h, w, window, entry.strides, resolve(entry.padding, h, w, window, entry.strides))
                except ValueError as problem:
                    raise self.fail(f"{entry.label}: {problem}") from None
            c = entry.channels or c + (sum(other[2] for other in others) if entry.kind is Concat else 0)
            self.sizes.append((1, 1, c) if entry.kind in (GlobalAveragePool, Dense) else (h, w, c))
            if max(h, w, c) > LARGEST_SIZE:
                raise self.fail(f"{entry.label} makes an image of {h}x{w} pixels and {c} channels")
        return self.size if source == IMAGE else self.sizes[source]

    def _channels_first(self, node: Node) -> None:
        if self.last.get(node.inputs[0], True):
            raise self.fail(f"{node.label} reads {node.inputs[0]!r:.80} with channels as its last axis, or it is a constant")

    # ---- layers with a kernel

    def conv(self, node: Node) -> None:
        """Kernel (O, I / groups, kh, kw) -> (kh, kw, I, O), depthwise (kh, kw, C, 1)."""
        self._channels_first(node)
        kernel, groups = self.constants.floats(node, 1, "kernel"), node.number("group", 1)
        if kernel.ndim != 4 or node.integers("kernel_shape") not in (None, list(kernel.shape[2:])):
            raise self.fail(f"{node.label} has a kernel of shape {kernel.shape}")
        depthwise = groups > 1 and kernel.shape[:2] == (groups, 1)
        arrays = {"kernel": (kernel.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0)), node.inputs[1])}
        if len(node.inputs) > 2 and node.inputs[2]:
            arrays["bias"] = self.constants.floats(node, 2, "bias"), node.inputs[2]
        source, window = self._window(node)
        config = {"dilation_rate": node.integers("dilations") or [1, 1], "groups": 1 if depthwise else groups}
        self.weighted("DepthwiseConv2D" if depthwise else "Conv2D", node, arrays, source=source, **window, **config)

    def _window(self, node: Node) -> tuple[str, dict[str, Any]]:
        """(what a window slides over, with zeros put around it where the node says so; strides and padding in Keras' words)."""
        automatic, pads, source = node.text("auto_pad") or "NOTSET", node.integers("pads") or [0] * 4, node.inputs[0]
        padding = {"NOTSET": "valid", "VALID": "valid", "SAME_UPPER": "same"}.get(automatic, automatic)
        if automatic == "NOTSET" and any(pads):
            source = f"{node.output} padded"
            self.layer("ZeroPadding2D", source, node.inputs[:1], padding=[pads[0::2], pads[1::2]])
        return source, {"strides": node.integers("strides") or [1, 1], "padding": padding}

    def gemm(self, node: Node) -> None:
        """Kernel (I, O), or (O, I) with transB."""
        kernel = self.constants.floats(node, 1, "kernel")
        if node.kind == "Gemm" and (node.number("transA", 0), node.real("alpha", 1), node.real("beta", 1)) != (0, 1, 1):
            raise self.fail(f"{node.label} transposes or scales its input")
        kernel = kernel.T if node.kind == "Gemm" and node.number("transB", 0) else kernel
        if channels := self.flat.get(node.inputs[0]):  # to channels last, as we and Keras flatten
            if kernel.ndim != 2 or len(kernel) % channels:
                raise self.fail(f"{node.label} has a kernel of shape {kernel.shape} for an image of {channels} channels")
            kernel = kernel.reshape(channels, len(kernel) // channels, -1).transpose(1, 0, 2).reshape(kernel.shape)
        arrays = {"kernel": (kernel, node.inputs[1])}
        if node.kind == "Gemm" and len(node.inputs) > 2 and node.inputs[2]:
            arrays["bias"] = self.constants.floats(node, 2, "bias").reshape(-1), node.inputs[2]
        self.weighted("Dense", node, arrays)

    def norm(self, node: Node) -> None:
        """BatchNormalization; ONNX's momentum is in our convention."""
        self._channels_first(node)
        if node.number("training_mode", 0) or not node.number("spatial", 1):
            raise self.fail(f"{node.label} is in training mode, or of each pixel: export with model.eval()")
        arrays = {part: (self.constants.floats(node, i, part), node.inputs[i]) for i, part in enumerate(names.NORM, start=1)}
        self.weighted("BatchNormalization", node, arrays, axis=-1, epsilon=node.real("epsilon", 1e-5), momentum=node.real("momentum", 0.9))

    # ---- layers without

    def clip(self, node: Node) -> None:
        """ReLU, and Clip to 0 and 6 or to 0 alone; older versions have the limits as attributes."""
        low, high = node.real("min", -ENDLESS), node.real("max", ENDLESS)
        if len(node.inputs) > 1 and node.inputs[1]:
            low = self._number(node, 1)
        if len(node.inputs) > 2 and node.inputs[2]:
            high = self._number(node, 2)
        if node.kind == "Relu":
            low, high = 0.0, ENDLESS
        if low != 0 or not (high == 6 or high >= ENDLESS):
            raise self.fail(f"{node.label} limits values to {low:g} and {high:g}, expected 0 and 6")
        self.layer("ReLU", node.output, node.inputs[:1], max_value=6 if high == 6 else None)

    def _number(self, node: Node, i: int) -> float:
        array = self.constants.floats(node, i, "limit")
        if array.size != 1:
            raise self.fail(f"{node.label} has {array.size} limits, expected one")
        return float(array.reshape(-1)[0])

    def mean(self, node: Node) -> None:
        """The average of all of an image."""
        first, axes = not self.last[node.inputs[0]], self.constants.listed(node, "axes", 1)
        if node.kind == "ReduceMean" and (axes is None or sorted(axis % 4 for axis in axes) != ([2, 3] if first else [1, 2])):
            raise self.fail(f"{node.label} is over the axes {axes}, expected height and width")
        if node.kind == "GlobalAveragePool":
            self._channels_first(node)
        self.layer("GlobalAveragePooling2D", node.output, node.inputs[:1])
        self.rows |= set() if node.number("keepdims", 1) else {node.output}

    def pool(self, node: Node) -> None:
        """Averages of windows, or the largest of each."""
        self._channels_first(node)
        if set(node.integers("dilations") or [1]) != {1}:
            raise self.fail(f"{node.label} is dilated by {node.integers('dilations')}, expected windows without gaps")
        window, pads = node.integers("kernel_shape") or [0, 0], node.integers("pads") or [0] * 4
        strides = node.integers("strides") or [1, 1]
        if window == strides == [1, 1] and not any(pads):  # torchvision's VGG16 averages 7x7 pixels to 7x7
            self.same(node)
            return
        source, config = self._window(node)
        average, zeros = node.kind == "AveragePool", node.number("count_include_pad", 0)
        if average and not zeros and strides == [1, 1] and pads == [(n - 1) // 2 for n in window] + [n // 2 for n in window]:
            source, config["padding"] = node.inputs[0], "same"  # Keras, too, takes no zeros into its averages
        if node.number("ceil_mode", 0) or (average and zeros and config["padding"] == "same"):
            raise self.fail(f"{node.label} rounds its size up, or takes zeros around the image into its averages")
        self.layer("AveragePooling2D" if average else "MaxPooling2D", node.output, [source], pool_size=window, **config)

    def concat(self, node: Node) -> None:
        """Images side by side, channel after channel."""
        if node.number("axis", 0) % 4 != (3 if self.last[node.output] else 1):
            raise self.fail(f"{node.label} is along axis {node.number('axis', 0)}, expected that of the channels")
        self.layer("Concatenate", node.output, node.inputs, axis=-1)

    def pad(self, node: Node) -> None:
        """Zeros around an image: all that is put before the axes, then all that is put after them."""
        pads, value = self.constants.listed(node, "pads", 1) or [], node.real("value", 0)
        if len(node.inputs) > 2 and node.inputs[2]:
            value = self._number(node, 2)
        h = 1 if self.last[node.output] else 2
        sides = [[pads[axis], pads[axis + 4]] for axis in (h, h + 1)] if len(pads) == 8 else []
        if node.text("mode") not in ("", "constant") or value or node.inputs[3:] or sum(map(sum, sides), 0) != sum(pads) or not sides:
            raise self.fail(f"{node.label} pads by {pads}, expected zeros around the image only")
        self.layer("ZeroPadding2D", node.output, node.inputs[:1], padding=sides)

    def arithmetic(self, node: Node) -> None:
        """A sum of two values; a bias that is added; what is done to the picture before the first layer."""
        values = [name for name in node.inputs if name in self.last]
        if len(node.inputs) != 2 or (len(values) == 2 and node.kind != "Add"):
            raise self.fail(f"{node.label} joins values by other than their sum")
        if len(values) == 2:
            self.layer("Add", node.output, values)
            return
        at = 1 if node.inputs[0] in self.last else 0
        constant, value = self.constants.floats(node, at, "number"), self.walk.values[values[0]]
        entry = None if value.source == IMAGE else self.walk.seen[value.source]
        channels = 3 if entry is None else entry.channels
        along = (channels,) if self.last[node.output] or (entry and entry.kind is Dense) else (channels, 1, 1)
        if constant.size not in (1, channels) or (constant.size > 1 and constant.shape[-len(along) :] != along):
            raise self.fail(f"{node.label} has a constant of shape {constant.shape} for {channels} channels")
        if value.source in self.walk.read_at or value.stage != (0 if entry else 2) or not channels or value.pads or (entry and entry.norm):
            raise self.fail(f"{node.label} comes neither right after a layer with a kernel nor before the first one")
        if not at and node.kind in ("Sub", "Div"):
            raise self.fail(f"{node.label} has the constant first")
        by = constant.reshape(-1).astype(np.float64)
        with np.errstate(all="ignore"):
            by = -by if node.kind == "Sub" else 1 / by if node.kind == "Div" else by
        if entry is None:
            self._rescale(by, node.kind in ("Mul", "Div"))
        else:
            self._fold(entry, np.broadcast_to(by, channels), node.kind in ("Mul", "Div"), node.inputs[at])
        for name in self.aliases.pop(value.source):  # nothing may read what it was
            del self.last[name]
        self.layer("Dropout", node.output, values)

    def _fold(self, entry: names.Seen, by: np.ndarray, scales: bool, name: str) -> None:
        """A bias, or a BatchNorm as it is when written as arithmetic, into the layer that computes what it changes."""
        assert entry.kernel is not None
        if not scales:
            entry.bias, entry.names["bias"] = by + (0 if entry.bias is None else entry.bias), name
            return
        self.constants.take(entry.kernel.size)
        with np.errstate(all="ignore"):
            entry.kernel, self.folded = entry.kernel * by, True
            entry.bias = None if entry.bias is None else entry.bias * by

    def _rescale(self, by: np.ndarray, scales: bool) -> None:
        self.scaled = True
        with np.errstate(all="ignore"):
            self.scale, self.offset = (self.scale * by, self.offset * by) if scales else (self.scale, self.offset + by)

    def recipe(self, notes: list[str]) -> Recipe | None:
        """What the first nodes do to the picture, if anything."""
        if not self.scaled:
            return None
        mean, std, whole = names.rescaled(self.scale, self.offset, self.bytes, self.fail)
        notes.append(f"preprocessing from the first nodes, for pixels {'0 to 255' if whole else '/ 255'}; centre crop 0.875 assumed")
        return Recipe(*self.size[:2], mean, std)

    # ---- what moves numbers

    def flatten(self, node: Node) -> None:
        """An image as a list of numbers."""
        value = self.walk.values[node.inputs[0]]
        if node.kind == "Flatten" and node.number("axis", 1) != 1:
            raise self.fail(f"{node.label} begins at axis {node.number('axis', 1)}, expected 1")
        self.rows.add(node.output)
        if node.inputs[0] in self.flat or not value.pooled:
            channels = 0 if self.last[node.inputs[0]] else self._size(value.source)[2]
            self.flat[node.output] = self.flat.get(node.inputs[0], channels)
        self.layer("Flatten", node.output, node.inputs[:1])

    def transpose(self, node: Node) -> None:
        """Channels from the last axis to the one after the batch, or back."""
        last = self.last[node.inputs[0]]
        if node.integers("perm") != (TO_CHANNELS_FIRST if last else TO_CHANNELS_LAST):
            raise self.fail(f"{node.label} moves axes by {node.integers('perm')}, expected the channels {'first' if last else 'last'}")
        self.last[node.output] = not last
        self.layer("Dropout", node.output, node.inputs[:1])

    def same(self, node: Node) -> None:
        """The same numbers."""
        if node.kind == "Cast" and node.number("to", 1) not in FLOATS:
            raise self.fail(f"{node.label} makes whole numbers of what a layer computes")
        self.layer("Dropout", node.output, node.inputs[:1])
        if node.inputs[0] in self.flat:
            self.flat[node.output] = self.flat[node.inputs[0]]

    def softmax(self, node: Node) -> None:
        """Probabilities; what comes before them is kept. Of an image it is one of one pixel."""
        old, row, last = self.opset < 13, node.inputs[0] in self.rows, self.last[node.inputs[0]]  # old: over that axis and all after it
        axis = node.number("axis", 1 if old else -1)
        if axis not in ((1, -1) if row else (1, -3) if not last else (1, 3, -1) if old else (3, -1)):
            raise self.fail(f"{node.label} is along axis {axis}, expected that of the classes")
        self.layer("Softmax", node.output, node.inputs[:1])


METHODS: dict[str, Callable[[_Walk, Node], None]] = {
    "Conv": _Walk.conv,
    "Gemm": _Walk.gemm,
    "MatMul": _Walk.gemm,
    "BatchNormalization": _Walk.norm,
    "Relu": _Walk.clip,
    "Clip": _Walk.clip,
    **dict.fromkeys(("GlobalAveragePool", "ReduceMean"), _Walk.mean),
    **dict.fromkeys(("AveragePool", "MaxPool"), _Walk.pool),
    "Concat": _Walk.concat,
    "Pad": _Walk.pad,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _Walk.arithmetic),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _Walk.flatten),
    "Transpose": _Walk.transpose,
    **dict.fromkeys(("Identity", "Cast", "Dropout"), _Walk.same),
    "Softmax": _Walk.softmax,
}
