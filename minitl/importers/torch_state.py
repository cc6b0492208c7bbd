"""A state_dict -> Imported: the tensors of a PyTorch network by name, from a .pth or from safetensors.

Enters: tensors by name. Leaves: the network, its arrays in our layouts, its preprocessing. Networks are known by the order of their tensors
and by their shapes: torchvision, timm, Hugging Face, d-li14 and the scripts of others call them differently, but list them in the order of
computation. safetensors sorts them by name instead; ORDERS says which module comes first where that is not the order of the names.
What no tensor says (padding, epsilon, preprocessing) is decided by whose names they are, and noted. Left out: InceptionV3, whose average
pools are other ones in PyTorch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..architectures import build, complete
from ..errors import MinitlError
from ..images import Recipe
from ..layers import Conv2D, Dense, DepthwiseConv2D, Layer
from . import names
from .names import NORM, Imported, Seen

LONGEST_NAME, MOST_TENSORS = 300, 10_000
ORDERS = [
    ("mobilenet_v1", "mobilenet_v2", "classifier"),  # Hugging Face
    ("conv_stem", "layer", "conv_1x1"),
    ("first_conv", "expand_1x1", "conv_3x3", "reduce_1x1"),
    ("convolution", "normalization"),
    ("layer", "shortcut"),
    ("conv_stem", "bn1", "blocks", "conv_head", "bn2", "classifier"),  # timm
    ("conv_dw", "bn1", "conv_pw", "bn2"),
    ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"),
    ("features", "conv", "classifier"),  # torchvision, d-li14
    ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"),  # ResNet
    ("conv1", "bn1", "conv2", "bn2", "downsample"),
    ("conv", "bn"),
]
"""Modules of one parent in the order of computation. Others keep the order of the file; numbers come in their own."""
STATISTICS = dict(zip(("weight", "bias", "running_mean", "running_var"), NORM, strict=True))
NO_WEIGHTS = re.compile(r"(^|\.)(num_batches_tracked|n_averaged|total_ops|total_params|AuxLogits\..*)$")
"""Counters, and the aux classifier of InceptionV3, which only its training uses."""
METADATA = "minitl"


def convert(tensors: Mapping[str, np.ndarray], beside: list[str], notes: list[str], what: str, format: str) -> Imported:
    """The network of these tensors. beside: what else the file holds; `what` is its name. Raises MinitlError."""
    count = len(tensors) + len(beside)
    if count > MOST_TENSORS or any(len(name) > LONGEST_NAME for name in [*tensors, *beside]):
        raise MinitlError(f"{what} is another network: it has {count} tensors, or names longer than {LONGEST_NAME} characters")
    weights = {name: array for name, array in tensors.items() if not NO_WEIGHTS.search(name)}
    unused = [name for name in tensors if name not in weights] + beside
    seen = _layers(weights, what)
    architecture = names.recognise(seen, what)
    if architecture == "inception_v3":
        raise MinitlError(
            f"{what} has the convolutions of InceptionV3, which is not read from PyTorch: there its average pools count the zeros around "
            "the image, this network's do not, and its features would be wrong. Keras' InceptionV3 is read: save that one as .keras or .h5"
        )
    maker = next((maker for maker, marks in MARKS.items() if _has(marks, weights, architecture)), "torchvision")
    height, width = names.size_from_name(what, 224, notes)
    if pixels := _pixels(seen) if architecture == "vgg16" else None:
        if height // 32 != pixels:
            height = width = 32 * pixels
        notes[-1] = f"input size {height} x {width} taken from its first dense layer, which reads {pixels} x {pixels} pixels"
    known = {"epsilon": 1e-5, "momentum": 0.9}  # PyTorch's momentum is 1 minus ours
    if maker == "Hugging Face":  # its configurations give TensorFlow's number to PyTorch, where it means the opposite
        known = {"epsilon": 1e-3, "momentum": 0.9997 if architecture == "mobilenet_v1" else 0.997}
    padding = "same" if maker == "Hugging Face" else "torch"
    architecture, arguments, arrays, mapping = names.fit(seen, what, (height, width, 3), (padding,), **known)
    has_norms = any(name.endswith("running_mean") for name in weights)
    assumed = [f"padding as in {'TensorFlow' if padding == 'same' else 'PyTorch'}"]
    assumed += [f"BatchNorm's epsilon {known['epsilon']:g}"] if has_norms else []
    assumed += ["ReLU between the dense layers"] if arguments["hidden"] else []
    assumed += ["ReLU6"] if arguments.get("activation") == "relu6" else []
    notes.append(f"assumed, since no tensor says it, as in {maker}'s networks: {', '.join(assumed)}")
    if arguments["classes"] == 1001:
        notes.append("of its 1001 classes number 0 is 'background', and ImageNet's 1000 follow")
    recipe = _recipe(architecture, arguments, maker, what, notes)
    return Imported(architecture, arguments, arrays, recipe, None, {"format": format, "notes": notes}, mapping, unused)


MARKS = {
    "Hugging Face": (r"(^|\.)conv_stem\.(first_conv\.)?convolution\.weight$", r"(^|\.)layer\.\d+\.(\w+\.)?convolution\.weight$"),
    "timm": (r"(^|\.)conv_stem\.weight$", r"(^|\.)blocks\.\d+\.\d+\.conv_dw\.weight$"),
}
"""Names that only one maker's MobileNets have, all of them: one alone, such as a module `convolution`, may be anybody's."""


def _has(marks: tuple[str, ...], weights: Mapping[str, np.ndarray], architecture: str) -> bool:
    return architecture.startswith("mobilenet") and all(any(re.search(mark, name) for name in weights) for mark in marks)


def _recipe(architecture: str, arguments: dict[str, Any], maker: str, what: str, notes: list[str]) -> Recipe:
    """The preprocessing that the maker documents."""
    height, width, _ = arguments["input_shape"]
    plain = Recipe(height, width)
    if maker == "timm" and architecture == "mobilenet_v1":
        plain = replace(plain, interpolation="bicubic", crop_fraction=0.95 if height == 256 else 0.875)
        notes.append(f"preprocessing assumed: timm's for mobilenetv1_100, pixels / 127.5 - 1, bicubic{names.OVERRIDE}")
    elif maker == "Hugging Face":
        notes.append(
            f"preprocessing assumed: Hugging Face's for Google's MobileNets, pixels / 127.5 - 1, centre crop 0.875{names.OVERRIDE}"
        )
    else:
        plain = names.torch_recipe(arguments, notes)
        if maker == "timm":
            plain = replace(plain, interpolation="bicubic")
            notes.append("bicubic, as timm resizes")
        elif "7ebf99e0" in what:  # torchvision's second weights of MobileNetV2
            plain = replace(plain, crop_fraction=224 / 232)
            notes.append("centre crop 224 of 232 instead, as torchvision documents it for this file")
    return plain


# ---- tensors to layers


def _layers(tensors: Mapping[str, np.ndarray], what: str) -> list[Seen]:
    """Convolutions and dense layers with their BatchNorms, in the order of computation."""
    modules: dict[str, dict[str, tuple[str, np.ndarray]]] = {}
    for name, array in tensors.items():
        if array.dtype.kind != "f":
            raise MinitlError(
                f"{what}: tensor {name!r:.80} is {array.dtype}, expected floats: quantised networks are read from .tflite files"
            )
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = (name, array)
    seen: list[Seen] = []
    in_order = _in_order(list(modules))
    for module in sorted(in_order, key=lambda module: "weight" in modules[module] and modules[module]["weight"][1].ndim == 2):  # dense last
        found = modules[module]
        shapes = {part: array.shape for part, (_, array) in found.items()}
        weight, label = shapes.get("weight", ()), f"module {module!r:.80}"
        if len(weight) in (2, 4) and found.keys() <= {"weight", "bias"}:
            entry = _weighted(label, found, what)
            if entry.kind is Dense and seen and seen[-1].kind is not Dense:
                entry.kernel = _channels_last(entry.kernel, seen[-1].channels)
            seen.append(entry)
        elif "running_mean" in found and found.keys() <= STATISTICS.keys():
            if not seen or seen[-1].norm or set(shapes.values()) != {(seen[-1].channels,)}:
                after = f"{seen[-1].label} of {seen[-1].channels} channels" if seen else "nothing"
                raise MinitlError(
                    f"{what}: {label} is a BatchNorm of shape {shapes['running_mean']} and follows {after}, no such convolution; "
                    "if its names have lost the order of the network, save the state_dict as .pth, which keeps it"
                )
            if not {"running_mean", "running_var", "bias"} <= found.keys():
                raise MinitlError(f"{what}: {label} is a BatchNorm with {', '.join(found)} only, expected {', '.join(STATISTICS)}")
            seen[-1].norm = {STATISTICS[part]: array for part, (_, array) in found.items()}
            seen[-1].names.update({STATISTICS[part]: name for part, (name, _) in found.items()})
        else:
            part, shape = next(iter(shapes.items()))
            raise MinitlError(
                f"{what} is another network: its tensor {module + '.' if module else ''}{part} of shape {shape} has no place here"
            )
    if not any(s.kind is not Dense for s in seen):
        raise MinitlError(f"{what} is another network: it has no convolutions")
    return seen


def _weighted(label: str, found: dict[str, tuple[str, np.ndarray]], what: str) -> Seen:
    """OIHW -> HWIO; depthwise (C, 1, kh, kw) -> (kh, kw, C); dense (out, in) -> (in, out)."""
    kernel = found["weight"][1]
    kind: type[Layer] = Conv2D
    if kernel.ndim == 2:
        kind, kernel = Dense, kernel.T
    elif kernel.shape[1] == 1 and kernel.shape[0] > 1:
        kind, kernel = DepthwiseConv2D, kernel[:, 0].transpose(1, 2, 0)
    else:
        kernel = kernel.transpose(2, 3, 1, 0)
    bias = found["bias"][1] if "bias" in found else None
    if 0 in kernel.shape or (bias is not None and bias.shape != kernel.shape[-1:]):
        raise MinitlError(
            f"{what}: {label} has a weight of shape {found['weight'][1].shape} and a bias of {bias if bias is None else bias.shape}"
        )
    return Seen(label, kind, kernel=kernel, bias=bias, names={part: found[ours][0] for part, ours in KERNEL.items() if ours in found})


KERNEL = {"kernel": "weight", "bias": "bias"}


def _channels_last(kernel: np.ndarray | None, channels: int) -> np.ndarray | None:
    """The kernel (in, out) of a dense layer after an image that was flattened channels first, for one flattened channels last."""
    if kernel is None or len(kernel) == channels or len(kernel) % channels:
        return kernel
    return kernel.reshape(channels, -1, kernel.shape[1]).swapaxes(0, 1).reshape(kernel.shape)


def _pixels(seen: list[Seen]) -> int | None:
    """Height and width of the square image that the first dense layer reads flattened; None where it reads an average, or there is none."""
    dense = next((i for i, s in enumerate(seen) if s.kind is Dense), 0)
    if not dense or (kernel := seen[dense].kernel) is None:
        return None
    side = math.isqrt(len(kernel) // seen[dense - 1].channels)
    return side if side > 1 and side * side * seen[dense - 1].channels == len(kernel) else None


def _in_order(modules: list[str]) -> list[str]:
    """Modules in the order of computation, see ORDERS."""
    children: dict[str, dict[str, int]] = {}  # parent -> {its module: number in the file}
    for module in modules:
        path = module.split(".")
        for i, word in enumerate(path):
            below = children.setdefault(".".join(path[:i]), {})
            below.setdefault(word, len(below))

    def ranks(words: dict[str, int]) -> dict[str, int]:
        if all(word.isdecimal() and len(word) < 9 for word in words):
            return {word: int(word) for word in words}
        known = next((order for order in ORDERS if words.keys() <= set(order)), None)
        if known is None and list(words) == sorted(words):  # block1, block10, block2: sorted by safetensors
            known = tuple(sorted(words, key=lambda word: re.sub("[0-9]+", lambda number: number[0].zfill(20), word)))
        return {word: known.index(word) for word in words} if known else words

    ranked = {parent: ranks(words) for parent, words in children.items()}

    def place(module: str) -> list[int]:
        path = module.split(".")
        return [ranked[".".join(path[:i])][word] for i, word in enumerate(path)]

    return sorted(modules, key=place)


# ---- safetensors of our own


def metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    """What goes beside the arrays of a model into a file of safetensors: Weights.meta()."""
    return {METADATA: json.dumps(facts, sort_keys=True)}


def own(arrays: dict[str, np.ndarray], text: str, what: str) -> Imported:
    """A model that minitl has written, from its arrays and its metadata."""
    try:
        facts = json.loads(text)
        architecture, arguments = facts["architecture"], dict(facts["arguments"])
        provenance = {key: text for key, text in facts["provenance"].items() if isinstance(text, str)}
        notes = [text for text in facts["provenance"].get("notes", []) if isinstance(text, str)]
        recipe, classes = Recipe.from_dict(facts["recipe"]), facts["classes"]
        if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
            raise MinitlError("its classes are no list of names")
        if any(array.dtype != np.float32 for array in arrays.values()):
            raise MinitlError("its arrays are no float32")
        loaded = build(architecture, **arguments).load(arrays).arrays()
        arguments = complete(architecture, arguments)
        if (recipe.height, recipe.width) != tuple(arguments["input_shape"][:2]) or (classes and len(classes) != arguments["classes"]):
            raise MinitlError("its recipe or its classes are of another network: the file was changed")
    except MinitlError as problem:
        raise MinitlError(f"{what}: {problem}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise MinitlError(f"{what} is damaged: its metadata is not what minitl writes") from None
    if bad := next((name for name, array in loaded.items() if not np.isfinite(array).all()), None):
        raise MinitlError(f"{what} is damaged: {bad} holds numbers that are NaN or infinite")
    mapping = [(name, name) for name in loaded]
    origin = {**provenance, "format": "safetensors", "notes": notes}
    return Imported(architecture, arguments, loaded, recipe, classes, origin, mapping)
