"""The layers: hyperparameters, shapes, and how forward and backward are put together from kernels.

A layer holds hyperparameters only. Its numbers live in the graph and come in as `params` ({'kernel': ..., 'bias': ...}); what backward
needs goes out as `cache` and comes back in; nothing is hidden on the object. `ops` is the module of kernels: reference.py (plain),
kernels.py (compiled), kernels_fast.py (vector instructions). In every parameter the last axis is the output channel, which is what a
per-channel freeze mask selects.

forward(ops, params, xs, training, rng) -> (y, cache)      xs: list of inputs; training: False, True or (C,) bool: which channels train
backward(ops, params, dy, cache, need_dx) -> (dxs, grads)  dxs: one gradient per input, or [] where need_dx is False; grads: as params,
                                                           or {} where `training` was all False: then the cache holds no x for them

Left out: anything about graphs (graph.py), updates (training.py), integers (quantize.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from .geometry import Padding, Pair, output_hw, resolve

Array = np.ndarray
Params = dict[str, Array]
Shape = tuple[int, ...]  # without the batch: (H, W, C) or (C,)
Training = bool | np.ndarray


@dataclass(frozen=True)
class Layer:
    """One step of a network, and the defaults: same shape out as in, no parameters, no work worth counting.

    A layer without fields of its own inherits what `dataclass` has made already; making it takes half a millisecond.
    """

    arity: ClassVar[int] = 1  # how many inputs it reads; 0: any number
    trainable: ClassVar[tuple[str, ...]] = ()  # names of the parameters that gradients change; a BatchNorm has others beside them

    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of the output for these input shapes. Raises ValueError where they do not fit the layer."""
        return shapes[0]

    def param_shapes(self, *shapes: Shape) -> dict[str, Shape]:
        """Name -> shape of every parameter for these input shapes."""
        return {}

    def initialise(self, rng: np.random.Generator, *shapes: Shape) -> Params:
        """Fresh float32 parameters: kernels drawn (He et al. 2015, arXiv:1502.01852, eq. 10), everything else 0 but scales 1."""
        params = {}
        for name, shape in self.param_shapes(*shapes).items():
            if name == "kernel":
                params[name] = (rng.standard_normal(shape) * np.sqrt(2 / self.fan_in(shape))).astype(np.float32)
            else:
                params[name] = np.full(shape, name in ("gamma", "moving_variance"), np.float32)
        return params

    def fan_in(self, kernel: Shape) -> int:
        """How many products each output sums."""
        return int(np.prod(kernel[:-1]))

    def macs(self, *shapes: Shape) -> int:
        """Multiply-accumulates for one image."""
        return 0

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """See the head of this file."""
        raise AssertionError(f"{type(self).__name__} has no forward")

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """See the head of this file."""
        raise AssertionError(f"{type(self).__name__} has no backward")


def _image(shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(f"needs an image (H, W, C), found shape {shape}")
    return shape[0], shape[1], shape[2]


# ---- layers with a kernel: they differ in three kernels and one shape; bias and gradients are shared


@dataclass(frozen=True)
class _Windowed(Layer):
    """What slides a window over an image. padding: the name of a rule of geometry.py, or (top, bottom, left, right)."""

    window: Pair = (3, 3)
    strides: Pair = (1, 1)
    padding: str | Padding = "same"

    def pads(self, shape: Shape) -> Padding:
        """The four paddings for an input (H, W, C)."""
        h, w, _ = _image(shape)
        return resolve(self.padding, h, w, self.window, self.strides)

    def output_shape(self, *shapes: Shape) -> Shape:
        """(H, W, C) -> (OH, OW, C)."""
        h, w, c = _image(shapes[0])
        return (*output_hw(h, w, self.window, self.strides, self.pads(shapes[0])), c)


@dataclass(frozen=True)
class Conv2D(_Windowed):
    """(N, H, W, I) -> (N, OH, OW, filters); kernel (kh, kw, I, filters)."""

    filters: int = 1
    use_bias: bool = False
    trainable: ClassVar[tuple[str, ...]] = ("kernel", "bias")

    def output_shape(self, *shapes: Shape) -> Shape:
        """(H, W, I) -> (OH, OW, filters)."""
        return (*super().output_shape(*shapes)[:2], self.filters)

    def param_shapes(self, *shapes: Shape) -> dict[str, Shape]:
        """Kernel (kh, kw, I, filters), bias (filters,) if there is one."""
        return _with_bias((*self.window, shapes[0][2], self.filters), self.use_bias)

    def macs(self, *shapes: Shape) -> int:
        """Every output pixel and filter sums a whole window."""
        oh, ow, o = self.output_shape(*shapes)
        return oh * ow * o * self.window[0] * self.window[1] * shapes[0][2]

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """Convolve, then add the bias."""
        y = ops.conv2d(xs[0], params["kernel"], self.strides, self.pads(xs[0].shape[1:]), params.get("bias"))
        return y, _kept(xs[0], training)

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """Kernel and bias gradients, none where all is frozen; dx on request."""
        x, shape = cache
        pads = self.pads(shape[1:])
        grads = {} if x is None else _with_dbias(ops, params, dy, ops.conv2d_dkernel(x, dy, self.strides, pads, self.window))
        return [ops.conv2d_dx(dy, params["kernel"], self.strides, pads, shape[1:3])] if need_dx else [], grads


@dataclass(frozen=True)
class DepthwiseConv2D(_Windowed):
    """(N, H, W, C) -> (N, OH, OW, C); kernel (kh, kw, C): one small filter per channel."""

    use_bias: bool = False
    trainable: ClassVar[tuple[str, ...]] = ("kernel", "bias")

    def param_shapes(self, *shapes: Shape) -> dict[str, Shape]:
        """Kernel (kh, kw, C), bias (C,) if there is one."""
        return _with_bias((*self.window, shapes[0][2]), self.use_bias)

    def macs(self, *shapes: Shape) -> int:
        """Every output value sums one window of one channel."""
        return int(np.prod(self.output_shape(*shapes))) * self.window[0] * self.window[1]

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """Convolve each channel, then add the bias."""
        y = ops.depthwise_conv2d(xs[0], params["kernel"], self.strides, self.pads(xs[0].shape[1:]), params.get("bias"))
        return y, _kept(xs[0], training)

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """Kernel and bias gradients, none where all is frozen; dx on request."""
        x, shape = cache
        pads = self.pads(shape[1:])
        grads = {} if x is None else _with_dbias(ops, params, dy, ops.depthwise_conv2d_dkernel(x, dy, self.strides, pads, self.window))
        return [ops.depthwise_conv2d_dx(dy, params["kernel"], self.strides, pads, shape[1:3])] if need_dx else [], grads


@dataclass(frozen=True)
class Dense(Layer):
    """(N, I) -> (N, units); kernel (I, units)."""

    units: int = 1
    use_bias: bool = True
    trainable: ClassVar[tuple[str, ...]] = ("kernel", "bias")

    def output_shape(self, *shapes: Shape) -> Shape:
        """(I,) -> (units,)."""
        if len(shapes[0]) != 1:
            raise ValueError(f"needs a flat input (C,), found shape {shapes[0]}: put a GlobalAveragePool or Flatten before it")
        return (self.units,)

    def param_shapes(self, *shapes: Shape) -> dict[str, Shape]:
        """Kernel (I, units), bias (units,) if there is one."""
        return _with_bias((shapes[0][0], self.units), self.use_bias)

    def macs(self, *shapes: Shape) -> int:
        """One product per weight."""
        return shapes[0][0] * self.units

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """x @ kernel + bias."""
        return ops.dense(xs[0], params["kernel"], params.get("bias")), _kept(xs[0], training)

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """Kernel and bias gradients, none where all is frozen; dx on request."""
        x, _ = cache
        grads = {} if x is None else _with_dbias(ops, params, dy, ops.dense_dkernel(x, dy))
        return [ops.dense_dx(dy, params["kernel"])] if need_dx else [], grads


def _with_bias(kernel: Shape, use_bias: bool) -> dict[str, Shape]:
    return {"kernel": kernel, "bias": kernel[-1:]} if use_bias else {"kernel": kernel}


def _kept(x: Array, training: Training) -> tuple[Array | None, Shape]:
    """The cache: a kernel that is frozen gets no gradient, and then backward needs only the shape of x."""
    return x if np.any(training) else None, x.shape


def _with_dbias(ops: ModuleType, params: Params, dy: Array, dkernel: Array) -> Params:
    return {"kernel": dkernel, "bias": ops.channel_sum(dy)} if "bias" in params else {"kernel": dkernel}


# ---- normalisation and regularisation: the two layers that behave differently while training


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Normalise each channel, then scale by gamma and shift by beta (arXiv:1502.03167).

    Statistics come from the batch only for channels that are being trained; a frozen channel always runs on the stored ones, whatever
    the mode. momentum is Keras': new = momentum * old + (1 - momentum) * batch. high: clamp to 0..high as the ReLU after it would have
    done, see Graph.steps. scale: whether there is a gamma; without, it is 1.
    """

    epsilon: float = 1e-3
    momentum: float = 0.99
    high: float | None = None
    scale: bool = True
    trainable: ClassVar[tuple[str, ...]] = ("gamma", "beta")

    def param_shapes(self, *shapes: Shape) -> dict[str, Shape]:
        """Four vectors of C numbers, or three."""
        return dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance")[not self.scale :], shapes[0][-1:])

    def gamma(self, params: Params) -> Array:
        """The factor of each channel (C,)."""
        return params["gamma"] if self.scale else np.ones_like(params["beta"])

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """Batch statistics for the channels in training, stored statistics for the others."""
        x, gamma, beta = xs[0], self.gamma(params), params["beta"]
        from_batch = np.full(len(gamma), training)
        mean, variance = params["moving_mean"], params["moving_variance"]
        if from_batch.any():
            y, mean, variance = ops.batch_norm_training(x, mean, variance, from_batch, gamma, beta, self.epsilon, self.high)
        else:
            y = ops.batch_norm(x, mean, variance, gamma, beta, self.epsilon)
        return y, (x if from_batch.any() else None, mean, variance, from_batch)

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """The kernel computes everything in two passes, so dx comes in any case. All frozen, it is a fixed scale and needs no x."""
        x, mean, variance, from_batch = cache
        if x is None:
            assert self.high is None, "a frozen BatchNorm and its ReLU are two steps"
            zero = np.zeros_like(mean)
            return [ops.batch_norm(dy, zero, variance, self.gamma(params), zero, self.epsilon)] if need_dx else [], {}
        gamma, beta = self.gamma(params), params["beta"]
        dx, dgamma, dbeta = ops.batch_norm_backward(dy, x, mean, variance, gamma, beta, self.epsilon, from_batch, self.high)
        return [dx] if need_dx else [], {"gamma": dgamma, "beta": dbeta} if self.scale else {"beta": dbeta}

    def updated_statistics(self, params: Params, cache: Any) -> Params:
        """New moving_mean and moving_variance after a training step; channels that ran on stored statistics keep them bit for bit."""
        _, mean, variance, from_batch = cache
        blend = {"moving_mean": mean, "moving_variance": variance}
        keep = params["beta"].dtype.type(self.momentum)
        return {name: np.where(from_batch, params[name] * keep + new * (1 - keep), params[name]) for name, new in blend.items()}


@dataclass(frozen=True)
class Dropout(Layer):
    """While training, zero a share `rate` of the values and scale the others up (Srivastava et al. 2014); else do nothing."""

    rate: float = 0.0

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """Draws from rng, a numpy Generator, only while training."""
        if not np.any(training) or self.rate == 0:
            return xs[0], None
        mask = (rng.random(xs[0].shape) >= self.rate).astype(xs[0].dtype) / xs[0].dtype.type(1 - self.rate)
        return xs[0] * mask, mask

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """The same mask again."""
        return [dy if cache is None else dy * cache] if need_dx else [], {}


# ---- activations


class ReLU(Layer):
    """max(x, 0)."""

    high: ClassVar[float] = np.inf

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """Keeps its output, which the next layer keeps anyway if it trains: where that is zero, no gradient passes."""
        y = ops.relu(xs[0])
        return y, y

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """Gradient passes where the output was positive."""
        return [ops.relu_dx(dy, cache)] if need_dx else [], {}


class ReLU6(Layer):
    """min(max(x, 0), 6)."""

    high: ClassVar[float] = 6.0

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """Keeps its output."""
        y = ops.relu6(xs[0])
        return y, y

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """Gradient passes strictly between the bounds."""
        return [ops.relu6_dx(dy, cache)] if need_dx else [], {}


# ---- pooling and shape


class GlobalAveragePool(Layer):
    """(N, H, W, C) -> (N, C)."""

    def output_shape(self, *shapes: Shape) -> Shape:
        """(H, W, C) -> (C,)."""
        return (_image(shapes[0])[2],)

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """Keeps only (H, W)."""
        return ops.global_average_pool(xs[0]), xs[0].shape[1:3]

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """Each pixel gets the same share."""
        return [ops.global_average_pool_dx(dy, cache)] if need_dx else [], {}


class _Pool(_Windowed):
    """A window that must meet at least one real pixel wherever it lies: the mean or maximum of nothing is not a number."""

    def output_shape(self, *shapes: Shape) -> Shape:
        """(H, W, C) -> (OH, OW, C)."""
        top, bottom, left, right = self.pads(shapes[0])
        if max(top, bottom) >= self.window[0] or max(left, right) >= self.window[1]:
            raise ValueError(f"padding {(top, bottom, left, right)} is as large as its window {self.window}: use less padding")
        return super().output_shape(*shapes)


class AveragePool(_Pool):
    """(N, H, W, C) -> (N, OH, OW, C): mean of each window, padding not counted."""

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """Keeps only (H, W, C)."""
        shape = xs[0].shape[1:]
        return ops.average_pool(xs[0], self.window, self.strides, self.pads(shape)), shape

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """Each pixel of a window gets the same share."""
        return [ops.average_pool_dx(dy, self.window, self.strides, self.pads(cache), cache[:2])] if need_dx else [], {}


class MaxPool(_Pool):
    """(N, H, W, C) -> (N, OH, OW, C): maximum of each window."""

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """Keeps input and output, to find the maximum again."""
        y = ops.max_pool(xs[0], self.window, self.strides, self.pads(xs[0].shape[1:]))
        return y, (xs[0], y)

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """The pixel that won gets all."""
        x, y = cache
        return [ops.max_pool_dx(dy, x, y, self.window, self.strides, self.pads(x.shape[1:]))] if need_dx else [], {}


@dataclass(frozen=True)
class Reshape(Layer):
    """(N, ...) -> (N, *shape)."""

    shape: Shape = ()

    def output_shape(self, *shapes: Shape) -> Shape:
        """The same number of values in another shape."""
        if np.prod(self.shape) != np.prod(shapes[0]):
            raise ValueError(f"cannot reshape {shapes[0]} into {self.shape}: the numbers of values differ")
        return self.shape

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """A view of the same numbers."""
        return xs[0].reshape(len(xs[0]), *self.output_shape(xs[0].shape[1:])), xs[0].shape

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """And back."""
        return [dy.reshape(cache)] if need_dx else [], {}


class Flatten(Reshape):
    """(N, H, W, C) -> (N, H * W * C), row by row as they lie in memory."""

    def output_shape(self, *shapes: Shape) -> Shape:
        """Everything in one axis."""
        return (int(np.prod(shapes[0])),)


# ---- layers with several inputs


class Add(Layer):
    """Sum of two inputs of the same shape."""

    arity: ClassVar[int] = 2

    def output_shape(self, *shapes: Shape) -> Shape:
        """That of the inputs."""
        if shapes[0] != shapes[1]:
            raise ValueError(f"needs two inputs of one shape, found {' and '.join(map(str, shapes))}")
        return shapes[0]

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """Needs no cache."""
        return ops.add(xs[0], xs[1]), None

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """The same gradient for both."""
        return [dy, dy] if need_dx else [], {}


class Concat(Layer):
    """Inputs of one height and width, their channels side by side."""

    arity: ClassVar[int] = 0

    def output_shape(self, *shapes: Shape) -> Shape:
        """(..., C1), (..., C2), ... -> (..., C1 + C2 + ...)."""
        if len({shape[:-1] for shape in shapes}) != 1:
            raise ValueError(f"needs inputs of one height and width, found {', '.join(map(str, shapes))}")
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def forward(self, ops: ModuleType, params: Params, xs: list[Array], training: Training, rng: Any) -> tuple[Array, Any]:
        """Keeps where each input ends."""
        return ops.concat(xs), np.cumsum([x.shape[-1] for x in xs])[:-1]

    def backward(self, ops: ModuleType, params: Params, dy: Array, cache: Any, need_dx: bool) -> tuple[list[Array], Params]:
        """Each input gets its channels."""
        return [np.ascontiguousarray(part) for part in np.split(dy, cache, axis=-1)] if need_dx else [], {}
