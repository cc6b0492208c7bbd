"""Small random integer graphs for tests: every kind of op, awkward sizes, every padding."""

import itertools

import numpy as np

from minitl import integer
from minitl.geometry import output_hw
from minitl.integer import (
    Add,
    AveragePool,
    Concat,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    GlobalMean,
    IntegerGraph,
    MaxPool,
    Pad,
    Requantise,
    Reshape,
    Tensor,
    add_parameters,
    mean_parameters,
    quantise_multiplier,
    quantise_multipliers,
)


class Builder:
    """Appends ops to a graph; the weights are random, the scales such that outputs use most of int8.

    clamps, kernel_zeros: whether there may be any. left_shifts: whether weighted ops have tiny weights and factors above 1.
    """

    def __init__(self, rng, shape, clamps=True, kernel_zeros=True, left_shifts=False):
        self.rng, self.ops = rng, []
        self.clamps, self.kernel_zeros, self.left_shifts = clamps, kernel_zeros, left_shifts
        self.tensors = {"x": Tensor("x", shape, 0.02, int(rng.integers(-128, 128)))}
        self.last = "x"

    def tensor(self, shape, like=None):
        name = f"t{len(self.tensors)}"
        scale, zero = (like.scale, like.zero_point) if like else (float(self.rng.uniform(0.01, 0.05)), int(self.rng.integers(-128, 128)))
        self.tensors[name] = Tensor(name, tuple(shape), scale, zero)
        return self.tensors[name]

    def push(self, op, out):
        self.ops.append(op)
        self.last = out.name
        return out.name

    def _weights(self, source, out, kernel_shape, fan_in):
        outputs = kernel_shape[-1]
        if self.left_shifts:
            kernel = self.rng.integers(-1, 2, kernel_shape, dtype=np.int8)
            bias = self.rng.integers(-9, 10, outputs).astype(np.int32)
            return (kernel, bias, *quantise_multipliers(2.0 ** self.rng.uniform(-3, 6, outputs)))
        kernel = self.rng.integers(-127, 128, kernel_shape, dtype=np.int8)
        bias = self.rng.integers(-2000, 2000, outputs).astype(np.int32)
        # A sum of fan_in products of about 70 * 70: bring its spread to about 50 steps; some channels far off, one flushed to 0.
        real = 50 / (5000 * np.sqrt(fan_in)) * 2.0 ** self.rng.uniform(-2, 2, outputs)
        if outputs > 2:
            real[-1] = 2.0**-40
        return (kernel, bias, *quantise_multipliers(real))

    def clamp(self):
        if not self.clamps:
            return {}
        low = int(self.rng.choice([-128, -128, -60]))
        return {"act_min": low, "act_max": int(self.rng.choice([127, 127, 40]))}

    def weighted(self):
        """A clamp; one kernel in three has a zero point other than 0."""
        clamp = self.clamp()
        return {**clamp, "kernel_zero": int(self.rng.choice([0, 0, self.rng.integers(-128, 128)])) if self.kernel_zeros else 0}

    def conv(self, outputs, size, strides=(1, 1), padding=(0, 0, 0, 0), source=None):
        source = self.tensors[source or self.last]
        h, w, c = source.shape
        out = self.tensor((*output_hw(h, w, size, strides, padding), outputs))
        weights = self._weights(source, out, (*size, c, outputs), c * size[0] * size[1])
        return self.push(Conv2D(out.name, (source.name,), out.name, *weights, strides=strides, padding=padding, **self.weighted()), out)

    def depthwise(self, size, strides=(1, 1), padding=(0, 0, 0, 0)):
        source = self.tensors[self.last]
        h, w, c = source.shape
        out = self.tensor((*output_hw(h, w, size, strides, padding), c))
        weights = self._weights(source, out, (*size, c), size[0] * size[1])
        return self.push(
            DepthwiseConv2D(out.name, (source.name,), out.name, *weights, strides=strides, padding=padding, **self.weighted()), out
        )

    def dense(self, outputs):
        source = self.tensors[self.last]
        if len(source.shape) == 3:
            source = self.tensors[self.reshape((source.size,))]
        out = self.tensor((outputs,))
        weights = self._weights(source, out, (source.shape[0], outputs), source.shape[0])
        return self.push(Dense(out.name, (source.name,), out.name, *weights, **self.weighted()), out)

    def pool(self, kind, window, strides, padding=(0, 0, 0, 0)):
        source = self.tensors[self.last]
        h, w, c = source.shape
        out = self.tensor((*output_hw(h, w, window, strides, padding), c), like=source)
        return self.push(kind(out.name, (source.name,), out.name, window, strides, padding, **self.clamp()), out)

    def mean(self):
        source = self.tensors[self.last]
        h, w, c = source.shape
        out = self.tensor((c,))
        return self.push(GlobalMean(out.name, (source.name,), out.name, *mean_parameters(source.scale, out.scale, h * w)), out)

    def add(self, a, b):
        one, two = self.tensors[a], self.tensors[b]
        out = self.tensor(one.shape)
        return self.push(Add(out.name, (a, b), out.name, *add_parameters(one.scale, two.scale, out.scale), **self.clamp()), out)

    def requantise(self, like=None):
        source = self.tensors[self.last]
        out = self.tensor(source.shape, like=like)
        factor = quantise_multiplier(source.scale / out.scale)
        return self.push(Requantise(out.name, (source.name,), out.name, *factor, **self.clamp()), out)

    def pad(self, padding):
        source = self.tensors[self.last]
        h, w, c = source.shape
        out = self.tensor((*output_hw(h, w, (1, 1), (1, 1), padding), c), like=source)
        return self.push(Pad(out.name, (source.name,), out.name, padding), out)

    def concat(self, names):
        sources = [self.tensors[name] for name in names]
        out = self.tensor((*sources[0].shape[:-1], sum(s.shape[-1] for s in sources)), like=sources[0])
        return self.push(Concat(out.name, tuple(names), out.name), out)

    def reshape(self, shape):
        source = self.tensors[self.last]
        out = self.tensor(shape, like=source)
        return self.push(Reshape(out.name, (source.name,), out.name), out)

    def graph(self):
        return IntegerGraph(self.tensors, tuple(self.ops), "x", self.last)


def random_graph(seed):
    """A graph of a few layers with a residual and a concat, of sizes 1..9 and channels 1..9, that ends in a dense layer."""
    rng = np.random.default_rng(seed)

    def few(low, high):
        return int(rng.integers(low, high + 1))

    def geometry(h, w, most):
        size = (few(1, 3), few(1, 4))
        padding = tuple(few(0, min(k, most) if most else k - 1) for k in (size[0], size[0], size[1], size[1]))
        size = (min(size[0], h + padding[0] + padding[1]), min(size[1], w + padding[2] + padding[3]))
        return size, (few(1, 3), few(1, 2)), padding

    build = Builder(rng, (few(1, 9), few(1, 9), few(1, 5)))
    for _ in range(few(2, 5)):
        h, w, _ = build.tensors[build.last].shape
        choice = few(0, 7)
        if choice <= 1:
            build.conv(few(1, 9), *geometry(h, w, 3))
        elif choice == 2:
            build.conv(few(1, 9), (1, 1))
        elif choice == 3:
            build.depthwise(*geometry(h, w, 3))
        elif choice == 4:
            size, strides, padding = geometry(h, w, 0)
            padding = tuple(min(p, k - 1) for p, k in zip(padding, (size[0], size[0], size[1], size[1]), strict=True))
            size = (min(size[0], h), min(size[1], w))
            padding = tuple(min(p, k - 1) for p, k in zip(padding, (size[0], size[0], size[1], size[1]), strict=True))
            build.pool([AveragePool, MaxPool][few(0, 1)], size, strides, padding)
        elif choice == 5:
            start = build.last
            build.conv(build.tensors[start].shape[2], (1, 1))
            build.conv(build.tensors[start].shape[2], (3, 3), padding=(1, 1, 1, 1))
            build.add(start, build.last)
        elif choice == 6:
            build.requantise()
            build.pad((few(0, 2), few(0, 2), few(0, 1), few(0, 3)))
        else:
            start = build.last
            build.conv(few(1, 5), (1, 1))
            build.requantise(build.tensors[start])
            build.concat((start, build.last, start))
    if few(0, 1):
        build.mean()
    build.dense(few(1, 6))
    return build.graph()


def awkward_graphs():
    """Networks for what random ones could miss, among them every one of what the header's kernels leave out if it is not needed."""
    graphs = []
    for size in (7, 8):  # stride 2 at odd and even sizes
        for padding in ((0, 1, 0, 1), (1, 1, 1, 1), (0, 0, 0, 0)):
            build = Builder(np.random.default_rng(size), (size, size + 1, 3))
            build.conv(5, (3, 3), (2, 2), padding)
            build.depthwise((3, 3), (1, 1), (1, 1, 1, 1))
            build.conv(7, (1, 1))
            build.depthwise((3, 3), (2, 2), padding if padding[1] else (1, 1, 1, 1))
            build.mean()
            build.dense(3)
            graphs.append(build.graph())
    build = Builder(np.random.default_rng(1), (1, 1, 1))
    build.conv(1, (3, 3), (1, 1), (1, 1, 1, 1))
    build.depthwise((1, 1))
    build.pool(integer.MaxPool, (1, 1), (1, 1))
    build.dense(1)
    graphs.append(build.graph())
    build = Builder(np.random.default_rng(2), (9, 6, 4))
    build.pool(integer.AveragePool, (3, 2), (2, 2), (1, 1, 1, 0))
    build.pool(integer.AveragePool, build.tensors[build.last].shape[:2], (1, 1))
    build.reshape((4,))  # the output is a reshape, and nothing has weights
    graphs.append(build.graph())
    build = Builder(np.random.default_rng(3), (2, 2, 3))
    build.reshape((12,))
    graphs.append(build.graph())
    build = Builder(np.random.default_rng(4), (3, 1, 2))
    build.requantise(Tensor("", (1,), 0.03, 5))
    graphs.append(build.graph())
    for seed, needs in enumerate(itertools.product((False, True), repeat=3)):  # channels that are no multiple of 4
        build = Builder(np.random.default_rng(10 + seed), (5, 7 + seed % 2, 1), *needs)
        build.conv(2, (3, 3), (1, 1), (1, 1, 1, 1))
        build.conv(17, (1, 1))
        build.depthwise((3, 3), (1, 1), (1, 1, 1, 1))
        build.conv(9, (1, 1))
        build.depthwise((3, 3), (2, 2), (1, 1, 1, 1))
        build.conv(6, (2, 2), (1, 1), (0, 1, 1, 0))
        build.conv(1, (1, 1))
        build.conv(3, (2, 3), (1, 1), (0, 1, 1, 1))
        build.conv(16, (1, 1))
        build.conv(5, (1, 1), (2, 1))
        if seed % 2:
            build.mean()
        build.dense(7)
        graphs.append(build.graph())
    build = Builder(np.random.default_rng(5), (13, 11, 3))  # windows of more than 3
    build.conv(4, (4, 5), (1, 2), (2, 1, 2, 3))
    build.depthwise((5, 4), (1, 1), (2, 2, 1, 2))
    build.depthwise((1, 5), (1, 1), (0, 0, 2, 2))
    build.depthwise((7, 1), (2, 1), (3, 3, 0, 0))
    build.pool(integer.MaxPool, (5, 4), (1, 1), (4, 4, 3, 3))
    build.conv(3, (7, 7), (1, 1), (3, 3, 3, 3))
    build.dense(2)
    graphs.append(build.graph())
    build = Builder(np.random.default_rng(6), (23, 25, 2))  # strides that skip pixels, windows that hold none
    build.depthwise((3, 3), (1, 1), (4, 5, 4, 3))
    build.conv(5, (2, 2), (3, 3), (3, 3, 3, 3))
    build.depthwise((3, 3), (4, 2), (1, 1, 1, 1))
    build.pad((1, 2, 3, 4))
    build.depthwise((1, 1), (2, 3))
    build.pool(integer.AveragePool, (1, 2), (2, 3), (0, 0, 1, 1))
    build.dense(2)
    graphs.append(build.graph())
    for seed, (strides, padding) in enumerate(
        [((1, 1), (1, 1, 1, 1)), ((2, 2), (0, 1, 0, 1)), ((3, 2), (2, 0, 0, 2)), ((2, 1), (0, 0, 0, 0))]
    ):
        build = Builder(np.random.default_rng(20 + seed), (12 + seed, 11 + seed % 2, 3))  # so wide that two ops are worth fusing
        build.conv(23 + seed, (1, 1))
        build.depthwise((3, 3), strides, padding)
        build.conv(5, (1, 1))
        build.mean()
        build.dense(4)
        graphs.append(build.graph())
    return graphs


def every_kind():
    """A small network that needs every kernel."""
    build = Builder(np.random.default_rng(9), (9, 7, 3))
    build.conv(5, (3, 3), (2, 1), (1, 1, 1, 1))
    build.depthwise((3, 3), (1, 1), (1, 1, 1, 1))
    build.depthwise((2, 3), (1, 1), (1, 0, 1, 1))
    start = build.conv(6, (1, 1))
    build.conv(6, (3, 3), (1, 1), (1, 1, 1, 1))
    start = build.add(start, build.last)
    build.conv(3, (1, 1))
    build.requantise(build.tensors[start])
    build.concat((start, build.last))
    build.pad((1, 0, 0, 1))
    build.pool(integer.MaxPool, (2, 2), (1, 1))
    build.pool(integer.AveragePool, (2, 2), (1, 1))
    build.mean()
    build.dense(7)
    build.reshape((7,))
    build.dense(3)
    return build.graph()


def images(graph, count, seed=0):
    """Random images of which the first is all -128 and the second all 127."""
    x = np.random.default_rng(seed).integers(-128, 128, (count, *graph.tensors[graph.input].shape), dtype=np.int8)
    x[0], x[1 % count] = -128, 127
    return x
