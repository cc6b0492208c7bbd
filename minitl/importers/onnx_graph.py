"""The parts of an ONNX graph: nodes with their attributes, and its constants, also those that are computed from others.

Enters: a GraphProto and the files beside it that hold its numbers, if it names any. Leaves: NumPy arrays by name, views of the file where
it stores plain numbers. Left out: texts and complex numbers as constants, numbers of fewer than 8 bits, sparse tensors.

Numbers of fields: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; operators: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..errors import MinitlError
from .beside import Beside
from .protobuf import Message

MOST_TENSORS, LARGEST_BESIDE = 20_000, 1 << 30
LONGEST_LIST = 16  # of axes, of a shape
TYPES = {1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8", 16: "<u2"}
FLOATS, BFLOAT16 = (1, 10, 11, 16), 16


class Node:
    """A NodeProto. label: for errors."""

    def __init__(self, message: Message) -> None:
        self.kind, self.domain, self.inputs, self.outputs = message.text(4), message.text(7), message.texts(1), message.texts(2)
        self.attributes = {a.text(1): a for a in message.messages(5, 100)}
        self.output = self.outputs[0] if self.outputs else ""
        self.label = f"node {self.output!r:.80} ({self.kind:.40})"

    def number(self, name: str, default: int) -> int:
        """A whole number."""
        return self.attributes[name].number(3) if name in self.attributes else default

    def real(self, name: str, default: float) -> float:
        """A float32, with no more digits than it has."""
        return float(f"{self.attributes[name].real(2):.7g}") if name in self.attributes else default

    def text(self, name: str) -> str:
        """A text, '' where it is absent."""
        return self.attributes[name].text(4) if name in self.attributes else ""

    def integers(self, name: str) -> list[int] | None:
        """A list of whole numbers, None where it is absent."""
        return self.attributes[name].integers(8).tolist() if name in self.attributes else None


class Constants:
    """The arrays of a graph by name. size: bytes of its file, which bound what is made of them."""

    def __init__(self, graph: Message, what: str, beside: Beside, size: int) -> None:
        self.what, self.beside, self.most, self.taken = what, beside, 2 * size, 0
        self.arrays: dict[str, np.ndarray] = {}
        self.origin: dict[str, str] = {}  # name of an initialiser or of what only passes one on -> the initialiser
        for tensor in graph.messages(5, MOST_TENSORS):
            name = tensor.text(8)
            if name in self.arrays:
                raise MinitlError(f"{what} is damaged: it holds two tensors called {name!r:.80}")
            self._tensor(name, tensor)
            self.origin[name] = name
        self.unused = {name: None for name, array in self.arrays.items() if array.dtype.kind == "f"}  # a dict keeps the order

    def _tensor(self, name: str, tensor: Message) -> None:
        """A TensorProto under this name; a type that no network here needs is left out."""
        dims, number = tensor.integers(1).tolist(), tensor.number(2)
        if number not in TYPES:
            return
        dtype = np.dtype(TYPES[number])
        if len(dims) > 8 or any(not 0 <= n < 1 << 31 for n in dims):
            raise MinitlError(f"{self.what} is damaged: its tensor {name!r:.80} has shape {dims[:9]}")
        if tensor.number(14):
            array = np.frombuffer(self._external(name, tensor, math.prod(dims) * dtype.itemsize), dtype)
        elif tensor.has(9):
            raw = tensor.slices(9)[-1]
            array = np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype)
        elif number in (1, 11):
            array = tensor.reals(4 if number == 1 else 10, dtype.str)
        else:  # halves are written as the whole numbers that have their bits
            whole = tensor.integers(7 if number == 7 else 5)
            array = whole.astype(f"<u{dtype.itemsize}").view(dtype)
        if array.size != math.prod(dims):
            raise MinitlError(f"{self.what} is damaged: its tensor {name!r:.80} has shape {dims} and {array.size} numbers")
        if number == BFLOAT16:
            array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        self.arrays[name] = array.reshape(dims)

    def _external(self, name: str, tensor: Message, size: int) -> memoryview:
        """The `size` bytes of a tensor that lie in a file beside this one."""
        entries = {entry.text(1): entry.text(2) for entry in tensor.messages(13, LONGEST_LIST)}
        location, start, length = entries.get("location", ""), entries.get("offset", "0"), entries.get("length", str(size))
        if not (start.isascii() and start.isdigit() and len(start) < 16) or length != str(size):
            raise MinitlError(
                f"{self.what} is damaged: its tensor {name!r:.80} of {size} bytes is said to be {length!r:.30} bytes from {start!r:.30} on"
            )
        known = location in self.beside.files
        data = self.beside.read(location, LARGEST_BESIDE)
        self.most += 0 if known else 2 * len(data)
        if int(start) + size > len(data):
            raise MinitlError(
                f"{self.what} needs {size} bytes from byte {start} of {location!r:.80} on, which has only {len(data)}: get both again"
            )
        return memoryview(data)[int(start) : int(start) + size]

    def compute(self, node: Node) -> bool:
        """Take a node whose inputs are all constants. False: it is none."""
        if node.kind == "Constant":
            self._constant(node)
            return True
        given = node.inputs[:1] if node.kind == "CastLike" else [name for name in node.inputs if name]
        if node.kind not in COMPUTED or not given or any(name not in self.arrays for name in given):
            return False
        xs = [self.arrays[name] for name in given]
        try:
            if node.kind == "ConstantOfShape":
                self._filled(node, xs[0])
                return True
            shapes = [_list(xs[1]) if node.kind == "Expand" and i == 1 else x.shape for i, x in enumerate(xs)]
            size = math.prod(np.broadcast_shapes(*shapes)) if node.kind in BROADCAST else sum(x.size for x in xs)
            if size > self.most:
                raise MinitlError(f"{self.what} is damaged: {node.label} makes more numbers than the file holds")
            with np.errstate(all="ignore"):
                self.arrays[node.output] = COMPUTED[node.kind](node, *xs)
        except MinitlError:
            raise
        except (ValueError, TypeError, IndexError, OverflowError):
            raise MinitlError(f"{self.what} is damaged: {node.label} cannot be computed") from None
        if given[0] in self.origin and node.kind in ("Identity", "Cast"):
            self.origin[node.output] = self.origin[given[0]]
        return True

    def _constant(self, node: Node) -> None:
        for name, value in node.attributes.items():
            if name == "value":
                self._tensor(node.output, value.message(5))
            elif name == "value_float":
                self.arrays[node.output] = np.array(value.real(2), np.float32)
            elif name == "value_floats":
                self.arrays[node.output] = value.reals(7, "<f4")
            elif name in ("value_int", "value_ints"):
                self.arrays[node.output] = np.array(value.number(3)) if name == "value_int" else value.integers(8)

    def _filled(self, node: Node, shape: np.ndarray) -> None:
        """An array of one number, which takes the room of one."""
        self.arrays[node.output] = np.zeros((), np.float32)
        if "value" in node.attributes:
            self._tensor(node.output, node.attributes["value"].message(5))
        self.arrays[node.output] = np.broadcast_to(self.arrays[node.output].reshape(()), _list(shape))

    def floats(self, node: Node, i: int, what: str) -> np.ndarray:
        """Input i of a node, which must be floats that are there, for one of our arrays."""
        name = node.inputs[i] if i < len(node.inputs) else ""
        array = self.arrays.get(name)
        if array is None or array.dtype.kind != "f":
            raise MinitlError(f"{self.what} is no network that minitl knows: {node.label} has no constant {what} of floats")
        self.take(array.size)
        self.unused.pop(self.origin.get(name, name), None)
        return array

    def take(self, count: int) -> None:
        """So many numbers are used, or used again: a small file must not become large arrays."""
        self.taken += count
        if self.taken > self.most:
            raise MinitlError(f"{self.what} is damaged: its nodes share their numbers")

    def listed(self, node: Node, attribute: str, i: int) -> list[int] | None:
        """Whole numbers that older versions of ONNX have as an attribute, newer ones as input i. None: absent, or computed."""
        array = self.arrays.get(node.inputs[i]) if i < len(node.inputs) else None
        if array is None or array.dtype.kind not in "iu" or array.size > LONGEST_LIST:
            return node.integers(attribute)
        return array.reshape(-1).tolist()


def _list(array: np.ndarray) -> tuple[int, ...]:
    if array.size > LONGEST_LIST or array.dtype.kind not in "iu":
        raise ValueError
    return tuple(array.reshape(-1).tolist())


def shape_of(node: Node, shape: list[int]) -> np.ndarray:
    """What a Shape gives for a value of this shape."""
    return np.array(shape[node.number("start", 0) : node.number("end", len(shape))], np.int64)


def _reshape(node: Node, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """A size of 0 stands for that of the input."""
    return x.reshape([x.shape[i] if n == 0 and not node.number("allowzero", 0) else n for i, n in enumerate(_list(shape))])


def _cast(node: Node, x: np.ndarray) -> np.ndarray:
    to = node.number("to", 1)  # CastLike: whatever it shall be like, here that is floats
    if to not in TYPES or to == BFLOAT16:
        raise ValueError
    return x.astype(TYPES[to])


def _axes(node: Node, axes: np.ndarray | None) -> tuple[int, ...]:
    return tuple(node.integers("axes") or ()) if axes is None else _list(axes)


def _slice(node: Node, x: np.ndarray, *inputs: np.ndarray) -> np.ndarray:
    """starts, ends, axes, steps; older versions have them as attributes."""
    lists = [_list(array) for array in inputs] or [tuple(node.integers(name) or ()) for name in ("starts", "ends", "axes")]
    starts, ends, *rest = lists
    axes = rest[0] if rest and rest[0] else range(len(starts))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    where = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        where[axis] = slice(start, end, step)
    return x[tuple(where)]


def _gather(node: Node, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    if x.ndim != 1:
        raise ValueError
    return x[indices]


def _divide(node: Node, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whole numbers are rounded towards 0."""
    return np.trunc(x / y).astype(x.dtype) if x.dtype.kind in "iu" else x / y


BROADCAST = ("Expand", "Add", "Sub", "Mul", "Div")
COMPUTED: dict[str, Callable[..., np.ndarray]] = {
    "Identity": lambda node, x: x,
    "Cast": _cast,
    "CastLike": _cast,
    "Shape": lambda node, x: shape_of(node, list(x.shape)),
    "ConstantOfShape": lambda node, x: x,
    "Gather": _gather,
    "Slice": _slice,
    "Add": lambda node, x, y: x + y,
    "Sub": lambda node, x, y: x - y,
    "Mul": lambda node, x, y: x * y,
    "Div": _divide,
    "Expand": lambda node, x, shape: np.broadcast_to(x, np.broadcast_shapes(x.shape, _list(shape))),
    "Concat": lambda node, *xs: np.concatenate(xs, node.number("axis", 0)),
    "Reshape": _reshape,
    "Transpose": lambda node, x: x.transpose(node.integers("perm")),
    "Squeeze": lambda node, x, axes=None: x.squeeze(_axes(node, axes) or None),
    "Unsqueeze": lambda node, x, axes=None: np.expand_dims(x, _axes(node, axes)),
}
"""What exporters leave to be computed from constants, and from the shapes of values."""
