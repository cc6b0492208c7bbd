"""Keras 3's own files, taken apart: the .keras archive, and the HDF5 layout inside of it, which .weights.h5 has as well.

Enters: the bytes of a .keras file, or the root of an HDF5 file. Leaves: the model's configuration (JSON), and its arrays by layer. Left
out: what they mean (keras_config.py, keras_h5.py), optimizer state, assets.

An archive is a ZIP of metadata.json, config.json and model.weights.h5. In the HDF5 file, /layers/KIND_k/vars/0, 1, ... are the arrays of a
layer, k counts the layers of a kind, and the attribute `name` of vars is the layer's name. A model inside of the model has layers itself.
Source: keras/src/saving/saving_lib.py.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections import Counter
from typing import Any

import numpy as np

from ..errors import MinitlError
from ..zips import CompressedError, entries
from . import hdf5

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
LAYERS = ("layers", "_layer_checkpoint_dependencies")  # the latter in TensorFlow 2.12 and 2.13
MOST_LAYERS, MOST_ARRAYS, DEEPEST = 2000, 4, 4


def unpack(data: bytes, what: str) -> tuple[bytes, bytes]:
    """(configuration, HDF5 file) in the bytes of a .keras archive."""
    found: dict[str, bytes] = {}
    try:
        for name, content, crc in entries(memoryview(data)):
            if name in (CONFIG, WEIGHTS):
                if zlib.crc32(content) != crc:
                    raise ValueError(f"the entry {name} has another check sum")
                found[name] = bytes(content)
    except CompressedError as problem:
        raise MinitlError(f"{what} {problem}") from None
    except (ValueError, struct.error) as problem:
        raise MinitlError(f"{what} is damaged or no .keras file: {problem!s:.200}") from None
    for name in (CONFIG, WEIGHTS):
        if name not in found:
            raise MinitlError(f"{what} is no .keras file as Keras writes it: it has no {name}")
    return found[CONFIG], found[WEIGHTS]


def is_layout(root: hdf5.Node) -> bool:
    """Whether an HDF5 file is in Keras 3's layout."""
    return any(name in root.children() for name in LAYERS)


def layers(root: hdf5.Node, configuration: bytes | None = None) -> dict[str, list[np.ndarray]]:
    """Layer name -> its arrays in Keras' order, for the layers that have any. configuration: names the layers where the file does not."""
    found: dict[str, list[np.ndarray]] = {}
    _collect(root, found, _counted(configuration), 0)
    if sum(array.nbytes for arrays in found.values() for array in arrays) > len(root.file.data):
        raise root.file.error("is damaged: its layers share their numbers")
    return found


def _collect(model: hdf5.Node, found: dict[str, list[np.ndarray]], counted: dict[str, str], deep: int) -> None:
    """Add what the layers of a model, and of the models inside of it, hold."""
    file = model.file
    groups = next((group for name in LAYERS if name in model.children() and (group := model.child(name))), None)
    for key in groups.children() if groups else ():
        layer = groups.child(key) if groups else None
        if layer is None or len(found) > MOST_LAYERS or deep > DEEPEST:
            raise file.error("is damaged: its layers have no end")
        variables = layer.child("vars")
        numbers = sorted(variables.children(), key=lambda name: (len(name), name)) if variables else []
        if variables and numbers:
            if len(numbers) > MOST_ARRAYS or numbers != [str(i) for i in range(len(numbers))]:
                raise file.error(f"holds {', '.join(numbers)[:60]} as the arrays of {layer.path}, expected 0, 1, ...: {UNKNOWN}")
            name = variables.attribute("name")
            text = name[()] if name is not None and name.shape == () else counted.get(key) if not deep else None
            text = file.text(text) if isinstance(text, bytes) else text
            if not isinstance(text, str):
                raise file.error(f"does not say what the layer {layer.path} is called (Keras before 3?): save the model as .h5")
            if text in found:
                raise file.error(f"holds two layers called {text!r:.80}")
            found[text] = [_floats(variables, number) for number in numbers]
        _collect(layer, found, {}, deep + 1)


UNKNOWN = "networks here have no such layer"


def _floats(variables: hdf5.Node, number: str) -> np.ndarray:
    dataset = variables.child(number)
    if dataset is None or not dataset.is_dataset():
        raise variables.file.error(f"holds no array at {variables.path}/{number}")
    array = dataset.array()
    if array.dtype.kind != "f":
        raise variables.file.error(f"holds {dataset.path} as {array.dtype}, expected floats: save it from a model in float32")
    return array


def _counted(configuration: bytes | None) -> dict[str, str]:
    """{KIND_k: name} by counting the layers of each kind in a configuration; {} where it is none, which is said elsewhere."""
    try:
        config: Any = json.loads(configuration or b"{}")
        listed = [(layer["class_name"], layer.get("name") or layer["config"]["name"]) for layer in config["config"]["layers"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    counts: Counter[str] = Counter()
    found = {}
    for kind, name in listed:
        snake = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", str(kind))).lower()
        found[f"{snake}_{counts[snake]}" if counts[snake] else snake] = str(name)
        counts[snake] += 1
    return found
