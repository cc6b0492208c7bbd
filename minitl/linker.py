"""An object file of LLVM -> one block of machine code that runs wherever it lies; and a block -> memory, in a tenth of LLVM's time.

In: relocatable ELF for x86-64: https://www.sco.com/developers/gabi/latest/contents.html (chapter 4) and the System V ABI's AMD64
supplement (4.4, relocation), https://gitlab.com/x86-psABIs/x86-64-ABI. Out: the sections one after the other; what one says of another's
place is filled in, as a distance. What differs from process to process goes into slots, 8 bytes each, that place() fills: the addresses of
functions of C, which are called through a jump at the end of the block, and of places in the block itself. Memory is first writable, then
executable, never both.

Left out: everything else. Variables that can be written to, other relocations, other names are Unlinkable, and native.py lets LLVM do it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import struct
from collections.abc import Mapping
from typing import NamedTuple

WRITE, ALLOC, THREAD = 1, 2, 0x400  # section flags
PROGBITS, SYMTAB, RELA, UNWIND = 1, 2, 4, 0x70000001  # section types
ABSOLUTE, PC32, PLT32, GOTPCREL, PC64, GOTPCRELX, REX_GOTPCRELX = 1, 2, 4, 9, 24, 41, 42  # relocations
SYMBOL, RELOCATION = struct.Struct("<IBBHQQ"), struct.Struct("<QIIq")


class Unlinkable(Exception):
    """The object file has something that is not known here."""


class Block(NamedTuple):
    """functions: {name: place in code}. slots: (place in code where an address belongs, whose: a name of C's, or a place in code)."""

    code: bytes
    functions: dict[str, int]
    slots: list[tuple[int, str | int]]


def link(data: bytes, symbols: Mapping[str, str], borrowed: tuple[str, ...]) -> Block:
    """Object file -> Block. symbols: {what to call it: symbol} of the functions to be found. borrowed: names of C's that may be called."""
    try:
        return _link(data, symbols, borrowed)
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise Unlinkable(f"the object file is not as expected: {error!r}") from None


def _link(data: bytes, symbols: Mapping[str, str], borrowed: tuple[str, ...]) -> Block:
    if data[:7] != b"\x7fELF\x02\x01\x01" or struct.unpack_from("<HH", data, 16) != (1, 62):
        raise Unlinkable("no relocatable ELF for x86-64")
    (start,), (each, count, names) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<HHH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, start + each * i) for i in range(count)]
    text = lambda at: data[at : data.index(b"\0", at)].decode()  # noqa: E731
    code, places = bytearray(), {}
    for i, (name, kind, flags, _, offset, size, _, _, align, _) in enumerate(sections):
        if flags & ALLOC and size and kind != UNWIND:  # nothing is ever thrown through these functions
            constant = not flags & (WRITE | THREAD) or text(sections[names][4] + name) == ".data.rel.ro"  # written to by the linker alone
            if kind != PROGBITS or not constant or align > mmap.PAGESIZE or offset + size > len(data):
                raise Unlinkable(f"section {i} is of type {kind} with flags {flags}")
            code += bytes(-len(code) % max(align, 16))
            places[i] = len(code)
            code += data[offset : offset + size]

    (table,) = (section for section in sections if section[1] == SYMTAB)
    known: list[tuple[str, int | None]] = []  # (name, place in the block, None where it lies elsewhere)
    for name, _, _, section, value, _ in SYMBOL.iter_unpack(data[table[4] : table[4] + table[5]]):
        known.append((text(sections[table[6]][4] + name), places[section] + value if section in places else None))

    slots: list[tuple[int, str | int]] = []

    @functools.cache
    def slot(whose: str | int) -> int:
        code.extend(bytes(-len(code) % 8 + 8))
        slots.append((len(code) - 8, whose))
        return len(code) - 8

    @functools.cache
    def jump(name: str) -> int:
        to = slot(name)
        code.extend(b"\xff\x25" + struct.pack("<i", to - len(code) - 6))
        return len(code) - 6

    for _, kind, _, _, offset, size, _, into, _, _ in sections:
        if kind == RELA and into in places:
            for place, how, number, addend in RELOCATION.iter_unpack(data[offset : offset + size]):
                name, at = known[number]
                if at is None and name not in borrowed:
                    raise Unlinkable(f"{name!r} is not in it")
                if place + (8 if how in (ABSOLUTE, PC64) else 4) > sections[into][5]:
                    raise Unlinkable("a relocation lies outside of its section")
                if how == ABSOLUTE and (at is not None or not addend):
                    slots.append((places[into] + place, name if at is None else at + addend))
                    continue
                if how in (GOTPCREL, GOTPCRELX, REX_GOTPCRELX):
                    target = slot(name if at is None else at)
                elif at is not None and how in (PC32, PLT32, PC64):
                    target = at
                elif at is None and how == PLT32:
                    target = jump(name)
                else:
                    raise Unlinkable(f"relocation {how} of {name!r}")
                struct.pack_into("<q" if how == PC64 else "<i", code, places[into] + place, target + addend - places[into] - place)
    found = {name: at for name, at in known if at is not None}
    return Block(bytes(code), {name: found[symbol] for name, symbol in symbols.items()}, slots)


@functools.cache
def _c() -> ctypes.CDLL:
    """The C library of this process."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


def place(block: Block) -> int:
    """Put a block into memory, for as long as the process lives; -> its address.

    OSError where the system does not allow it, ValueError where something lies outside of the block.
    """
    library, code = _c(), bytearray(block.code)
    marked = [*block.functions.values(), *(whose for _, whose in block.slots if isinstance(whose, int))]
    if not all(0 <= at < len(code) for at in marked) or not all(0 <= at <= len(code) - 8 for at, _ in block.slots):
        raise ValueError("not a block as it was written")
    size = -(-len(code) // mmap.PAGESIZE) * mmap.PAGESIZE
    address = library.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "no memory for machine code")
    for at, whose in block.slots:
        if isinstance(whose, str) and not hasattr(library, whose):
            raise OSError(f"the C library has no {whose}")
        value = address + whose if isinstance(whose, int) else ctypes.cast(getattr(library, whose), ctypes.c_void_p).value
        struct.pack_into("<Q", code, at, value)
    ctypes.memmove(address, bytes(code), len(code))
    if library.mprotect(address, size, mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), "the system does not allow memory with machine code")
    return int(address)
