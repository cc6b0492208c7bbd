"""Steps of training one Dense layer on features: forward, softmax cross-entropy, backward and SGD, many steps in one call.

A step of a small classifier takes microseconds, so that calling NumPy for each of its twenty operations would take most of the time. Sums
are taken in the order of kernels.py, and nothing is rounded otherwise (no fused multiply-add): the bits are those of training.train_step.

Left out: other optimisers, mixup, averages, checks; quick.py knows that everything fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic

from .vectors import VECTOR, Emit, emitted, kernel

TILE = 8
"""Photos, or features, whose sums are in registers at once."""


def _pointer(kind: Any) -> Any:
    """An int64 as the address of numbers of this kind, to be indexed; arrays of Numba would drag in its memory management."""

    @intrinsic
    def pointer(typing, address):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, values):  # type: ignore[no-untyped-def]
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return numba.types.CPointer(kind)(numba.types.int64), codegen

    return pointer


floats, integers = _pointer(numba.types.float32), _pointer(numba.types.int64)


def _plus_products(emit: Emit, sums: Sequence[Any], addresses: Sequence[Any], vector: Any) -> list[Any]:
    """sum + (float at the address) * vector for each."""
    builder = emit.builder
    return [builder.fadd(total, builder.fmul(emit.load_splat(at), vector)) for total, at in zip(sums, addresses, strict=True)]


def _forward(photos: int) -> Any:
    @emitted(6)
    def forward(emit: Emit, table: Any, depth: Any, weights: Any, row: Any, bias: Any, target: Any) -> Any:
        """LANES outputs of so many photos: bias + x . weights. table: addresses of features; row: bytes of one of weights."""
        xs = [emit.load_as(emit.const(0).type, emit.add(table, 8 * n)) for n in range(photos)]

        def step(i: Any, at: Any, *sums: Any) -> list[Any]:
            offset = emit.mul(i, 4)
            return [emit.add(at, row), *_plus_products(emit, sums, [emit.add(x, offset) for x in xs], emit.load(at))]

        _, *sums = emit.loop(depth, [weights, *[emit.load(bias)] * photos], step)
        for n, total in enumerate(sums):
            emit.store(total, emit.add(target, emit.mul(row, n)))

    return forward


def _gradient(features: int) -> Any:
    @emitted(6)
    def gradient(emit: Emit, table: Any, photos: Any, first: Any, dy: Any, row: Any, target: Any) -> Any:
        """dW of so many features from `first` (in bytes) on, LANES outputs of them: the sum over the photos of x * dy."""

        def step(n: Any, at: Any, *sums: Any) -> list[Any]:
            x = emit.add(emit.load_as(emit.const(0).type, emit.add(table, emit.mul(n, 8))), first)
            return [emit.add(at, row), *_plus_products(emit, sums, [emit.add(x, 4 * i) for i in range(features)], emit.load(at))]

        _, *sums = emit.loop(photos, [dy, *[emit.zeros()] * features], step)
        for i, total in enumerate(sums):
            emit.store(total, emit.add(target, emit.mul(row, i)))

    return gradient


_forward_tile, _forward_one = _forward(TILE), _forward(1)
_gradient_tile, _gradient_one = _gradient(TILE), _gradient(1)


@kernel
def _loss(y, columns, targets, weights, index, count, classes, losses):  # type: ignore[no-untyped-def]
    """Losses of a batch; y becomes their gradient, see kernels.softmax_cross_entropy. -> how many answers are right; -1: not finite."""
    correct, finite = 0, True
    for n in range(count):
        row, wanted = n * columns, index[n] * classes
        answer, truth = 0, 0
        for c in range(1, classes):
            answer = c if y[row + c] > y[row + answer] else answer
            truth = c if targets[wanted + c] > targets[wanted + truth] else truth
        high, total, loss = y[row + answer], np.float32(0), np.float32(0)
        for c in range(classes):
            total += np.exp(y[row + c] - high)
        log_total = np.log(total)
        for c in range(classes):
            log_p = y[row + c] - high - log_total
            loss -= targets[wanted + c] * log_p
            y[row + c] = (np.exp(log_p) - targets[wanted + c]) / np.float32(count) * weights[index[n]]
        for c in range(classes, columns):
            y[row + c] = np.float32(0)
        losses[n] = loss
        finite = finite and np.isfinite(loss)
        correct += answer == truth
    return correct if finite else -1


@kernel
def _move(p, v, g, count, rate, momentum, decay):  # type: ignore[no-untyped-def]
    """See optimisers.SGD; so many numbers, p and v in place."""
    for i in range(count):
        slope = g[i] + decay * p[i]
        speed = v[i] * momentum + slope
        v[i] = speed
        p[i] = p[i] - rate * (slope + momentum * speed)


@kernel
def answers(photos, count, width, kernel_at, bias_at, row, target):  # type: ignore[no-untyped-def]
    """Forward. photos: `count` addresses of features (width,); kernel (width, columns), bias (columns,) and target (count, columns) are
    float32 at these addresses, `row` bytes each row.
    """
    whole = count - count % TILE
    for panel in range(0, row, VECTOR):
        for n in range(0, whole, TILE):
            _forward_tile(photos + 8 * n, width, kernel_at + panel, row, bias_at + panel, target + n * row + panel)
        for n in range(whole, count):
            _forward_one(photos + 8 * n, width, kernel_at + panel, row, bias_at + panel, target + n * row + panel)


TABLE = (
    "count features width targets classes weights columns kernel bias velocity bias_velocity rates rows at ends losses result "
    "photos dy gradient slope"
).split()


@kernel
def steps(table):  # type: ignore[no-untyped-def]
    """`count` steps. table: address of int64, numbers and addresses, as TABLE names them.

    features (N, width), targets (M, classes), weights (M,): float32. columns: classes, filled up to whole vectors; kernel and its velocity
    (width, columns), bias and its (columns,) float32. rates: float32, one per step, then momentum and decay of the kernel. rows, at: int64,
    numbers of the photos' features and targets, batch after batch; ends: int64, where each batch ends. losses: float32, one per photo.
    result: int64, steps begun and right answers. photos (int64), dy, gradient, slope: room for a batch and for a gradient.
    """
    given = integers(table)
    count, features, width, targets, classes, weights = given[0], given[1], given[2], floats(given[3]), given[4], floats(given[5])
    columns, kernel_at, bias_at, velocity, bias_velocity = given[6], given[7], given[8], given[9], given[10]
    rates, rows, at, ends, losses, result = (
        floats(given[11]),
        integers(given[12]),
        given[13],
        integers(given[14]),
        given[15],
        integers(given[16]),
    )
    photos, dy_at, gradient, slope = given[17], given[18], given[19], floats(given[20])
    momentum, decay = rates[count], rates[count + 1]
    addresses, dy = integers(photos), floats(dy_at)
    row, begin, wide = 4 * columns, 0, width - width % TILE
    for step in range(count):
        size = ends[step] - begin
        for n in range(size):
            addresses[n] = features + 4 * width * rows[begin + n]
        answers(photos, size, width, kernel_at, bias_at, row, dy_at)
        correct = _loss(dy, columns, targets, weights, integers(at + 8 * begin), size, classes, floats(losses + 4 * begin))
        begin = ends[step]
        result[0] = step + 1
        if correct < 0:
            return
        result[1] += correct
        for panel in range(0, row, VECTOR):
            for i in range(0, wide, TILE):
                _gradient_tile(photos, size, 4 * i, dy_at + panel, row, gradient + i * row + panel)
            for i in range(wide, width):
                _gradient_one(photos, size, 4 * i, dy_at + panel, row, gradient + i * row + panel)
        for c in range(columns):
            total = 0.0
            for n in range(size):
                total += dy[n * columns + c]
            slope[c] = np.float32(total)
        _move(floats(kernel_at), floats(velocity), floats(gradient), width * columns, rates[step], momentum, decay)
        _move(floats(bias_at), floats(bias_velocity), slope, columns, rates[step], momentum, np.float32(0))


EXPORTS = {"steps": (steps, 1), "answers": (answers, 7)}
