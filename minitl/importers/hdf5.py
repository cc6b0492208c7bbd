"""HDF5 as Keras writes it, read with NumPy alone: bytes -> groups, datasets, attributes.

Enters: the bytes of an .h5 file, which may be hostile. Leaves: its tree of nodes; read-only views of the datasets, attributes as arrays.
Left out: everything that Keras does not write (chunked or compressed datasets, links, the layout of libver='latest'), refused by name.

Source: HDF5 File Format Specification, version 3.0 (https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html).
"""

from __future__ import annotations

import numpy as np

from .hdf5_bytes import ADVICE, SIGNATURE, File, Type, shape_at, values_at

__all__ = ["SIGNATURE", "Node", "read"]

UNDEFINED = 0xFFFFFFFFFFFFFFFF
LONGEST_NAME = 4096

# message types of an object header (section IV.A.2)
DATASPACE, LINK_INFO, DATATYPE, LINK, LAYOUT, FILTERS, ATTRIBUTE, CONTINUATION, GROUP, MORE_ATTRIBUTES = 1, 2, 3, 6, 8, 11, 12, 16, 17, 21


def read(data: bytes, name: str) -> Node:
    """The root group of the bytes of a file called `name`. Raises MinitlError here, and later wherever the file proves damaged."""
    file = File(data, name)
    return Node(file, file.root, "")


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
                name, space_size = offset + (9 if version == 3 else 8), -(-sizes[2] // step) * step
                type_at = name + -(-sizes[0] // step) * step
                space_at = type_at + -(-sizes[1] // step) * step
                values = space_at + space_size
                if values > offset + size:
                    raise self.file.error(f"is damaged: an attribute of {self.path or '/'} is longer than its header")
                self._attributes[self.file.text(self.file.block(name, sizes[0]))] = (type_at, space_at, values, offset + size - values)
        return self._attributes

    def attribute(self, name: str) -> np.ndarray | None:
        """The attribute as an array (0-d for a single value); None where there is none."""
        if name not in self._find_attributes():
            return None
        type_at, space_at, values, size = self._find_attributes()[name]
        where = f"{self.path}@{name}"
        return values_at(self.file, Type(self.file, type_at, where), shape_at(self.file, space_at, where), values, size, where)

    # ---- datasets

    def is_dataset(self) -> bool:
        """Whether this holds an array."""
        return self._message(LAYOUT) is not None

    def array(self) -> np.ndarray:
        """The dataset as a read-only view of the file's bytes."""
        file, where = self.file, self.path
        layout, type_at, space_at = self._message(LAYOUT), self._message(DATATYPE), self._message(DATASPACE)
        if layout is None or type_at is None or space_at is None:
            raise file.error(f"holds no array at {where or '/'}")
        version, storage = file.unpack("BB", layout)
        if self._message(FILTERS) is not None or version != 3 or storage not in (0, 1):
            raise file.error(f"stores {where} chunked or compressed, expected one piece: {ADVICE}")
        if storage == 0:
            offset, (size,) = layout + 4, file.unpack("H", layout + 2)
        else:
            offset, size = file.unpack("QQ", layout + 2)
        kind, shape = Type(file, type_at, where), shape_at(file, space_at, where)
        if offset == UNDEFINED and 0 not in shape:
            raise file.error(f"has no values for {where}: they were never written")
        return values_at(file, kind, shape, offset, size, where)
