"""The integer graph: the network as a microcontroller computes it, and its exact evaluation, the oracle for the emitted C.

In: tensors (shape, scale, zero point) and operations with int8 kernels, int32 biases and Q31 requantisation. Out: int8 values.
Every step is integer arithmetic with one possible result, so Python, Numba and C agree in every bit.

Construction proves what C relies on: shapes and dtypes agree, and no sum, partial sum or product ever leaves its 32 (or 64) bits,
whatever the image. A graph that cannot be proved is refused (MinitlError).

Left out: how a float graph becomes such a graph (quantize.py), where tensors live in memory (memory.py), how an op is written in
C (emit_c.py). An op appears in: a class here, a function in reference_int8.py and kernels_int8.py, an entry in emit_c.py and a kernel
in c/kernels.h.
"""

# ruff: noqa: D102  (check, run and macs of every op are documented once, at Op)

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import ClassVar

import numpy as np

from . import kernels_int8, reference_int8
from .errors import MinitlError
from .geometry import Padding, Pair, output_hw

SUM_LIMIT = 2**30 - 2**8
"""Every accumulator, shifted left for its requantisation, with either sign, stays below this: C doubles it in 32 bits, then adds twice
the zero point and 1."""

Q31 = 2**31
"""A multiplier counts in steps of 1 / Q31."""

IMAGES_AT_ONCE = 8
"""Images per kernel call in IntegerGraph.run: enough to hide Python, few enough for the cache."""


# ---- numbers -----------------------------------------------------------------------------------------------------------------


def quantise_multiplier(real: float) -> tuple[int, int]:
    """(multiplier, shift) with multiplier / 2**31 * 2**shift nearest to `real` >= 0; multiplier is 0 or 2**30 .. 2**31 - 1.

    TFLite's QuantizeMultiplier (tensorflow/lite/kernels/internal/quantization_util.cc): a positive shift is to the left; a real
    below 2**-32 flushes to (0, 0), since no rounding shift reaches that far.
    """
    if not (math.isfinite(real) and 0 <= real < 2.0**30):
        raise MinitlError(f"requantisation: expected a factor between 0 and 2**30, found {real!r}: check the scales of the tensors")
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * Q31 + 0.5)
    if multiplier == Q31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def quantise_multipliers(reals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """quantise_multiplier for every channel: two int32 arrays of the length of `reals`."""
    pairs = [quantise_multiplier(float(real)) for real in np.ravel(reals)]
    return np.array([m for m, _ in pairs], np.int32), np.array([s for _, s in pairs], np.int32)


@dataclass(frozen=True)
class Tensor:
    """A named int8 array: real = scale * (q - zero_point).

    shape: without the batch, (H, W, C) or (C,). scale: positive and finite; a float32 value where TFLite's bits are to be met.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if len(self.shape) not in (1, 3) or min(self.shape) < 1:
            raise MinitlError(f"tensor {self.name!r}: expected a shape (H, W, C) or (C,) of positive sizes, found {self.shape}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise MinitlError(f"tensor {self.name!r}: expected a positive scale, found {self.scale!r}")
        if not -128 <= self.zero_point <= 127:
            raise MinitlError(f"tensor {self.name!r}: expected a zero point in -128..127, found {self.zero_point!r}")

    @property
    def size(self) -> int:
        """Number of values, which is the number of bytes."""
        return math.prod(self.shape)

    @property
    def quantisation(self) -> tuple[float, int]:
        """(scale, zero_point)."""
        return self.scale, self.zero_point


# ---- operations --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Op:
    """What all operations have: a name for people, the names of the tensors that enter, the name of the one that leaves.

    Each kind adds its fields and says three things: check() refuses what cannot be computed exactly, returning the shape that
    leaves; run() computes with the functions of `kernels` (reference_int8 or kernels_int8); macs() counts multiplications.
    `ins` and `out` are the tensors, `arrays` their values with the batch in front.
    """

    kind: ClassVar[str] = ""
    arity: ClassVar[int | None] = 1

    name: str
    inputs: tuple[str, ...]
    output: str

    def check(self, ins: list[Tensor], out: Tensor) -> tuple[int, ...]:
        """The shape that leaves; MinitlError where shapes, dtypes or ranges are wrong."""
        raise AssertionError(f"{type(self).__name__} says nothing of this")

    def run(self, kernels: ModuleType, arrays: list[np.ndarray], ins: list[Tensor], out: Tensor) -> np.ndarray:
        """The output (N, ...) int8 of inputs (N, ...) int8."""
        raise AssertionError(f"{type(self).__name__} says nothing of this")

    def macs(self, ins: list[Tensor], out: Tensor) -> int:
        """Multiplications with a weight, for one image."""
        return 0

    def fail(self, message: str) -> MinitlError:
        """The error for this op, named."""
        return MinitlError(f"{self.kind} {self.name!r}: {message}")

    def require_image(self, tensor: Tensor) -> tuple[int, int, int]:
        """The shape (H, W, C) of a tensor that must have one."""
        if len(tensor.shape) != 3:
            raise self.fail(f"expected an input of shape (H, W, C), found {tensor.name!r} of shape {tensor.shape}")
        return tensor.shape[0], tensor.shape[1], tensor.shape[2]

    def require_same_quantisation(self, ins: list[Tensor], out: Tensor) -> None:
        """Ops that move or compare q need one scale and one zero point for all."""
        for tensor in ins:
            if tensor.quantisation != out.quantisation:
                raise self.fail(
                    f"expected input {tensor.name!r} on the scale and zero point of the output, {out.quantisation}, found "
                    f"{tensor.quantisation}: put a 'requantise' in between"
                )

    def require_range(self, act_min: int, act_max: int) -> None:
        """A clamp within int8."""
        if not -128 <= act_min <= act_max <= 127:
            raise self.fail(f"expected -128 <= act_min <= act_max <= 127, found {act_min} and {act_max}")

    def require_requantisation(self, largest: np.ndarray, multiplier: np.ndarray, shift: np.ndarray) -> None:
        """Proves that values of at most `largest` in absolute value (one per channel, exact ints), shifted left, stay below SUM_LIMIT."""
        if int(multiplier.min()) < 0 or int(multiplier.max()) >= Q31:
            raise self.fail(f"expected multipliers in 0..2**31 - 1, found {multiplier.min()} .. {multiplier.max()}")
        if int(shift.min()) < -31 or int(shift.max()) > 30:
            raise self.fail(f"expected shifts in -31..30, found {shift.min()} .. {shift.max()}")
        for channel, (bound, left) in enumerate(zip(largest.tolist(), np.maximum(shift, 0).tolist(), strict=True)):
            if bound << left >= SUM_LIMIT:
                raise self.fail(
                    f"channel {channel} can reach {bound} * 2**{left}, which does not fit 31 bits: what it adds up is too large "
                    "for the scale of the output; retrain or recalibrate"
                )


@dataclass(frozen=True, eq=False)
class Weighted(Op):
    """Conv2D, DepthwiseConv2D and Dense: acc = bias + sum((kernel - kernel_zero) * (q - in_zero)); out = clamp(requantise(acc) + out_zero).

    kernel: int8, output channel last. kernel_zero: what a weight of 0 is in it; other than 0 only in networks that come from uint8.
    bias: int32 (O,), at scale in * kernel. multiplier, shift: int32 (O,), see
    quantise_multipliers(scale_in * kernel_scales / scale_out); a positive shift is to the left.
    act_min, act_max: clamp of the output in int8; that is all that is left of an activation such as ReLU6.
    """

    kernel: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    act_min: int = field(default=-128, kw_only=True)
    act_max: int = field(default=127, kw_only=True)
    kernel_zero: int = field(default=0, kw_only=True)

    def check_parameters(self, rank: int, in_zero: int) -> None:
        """Dtypes, shapes and the proof that no sum gets too large, with in_zero folded into the bias or not, kernel_zero apart or not."""
        self.require_range(self.act_min, self.act_max)
        if not -128 <= self.kernel_zero <= 127:
            raise self.fail(f"expected a kernel_zero in -128..127, found {self.kernel_zero!r}")
        if self.kernel.dtype != np.int8 or self.kernel.ndim != rank:
            raise self.fail(f"expected an int8 kernel of {rank} axes, found {self.kernel.dtype} {self.kernel.shape}")
        channels = self.kernel.shape[-1]
        for name in ("bias", "multiplier", "shift"):
            array = getattr(self, name)
            if array.dtype != np.int32 or array.shape != (channels,):
                raise self.fail(f"expected {name} int32 of shape ({channels},), found {array.dtype} {array.shape}")
        weights = (np.abs(self.kernel.astype(np.int64)) + abs(self.kernel_zero)).reshape(-1, channels).sum(0)
        self.require_requantisation(np.abs(self.bias.astype(np.int64)) + weights * (128 + abs(in_zero)), self.multiplier, self.shift)
        if ((self.multiplier > 0) & (self.multiplier < Q31 // 2)).any():
            raise self.fail("expected multipliers of 0 or at least 2**30, as quantise_multipliers() makes them: the C kernels count on it")


@dataclass(frozen=True, eq=False)
class Conv2D(Weighted):
    """kernel (kh, kw, C, O). strides (down, across). padding (top, bottom, left, right) with real zeros."""

    kind: ClassVar[str] = "conv2d"
    strides: Pair = field(default=(1, 1), kw_only=True)
    padding: Padding = field(default=(0, 0, 0, 0), kw_only=True)

    def check(self, ins: list[Tensor], out: Tensor) -> tuple[int, ...]:
        h, w, c = self.require_image(ins[0])
        self.check_parameters(4, ins[0].zero_point)
        if self.kernel.shape[2] != c:
            raise self.fail(f"kernel {self.kernel.shape} expects {self.kernel.shape[2]} input channels, found {c}")
        return (*_window_hw(self, h, w, self.kernel.shape[:2], self.strides, self.padding), self.kernel.shape[3])

    def run(self, kernels: ModuleType, arrays: list[np.ndarray], ins: list[Tensor], out: Tensor) -> np.ndarray:
        return kernels.conv2d(
            arrays[0], self.kernel, self.bias, self.multiplier, self.shift, self.strides, self.padding,
            ins[0].zero_point, self.kernel_zero, out.zero_point, self.act_min, self.act_max,
        )  # fmt: skip

    def macs(self, ins: list[Tensor], out: Tensor) -> int:
        return out.shape[0] * out.shape[1] * self.kernel.size


@dataclass(frozen=True, eq=False)
class DepthwiseConv2D(Weighted):
    """kernel (kh, kw, C): each channel by itself (depth multiplier 1). strides and padding as in Conv2D."""

    kind: ClassVar[str] = "depthwise_conv2d"
    strides: Pair = field(default=(1, 1), kw_only=True)
    padding: Padding = field(default=(0, 0, 0, 0), kw_only=True)

    def check(self, ins: list[Tensor], out: Tensor) -> tuple[int, ...]:
        h, w, c = self.require_image(ins[0])
        self.check_parameters(3, ins[0].zero_point)
        if self.kernel.shape[2] != c:
            raise self.fail(f"kernel {self.kernel.shape} expects {self.kernel.shape[2]} channels, found {c}")
        return (*_window_hw(self, h, w, self.kernel.shape[:2], self.strides, self.padding), c)

    def run(self, kernels: ModuleType, arrays: list[np.ndarray], ins: list[Tensor], out: Tensor) -> np.ndarray:
        return kernels.depthwise_conv2d(
            arrays[0], self.kernel, self.bias, self.multiplier, self.shift, self.strides, self.padding,
            ins[0].zero_point, self.kernel_zero, out.zero_point, self.act_min, self.act_max,
        )  # fmt: skip

    def macs(self, ins: list[Tensor], out: Tensor) -> int:
        return out.shape[0] * out.shape[1] * self.kernel.size


@dataclass(frozen=True, eq=False)
class Dense(Weighted):
    """kernel (I, O); the input has shape (I,) (put a Reshape before it where it has not), the output (O,)."""

    kind: ClassVar[str] = "dense"

    def check(self, ins: list[Tensor], out: Tensor) -> tuple[int, ...]:
        self.check_parameters(2, ins[0].zero_point)
        if ins[0].shape != (self.kernel.shape[0],):
            raise self.fail(f"kernel {self.kernel.shape} expects an input of shape ({self.kernel.shape[0]},), found {ins[0].shape}")
        return (self.kernel.shape[1],)

    def run(self, kernels: ModuleType, arrays: list[np.ndarray], ins: list[Tensor], out: Tensor) -> np.ndarray:
        return kernels.dense(
            arrays[0], self.kernel, self.bias, self.multiplier, self.shift,
            ins[0].zero_point, self.kernel_zero, out.zero_point, self.act_min, self.act_max,
        )  # fmt: skip

    def macs(self, ins: list[Tensor], out: Tensor) -> int:
        return self.kernel.size


@dataclass(frozen=True, eq=False)
class Pool(Op):
    """AveragePool and MaxPool: window (kh, kw), strides, padding, clamp; input and output share scale and zero point.

    Padded pixels take no part: an average divides by the number of real pixels under the window. Padding is smaller than the window.
    """

    window: Pair
    strides: Pair
    padding: Padding = (0, 0, 0, 0)
    act_min: int = -128
    act_max: int = 127

    def check(self, ins: list[Tensor], out: Tensor) -> tuple[int, ...]:
        h, w, c = self.require_image(ins[0])
        self.require_range(self.act_min, self.act_max)
        self.require_same_quantisation(ins, out)
        top, bottom, left, right = self.padding
        hw = _window_hw(self, h, w, self.window, self.strides, self.padding)
        if max(top, bottom) >= self.window[0] or max(left, right) >= self.window[1]:
            raise self.fail(f"expected a padding smaller than the window {self.window}, found {self.padding}: a window would hold no pixel")
        if self.window[0] * self.window[1] * 256 >= SUM_LIMIT:
            raise self.fail(f"the window {self.window} is too large for a 32-bit sum")
        return (*hw, c)


class AveragePool(Pool):
    """Mean of each window, rounded half away from zero."""

    kind: ClassVar[str] = "average_pool"

    def run(self, kernels: ModuleType, arrays: list[np.ndarray], ins: list[Tensor], out: Tensor) -> np.ndarray:
        return kernels.average_pool(arrays[0], self.window, self.strides, self.padding, self.act_min, self.act_max)


class MaxPool(Pool):
    """Largest value of each window."""

    kind: ClassVar[str] = "max_pool"

    def run(self, kernels: ModuleType, arrays: list[np.ndarray], ins: list[Tensor], out: Tensor) -> np.ndarray:
        return kernels.max_pool(arrays[0], self.window, self.strides, self.padding, self.act_min, self.act_max)


@dataclass(frozen=True, eq=False)
class GlobalMean(Op):
    """(H, W, C) -> (C,): requantise(sum(q - in_zero)) + out_zero, with an output scale of its own.

    multiplier, shift: mean_parameters(scale_in, scale_out, H * W).
    """

    kind: ClassVar[str] = "global_mean"
    multiplier: int
    shift: int

    def check(self, ins: list[Tensor], out: Tensor) -> tuple[int, ...]:
        h, w, c = self.require_image(ins[0])
        self.require_requantisation(np.array([h * w * (128 + abs(ins[0].zero_point))]), np.array([self.multiplier]), np.array([self.shift]))
        return (c,)

    def run(self, kernels: ModuleType, arrays: list[np.ndarray], ins: list[Tensor], out: Tensor) -> np.ndarray:
        return kernels.global_mean(arrays[0], self.multiplier, self.shift, ins[0].zero_point, out.zero_point)


def mean_parameters(scale_in: float, scale_out: float, count: int) -> tuple[int, int]:
    """(multiplier, shift) of GlobalMean over `count` pixels, TFLite's way: the factor is quantised first, then divided by count.

    (QuantizedMeanOrSum in tensorflow/lite/kernels/internal/reference/reduce.h; the quotient is truncated, so that the multiplier
    can lie below 2**30.)
    """
    multiplier, shift = quantise_multiplier(scale_in / scale_out)
    finer = min(count.bit_length() - 1, 32, 31 + shift)
    return (multiplier << finer) // count, shift - finer


@dataclass(frozen=True, eq=False)
class Add(Op):
    """a + b of one shape; see add_parameters() for multipliers and shifts (first input, second input, output; shifts <= 0)."""

    kind: ClassVar[str] = "add"
    arity: ClassVar[int | None] = 2
    multipliers: tuple[int, int, int]
    shifts: tuple[int, int, int]
    act_min: int = -128
    act_max: int = 127

    def check(self, ins: list[Tensor], out: Tensor) -> tuple[int, ...]:
        self.require_range(self.act_min, self.act_max)
        if ins[0].shape != ins[1].shape:
            raise self.fail(f"expected two inputs of one shape, found {ins[0].shape} and {ins[1].shape}")
        if max(self.shifts) > 0:
            raise self.fail(f"expected shifts of at most 0, found {self.shifts}: the output's scale is too fine for its inputs")
        # An input is at most 255 * 2**20, and no larger after a factor below 1: a sum of two stays below 2**29.
        self.require_requantisation(np.array([255 << 20, 255 << 20, 255 << 21]), np.array(self.multipliers), np.array(self.shifts))
        return ins[0].shape

    def run(self, kernels: ModuleType, arrays: list[np.ndarray], ins: list[Tensor], out: Tensor) -> np.ndarray:
        zeros = (ins[0].zero_point, ins[1].zero_point, out.zero_point)
        return kernels.add(arrays[0], arrays[1], self.multipliers, self.shifts, zeros, self.act_min, self.act_max)


def add_parameters(scale_a: float, scale_b: float, scale_out: float) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """(multipliers, shifts) of Add, TFLite's way: both inputs go to a scale of twice the larger one, 2**20 times finer.

    (tensorflow/lite/kernels/add.cc, Prepare; factors of the inputs are at most 1/2, so that their sum cannot overflow.)
    """
    common = 2 * max(scale_a, scale_b)
    pairs = [quantise_multiplier(real) for real in (scale_a / common, scale_b / common, common / (2**20 * scale_out))]
    return (pairs[0][0], pairs[1][0], pairs[2][0]), (pairs[0][1], pairs[1][1], pairs[2][1])


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """Inputs one after the other along the channels; all share the output's scale and zero point."""

    kind: ClassVar[str] = "concat"
    arity: ClassVar[int | None] = None

    def check(self, ins: list[Tensor], out: Tensor) -> tuple[int, ...]:
        self.require_same_quantisation(ins, out)
        if len({tensor.shape[:-1] for tensor in ins}) != 1:
            raise self.fail(f"expected inputs that differ in channels only, found {[tensor.shape for tensor in ins]}")
        return (*ins[0].shape[:-1], sum(tensor.shape[-1] for tensor in ins))

    def run(self, kernels: ModuleType, arrays: list[np.ndarray], ins: list[Tensor], out: Tensor) -> np.ndarray:
        return np.concatenate(arrays, -1)


@dataclass(frozen=True, eq=False)
class Reshape(Op):
    """The same values in the same order under the output's shape; flattening is (H, W, C) -> (H * W * C,). Costs nothing in C."""

    kind: ClassVar[str] = "reshape"

    def check(self, ins: list[Tensor], out: Tensor) -> tuple[int, ...]:
        self.require_same_quantisation(ins, out)
        if ins[0].size != out.size:
            raise self.fail(f"cannot give {ins[0].size} values the shape {out.shape}")
        return out.shape

    def run(self, kernels: ModuleType, arrays: list[np.ndarray], ins: list[Tensor], out: Tensor) -> np.ndarray:
        return arrays[0].reshape(len(arrays[0]), *out.shape)


@dataclass(frozen=True, eq=False)
class Pad(Op):
    """Real zeros, that is the zero point, around an image: padding (top, bottom, left, right). One scale and zero point for both."""

    kind: ClassVar[str] = "pad"
    padding: Padding

    def check(self, ins: list[Tensor], out: Tensor) -> tuple[int, ...]:
        h, w, c = self.require_image(ins[0])
        self.require_same_quantisation(ins, out)
        return (*_window_hw(self, h, w, (1, 1), (1, 1), self.padding), c)

    def run(self, kernels: ModuleType, arrays: list[np.ndarray], ins: list[Tensor], out: Tensor) -> np.ndarray:
        top, bottom, left, right = self.padding
        return np.pad(arrays[0], ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=out.zero_point)


@dataclass(frozen=True, eq=False)
class Requantise(Op):
    """The same values on another scale and zero point, clamped: a ReLU by itself is one of these.

    multiplier, shift: quantise_multiplier(scale_in / scale_out). act_min, act_max: as in Weighted.
    """

    kind: ClassVar[str] = "requantise"
    multiplier: int
    shift: int
    act_min: int = -128
    act_max: int = 127

    def check(self, ins: list[Tensor], out: Tensor) -> tuple[int, ...]:
        self.require_range(self.act_min, self.act_max)
        self.require_requantisation(np.array([128 + abs(ins[0].zero_point)]), np.array([self.multiplier]), np.array([self.shift]))
        return ins[0].shape

    def run(self, kernels: ModuleType, arrays: list[np.ndarray], ins: list[Tensor], out: Tensor) -> np.ndarray:
        return kernels.rescale(arrays[0], self.multiplier, self.shift, ins[0].zero_point, out.zero_point, self.act_min, self.act_max)


OPS: tuple[type[Op], ...] = (
    Conv2D, DepthwiseConv2D, Dense, AveragePool, MaxPool, GlobalMean, Add, Concat, Reshape, Pad, Requantise,
)  # fmt: skip
"""Every kind of operation; tests hold the list of C kernels against it."""


def _window_hw(op: Op, height: int, width: int, window: Sequence[int], strides: Pair, padding: Padding) -> Pair:
    """geometry.output_hw with the op's name in its errors."""
    if len(window) != 2 or len(strides) != 2 or len(padding) != 4 or min(*window, *strides) < 1 or min(padding) < 0:
        raise op.fail(f"expected window and strides of at least 1 and four paddings of at least 0, found {window}, {strides}, {padding}")
    try:
        return output_hw(height, width, (window[0], window[1]), strides, padding)
    except ValueError as error:
        raise op.fail(str(error)) from None


# ---- the graph ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class IntegerGraph:
    """tensors: all of them by name, the input's and every op's output. ops: in an order in which inputs come before their use.

    input, output: names of the tensors that the caller gives and gets. watched: one that is read after a run, too; "": none.
    """

    tensors: dict[str, Tensor]
    ops: tuple[Op, ...]
    input: str
    output: str
    watched: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ops", tuple(self.ops))
        for name, tensor in self.tensors.items():
            if name != tensor.name:
                raise MinitlError(f"integer graph: tensor {tensor.name!r} is filed under {name!r}")
        if self.input not in self.tensors:
            raise MinitlError(f"integer graph: the input {self.input!r} is not among the tensors")
        ready = {self.input}
        for op in self.ops:
            if (op.arity is not None and len(op.inputs) != op.arity) or not op.inputs:
                raise op.fail(f"expected {op.arity or 'at least 1'} input(s), found {len(op.inputs)}")
            for name in op.inputs:
                if name not in ready:
                    raise op.fail(f"input {name!r} is not computed before it")
            if op.output not in self.tensors or op.output in ready:
                raise op.fail(f"output {op.output!r} is {'computed twice' if op.output in ready else 'not among the tensors'}")
            ins, out = self.ends(op)
            shape = op.check(ins, out)
            if tuple(shape) != out.shape:
                raise op.fail(f"output {out.name!r} is declared {out.shape} but would be {tuple(shape)}")
            ready.add(op.output)
        if self.output not in ready:
            raise MinitlError(f"integer graph: the output {self.output!r} is never computed")
        if self.watched and self.watched not in ready - {self.input}:
            raise MinitlError(f"integer graph: {self.watched!r} is to be read after a run, but no op computes it")
        if unused := sorted(set(self.tensors) - ready):
            raise MinitlError(f"integer graph: tensors that no op computes: {', '.join(unused[:5])}")

    def ends(self, op: Op) -> tuple[list[Tensor], Tensor]:
        """(input tensors, output tensor) of an op."""
        return [self.tensors[name] for name in op.inputs], self.tensors[op.output]

    def run(self, x: np.ndarray, plain: bool = False) -> np.ndarray:
        """Logits int8 (N, *output shape) of images int8 (N, H, W, C); plain=True uses NumPy instead of Numba, same bits."""
        self._check_input(x)
        batches = [self._run(x[i : i + IMAGES_AT_ONCE], plain, keep=False)[self.output] for i in range(0, len(x), IMAGES_AT_ONCE)]
        return np.concatenate(batches) if batches else np.zeros((0, *self.tensors[self.output].shape), np.int8)

    def run_all(self, x: np.ndarray, plain: bool = False) -> dict[str, np.ndarray]:
        """Like run, but every tensor by name, int8 (N, ...): for looking at layers; the memory grows with the batch."""
        self._check_input(x)
        return self._run(x, plain, keep=True)

    def _run(self, x: np.ndarray, plain: bool, keep: bool) -> dict[str, np.ndarray]:
        kernels = reference_int8 if plain else kernels_int8
        values = {self.input: np.ascontiguousarray(x)}
        last_use = {name: i for i, op in enumerate(self.ops) for name in op.inputs}
        for i, op in enumerate(self.ops):
            values[op.output] = op.run(kernels, [values[name] for name in op.inputs], *self.ends(op))
            for name in set(op.inputs) if not keep else ():
                if last_use[name] == i and name != self.output:
                    del values[name]
        return values

    def _check_input(self, x: np.ndarray) -> None:
        expected = self.tensors[self.input].shape
        if x.dtype != np.int8 or x.shape[1:] != expected:
            raise MinitlError(
                f"integer graph: expected int8 images of shape (N, {', '.join(map(str, expected))}), found {x.dtype} {x.shape}: "
                "quantise photos with Recipe.quantise_pixels"
            )

    def macs(self) -> int:
        """Multiplications with a weight, for one image."""
        return sum(op.macs(*self.ends(op)) for op in self.ops)

    def digest(self) -> str:
        """sha256, in hex, of everything that decides the output: equal digests compute equal logits on every machine."""
        sha = hashlib.sha256(repr((self.input, self.output, sorted(map(repr, self.tensors.values())))).encode())
        for op in self.ops:
            for entry in fields(op):
                value = getattr(op, entry.name)
                sha.update(f"{op.kind} {entry.name} ".encode())
                if isinstance(value, np.ndarray):
                    sha.update(f"{value.dtype.str} {value.shape} ".encode() + np.ascontiguousarray(value).tobytes())
                else:
                    sha.update(repr(value).encode())
        return sha.hexdigest()
