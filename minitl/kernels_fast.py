"""The third twins: kernels.py with vector instructions, sums in registers and several threads, where training spends its time.

The same names, the same arguments, the same numbers up to rounding, for float32 arrays whose channels are a multiple of 8 (4 where vectors
have 4 floats); all else goes to kernels.py, and so does everything with MINITL_ENGINE=plain or where fast/training.py cannot be compiled.
The bits of a result do not depend on the number of threads.

Large results lie in blocks of memory that come back once nobody holds the array any more, and are given out again: memory that is new
to the process costs more time than many a kernel. let_go() gives them back to the system. Left out: the sums (fast/training.py).
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import threading
from array import array as Table
from bisect import bisect, insort
from typing import Any

import numpy as np

from . import kernels
from .errors import MinitlError
from .geometry import Padding, Pair, output_hw
from .kernels import (  # noqa: F401  (those without a faster twin)
    add,
    average_pool,
    average_pool_dx,
    channel_sum,
    concat,
    dense,
    dense_dkernel,
    dense_dx,
    global_average_pool,
    global_average_pool_dx,
    max_pool,
    max_pool_dx,
    relu,
    relu6,
    relu6_dx,
    relu_dx,
    softmax,
    softmax_cross_entropy,
)
from .native import LANES, load, plain
from .threads import threads

Array = np.ndarray
FLOAT = np.dtype(np.float32)

LEAST = min(LANES, 8)
"""Channels must be a multiple of so many."""

CHUNK = 1 << 14
"""Bytes of a value that a pass of BatchNorm takes at a time."""

GROUPS = 8
"""In how many parts at most the images of a batch are summed, whatever the number of threads."""

WORTH_THREADS = 1 << 18
"""Bytes from which on threads share a pass."""

IN_FRAME = 1 << 15
"""Bytes of the frame of a band of rows."""


# ---- memory

_lock = threading.Lock()
_free: list[tuple[int, int, Array]] = []  # (floats, address, block), sorted
_returned: list[tuple[int, int, Array]] = []  # came back, and are still to be sorted in: __del__ may run at any moment


class _Lent:
    """Memory of an array; when the last array that uses it goes, the block is free again."""

    def __init__(self, shape: tuple[int, ...], block: tuple[int, int, Array]) -> None:
        self.block, self.home = block, _returned
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": FLOAT.str, "data": (block[1], False)}

    def __del__(self) -> None:
        self.home.append(self.block)


def _empty(*shape: int) -> Array:
    """float32, with whatever it held before. Small ones are NumPy's; others take the smallest free block that is not much too large."""
    size = math.prod(shape)
    if size < 1 << 14:
        return np.empty(shape, np.float32)
    with _lock:
        while _returned:
            insort(_free, _returned.pop())
        at = bisect(_free, (size,))
        if at < len(_free) and _free[at][0] <= 4 * size:
            block = _free.pop(at)
        else:
            memory = np.empty(4 * size + 64, np.uint8)
            block = (size, memory.ctypes.data + -memory.ctypes.data % 64, memory)
    return np.asarray(_Lent(shape, block))


def let_go() -> None:
    """Give unused memory back to the system; what is in use follows when it is no longer."""
    global _returned
    with _lock:
        _free.clear()
        _returned = []


def _first_field(array: Array) -> int:
    """The address of an array's numbers, from its C struct, where NumPy's ABI has it first. ctypes.data takes ten times as long."""
    return ctypes.c_ssize_t.from_address(id(array) + object.__basicsize__).value


def _said(array: Array) -> int:
    """The same, asked for."""
    return int(array.ctypes.data)


_where = _first_field if _first_field(_probe := np.zeros(1)) == _said(_probe) else _said


def _address(array: Any) -> int:
    """Where its numbers lie."""
    return array.buffer_info()[0] if type(array) is Table else _where(array)


# ---- calling the kernels


ZEROS = np.zeros(4096, np.float32)


@functools.cache
def _library() -> Any:
    """fast/training.py compiled; None where that cannot be."""
    try:
        return load("training")
    except MinitlError:
        return None


def _kernel(name: str, *channels: int) -> Any:
    """The kernel for as many lanes as these numbers of channels are multiples of."""
    return getattr(_library(), f"{name}_{LANES if all(c % LANES == 0 for c in channels) else LEAST}")


def _fits(*arrays: Array | None, channels: int) -> bool:
    """Whether the fast kernels can do it."""
    if channels % LEAST or plain() or _library() is None:
        return False
    for array in arrays:
        if array is not None and (array.dtype != FLOAT or not array.size):
            return False
    return True


def _dense(array: Array) -> Array:
    """As the kernels need it: in one piece, at a multiple of 4 bytes."""
    return array if array.flags.c_contiguous and array.flags.aligned else np.require(array, FLOAT, ["C", "A"])


def _run(kernel: Any, tasks: int, scratch: int, *arguments: Any) -> None:
    """Call a kernel, on as many threads as there are tasks. arguments: numbers, or arrays for their addresses; scratch: floats a thread."""
    table = Table("q", [argument if type(argument) is int else _address(argument) for argument in arguments])
    table.extend((0, 0, 0, 0))
    at, parts = table.buffer_info()[0], min(threads(), tasks) if tasks > 1 else 1
    scratch = -(-scratch // 16) * 16
    block = _empty(parts * scratch) if scratch else ZEROS
    start = _address(block)
    if parts == 1:
        kernel(at, start)
    else:
        _team.run(kernel, at, start, 4 * scratch, parts)


class _Team:
    """Threads that stay in compiled code between one kernel and the next, for a millisecond, and then sleep until there is more to do."""

    def __init__(self) -> None:
        self.box, self.jobs, self.busy = Table("q", [0] * 32), 0, threading.Lock()
        self.helpers: list[threading.Lock] = []  # held by a helper that is awake, or by nobody: then it sleeps
        self.given: list[threading.Semaphore] = []

    def run(self, kernel: Any, table: int, scratch: int, size: int, parts: int) -> None:
        """A kernel on so many threads; on this one only, where another thread has the team."""
        if not self.busy.acquire(blocking=False):
            kernel(table, scratch)
            return
        try:
            while len(self.helpers) < parts - 1:
                self.helpers.append(threading.Lock())
                self.given.append(threading.Semaphore(0))
                threading.Thread(target=self._help, args=(len(self.helpers),), daemon=True, name="minitl-training").start()
            for awake, given in zip(self.helpers[: parts - 1], self.given, strict=False):
                if awake.acquire(blocking=False):
                    given.release()
            self.jobs += 1
            function = ctypes.cast(kernel.func, ctypes.c_void_p).value
            _library().lead(self.box.buffer_info()[0], self.jobs, function, kernel.args[0], table, scratch, size, parts)
        finally:
            self.busy.release()

    def _help(self, part: int) -> None:
        while True:
            self.given[part - 1].acquire()
            _library().serve(self.box.buffer_info()[0], part, PATIENCE)
            self.helpers[part - 1].release()


PATIENCE = 1 << 16
"""Looks before a helper goes to sleep: about a millisecond."""

_team = _Team()


def _forget() -> None:
    """A child of fork has none of its parent's threads."""
    global _team
    _team = _Team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@functools.cache
def _numbers(*values: float) -> int:
    """Address of these floats."""
    _kept.append(np.array(values, np.float32))
    return _address(_kept[-1])


_kept: list[Array] = []


def _bounds(high: float | None) -> int:
    """Address of the two bounds of a clamp."""
    return _numbers(np.nan if high is None else 0.0, np.nan if high in (None, np.inf) else high)


def _packed(matrix: Array) -> tuple[Array, int]:
    """(K, outputs) -> panels (columns / LANES, K, LANES), zeros where they are filled up; columns."""
    depth, outputs = matrix.shape
    columns = -(-outputs // LANES) * LANES
    packed = np.empty((columns // LANES, depth, LANES), np.float32)
    if columns != outputs:
        matrix = np.concatenate([matrix, np.zeros((depth, columns - outputs), np.float32)], axis=1)
    packed[...] = matrix.reshape(depth, -1, LANES).transpose(1, 0, 2)
    return packed, columns


def _filled(bias: Array | None, size: int) -> Array | int:
    """A bias, filled up with zeros; the address of zeros where there is none."""
    if bias is None and size <= ZEROS.size:
        return _address_of_zeros
    filled = np.zeros(size, np.float32)
    filled[: 0 if bias is None else len(bias)] = 0 if bias is None else bias
    return filled


_address_of_zeros = _address(ZEROS)


# ---- convolutions


def _product(x: Array, matrix: Array, bias: Array | None) -> Array:
    """(..., K), (K, outputs) -> (..., outputs)."""
    x = _dense(x)
    depth, outputs = matrix.shape
    packed, columns = _packed(matrix)
    rows, y = x.size // depth, _empty(*x.shape[:-1], outputs)
    band = max(48, (1 << 14) // (depth + outputs) // 12 * 12)
    tasks = -(-rows // band) if rows * depth * outputs > 1 << 20 else 1
    geometry = Table("q", [1, 1, rows, depth, 0, 0, 0, 0, 1, rows, outputs, columns, 1, 1, 1, 1, band, 1, 1])
    scratch = 0 if columns == outputs else band * columns
    _run(_library().convolution, tasks, scratch, geometry, x, packed, _filled(bias, columns), y, _bounds(None))
    return y


def _geometry(x: Array, window: Pair, strides: Pair, padding: Padding, out_hw: Pair, outputs: int, band: int = 0) -> Table:
    """FIELDS of fast/training.py, all for windows over x."""
    top, bottom, left, right = padding
    n, h, w, c = x.shape
    band = band or out_hw[0]
    framed, columns = (h + top + bottom, w + left + right), -(-outputs // LANES) * LANES
    bands = -(-out_hw[0] // band)
    return Table("q", [n, h, w, c, top, left, *framed, *out_hw, outputs, columns, *window, *strides, band, bands, min(n, GROUPS)])


def _frame_size(x: Array, padding: Padding) -> int:
    """Floats of an image with its border."""
    return (x.shape[1] + padding[0] + padding[1]) * (x.shape[2] + padding[2] + padding[3]) * x.shape[3]


def _is_pointwise(window: Pair, strides: Pair, padding: Padding) -> bool:
    return window == (1, 1) and strides == (1, 1) and not any(padding)


def conv2d(x: Array, kernel: Array, strides: Pair, padding: Padding, bias: Array | None = None) -> Array:
    """(N, H, W, I), (kh, kw, I, O), (O,) -> (N, OH, OW, O)."""
    kh, kw, inputs, outputs = kernel.shape
    if not _fits(x, kernel, bias, channels=outputs):
        return kernels.conv2d(x, kernel, strides, padding, bias)
    if _is_pointwise((kh, kw), strides, padding):
        return _product(x, kernel.reshape(inputs, outputs), bias)
    x = _dense(x)
    oh, ow = output_hw(x.shape[1], x.shape[2], (kh, kw), strides, padding)
    packed, columns = _packed(kernel.reshape(-1, outputs))
    y = _empty(len(x), oh, ow, outputs)
    geometry = _geometry(x, (kh, kw), strides, padding, (oh, ow), outputs)
    scratch = _frame_size(x, padding) + ow * columns
    _run(_library().convolution, len(x), scratch, geometry, x, packed, _filled(bias, columns), y, _bounds(None))
    return y


def conv2d_dx(dy: Array, kernel: Array, strides: Pair, padding: Padding, hw: Pair) -> Array:
    """(N, OH, OW, O), (kh, kw, I, O) -> (N, H, W, I) with (H, W) = hw."""
    kh, kw, inputs, outputs = kernel.shape
    if not _is_pointwise((kh, kw), strides, padding) or not _fits(dy, kernel, channels=inputs):
        return kernels.conv2d_dx(dy, kernel, strides, padding, hw)
    return _product(dy, kernel.reshape(inputs, outputs).T, None)


def conv2d_dkernel(x: Array, dy: Array, strides: Pair, padding: Padding, window: Pair) -> Array:
    """(N, H, W, I), (N, OH, OW, O) -> (kh, kw, I, O)."""
    inputs, outputs = x.shape[3], dy.shape[3]
    if not _fits(x, dy, channels=outputs):
        return kernels.conv2d_dkernel(x, dy, strides, padding, window)
    x, dy = _dense(x), _dense(dy)
    if _is_pointwise(window, strides, padding):
        pixels, at_once = dy.size // outputs, min(inputs, 64)
        blocks = -(-inputs // at_once)
        groups = max(1, min(GROUPS // blocks, pixels // 256))
        parts = np.zeros((groups, inputs, outputs), np.float32)
        kernel = _kernel("pointwise_dkernel", outputs)
        _run(kernel, groups * blocks, 0, pixels, inputs, at_once, outputs, outputs, groups, x, dy, parts)
    else:
        geometry = _geometry(x, window, strides, padding, dy.shape[1:3], outputs)
        parts = np.zeros((min(len(x), GROUPS), *window, inputs, outputs), np.float32)
        _run(_kernel("conv_dkernel", outputs), len(parts), _frame_size(x, padding), geometry, x, dy, parts)
    return _summed(parts).reshape(*window, inputs, outputs)


def _summed(parts: Array) -> Array:
    """(groups, ...) -> (...), in their order."""
    return parts[0] if len(parts) == 1 else parts.sum(axis=0)


def _slides(window: Pair, strides: Pair) -> bool:
    """Whether there are depthwise kernels for it."""
    return window == (3, 3) and strides in ((1, 1), (2, 2))


def _band(x: Array, padding: Padding, stride: int) -> tuple[int, int]:
    """Output rows at a time, floats of their frame."""
    row = (x.shape[2] + padding[2] + padding[3]) * x.shape[3]
    band = max(1, (IN_FRAME // (4 * row) - 3) // stride + 1)
    return band, ((band - 1) * stride + 3) * row


def depthwise_conv2d(x: Array, kernel: Array, strides: Pair, padding: Padding, bias: Array | None = None) -> Array:
    """(N, H, W, C), (kh, kw, C), (C,) -> (N, OH, OW, C)."""
    window, channels = kernel.shape[:2], x.shape[3]
    if not (_slides(window, strides) and _fits(x, kernel, bias, channels=channels)):
        return kernels.depthwise_conv2d(x, kernel, strides, padding, bias)
    x = _dense(x)
    oh, ow = output_hw(x.shape[1], x.shape[2], window, strides, padding)
    band, scratch = _band(x, padding, strides[0])
    geometry, y = _geometry(x, window, strides, padding, (oh, ow), channels, min(band, oh)), _empty(len(x), oh, ow, channels)
    tasks = len(x) * -(-oh // band)
    _run(_kernel("depthwise", channels), tasks, scratch, geometry, x, _dense(kernel), _filled(bias, channels), y)
    return y


def depthwise_conv2d_dx(dy: Array, kernel: Array, strides: Pair, padding: Padding, hw: Pair) -> Array:
    """(N, OH, OW, C), (kh, kw, C) -> (N, H, W, C) with (H, W) = hw. With stride 1 that is the convolution with the kernel turned around."""
    window, channels = kernel.shape[:2], dy.shape[3]
    top, bottom, left, right = padding
    if not (_slides(window, strides) and max(padding) <= 2 and _fits(dy, kernel, channels=channels)):
        return kernels.depthwise_conv2d_dx(dy, kernel, strides, padding, hw)
    if strides == (1, 1):
        return depthwise_conv2d(dy, kernel[::-1, ::-1], strides, (2 - top, 2 - bottom, 2 - left, 2 - right))
    dy = _dense(dy)
    oh, ow = dy.shape[1:3]
    below, beside = ((size - 1 + before) // 2 + 1 - out for size, before, out in ((hw[0], top, oh), (hw[1], left, ow)))
    around = (1, max(0, below), 1, max(0, beside))
    geometry, dx = _geometry(dy, (top, left), strides, around, hw, channels), _empty(len(dy), *hw, channels)
    scratch = _frame_size(dy, around) + 2 * (ow + 1 + around[3]) * channels
    _run(_kernel("depthwise_dx", channels), len(dy), scratch, geometry, dy, _dense(kernel), dx)
    return dx


def depthwise_conv2d_dkernel(x: Array, dy: Array, strides: Pair, padding: Padding, window: Pair) -> Array:
    """(N, H, W, C), (N, OH, OW, C) -> (kh, kw, C)."""
    channels = x.shape[3]
    if not (_slides(window, strides) and _fits(x, dy, channels=channels)):
        return kernels.depthwise_conv2d_dkernel(x, dy, strides, padding, window)
    x, dy = _dense(x), _dense(dy)
    band, scratch = _band(x, padding, strides[0])
    geometry = _geometry(x, window, strides, padding, dy.shape[1:3], channels, min(band, dy.shape[1]))
    parts = np.zeros((min(len(x), GROUPS), 9, channels), np.float32)
    _run(_kernel("depthwise_dkernel", channels), len(parts), scratch, geometry, x, dy, parts)
    return _summed(parts).reshape(3, 3, channels)


# ---- batch normalisation


def _pass(name: str, x: Array, *arguments: Any) -> None:
    """One of the passes over all pixels of x."""
    rows, step = x.size // x.shape[-1], 4 * x.shape[-1]
    at_once = max(1, CHUNK // step)
    tasks = -(-rows // at_once) if x.nbytes >= WORTH_THREADS else 1
    _run(_kernel(name, x.shape[-1]), tasks, 0, rows, at_once, step, *arguments)


def _parts(x: Array) -> Array:
    """Room for two sums of every chunk."""
    return np.empty((2, -(-x.size // x.shape[-1] // max(1, CHUNK // (4 * x.shape[-1]))), x.shape[-1]), np.float32)


def moments(x: Array) -> tuple[Array, Array]:
    """(..., C) -> mean (C,), variance (C,). Each chunk of pixels has its own mean, around which its squares are summed."""
    if not _fits(x, channels=x.shape[-1]):
        return kernels.moments(x)
    x, mean, variance = _dense(x), *np.empty((2, x.shape[-1]), np.float32)
    _pass("moments", x, x, _parts(x), mean, variance)
    return mean, variance


def batch_norm(x: Array, mean: Array, variance: Array, gamma: Array, beta: Array, epsilon: float, high: float | None = None) -> Array:
    """(..., C) -> (..., C)."""
    if not _fits(x, mean, variance, gamma, beta, channels=x.shape[-1]):
        return kernels.batch_norm(x, mean, variance, gamma, beta, epsilon, high)
    x, y, scale = _dense(x), _empty(*x.shape), gamma / np.sqrt(variance + np.float32(epsilon))
    _pass("normalise", x, x, _dense(mean), scale, _dense(beta), _bounds(high), y)
    return y


def batch_norm_training(
    x: Array, mean: Array, variance: Array, from_batch: Array, gamma: Array, beta: Array, epsilon: float, high: float | None = None
) -> tuple[Array, Array, Array]:
    """-> y (..., C), mean (C,), variance (C,)."""
    if not _fits(x, mean, variance, gamma, beta, channels=x.shape[-1]):
        return kernels.batch_norm_training(x, mean, variance, from_batch, gamma, beta, epsilon, high)
    x, y, norm = _dense(x), _empty(*x.shape), np.empty((8, len(mean)), np.float32)
    norm[0], norm[1], norm[2], norm[3], norm[4] = mean, variance, gamma, beta, from_batch
    _pass("norm_forward", x, x, _parts(x), norm, _numbers(epsilon), _bounds(high), y)
    return y, norm[5], norm[6]


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
    """-> dx (..., C), dgamma (C,), dbeta (C,)."""
    if not _fits(dy, x, mean, variance, gamma, beta, channels=x.shape[-1]):
        return kernels.batch_norm_backward(dy, x, mean, variance, gamma, beta, epsilon, from_batch, high)
    dy, x, dx, norm = _dense(dy), _dense(x), _empty(*x.shape), np.empty((10, len(mean)), np.float32)
    inverse = 1 / np.sqrt(variance + np.float32(epsilon))
    scale = gamma * inverse
    share = from_batch * scale * np.float32(-x.shape[-1] / x.size)  # of what goes through the statistics
    norm[0], norm[1], norm[2], norm[3], norm[4], norm[5] = mean, scale, beta, inverse, share * inverse, share
    _pass("norm_backward", x, dy, x, norm, _bounds(high), _parts(x), dx)
    return dx, norm[6], norm[7]
