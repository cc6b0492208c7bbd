"""What the engines share: a network as a table of operations, its values in one block of memory, and the run over a batch by threads.

Plan collects operations and values, and gives every value its place in the block, where those that are no longer read make room. Program
runs the table with a kernel of fast/ for the images of a batch, which are divided among the threads; of a single large image, each
operation is. In: what an engine writes. Out: arrays. Left out: what an operation means.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import MinitlError
from .native import LANES
from .threads import MOST, threads, together

VALUES_AT_ONCE = 1 << 15
"""Images are taken together as long as their largest value has at most so many numbers: small layers then have enough pixels."""

WORTH_THREADS = 20_000_000
"""Multiply-accumulates of an image from which on several threads share it: they wait for each other after every layer."""

BEHIND = 64 * MOST
"""Bytes behind the block: 64 for each thread to work with. What is read beyond a value's end lies there, too."""


class Unsupported(Exception):
    """The network has something that a fast engine does not know."""


def filled(channels: int) -> int:
    """So many channels as whole vectors."""
    return -(-channels // LANES) * LANES


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(H, W, C) of any value; (C,) is one pixel."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if len(shape) == 1:
        return 1, 1, shape[0]
    raise Unsupported(f"a value of shape {shape}")


def aligned(values: np.ndarray) -> np.ndarray:
    """A copy that begins at a multiple of 64 bytes."""
    block = np.empty(values.nbytes + 64, np.uint8)
    start = -block.ctypes.data % 64
    copy = block[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def address(array: np.ndarray) -> int:
    """Where an array begins. `array.ctypes` takes 1.3 microseconds, this 0.4, but not where there is nothing, or nothing may be written."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return array.ctypes.data


def room(size: int) -> np.ndarray:
    """Memory for a block of so many bytes and what lies behind it."""
    return aligned(np.zeros(size + BEHIND, np.uint8))


@dataclass
class Plan:
    """The program of a network. fields, kinds: of a row. number: type of what values in the block consist of, in the end.

    keep: arrays whose addresses are in the table. sizes: numbers of each value. size: bytes of the block, once placed.
    """

    fields: Sequence[str]
    kinds: Sequence[str]
    number: Any
    placed: Sequence[str] = ("source", "target", "residual")
    rows: list[dict[str, int]] = field(default_factory=list)
    keep: list[np.ndarray] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    size: int = 0

    def constant(self, values: np.ndarray) -> int:
        """Address of an aligned copy."""
        self.keep.append(aligned(np.asarray(values)))
        return int(self.keep[-1].ctypes.data)

    def value(self, shape: tuple[int, int, int]) -> int:
        """Number of a new value that the next operation makes."""
        self.sizes.append(shape[0] * shape[1] * shape[2])
        return len(self.sizes) - 1

    def row(self, kind: str, source: int, target: int, residual: int = -1, **fields: int) -> None:
        """Add an operation. source, target, residual: numbers of values, -1 for none."""
        self.rows.append({"kind": self.kinds.index(kind), "source": source, "target": target, "residual": residual, **fields})

    def place(self, images: int) -> np.ndarray:
        """Give every value its place, first fit, the largest first; -> the table (operations, fields) int64."""
        used = [[row.get(name, -1) for name in self.placed] for row in self.rows]
        lives = {value: [i for i, values in enumerate(used) if value in values] for value in range(len(self.sizes))}
        each = images * np.dtype(self.number).itemsize
        sizes = {value: -(-self.sizes[value] * each // 64) * 64 for value, life in lives.items() if life}
        places: dict[int, int] = {}
        for value in sorted(sizes, key=lambda v: -sizes[v]):
            others = [v for v in places if lives[v][0] <= lives[value][-1] and lives[value][0] <= lives[v][-1]]
            at = 0
            for other in sorted(others, key=places.__getitem__):
                if at + sizes[value] <= places[other]:
                    break
                at = max(at, places[other] + sizes[other])
            places[value] = at
            self.size = max(self.size, at + sizes[value])
        table = [{**row, **{name: places.get(row.get(name, -1), -1) for name in self.placed}} for row in self.rows]
        return aligned(np.array([[row.get(name, 0) for name in self.fields] for row in table], np.int64).reshape(-1, len(self.fields)))


class Program:
    """A Plan, ready to run."""

    def __init__(
        self, plan: Plan, kernel: Callable[..., object], number: Any, images: tuple[str, tuple[int, ...]],
        wanted: dict[str, tuple[int, ...]], macs: int, most: int | None = None, zeros: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """number: type of images and of what is taken. images: (name, shape of one). wanted: {value to take: shape}, also of the images.

        macs: multiply-accumulates of an image. most: threads, default those of the machine now. zeros: a row of zeros for the kernel.
        """
        self.number, self.images, self.wanted, self.macs = np.dtype(number), images, wanted, macs
        self.most = threads() if most is None else min(MOST, most)
        self.at_once = max(1, min(8, VALUES_AT_ONCE // max(plan.sizes, default=1)))
        self.table, self.size, self._keep = plan.place(self.at_once), plan.size, plan.keep
        self._zeros = aligned(np.zeros(1) if zeros is None else zeros)
        self._program, self._zeros_address = (self.table.ctypes.data, len(self.table)), self._zeros.ctypes.data
        self._blocks: list[_Block] = []
        self._kernel = kernel

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """(N, *shape of an image) -> {wanted value: (N, ...)}. May be called from several threads at once."""
        flags = images.flags
        if images.dtype != self.number or not (flags.c_contiguous and flags.aligned):
            images = np.require(images, self.number, ["C", "A"])
        name, shape = self.images
        if images.shape[1:] != shape:
            raise MinitlError(f"the network takes images (N, {', '.join(map(str, shape))}), found {images.shape}")
        count = len(images)
        found, feeds = {}, [address(images), images.nbytes // (count or 1)]
        for value, shape in self.wanted.items():
            found[value] = array = images if value == name else np.empty((count, *shape), self.number)
            feeds += address(array), array.nbytes // (count or 1)
        most = self.most
        groups = -(-count // self.at_once)
        if most > 1 and (groups >= most or (self.macs < WORTH_THREADS and groups > 1)):

            def some(part: int, parts: int) -> None:
                first, last = (min(count, self.at_once * (groups * p // parts)) for p in (part, part + 1))
                if last > first:
                    block = self._take_block(feeds)
                    self._call(block, first, last, 0, 1)
                    self._blocks.append(block)

            together(some, min(most, groups))
        elif count:
            block = self._take_block(feeds)
            parts = most if self.macs >= WORTH_THREADS else 1
            if parts == 1:
                self._call(block, 0, count, 0, 1)
            else:
                together(lambda part, parts: self._call(block, 0, count, part, parts), parts, waiting=True)
            self._blocks.append(block)
        return found

    def _call(self, block: _Block, first: int, last: int, part: int, parts: int) -> None:
        self._kernel(*self._program, block.address, self.size, block.feeds_address, first, last, self.at_once, self._zeros_address, part,
                     parts, block.counter_address)  # fmt: skip

    def _take_block(self, feeds: list[int]) -> _Block:
        """One that nobody uses; `feeds` are put into it."""
        try:
            block = self._blocks.pop()
        except IndexError:
            block = _Block(self.size, len(feeds))
        block.words[:] = [*feeds, 0]
        return block


class _Block:
    """Memory for one run, and what the kernel is told of it: its feeds, then its counter. Addresses are asked for once."""

    def __init__(self, size: int, feeds: int) -> None:
        self.memory, self.words = room(size), (ctypes.c_int64 * (feeds + 1))()
        self.address, self.feeds_address = self.memory.ctypes.data, ctypes.addressof(self.words)
        self.counter_address = self.feeds_address + 8 * feeds
