"""Keras' .h5 files -> Imported: whole models (model.save) and weights alone (save_weights, the files of keras.applications).

Enters: the bytes of an HDF5 file. Leaves: the network, its arrays, its preprocessing. A whole model carries its configuration, which is
compared with the network layer by layer (keras_config.py); weights alone are found by Keras' layer names, and what such a file cannot say
(the input's size) is taken from its name, and noted. Left out: optimizer state, nested models, Sequential.

Layout of the file: keras/src/legacy/saving/legacy_h5_format.py.
"""

from __future__ import annotations

import re

import numpy as np

from ..architectures import ARCHITECTURES, build
from ..errors import MinitlError
from ..layers import Add, Conv2D, Dense
from . import hdf5, keras_config, names
from .keras_config import kernel_and_bias, norm_of
from .names import OLD_NAMES, Imported, Seen

SIZES = (96, 128, 160, 192, 224)  # the published inputs; part of the official file names
MOST_LAYERS = 1000


def convert(data: bytes, what: str) -> Imported:
    """The network in the bytes of a Keras .h5 file. `what` is the file's name. Raises MinitlError."""
    root = hdf5.read(data, what)
    if "layers" in root.children() or "_layer_checkpoint_dependencies" in root.children():
        raise MinitlError(
            f"{what} is in Keras 3's .weights.h5 layout, which is not read here: save the whole model as .h5, model.save('x.h5')"
        )
    layers = _layers(root.child("model_weights") or root)
    configuration = root.attribute("model_config")
    text = configuration[()] if configuration is not None and configuration.shape == () else None
    return from_layers(layers, text if isinstance(text, (str, bytes)) else None, what, "keras-h5")


def from_layers(layers: dict[str, list[np.ndarray]], configuration: str | bytes | None, what: str, format: str) -> Imported:
    """The network of Keras' arrays by layer, each layer's in Keras' order, with its model_config if the file has one."""
    notes: list[str] = []
    known: dict[str, float] = {}
    if configuration is not None:
        seen, input_shape, known = keras_config.read(configuration, layers, what)
        pads = any(isinstance(s.padding, tuple) for s in seen)
    else:
        seen = _by_name(layers, what)
        input_shape, pads = (*_size_from_name(what, notes), 3), True
        notes.append("weights alone: strides, padding and BatchNorm's epsilon are those of keras.applications")
    # Keras pads V1's strided layers after the image, whatever its size; what V2's layers of zeros do equals 'same'
    padded = ("keras", "same", "torch") if pads and names.recognise(seen, what) == "mobilenet_v1" else ("same", "torch")
    architecture, arguments, arrays, mapping = names.fit(seen, what, input_shape, padded, **known)
    recipe = names.usual_recipe(architecture, arguments, notes)
    return Imported(architecture, arguments, arrays, recipe, None, {"format": format, "notes": notes}, mapping)


def _layers(group: hdf5.Node) -> dict[str, list[np.ndarray]]:
    """Layer name -> its arrays in Keras' order, for the layers that have any."""
    found: dict[str, list[np.ndarray]] = {}
    total = 0
    for layer in _texts(group, "layer_names"):
        if layer in found:
            raise group.file.error(f"holds two layers called {layer!r}")
        node = group.child(layer)
        if node is None:
            raise group.file.error(f"lists the layer {layer!r} and does not hold it: it is damaged")
        found[layer] = []
        for weight in _texts(node, "weight_names"):
            dataset = node.child(weight)
            if dataset is None:
                raise group.file.error(f"lists the weight {weight!r} and does not hold it: it is damaged")
            array = dataset.array()
            if array.dtype.kind != "f":
                raise group.file.error(f"holds {dataset.path} as {array.dtype}, expected floats")
            found[layer].append(array)
            total += array.nbytes
        if total > len(group.file.data):
            raise group.file.error("is damaged: its layers share their numbers")
    return {layer: arrays for layer, arrays in found.items() if arrays}


def _texts(node: hdf5.Node, name: str) -> list[str]:
    """An attribute that lists names: fixed-size bytes, strings of any length, or (where nothing is listed) an empty array of floats.

    Above 64 kB Keras splits it into name0, name1, ...
    """
    whole = node.attribute(name)
    parts = [] if whole is None else [whole]
    while whole is None and (part := node.attribute(f"{name}{len(parts)}")) is not None:
        parts.append(part)
    if not parts:
        raise node.file.error(f"is not a file of Keras weights: {node.path or 'its root'} has no {name}")
    listed = [text for part in parts for text in part.reshape(-1).tolist()]
    if len(listed) > MOST_LAYERS or not all(isinstance(text, (str, bytes)) for text in listed):
        raise node.file.error(f"is damaged: {name} of {node.path or 'its root'} is no list of names")
    return [node.file.text(text) if isinstance(text, bytes) else text for text in listed]


def _by_name(layers: dict[str, list[np.ndarray]], what: str) -> list[Seen]:
    """The layers of the network whose names the file uses, without sums. Connections, strides and activations stay unknown."""
    layers = {name if OLD_NAMES.get(name) in layers else OLD_NAMES.get(name, name): arrays for name, arrays in layers.items()}

    def shared(architecture: str) -> int:
        return sum((s.name in layers) + (s.norm in layers) for s in names.steps(build(architecture)))

    architecture = max(ARCHITECTURES, key=shared)
    expected = names.steps(build(architecture))
    if shared(architecture) < len(layers) / 2 or not layers:
        listed = ", ".join(list(layers)[:3]) or "none"
        raise MinitlError(
            f"{what} is another network, or its layers were renamed: {shared(architecture)} of its {len(layers)} layers ({listed}, ...) "
            f"are called as in Keras' {' or '.join(ARCHITECTURES)}; a whole model (model.save) is recognised whatever its names"
        )
    seen: list[Seen] = []
    for step in expected:
        if type(step.layer) is Add:  # no weights; and how many there are depends on the width
            continue
        arrays = layers.pop(step.name, None)
        kind = type(step.layer)
        entry = Seen(f"layer {step.name!r}", kind)
        if step.kernel_shape is not None:
            if arrays is None and step is expected[-1]:
                break  # no classifier: the file ends with the features
            if arrays is None:
                raise MinitlError(f"{what} lacks the layer {step.name!r} of {architecture}: it is another network, or a part of one")
            if kind is Dense and arrays[0].ndim == 4:
                entry.kind = kind = Conv2D
            entry.kernel, entry.bias = kernel_and_bias(arrays, kind, entry.label, what)
        if step.norm is not None:
            arrays = layers.pop(step.norm, None)
            if arrays is None:
                raise MinitlError(f"{what} lacks the layer {step.norm!r} of {architecture}: it is another network, or a part of one")
            entry.norm = norm_of(arrays, f"layer {step.norm!r}", what)
        seen.append(entry)
    if layers:
        raise MinitlError(f"{what} holds the layer {next(iter(layers))!r}, which {architecture} does not have")
    return seen


def _size_from_name(what: str, notes: list[str]) -> tuple[int, int]:
    """Height and width from an official file name such as mobilenet_2_5_224_tf_no_top.h5."""
    for text in re.findall(r"_(\d+)(?=[_.])", what):
        if int(text[:9]) in SIZES:
            notes.append(f"input size {text} x {text} taken from the file's name")
            return int(text), int(text)
    notes.append("input size 224 x 224 assumed: neither the file nor its name says it")
    return 224, 224
