"""A parsed .tflite model -> Imported: the float network that it computes, or that it was quantised from.

Enters: the bytes of a file. Leaves: the network with BatchNorm folded (as the converter left it), float32 arrays (quantised constants
dequantised: real = scale * (q - zero_point)), and the preprocessing that the input's quantisation, the first operators or the metadata
give. Softmax at the end is dropped: we compute logits. Left out: the quantisation of activations; operators that no
MobileNet has are refused by name.
"""

from __future__ import annotations

import math

import numpy as np

from ..images import Recipe
from ..layers import Add, Conv2D, Dense, DepthwiseConv2D, GlobalAveragePool
from . import names, tflite, tflite_metadata
from .names import IMAGE, Imported, Seen
from .tflite import Model, Operator, Tensor

ARITHMETIC = ("ADD", "SUB", "MUL", "DIV")
PASS = ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE")  # the same numbers, in another form


def convert(data: bytes, what: str) -> Imported:
    """The network in the bytes of a .tflite file. `what` is the file's name. Raises MinitlError."""
    model = tflite.parse(data, what)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise model.error(f"has {len(model.inputs)} inputs and {len(model.outputs)} outputs, expected one picture in and one list out")
    image = model.tensors[model.inputs[0]]
    if len(image.shape) != 4 or image.shape[0] != 1 or image.shape[3] != 3:
        raise model.error(f"its input has shape {image.shape}, expected (1, height, width, 3)")
    notes: list[str] = []
    walk = _Walk(model)
    for operator in model.operators:
        walk.operator(operator)
    seen = walk.finish()
    shape = (image.shape[1], image.shape[2], 3)
    architecture, arguments, arrays, mapping = names.fit(seen, what, shape, ("same", "keras", "torch"))
    recipe = _recipe(model, image, walk, architecture, arguments, notes)
    if any(t.quantisation is not None and t.data is not None for t in model.tensors):
        notes.append("quantised weights were dequantised to float")
    classes = tflite_metadata.labels(data, model, arguments["classes"], notes)
    return Imported(architecture, arguments, arrays, recipe, classes, {"format": "tflite", "notes": notes}, mapping)


def dequantise(model: Model, tensor: Tensor) -> np.ndarray:
    """The float32 values of a constant, each the exact product, rounded once."""
    if tensor.data is None or tensor.dtype is None or tensor.sparse:
        raise model.error(
            f"tensor {tensor.index} ({tensor.name:.60}) is no constant that can be read (computed, sparse, or of an unknown type)"
        )
    quantisation = tensor.quantisation
    if tensor.dtype.kind == "f":
        return tensor.data.astype(np.float32)
    if quantisation is None or tensor.dtype.kind not in "iu":
        raise model.error(
            f"tensor {tensor.index} ({tensor.name:.60}) holds {tensor.dtype} without a scale, expected floats or scaled integers"
        )
    axes = [1] * len(tensor.shape)
    if len(quantisation.scale) > 1:
        axes[quantisation.axis] = -1
    wide = np.float64 if tensor.dtype.itemsize > 2 else np.float32  # in which differences are exact
    scale, zero_point = (a.astype(wide).reshape(axes) for a in (quantisation.scale, quantisation.zero_point))
    with np.errstate(over="ignore", invalid="ignore"):
        values: np.ndarray = tensor.data.astype(wide)
        values -= zero_point
        values *= scale
        return values.astype(np.float32, copy=False)


class _Walk:
    """The loop over the operators: which Seen each tensor's value belongs to."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.seen: list[Seen] = []
        self.source = {model.inputs[0]: IMAGE}  # tensor -> index into seen
        self.pads: dict[int, tuple[int, int, int, int]] = {}  # tensor -> zeros around it
        self.constants: dict[int, int] = {}  # DEQUANTIZE's output -> the constant it comes from
        self.scale, self.offset, self.scaled = np.ones(3), np.zeros(3), False  # MUL, ADD, ... by constants before the first layer
        self.numbers = 0  # taken from constants so far
        self.pooled = False
        self.ended: str | None = None

    def operator(self, o: Operator) -> None:
        """Take one operator."""
        model, kind = self.model, o.kind
        if self.ended and kind not in PASS:
            raise model.error(f"{o.label} comes after the classifier's {self.ended}")
        if not o.inputs or len(o.outputs) != 1 or o.outputs[0] in self.source:
            raise model.error(f"{o.label} has {len(o.inputs)} inputs and {len(o.outputs)} outputs, or computes what is there already")
        if kind == "DEQUANTIZE" and self._is_constant(o.inputs[0]):
            self.constants[o.outputs[0]] = o.inputs[0]
            return
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            entry = self._weighted(o)
        elif kind == "ADD" and len(o.inputs) == 2 and (self.seen or not any(self._is_constant(self.constants.get(i, i)) for i in o.inputs)):
            entry = Seen(o.label, Add, tuple(self._value(o, i) for i in (0, 1)), activation=o.options["activation"])
        elif kind in ("AVERAGE_POOL_2D", "MEAN"):
            entry = self._pool(o)
        else:
            self._pass(o)
            return
        self.seen.append(entry)
        self.source[o.outputs[0]] = len(self.seen) - 1

    def _is_constant(self, tensor: int) -> bool:
        return tensor >= 0 and self.model.tensors[tensor].data is not None

    def _value(self, o: Operator, i: int, may_pad: bool = False) -> int:
        """Which Seen input i of an operator belongs to."""
        tensor = o.inputs[i] if i < len(o.inputs) else -1
        if tensor not in self.source:
            raise self.model.error(f"{o.label} reads tensor {tensor}, which nothing before it computes")
        if tensor in self.pads and not may_pad:
            raise self.model.error(f"{o.label} follows a PAD, expected a convolution there")
        return self.source[tensor]

    def _constant(self, o: Operator, i: int, what: str) -> np.ndarray:
        tensor = o.inputs[i] if i < len(o.inputs) else -1
        tensor = self.constants.get(tensor, tensor)
        if not self._is_constant(tensor):
            raise self.model.error(f"{o.label} has no constant {what}")
        self.numbers += math.prod(self.model.tensors[tensor].shape)
        if self.numbers > 2 * self.model.size:  # a small file must not become large arrays
            raise self.model.error("is damaged: its operators share their kernels")
        return dequantise(self.model, self.model.tensors[tensor])

    def _weighted(self, o: Operator) -> Seen:
        """Kernels: CONV_2D (O, kh, kw, I) -> (kh, kw, I, O); DEPTHWISE (1, kh, kw, C) -> (kh, kw, C); FULLY_CONNECTED (O, I) -> (I, O)."""
        source = self._value(o, 0, may_pad=True)
        kernel = self._constant(o, 1, "kernel")
        axes = 2 if o.kind == "FULLY_CONNECTED" else 4
        if kernel.ndim != axes or (o.kind == "DEPTHWISE_CONV_2D" and kernel.shape[0] != 1):
            raise self.model.error(f"{o.label} has a kernel of shape {kernel.shape}")
        bias = self._constant(o, 2, "bias") if len(o.inputs) > 2 and o.inputs[2] >= 0 else None
        options = o.options
        if o.kind == "FULLY_CONNECTED":
            if options["weights_format"] != 0 or not self.pooled:
                raise self.model.error(f"{o.label} has shuffled weights or comes before the pooling")
            entry = Seen(o.label, Dense, (source,), kernel.T)
        else:
            depthwise = o.kind == "DEPTHWISE_CONV_2D"
            kernel = kernel[0] if depthwise else kernel.transpose(1, 2, 3, 0)
            if (options["dilation_h"], options["dilation_w"]) != (1, 1) or options.get("depth_multiplier", 1) not in (0, 1):
                raise self.model.error(f"{o.label} is dilated or multiplies its channels")
            pads = self.pads.get(o.inputs[0])
            if pads and options["padding"] != "valid":
                raise self.model.error(f"{o.label} pads an image that a PAD has padded already")
            entry = Seen(o.label, DepthwiseConv2D if depthwise else Conv2D, (source,), kernel)
            entry.strides, entry.padding = (options["stride_h"], options["stride_w"]), pads or options["padding"]
        if bias is not None and bias.shape != entry.kernel.shape[-1:]:  # type: ignore[union-attr]
            raise self.model.error(f"{o.label} has {entry.channels} outputs and a bias of shape {bias.shape}")
        entry.bias, entry.activation = bias, options["activation"]
        tensors = self.model.tensors
        entry.names = {
            part: tensors[i].name.split(";")[0][:100] or f"tensor {i}" for part, i in zip(("kernel", "bias"), o.inputs[1:3], strict=False)
        }
        return entry

    def _pool(self, o: Operator) -> Seen:
        entry = Seen(o.label, GlobalAveragePool, (self._value(o, 0),), activation=o.options.get("activation", "linear"))
        if o.kind == "MEAN":
            axes = self.model.tensors[o.inputs[1]].data if len(o.inputs) == 2 and self._is_constant(o.inputs[1]) else None
            if axes is None or sorted(axes.reshape(-1).tolist()) not in ([1, 2], [-3, -2]):
                raise self.model.error(f"{o.label} is not over height and width")
        else:
            if o.options["padding"] != "valid":
                raise self.model.error(f"{o.label} has padding {o.options['padding']!r}, expected 'valid'")
            entry.window = (o.options["filter_height"], o.options["filter_width"])
        self.pooled = True
        return entry

    def _pass(self, o: Operator) -> None:
        """Operators that leave the numbers as they are, or that belong to another layer."""
        model, output = self.model, o.outputs[0]
        if o.kind == "PAD":
            self.source[output] = self._value(o, 0)
            self.pads[output] = self._paddings(o)
            return
        if o.kind in ARITHMETIC and not self.seen:
            self._rescale(o)
            return
        if o.kind == "SOFTMAX" and self.pooled:
            self.ended = o.kind
        elif o.kind not in PASS:
            raise model.error(f"{o.label} is of a kind that MobileNets do not have")
        elif o.kind in ("RESHAPE", "SQUEEZE") and not self.pooled:
            raise model.error(f"{o.label} comes before the pooling")
        self.source[output] = self._value(o, 0)

    def _rescale(self, o: Operator) -> None:
        """The picture times, plus, ... one number, or one for each colour."""
        at = 0 if len(o.inputs) == 2 and o.kind in ("ADD", "MUL") and self._is_constant(self.constants.get(o.inputs[0], o.inputs[0])) else 1
        self._value(o, 1 - at)
        number = self._constant(o, at, "number").astype(np.float64)
        if (number.size != 1 and (number.size != 3 or number.shape[-1] != 3)) or o.options["activation"] != "linear":
            raise self.model.error(
                f"{o.label} rescales the picture by numbers of shape {number.shape}, expected one, or one for each colour"
            )
        number, self.scaled = number.reshape(-1), True
        with np.errstate(all="ignore"):
            if o.kind in ("ADD", "SUB"):
                self.offset = self.offset + (number if o.kind == "ADD" else -number)
            else:
                factor = number if o.kind == "MUL" else 1 / number
                self.scale, self.offset = self.scale * factor, self.offset * factor
        self.source = {o.outputs[0]: IMAGE}  # nothing may read what it was

    def _paddings(self, o: Operator) -> tuple[int, int, int, int]:
        table = self.model.tensors[o.inputs[1]] if len(o.inputs) == 2 and self._is_constant(o.inputs[1]) else None
        if table is None or table.data is None or table.shape != (4, 2) or table.data.dtype.kind not in "iu":
            raise self.model.error(f"{o.label} has no constant table of paddings")
        rows = table.data.tolist()
        if rows[0] != [0, 0] or rows[3] != [0, 0] or not all(0 <= n < 1 << 16 for row in rows for n in row):
            raise self.model.error(f"{o.label} pads by {rows}, expected zeros around the image only")
        return rows[1][0], rows[1][1], rows[2][0], rows[2][1]

    def finish(self) -> list[Seen]:
        """All layers, once the last one is known to be the output."""
        model = self.model
        if not self.seen or self.source.get(model.outputs[0]) != len(self.seen) - 1 or model.outputs[0] in self.pads:
            raise model.error("its output is not what its last layer computes")
        return self.seen


def _recipe(model: Model, image: Tensor, walk: _Walk, architecture: str, arguments: dict[str, object], notes: list[str]) -> Recipe:
    """Pixels 0..255 -> the network's input. A quantised input says it: the pixel is q, mean and std are zero point and 1/scale."""
    height, width = image.shape[1:3]
    q, stated = image.quantisation, tflite_metadata.normalisation(model)
    resize = "squash" if names.is_visual_wake_words(architecture, arguments) else "crop"
    if image.dtype in (np.uint8, np.int8) and q is not None and len(q.scale) == 1:
        pixel = int(q.zero_point[0]) + (128 if image.dtype == np.int8 else 0)
        scale = float(q.scale[0])
        if walk.scaled:  # scale * (pixel - zero point) is what the first operators see
            mean, std, _ = names.rescaled(walk.scale * scale, walk.offset - walk.scale * scale * pixel, True, model.error)
            notes.append("preprocessing from the quantisation of the input and the first operators")
            return Recipe(height, width, mean, std, resize)
        std = (float(f"{1 / scale:.6g}"),) * 3  # a float32 scale has no more digits
        notes.append("preprocessing from the quantisation of the input")
        return Recipe(height, width, (float(pixel),) * 3, std, resize)
    if image.dtype != np.float32:
        raise model.error(f"its input is {image.dtype}, expected float32, or uint8 or int8 with one scale")
    if walk.scaled:
        mean, std, whole = names.rescaled(walk.scale, walk.offset, False, model.error)
        note = f"preprocessing from the first operators, for pixels {'0 to 255' if whole else '/ 255'}"
        if stated is not None:  # Google's files with such a graph have metadata that says the same again
            same = all(np.allclose(a, b, rtol=1e-5) for a, b in zip(stated, (mean, std), strict=True))
            note += f"; the metadata says {'the same' if same else 'mean {}, std {}'.format(*(a.tolist() for a in stated))}"
            note += " and is not applied again"
        notes.append(note)
        return Recipe(height, width, mean, std, resize if whole else "squash")  # / 255: as TensorFlow Hub's tools feed such networks
    if stated is not None:
        notes.append("preprocessing from the file's metadata")
        (m0, m1, m2), (s0, s1, s2) = (np.broadcast_to(a, 3).tolist() for a in stated)
        return Recipe(height, width, (m0, m1, m2), (s0, s1, s2), resize)
    return names.usual_recipe(architecture, arguments, notes)
