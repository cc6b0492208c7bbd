"""The plain truth: every float kernel as one short NumPy function.

In and out: arrays, numbers and tuples; nothing is kept, nothing is changed in place. Images are NHWC, convolution kernels HWIO,
depthwise kernels HWC, dense kernels (in, out); padding is four numbers (top, bottom, left, right) from geometry.py.
kernels.py has the same functions under the same names for speed; tests run one body over both. Any float dtype works, and
float64 is what the finite differences in the tests use. The integer kernels have their own file, reference_int8.py.

`dy` is the gradient of the loss with respect to `y`. A function NAME_dx returns the gradient for the input of NAME, NAME_dkernel
the one for its kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .geometry import Padding, Pair, output_hw

Array = np.ndarray


def _pad(x: Array, padding: Padding, value: float = 0.0) -> Array:
    """(N, H, W, C) -> (N, top + H + bottom, left + W + right, C), the border filled with `value`."""
    top, bottom, left, right = padding
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def _unpad(x: Array, padding: Padding) -> Array:
    """The inverse of _pad for gradients: cut the border off."""
    top, bottom, left, right = padding
    return x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]


def _taps(window: Pair, strides: Pair, out_hw: Pair) -> Iterator[tuple[int, int, tuple[slice, slice, slice]]]:
    """For each position (i, j) inside the window: which pixels of the padded image it meets, as an index giving (N, OH, OW, C)."""
    for i in range(window[0]):
        for j in range(window[1]):
            rows = slice(i, i + (out_hw[0] - 1) * strides[0] + 1, strides[0])
            columns = slice(j, j + (out_hw[1] - 1) * strides[1] + 1, strides[1])
            yield i, j, (slice(None), rows, columns)


# ---- convolutions: y[n, r, c, o] = sum over i, j, k of x[n, r * sh + i - top, c * sw + j - left, k] * kernel[i, j, k, o]


def conv2d(x: Array, kernel: Array, strides: Pair, padding: Padding, bias: Array | None = None) -> Array:
    """(N, H, W, I), (kh, kw, I, O), (O,) -> (N, OH, OW, O). A correlation, as in all deep learning: the kernel is not flipped."""
    out_hw = output_hw(x.shape[1], x.shape[2], kernel.shape[:2], strides, padding)
    padded = _pad(x, padding)
    y = np.zeros((x.shape[0], *out_hw, kernel.shape[3]), x.dtype)
    for i, j, tap in _taps(kernel.shape[:2], strides, out_hw):
        y += padded[tap] @ kernel[i, j]
    return y if bias is None else y + bias


def conv2d_dx(dy: Array, kernel: Array, strides: Pair, padding: Padding, hw: Pair) -> Array:
    """(N, OH, OW, O), (kh, kw, I, O) -> (N, H, W, I) with (H, W) = hw: each output hands its gradient to the pixels it has seen."""
    top, bottom, left, right = padding
    padded = np.zeros((dy.shape[0], hw[0] + top + bottom, hw[1] + left + right, kernel.shape[2]), dy.dtype)
    for i, j, tap in _taps(kernel.shape[:2], strides, dy.shape[1:3]):
        padded[tap] += dy @ kernel[i, j].T
    return _unpad(padded, padding)


def conv2d_dkernel(x: Array, dy: Array, strides: Pair, padding: Padding, window: Pair) -> Array:
    """(N, H, W, I), (N, OH, OW, O) -> (kh, kw, I, O)."""
    padded = _pad(x, padding)
    dkernel = np.zeros((*window, x.shape[3], dy.shape[3]), x.dtype)
    for i, j, tap in _taps(window, strides, dy.shape[1:3]):
        dkernel[i, j] = np.einsum("nrci,nrco->io", padded[tap], dy)
    return dkernel


def depthwise_conv2d(x: Array, kernel: Array, strides: Pair, padding: Padding, bias: Array | None = None) -> Array:
    """(N, H, W, C), (kh, kw, C), (C,) -> (N, OH, OW, C): each channel has its own small kernel and never meets the others."""
    out_hw = output_hw(x.shape[1], x.shape[2], kernel.shape[:2], strides, padding)
    padded = _pad(x, padding)
    y = np.zeros((x.shape[0], *out_hw, x.shape[3]), x.dtype)
    for i, j, tap in _taps(kernel.shape[:2], strides, out_hw):
        y += padded[tap] * kernel[i, j]
    return y if bias is None else y + bias


def depthwise_conv2d_dx(dy: Array, kernel: Array, strides: Pair, padding: Padding, hw: Pair) -> Array:
    """(N, OH, OW, C), (kh, kw, C) -> (N, H, W, C) with (H, W) = hw."""
    top, bottom, left, right = padding
    padded = np.zeros((dy.shape[0], hw[0] + top + bottom, hw[1] + left + right, dy.shape[3]), dy.dtype)
    for i, j, tap in _taps(kernel.shape[:2], strides, dy.shape[1:3]):
        padded[tap] += dy * kernel[i, j]
    return _unpad(padded, padding)


def depthwise_conv2d_dkernel(x: Array, dy: Array, strides: Pair, padding: Padding, window: Pair) -> Array:
    """(N, H, W, C), (N, OH, OW, C) -> (kh, kw, C)."""
    padded = _pad(x, padding)
    dkernel = np.zeros((*window, x.shape[3]), x.dtype)
    for i, j, tap in _taps(window, strides, dy.shape[1:3]):
        dkernel[i, j] = (padded[tap] * dy).sum(axis=(0, 1, 2))
    return dkernel


# ---- dense layers, biases


def dense(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """(N, I), (I, O), (O,) -> (N, O)."""
    return x @ kernel if bias is None else x @ kernel + bias


def dense_dx(dy: Array, kernel: Array) -> Array:
    """(N, O), (I, O) -> (N, I)."""
    return dy @ kernel.T


def dense_dkernel(x: Array, dy: Array) -> Array:
    """(N, I), (N, O) -> (I, O)."""
    return x.T @ dy


def channel_sum(dy: Array) -> Array:
    """(..., C) -> (C,): the gradient of a bias. Summed in double precision: a batch has 10^5 pixels."""
    return dy.sum(axis=tuple(range(dy.ndim - 1)), dtype=np.float64).astype(dy.dtype)


# ---- batch normalisation (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167, algorithm 1)


def moments(x: Array) -> tuple[Array, Array]:
    """(..., C) -> mean (C,), variance (C,) over everything but the channel; the variance is the biased one (divided by n).

    Summed in double precision, and in two passes: the mean of the squares less the square of the mean would cancel.
    """
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axis=axes, dtype=np.float64)
    return mean.astype(x.dtype), ((x - mean) ** 2).mean(axis=axes).astype(x.dtype)


def batch_norm(x: Array, mean: Array, variance: Array, gamma: Array, beta: Array, epsilon: float, high: float | None = None) -> Array:
    """(..., C) -> (..., C): gamma * (x - mean) / sqrt(variance + epsilon) + beta; clamped to 0..high, where high is not None."""
    y = (x - mean) * (gamma / np.sqrt(variance + x.dtype.type(epsilon))) + beta
    return y if high is None else np.clip(y, 0, x.dtype.type(high))


def batch_norm_training(
    x: Array, mean: Array, variance: Array, from_batch: Array, gamma: Array, beta: Array, epsilon: float, high: float | None = None
) -> tuple[Array, Array, Array]:
    """-> y (..., C), and the mean (C,) and variance (C,) that were used: the batch's where from_batch (C,) is True, else those given."""
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
    """-> dx (..., C), dgamma (C,), dbeta (C,).

    from_batch (C,) bool: channels whose mean and variance were computed from this x, and so carry gradient themselves; the others
    ran on stored statistics, which are constants. Where the clamp has changed the output, no gradient passes.
    """
    if high is not None:
        y = batch_norm(x, mean, variance, gamma, beta, epsilon)
        dy = np.where((y > 0) & (y < high), dy, dy.dtype.type(0))
    inverse = 1 / np.sqrt(variance + x.dtype.type(epsilon))
    normalised = (x - mean) * inverse
    dbeta = channel_sum(dy)
    dgamma = channel_sum(dy * normalised)
    count = x.size // x.shape[-1]
    through_statistics = np.where(from_batch, (dbeta + normalised * dgamma) / x.dtype.type(count), 0)
    return (gamma * inverse) * (dy - through_statistics), dgamma, dbeta


# ---- activations


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.maximum(x, 0)


def relu_dx(dy: Array, y: Array) -> Array:
    """dy where the output is positive, else 0."""
    return np.where(y > 0, dy, dy.dtype.type(0))


def relu6(x: Array) -> Array:
    """min(max(x, 0), 6): the bound keeps activations in a range that 8 bits resolve well (MobileNet, arXiv:1704.04861)."""
    return np.minimum(np.maximum(x, 0), 6)


def relu6_dx(dy: Array, y: Array) -> Array:
    """dy where the output lies strictly between the bounds, else 0."""
    return np.where((y > 0) & (y < 6), dy, dy.dtype.type(0))


# ---- pooling


def global_average_pool(x: Array) -> Array:
    """(N, H, W, C) -> (N, C)."""
    return x.mean(axis=(1, 2))


def global_average_pool_dx(dy: Array, hw: Pair) -> Array:
    """(N, C) -> (N, H, W, C) with (H, W) = hw."""
    n, c = dy.shape
    return np.broadcast_to((dy / dy.dtype.type(hw[0] * hw[1]))[:, None, None, :], (n, *hw, c)).copy()


def _pool_counts(hw: Pair, window: Pair, strides: Pair, padding: Padding) -> Array:
    """(1, OH, OW, 1): how many real pixels each window meets."""
    inside = _pad(np.ones((1, *hw, 1)), padding)
    out_hw = output_hw(*hw, window, strides, padding)
    return sum((inside[tap] for _, _, tap in _taps(window, strides, out_hw)), np.zeros((1, *out_hw, 1)))


def average_pool(x: Array, window: Pair, strides: Pair, padding: Padding) -> Array:
    """(N, H, W, C) -> (N, OH, OW, C): mean over the real pixels of the window; padding does not count (TensorFlow's rule)."""
    counts = _pool_counts(x.shape[1:3], window, strides, padding).astype(x.dtype)
    padded = _pad(x, padding)
    y = np.zeros((x.shape[0], *counts.shape[1:3], x.shape[3]), x.dtype)
    for _, _, tap in _taps(window, strides, counts.shape[1:3]):
        y += padded[tap]
    return y / counts


def average_pool_dx(dy: Array, window: Pair, strides: Pair, padding: Padding, hw: Pair) -> Array:
    """(N, OH, OW, C) -> (N, H, W, C) with (H, W) = hw."""
    top, bottom, left, right = padding
    share = dy / _pool_counts(hw, window, strides, padding).astype(dy.dtype)
    padded = np.zeros((dy.shape[0], hw[0] + top + bottom, hw[1] + left + right, dy.shape[3]), dy.dtype)
    for _, _, tap in _taps(window, strides, dy.shape[1:3]):
        padded[tap] += share
    return _unpad(padded, padding)


def max_pool(x: Array, window: Pair, strides: Pair, padding: Padding) -> Array:
    """(N, H, W, C) -> (N, OH, OW, C): maximum over the real pixels of the window."""
    padded = _pad(x, padding, -np.inf)
    out_hw = output_hw(x.shape[1], x.shape[2], window, strides, padding)
    return np.max([padded[tap] for _, _, tap in _taps(window, strides, out_hw)], axis=0)


def max_pool_dx(dy: Array, x: Array, y: Array, window: Pair, strides: Pair, padding: Padding) -> Array:
    """-> (N, H, W, C): the whole gradient goes to the first pixel of the window (row by row) that holds the maximum."""
    padded = _pad(x, padding, np.nan)  # equal to nothing: no gradient can end in the padding
    dx = np.zeros(padded.shape, dy.dtype)
    taken = np.zeros(y.shape, bool)
    for _, _, tap in _taps(window, strides, y.shape[1:3]):
        here = (padded[tap] == y) & ~taken
        dx[tap] += np.where(here, dy, dy.dtype.type(0))
        taken |= here
    return _unpad(dx, padding)


# ---- joining branches


def add(a: Array, b: Array) -> Array:
    """A residual connection: (N, H, W, C) twice -> (N, H, W, C)."""
    return a + b


def concat(xs: Sequence[Array]) -> Array:
    """Channels side by side: (N, H, W, C1), (N, H, W, C2), ... -> (N, H, W, C1 + C2 + ...)."""
    return np.concatenate(xs, axis=-1)


# ---- the loss


def softmax(logits: Array) -> Array:
    """(N, C) -> (N, C): probabilities; the maximum is subtracted first so that nothing overflows."""
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def softmax_cross_entropy(logits: Array, targets: Array) -> tuple[Array, Array]:
    """(N, C), targets (N, C) with rows that sum to 1 -> losses (N,) in nats, gradient of their mean with respect to the logits (N, C).

    -sum(t * log p) has the gradient p - t with respect to the logits: softmax and logarithm cancel.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -(targets * log_p).sum(axis=1), (np.exp(log_p) - targets) / logits.dtype.type(len(logits))
