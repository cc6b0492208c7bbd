"""The arena: every claim of minitl/memory.py. The proof is Arena.run(), which executes a plan as the C kernels would."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import WEIGHTS, needs_shared
from integer_graphs import Builder, images, random_graph
from litert_graphs import integer_graph, interpreter
from small_models import SMALL_V2, model

from minitl import memory, reference_int8
from minitl.integer import Add, AveragePool, Conv2D, DepthwiseConv2D, GlobalMean, IntegerGraph, MaxPool, Pool, Requantise, Reshape

# ---- the order in which the C kernels read and write, in Python ------------------------------------------------------------------


class Arena:
    """A block of memory full of noise, as large as the plan says, in which an image runs through a graph."""

    def __init__(self, graph, plan, image):
        self.graph, self.plan = graph, plan
        self.dice = np.random.default_rng(0)
        self.memory = self.noise(plan.size)
        self.logits = self.noise(graph.tensors[graph.output].size)
        self.memory[plan.image : plan.image + image.size] = image.ravel()

    def noise(self, size):
        return self.dice.integers(-128, 128, size, dtype=np.int8)

    def at(self, name):
        """The bytes of a tensor, under its shape: a view."""
        place, offset = self.plan.where[name]
        shape = self.graph.tensors[name].shape
        return (self.logits if place == memory.LOGITS else self.memory)[offset : offset + math.prod(shape)].reshape(shape)

    def run(self, expected):
        """Name of the first op whose output differs from `expected`, the values by name; None if there is none."""
        for i, op in enumerate(self.graph.ops):
            if i in self.plan.fused:
                continue
            ins, out = self.graph.ends(op)
            size = memory.scratch_bytes(op, ins)
            if i - 1 in self.plan.fused:
                first = self.graph.ops[i - 1]
                size = memory.fused_scratch_bytes(first, op, self.graph.ends(first)[0], ins[0])
            if size:
                assert self.plan.scratch[i] % 4 == 0 and 0 <= self.plan.scratch[i] <= self.plan.size - size
            self.scratch = self.memory[self.plan.scratch[i] : self.plan.scratch[i] + size] if size else self.memory[:0]
            if i - 1 in self.plan.fused:
                self.two(self.graph.ops[i - 1], op)
            else:
                self.step(op, ins, out)
            if not np.array_equal(self.at(op.output), expected[op.output][0]):
                return op.name
        return None

    def compute(self, op, arrays, ins, out):
        return op.run(reference_int8, [array[None] for array in arrays], ins, out)[0]

    def step(self, op, ins, out):
        x, y = self.at(op.inputs[0]), self.at(op.output)
        self.scratch[:] = self.noise(self.scratch.size)
        if isinstance(op, Reshape):
            if self.plan.where[op.inputs[0]] != self.plan.where[op.output]:
                y[:] = x.copy().reshape(y.shape)
        elif isinstance(op, (Add, Requantise)):  # four neighbours at once: all places are multiples of four, so that nothing is hidden
            flat, target = [self.at(name).reshape(-1) for name in op.inputs], y.reshape(-1)
            for k in range(0, out.size, 4):
                target[k : k + 4] = self.compute(op, [a[k : k + 4].copy() for a in flat], ins, out)
        elif isinstance(op, GlobalMean):
            for c in range(out.size):
                y[c] = self.compute(op, [x[:, :, c : c + 1]], ins, out)[0]
        elif isinstance(op, DepthwiseConv2D):
            self.depthwise(op, x, y, ins, out)
        elif isinstance(op, (Conv2D, Pool)):
            self.windows(op, x, y, ins, out)
        else:  # Dense, Concat, Pad: piece by piece in any order
            y[:] = self.noise(y.size).reshape(y.shape)
            y[:] = self.compute(op, [self.at(name) for name in op.inputs], ins, out)

    def two(self, first, second):
        """A pointwise convolution inside of a depthwise one: rows are made when they are needed, a row is written when they are there."""
        x, y = self.at(first.inputs[0]), self.at(second.output)
        ends, middle = self.graph.ends(first), self.graph.tensors[first.output]
        top, rows, made = second.padding[0], np.full(middle.shape, middle.zero_point, np.int8), 0
        for r in range(y.shape[0]):
            start = r * second.strides[0] - top
            made = max(made, start)
            while made < min(middle.shape[0], start + 3):
                rows[made] = self.compute(first, [x[made : made + 1]], *ends)[0]
                made += 1
            self.scratch[:] = self.noise(self.scratch.size)
            seen = rows[max(start, 0) : start + 3]
            above, below = max(-start, 0), max(start + 3 - middle.shape[0], 0)
            one = replace(second, padding=(above, below, *second.padding[2:]), strides=(1, second.strides[1]))
            y[r] = self.compute(one, [seen], [middle], self.graph.tensors[second.output])[0]

    def depthwise(self, op, x, y, ins, out):
        """Channel by channel: a row of the input is copied when the first output row needs it, never read again."""
        top, _, left, right = op.padding
        kh = op.kernel.shape[0]
        for c in range(x.shape[2]):
            one = replace(
                op, kernel=op.kernel[..., c : c + 1], padding=(0, 0, 0, 0), strides=(1, op.strides[1]),
                **{name: getattr(op, name)[c : c + 1] for name in ("bias", "multiplier", "shift")},
            )  # fmt: skip
            ring, copied = {}, 0
            for r in range(y.shape[0]):
                first = r * op.strides[0] - top
                while copied < min(x.shape[0], first + kh):
                    ring[copied] = x[copied, :, c].copy()
                    copied += 1
                    self.scratch[:] = self.noise(self.scratch.size)
                rows = np.full((kh, left + x.shape[1] + right, 1), ins[0].zero_point, np.int8)
                for k in range(kh):
                    if 0 <= first + k < x.shape[0]:
                        rows[k, left : left + x.shape[1], 0] = ring[first + k]
                y[r, :, c] = self.compute(one, [rows], ins, out)[0, : y.shape[1], 0]

    def windows(self, op, x, y, ins, out):
        """Blocks of pixels of a row; what a block writes is noise before it is read, since C may write early within a block."""
        pool = isinstance(op, Pool)
        if memory.is_pointwise(op):
            x, y = x.reshape(1, -1, x.shape[2]), y.reshape(1, -1, y.shape[2])
        (kh, kw), together = (op.window, 1) if pool else (op.kernel.shape[:2], 2)
        for r in range(y.shape[0]):
            for start in range(0, y.shape[1], together):
                block = y[r, start : start + together]
                block[:] = self.noise(block.size).reshape(block.shape)
                self.scratch[:] = self.noise(self.scratch.size)
                results = []
                for column in range(start, min(start + together, y.shape[1])):
                    top, left = r * op.strides[0] - op.padding[0], column * op.strides[1] - op.padding[2]
                    rows, columns = slice(max(top, 0), max(top + kh, 0)), slice(max(left, 0), max(left + kw, 0))
                    seen = x[rows, columns]
                    if pool:
                        one = replace(op, window=seen.shape[:2], strides=(1, 1), padding=(0, 0, 0, 0))
                    else:
                        one = replace(op, strides=(1, 1), padding=(0, 0, 0, 0))
                        window = np.full((kh, kw, x.shape[2]), ins[0].zero_point, np.int8)
                        i, j = rows.start - top, columns.start - left
                        window[i : i + seen.shape[0], j : j + seen.shape[1]] = seen
                        seen = window
                    results.append(self.compute(one, [seen], ins, out)[0, 0])
                y[r, start : start + together] = results


def first_wrong(graph, plan):
    """Name of the first op that computes something else in the plan's arena than IntegerGraph does, for a random image."""
    image = images(graph, 3)[2]
    return Arena(graph, plan, image).run(graph.run_all(image[None]))


def check(graph):
    """The graph's plan, after a proof that it works."""
    plan = memory.plan(graph)
    assert first_wrong(graph, plan) is None
    return plan


# ---- claims --------------------------------------------------------------------------------------------------------------------


def test_the_kernels_run_in_the_arena_as_if_every_tensor_had_its_own_memory():
    excess, overlapping = [], 0
    for seed in range(120):
        graph = random_graph(seed)
        plan = check(graph)
        bound = memory.lower_bound(graph, plan.fused)
        assert bound <= plan.size
        excess.append(plan.size - bound)
        overlapping += any(
            a.meets(b) and i < other + b.size and other < i + a.size
            for n, (a, i) in enumerate(plan.buffers)
            for b, other in plan.buffers[:n]
        )
    print(f"{overlapping} of {len(excess)} plans overlap; above the bound: {sum(e > 0 for e in excess)}, at most {max(excess)} bytes")
    assert overlapping > 60


def test_the_simulation_notices_an_output_too_close_to_its_input():
    caught = 0
    for seed in range(40):
        build = Builder(np.random.default_rng(seed), (4, 5, 5))
        if seed % 2:
            build.conv(6, (1, 1))
        else:
            build.depthwise((3, 3), (1, 1), (1, 1, 1, 1))
        build.dense(3)
        graph = build.graph()
        plan = memory.plan(graph)
        where = {"x": (memory.ARENA, 4), graph.ops[0].output: (memory.ARENA, 0), graph.ops[1].output: (memory.ARENA, 0)}
        caught += first_wrong(graph, memory.Plan({**plan.where, **where}, 1000, (), {0: 400}, 4)) == graph.ops[0].name
    print(f"{caught} of 40 caught")
    assert caught >= 38  # an op may compute the same from other inputs


@pytest.mark.parametrize("kind", ["pointwise", "conv", "average", "max", "depthwise", "mean", "add", "requantise"])
def test_the_least_distance_is_enough_for_every_geometry(kind):
    """One op, its output at the place nearest to the input that overlap() allows, whatever a planner would do."""
    tried, in_place = 0, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        h, w, c, o, kh, kw, down, across = (int(n) for n in rng.integers(1, (8, 8, 6, 9, 4, 5, 4, 3)))
        kh, kw = min(kh, h), min(kw, w)
        padding = tuple(int(rng.integers(0, k)) for k in (kh, kh, kw, kw))
        build = Builder(rng, (h, w, c))
        if kind == "pointwise":
            build.conv(o, (1, 1))
        elif kind == "conv":
            build.conv(o, (kh, kw), (down, across), padding)
        elif kind in ("average", "max"):
            build.pool({"average": AveragePool, "max": MaxPool}[kind], (kh, kw), (down, across), padding)
        elif kind == "depthwise":
            build.depthwise((kh, kw), (down, across), padding)
        elif kind == "mean":
            build.mean()
        elif kind == "add":
            build.add("x", "x")
        else:
            build.requantise(None)
        build.reshape((build.tensors[build.last].size,))
        tail = build.dense(2)
        graph = build.graph()
        op = graph.ops[0]
        allowed = memory.overlap(op, *graph.ends(op))
        if allowed is None:
            assert kind == "depthwise"
            continue
        tried, in_place = tried + 1, in_place + (allowed[0] <= 0)
        y, x = 8, 8 + memory.aligned(allowed[0])
        end = memory.aligned(max(x + h * w * c, y + graph.tensors[op.output].size))
        where = {"x": (memory.ARENA, x), tail: (memory.LOGITS, 0)}
        where |= {name: (memory.ARENA, y) for name in graph.tensors if name not in where}
        plan = memory.Plan(where, end + 4000, (), {i: end for i in range(len(graph.ops))}, x)
        assert first_wrong(graph, plan) is None, f"seed {seed}"
    print(f"{kind}: {tried} geometries, {in_place} of them at the very same place")
    assert tried >= 15


def test_the_image_lives_in_the_arena_until_its_last_reader():
    build = Builder(np.random.default_rng(0), (6, 6, 4))
    first = build.conv(4, (1, 1))
    build.conv(4, (3, 3), padding=(1, 1, 1, 1))
    build.add("x", build.last)
    build.dense(2)
    plan = check(build.graph())
    image = next(buffer for buffer, _ in plan.buffers if buffer.kind == memory.IMAGE)
    assert (image.tensors, image.first, image.last) == (("x",), -1, 2)
    assert plan.where["x"] == (memory.ARENA, plan.image) and plan.where[first][0] == memory.ARENA


def test_a_residual_keeps_its_place_until_it_is_added():
    build = Builder(np.random.default_rng(0), (4, 4, 2))
    build.conv(2, (1, 1))
    start = build.last
    build.conv(8, (1, 1))
    build.conv(2, (1, 1))
    build.add(start, build.last)
    build.dense(2)
    plan = check(build.graph())
    # residual, the wide tensor with the narrow one 4 bytes before it, scratch: the image and the second input are gone or overlapped
    assert plan.size == memory.lower_bound(build.graph()) == 32 + 4 + 128 + 32


def test_the_output_may_be_the_image_under_another_shape_or_be_read_again():
    build = Builder(np.random.default_rng(0), (2, 2, 3))
    build.reshape((12,))
    plan = check(build.graph())
    assert plan.size == 12 and plan.where[build.last] == (memory.LOGITS, 0)
    build = Builder(np.random.default_rng(0), (2, 2, 3))
    middle = build.conv(5, (1, 1))
    build.conv(5, (1, 1))
    graph = IntegerGraph(build.tensors, tuple(build.ops), "x", middle)
    assert check(graph).where[middle] == (memory.LOGITS, 0)


def test_the_same_graph_gets_the_same_plan():
    for seed in (1, 5, 9):
        assert memory.plan(random_graph(seed)) == memory.plan(random_graph(seed))


def test_a_quantised_network_with_residuals_runs_in_its_arena():
    graph = model(name=SMALL_V2).quantise()
    plan = check(graph)
    print(f"{SMALL_V2}: {plan.size:,} bytes, bound {memory.lower_bound(graph, plan.fused):,}, fused {sorted(plan.fused)}")


@needs_shared
@pytest.mark.parametrize(
    ("file", "apart", "together", "fused"),
    [("vww_96_int8.tflite", 37_216, 27_948, {2}), ("tf2_mobilenet_v2_1.0_224_ptq.tflite", 1_204_944, 527_472, {3})],
)
def test_published_networks_need_little_more_than_the_image_or_a_tensor_of_the_second_kind(file, apart, together, fused):
    """Apart: 48 x 48 x 16 and 112 x 112 x 96 bytes, and scratch. Together: vww's image (27,648) and its first convolution's scratch."""
    graph = integer_graph(interpreter(WEIGHTS / file))[0]
    started = time.perf_counter()
    plan, before = memory.plan(graph), memory._plan(graph, frozenset())
    seconds = time.perf_counter() - started
    print(f"{file}: {before.size:,} -> {plan.size:,} bytes, bound {memory.lower_bound(graph, plan.fused):,}, planned in {seconds:.2f} s")
    assert (before.size, plan.size, plan.fused) == (apart, together, fused)
    assert plan.size - memory.lower_bound(graph, plan.fused) <= 16
    if plan.size < 100_000:
        check(graph)


def test_two_operations_run_as_one_without_the_tensor_between_them(monkeypatch):
    monkeypatch.setattr(memory, "WORTH", 1.0)
    fused = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        build = Builder(rng, tuple(int(n) for n in rng.integers((2, 1, 1), (14, 14, 9))))
        if seed % 3 == 0:
            build.conv(int(rng.integers(1, 9)), (3, 3), (1, 1), (1, 1, 1, 1))
        build.conv(int(rng.integers(8, 25)), (1, 1))
        build.depthwise((3, 3), (int(rng.integers(1, 5)), int(rng.integers(1, 3))), tuple(int(n) for n in rng.integers(1, 3, 4)))
        build.conv(int(rng.integers(1, 5)), (1, 1))
        build.dense(3)
        plan = check(build.graph())
        fused += bool(plan.fused)
        assert all(build.graph().ops[i].output not in plan.where for i in plan.fused)
        assert plan.size <= memory._plan(build.graph(), frozenset()).size
    print(f"{fused} of 40 networks have two operations in one")
    assert fused > 25


def test_what_others_read_is_never_fused_away():
    build = Builder(np.random.default_rng(0), (8, 8, 2))
    wide = build.conv(32, (1, 1))
    build.depthwise((3, 3), (1, 1), (1, 1, 1, 1))
    build.add(wide, build.last)
    build.dense(2)
    plan = check(build.graph())
    assert not plan.fused and wide in plan.where
