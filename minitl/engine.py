"""Runs a folded float graph as fast as the processor can: weights packed once, values in one block of memory, no Python per layer.

    logits = Values(graph).run(images)[graph.output]

In: a Graph, which is folded first (folding.py), and the nodes whose values are wanted. Out: these values for images (N, H, W, C), those
of Graph.evaluate up to rounding (every sum has another order). A value depends neither on the other images of a batch nor on the number
of threads. Images of a batch are divided among the threads; of a single large image, each layer is. fast/inference.py does the work.

Planner writes the program: one row of a table per operation, an activation or addition that follows a convolution within it, every value
at its place in the block, where those that are no longer read make room. Left out: training, float64, graphs that still have BatchNorm: for
these, with MINITL_ENGINE=plain, and where the kernels cannot be compiled, Graph.evaluate does it; `make` chooses.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from .errors import MinitlError
from .folding import count_readers, fold_to
from .graph import INPUT, Graph, Node
from .layers import Add, Array, AveragePool, Concat, Conv2D, Dense, DepthwiseConv2D, GlobalAveragePool, MaxPool, ReLU, ReLU6, Reshape
from .native import LANES, load, plain
from .program import Plan, Program, Unsupported, filled, image_shape
from .threads import threads as available

FIELDS = (
    "kind source target height width channels out_height out_width outputs kernel_height kernel_width stride_y stride_x top left "
    "weights bias bounds residual depth at extra scratch"
).split()
KINDS = "block stem frame conv pointwise depthwise average maximum add clamp place flatten take".split()
"""Fields of a row and kinds of operations, see fast/inference.py."""

PLACED = ("source", "target", "residual", "scratch")
"""Fields that are places in the block."""

WORTH_STRIPS = {3: 1_000_000, 2: 1_000_000}
STRIP = {3: 400_000, 2: 80_000}
"""{layers: bytes}: layers are done together, strip by strip, where the values between them are larger than the first; a strip of them has
the second. What fits into the second-level cache is as fast without."""


def panels(kernel: Array, channels: int) -> Array:
    """(kh, kw, I, O) -> (O / LANES, kh, kw * channels, LANES), zeros where channels or outputs are filled up."""
    kh, kw, inputs, outputs = kernel.shape
    full = kernel
    if (inputs, outputs) != (channels, filled(outputs)):
        full = np.zeros((kh, kw, channels, filled(outputs)), np.float32)
        full[:, :, :inputs, :outputs] = kernel
    return full.reshape(kh, kw * channels, -1, LANES).transpose(2, 0, 1, 3)


class FloatPlan(Plan):
    """A Plan of floats."""

    def __init__(self) -> None:
        super().__init__(FIELDS, KINDS, np.float32, PLACED)

    def vector(self, values: Array | None, size: int) -> int:
        """Address of values, or of zeros, filled up with zeros."""
        full = np.zeros(size, np.float32)
        if values is not None:
            full[: len(values)] = values
        return self.constant(full)

    def fuse(self, threads: int) -> None:
        """Do a depthwise convolution and its neighbours in strips, where what is between them is large: `block` of fast/inference.py."""
        names = [KINDS[row["kind"]] for row in self.rows]
        i = 0
        while i < len(self.rows):
            for layers in (["pointwise", "depthwise", "pointwise"], ["depthwise", "pointwise"]):
                parts = self.rows[i : i + len(layers)]
                alone = names[i : i + len(layers)] == layers and all(self._only(a, b) for a, b in itertools.pairwise(parts))
                if alone and (block := self._block(parts, threads)):
                    self.rows[i : i + len(layers)] = [block, *({**row, "source": -1, "target": -1, "residual": -1} for row in parts)]
                    names[i:i] = ["block"]
                    i += len(layers)
                    break
            i += 1

    def _block(self, parts: list[dict[str, int]], threads: int) -> dict[str, int] | None:
        """The row that does the rows `parts`; None where that is not worth it."""
        depthwise, last, layers = parts[-2], parts[-1], len(parts)
        expanded, after = (4 * depthwise[width] * depthwise["channels"] for width in ("width", "out_width"))
        before = expanded if layers == 3 else 0  # bytes of a row in front of the depthwise convolution that exist for its sake
        stride, window, height = depthwise["stride_y"], depthwise["kernel_height"], depthwise["out_height"]
        if after * height + before * depthwise["height"] <= WORTH_STRIPS[layers]:
            return None
        most = max(1, (STRIP[layers] - before * (window - stride)) // (after + stride * before))
        strip = -(-height // -(-height // most))
        extra = -(-(strip * after + ((strip - 1) * stride + window) * before) // 64) * 64
        self.sizes.append(extra * threads // 4)
        return {"kind": KINDS.index("block"), "source": parts[0]["source"], "target": last["target"], "residual": last["residual"],
                "channels": parts[0]["channels"], "scratch": len(self.sizes) - 1, "depth": layers, "at": strip, "extra": extra}  # fmt: skip

    def _only(self, first: dict[str, int], second: dict[str, int]) -> bool:
        """Whether the value of one operation is read by the other and by nobody else."""
        value = first["target"]
        return second["source"] == value and sum(value in (row["source"], row["residual"]) for row in self.rows) == 1


class Planner:
    """Writes the Plan of a graph, node by node."""

    def __init__(self, graph: Graph, wanted: Sequence[str]) -> None:
        self.graph, self.wanted, self.plan = graph, wanted, FloatPlan()
        self.nodes = graph.ancestors(set(wanted), {INPUT})
        self.readers = count_readers(graph, wanted)
        self.values: dict[str, int] = {}  # node -> its value

    def write(self) -> FloatPlan:
        """The whole program."""
        done: set[str] = set()
        for at, node in enumerate(self.nodes):
            if node.name not in done:
                done |= self._write(node, self.nodes[at + 1 :])
        for number, name in enumerate(self.wanted, 1):
            if name != INPUT:
                h, w, c = image_shape(self.graph.shapes[name])
                self.plan.row("take", self.values[name], -1, out_height=h, out_width=w, channels=filled(c), depth=c, at=number)
        return self.plan

    def _write(self, node: Node, following: list[Node]) -> set[str]:
        """The operation of a node and of those that it can do as well; -> their names."""
        chain = [node]
        plus: str | None = None
        low, high = -np.inf, np.inf
        while self.readers[chain[-1].name] == 1 and chain[-1].name not in self.wanted:
            reader = next((n for n in following if chain[-1].name in n.inputs), None)
            if reader is None:
                break
            last = isinstance(chain[-1].layer, ReLU | ReLU6)
            if isinstance(reader.layer, ReLU | ReLU6) and not last and not isinstance(node.layer, Reshape | Concat):
                low, high = 0.0, 6.0 if isinstance(reader.layer, ReLU6) else np.inf
            elif isinstance(reader.layer, Add) and len(chain) == 1 and isinstance(node.layer, Conv2D):
                other = [name for name in reader.inputs if name != node.name]
                if len(other) != 1 or other[0] not in self.values:
                    break
                plus = other[0]
            else:
                break
            chain.append(reader)
        if isinstance(node.layer, ReLU | ReLU6):
            low, high = 0.0, 6.0 if isinstance(node.layer, ReLU6) else np.inf
        names = {link.name for link in chain}
        self._operation(node, chain[-1].name, plus, self.plan.constant(np.array([low, high], np.float32)))
        return names

    def _operation(self, node: Node, result: str, plus: str | None, bounds: int) -> None:
        """Write one operation, whose value is that of the node `result`."""
        layer, plan, name = node.layer, self.plan, node.inputs[0]
        h, w, c = image_shape(self.graph.shapes[name])
        oh, ow, o = image_shape(self.graph.shapes[node.name])
        params = self.graph.params.get(node.name, {})
        if isinstance(layer, Reshape):
            if (h, w, c) == (oh, ow, o):
                self.values[result] = self._source(name)
                return
            if (oh, ow) != (1, 1):
                raise Unsupported(f"{type(layer).__name__} to {(oh, ow, o)}")
            if filled(c) == c:
                self.values[result] = self._source(name)
                return
        common = dict(height=h, width=w, channels=filled(c), out_height=oh, out_width=ow, outputs=filled(o), bounds=bounds)
        if isinstance(layer, Conv2D):
            kernel = params["kernel"]
            (kh, kw), (sy, sx), padding = layer.window, layer.strides, layer.pads((h, w, c))
            self._check(kernel, params)
            common |= {
                "kernel_height": kh,
                "kernel_width": kw,
                "stride_y": sy,
                "stride_x": sx,
                "bias": plan.vector(params.get("bias"), filled(o)),
            }
            residual = self._source(plus) if plus else -1
            if (kh, kw, sy, sx) == (1, 1, 1, 1) and not any(padding) and name != INPUT:
                source = self._source(name)
                target = self._target(result)
                plan.row("pointwise", source, target, residual, weights=plan.constant(panels(kernel, c)), depth=c, **common)
                return
            outside = (ow - 1) * 2 - padding[2] + 3 - w
            if (
                name == INPUT
                and c == 3
                and filled(o) == LANES
                and (kh, kw, sy, sx) == (3, 3, 2, 2)
                and padding[2] <= 1
                and outside <= 1
                and ow >= 12
                and not plus
            ):
                plan.row(
                    "stem", -1, self._target(result), top=padding[0], left=padding[2], weights=plan.constant(panels(kernel, 3)), **common
                )
                return
            channels, source = filled(c), self.values.get(name, -1)
            if any(padding) or name == INPUT:
                channels = c if name == INPUT else channels
                source = self._frame(name, padding)
                common |= {"height": h + padding[0] + padding[1], "width": w + padding[2] + padding[3], "channels": channels}
            target = self._target(result)
            plan.row("conv", source, target, residual, weights=plan.constant(panels(kernel, channels)), depth=kw * channels, **common)
        elif isinstance(layer, Dense):
            self._check(params["kernel"], params)
            kernel = params["kernel"][None, None]
            source, target = self._source(name), self._target(result)
            plan.row("pointwise", source, target, weights=plan.constant(panels(kernel, c)), depth=c,
                     bias=plan.vector(params.get("bias"), filled(o)), **common)  # fmt: skip
        elif isinstance(layer, DepthwiseConv2D):
            self._check(params["kernel"], params)
            kernel = np.zeros((*layer.window, filled(c)), np.float32)
            kernel[..., :c] = params["kernel"]
            (sy, sx), (top, _, left, _) = layer.strides, layer.pads((h, w, c))
            source, target = self._source(name), self._target(result)
            common |= {
                "kernel_height": layer.window[0],
                "kernel_width": layer.window[1],
                "stride_y": sy,
                "stride_x": sx,
                "top": top,
                "left": left,
            }
            plan.row("depthwise", source, target, weights=plan.constant(kernel), bias=plan.vector(params.get("bias"), filled(c)), **common)
        elif isinstance(layer, GlobalAveragePool | AveragePool | MaxPool):
            window, strides, (top, _, left, _) = (h, w), (1, 1), (0, 0, 0, 0)
            if not isinstance(layer, GlobalAveragePool):
                window, strides, (top, _, left, _) = layer.window, layer.strides, layer.pads((h, w, c))
            source, target = self._source(name), self._target(result)
            common |= {
                "kernel_height": window[0],
                "kernel_width": window[1],
                "stride_y": strides[0],
                "stride_x": strides[1],
                "top": top,
                "left": left,
            }
            plan.row("maximum" if isinstance(layer, MaxPool) else "average", source, target, **common)
        elif isinstance(layer, Add):
            source, other = self._source(name), self._source(node.inputs[1])
            plan.row("add", source, self._target(result), other, **common)
        elif isinstance(layer, ReLU | ReLU6):
            source = self._source(name)
            plan.row("clamp", source, self._target(result), **common)
        elif isinstance(layer, Concat):
            sources, at = [self._source(name) for name in node.inputs], 0
            target = self._target(result)
            for source, input_name in zip(sources, node.inputs, strict=True):
                depth = self.graph.shapes[input_name][-1]
                rest = filled(o) - o if at + depth == o else 0
                plan.row("place", source, target, at=at, depth=depth, extra=rest, **{**common, "channels": filled(depth)})
                at += depth
        elif isinstance(layer, Reshape):
            source = self._source(name)
            plan.row("flatten", source, self._target(result), depth=c, extra=filled(o) - o, **common)
        else:
            raise Unsupported(f"a layer {type(layer).__name__}")

    def _check(self, kernel: Array, params: dict[str, Array]) -> None:
        if any(array.dtype != np.float32 for array in params.values()):
            raise Unsupported(f"weights of type {kernel.dtype}")

    def _source(self, name: str) -> int:
        """The value of a node; the images themselves are first copied into the block."""
        if name == INPUT and INPUT not in self.values:
            h, w, c = image_shape(self.graph.shapes[INPUT])
            raw = self._frame(INPUT, (0, 0, 0, 0))
            self.values[INPUT] = self.plan.value((h, w, filled(c)))
            self.plan.row(
                "place", raw, self.values[INPUT], out_height=h, out_width=w, outputs=filled(c), channels=c, depth=c, extra=filled(c) - c
            )
        return self.values[name]

    def _target(self, name: str) -> int:
        h, w, c = image_shape(self.graph.shapes[name])
        self.values[name] = self.plan.value((h, w, filled(c)))
        return self.values[name]

    def _frame(self, name: str, padding: tuple[int, int, int, int]) -> int:
        """A copy of a value, or of the images, with zeros around it."""
        h, w, c = image_shape(self.graph.shapes[name])
        channels = c if name == INPUT else filled(c)
        top, bottom, left, right = padding
        source = -1 if name == INPUT else self.values[name]
        frame = self.plan.value((h + top + bottom, w + left + right, channels))
        self.plan.row("frame", source, frame, height=h, width=w, out_height=h + top + bottom, out_width=w + left + right, depth=channels,
                      top=top, left=left, extra=4 * h * w * channels)  # fmt: skip
        return frame


class Engine(Program):
    """See the head of this file. threads: how many at most, default those of the machine."""

    def __init__(self, graph: Graph, wanted: Iterable[str] = (), threads: int | None = None) -> None:
        shapes = {name: graph.shapes[name] for name in (list(dict.fromkeys(wanted)) or [graph.output])}
        nodes = Planner(graph, list(shapes))
        plan = nodes.write()
        plan.fuse(available() if threads is None else threads)
        macs = sum(node.layer.macs(*graph.input_shapes(node)) for node in nodes.nodes)
        zeros = np.zeros(max((row.get("width", 0) * row.get("channels", 0) for row in plan.rows), default=0), np.float32)
        super().__init__(plan, load("inference").run, np.float32, (INPUT, graph.input_shape), shapes, macs, threads, zeros)


class Plain:
    """The same with Graph.evaluate: any graph, any type of numbers."""

    def __init__(self, graph: Graph, wanted: Iterable[str] = ()) -> None:
        self.graph, self.wanted = graph, list(wanted) or [graph.output]

    def run(self, images: Array) -> dict[str, Array]:
        """(N, H, W, C) -> {wanted node: (N, ...)}, one image at a time, which takes little memory and no value depends on the others."""
        computed = [name for name in self.wanted if name != INPUT]
        values = {name: np.empty((len(images), *self.graph.shapes[name]), images.dtype) for name in computed}
        for i in range(len(images) if computed else 0):
            for name, value in self.graph.evaluate(images[i : i + 1], computed).items():
                values[name][i] = value[0]
        return {name: values.get(name, images) for name in self.wanted}


def make(graph: Graph, wanted: Iterable[str] = (), threads: int | None = None) -> Engine | Plain:
    """The fastest engine that can run this folded graph here."""
    wanted = list(wanted)
    if not plain() and graph.arrays():
        try:
            return Engine(graph, wanted, threads)
        except (Unsupported, MinitlError):
            pass
    return Plain(graph, wanted)


class Values:
    """The wanted values (default: the output) of a graph as a trained network gives them: folded and packed as its weights are now.

    At graph.border() they are what training starts from. start: the node whose values are given instead of images. Several threads may
    use it at once.
    """

    def __init__(self, graph: Graph, wanted: Iterable[str] = (), threads: int | None = None, start: str = INPUT) -> None:
        self.wanted = list(wanted) or [graph.output]
        folded, names = fold_to(graph, self.wanted, start)
        self.at = [names[INPUT if name == start else name] for name in self.wanted]
        self.engine = make(folded, self.at, threads)

    def run(self, images: Array) -> dict[str, Array]:
        """(N, H, W, C) -> {wanted node: (N, ...)}."""
        found = self.engine.run(images)
        return {name: found[at] for name, at in zip(self.wanted, self.at, strict=True)}
