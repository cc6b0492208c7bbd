"""Integer kernels in plain NumPy: the readable truth that the Numba twins and the emitted C must equal in every bit.

In: int8 arrays (N, H, W, C) or (N, C), int8 kernels with the output channel last, int32 biases, Q31 multipliers with shifts.
Out: int8 arrays. Left out: speed (kernels_int8.py has the same functions, same arguments), shapes that disagree (integer.py
checks once, at construction).

The arithmetic is that of TFLite's reference kernels (tensorflow/lite/kernels/internal/common.h, reference/integer_ops/):
real = scale * (q - zero_point), int32 accumulators, and a requantisation with two roundings:

    requantise(a) = rounding_shift(high_multiply(a * 2**left, multiplier), right)       left = max(shift, 0), right = max(-shift, 0)

Everything is computed in int64 here; integer.py proves at construction that the values between the steps fit int32, so that C
may use int32.
"""

from __future__ import annotations

import numpy as np

Padding = tuple[int, int, int, int]
Pair = tuple[int, int]


def high_multiply(a: np.ndarray, multiplier: np.ndarray | int) -> np.ndarray:
    """floor((a * multiplier + 2**30) / 2**31): the rounded high half of a doubled product (gemmlowp's, for multiplier >= 0)."""
    return (np.asarray(a, np.int64) * multiplier + (1 << 30)) >> 31


def rounding_shift(a: np.ndarray, right: np.ndarray | int) -> np.ndarray:
    """a / 2**right rounded to the nearest integer, halves away from zero; right is 0..31."""
    a = np.asarray(a, np.int64)
    mask = (np.int64(1) << np.asarray(right, np.int64)) - 1
    return (a >> right) + ((a & mask) > (mask >> 1) + (a < 0))


def requantise(a: np.ndarray, multiplier: np.ndarray | int, shift: np.ndarray | int) -> np.ndarray:
    """a * multiplier * 2**(shift - 31) in integers, with TFLite's two roundings; multiplier and shift broadcast over the last axis."""
    shift = np.asarray(shift, np.int64)
    return rounding_shift(high_multiply(np.asarray(a, np.int64) << np.maximum(shift, 0), multiplier), np.maximum(-shift, 0))


def _to_int8(real: np.ndarray, zero: int, act_min: int, act_max: int) -> np.ndarray:
    return np.clip(real + zero, act_min, act_max).astype(np.int8)


def _windows(x: np.ndarray, window: Pair, strides: Pair, padding: Padding, fill: int) -> np.ndarray:
    """Every window of x (N, H, W, C) padded with `fill`, as int64 (N, OH, OW, C, kh, kw)."""
    top, bottom, left, right = padding
    padded = np.pad(x.astype(np.int64), ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(padded, window, (1, 2))[:, :: strides[0], :: strides[1]]


def conv2d(
    x: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray,
    shift: np.ndarray,
    strides: Pair,
    padding: Padding,
    in_zero: int,
    kernel_zero: int,
    out_zero: int,
    act_min: int,
    act_max: int,
) -> np.ndarray:
    """x (N, H, W, C) with kernel (kh, kw, C, O): (N, OH, OW, O). Padded pixels are real zeros, that is in_zero."""
    kh, kw = kernel.shape[:2]
    windows = _windows(x, (kh, kw), strides, padding, in_zero) - in_zero
    total = bias.astype(np.int64) + np.zeros((*windows.shape[:3], 1), np.int64)
    for i in range(kh):
        for j in range(kw):
            total = total + windows[..., i, j] @ (kernel[i, j].astype(np.int64) - kernel_zero)
    return _to_int8(requantise(total, multiplier, shift), out_zero, act_min, act_max)


def depthwise_conv2d(
    x: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray,
    shift: np.ndarray,
    strides: Pair,
    padding: Padding,
    in_zero: int,
    kernel_zero: int,
    out_zero: int,
    act_min: int,
    act_max: int,
) -> np.ndarray:
    """x (N, H, W, C) with kernel (kh, kw, C), each channel by itself: (N, OH, OW, C)."""
    windows = _windows(x, (kernel.shape[0], kernel.shape[1]), strides, padding, in_zero) - in_zero
    total = bias + np.einsum("nhwcij,ijc->nhwc", windows, kernel.astype(np.int64) - kernel_zero)
    return _to_int8(requantise(total, multiplier, shift), out_zero, act_min, act_max)


def dense(
    x: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray,
    shift: np.ndarray,
    in_zero: int,
    kernel_zero: int,
    out_zero: int,
    act_min: int,
    act_max: int,
) -> np.ndarray:
    """x (N, I) with kernel (I, O): (N, O)."""
    total = bias + (x.astype(np.int64) - in_zero) @ (kernel.astype(np.int64) - kernel_zero)
    return _to_int8(requantise(total, multiplier, shift), out_zero, act_min, act_max)


def average_pool(x: np.ndarray, window: Pair, strides: Pair, padding: Padding, act_min: int, act_max: int) -> np.ndarray:
    """Mean of the q of each window, halves away from zero; padded pixels are not counted. Input and output share one scale."""
    total = _windows(x, window, strides, padding, 0).sum((-2, -1))
    count = _windows(np.ones_like(x), window, strides, padding, 0).sum((-2, -1))
    mean = np.sign(total) * ((np.abs(total) + count // 2) // count)
    return np.clip(mean, act_min, act_max).astype(np.int8)


def max_pool(x: np.ndarray, window: Pair, strides: Pair, padding: Padding, act_min: int, act_max: int) -> np.ndarray:
    """Largest q of each window; padded pixels never win."""
    return np.clip(_windows(x, window, strides, padding, -128).max((-2, -1)), act_min, act_max).astype(np.int8)


def global_mean(x: np.ndarray, multiplier: int, shift: int, in_zero: int, out_zero: int) -> np.ndarray:
    """x (N, H, W, C): (N, C). The division by H * W is part of the multiplier: one rounding less than an average pool."""
    total = (x.astype(np.int64) - in_zero).sum((1, 2))
    return _to_int8(requantise(total, multiplier, shift), out_zero, -128, 127)


def add(
    a: np.ndarray,
    b: np.ndarray,
    multipliers: tuple[int, int, int],
    shifts: tuple[int, int, int],
    zeros: tuple[int, int, int],
    act_min: int,
    act_max: int,
) -> np.ndarray:
    """a + b of one shape and three scales, by way of a common scale 2**20 times finer. Tuples: first input, second input, output."""
    one = requantise((a.astype(np.int64) - zeros[0]) << 20, multipliers[0], shifts[0])
    two = requantise((b.astype(np.int64) - zeros[1]) << 20, multipliers[1], shifts[1])
    return _to_int8(requantise(one + two, multipliers[2], shifts[2]), zeros[2], act_min, act_max)


def rescale(x: np.ndarray, multiplier: int, shift: int, in_zero: int, out_zero: int, act_min: int, act_max: int) -> np.ndarray:
    """The same real values on another scale and zero point, as near as the clamp allows."""
    return _to_int8(requantise(x.astype(np.int64) - in_zero, multiplier, shift), out_zero, act_min, act_max)
