"""The pickle inside of a PyTorch file, without running it.

Enters: bytes. Leaves: tables, lists, numbers, texts, and for every tensor the storage that it is a window into; nothing of it checked yet
against the file (torch_files.py). Left out: whole pickled models, and whatever else is a program.

A pickle is a program for a machine with a stack. The machine below knows those of its instructions that a table of tensors needs, and none
of them calls anything: a name stands for nothing but itself, and one that is not in NAMES is refused by name. Tables are lists of pairs, so
that no hash of the file's making is ever computed. What runs is bounded by the pickle's size and by MOST_STEPS.

Source: torch/_utils.py, torch/_tensor.py; the standard library's pickletools.
"""

from __future__ import annotations

import pickle  # for the names of its instructions
import struct
from dataclasses import dataclass
from typing import Any, NoReturn

from ..errors import MinitlError
from .safetensors import BFLOAT16

MOST_STEPS = 500_000  # instructions; a state_dict needs about 35 for each tensor
STORAGES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": BFLOAT16, "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "|i1", "ByteStorage": "|u1", "BoolStorage": "|b1",
}  # fmt: skip
TABLE, PARAMETER = ("collections", "OrderedDict"), ("torch._utils", "_rebuild_parameter")
TENSORS = {("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")}  # the second: before 0.4
NAMES = {TABLE, PARAMETER, *TENSORS, *(("torch", name) for name in STORAGES)}
ADVICE = "where you trust it and PyTorch is, save its numbers alone: torch.save(model.state_dict(), 'x.pth')"
TABLE_ADVICE = (
    "If floating-point weights lie in it beside other things, save them alone where you trust it and PyTorch is: "
    "torch.save(checkpoint['model'], 'x.pth'), or ['state_dict'], whatever it calls them; of a whole model, its state_dict()"
)


@dataclass(frozen=True)
class Name:
    """One of NAMES."""

    module: str
    name: str


@dataclass(frozen=True, eq=False)
class Storage:
    """A row of numbers in the file, by its key."""

    dtype: str
    key: str
    size: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A window into a storage; not checked yet."""

    storage: Storage
    offset: Any
    shape: Any
    strides: Any


class Table:
    """A dict of a pickle: pairs in order, keys not hashed."""

    def __init__(self, pairs: list[Any] | None = None) -> None:
        self.pairs = [] if pairs is None else pairs

    def texts(self) -> dict[str, Any]:
        """The entries that are called by a text."""
        pairs = [pair for pair in self.pairs if isinstance(pair, (list, tuple)) and len(pair) == 2]
        return {key: value for key, value in pairs if isinstance(key, str)}


CONSTANTS: dict[bytes, Any] = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.EMPTY_TUPLE: ()}
NUMBERS = {pickle.BININT: "<i", pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BINFLOAT: ">d"}
UNICODE, BYTES = {pickle.BINUNICODE: "<I", pickle.SHORT_BINUNICODE: "<B"}, {pickle.BINSTRING: "<i", pickle.SHORT_BINSTRING: "<B"}
PUTS, GETS = {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I"}, {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}
TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
SKIPPED = {pickle.PROTO: 1, pickle.FRAME: 8}  # instructions that change nothing, and the bytes of their argument


class Machine:
    """Runs the pickle at `at`; afterwards `at` is behind it."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data, self.what, self.at, self.steps = data, what, 0, 0
        self.storages: dict[str, Storage] = {}
        self.bottom: list[Any] = []  # of the stack

    def run(self) -> Any:
        """The value that one pickle describes. Raises MinitlError."""
        try:
            return self._run()
        except MinitlError:
            raise
        except (IndexError, KeyError, ValueError, TypeError, struct.error):
            raise MinitlError(f"{self.what} is damaged: its pickle is wrong or cut off at byte {self.at}") from None

    def refuse(self, found: str) -> NoReturn:
        """What no table of tensors needs."""
        table = bool(self.bottom) and isinstance(self.bottom[0], Table)
        raise MinitlError(
            f"{self.what} is refused: its pickle {found:.200}, which a table of weights does not need and which could run a program; "
            f"nothing of it was run. {TABLE_ADVICE if table else f'If it is a whole model, {ADVICE}'}"
        )

    def _take(self, size: int) -> bytes:
        piece = self.data[self.at : self.at + size]
        if size < 0 or len(piece) < size:
            raise ValueError
        self.at += size
        return piece

    def _number(self, code: str) -> Any:
        value = struct.unpack_from(code, self.data, self.at)[0]
        self.at += struct.calcsize(code)
        return value

    def _line(self) -> str:
        end = self.data.index(b"\n", self.at, self.at + 500)
        line, self.at = self.data[self.at : end].decode(), end + 1
        return line

    def _run(self) -> Any:
        stack = self.bottom = []
        outer: list[list[Any]] = []  # stacks below the marks
        memo: dict[int, Any] = {}

        def marked() -> list[Any]:
            nonlocal stack
            items, stack = stack, outer.pop()
            return items

        while True:
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise MinitlError(f"{self.what} is refused: its pickle has more than {MOST_STEPS} instructions, no network needs so many")
            code = self._take(1)
            if code in PUTS:
                memo[self._number(PUTS[code])] = stack[-1]
            elif code in GETS:
                stack.append(memo[self._number(GETS[code])])
            elif code in NUMBERS:
                stack.append(self._number(NUMBERS[code]))
            elif code in UNICODE:
                stack.append(self._take(self._number(UNICODE[code])).decode("utf-8", "surrogatepass"))
            elif code in CONSTANTS:
                stack.append(CONSTANTS[code])
            elif code in TUPLES:
                items = [stack.pop() for _ in range(TUPLES[code])]
                stack.append(tuple(items[::-1]))
            elif code == pickle.MARK:
                outer.append(stack)
                stack = []
            elif code == pickle.TUPLE:
                items = marked()
                stack.append(tuple(items))
            elif code == pickle.BINPERSID:
                stack.append(self._storage(stack.pop()))
            elif code == pickle.REDUCE:
                arguments = stack.pop()
                stack.append(self._made(stack.pop(), arguments))
            elif code == pickle.GLOBAL:
                stack.append(self._name(self._line(), self._line()))
            elif code == pickle.STACK_GLOBAL:
                name = stack.pop()
                stack.append(self._name(stack.pop(), name))
            elif code in (pickle.EMPTY_DICT, pickle.EMPTY_LIST):
                stack.append(Table() if code == pickle.EMPTY_DICT else [])
            elif code in (pickle.SETITEM, pickle.SETITEMS):
                items = marked() if code == pickle.SETITEMS else [stack.pop(-2), stack.pop()]
                self._is(stack[-1], Table).pairs.extend(zip(items[::2], items[1::2], strict=True))
            elif code in (pickle.APPEND, pickle.APPENDS):
                items = marked() if code == pickle.APPENDS else [stack.pop()]
                self._is(stack[-1], list).extend(items)
            elif code == pickle.BUILD:  # attributes of a table, such as _metadata: not looked at
                stack.pop()
                self._is(stack[-1], Table)
            elif code == pickle.LONG1:
                stack.append(int.from_bytes(self._take(self._number("<B")), "little", signed=True))
            elif code == pickle.MEMOIZE:
                memo[len(memo)] = stack[-1]
            elif code in BYTES:  # texts of Python 2
                stack.append(self._take(self._number(BYTES[code])).decode("latin-1"))
            elif code in SKIPPED:
                self._take(SKIPPED[code])
            elif code == pickle.STOP:
                return stack.pop()
            else:
                self.refuse(f"uses the instruction {_called(code)} at byte {self.at - 1}")

    def _is(self, value: Any, kind: type) -> Any:
        if type(value) is not kind:
            self.refuse(f"changes something that is no {'table' if kind is Table else kind.__name__}")
        return value

    def _name(self, module: Any, name: Any) -> Name:
        if not (isinstance(module, str) and isinstance(name, str)):
            self.refuse("names something that is no text")
        if (module, name) not in NAMES:
            self.refuse(f"names {module:.80}.{name:.80}")
        return Name(module, name)

    def _storage(self, found: Any) -> Storage:
        """('storage', its type, key, device, numbers[, None])."""
        fine = isinstance(found, tuple) and len(found) in (5, 6) and isinstance(found[0], str) and found[0] == "storage"
        if not fine or not isinstance(found[1], Name) or found[1].name not in STORAGES:
            self.refuse("refers to something outside of it that is no storage of numbers")
        _, kind, key, _, size, *view = found
        if not isinstance(key, str) or type(size) is not int or size < 0 or (view and view[0] is not None):
            self.refuse("refers to a part of a storage, or to one without a name or a size")
        return self.storages.setdefault(key, Storage(STORAGES[kind.name], key, size))

    def _made(self, name: Any, arguments: Any) -> Any:
        """What the functions of NAMES would make."""
        called = (name.module, name.name) if isinstance(name, Name) else None
        if called is None or type(arguments) is not tuple:
            self.refuse("calls what is no name")
        if called == TABLE and len(arguments) <= 1:
            return Table(self._is(arguments[0], list) if arguments else None)  # a list of pairs: as Python 2 wrote it
        if called in TENSORS and len(arguments) >= 4 and isinstance(arguments[0], Storage):
            return Tensor(*arguments[:4])
        if called == PARAMETER and arguments and isinstance(arguments[0], Tensor):
            return arguments[0]
        self.refuse(f"calls {called[0]}.{called[1]} with other things than it takes")


def _called(code: bytes) -> str:
    """The name of an instruction."""
    return next((name for name, value in vars(pickle).items() if value == code and name.isupper()), f"{code!r}")
