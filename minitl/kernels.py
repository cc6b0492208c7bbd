"""The fast twins of reference.py: the same names, the same arguments, the same numbers up to rounding.

Loops compiled by Numba; where the work is one matrix product (1x1 convolutions, the rest of a convolution after its patches are laid
out), NumPy's BLAS does it. Patches are laid out one image at a time: they stay in the cache and do not grow with the batch. A 1x1
convolution is one product over the whole batch, so that its last bits may depend on the batch's size.
The innermost loop always runs over channels, which lie side by side in memory, so that it becomes vector instructions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .geometry import Padding, Pair, output_hw
from .jit import njit

Array = np.ndarray


# ---- convolutions


def _is_pointwise(window: Pair, strides: Pair, padding: Padding) -> bool:
    return window == (1, 1) and strides == (1, 1) and not any(padding)


@njit
def _patches(x, kh, kw, sh, sw, top, left, out):  # type: ignore[no-untyped-def]
    """One image (H, W, I) -> out (OH, OW, kh * kw * I): each row is what one window sees, zeros outside of the image."""
    height, width, channels = x.shape
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            at = 0
            for i in range(kh):
                for j in range(kw):
                    row, column = r * sh + i - top, c * sw + j - left
                    if 0 <= row < height and 0 <= column < width:
                        for k in range(channels):
                            out[r, c, at + k] = x[row, column, k]
                    else:
                        for k in range(channels):
                            out[r, c, at + k] = 0
                    at += channels


@njit
def _unpatch(dpatches, kh, kw, sh, sw, top, left, dx):  # type: ignore[no-untyped-def]
    """The transpose of _patches: sum the gradients of all windows that saw a pixel into dx (H, W, I)."""
    height, width, channels = dx.shape
    dx[:] = 0
    for r in range(dpatches.shape[0]):
        for c in range(dpatches.shape[1]):
            at = 0
            for i in range(kh):
                for j in range(kw):
                    row, column = r * sh + i - top, c * sw + j - left
                    if 0 <= row < height and 0 <= column < width:
                        for k in range(channels):
                            dx[row, column, k] += dpatches[r, c, at + k]
                    at += channels


@njit
def _add_bias(y, bias):  # type: ignore[no-untyped-def]
    for n in range(y.shape[0]):
        for c in range(y.shape[1]):
            y[n, c] += bias[c]


def _biased(y: Array, bias: Array | None) -> Array:
    """Add the bias to a product that nobody else has seen yet, in place."""
    if bias is not None:
        _add_bias(y.reshape(-1, y.shape[-1]), bias)
    return y


def conv2d(x: Array, kernel: Array, strides: Pair, padding: Padding, bias: Array | None = None) -> Array:
    """(N, H, W, I), (kh, kw, I, O), (O,) -> (N, OH, OW, O)."""
    kh, kw, inputs, outputs = kernel.shape
    flat = kernel.reshape(-1, outputs)
    if _is_pointwise((kh, kw), strides, padding):
        return _biased((x.reshape(-1, inputs) @ flat).reshape(*x.shape[:3], outputs), bias)
    oh, ow = output_hw(x.shape[1], x.shape[2], (kh, kw), strides, padding)
    y = np.empty((x.shape[0], oh, ow, outputs), x.dtype)
    patches = np.empty((oh, ow, kh * kw * inputs), x.dtype)
    for n in range(x.shape[0]):
        _patches(x[n], kh, kw, *strides, padding[0], padding[2], patches)
        np.matmul(patches.reshape(oh * ow, -1), flat, out=y[n].reshape(oh * ow, outputs))
    return _biased(y, bias)


def conv2d_dx(dy: Array, kernel: Array, strides: Pair, padding: Padding, hw: Pair) -> Array:
    """(N, OH, OW, O), (kh, kw, I, O) -> (N, H, W, I) with (H, W) = hw."""
    kh, kw, inputs, outputs = kernel.shape
    flat = kernel.reshape(-1, outputs)
    n, oh, ow, _ = dy.shape
    if _is_pointwise((kh, kw), strides, padding):
        return (dy.reshape(-1, outputs) @ flat.T).reshape(n, oh, ow, inputs)
    dx = np.empty((n, *hw, inputs), dy.dtype)
    for image in range(n):
        dpatches = (dy[image].reshape(oh * ow, outputs) @ flat.T).reshape(oh, ow, -1)
        _unpatch(dpatches, kh, kw, *strides, padding[0], padding[2], dx[image])
    return dx


def conv2d_dkernel(x: Array, dy: Array, strides: Pair, padding: Padding, window: Pair) -> Array:
    """(N, H, W, I), (N, OH, OW, O) -> (kh, kw, I, O)."""
    n, oh, ow, outputs = dy.shape
    inputs = x.shape[3]
    if _is_pointwise(window, strides, padding):
        return (x.reshape(-1, inputs).T @ dy.reshape(-1, outputs)).reshape(1, 1, inputs, outputs)
    patches = np.empty((oh, ow, window[0] * window[1] * inputs), x.dtype)
    dkernel = np.zeros((patches.shape[2], outputs), x.dtype)
    for image in range(n):
        _patches(x[image], *window, *strides, padding[0], padding[2], patches)
        dkernel += patches.reshape(oh * ow, -1).T @ dy[image].reshape(oh * ow, outputs)
    return dkernel.reshape(*window, inputs, outputs)


@njit
def _depthwise(x, kernel, bias, sh, sw, top, left, y):  # type: ignore[no-untyped-def]
    batch, height, width, channels = x.shape
    for n in range(batch):
        for r in range(y.shape[1]):
            for c in range(y.shape[2]):
                for k in range(channels):
                    y[n, r, c, k] = bias[k]
                for i in range(kernel.shape[0]):
                    row = r * sh + i - top
                    if 0 <= row < height:
                        for j in range(kernel.shape[1]):
                            column = c * sw + j - left
                            if 0 <= column < width:
                                for k in range(channels):
                                    y[n, r, c, k] += x[n, row, column, k] * kernel[i, j, k]


@njit
def _depthwise_dx(dy, kernel, sh, sw, top, left, dx):  # type: ignore[no-untyped-def]
    batch, height, width, channels = dx.shape
    dx[:] = 0
    for n in range(batch):
        for r in range(dy.shape[1]):
            for i in range(kernel.shape[0]):
                row = r * sh + i - top
                if 0 <= row < height:
                    for c in range(dy.shape[2]):
                        for j in range(kernel.shape[1]):
                            column = c * sw + j - left
                            if 0 <= column < width:
                                for k in range(channels):
                                    dx[n, row, column, k] += dy[n, r, c, k] * kernel[i, j, k]


@njit
def _depthwise_dkernel(x, dy, sh, sw, top, left, dkernel):  # type: ignore[no-untyped-def]
    batch, height, width, channels = x.shape
    dkernel[:] = 0
    of_image = np.empty_like(dkernel)  # summed image by image: one long sum of 10^5 terms would lose digits
    for n in range(batch):
        of_image[:] = 0
        for r in range(dy.shape[1]):
            for i in range(dkernel.shape[0]):
                row = r * sh + i - top
                if 0 <= row < height:
                    for c in range(dy.shape[2]):
                        for j in range(dkernel.shape[1]):
                            column = c * sw + j - left
                            if 0 <= column < width:
                                for k in range(channels):
                                    of_image[i, j, k] += x[n, row, column, k] * dy[n, r, c, k]
        dkernel += of_image


def depthwise_conv2d(x: Array, kernel: Array, strides: Pair, padding: Padding, bias: Array | None = None) -> Array:
    """(N, H, W, C), (kh, kw, C), (C,) -> (N, OH, OW, C)."""
    y = np.empty((x.shape[0], *output_hw(x.shape[1], x.shape[2], kernel.shape[:2], strides, padding), x.shape[3]), x.dtype)
    _depthwise(x, kernel, np.zeros(x.shape[3], x.dtype) if bias is None else bias, *strides, padding[0], padding[2], y)
    return y


def depthwise_conv2d_dx(dy: Array, kernel: Array, strides: Pair, padding: Padding, hw: Pair) -> Array:
    """(N, OH, OW, C), (kh, kw, C) -> (N, H, W, C) with (H, W) = hw."""
    dx = np.empty((dy.shape[0], *hw, dy.shape[3]), dy.dtype)
    _depthwise_dx(dy, kernel, *strides, padding[0], padding[2], dx)
    return dx


def depthwise_conv2d_dkernel(x: Array, dy: Array, strides: Pair, padding: Padding, window: Pair) -> Array:
    """(N, H, W, C), (N, OH, OW, C) -> (kh, kw, C)."""
    dkernel = np.empty((*window, x.shape[3]), x.dtype)
    _depthwise_dkernel(x, dy, *strides, padding[0], padding[2], dkernel)
    return dkernel


# ---- dense layers, biases


@njit
def _dense(x, kernel, bias, y):  # type: ignore[no-untyped-def]
    for n in range(x.shape[0]):
        for o in range(kernel.shape[1]):
            y[n, o] = bias[o]
        for i in range(kernel.shape[0]):
            for o in range(kernel.shape[1]):
                y[n, o] += x[n, i] * kernel[i, o]


@njit
def _dense_dx(dy, kernel, dx):  # type: ignore[no-untyped-def]
    for n in range(dy.shape[0]):
        for i in range(kernel.shape[0]):
            total = dy[n, 0] * kernel[i, 0]
            for o in range(1, kernel.shape[1]):
                total += dy[n, o] * kernel[i, o]
            dx[n, i] = total


@njit
def _dense_dkernel(x, dy, dkernel):  # type: ignore[no-untyped-def]
    dkernel[:] = 0
    for n in range(x.shape[0]):
        for i in range(x.shape[1]):
            for o in range(dy.shape[1]):
                dkernel[i, o] += x[n, i] * dy[n, o]


def dense(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """(N, I), (I, O), (O,) -> (N, O). Summed in the same order whatever the batch: an answer never depends on the neighbours."""
    y = np.empty((x.shape[0], kernel.shape[1]), x.dtype)
    _dense(x, kernel, np.zeros(kernel.shape[1], x.dtype) if bias is None else bias, y)
    return y


def dense_dx(dy: Array, kernel: Array) -> Array:
    """(N, O), (I, O) -> (N, I)."""
    dx = np.empty((dy.shape[0], kernel.shape[0]), dy.dtype)
    _dense_dx(dy, kernel, dx)
    return dx


def dense_dkernel(x: Array, dy: Array) -> Array:
    """(N, I), (N, O) -> (I, O)."""
    dkernel = np.empty((x.shape[1], dy.shape[1]), x.dtype)
    _dense_dkernel(x, dy, dkernel)
    return dkernel


@njit
def _channel_sum(x, total):  # type: ignore[no-untyped-def]
    total[:] = 0
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            total[c] += x[n, c]


def channel_sum(dy: Array) -> Array:
    """(..., C) -> (C,). Summed in double precision: a batch has 10^5 pixels."""
    total = np.empty(dy.shape[-1])
    _channel_sum(dy.reshape(-1, dy.shape[-1]), total)
    return total.astype(dy.dtype)


# ---- batch normalisation


@njit
def _squares(x, mean, total):  # type: ignore[no-untyped-def]
    total[:] = 0
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            total[c] += (x[n, c] - mean[c]) * (x[n, c] - mean[c])


@njit
def _products(dy, x, mean, total):  # type: ignore[no-untyped-def]
    total[:] = 0
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            total[c] += dy[n, c] * (x[n, c] - mean[c])


@njit
def _normalise(x, mean, scale, beta, y):  # type: ignore[no-untyped-def]
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            y[n, c] = (x[n, c] - mean[c]) * scale[c] + beta[c]


@njit
def _normalise_dx(dy, x, mean, scale, slope, shift, dx):  # type: ignore[no-untyped-def]
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            dx[n, c] = dy[n, c] * scale[c] + (x[n, c] - mean[c]) * slope[c] + shift[c]


def moments(x: Array) -> tuple[Array, Array]:
    """(..., C) -> mean (C,), variance (C,)."""
    rows = x.reshape(-1, x.shape[-1])
    mean = np.empty(rows.shape[1])
    _channel_sum(rows, mean)
    mean /= len(rows)
    variance = np.empty(rows.shape[1])
    _squares(rows, mean, variance)
    return mean.astype(x.dtype), (variance / len(rows)).astype(x.dtype)


def batch_norm(x: Array, mean: Array, variance: Array, gamma: Array, beta: Array, epsilon: float, high: float | None = None) -> Array:
    """(..., C) -> (..., C)."""
    scale = gamma / np.sqrt(variance + x.dtype.type(epsilon))
    y = np.empty(x.shape, x.dtype)
    _normalise(x.reshape(-1, x.shape[-1]), mean, scale, beta, y.reshape(-1, x.shape[-1]))
    return y if high is None else _clamped(y, high)


def batch_norm_training(
    x: Array, mean: Array, variance: Array, from_batch: Array, gamma: Array, beta: Array, epsilon: float, high: float | None = None
) -> tuple[Array, Array, Array]:
    """-> y (..., C), mean (C,), variance (C,)."""
    batch_mean, batch_variance = moments(x)
    mean, variance = np.where(from_batch, batch_mean, mean), np.where(from_batch, batch_variance, variance)
    return batch_norm(x, mean, variance, gamma, beta, epsilon, high), mean, variance


def batch_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array,
    beta: Array,
    epsilon: float,
    from_batch: Array,
    high: float | None = None,
) -> tuple[Array, Array, Array]:
    """-> dx (..., C), dgamma (C,), dbeta (C,): two sums over the batch, then dx is affine in dy and x."""
    if high is not None:
        dy = _clamped_dx(dy, batch_norm(x, mean, variance, gamma, beta, epsilon), high)
    rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, x.shape[-1])
    inverse = 1 / np.sqrt(variance + x.dtype.type(epsilon))
    dbeta = channel_sum(dy)
    product = np.empty(rows.shape[1])
    _products(drows, rows, mean, product)
    dgamma = (product * inverse).astype(x.dtype)
    scale = gamma * inverse
    slope = np.where(from_batch, -scale * dgamma * inverse / x.dtype.type(len(rows)), 0).astype(x.dtype)
    shift = np.where(from_batch, -scale * dbeta / x.dtype.type(len(rows)), 0).astype(x.dtype)
    dx = np.empty(x.shape, x.dtype)
    _normalise_dx(drows, rows, mean, scale, slope, shift, dx.reshape(-1, x.shape[-1]))
    return dx, dgamma, dbeta


# ---- activations

UNBOUNDED = np.nan  # nothing is above it, not even infinity


@njit
def _clamp(x, high, y):  # type: ignore[no-untyped-def]
    for n in range(x.size):
        value = x[n] if x[n] > 0 or x[n] != x[n] else x.dtype.type(0)  # a NaN stays a NaN
        y[n] = value if not value > high else high


@njit
def _clamp_dx(dy, y, high, dx):  # type: ignore[no-untyped-def]
    for n in range(y.size):
        dx[n] = dy[n] if y[n] > 0 and not y[n] >= high else dy.dtype.type(0)


def _clamped(x: Array, high: float) -> Array:
    y = np.empty(x.shape, x.dtype)
    _clamp(x.reshape(-1), x.dtype.type(high), y.reshape(-1))
    return y


def _clamped_dx(dy: Array, y: Array, high: float) -> Array:
    dx = np.empty(y.shape, y.dtype)
    _clamp_dx(dy.reshape(-1), y.reshape(-1), y.dtype.type(high), dx.reshape(-1))
    return dx


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return _clamped(x, UNBOUNDED)


def relu_dx(dy: Array, y: Array) -> Array:
    """dy where the output is positive, else 0."""
    return _clamped_dx(dy, y, UNBOUNDED)


def relu6(x: Array) -> Array:
    """min(max(x, 0), 6)."""
    return _clamped(x, 6.0)


def relu6_dx(dy: Array, y: Array) -> Array:
    """dy where the output lies strictly between the bounds, else 0."""
    return _clamped_dx(dy, y, 6.0)


# ---- pooling: only the real pixels of a window are visited


@njit
def _average_pool(x, kh, kw, sh, sw, top, left, y):  # type: ignore[no-untyped-def]
    batch, height, width, channels = x.shape
    for n in range(batch):
        for r in range(y.shape[1]):
            first_row, last_row = max(r * sh - top, 0), min(r * sh - top + kh, height)
            for c in range(y.shape[2]):
                first_column, last_column = max(c * sw - left, 0), min(c * sw - left + kw, width)
                share = 1.0 / ((last_row - first_row) * (last_column - first_column))
                for k in range(channels):
                    y[n, r, c, k] = 0
                for row in range(first_row, last_row):
                    for column in range(first_column, last_column):
                        for k in range(channels):
                            y[n, r, c, k] += x[n, row, column, k]
                for k in range(channels):
                    y[n, r, c, k] *= share


@njit
def _average_pool_dx(dy, kh, kw, sh, sw, top, left, dx):  # type: ignore[no-untyped-def]
    batch, height, width, channels = dx.shape
    dx[:] = 0
    for n in range(batch):
        for r in range(dy.shape[1]):
            first_row, last_row = max(r * sh - top, 0), min(r * sh - top + kh, height)
            for c in range(dy.shape[2]):
                first_column, last_column = max(c * sw - left, 0), min(c * sw - left + kw, width)
                share = 1.0 / ((last_row - first_row) * (last_column - first_column))
                for row in range(first_row, last_row):
                    for column in range(first_column, last_column):
                        for k in range(channels):
                            dx[n, row, column, k] += dy[n, r, c, k] * share


@njit
def _max_pool(x, kh, kw, sh, sw, top, left, y):  # type: ignore[no-untyped-def]
    batch, height, width, channels = x.shape
    for n in range(batch):
        for r in range(y.shape[1]):
            first_row, last_row = max(r * sh - top, 0), min(r * sh - top + kh, height)
            for c in range(y.shape[2]):
                first_column, last_column = max(c * sw - left, 0), min(c * sw - left + kw, width)
                for k in range(channels):
                    y[n, r, c, k] = x[n, first_row, first_column, k]
                for row in range(first_row, last_row):
                    for column in range(first_column, last_column):
                        for k in range(channels):
                            if x[n, row, column, k] > y[n, r, c, k] or x[n, row, column, k] != x[n, row, column, k]:
                                y[n, r, c, k] = x[n, row, column, k]


@njit
def _max_pool_dx(dy, x, y, kh, kw, sh, sw, top, left, dx):  # type: ignore[no-untyped-def]
    batch, height, width, channels = x.shape
    dx[:] = 0
    for n in range(batch):
        for r in range(y.shape[1]):
            first_row, last_row = max(r * sh - top, 0), min(r * sh - top + kh, height)
            for c in range(y.shape[2]):
                first_column, last_column = max(c * sw - left, 0), min(c * sw - left + kw, width)
                for k in range(channels):
                    taken = False
                    for row in range(first_row, last_row):
                        for column in range(first_column, last_column):
                            if not taken and x[n, row, column, k] == y[n, r, c, k]:
                                dx[n, row, column, k] += dy[n, r, c, k]
                                taken = True


def global_average_pool(x: Array) -> Array:
    """(N, H, W, C) -> (N, C)."""
    return average_pool(x, x.shape[1:3], (1, 1), (0, 0, 0, 0))[:, 0, 0]


def global_average_pool_dx(dy: Array, hw: Pair) -> Array:
    """(N, C) -> (N, H, W, C) with (H, W) = hw."""
    return average_pool_dx(dy[:, None, None], hw, (1, 1), (0, 0, 0, 0), hw)


def average_pool(x: Array, window: Pair, strides: Pair, padding: Padding) -> Array:
    """(N, H, W, C) -> (N, OH, OW, C)."""
    y = np.empty((x.shape[0], *output_hw(x.shape[1], x.shape[2], window, strides, padding), x.shape[3]), x.dtype)
    _average_pool(x, *window, *strides, padding[0], padding[2], y)
    return y


def average_pool_dx(dy: Array, window: Pair, strides: Pair, padding: Padding, hw: Pair) -> Array:
    """(N, OH, OW, C) -> (N, H, W, C) with (H, W) = hw."""
    dx = np.empty((dy.shape[0], *hw, dy.shape[3]), dy.dtype)
    _average_pool_dx(dy, *window, *strides, padding[0], padding[2], dx)
    return dx


def max_pool(x: Array, window: Pair, strides: Pair, padding: Padding) -> Array:
    """(N, H, W, C) -> (N, OH, OW, C)."""
    y = np.empty((x.shape[0], *output_hw(x.shape[1], x.shape[2], window, strides, padding), x.shape[3]), x.dtype)
    _max_pool(x, *window, *strides, padding[0], padding[2], y)
    return y


def max_pool_dx(dy: Array, x: Array, y: Array, window: Pair, strides: Pair, padding: Padding) -> Array:
    """-> (N, H, W, C)."""
    dx = np.empty(x.shape, x.dtype)
    _max_pool_dx(dy, x, y, *window, *strides, padding[0], padding[2], dx)
    return dx


# ---- joining branches


@njit
def _add(a, b, y):  # type: ignore[no-untyped-def]
    for n in range(a.size):
        y[n] = a[n] + b[n]


@njit
def _copy_channels(x, first, y):  # type: ignore[no-untyped-def]
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            y[n, first + c] = x[n, c]


def add(a: Array, b: Array) -> Array:
    """(N, H, W, C) twice -> (N, H, W, C)."""
    y = np.empty(a.shape, a.dtype)
    _add(a.reshape(-1), b.reshape(-1), y.reshape(-1))
    return y


def concat(xs: Sequence[Array]) -> Array:
    """(..., C1), (..., C2), ... -> (..., C1 + C2 + ...)."""
    y = np.empty((*xs[0].shape[:-1], sum(x.shape[-1] for x in xs)), xs[0].dtype)
    first = 0
    for x in xs:
        _copy_channels(x.reshape(-1, x.shape[-1]), first, y.reshape(-1, y.shape[-1]))
        first += x.shape[-1]
    return y


# ---- the loss


@njit
def _softmax(logits, p):  # type: ignore[no-untyped-def]
    for n in range(logits.shape[0]):
        high = logits[n].max()
        total = logits.dtype.type(0)
        for c in range(logits.shape[1]):
            p[n, c] = np.exp(logits[n, c] - high)
            total += p[n, c]
        for c in range(logits.shape[1]):
            p[n, c] /= total


@njit
def _softmax_cross_entropy(logits, targets, losses, dlogits):  # type: ignore[no-untyped-def]
    count = logits.dtype.type(logits.shape[0])
    for n in range(logits.shape[0]):
        high = logits[n].max()
        total = logits.dtype.type(0)
        for c in range(logits.shape[1]):
            total += np.exp(logits[n, c] - high)
        log_total = np.log(total)
        losses[n] = 0
        for c in range(logits.shape[1]):
            log_p = logits[n, c] - high - log_total
            losses[n] -= targets[n, c] * log_p
            dlogits[n, c] = (np.exp(log_p) - targets[n, c]) / count


def softmax(logits: Array) -> Array:
    """(N, C) -> (N, C)."""
    p = np.empty(logits.shape, logits.dtype)
    _softmax(logits, p)
    return p


def softmax_cross_entropy(logits: Array, targets: Array) -> tuple[Array, Array]:
    """(N, C), (N, C) -> losses (N,), gradient of their mean (N, C)."""
    losses, dlogits = np.empty(len(logits), logits.dtype), np.empty(logits.shape, logits.dtype)
    _softmax_cross_entropy(logits, targets, losses, dlogits)
    return losses, dlogits
