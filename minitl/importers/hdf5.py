"""HDF5 as Keras writes it, read with NumPy alone: bytes -> groups, datasets, attributes.

Enters: the bytes of an .h5 file, which may be hostile. Leaves: read-only views of the datasets, attributes as arrays. Left out:
everything that Keras does not write (chunked or compressed datasets, links, the layout of libver='latest'), refused by name.

No length, offset or count of the file is trusted: every read is checked against the bytes present, nothing larger than the file is
allocated, no loop can be entered twice, and the work done for one file is bounded.

Source: HDF5 File Format Specification, version 3.0 (https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html).
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from ..errors import MinitlError
from ..files import printable

SIGNATURE = b"\x89HDF\r\n\x1a\n"
UNDEFINED = 0xFFFFFFFFFFFFFFFF
MOST_WORK = 1_000_000  # messages, entries and objects looked at; MobileNetV2 needs about 10,000
MOST_AXES = 8
LONGEST_NAME = 4096
ADVICE = "save the weights again with Keras' save_weights(), or copy them with h5py's default settings"

# message types of an object header (section IV.A.2)
DATASPACE, LINK_INFO, DATATYPE, LINK, LAYOUT, FILTERS, ATTRIBUTE, CONTINUATION, GROUP, MORE_ATTRIBUTES = 1, 2, 3, 6, 8, 11, 12, 16, 17, 21
# (bit offset, precision, exponent at, bits, mantissa at, bits, bias) of the IEEE floats of 2, 4 and 8 bytes
IEEE = {2: (0, 16, 10, 5, 0, 10, 15), 4: (0, 32, 23, 8, 0, 23, 127), 8: (0, 64, 52, 11, 0, 52, 1023)}


class File:
    """The bytes of a file, and the only place that touches them."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name = data, name
        self._work = 0
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}
        if not data.startswith(SIGNATURE):
            raise self.error("does not begin as an HDF5 file does")
        if self.unpack("B", 8) != (0,):
            raise self.error(f"has a superblock of version {data[8]}, expected 0 (it was written with libver='latest'?): {ADVICE}")
        if self.unpack("BB", 13) != (8, 8):
            raise self.error(f"has offsets and lengths of {data[13]} and {data[14]} bytes, expected 8: {ADVICE}")
        base, _, end, _, _, root = self.unpack("6Q", 24)
        if base != 0:
            raise self.error(f"begins at byte {base}, expected 0: {ADVICE}")
        if end > len(data):
            raise self.error(f"is cut off: it should have {end} bytes and has {len(data)}; download or copy it again")
        self.root = Node(self, root, "")

    def error(self, what: str) -> MinitlError:
        """The error to raise, with the name of the file in front."""
        return MinitlError(printable(f"{self.name} {what}"))

    def work(self, amount: int = 1) -> None:
        """Count one step of work; refuse files that loop or that point at the same bytes from everywhere."""
        self._work += amount
        if self._work > MOST_WORK:
            raise self.error("is damaged: its parts point at each other without end")

    def block(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, all of which are in the file."""
        if offset + size > len(self.data):
            raise self.error(f"is damaged or cut off: {size} bytes at {offset} lie beyond its end at {len(self.data)}")
        return self.data[offset : offset + size]

    def unpack(self, layout: str, offset: int) -> tuple[Any, ...]:
        """Little-endian numbers at `offset`, as struct describes them."""
        return struct.unpack("<" + layout, self.block(offset, struct.calcsize("<" + layout)))

    def expect(self, signature: bytes, offset: int, what: str) -> None:
        """Check the four letters that open a structure."""
        if self.block(offset, 4) != signature:
            raise self.error(f"is damaged: no {what} at byte {offset}")

    def text(self, raw: bytes) -> str:
        """Name or string: UTF-8 up to the first zero."""
        try:
            return raw.split(b"\0", 1)[0].decode()
        except UnicodeDecodeError:
            raise self.error(f"is damaged: {raw[:40]!r} is no text") from None

    def heap_object(self, address: int, index: int) -> tuple[int, int]:
        """(offset, size) of an object in a global heap collection, where strings of any length live."""
        if address not in self._heaps:
            self.expect(b"GCOL", address, "heap of strings")
            (size,) = self.unpack("Q", address + 8)
            self.block(address, size)
            objects: dict[int, tuple[int, int]] = {}
            at, end = address + 16, address + size
            while at + 16 <= end:
                self.work()
                number, _, length = self.unpack("HH4xQ", at)
                if number == 0:  # the free space at the end
                    break
                if at + 16 + length > end:
                    raise self.error(f"is damaged: a string of {length} bytes at {at} leaves its heap")
                objects[number] = (at + 16, length)
                at += 16 + -(-length // 8) * 8
            self._heaps[address] = objects
        if index not in self._heaps[address]:
            raise self.error(f"is damaged: string {index} is not in the heap at {address}")
        return self._heaps[address][index]


class Type:
    """A datatype message: a NumPy dtype, or (dtype None) strings of any length, 16 bytes each that point into a heap."""

    def __init__(self, file: File, offset: int, where: str) -> None:
        head, bits, _, _, self.size = file.unpack("4BI", offset)
        kind, order = head & 15, ">" if bits & 1 else "<"
        self.dtype: np.dtype[Any] | None = None
        if kind == 0 and self.size in (1, 2, 4, 8) and file.unpack("HH", offset + 8) == (0, 8 * self.size):
            self.dtype = np.dtype(f"{order}{'i' if bits & 8 else 'u'}{self.size}")
        elif kind == 1 and not bits & 64 and file.unpack("HH4BI", offset + 8) == IEEE.get(self.size):
            self.dtype = np.dtype(f"{order}f{self.size}")
        elif kind == 3 and 0 < self.size <= len(file.data):
            self.dtype = np.dtype(f"S{self.size}")
        elif not (kind == 9 and bits & 15 == 1 and self.size == 16):
            raise file.error(
                f"holds {where or '/'} as type {kind} with {self.size} bytes, which is not a float, an integer or text: {ADVICE}"
            )


def _shape(file: File, offset: int, where: str) -> tuple[int, ...]:
    """A dataspace message: the sizes of the axes; () for a single value. An axis is never longer than the file."""
    version, rank, _, kind = file.unpack("4B", offset)
    if version not in (1, 2) or rank > MOST_AXES:
        raise file.error(f"is damaged: {where or '/'} has {rank} axes, at most {MOST_AXES} were expected")
    if version == 2 and kind == 2:  # "null": no value at all
        return (0,)
    shape = file.unpack(f"{rank}Q", offset + (8 if version == 1 else 4))
    if any(n > len(file.data) for n in shape):
        raise file.error(f"is damaged: {where} has shape {shape}, more than the file can hold")
    return shape


def _values(file: File, kind: Type, shape: tuple[int, ...], offset: int, size: int, where: str) -> np.ndarray:
    """The array of that type and shape whose `size` bytes are at `offset`. Strings of any length become an object array of str."""
    count = math.prod(shape)
    if count == 0:
        return np.empty(shape, kind.dtype or object)
    if count * kind.size > size:
        raise file.error(f"is damaged: {where} has shape {shape}, which takes {count * kind.size} bytes, and has {size}")
    file.block(offset, count * kind.size)
    if kind.dtype is not None:
        return np.frombuffer(file.data, kind.dtype, count, offset).reshape(shape)
    strings = np.empty(count, object)
    for i in range(count):
        length, address, index = file.unpack("IQI", offset + 16 * i)
        at, available = file.heap_object(address, index) if length else (0, 0)
        file.work(1 + length // 64)
        strings[i] = file.text(file.block(at, min(length, available)))
    return strings.reshape(shape)


class Node:
    """A group or a dataset, at a path such as 'conv1/conv1/kernel:0'."""

    def __init__(self, file: File, address: int, path: str) -> None:
        self.file, self.path = file, path
        self.messages = self._read_messages(address)  # (type, offset, size)
        self._children: dict[str, int | None] | None = None
        self._attributes: dict[str, tuple[int, int, int, int]] | None = None

    def _read_messages(self, address: int) -> list[tuple[int, int, int]]:
        """Version 1 object header (section IV.A.1.a); continuation blocks are followed in order, each once."""
        file, messages, seen = self.file, [], set()
        version, count, size = file.unpack("BxH4xI", address)
        if version != 1:
            raise file.error(f"has an object header of version {version} at {self.path or '/'}, expected 1: {ADVICE}")
        blocks = [(address + 16, size)]
        while blocks:
            at, size = blocks.pop(0)
            file.block(at, size)
            if at in seen:
                raise file.error(f"is damaged: the header of {self.path or '/'} contains itself")
            seen.add(at)
            end = at + size
            while at + 8 <= end and count:
                file.work()
                kind, size, flags = file.unpack("HHB", at)
                if at + 8 + size > end:
                    raise file.error(f"is damaged: the header of {self.path or '/'} is longer than its block")
                if flags & 2 and kind:
                    raise file.error(f"shares a part of {self.path or '/'} with another object: {ADVICE}")
                if kind == CONTINUATION:
                    blocks.append(file.unpack("QQ", at + 8))
                messages.append((kind, at + 8, size))
                at, count = at + 8 + size, count - 1
        return messages

    def _message(self, kind: int) -> int | None:
        """Offset of the first message of a kind."""
        return next((offset for k, offset, _ in self.messages if k == kind), None)

    # ---- groups

    def children(self) -> dict[str, int | None]:
        """Name -> address of what a group holds, sorted by name as in the file; None for a link. Empty for a dataset."""
        if self._children is None:
            if self._message(LINK_INFO) is not None or self._message(LINK) is not None:
                raise self.file.error(f"keeps {self.path or '/'} as a new-style group (libver='latest'): {ADVICE}")
            self._children = {}
            group = self._message(GROUP)
            if group is not None:
                tree, heap = self.file.unpack("QQ", group)
                self.file.expect(b"HEAP", heap, "list of names")
                size, names = self.file.unpack("Q8xQ", heap + 8)
                self._walk(tree, names, self.file.block(names, size), None)
        return self._children

    def _walk(self, address: int, heap: int, names: bytes, level: int | None) -> None:
        """Version 1 B-tree (section III.A.1) with the symbol tables at its leaves; the level falls by one each time."""
        file = self.file
        file.expect(b"TREE", address, "tree of names")
        kind, depth, used = file.unpack("BBH", address + 4)
        if kind != 0 or depth > 8 or level not in (None, depth + 1):
            raise file.error(f"is damaged: the names in {self.path or '/'} are not a tree")
        for i in range(used):
            file.work()
            (child,) = file.unpack("Q", address + 32 + 16 * i)
            if depth:
                self._walk(child, heap, names, depth)
                continue
            file.expect(b"SNOD", child, "table of names")
            for k in range(file.unpack("H", child + 6)[0]):
                file.work()
                offset, header, cache = file.unpack("QQI", child + 8 + 40 * k)
                end = names.find(b"\0", offset, offset + LONGEST_NAME)
                if end < 0:
                    raise file.error(f"is damaged: a name in {self.path or '/'} is too long or outside of the list of names")
                name = file.text(names[offset:end])
                assert self._children is not None
                if name in self._children:
                    raise file.error(f"is damaged: {self.path or '/'} holds {name!r} twice")
                self._children[name] = None if cache == 2 else header

    def child(self, path: str) -> Node | None:
        """The object at a path below this group; None where there is none."""
        node = self
        for name in (part for part in path.split("/") if part):
            children = node.children()
            if name not in children:
                return None
            address = children[name]
            if address is None:
                raise self.file.error(f"keeps {node.path}/{name} as a link to elsewhere: {ADVICE}")
            node = Node(self.file, address, f"{node.path}/{name}".lstrip("/"))
        return node

    # ---- attributes

    def attributes(self) -> list[str]:
        """Names of the attributes, in the order of the file."""
        return list(self._find_attributes())

    def _find_attributes(self) -> dict[str, tuple[int, int, int, int]]:
        """Name -> (offset of the type, of the shape, of the values, bytes of values)."""
        if self._attributes is None:
            if self._message(MORE_ATTRIBUTES) is not None:
                raise self.file.error(f"keeps the attributes of {self.path or '/'} in the layout of libver='latest': {ADVICE}")
            self._attributes = {}
            for kind, offset, size in self.messages:
                if kind != ATTRIBUTE:
                    continue
                version, flags, *sizes = self.file.unpack("BBHHH", offset)
                if version not in (1, 2, 3) or (version > 1 and flags):
                    raise self.file.error(f"has an attribute of version {version} at {self.path or '/'}, expected 1: {ADVICE}")
                step = 8 if version == 1 else 1  # version 1 pads each part to 8 bytes; version 3 has one byte more in front
                name, shape_size = offset + (9 if version == 3 else 8), -(-sizes[2] // step) * step
                type_at = name + -(-sizes[0] // step) * step
                shape_at = type_at + -(-sizes[1] // step) * step
                values = shape_at + shape_size
                if values > offset + size:
                    raise self.file.error(f"is damaged: an attribute of {self.path or '/'} is longer than its header")
                self._attributes[self.file.text(self.file.block(name, sizes[0]))] = (type_at, shape_at, values, offset + size - values)
        return self._attributes

    def attribute(self, name: str) -> np.ndarray | None:
        """The attribute as an array (0-d for a single value); None where there is none."""
        if name not in self._find_attributes():
            return None
        type_at, shape_at, values, size = self._find_attributes()[name]
        where = f"{self.path}@{name}"
        return _values(self.file, Type(self.file, type_at, where), _shape(self.file, shape_at, where), values, size, where)

    # ---- datasets

    def is_dataset(self) -> bool:
        """Whether this holds an array."""
        return self._message(LAYOUT) is not None

    def array(self) -> np.ndarray:
        """The dataset as a read-only view of the file's bytes."""
        file, where = self.file, self.path
        layout, type_at, shape_at = self._message(LAYOUT), self._message(DATATYPE), self._message(DATASPACE)
        if layout is None or type_at is None or shape_at is None:
            raise file.error(f"holds no array at {where or '/'}")
        version, storage = file.unpack("BB", layout)
        if self._message(FILTERS) is not None or version != 3 or storage not in (0, 1):
            raise file.error(f"stores {where} chunked or compressed, expected one piece: {ADVICE}")
        if storage == 0:
            offset, (size,) = layout + 4, file.unpack("H", layout + 2)
        else:
            offset, size = file.unpack("QQ", layout + 2)
        kind, shape = Type(file, type_at, where), _shape(file, shape_at, where)
        if offset == UNDEFINED and math.prod(shape):
            raise file.error(f"has no values for {where}: they were never written")
        return _values(file, kind, shape, offset, size, where)
