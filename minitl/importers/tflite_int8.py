"""A quantised .tflite file -> the integer graph that it is, every value as TensorFlow Lite computes it.

Enters: the bytes of a file, which may be hostile. Leaves: IntegerModel: the IntegerGraph, the preprocessing that the input's quantisation
gives, class names, notes for the user. int8 files (weights per channel or per tensor) and uint8 files (per tensor; q and weights become
q - 128). Softmax and the conversions between float and int8 at both ends are left out: the graph answers logits. Left out for good: float
networks and those whose weights alone are quantised (`minitl train` quantises such), 16-bit and 4-bit values, dilation, control flow.

The parameters are computed as in tensorflow/lite/kernels (kernel_util.cc, activations.cc, quantize.cc), some of them in float32.
Against LiteRT 2.3.0 with its reference kernels every value is equal (four published networks, 59 million values), except:
- FULLY_CONNECTED: LiteRT rounds once there, TensorFlow Lite's kernels and we twice. 46 of 144,000 random outputs differ, by one step.
- AVERAGE_POOL_2D of uint8 whose halves are rounded up there, where a note says so: windows with an even number of pixels or with padding
  that are not the whole image after a ReLU. Up to a tenth of the outputs differ, by one step.
CONCATENATION of several scales, which LiteRT computes in float, did not differ in 76,800 outputs.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import integer
from ..errors import MinitlError
from ..geometry import Padding, Pair, resolve
from ..images import Recipe
from ..integer import IntegerGraph, Op, quantise_multiplier, quantise_multipliers
from ..reference_int8 import requantise
from . import tflite, tflite_metadata
from .tflite import Model, Operator, Tensor

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
SUPPORTED = (
    *WEIGHTED, "AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "ADD", "CONCATENATION", "PAD", "RESHAPE", "SQUEEZE", "SOFTMAX", "QUANTIZE",
    "DEQUANTIZE", "RELU", "RELU6",
)  # fmt: skip

LARGEST_VALUE = 1 << 24
"""Bytes of the largest tensor between two layers; more is no network for a microcontroller."""

IMAGENET = (1000, 1001)
"""Numbers of classes of networks that are trained on centre crops; others get the whole picture."""

RETRAIN = "give it to `minitl train --weights`, which quantises it, or convert it anew with full integer quantisation"


@dataclass(frozen=True)
class IntegerModel:
    """What a file holds. recipe: None where the input is no picture of three channels. classes: None where the file names none.

    provenance: format, file, sha256. notes: sentences for the user on what was left out or assumed.
    """

    graph: IntegerGraph
    recipe: Recipe | None
    classes: list[str] | None
    provenance: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def read(data: bytes, what: str) -> IntegerModel:
    """The integer network in the bytes of a .tflite file called `what`. Raises MinitlError, and nothing else, where it cannot be."""
    model = tflite.parse(data, what)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise model.error(f"has {len(model.inputs)} inputs and {len(model.outputs)} outputs, expected one of each")
    reader = _Reader(model)
    for operator in model.operators:
        try:
            reader.operator(operator)
        except MinitlError as problem:
            text = str(problem)
            raise (problem if text.startswith(model.name) else model.error(f"{operator.label}: {text}")) from None
    try:
        graph = reader.finish()
    except MinitlError as problem:
        raise (problem if str(problem).startswith(model.name) else model.error(str(problem))) from None
    answers = graph.tensors[graph.output].size
    classes = tflite_metadata.labels(data, model, answers, reader.notes)
    recipe = _recipe(graph, answers, reader.notes)
    provenance = {"format": "tflite", "file": what, "sha256": hashlib.sha256(data).hexdigest()}
    return IntegerModel(graph, recipe, classes, provenance, reader.notes)


def _recipe(graph: IntegerGraph, answers: int, notes: list[str]) -> Recipe | None:
    """q is the pixel - 128: mean and std are the zero point and 1 / scale."""
    image = graph.tensors[graph.input]
    if len(image.shape) != 3 or image.shape[2] != 3:
        notes.append(f"its input has shape {image.shape} and is no colour picture: preprocessing is up to you")
        return None
    mean, std = float(image.zero_point + 128), float(f"{1 / image.scale:.6g}")  # 127.5 where float32 made it 127.4999924
    if not math.isclose(1 / std, image.scale, rel_tol=5e-7):
        std = float(f"{1 / image.scale:.9g}")
    resize = "crop" if answers in IMAGENET else "squash"
    try:
        recipe = Recipe(image.shape[0], image.shape[1], (mean,) * 3, (std,) * 3, resize)
        scale, zero = recipe.input_quantisation
    except MinitlError:  # sizes and scales that no picture has
        scale, zero = 0.0, 0
    if zero != image.zero_point or not math.isclose(scale, image.scale, rel_tol=1e-6):
        notes.append(f"no pixels give an input of scale {image.scale:.6g} and zero point {image.zero_point}: preprocessing is up to you")
        return None
    how = "the centre is cut out" if resize == "crop" else "the whole picture is squashed to size"
    notes.append(f"preprocessing from the quantisation of the input: a value is the pixel - 128; assumed: {how}")
    return recipe


@dataclass(frozen=True)
class _Scale:
    """A value's quantisation, in int8 terms: real = scale * (q - zero); offset: what was taken from the file's q and zero point."""

    scale: np.float32
    zero: int
    offset: int

    def steps(self, real: float) -> int:
        """`real` in steps, in float32, halves away from zero; at most what a clamp can ask for."""
        with np.errstate(over="ignore"):
            ratio = float(np.float32(real) / self.scale)
        return int(math.copysign(min(math.floor(abs(ratio) + 0.5), 1 << 20), ratio))

    def clamp(self, activation: str) -> Pair:
        """(act_min, act_max) of a fused activation (CalculateActivationRangeQuantized in kernel_util.cc)."""
        low, high = {"relu": (0, None), "relu6": (0, 6), "relu_n1_to_1": (-1, 1)}.get(activation, (None, None))
        return (
            -128 if low is None else max(-128, self.zero + self.steps(low)),
            127 if high is None else min(127, self.zero + self.steps(high)),
        )


class _Reader:
    """The loop over the operators."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.tensors: dict[str, integer.Tensor] = {}
        self.ops: list[Op] = []
        self.makers: dict[str, Op] = {}  # by the tensor that they compute
        self.notes: list[str] = []
        self.value: dict[int, str] = {}  # tensor of the file -> tensor of the graph
        self.real: set[int] = set()  # tensors in float: the input before its QUANTIZE, the output after its DEQUANTIZE
        self.padded: dict[int, Padding] = {}  # outputs of PADs that belong to the convolution that follows
        self.readers = Counter(i for o in model.operators for i in o.inputs) + Counter(model.outputs)
        self.reader = {i: o for o in model.operators for i in o.inputs}  # the last one
        self.numbers = 0  # taken from constants so far
        self.ended: str | None = None
        image = model.tensors[model.inputs[0]]
        if image.data is not None:
            raise model.error("its input is a constant")
        if image.dtype == np.float32:
            self.real.add(image.index)
            self.input: str | None = None
        else:
            self.input = self._new(image, self._scale(image, "its input"))

    # ---- values --------------------------------------------------------------------------------------------------------------

    def _scale(self, tensor: Tensor, who: str) -> _Scale:
        """The quantisation of a value."""
        model, q = self.model, tensor.quantisation
        if tensor.dtype is not None and tensor.dtype.kind == "f":
            raise model.error(f"{who} is computed in float, expected int8 or uint8: {RETRAIN}")
        if tensor.dtype not in (np.int8, np.uint8):
            raise model.error(f"{who} is of type {tensor.dtype or 'unknown'}, expected int8 or uint8: convert it anew with 8-bit values")
        if q is None or len(q.scale) != 1:
            raise model.error(f"{who} has {0 if q is None else len(q.scale)} scales, expected one")
        offset = 128 if tensor.dtype == np.uint8 else 0
        zero = int(q.zero_point[0]) - offset
        if not -128 <= zero <= 127:
            raise model.error(f"{who} has the zero point {zero + offset}, which {tensor.dtype} cannot hold")
        return _Scale(q.scale[0], zero, offset)

    def _shape(self, tensor: Tensor, who: str) -> tuple[int, ...]:
        """Without the batch, which is 1."""
        shape = tensor.shape
        if not (len(shape) == 1 or (len(shape) in (2, 4) and shape[0] == 1)) or min(shape) < 1 or math.prod(shape) > LARGEST_VALUE:
            raise self.model.error(
                f"{who} has shape {shape}, expected (1, height, width, channels) or (1, numbers): a batch of 1, at most {LARGEST_VALUE}"
            )
        return shape if len(shape) == 1 else shape[1:]

    def _new(self, tensor: Tensor, scale: _Scale, shape: tuple[int, ...] | None = None, suffix: str = "", like: str | None = None) -> str:
        """Name of a new tensor of the graph; without a suffix it is the value of the file's tensor.

        like: a tensor whose scale it takes where both agree within TFLite's tolerance for operators that move q.
        """
        found = shape or self._shape(tensor, f"tensor {tensor.index}")
        name, real = f"t{tensor.index}{suffix}", float(scale.scale)
        if like is not None and self.tensors[like].zero_point == scale.zero and abs(self.tensors[like].scale - real) <= 1e-6:
            real = self.tensors[like].scale
        self.tensors[name] = integer.Tensor(name, found, real, scale.zero)
        if not suffix:
            self.value[tensor.index] = name
        return name

    def _source(self, o: Operator, i: int = 0, padded: bool = False) -> tuple[str, _Scale]:
        """(name, quantisation) of a computed input of an operator. padded: the operator takes care of a PAD before it."""
        at = o.inputs[i] if i < len(o.inputs) else -1
        if at >= 0 and at not in self.value and self.model.tensors[at].data is not None:
            raise self.model.error(f"{o.label} has a constant for its input {i}, expected a value that is computed")
        if at in self.real:
            kernel = self.model.tensors[o.inputs[1]] if o.kind in WEIGHTED and len(o.inputs) > 1 and o.inputs[1] >= 0 else None
            if kernel is not None and kernel.dtype in (np.int8, np.uint8):
                raise self.model.error(f"{o.label} computes in float, only the weights are quantised (dynamic range): {RETRAIN}")
            raise self.model.error(f"{o.label} reads floats, expected int8 or uint8: {RETRAIN}")
        if at not in self.value or (at in self.padded and not padded):
            raise self.model.error(f"{o.label} reads tensor {at}, which nothing before it computes")
        return self.value[at], self._scale(self.model.tensors[at], f"the input of {o.label}")

    def _output(self, o: Operator, source: _Scale) -> tuple[Tensor, _Scale]:
        """The tensor that an operator computes; of the type of its input."""
        out = self.model.tensors[o.outputs[0]]
        scale = self._scale(out, f"the output of {o.label}")
        if scale.offset != source.offset:
            raise self.model.error(f"{o.label} reads and computes values of two types, expected int8 or uint8 throughout")
        return out, scale

    def _constant(self, o: Operator, i: int, what: str) -> Tensor:
        at = o.inputs[i] if i < len(o.inputs) else -1
        tensor = self.model.tensors[at] if at >= 0 else None
        if tensor is None or tensor.data is None or at in self.value:
            raise self.model.error(f"{o.label} has no constant {what} (computed, sparse or of an unknown type)")
        self.numbers += tensor.data.size
        if self.numbers > 8 * self.model.size:  # a small file must not become large arrays
            raise self.model.error("is damaged: its operators share their kernels")
        return tensor

    def _push(self, kind: type[Op], o: Operator, inputs: tuple[str, ...], output: str, *parameters: Any, **more: Any) -> None:
        self._add(kind(f"{kind.kind}_{o.index}", inputs, output, *parameters, **more))

    def _add(self, op: Op) -> None:
        self.ops.append(op)
        self.makers[op.output] = op

    # ---- operators -----------------------------------------------------------------------------------------------------------

    def operator(self, o: Operator) -> None:
        """Take one operator."""
        model, kind = self.model, o.kind
        if kind not in SUPPORTED:
            raise model.error(f"{o.label} is not supported; supported are {', '.join(SUPPORTED)}")
        if (
            not o.inputs
            or len(o.outputs) != 1
            or o.outputs[0] in self.value
            or o.outputs[0] in self.real
            or self._is_constant(o.outputs[0])
        ):
            raise model.error(f"{o.label} has {len(o.inputs)} inputs and {len(o.outputs)} outputs, or computes what is there already")
        if self.ended:
            if kind not in ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE") or o.inputs[0] not in self.value:
                raise model.error(f"{o.label} comes after {self.ended}, expected the end of the network there")
            self.value[o.outputs[0]] = self.value[o.inputs[0]]
        elif kind in WEIGHTED:
            self._weighted(o)
        elif kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
            self._pool(o)
        elif kind == "ADD":
            self._sum(o)
        elif kind in ("RESHAPE", "SQUEEZE"):
            self._check_shape(o)
            source, scale = self._source(o)
            self._reshape(o, source, *self._output(o, scale))
        else:
            getattr(self, f"_{kind.lower()}")(o)

    def _check_shape(self, o: Operator) -> None:
        """The constant shape of a RESHAPE, which TensorFlow Lite follows, must be the one that its output has in the file."""
        constant = self.model.tensors[o.inputs[1]].data if len(o.inputs) > 1 and o.inputs[1] >= 0 else None
        if constant is None:
            return
        asked, shape = constant.ravel().tolist(), self.model.tensors[o.outputs[0]].shape
        if len(asked) != len(shape) or any(n not in (-1, size) for n, size in zip(asked, shape, strict=True)):
            raise self.model.error(f"{o.label} is to make the shape {asked[:8]}, but its output has the shape {shape}")

    def _is_constant(self, at: int) -> bool:
        return self.model.tensors[at].data is not None

    def _strides(self, o: Operator, window: Pair) -> Pair:
        strides = o.options["stride_h"], o.options["stride_w"]
        if min(*strides, *window) < 1:
            raise self.model.error(f"{o.label} has strides {strides} and a window of {window}, expected at least 1")
        return strides

    def _weighted(self, o: Operator) -> None:
        """Kernels: CONV_2D (O, kh, kw, I) -> (kh, kw, I, O); DEPTHWISE (1, kh, kw, C) -> (kh, kw, C); FULLY_CONNECTED (O, I) -> (I, O)."""
        model, options = self.model, o.options
        source, scale = self._source(o, padded=o.kind != "FULLY_CONNECTED")
        out, out_scale = self._output(o, scale)
        weights = self._constant(o, 1, "kernel")
        q = weights.quantisation
        axes, channel = {"CONV_2D": (4, 0), "DEPTHWISE_CONV_2D": (4, 3), "FULLY_CONNECTED": (2, 0)}[o.kind]
        assert weights.data is not None
        if weights.data.dtype != (np.uint8 if scale.offset else np.int8) or weights.data.ndim != axes or q is None:
            raise model.error(
                f"{o.label} has a kernel of {weights.data.dtype} and shape {weights.shape}, expected {axes} axes and the type of its input"
            )
        if 0 in weights.shape or (len(q.scale) > 1 and (q.axis != channel or scale.offset or q.zero_point.any())):
            raise model.error(
                f"{o.label} has an empty kernel, or one scaled along another axis than its outputs or with zero points of their own"
            )
        kernel_zero = int(q.zero_point[0]) - scale.offset
        if not -128 <= kernel_zero <= 127 or (kernel_zero and not scale.offset and o.kind != "FULLY_CONNECTED"):
            raise model.error(f"{o.label} has a kernel with the zero point {int(q.zero_point[0])}")
        kernel = (weights.data ^ np.uint8(128)).view(np.int8) if scale.offset else weights.data
        outputs = weights.shape[channel]
        # one scale for all outputs: the product is taken in float32 (GetQuantizedConvolutionMultipler), except in int8 convolutions
        if len(q.scale) == 1 and (scale.offset or o.kind == "FULLY_CONNECTED"):
            with np.errstate(over="ignore"):
                products = np.full(outputs, scale.scale * q.scale[0], np.float64)
        else:
            products = np.broadcast_to(np.float64(scale.scale) * q.scale.astype(np.float64), (outputs,))
        multiplier, shift = quantise_multipliers(products / np.float64(out_scale.scale))
        bias = np.zeros(outputs, np.int32)
        if len(o.inputs) > 2 and o.inputs[2] >= 0:
            given = self._constant(o, 2, "bias").data
            assert given is not None
            if given.dtype != np.int32 or given.shape != (outputs,):
                raise model.error(f"{o.label} has {outputs} outputs and a bias of {given.dtype} and shape {given.shape}, expected int32")
            bias = given.astype(np.int32)
        low, high = out_scale.clamp(options["activation"])
        kind: type[integer.Weighted]
        more: dict[str, Any] = {"act_min": low, "act_max": high, "kernel_zero": kernel_zero}
        shape = self.tensors[source].shape
        if o.kind == "FULLY_CONNECTED":
            if options["weights_format"] != 0:
                raise model.error(f"{o.label} has shuffled weights")
            kind, kernel = integer.Dense, kernel.T
            source = self._reshape(o, source, model.tensors[o.inputs[0]], scale, (math.prod(shape),), f"_flat_{o.index}")
        else:
            if (options["dilation_h"], options["dilation_w"]) != (1, 1):
                raise model.error(f"{o.label} is dilated, which is not supported: convert the network without dilation")
            window = (weights.shape[1], weights.shape[2])
            strides = self._strides(o, window)
            if len(shape) != 3:
                raise model.error(f"{o.label} reads values of shape {shape}, expected an image")
            height, width, channels = shape
            if o.kind == "CONV_2D":
                kind, kernel = integer.Conv2D, kernel.transpose(1, 2, 3, 0)
            elif weights.shape[0] != 1 or (channels != 1 and outputs != channels):
                raise model.error(
                    f"{o.label} has a kernel of shape {weights.shape} for {channels} channels, expected (1, height, width, {channels}): "
                    "it multiplies its channels, which is not supported"
                )
            elif outputs != channels:  # of one channel it is a convolution
                kind, kernel = integer.Conv2D, kernel.transpose(1, 2, 0, 3)
            else:
                kind, kernel = integer.DepthwiseConv2D, kernel[0]
            pads = self.padded.get(o.inputs[0]) or resolve(options["padding"], height, width, window, strides)
            more.update(strides=strides, padding=pads)
        arrays = _settle(np.ascontiguousarray(kernel), bias, multiplier, shift, scale.zero, out_scale.zero, more)
        if kind is integer.Dense and self._shape(out, f"the output of {o.label}") != (outputs,):
            output = self._new(out, out_scale, (outputs,), "_row")
            self._push(kind, o, (source,), output, *arrays, **more)
            self._reshape(o, output, out, out_scale)
        else:
            self._push(kind, o, (source,), self._new(out, out_scale), *arrays, **more)

    def _pool(self, o: Operator) -> None:
        """uint8 averages round halves up, int8 ones away from zero: GlobalMean with a shift of 0 does the former."""
        source, scale = self._source(o)
        out, out_scale = self._output(o, scale)
        if len(self.tensors[source].shape) != 3:
            raise self.model.error(f"{o.label} reads values of shape {self.tensors[source].shape}, expected an image")
        height, width, channels = self.tensors[source].shape
        window = (o.options["filter_height"], o.options["filter_width"])
        strides = self._strides(o, window)
        pads = resolve(o.options["padding"], height, width, window, strides)
        clamp = out_scale.clamp(o.options["activation"])
        if o.kind == "MAX_POOL_2D":
            self._push(integer.MaxPool, o, (source,), self._new(out, out_scale, like=source), window, strides, pads, *clamp)
            return
        count = math.prod(window)
        if scale.offset and (count % 2 == 0 or any(pads)):
            exact = scale.zero == -128 or count & (count - 1) == 0
            if window == (height, width) and not any(pads) and clamp == (-128, 127) and exact and count <= 2048:
                flat = self._new(out, out_scale, (channels,), "_row", source)
                self._push(integer.GlobalMean, o, (source,), flat, -(-integer.Q31 // count), 0)
                self._reshape(o, flat, out, out_scale)
                return
            self.notes.append(f"{o.label}: halves are rounded away from the middle, not up: LiteRT may be one step higher")
        self._push(integer.AveragePool, o, (source,), self._new(out, out_scale, like=source), window, strides, pads, *clamp)

    def _mean(self, o: Operator) -> None:
        source, scale = self._source(o)
        out, out_scale = self._output(o, scale)
        axes = self._constant(o, 1, "list of axes").data
        shape = self.tensors[source].shape
        assert axes is not None
        if axes.dtype.kind != "i" or len(shape) != 3 or sorted(int(a) % 4 for a in axes.reshape(-1)[:8]) != [1, 2]:
            raise self.model.error(f"{o.label} is not over height and width, the only axes that are supported")
        flat = self._new(out, out_scale, (shape[2],), "_row")
        parameters = integer.mean_parameters(float(scale.scale), float(out_scale.scale), shape[0] * shape[1])
        self._push(integer.GlobalMean, o, (source,), flat, *parameters)
        self._reshape(o, flat, out, out_scale)

    def _sum(self, o: Operator) -> None:
        (one, scale), (two, other) = self._source(o, 0), self._source(o, 1)
        out, out_scale = self._output(o, scale)
        if other.offset != scale.offset or self.tensors[one].shape != self.tensors[two].shape:
            raise self.model.error(
                f"{o.label} adds values of shapes {self.tensors[one].shape} and {self.tensors[two].shape} or of two types, expected alike"
            )
        parameters = integer.add_parameters(float(scale.scale), float(other.scale), float(out_scale.scale))
        self._push(integer.Add, o, (one, two), self._new(out, out_scale), *parameters, *out_scale.clamp(o.options["activation"]))

    def _concatenation(self, o: Operator) -> None:
        sources = [self._source(o, i) for i in range(len(o.inputs))]
        out, out_scale = self._output(o, sources[0][1])
        axis = o.options["axis"]
        if axis not in (-1, len(out.shape) - 1) or o.options["activation"] != "linear":
            raise self.model.error(f"{o.label} is along axis {axis} or has an activation, expected the channels (the last axis) and none")
        names = []
        for i, (source, scale) in enumerate(sources):
            if scale.offset != out_scale.offset:
                raise self.model.error(f"{o.label} joins values of two types, expected int8 or uint8 throughout")
            if (scale.scale, scale.zero) != (out_scale.scale, out_scale.zero):
                self.notes.append(f"{o.label}: input {i} is brought to the scale of the output in integers; LiteRT does it in float")
                name = self._new(self.model.tensors[o.inputs[i]], out_scale, self.tensors[source].shape, f"_{o.index}_{i}")
                factor = float(scale.scale) / float(out_scale.scale)
                # shifted by 0 it is rounded once, as a float is
                numbers = (math.floor(factor * integer.Q31 + 0.5), 0) if factor < 1 else quantise_multiplier(factor)
                self._add(integer.Requantise(f"requantise_{o.index}_{i}", (source,), name, *numbers))
                source = name
            names.append(source)
        self._push(integer.Concat, o, tuple(names), self._new(out, out_scale))

    def _pad(self, o: Operator) -> None:
        """A PAD that one unpadded convolution alone reads is part of that convolution."""
        source, scale = self._source(o)
        out, out_scale = self._output(o, scale)
        table = self._constant(o, 1, "table of paddings").data
        assert table is not None
        if table.shape != (4, 2) or table.dtype.kind != "i" or len(self.tensors[source].shape) != 3:
            raise self.model.error(f"{o.label} has no table of paddings for the four axes of an image")
        rows = table.tolist()
        if rows[0] != [0, 0] or rows[3] != [0, 0] or not all(0 <= n < 1 << 16 for row in rows for n in row):
            raise self.model.error(f"{o.label} pads by {rows}, expected zeros around the height and the width only")
        padding = (*rows[1], *rows[2])
        reader = self.reader.get(out.index)
        moves = (
            reader is not None and reader.kind in WEIGHTED[:2] and reader.options["padding"] == "valid" and reader.inputs[0] == out.index
        )
        same = (out_scale.scale, out_scale.zero) == (scale.scale, scale.zero)
        if moves and same and self.readers[out.index] == 1 and any(padding):
            self.value[out.index], self.padded[out.index] = source, padding
        else:
            self._push(integer.Pad, o, (source,), self._new(out, out_scale, like=source), padding)

    def _relu(self, o: Operator) -> None:
        """The factor is a quotient of float32 (activations.cc)."""
        source, scale = self._source(o)
        out, out_scale = self._output(o, scale)
        with np.errstate(over="ignore"):
            factor = float(scale.scale / out_scale.scale)
        clamp = out_scale.clamp(o.kind.lower())
        self._push(integer.Requantise, o, (source,), self._new(out, out_scale), *quantise_multiplier(factor), *clamp)

    _relu6 = _relu

    def _softmax(self, o: Operator) -> None:
        """Dropped; read() sees to it that nothing else follows."""
        at = o.inputs[0]
        if at not in self.real:
            self._source(o)
        elif at not in self.value:
            raise self.model.error(f"{o.label} reads tensor {at}, which nothing before it computes")
        self.value[o.outputs[0]], self.ended = self.value[at], "SOFTMAX"
        self.notes.append("softmax left out: the header answers logits; the largest is the same")

    def _quantize(self, o: Operator) -> None:
        out = self.model.tensors[o.outputs[0]]
        if o.inputs[0] in self.real and o.inputs[0] not in self.value and self.input is None:
            self.input = self._new(out, self._scale(out, f"the output of {o.label}"))
            if math.prod(out.shape) != math.prod(self.model.tensors[o.inputs[0]].shape):
                raise self.model.error(f"{o.label} changes the shape of the input")
            self.notes.append("the conversion of the input from float is left out: the header takes int8")
            return
        source, scale = self._source(o)
        out_scale = self._scale(out, f"the output of {o.label}")
        if (scale.scale, scale.zero) == (out_scale.scale, out_scale.zero):
            self.value[out.index] = source
        else:
            factor = float(scale.scale) / float(out_scale.scale)
            self._push(integer.Requantise, o, (source,), self._new(out, out_scale), *quantise_multiplier(factor))

    def _dequantize(self, o: Operator) -> None:
        at, out = o.inputs[0], o.outputs[0]
        if at >= 0 and at not in self.value and self._is_constant(at):
            raise self.model.error(f"{o.label} turns constants into floats: the network computes in float; {RETRAIN}")
        self.value[out] = self._source(o)[0]
        self.real.add(out)
        self.notes.append("the conversion of the output to float is left out: the header answers int8")

    def _reshape(
        self, o: Operator, source: str, tensor: Tensor, scale: _Scale, shape: tuple[int, ...] | None = None, suffix: str = ""
    ) -> str:
        """A new tensor with the values of `source`; its name, which is another's where there is nothing to do."""
        maker = self.makers.get(source)
        if isinstance(maker, integer.Reshape):  # a Reshape of a Reshape is one
            source = maker.inputs[0]
        name = self._new(tensor, scale, shape, suffix, source)
        if (self.tensors[source].shape, self.tensors[source].quantisation) != (self.tensors[name].shape, self.tensors[name].quantisation):
            self._add(integer.Reshape(f"reshape_{o.index}{suffix}", (source,), name))
            return name
        del self.tensors[name]
        if not suffix:
            self.value[tensor.index] = source
        return source

    # ---- the whole -----------------------------------------------------------------------------------------------------------

    def finish(self) -> IntegerGraph:
        """The graph of what leads to the output."""
        model, at = self.model, self.model.outputs[0]
        if self.input is None or at not in self.value or at in self.padded or not self.ops:
            raise model.error("its output is not what its last layer computes, or it has no layer")
        output = self.value[at]
        wanted, ops = {output}, []
        for op in reversed(self.ops):
            if op.output in wanted:
                wanted.update(op.inputs)
                ops.append(op)
        if not ops or self.input not in wanted:
            raise model.error("its output does not depend on its input")
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in wanted}
        if len(tensors[output].shape) != 1:
            last = tensors[output]
            tensors["logits"] = integer.Tensor("logits", (last.size,), last.scale, last.zero_point)
            ops.insert(0, integer.Reshape("reshape_logits", (output,), "logits"))
            output = "logits"
        return IntegerGraph(tensors, tuple(reversed(ops)), self.input, output)


def _settle(
    kernel: np.ndarray, bias: np.ndarray, multiplier: np.ndarray, shift: np.ndarray, zero: int, out_zero: int, more: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(kernel, bias, multiplier, shift) whose sums stay below integer.SUM_LIMIT, with the same answers.

    A converter gives channels without weights the largest bias that it can, 2**30 (666 channels of the person detector of MLPerf Tiny).
    A channel that has one answer for every input gets the bias that gives it, and no weights. IntegerGraph refuses the others.
    """
    k = kernel.reshape(-1, kernel.shape[-1]).astype(np.int64)
    left = np.maximum(shift, 0).astype(np.int64)
    bound = np.abs(bias.astype(np.int64)) + (np.abs(k) + abs(more["kernel_zero"])).sum(0) * (128 + abs(zero))
    for c in np.flatnonzero(bound >= integer.SUM_LIMIT >> left):
        ends = (k[:, c, None] - more["kernel_zero"]) * np.array([-128 - zero, 127 - zero])
        low, high = int(bias[c]) + int(ends.min(1).sum()), int(bias[c]) + int(ends.max(1).sum())
        if max(abs(low), abs(high)) << int(left[c]) >= 1 << 31:
            continue  # TensorFlow Lite's own sums overflow
        answers = np.clip(requantise(np.array([low, high]), multiplier[c], shift[c]) + out_zero, more["act_min"], more["act_max"])
        if answers[0] == answers[1]:
            if not kernel.flags.writeable:
                kernel, bias, multiplier, shift = kernel.copy(), bias.copy(), multiplier.copy(), shift.copy()
            kernel[..., c] = more["kernel_zero"]
            bias[c], multiplier[c], shift[c] = 2 * (int(answers[0]) - out_zero), 2**30, 0  # half of twice as much: no shift to the left
    return kernel, bias, multiplier, shift
