"""Integer kernels in Numba: the fast twins of reference_int8.py, with the same names, arguments and bits.

In and out as there. The trick is the loop order alone: sums live in an int32 row over the output channels, which are contiguous
in kernels and outputs, so that LLVM turns the innermost loop into vector instructions. int32 sums are safe because integer.py has
proved that they fit. One thread: callers split batches.
"""

from __future__ import annotations

import numpy as np

from .jit import njit
from .reference_int8 import Padding, Pair


@njit
def _requantise(a: int, multiplier: int, shift: int) -> np.int64:
    """reference_int8.requantise of one value, in int64."""
    high = ((np.int64(a) << max(shift, 0)) * multiplier + (1 << 30)) >> 31
    right = max(-shift, 0)
    mask = (np.int64(1) << right) - 1
    return (high >> right) + np.int64((high & mask) > (mask >> 1) + np.int64(high < 0))


@njit
def _clamp(value: int | np.int64, low: int, high: int) -> np.int8:
    return np.int8(min(max(value, low), high))


@njit
def _finish(acc: np.ndarray, multiplier: np.ndarray, shift: np.ndarray, zero: int, act_min: int, act_max: int, out: np.ndarray) -> None:
    """Requantises a row of int32 sums (O,) into out (O,)."""
    for o in range(acc.size):
        out[o] = _clamp(_requantise(acc[o], multiplier[o], shift[o]) + zero, act_min, act_max)


@njit
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
    n, h, w, channels = x.shape
    kh, kw, _, outputs = kernel.shape
    top, bottom, left, right = padding
    oh = (h + top + bottom - kh) // strides[0] + 1
    ow = (w + left + right - kw) // strides[1] + 1
    y = np.empty((n, oh, ow, outputs), np.int8)
    acc = np.empty(outputs, np.int32)
    minus = np.int32(kernel_zero)
    for image in range(n):
        for r in range(oh):
            for c in range(ow):
                acc[:] = bias
                for i in range(kh):
                    row = r * strides[0] - top + i
                    if row < 0 or row >= h:
                        continue
                    for j in range(kw):
                        column = c * strides[1] - left + j
                        if column < 0 or column >= w:
                            continue
                        for k in range(channels):
                            value = np.int32(x[image, row, column, k] - in_zero)
                            if value != 0:  # after a ReLU often more than half of all values
                                weights = kernel[i, j, k]
                                for o in range(outputs):
                                    acc[o] += np.int32(value * np.int32(weights[o] - minus))
                _finish(acc, multiplier, shift, out_zero, act_min, act_max, y[image, r, c])
    return y


@njit
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
    n, h, w, channels = x.shape
    kh, kw, _ = kernel.shape
    top, bottom, left, right = padding
    oh = (h + top + bottom - kh) // strides[0] + 1
    ow = (w + left + right - kw) // strides[1] + 1
    y = np.empty((n, oh, ow, channels), np.int8)
    acc = np.empty(channels, np.int32)
    zero, minus = np.int32(in_zero), np.int32(kernel_zero)
    for image in range(n):
        for r in range(oh):
            for c in range(ow):
                acc[:] = bias
                for i in range(kh):
                    row = r * strides[0] - top + i
                    if row < 0 or row >= h:
                        continue
                    for j in range(kw):
                        column = c * strides[1] - left + j
                        if column < 0 or column >= w:
                            continue
                        pixel = x[image, row, column]
                        weights = kernel[i, j]
                        for k in range(channels):
                            acc[k] += np.int32(np.int32(pixel[k] - zero) * np.int32(weights[k] - minus))
                _finish(acc, multiplier, shift, out_zero, act_min, act_max, y[image, r, c])
    return y


@njit
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
    n, inputs = x.shape
    outputs = kernel.shape[1]
    y = np.empty((n, outputs), np.int8)
    acc = np.empty(outputs, np.int32)
    minus = np.int32(kernel_zero)
    for image in range(n):
        acc[:] = bias
        for k in range(inputs):
            value = np.int32(x[image, k] - in_zero)
            if value != 0:
                weights = kernel[k]
                for o in range(outputs):
                    acc[o] += np.int32(value * np.int32(weights[o] - minus))
        _finish(acc, multiplier, shift, out_zero, act_min, act_max, y[image])
    return y


@njit
def average_pool(x: np.ndarray, window: Pair, strides: Pair, padding: Padding, act_min: int, act_max: int) -> np.ndarray:
    """Mean of the q of each window, halves away from zero; padded pixels are not counted. Input and output share one scale."""
    n, h, w, channels = x.shape
    top, bottom, left, right = padding
    oh = (h + top + bottom - window[0]) // strides[0] + 1
    ow = (w + left + right - window[1]) // strides[1] + 1
    y = np.empty((n, oh, ow, channels), np.int8)
    for image in range(n):
        for r in range(oh):
            first_row, last_row = max(r * strides[0] - top, 0), min(r * strides[0] - top + window[0], h)
            for c in range(ow):
                first_column, last_column = max(c * strides[1] - left, 0), min(c * strides[1] - left + window[1], w)
                count = (last_row - first_row) * (last_column - first_column)
                for k in range(channels):
                    total = 0
                    for row in range(first_row, last_row):
                        for column in range(first_column, last_column):
                            total += x[image, row, column, k]
                    mean = (abs(total) + count // 2) // count
                    y[image, r, c, k] = _clamp(mean if total > 0 else -mean, act_min, act_max)
    return y


@njit
def max_pool(x: np.ndarray, window: Pair, strides: Pair, padding: Padding, act_min: int, act_max: int) -> np.ndarray:
    """Largest q of each window; padded pixels never win."""
    n, h, w, channels = x.shape
    top, bottom, left, right = padding
    oh = (h + top + bottom - window[0]) // strides[0] + 1
    ow = (w + left + right - window[1]) // strides[1] + 1
    y = np.empty((n, oh, ow, channels), np.int8)
    for image in range(n):
        for r in range(oh):
            first_row, last_row = max(r * strides[0] - top, 0), min(r * strides[0] - top + window[0], h)
            for c in range(ow):
                first_column, last_column = max(c * strides[1] - left, 0), min(c * strides[1] - left + window[1], w)
                for k in range(channels):
                    largest = -128
                    for row in range(first_row, last_row):
                        for column in range(first_column, last_column):
                            largest = max(largest, x[image, row, column, k])
                    y[image, r, c, k] = _clamp(largest, act_min, act_max)
    return y


@njit
def global_mean(x: np.ndarray, multiplier: int, shift: int, in_zero: int, out_zero: int) -> np.ndarray:
    """x (N, H, W, C): (N, C). The division by H * W is part of the multiplier: one rounding less than an average pool."""
    n, h, w, channels = x.shape
    y = np.empty((n, channels), np.int8)
    for image in range(n):
        for k in range(channels):
            total = 0
            for row in range(h):
                for column in range(w):
                    total += x[image, row, column, k] - in_zero
            y[image, k] = _clamp(_requantise(total, multiplier, shift) + out_zero, -128, 127)
    return y


@njit
def _add(
    a: np.ndarray,
    b: np.ndarray,
    multipliers: tuple[int, int, int],
    shifts: tuple[int, int, int],
    zeros: tuple[int, int, int],
    act_min: int,
    act_max: int,
    y: np.ndarray,
) -> None:
    for k in range(a.size):
        one = _requantise((np.int64(a[k]) - zeros[0]) << 20, multipliers[0], shifts[0])
        two = _requantise((np.int64(b[k]) - zeros[1]) << 20, multipliers[1], shifts[1])
        y[k] = _clamp(_requantise(one + two, multipliers[2], shifts[2]) + zeros[2], act_min, act_max)


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
    y = np.empty_like(a)
    _add(a.ravel(), b.ravel(), multipliers, shifts, zeros, act_min, act_max, y.ravel())
    return y


def rescale(x: np.ndarray, multiplier: int, shift: int, in_zero: int, out_zero: int, act_min: int, act_max: int) -> np.ndarray:
    """The same real values on another scale and zero point, clamped: a table of the 256 possible answers, from _requantise."""
    table = np.empty(256, np.int8)
    _rescale_table(multiplier, shift, in_zero, out_zero, act_min, act_max, table)
    return table[x.view(np.uint8)]


@njit
def _rescale_table(multiplier: int, shift: int, in_zero: int, out_zero: int, act_min: int, act_max: int, table: np.ndarray) -> None:
    for q in range(-128, 128):
        table[q & 255] = _clamp(_requantise(q - in_zero, multiplier, shift) + out_zero, act_min, act_max)
