"""TensorFlow.js layers models -> Imported: model.json, and the shards beside it that hold the numbers.

Enters: the bytes of model.json. Leaves: the network, found by Keras' names and checked against the model's topology where the file has it
(keras_h5.from_layers), quantised numbers as floats: q * scale + min. A group of numbers is the bytes of its shards one after the other,
so that an array may begin in one and end in the next. Left out: graph models (refused in words), texts, optimizers.

Source: https://github.com/tensorflow/tfjs/tree/master/tfjs-core/src/io (types.ts, io_utils.ts)
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from ..errors import MinitlError
from .beside import Beside
from .keras_h5 import from_layers
from .names import Imported

LARGEST_JSON, LARGEST_GROUP = 1 << 24, 1 << 30
MOST_PARTS = 10_000
TYPES = {"float32": "<f4", "float16": "<f2", "uint8": "u1", "uint16": "<u2", "int32": "<i4"}
ORDER = ("kernel", "depthwise_kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
"""Keras' order of the arrays of a layer; a file may list them in another."""


def is_model(data: bytes) -> bool:
    """Whether a file may be JSON."""
    return data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def convert(data: bytes, what: str, beside: Beside) -> Imported:
    """The network of a model.json. `what` is the file's name. Raises MinitlError."""
    if len(data) > LARGEST_JSON:
        raise MinitlError(f"cannot read {what}: it has {len(data)} bytes, a model.json at most {LARGEST_JSON}")
    try:
        model = json.loads(data)
    except (ValueError, RecursionError):
        raise MinitlError(f"{what} is damaged, or no JSON: get it again") from None
    if not isinstance(model, dict) or not isinstance(model.get("weightsManifest"), list):
        raise MinitlError(f"cannot read {what}: expected TensorFlow.js' model.json, found JSON without a weightsManifest")
    topology = model.get("modelTopology")
    if model.get("format") == "graph-model" or (isinstance(topology, dict) and "node" in topology):
        raise MinitlError(f"{what} is a graph model, of which the layers are gone: give the layers model, the .h5, or the .tflite instead")
    layers: dict[str, dict[str, np.ndarray]] = {}
    paths: set[str] = set()
    for group in _parts(model["weightsManifest"], what, dict):
        for name, array in _group(group, paths, what, beside):
            *_, layer, part = ["", *name.removesuffix(":0").split("/")]
            if part in layers.setdefault(layer, {}):
                raise MinitlError(f"{what} holds two arrays called {name!r:.80}")
            layers[layer][part] = array
    arrays = {layer: [parts[part] for part in sorted(parts, key=_place)] for layer, parts in layers.items()}
    configuration = topology.get("model_config", topology) if isinstance(topology, dict) else None
    return from_layers(arrays, None if configuration is None else json.dumps(configuration), what, "tfjs")


def _place(part: str) -> int:
    return ORDER.index(part) if part in ORDER else len(ORDER)


def _parts(listed: Any, what: str, kind: type) -> list[Any]:
    if not isinstance(listed, list) or len(listed) > MOST_PARTS or not all(isinstance(part, kind) for part in listed):
        raise MinitlError(f"{what} is damaged: its weightsManifest is not what TensorFlow.js writes")
    return listed


def _group(group: dict[str, Any], paths: set[str], what: str, beside: Beside) -> list[tuple[str, np.ndarray]]:
    """(name, array) of every array of a group. paths: the shards that other groups have; its own are added."""
    entries = [_entry(weight, what) for weight in _parts(group.get("weights"), what, dict)]
    size = sum(math.prod(shape) * dtype.itemsize for _, shape, dtype, _ in entries)
    if size > LARGEST_GROUP:
        raise MinitlError(f"{what} is damaged: it lists arrays of {size} bytes in one group")
    shards, missing = [], size
    for path in _parts(group.get("paths"), what, str):
        if path in paths:
            raise MinitlError(f"{what} is damaged: it lists {path!r:.80} twice")
        paths.add(path)
        shards.append(beside.read(path, missing))
        missing -= len(shards[-1])
    if missing:
        raise MinitlError(f"{what} needs {missing} bytes more than its shards hold: get them again, all from the same place")
    data, at, found = shards[0] if len(shards) == 1 else b"".join(shards), 0, []
    for name, shape, dtype, quantisation in entries:
        array = np.frombuffer(data, dtype, math.prod(shape), at).reshape(shape)
        at += array.nbytes
        if quantisation is not None:
            array = (array.astype(np.float64) * quantisation[0] + quantisation[1]).astype(np.float32)
        if array.dtype.kind == "f":
            found.append((name, array))
    return found


def _entry(weight: dict[str, Any], what: str) -> tuple[str, tuple[int, ...], np.dtype[Any], tuple[float, float] | None]:
    """(name, shape, type of the numbers as stored, (scale, min) if they are quantised) of an array."""
    name, shape, quantisation = weight.get("name"), weight.get("shape"), weight.get("quantization")
    if (
        not isinstance(name, str)
        or not isinstance(shape, list)
        or len(shape) > 8
        or not all(type(n) is int and 0 <= n < 1 << 31 for n in shape)
    ):
        raise MinitlError(f"{what} is damaged: its weightsManifest lists {name!r:.80} of shape {shape!r:.80}")
    of = weight if quantisation is None else quantisation if isinstance(quantisation, dict) else {}
    stored = str(of.get("dtype"))
    if stored not in (("float32", "int32") if quantisation is None else ("uint8", "uint16", "float16")):
        raise MinitlError(f"{what} holds {name!r:.80} as {stored:.40}, expected float32, or uint8, uint16 or float16 where quantised")
    scale: Any = None
    if stored in ("uint8", "uint16"):
        scale = (of.get("scale"), of.get("min"))
        if not all(type(n) in (int, float) and abs(n) < 1e38 for n in scale):
            raise MinitlError(f"{what} is damaged: {name!r:.80} has the scale and minimum {scale!r:.80}")
    return name, tuple(shape), np.dtype(TYPES[stored]), scale
