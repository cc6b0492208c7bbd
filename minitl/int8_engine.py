"""Runs an integer network as fast as the processor can, with the bits of IntegerGraph.run.

    engine = make(graph)
    logits = engine.run(images)[graph.output]

In: an IntegerGraph (integer.py) and the tensors that are wanted. Out: these for images (N, H, W, C) int8, int8 as well. program.py plans
and runs, fast/integers.py does the work; its head says how values are kept: as pairs (int16) or, where the processor multiplies bytes, as
quads. Weights are packed once: (outputs / LANES, rows of the window, groups of products, LANES, products in a group).

What is not done here falls back to IntegerGraph.run as a whole (`make` chooses; MINITL_ENGINE=plain forces it): requantisations that shift
so far to the left that doubled weights leave int16 (pairs), and weights that leave int8 without their zero point (quads).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from . import integer
from .errors import MinitlError
from .integer import AveragePool, Conv2D, Dense, DepthwiseConv2D, GlobalMean, IntegerGraph, Op, Pool, Tensor, Weighted
from .native import DOT, LANES, load, plain
from .program import Plan, Program, Unsupported, filled, image_shape

FIELDS = (
    "kind source target height width channels out_height out_width outputs kernel_height kernel_width stride_y stride_x top left "
    "weights numbers bounds residual depth at extra outside"
).split()
KINDS = "convert frame conv pointwise depthwise window average maximum mean add rescale place reshape take".split()
"""Fields of a row and kinds of operations, see fast/integers.py."""

BATCH = 32
"""Images that callers with many hand over at a time: enough for all threads, few enough for the memory."""

GROUP, BYTE_OFFSET, _ = DOT
KEPT = np.int16 if GROUP == 2 else np.uint8 if BYTE_OFFSET else np.int8


def offset(tensor: Tensor) -> int:
    """What a kept value is above the tensor's q."""
    return -tensor.zero_point if GROUP == 2 else BYTE_OFFSET


def zero(tensor: Tensor) -> int:
    """What stands for a real zero."""
    return tensor.zero_point + offset(tensor)


def spread(values: Sequence[int] | np.ndarray, channels: int) -> np.ndarray:
    """(channels or 1,) -> (filled,) int64, zeros behind, one value for all."""
    found = np.zeros(filled(channels), np.int64)
    found[: channels if np.size(values) > 1 else None] = values
    return found


def blocks(bias: np.ndarray, multiplier: np.ndarray, shift: np.ndarray, doubling: np.ndarray) -> np.ndarray:
    """All (filled channels,) int64 -> the blocks of requantisation (panels, 8, LANES) int32 of fast/integers.py."""
    right = np.maximum(-shift, 0)
    half = np.where(right > 0, 1 << np.maximum(right - 1, 0), 0)
    panel = lambda values: values.reshape(-1, LANES)  # noqa: E731
    found = np.zeros((len(bias) // LANES, 8, LANES), np.int32)
    found[:, 0], found[:, 1], found[:, 2] = panel(bias), panel(doubling), panel(multiplier)
    found[:, 3, ::2] = panel(multiplier)[:, 1::2]
    rounding = panel(((half - 1) << 32) + (1 << 31))
    found[:, 4], found[:, 5] = (np.ascontiguousarray(rounding[:, odd::2]).view(np.int32) for odd in (0, 1))
    found[:, 6] = panel(np.where(right > 0, half - 2, -(2**31)))
    found[:, 7] = panel(right)
    return found


class Planner:
    """Writes the Plan of a graph, operation by operation."""

    def __init__(self, graph: IntegerGraph, wanted: Sequence[str]) -> None:
        self.graph, self.wanted, self.plan = graph, wanted, Plan(FIELDS, KINDS, KEPT)
        self.values: dict[str, int] = {}  # tensor -> its value

    def write(self) -> Plan:
        """The whole program."""
        needed = set(self.wanted)
        for op in reversed(self.graph.ops):
            needed |= set(op.inputs) if op.output in needed else set()
        for op in self.graph.ops:
            if op.output in needed:
                self._operation(op, *self.graph.ends(op))
        for number, name in enumerate(self.wanted, 1):
            if name != self.graph.input:
                tensor = self.graph.tensors[name]
                h, w, c = image_shape(tensor.shape)
                self.plan.row(
                    "take", self.values[name], -1, out_height=h, out_width=w, channels=filled(c), depth=c, at=number, extra=offset(tensor)
                )
        return self.plan

    def _operation(self, op: Op, ins: list[Tensor], out: Tensor) -> None:
        plan, one = self.plan, ins[0]
        (h, w, c), (oh, ow, o) = image_shape(one.shape), image_shape(out.shape)
        if isinstance(op, integer.Reshape):
            source = self._source(one)
            if (h, w, c) == (oh, ow, o) or (filled(c) == c and filled(o) == o):
                self.values[out.name] = source
                return
            plan.row("reshape", source, self._target(out), height=h, width=w, channels=filled(c), out_height=oh, out_width=ow,
                     outputs=filled(o), depth=c, extra=o, at=math.gcd(c, o))  # fmt: skip
            return
        common = {"height": h, "width": w, "channels": filled(c), "out_height": oh, "out_width": ow, "outputs": filled(o)}
        common["bounds"] = self._bounds(out, getattr(op, "act_min", -128), getattr(op, "act_max", 127))
        if isinstance(op, Conv2D | Dense):
            self._convolution(op, one, out, common)
        elif isinstance(op, DepthwiseConv2D):
            self._depthwise(op, one, out, common)
        elif isinstance(op, Pool):
            window = {"kernel_height": op.window[0], "kernel_width": op.window[1], "stride_y": op.strides[0], "stride_x": op.strides[1]}
            source, kind = self._source(one), "average" if isinstance(op, AveragePool) else "maximum"
            plan.row(kind, source, self._target(out), top=op.padding[0], left=op.padding[2], at=offset(out), **window, **common)
        elif isinstance(op, GlobalMean):
            source, numbers = self._source(one), self._scalar(-h * w * zero(one), op.multiplier, op.shift, o)
            plan.row("mean", source, self._target(out), numbers=numbers, kernel_height=h, kernel_width=w, stride_y=1, stride_x=1, **common)
        elif isinstance(op, integer.Requantise):
            source, numbers = self._source(one), self._scalar(-zero(one), op.multiplier, op.shift, LANES)
            plan.row("rescale", source, self._target(out), numbers=numbers, **common)
        elif isinstance(op, integer.Add):
            source, other = self._source(one), self._source(ins[1])
            lifts = [(-zero(one), 21), (-zero(ins[1]), 21), (0, 1)]
            parts = [
                blocks(*(spread([v], LANES) for v in (bias, op.multipliers[i], op.shifts[i], lift))) for i, (bias, lift) in enumerate(lifts)
            ]
            plan.row("add", source, self._target(out), other, numbers=plan.constant(np.concatenate(parts)), **common)
        elif isinstance(op, integer.Concat):
            sources, at = [self._source(tensor) for tensor in ins], 0
            target = self._target(out)
            for source, tensor in zip(sources, ins, strict=True):
                depth = tensor.shape[-1]
                plan.row("place", source, target, **{**common, "channels": filled(depth)}, depth=depth, at=at)
                at += depth
        elif isinstance(op, integer.Pad):
            self.values[out.name] = self._frame(one, op.padding)
        else:
            raise Unsupported(f"an operation {type(op).__name__}")

    # ---- products

    def _convolution(self, op: Conv2D | Dense, one: Tensor, out: Tensor, common: dict[str, int]) -> None:
        h, w, c = image_shape(one.shape)
        kernel = op.kernel if isinstance(op, Conv2D) else op.kernel[None, None]
        kh, kw, _, outputs = kernel.shape
        (sy, sx), padding = (op.strides, op.padding) if isinstance(op, Conv2D) else ((1, 1), (0, 0, 0, 0))
        channels = filled(c)
        if (kh, kw, sy, sx) == (1, 1, 1, 1) and not any(padding):
            source, kind = self._source(one), "pointwise"
        else:
            kind, raw = "conv", one.name == self.graph.input
            channels = c if raw else channels
            source = self._images(padding) if raw else self._frame(one, padding) if any(padding) else self._source(one)
            common |= {"height": h + padding[0] + padding[1], "width": w + padding[2] + padding[3], "channels": channels}
        weights, numbers = self._numbers(op, one, kernel)
        inputs = c if kind == "pointwise" else kw * channels
        depth = -(-inputs // GROUP)
        full = np.zeros((kh, kw, channels if kind == "conv" else c, filled(outputs)), np.int64)
        full[:, :, :c, :outputs] = weights
        packed = np.zeros((kh, depth * GROUP, filled(outputs)), np.int16 if GROUP == 2 else np.int8)
        packed[:, :inputs] = full.reshape(kh, inputs, -1)
        packed = packed.reshape(kh, depth, GROUP, -1, LANES).transpose(3, 0, 1, 4, 2)
        self.plan.row(kind, source, self._target(out), weights=self.plan.constant(packed), numbers=numbers, depth=depth, kernel_height=kh,
                      kernel_width=kw, stride_y=sy, stride_x=sx, **common)  # fmt: skip

    def _depthwise(self, op: DepthwiseConv2D, one: Tensor, out: Tensor, common: dict[str, int]) -> None:
        h, w, c = image_shape(one.shape)
        (kh, kw, _), (sy, sx), (top, _, left, _) = op.kernel.shape, op.strides, op.padding
        weights, numbers = self._numbers(op, one, op.kernel)
        full = np.zeros((kh, kw, filled(c)), np.int64)
        full[:, :, :c] = weights
        right = (out.shape[1] - 1) * sx - left + 3 - w
        strides = {"stride_y": sy, "stride_x": sx}
        if (kh, kw) == (3, 3) and sy == sx <= 2 and left <= 1 and right <= 1 and w >= 3:
            rows = -(-3 // GROUP) * GROUP
            packed = np.zeros((rows, 3, filled(c)), np.int16 if GROUP == 2 else np.int8)
            packed[:3] = full
            packed = packed.reshape(rows // GROUP, GROUP, 3, -1, LANES).transpose(
                3, 2, 0, 4, 1
            )  # panels, columns, groups, lanes, rows in a group
            outside = self.plan.constant(np.full(w * filled(c), zero(one), KEPT))
            source = self._source(one)
            self.plan.row("depthwise", source, self._target(out), weights=self.plan.constant(packed), numbers=numbers, outside=outside,
                          top=top, left=left, **strides, **common)  # fmt: skip
            return
        source = self._frame(one, op.padding) if any(op.padding) else self._source(one)
        if any(op.padding):
            common |= {"height": h + op.padding[0] + op.padding[1], "width": w + op.padding[2] + op.padding[3]}
        self.plan.row("window", source, self._target(out), weights=self.plan.constant(full.astype(np.int32)), numbers=numbers,
                      kernel_height=kh, kernel_width=kw, **strides, **common)  # fmt: skip

    def _numbers(self, op: Weighted, one: Tensor, kernel: np.ndarray) -> tuple[np.ndarray, int]:
        """(weights int64, ready to be packed; address of the blocks of requantisation)."""
        outputs = kernel.shape[-1]
        weights, bias = kernel.astype(np.int64) - op.kernel_zero, op.bias.astype(np.int64)
        left = np.maximum(op.shift, 0).astype(np.int64) + 1
        if GROUP == 2:
            weights, bias, left = weights << left, bias << left, np.zeros_like(left)
            if weights.min(initial=0) < -(2**15) or weights.max(initial=0) >= 2**15:
                raise Unsupported(f"{op.name}: weights shifted to the left beyond 16 bits")
        else:
            if weights.min(initial=0) < -128 or weights.max(initial=0) > 127:
                raise Unsupported(f"{op.name}: weights without their zero point beyond 8 bits")
            bias = bias - weights.reshape(-1, outputs).sum(0) * zero(one)
            bias = (bias + 2**31) % 2**32 - 2**31  # sums are right modulo 2**32, and in the end they fit
        parts = (bias, op.multiplier.astype(np.int64), op.shift.astype(np.int64), left)
        return weights, self.plan.constant(blocks(*(spread(part, outputs) for part in parts)))

    def _scalar(self, bias: int, multiplier: int, shift: int, channels: int) -> int:
        """Address of blocks that are the same for all channels."""
        parts = ([bias], [multiplier], [shift], [max(shift, 0) + 1])
        return self.plan.constant(blocks(*(spread(part, channels) for part in parts)))

    def _bounds(self, out: Tensor, act_min: int, act_max: int) -> int:
        return self.plan.constant(np.array([zero(out), act_min + offset(out), act_max + offset(out)], np.int32))

    # ---- values

    def _source(self, tensor: Tensor) -> int:
        """The value of a tensor; the images themselves are first copied into the block."""
        if tensor.name not in self.values:
            h, w, c = image_shape(tensor.shape)
            raw = self._images((0, 0, 0, 0))
            target = self._target(tensor)
            self.plan.row("place", raw, target, out_height=h, out_width=w, outputs=filled(c), channels=c, depth=c)
        return self.values[tensor.name]

    def _target(self, tensor: Tensor) -> int:
        h, w, c = image_shape(tensor.shape)
        self.values[tensor.name] = self.plan.value((h, w, filled(c)))
        return self.values[tensor.name]

    def _frame(self, tensor: Tensor, padding: tuple[int, int, int, int]) -> int:
        """A copy of a value with zeros around it."""
        return self._framed("frame", tensor, self._source(tensor), filled(image_shape(tensor.shape)[2]), padding)

    def _images(self, padding: tuple[int, int, int, int]) -> int:
        """The images, as they are kept, with zeros around them; channels are not filled up."""
        tensor = self.graph.tensors[self.graph.input]
        return self._framed("convert", tensor, -1, image_shape(tensor.shape)[2], padding)

    def _framed(self, kind: str, tensor: Tensor, source: int, channels: int, padding: tuple[int, int, int, int]) -> int:
        h, w, _ = image_shape(tensor.shape)
        top, bottom, left, right = padding
        frame = self.plan.value((h + top + bottom, w + left + right, channels))
        self.plan.row(kind, source, frame, height=h, width=w, out_height=h + top + bottom, out_width=w + left + right, depth=channels,
                      top=top, left=left, at=offset(tensor), extra=zero(tensor) if GROUP == 4 else 0)  # fmt: skip
        return frame


class Engine(Program):
    """See the head of this file. threads: how many at most, default those of the machine."""

    def __init__(self, graph: IntegerGraph, wanted: Iterable[str] = (), threads: int | None = None) -> None:
        tensors = {name: graph.tensors[name].shape for name in (list(dict.fromkeys(wanted)) or [graph.output])}
        plan = Planner(graph, list(tensors)).write()
        super().__init__(
            plan, load("integers").run, np.int8, (graph.input, graph.tensors[graph.input].shape), tensors, graph.macs(), threads
        )


class Plain:
    """The same by IntegerGraph.run."""

    def __init__(self, graph: IntegerGraph, wanted: Iterable[str] = ()) -> None:
        self.graph, self.wanted = graph, list(wanted) or [graph.output]

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """(N, H, W, C) int8 -> {wanted tensor: (N, ...) int8}."""
        if self.wanted == [self.graph.output]:
            return {self.graph.output: self.graph.run(images)}
        found = self.graph.run_all(images)
        return {name: found[name] for name in self.wanted}


def make(graph: IntegerGraph, wanted: Iterable[str] = (), threads: int | None = None) -> Engine | Plain:
    """The fastest engine that can run this graph here. wanted: tensors, default the output."""
    wanted = list(wanted)
    if not plain():
        try:
            return Engine(graph, wanted, threads)
        except (Unsupported, MinitlError):
            pass
    return Plain(graph, wanted)
