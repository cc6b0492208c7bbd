"""Keras' files -> Imported: whole models (model.save: .keras, .h5) and weights alone (save_weights, the files of keras.applications).

Enters: the bytes of an HDF5 file or of a .keras archive. Leaves: the network, its arrays, its preprocessing. A whole model carries its
configuration, which is compared with the network layer by layer (keras_config.py); weights alone are found by Keras' layer names, and what
such a file cannot say (the input's size) is taken from its name, and noted. Left out: optimizer state.

Layout of the file: keras/src/legacy/saving/legacy_h5_format.py.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..architectures import ARCHITECTURES, build, complete, parameters
from ..errors import MinitlError
from ..images import Recipe
from ..layers import Conv2D, Dense, GlobalAveragePool
from . import hdf5, keras_archive, keras_config, names
from .keras_config import kernel_and_bias, norm_of
from .names import OLD_NAMES, OVERRIDE, Imported, Seen

MOST_LAYERS = 1000
CAFFE_MEAN = (123.68, 116.779, 103.939)  # keras/src/applications/imagenet_utils.py, red first
NUMBERED = re.compile(r"(conv2d|batch_normalization)(?:_([0-9]{1,6}))?", re.ASCII)  # names that Keras makes up, counting on in a session


def convert(data: bytes, what: str) -> Imported:
    """The network in the bytes of a Keras .h5 file. `what` is the file's name. Raises MinitlError."""
    root = hdf5.read(data, what)
    if keras_archive.is_layout(root):
        return from_layers(keras_archive.layers(root), None, what, "keras-weights")
    layers = _layers(root.child("model_weights") or root)
    configuration = root.attribute("model_config")
    text = configuration[()] if configuration is not None and configuration.shape == () else None
    return from_layers(layers, text if isinstance(text, (str, bytes)) else None, what, "keras-h5")


def convert_archive(data: bytes, what: str) -> Imported:
    """The same in the bytes of a .keras archive."""
    configuration, weights = keras_archive.unpack(data, what)
    return from_layers(keras_archive.layers(hdf5.read(weights, what), configuration), configuration, what, "keras")


def from_layers(layers: dict[str, list[np.ndarray]], configuration: str | bytes | None, what: str, format: str) -> Imported:
    """The network of Keras' arrays by layer, each layer's in Keras' order, with its model_config if the file has one."""
    notes: list[str] = []
    known: dict[str, float] = {}
    if configuration is not None:
        seen, input_shape, known = keras_config.read(configuration, layers, what)
        pads = any(isinstance(s.padding, tuple) for s in seen)
    else:
        seen = _by_name(layers, what)
        input_shape, pads = (0, 0, 3), True
        notes.append("weights alone: strides, padding and BatchNorm's epsilon are those of keras.applications")
    # Keras pads V1's strided layers after the image, whatever its size; what V2's layers of zeros do equals 'same'
    architecture = names.recognise(seen, what)
    padded = ("keras", "same", "torch") if pads and architecture == "mobilenet_v1" else ("same", "torch")
    if 0 in input_shape:
        usual = complete(architecture, {})["input_shape"][0]
        input_shape = (*names.size_from_name(what, usual, notes), 3)
    architecture, arguments, arrays, mapping = names.fit(seen, what, input_shape, padded, **known)
    recipe = recipe_of(architecture, arguments, arrays, notes)
    return Imported(architecture, arguments, arrays, recipe, None, {"format": format, "notes": notes}, mapping)


def recipe_of(architecture: str, arguments: dict[str, Any], arrays: dict[str, np.ndarray], notes: list[str]) -> Recipe:
    """The preprocessing of keras.applications. Where that has blue first, the first kernel of `arrays` is turned to red first."""
    if architecture != "vgg16":
        return names.usual_recipe(architecture, arguments, notes)
    arrays["block1_conv1/kernel"] = np.ascontiguousarray(arrays["block1_conv1/kernel"][:, :, ::-1])
    notes.append(
        f"preprocessing assumed: pixels less ImageNet's mean, blue first, as Keras feeds VGG16; block1_conv1 was turned to red first; "
        f"centre crop 0.875{OVERRIDE}"
    )
    height, width, _ = arguments["input_shape"]
    return Recipe(height, width, CAFFE_MEAN, (1.0, 1.0, 1.0))


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
        parts: dict[str, list[np.ndarray]] = {}  # a model inside of the model holds several layers' arrays: LAYER/kernel:0, ...
        for weight in _texts(node, "weight_names"):
            dataset = node.child(weight)
            if dataset is None:
                raise group.file.error(f"lists the weight {weight!r} and does not hold it: it is damaged")
            array = dataset.array()
            if array.dtype.kind != "f":
                raise group.file.error(f"holds {dataset.path} as {array.dtype}, expected floats")
            parts.setdefault("".join(weight.split("/")[-2:-1]), []).append(array)
            total += array.nbytes
        if len(parts.keys() - {""}) < 2:
            parts = {layer: [array for arrays in parts.values() for array in arrays]} if parts else {}
        if double := found.keys() & parts.keys():
            raise group.file.error(f"holds two layers called {min(double)!r}")
        found |= parts
        if total > len(group.file.data):
            raise group.file.error("is damaged: its layers share their numbers")
    return found


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


def _renumbered(layers: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """conv2d_7, conv2d_8, ... become conv2d, conv2d_1, ..., as in a fresh session; the order is that of the numbers."""
    numbered = sorted((int(match[2] or 0), match[1], name) for name in layers if (match := NUMBERED.fullmatch(name)))
    counts = dict.fromkeys(("conv2d", "batch_normalization"), 0)
    new = {}
    for _, kind, name in numbered:
        new[name] = f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1
    return {new.get(name, name): arrays for name, arrays in layers.items()}


def _by_name(layers: dict[str, list[np.ndarray]], what: str) -> list[Seen]:
    """The layers with kernels of the network whose names the file uses. Connections, strides and activations stay unknown."""
    layers = {name if OLD_NAMES.get(name) in layers else OLD_NAMES.get(name, name): arrays for name, arrays in layers.items()}
    layers = _renumbered(layers)

    def listed_steps(architecture: str) -> list[names.Step]:
        top = {"top": True} if "fc1" in layers and "top" in parameters(architecture) else {}
        found = names.steps(build(architecture, **top))
        return [step for step in found if step.kernel_shape is not None or type(step.layer) is GlobalAveragePool]

    def shared(architecture: str) -> int:
        return sum((s.name in layers) + (s.norm in layers) for s in listed_steps(architecture))

    architecture = max(ARCHITECTURES, key=shared)
    expected = listed_steps(architecture)
    if shared(architecture) < len(layers) / 2 or not layers:
        listed = ", ".join(list(layers)[:3]) or "none"
        raise MinitlError(
            f"{what} is another network, or its layers were renamed: {shared(architecture)} of its {len(layers)} layers ({listed}, ...) "
            f"are called as in Keras' {' or '.join(ARCHITECTURES)}; a whole model (model.save) is recognised whatever its names"
        )
    seen: list[Seen] = []
    for step in expected:
        kind = type(step.layer)
        entry = Seen(f"layer {step.name!r}", kind)
        if kind is GlobalAveragePool:
            seen.append(entry)
            continue
        arrays = layers.pop(step.name, None)
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
