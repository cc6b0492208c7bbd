"""A .tflite file -> its operators and tensors, exactly as they are in it.

Enters: bytes, which may be hostile. Leaves: the one subgraph: operators in execution order with named options, tensors with shape, dtype,
quantisation and constant data (views of the file). Left out: what it means (tflite_float.py turns it into float arrays), more than one
subgraph, sparse tensors' data, strings.

Source: tensorflow/compiler/mlir/lite/schema/schema.fbs (field and enum numbers), version 3 of the schema.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MinitlError
from ..files import printable
from .flatbuffer import Table

SIGNATURE = b"TFL3"  # at byte 4
MOST_PARTS, MOST_INPUTS, MOST_AXES = 20_000, 64, 8

OPERATORS = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 5: "DEPTH_TO_SPACE", 6: "DEQUANTIZE",
    9: "FULLY_CONNECTED", 11: "L2_NORMALIZATION", 12: "L2_POOL_2D", 14: "LOGISTIC", 17: "MAX_POOL_2D", 18: "MUL", 19: "RELU",
    20: "RELU_N1_TO_1", 21: "RELU6", 22: "RESHAPE", 23: "RESIZE_BILINEAR", 25: "SOFTMAX", 26: "SPACE_TO_DEPTH", 27: "SVDF", 28: "TANH",
    32: "CUSTOM", 34: "PAD", 36: "GATHER", 37: "BATCH_TO_SPACE_ND", 38: "SPACE_TO_BATCH_ND", 39: "TRANSPOSE", 40: "MEAN", 41: "SUB",
    42: "DIV", 43: "SQUEEZE", 45: "STRIDED_SLICE", 47: "EXP", 49: "SPLIT", 50: "LOG_SOFTMAX", 53: "CAST", 54: "PRELU", 55: "MAXIMUM",
    56: "ARG_MAX", 57: "MINIMUM", 60: "PADV2", 65: "SLICE", 67: "TRANSPOSE_CONV", 70: "EXPAND_DIMS", 74: "SUM", 77: "SHAPE",
    82: "REDUCE_MAX", 83: "PACK", 88: "UNPACK", 97: "RESIZE_NEAREST_NEIGHBOR", 98: "LEAKY_RELU", 100: "MIRROR_PAD", 102: "SPLIT_V",
    111: "ELU", 114: "QUANTIZE", 117: "HARD_SWISH", 126: "BATCH_MATMUL", 150: "GELU",
}  # fmt: skip
DTYPES = {0: "<f4", 1: "<f2", 2: "<i4", 3: "u1", 4: "<i8", 6: "?", 7: "<i2", 9: "i1", 10: "<f8"}
PADDINGS = ("same", "valid")
ACTIVATIONS = ("linear", "relu", "relu_n1_to_1", "relu6")

_Option = tuple[int, str, int, tuple[str, ...] | None]  # field, layout, default, words for its values


def _int(field: int, default: int = 0) -> _Option:
    return field, "i", default, None


def _words(field: int, words: tuple[str, ...]) -> _Option:
    return field, "b", 0, words


_POOL = {
    "padding": _words(0, PADDINGS), "stride_w": _int(1), "stride_h": _int(2), "filter_width": _int(3), "filter_height": _int(4),
    "activation": _words(5, ACTIVATIONS),
}  # fmt: skip
# operator -> (number of its options' type, its options)
OPTIONS: dict[str, tuple[int, dict[str, _Option]]] = {
    "CONV_2D": (1, {"padding": _words(0, PADDINGS), "stride_w": _int(1), "stride_h": _int(2), "activation": _words(3, ACTIVATIONS),
                    "dilation_w": _int(4, 1), "dilation_h": _int(5, 1)}),
    "DEPTHWISE_CONV_2D": (2, {"padding": _words(0, PADDINGS), "stride_w": _int(1), "stride_h": _int(2), "depth_multiplier": _int(3),
                              "activation": _words(4, ACTIVATIONS), "dilation_w": _int(5, 1), "dilation_h": _int(6, 1)}),
    "AVERAGE_POOL_2D": (5, _POOL),
    "MAX_POOL_2D": (5, _POOL),
    "FULLY_CONNECTED": (8, {"activation": _words(0, ACTIVATIONS), "weights_format": (1, "b", 0, None), "keep_num_dims": (2, "B", 0, None)}),
    "SOFTMAX": (9, {"beta": (0, "f", 0, None)}),
    "CONCATENATION": (10, {"axis": _int(0), "activation": _words(1, ACTIVATIONS)}),
    "ADD": (11, {"activation": _words(0, ACTIVATIONS)}),
    "MUL": (21, {"activation": _words(0, ACTIVATIONS)}),
    "SUB": (28, {"activation": _words(0, ACTIVATIONS)}),
    "DIV": (29, {"activation": _words(0, ACTIVATIONS)}),
    "MEAN": (27, {"keep_dims": (0, "B", 0, None)}),
}  # fmt: skip


@dataclass(frozen=True)
class Quantisation:
    """real = scale * (q - zero_point). scale float32 (n,), zero_point int64 (n,); n > 1: one per index along `axis`."""

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int


@dataclass(frozen=True)
class Tensor:
    """A value or a constant. dtype None: one that NumPy does not have. data: None for what is computed. sparse: data is compressed."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    quantisation: Quantisation | None
    data: np.ndarray | None
    sparse: bool


@dataclass(frozen=True)
class Operator:
    """One step. kind: TensorFlow Lite's name. inputs, outputs: tensor indices, -1 for an absent input. options: numbers and words."""

    index: int
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, Any]

    @property
    def label(self) -> str:
        """How errors call it."""
        return f"operator {self.index} ({self.kind})"


@dataclass(frozen=True)
class Model:
    """A whole file. metadata: name -> bytes, as a view. size: bytes of the file."""

    name: str
    tensors: list[Tensor]
    operators: list[Operator]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    metadata: dict[str, np.ndarray]
    size: int

    def error(self, what: str) -> MinitlError:
        """The error to raise, with the name of the file in front."""
        return MinitlError(printable(f"{self.name}: {what}"))


def parse(data: bytes, name: str) -> Model:
    """The model in the bytes of a .tflite file called `name`. Raises MinitlError where it is damaged or has several subgraphs."""
    root = Table.root(data, name)
    if data[4:8] != SIGNATURE or root.number(0, "I") != 3:
        raise MinitlError(f"{name} is no TensorFlow Lite model of schema version 3")
    subgraphs = root.tables(2, MOST_PARTS)
    if len(subgraphs) != 1:
        raise MinitlError(f"{name} has {len(subgraphs)} subgraphs, expected one")
    codes = [_operator_code(table) for table in root.tables(1, MOST_PARTS)]
    buffers = root.tables(4, MOST_PARTS)
    subgraph = subgraphs[0]
    tensors = [_tensor(table, i, buffers, name) for i, table in enumerate(subgraph.tables(0, MOST_PARTS))]
    operators = [_operator(table, i, codes, name) for i, table in enumerate(subgraph.tables(3, MOST_PARTS))]
    inputs, outputs = _indices(subgraph, 1, name), _indices(subgraph, 2, name)
    used = {i for o in operators for i in (*o.inputs, *o.outputs)} | {*inputs, *outputs}
    if any(not -1 <= i < len(tensors) for i in used) or any(i < 0 for o in operators for i in o.outputs) or min((*inputs, *outputs, 0)) < 0:
        raise MinitlError(f"{name} is damaged: an operator uses a tensor that does not exist")
    metadata = {}
    for entry in root.tables(6, 100):
        number = entry.number(1, "I")
        if number >= len(buffers):
            raise MinitlError(f"{name} is damaged: its metadata lies in a buffer that does not exist")
        metadata[entry.string(0)] = _buffer(buffers[number])
    return Model(name, tensors, operators, inputs, outputs, metadata, len(data))


def _indices(table: Table, field: int, name: str) -> tuple[int, ...]:
    """A short vector of tensor indices."""
    vector = table.vector(field, "<i4")
    if len(vector) > MOST_INPUTS:
        raise MinitlError(f"{name} has a list of {len(vector)} inputs or outputs, at most {MOST_INPUTS} were expected")
    return tuple(vector.tolist())


def _operator_code(table: Table) -> str:
    """The number was an int8 in field 0 and grew into field 3: the larger one counts."""
    number = max(table.number(0, "b"), table.number(3, "i"))
    if number == 32:
        return f"CUSTOM {table.string(1)[:40]}"
    return OPERATORS.get(number, f"builtin operator number {number}")


def _operator(table: Table, index: int, codes: list[str], name: str) -> Operator:
    code = table.number(0, "I")
    if code >= len(codes):
        raise MinitlError(f"{name} is damaged: operator {index} is of no kind that it lists")
    kind = codes[code]
    options: dict[str, Any] = {}
    if kind in OPTIONS:
        number, fields = OPTIONS[kind]
        if table.number(3, "B") not in (0, number):
            raise MinitlError(f"{name} is damaged: operator {index} ({kind}) has the options of another kind")
        inner = table.table(4)
        for option, (field, layout, default, words) in fields.items():
            value = default if inner is None else inner.number(field, layout, default)
            if words is not None and not 0 <= value < len(words):
                raise MinitlError(f"{name}: operator {index} ({kind}) has {option} {value}, which is none of {', '.join(words)}")
            options[option] = value if words is None else words[value]
    return Operator(index, kind, _indices(table, 1, name), _indices(table, 2, name), options)


def _buffer(table: Table) -> np.ndarray:
    """Bytes of a buffer: inside of the FlatBuffer, or after it (files that were larger than 2 GB once)."""
    offset, size = table.number(1, "Q"), table.number(2, "Q")
    if offset <= 1:
        return table.vector(0, "u1")
    if offset + size > len(table.data):
        raise table.error()
    return np.frombuffer(table.data, np.uint8, size, offset) if size else np.empty(0, np.uint8)


def _tensor(table: Table, index: int, buffers: list[Table], name: str) -> Tensor:
    called = table.string(3)
    shape = tuple(table.vector(0, "<i4")[: MOST_AXES + 1].tolist())
    number, kind = table.number(2, "I"), DTYPES.get(table.number(1, "b"))
    if len(shape) > MOST_AXES or any(n < 0 for n in shape) or number >= len(buffers):
        raise MinitlError(printable(f"{name} is damaged: tensor {index} ({called:.60}) has shape {shape} and buffer {number}"))
    dtype = None if kind is None else np.dtype(kind)
    raw, data = _buffer(buffers[number]), None
    sparse = table.table(6) is not None
    if dtype is not None and len(raw) and not sparse:
        if math.prod(shape) * dtype.itemsize != len(raw):
            raise MinitlError(printable(f"{name} is damaged: tensor {index} ({called:.60}) has shape {shape} and {len(raw)} bytes"))
        data = raw.view(dtype).reshape(shape)
    return Tensor(index, called, shape, dtype, _quantisation(table.table(4), shape, index, name), data, sparse)


def _quantisation(table: Table | None, shape: tuple[int, ...], index: int, name: str) -> Quantisation | None:
    if table is None:
        return None
    scale, zero_point, axis = table.vector(2, "<f4"), table.vector(3, "<i8"), table.number(6, "i")
    if not len(scale):
        return None
    per_axis = len(scale) > 1
    if table.number(4, "B") or len(zero_point) != len(scale) or (per_axis and not (0 <= axis < len(shape) and shape[axis] == len(scale))):
        raise MinitlError(
            f"{name}: tensor {index} of shape {shape} has {len(scale)} scales and {len(zero_point)} zero points along axis {axis}, "
            "expected one of each, or one for every channel"
        )
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise MinitlError(f"{name} is damaged: a scale of tensor {index} is not a positive number")
    return Quantisation(scale, zero_point, axis)
