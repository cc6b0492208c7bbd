"""PyTorch's files and safetensors -> our networks: every number arrives, whatever its maker calls it; nothing in a file is ever called."""

import argparse
import collections
import io
import json
import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch_networks
from importer_files import mutate, network
from peers import pytorch
from test_importers_read import fuzz

import minitl
from minitl import cli, importers
from minitl.architectures import build
from minitl.architectures.mobilenet_v1 import BLOCKS as V1
from minitl.architectures.mobilenet_v2 import BLOCKS as V2
from minitl.architectures.mobilenet_v2 import divisible_by_8
from minitl.errors import MinitlError
from minitl.importers import safetensors, torch_files
from minitl.importers.names import TORCH_MEAN, steps

ALPHA, SIZE, CLASSES = 0.1, 96, 4


def refusal(path, data=None):
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(MinitlError) as error:
        importers.read(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 600
    return str(error.value)


# ---- networks with the names of their makers


class Plan:
    """Convolutions with BatchNorms under any names, in a tree of modules, and what is computed with them."""

    def __init__(self, torch, epsilon=1e-5, tensorflow=False):
        self.torch, self.epsilon, self.tensorflow, self.root = torch, epsilon, tensorflow, torch.nn.Module()

    def module(self, name, module):
        *path, last = name.split(".")
        parent = self.root
        for word in path:
            if word not in dict(parent.named_children()):
                parent.add_module(word, self.torch.nn.Module())
            parent = getattr(parent, word)
        parent.add_module(last, module)
        return module

    def unit(self, names, before, after, window=1, stride=1, groups=1, activation=None, norm=True):
        nn = self.torch.nn
        side = 0 if self.tensorflow else window // 2
        conv = self.module(names[0], nn.Conv2d(before, after, window, stride, side, groups=groups, bias=not norm))
        bn = self.module(names[1], nn.BatchNorm2d(after, self.epsilon)) if norm else nn.Identity()

        def compute(x):
            if self.tensorflow and window > 1:
                total = [max((-(-n // stride) - 1) * stride + window - n, 0) for n in x.shape[2:]]
                x = nn.functional.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
            y = bn(conv(x))
            return activation(y) if activation else y

        return compute


def v2_names(maker):
    """(stem, blocks, end, classifier): pairs of (convolution, BatchNorm); of a block: expansion, depthwise, projection."""
    blocks = []
    stages = [(s, k) for s, (_, _, repeats, _) in enumerate(V2) for k in range(repeats)]
    for i, (s, k) in enumerate(stages):
        if maker == "torchvision":
            p = f"features.{i + 1}.conv."
            units = [(f"{p}{j}.0", f"{p}{j}.1") for j in range(2 if i else 1)]
            units.append((f"{p}{len(units)}", f"{p}{len(units) + 1}"))
        elif maker == "d-li14":
            p = f"features.{i + 1}.conv."
            units = [(f"{p}{3 * j}", f"{p}{3 * j + 1}") for j in range(3 if i else 2)]
        elif maker == "timm":
            words = ("conv_pw", "conv_dw", "conv_pwl") if i else ("conv_dw", "conv_pw")
            units = [(f"blocks.{s}.{k}.{word}", f"blocks.{s}.{k}.bn{j}") for j, word in enumerate(words, 1)]
        else:
            p = f"mobilenet_v2.layer.{i - 1}." if i else "mobilenet_v2.conv_stem."
            words = ("expand_1x1", "conv_3x3", "reduce_1x1")[not i :]
            units = [(f"{p}{word}.convolution", f"{p}{word}.normalization") for word in words]
        blocks.append(units)
    ends = {
        "torchvision": (("features.0.0", "features.0.1"), ("features.18.0", "features.18.1"), "classifier.1"),
        "d-li14": (("features.0.0", "features.0.1"), ("conv.0", "conv.1"), "classifier"),
        "timm": (("conv_stem", "bn1"), ("conv_head", "bn2"), "classifier"),
        "Hugging Face": (
            tuple(f"mobilenet_v2.conv_stem.first_conv.{word}" for word in ("convolution", "normalization")),
            tuple(f"mobilenet_v2.conv_1x1.{word}" for word in ("convolution", "normalization")),
            "classifier",
        ),
    }
    stem, end, classifier = ends[maker]
    return stem, blocks, end, classifier


def v2(torch, maker):
    plan = Plan(torch, *((1e-3, True) if maker == "Hugging Face" else ()))
    relu6 = torch.nn.functional.relu6
    stem, blocks, end, classifier = v2_names(maker)
    channels = divisible_by_8(32 * ALPHA)
    layers, rows = [plan.unit(stem, 3, channels, 3, 2, activation=relu6)], []
    strides = [(t, c, s if k == 0 else 1) for t, c, n, s in V2 for k in range(n)]
    for (expansion, filters, stride), units in zip(strides, blocks, strict=True):
        after, inner, *more = divisible_by_8(filters * ALPHA), channels * expansion, *units
        row = [plan.unit(more.pop(0), channels, inner, activation=relu6)] if expansion > 1 else []
        row.append(plan.unit(more.pop(0), inner, inner, 3, stride, inner, relu6))
        row.append(plan.unit(more.pop(0), inner, after))
        rows.append((row, stride == 1 and channels == after))
        channels = after
    layers.append(plan.unit(end, channels, 1280, activation=relu6))
    dense = plan.module(classifier, torch.nn.Linear(1280, CLASSES))

    def compute(x):
        x = layers[0](x)
        for row, residual in rows:
            y = x
            for unit in row:
                y = unit(y)
            x = x + y if residual else y
        return dense(layers[1](x).mean((2, 3)))

    return plan.root, compute


def v1(torch, maker):
    plan = Plan(torch, *((1e-3, True) if maker == "Hugging Face" else ()))
    relu6, channels = torch.nn.functional.relu6, int(32 * ALPHA)
    hf = "mobilenet_v1.layer.{}.{}"
    stages = [(s, k) for s, n in enumerate((1, 2, 2, 6, 2)) for k in range(n)]
    stem = {
        "timm": ("conv_stem", "bn1"),
        "Hugging Face": ("mobilenet_v1.conv_stem.convolution", "mobilenet_v1.conv_stem.normalization"),
        "someone": ("blocks.0.convolution", "blocks.0.normalization"),
    }[maker]
    units = [plan.unit(stem, 3, channels, 3, 2, activation=relu6)]
    for i, ((filters, stride), (s, k)) in enumerate(zip(V1, stages, strict=True)):
        pairs = [(f"blocks.{s}.{k}.conv_dw", f"blocks.{s}.{k}.bn1"), (f"blocks.{s}.{k}.conv_pw", f"blocks.{s}.{k}.bn2")]
        if maker == "Hugging Face":
            pairs = [(hf.format(2 * i + j, "convolution"), hf.format(2 * i + j, "normalization")) for j in (0, 1)]
        elif maker == "someone":  # modules of the same names as Hugging Face's
            pairs = [(f"blocks.{i + 1}.{j}.convolution", f"blocks.{i + 1}.{j}.normalization") for j in ("first", "second")]
        after = int(filters * ALPHA)
        units.append(plan.unit(pairs[0], channels, channels, 3, stride, channels, relu6))
        units.append(plan.unit(pairs[1], channels, after, activation=relu6))
        channels = after
    dense = plan.module("classifier", torch.nn.Linear(channels, CLASSES))

    def compute(x):
        for unit in units:
            x = unit(x)
        return dense(x.mean((2, 3)))

    return plan.root, compute


def resnet18(torch, maker="torchvision"):
    plan, relu, channels = Plan(torch), torch.nn.functional.relu, 6
    hf = maker == "Hugging Face"

    def pair(module):
        return f"{module}.convolution", f"{module}.normalization"

    stem = plan.unit(pair("resnet.embedder.embedder") if hf else ("conv1", "bn1"), 3, channels, 7, 2, activation=relu)
    rows = []
    for stage, filters in enumerate((6, 12, 25, 51), 1):
        for i in (0, 1):
            p, stride = f"layer{stage}.{i}.", 2 if stage > 1 and i == 0 else 1
            units = [(f"{p}conv1", f"{p}bn1"), (f"{p}conv2", f"{p}bn2"), (f"{p}downsample.0", f"{p}downsample.1")]
            if hf:
                p = f"resnet.encoder.stages.{stage - 1}.layers.{i}."
                units = [pair(f"{p}layer.0"), pair(f"{p}layer.1"), pair(f"{p}shortcut")]

            def shortcut(names=units[2], before=channels, after=filters, stride=stride):
                return plan.unit(names, before, after, 1, stride) if stride > 1 else lambda x: x

            first = shortcut() if hf else None  # listed before the layers
            row = [plan.unit(units[0], channels, filters, 3, stride, activation=relu), plan.unit(units[1], filters, filters, 3)]
            rows.append((row, first or shortcut()))
            channels = filters
    dense = plan.module("classifier.1" if hf else "fc", torch.nn.Linear(channels, CLASSES))

    def compute(x):
        x = torch.nn.functional.max_pool2d(stem(x), 3, 2, 1)
        for row, shortcut in rows:
            x = relu(row[1](row[0](x)) + shortcut(x))
        return dense(x.mean((2, 3)))

    return plan.root, compute


def vgg16(torch):
    plan, relu, channels, at, rows = Plan(torch), torch.nn.functional.relu, 3, 0, []
    for filters, count in [(6, 2), (12, 2), (25, 3), (51, 3), (51, 3)]:
        for _ in range(count):
            rows.append(plan.unit((f"features.{at}",), channels, filters, 3, activation=relu, norm=False))
            channels, at = filters, at + 2
        rows.append(lambda x: torch.nn.functional.max_pool2d(x, 2))
        at += 1
    sizes = [(51 * 9, 409), (409, 409), (409, CLASSES)]
    dense = [plan.module(f"classifier.{3 * i}", torch.nn.Linear(*size)) for i, size in enumerate(sizes)]

    def compute(x):
        for row in rows:
            x = row(x)
        return dense[2](relu(dense[1](relu(dense[0](x.flatten(1))))))

    return plan.root, compute


MAKERS = {
    "mobilenet_v1 torchvision": lambda torch: torch_networks.mobilenet_v1(torch, ALPHA, CLASSES),
    "mobilenet_v2 torchvision": lambda torch: torch_networks.mobilenet_v2(torch, ALPHA, CLASSES),
    **{f"mobilenet_v1 {maker}": lambda torch, maker=maker: v1(torch, maker) for maker in ("timm", "Hugging Face", "someone")},
    **{f"mobilenet_v2 {maker}": lambda torch, maker=maker: v2(torch, maker) for maker in ("d-li14", "timm", "Hugging Face")},
    **{f"resnet18 {maker}": lambda torch, maker=maker: resnet18(torch, maker) for maker in ("torchvision", "Hugging Face")},
    "vgg16 torchvision": vgg16,
}


def made(torch, name):
    """(module, what computes with it)."""
    found = MAKERS[name](torch)
    module, compute = found if isinstance(found, tuple) else (found, found)
    return alive(torch, module, compute, SIZE), compute


def alive(torch, module, compute, size):
    """The module with weights and BatchNorms as after training: what comes out depends on what goes in."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.kaiming_normal_(part.weight)
        if isinstance(part, torch.nn.BatchNorm2d):
            part.weight.data.uniform_(0.7, 1.3)
            part.bias.data.uniform_(-0.3, 0.5)
            part.reset_running_stats()
            part.momentum = None  # the plain mean of all batches, here of one
    module.train()
    with torch.no_grad():
        compute(torch.randn(8, 3, size, size))
    return module.eval()


def in_our_layout(array):
    """(out, in, h, w) -> (h, w, in, out), depthwise (h, w, c); (out, in) -> (in, out)."""
    if array.ndim == 4:
        return array[:, 0].transpose(1, 2, 0) if array.shape[1] == 1 else array.transpose(2, 3, 1, 0)
    return array.T


def equal(imported, state):
    """Every tensor of the state_dict has arrived bit for bit, or is named as not used."""
    sources = dict(imported.mapping)
    assert sorted([*sources, *imported.unused]) == sorted(state) and sorted(sources.values()) == sorted(imported.arrays)
    for source, ours in imported.mapping:
        theirs, mine = in_our_layout(state[source].float().numpy()), imported.arrays[ours]
        if theirs.ndim == 2 and "fc1" in ours:  # flattened channels first
            theirs = theirs.reshape(51, 3, 3, -1).transpose(1, 2, 0, 3).reshape(theirs.shape)
        assert mine.dtype == np.float32 and np.array_equal(mine, theirs), (source, ours)
    assert all(name.endswith("num_batches_tracked") for name in imported.unused)


@pytest.mark.parametrize("name", MAKERS)
def test_networks_under_the_names_of_their_makers_compute_what_pytorch_computes(tmp_path, name):
    torch = pytorch()
    module, compute = made(torch, name)
    path = tmp_path / f"{name.split()[0]}_{SIZE}.pth"
    torch.save(module.state_dict(), path)
    imported = importers.read(path)
    equal(imported, module.state_dict())
    assert imported.architecture == name.split()[0] and imported.arguments["input_shape"] == [SIZE, SIZE, 3]
    x = np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        expected = compute(torch.tensor(x.transpose(0, 3, 1, 2).copy())).numpy()
    model, limit = minitl.load(path), 1e-4
    largest, spread = np.abs(model.forward(x) - expected).max(), np.ptp(expected, axis=0).max()
    print(f"{name}: largest difference {largest:.1e} of {np.abs(expected).max():.2f}; {spread:.2f} between two pictures")
    assert largest < limit and spread > 10 * limit
    for other in (x[..., ::-1].copy(), x.swapaxes(1, 2).copy(), 1.1 * x):
        assert np.abs(model.forward(other) - expected).max() > 10 * limit, "a comparison that does not see other pictures"
    for key, values in {"epsilon": (1e-3, 1e-5), "padding": ("same", "torch")}.items():
        if key in imported.arguments:
            other = {**imported.arguments, key: next(value for value in values if value != imported.arguments[key])}
            graph = build(imported.architecture, **other).load(imported.arrays)
            assert np.abs(graph.evaluate(x)[graph.output] - expected).max() > 10 * limit, f"a comparison that does not see another {key}"
    hugging_face = "Hugging" in name and "mobilenet" in name
    assert imported.recipe.mean == ((127.5,) * 3 if hugging_face or name == "mobilenet_v1 timm" else TORCH_MEAN)
    if "mobilenet" in name:
        assert imported.arguments["padding"] == ("same" if hugging_face else "torch")
    if "vgg" not in name:
        assert imported.arguments["epsilon"] == (1e-3 if hugging_face else 1e-5)
    assert any("padding as in" in note for note in imported.provenance["notes"])


@pytest.mark.parametrize("name", MAKERS)
def test_safetensors_sorts_by_name_and_the_order_is_found_again(tmp_path, name):
    torch = pytorch()
    save_file = pytest.importorskip("safetensors.torch").save_file
    state = made(torch, name)[0].state_dict()
    path = tmp_path / "x_96.safetensors"
    save_file(state, path)
    equal(importers.read(path), state)
    names = list(json.loads(path.read_bytes()[8:].split(b"}}")[0] + b"}}"))
    assert names != list(state), "the package sorts them"


def test_the_first_dense_layer_of_vgg16_says_the_size_of_the_image(tmp_path):
    torch = pytorch()
    for pixels, name, size in [(2, "vgg16.pth", 64), (3, "vgg16_epoch_160.pth", 96), (7, "vgg16.pth", 224), (4, "vgg16_128.pth", 128)]:
        module = torch_networks.vgg16(torch, size=32 * pixels)
        torch.save(module.state_dict(), tmp_path / name)
        imported = importers.read(tmp_path / name)
        assert imported.arguments["input_shape"] == [size, size, 3] and imported.recipe.height == size
        assert imported.provenance["notes"][0].startswith(f"input size {size} x {size} taken from its first dense layer")
    torch.save(alive(torch, module, module, size).state_dict(), tmp_path / name)
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.tensor(x.transpose(0, 3, 1, 2).copy())).numpy()
    assert np.abs(minitl.load(tmp_path / name).forward(x) - expected).max() < 1e-4 and np.ptp(expected, axis=0).max() > 1e-3
    state = module.state_dict() | {"classifier.0.weight": torch.zeros(204, 25 * 15)}  # 3 x 5
    torch.save(state, tmp_path / name)
    assert "fc1 needs" in refusal(tmp_path / name)


def test_numbers_within_names_that_are_sorted_are_counted_and_hidden_layers_are_found(tmp_path, state):
    torch = pytorch()
    numbered = {name.replace("model.", "net.block") if name.startswith("model") else name: array for name, array in state.items()}
    wide = len(state["fc.bias"])
    numbered |= {"fc2.weight": torch.ones(2, wide), "fc2.bias": torch.zeros(2)}
    (tmp_path / "x.safetensors").write_bytes(safetensors.write({name: array.numpy() for name, array in numbered.items()}, {}))
    order = list(safetensors.read((tmp_path / "x.safetensors").read_bytes(), "x")[0])
    assert order.index("net.block10.0.weight") < order.index("net.block2.0.weight")
    imported = importers.read(tmp_path / "x.safetensors")
    equal(imported, numbered)
    assert imported.arguments["hidden"] == [wide] and imported.arguments["classes"] == 2
    assert any("ReLU between the dense layers" in note for note in imported.provenance["notes"])


def test_inception_is_refused_since_its_pools_count_zeros_in_pytorch():
    graph, _ = network("inception_v3", alpha=ALPHA, input_shape=[128, 128, 3])
    pool = [f"branch3x3dbl_{i}" for i in (1, 2, 3)]
    mixed = {
        **{f"Mixed_5{x}": ["branch1x1", "branch5x5_1", "branch5x5_2", *pool, "branch_pool"] for x in "bcd"},
        "Mixed_6a": ["branch3x3", *pool],
        **{
            f"Mixed_6{x}": ["branch1x1", *(f"branch7x7_{i}" for i in (1, 2, 3)), *(f"branch7x7dbl_{i}" for i in range(1, 6)), "branch_pool"]
            for x in "bcde"
        },
        "Mixed_7a": ["branch3x3_1", "branch3x3_2", *(f"branch7x7x3_{i}" for i in range(1, 5))],
        **{
            f"Mixed_7{x}": [
                "branch1x1", "branch3x3_1", "branch3x3_2a", "branch3x3_2b", *pool[:2], "branch3x3dbl_3a", "branch3x3dbl_3b", "branch_pool",
            ]
            for x in "bc"
        },
    }  # fmt: skip
    modules = [f"Conv2d_{x}" for x in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")] + [
        f"{m}.{b}" for m, bs in mixed.items() for b in bs
    ]
    tensors = {}
    units = [step for step in steps(graph) if step.kernel_shape]
    for module, step in zip(modules, units[:-1], strict=True):
        tensors[f"{module}.conv.weight"] = graph.params[step.name]["kernel"].transpose(3, 2, 0, 1)
        for part in importers.torch_state.STATISTICS:
            tensors[f"{module}.bn.{part}"] = graph.params[step.norm]["beta"]
    tensors["fc.weight"], tensors["fc.bias"] = graph.params["predictions"]["kernel"].T, graph.params["predictions"]["bias"]
    tensors["AuxLogits.conv0.conv.weight"] = np.zeros((2, 2, 1, 1), np.float32)
    for order in (list, sorted):
        with pytest.raises(MinitlError, match=r"convolutions of InceptionV3, .* not read from PyTorch: there its average pools.* Keras'"):
            importers.torch_state.convert({name: tensors[name] for name in order(tensors)}, [], [], "x_128.pth", "torch")


def test_preprocessing_classes_and_size_come_from_the_maker_and_are_noted():
    graph, _ = network("mobilenet_v2", alpha=ALPHA, classes=1001)

    def read(name, maker):
        stem, blocks, end, classifier = v2_names(maker)
        pairs = [stem, *(pair for units in blocks for pair in units), end]
        tensors = {}
        for (conv, norm), step in zip(pairs, [s for s in steps(graph) if s.norm], strict=True):
            kernel = graph.params[step.name]["kernel"]
            tensors[f"{conv}.weight"] = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.transpose(2, 0, 1)[:, None]
            for part, ours in importers.torch_state.STATISTICS.items():
                tensors[f"{norm}.{part}"] = graph.params[step.norm][ours]
        tensors[f"{classifier}.weight"] = graph.params["predictions"]["kernel"].T
        tensors[f"{classifier}.bias"] = graph.params["predictions"]["bias"]
        return importers.torch_state.convert(tensors, [], [], name, "torch")

    found = read("mobilenet_v2-7ebf99e0.pth", "torchvision")
    assert found.recipe.crop_fraction == 224 / 232 and found.recipe.mean[0] == 123.675 and found.recipe.interpolation == "bilinear"
    assert any("'background'" in note for note in found.provenance["notes"])
    assert read("mobilenetv2_96x96-ff0e83d8.pth", "d-li14").recipe.height == 96
    found = read("mobilenetv2_100.ra_in1k_r160.safetensors", "timm")
    assert found.recipe.interpolation == "bicubic" and found.recipe.height == 160
    found = read("pytorch_model.bin", "Hugging Face")
    assert found.recipe.mean == (127.5,) * 3 and found.recipe.height == 224 and found.arguments["momentum"] == 0.997
    assert any("224 x 224 assumed" in note for note in found.provenance["notes"])


# ---- containers, wrappers, types


@pytest.fixture(scope="module")
def state():
    """A state_dict of MobileNetV1."""
    return torch_networks.mobilenet_v1(pytorch(), ALPHA, CLASSES).state_dict()


ZIP = pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])


@ZIP
@pytest.mark.parametrize(
    ("wrap", "unused"),
    [
        (lambda s: s, []),
        (lambda s: dict(s), []),
        (lambda s: {"state_dict": s, "epoch": 7, "best": 0.5, "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.1}]}}, 3),
        (lambda s: {"epoch": 1, "model": {f"module.{name}": value for name, value in s.items()}}, 1),
        (lambda s: {"model": {name: value * 2 for name, value in s.items()}, "model_ema": {f"module.{n}": v for n, v in s.items()}}, 1),
        (lambda s: {f"_orig_mod.module.backbone.{name}": value for name, value in s.items()}, []),
        (lambda s: {"whatever": s}, []),
    ],
    ids=["plain", "dict", "training", "module", "ema", "prefixes", "other"],
)
def test_both_containers_and_every_wrapper_are_read_bit_for_bit(tmp_path, state, new, wrap, unused):
    torch = pytorch()
    torch.save(wrap(state), tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    tensors, beside, notes = torch_files.read((tmp_path / "x.pth").read_bytes(), "x.pth")
    for (name, array), (theirs, tensor) in zip(tensors.items(), state.items(), strict=True):
        assert name.endswith(theirs) and np.array_equal(array, tensor.numpy()) and array.dtype == tensor.numpy().dtype
    assert len(beside) == (unused or 0)
    imported = importers.read(tmp_path / "x.pth")
    assert len(imported.arrays) == 137 and imported.unused[len(imported.unused) - len(beside) :] == beside
    assert not notes or "weights taken from its" in notes[0]
    if "model_ema" in wrap(state):
        assert notes == ["weights taken from its 'model_ema', not from 'model'"]


@ZIP
def test_views_parameters_and_other_types_are_read(tmp_path, new):
    torch = pytorch()
    row = torch.arange(60, dtype=torch.float32)
    tensors = {
        "window": row[5:29].view(2, 3, 4),
        "turned": row.view(6, 10).t(),
        "steps": row[::7],
        "last": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "one": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "half": torch.randn(5).half(),
        "double": torch.randn(5).double(),
        "brain": torch.randn(3, 4).bfloat16(),
        "truth": torch.tensor([True, False]),
        **{f"int{n}": torch.arange(3, dtype=t) for n, t in enumerate((torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64))},
    }
    torch.save(tensors, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    found, beside, _ = torch_files.read((tmp_path / "x.pth").read_bytes(), "x.pth")
    assert list(found) == list(tensors) and not beside
    for name, tensor in tensors.items():
        expected = tensor.detach().float().numpy() if name == "brain" else tensor.detach().numpy()
        assert found[name].dtype == expected.dtype, name
        assert np.array_equal(found[name], expected) or (name == "empty" and found[name].size == 0), name
    with pytest.raises((ValueError, RuntimeError)):
        found["window"][0] = 0


@ZIP
@pytest.mark.parametrize("dtype", ["half", "bfloat16", "double"])
def test_networks_in_other_floats_become_float32(tmp_path, state, new, dtype):
    torch = pytorch()
    other = {name: getattr(array, dtype)() if array.is_floating_point() else array for name, array in state.items()}
    torch.save(other, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    equal(importers.read(tmp_path / "x.pth"), other)


def test_tables_of_python_2_and_pickles_of_protocol_4_are_read(tmp_path):
    torch = pytorch()
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth", pickle_protocol=4)
    assert torch_files.read((tmp_path / "x.pth").read_bytes(), "x")[0]["a"].tolist() == [1, 1]
    old = b"\x80\x02ccollections\nOrderedDict\n]](U\x01a" + tensor_pickle() + b"ea\x85R."  # OrderedDict([['a', tensor]])
    for program in (old, old.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor")):
        for data in (archive(program, ROW), stream(program, ROW)):
            assert torch_files.read(data, "x")[0]["a"].tolist() == [[0, 1], [2, 3]]


def tensor_pickle(offset=b"K\0", shape=b"K\2K\2\x86", strides=b"K\2K\1\x86", key=b"0", numel=b"K\4", kind=b"FloatStorage"):
    """Instructions that leave a tensor on the stack."""
    storage = b"(X\7\0\0\0storagectorch\n" + kind + b"\nX" + struct.pack("<I", len(key)) + key + b"X\3\0\0\0cpu" + numel + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + strides + b"\x89ccollections\nOrderedDict\n)RtR"


def table(*values):
    """Instructions for a state_dict of these."""
    return b"\x80\x02}(" + b"".join(b"X\1\0\0\0" + bytes([97 + i]) + value for i, value in enumerate(values)) + b"u."


def archive(program, storages=None, method=zipfile.ZIP_STORED, **more):
    """A ZIP container with this pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as out:
        out.writestr("x/data.pkl", program)
        for key, row in (storages or {}).items():
            out.writestr(f"x/data/{key}", row)
        for name, content in {"version": b"3\n", **more}.items():
            out.writestr(f"x/{name}", content)
    return file.getvalue()


def stream(program, storages=None):
    """A legacy file with this pickle."""
    head = [pickle.dumps(value, 2) for value in (torch_files.MAGIC, 1001, {"protocol_version": 1001, "little_endian": True})]
    rows = [struct.pack("<Q", len(row) // 4) + row for row in (storages or {}).values()]
    return b"".join([*head, program, pickle.dumps(list(storages or {}), 2), *rows])


ROW = {"0": np.arange(4, dtype="<f4").tobytes()}


# ---- hostile files


class Call:
    """Pickled as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


CALLS = {
    "posix.system": (os.system, "touch {}"),
    "builtins.eval": (eval, "open('{}', 'w')"),
    "builtins.exec": (exec, "open('{}', 'w')"),
    "builtins.getattr": (getattr, os, "system"),
    "_io.open": (open, "{}", "w"),
    "collections.Counter": (collections.Counter, "aab"),
    "builtins.type": (type, "x", (), {}),
    "builtins.bytearray": (bytearray, 1 << 40),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("container", [archive, stream])
def test_a_pickle_that_calls_something_is_refused_by_name_and_nothing_is_called(tmp_path, name, protocol, container):
    marker = tmp_path / "called"
    function, *arguments = CALLS[name]
    arguments = [a.format(marker) if isinstance(a, str) else a for a in arguments]
    if name == "builtins.getattr":
        arguments = ["x", "upper"]
    for value in (Call(function, *arguments), {"state_dict": {"w": Call(function, *arguments)}}, [Call(function, *arguments)]):
        program = pickle.dumps(value, protocol, fix_imports=False)
        said = refusal(tmp_path / "x.pth", container(program))
        module, _, word = name.rpartition(".")
        assert f"its pickle names {module}.{word}" in said or (module == "_io" and "names io.open" in said), said
        assert "nothing of it was run" in said and not marker.exists()


PROGRAMS = {
    b"\x80\x02cos\nsystem\n.": "names os.system",
    b"\x80\x02c__builtin__\neval\n.": "names __builtin__.eval",
    b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.": "names collections.OrderedDict.fromkeys",
    b"\x80\x04\x8c\x05torch\x8c\x20_utils._rebuild_tensor.__class__\x93.": "names torch._utils._rebuild_tensor.__class__",
    b"\x80\x02(iposix\nsystem\n.": "instruction INST",
    b"\x80\x02(cposix\nsystem\no.": "names posix.system",
    b"\x80\x02(ccollections\nOrderedDict\no.": "instruction OBJ",
    b"\x80\x02ccollections\nOrderedDict\n)\x81.": "instruction NEWOBJ",
    b"\x80\x04\x8c\x0bcollections\x8c\x0bOrderedDict\x93)}\x92.": "instruction NEWOBJ_EX",
    b"\x80\x02\x82\x01.": "instruction EXT1",
    b"\x80\x02\x83\x01\0.": "instruction EXT2",
    b"\x80\x02P0\n.": "instruction PERSID",
    b"\x80\x02NQ.": "refers to something outside",
    b"\x80\x02(X\x07\0\0\0storageNNNNtQ.": "refers to something outside",
    b"\x80\x02ccollections\nOrderedDict\nNR.": "calls what is no name",
    b"\x80\x02NNR.": "calls what is no name",
    b"\x80\x02ccollections\nOrderedDict\n(NNtR.": "calls collections.OrderedDict with other things",
    b"\x80\x02ccollections\nOrderedDict\nN\x85R.": "changes something that is no list",
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.": "calls torch._utils._rebuild_tensor_v2 with other things",
    b"\x80\x02ctorch._utils\n_rebuild_parameter\n(NtR.": "calls torch._utils._rebuild_parameter with other things",
    b"\x80\x02ctorch\nFloatStorage\n)R.": "calls torch.FloatStorage with other things",
    b"\x80\x02NNb.": "changes something that is no table",
    b"\x80\x02ccollections\nOrderedDict\nX\1\0\0\0aNs.": "changes something that is no table",
    b"\x80\x02NNa.": "changes something that is no list",
    b"\x80\x04NN\x93.": "names something that is no text",
    b"\x80\x02I1\n.": "instruction INT",
    b"\x80\x02\x8b\xff\xff\xff\x7f.": "instruction LONG4",
    b"\x80\x05\x97.": "instruction NEXT_BUFFER",
    b"\x80\x02]2.": "instruction DUP",
    b"\x80\x02\xfe.": "instruction b'\\xfe'",
    b"\x80\x02a.": "its pickle is wrong or cut off",
    b"\x80\x02": "its pickle is wrong or cut off",
    b"\x80\x02t.": "its pickle is wrong or cut off",
    b"\x80\x02}(Nu.": "its pickle is wrong or cut off",
    b"\x80\x02h\0.": "its pickle is wrong or cut off",
    b"\x80\x02N\x86.": "its pickle is wrong or cut off",
    b"\x80\x02X\xff\xff\xff\xff.": "its pickle is wrong or cut off",
    b"\x80\x02X\1\0\0\0\xff.": "its pickle is wrong or cut off",
    b"\x80\x02cabc": "its pickle is wrong or cut off",
    b"\x80\x02T\xff\xff\xff\xff.": "its pickle is wrong or cut off",
    b"\x80\x02]N\x85R.": "calls what is no name",
    b"\x80\x02].": "no table of tensors",
    b"\x80\x02}.": "no tensors in its empty table",
    b"\x80\x02}X\5\0\0\0epochK\1s.": "no tensors in epoch",
    b"\x80\x02" + tensor_pickle() + b".": "no table of tensors",
}


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_what_a_table_of_weights_does_not_need_is_refused_and_named(tmp_path, program):
    assert PROGRAMS[program] in refusal(tmp_path / "x.pth", archive(program))
    refusal(tmp_path / "x.pth", stream(program, ROW))


BOMBS = {
    "lists in lists": b"\x80\x02" + b"]" * 12_000 + b"a" * 11_999 + b".",
    "tuples in tuples": b"\x80\x02)" + b"\x85" * 490_000 + b".",
    "tables in tables": b"\x80\x02" + b"}N" * 8_000 + b"}" + b"s" * 8_000 + b".",
    "marks": b"\x80\x02" + b"(" * 24_000 + b".",
    "nothing, often": b"\x80\x02" + b"N" * 3_000_000 + b".",
    "a list of itself": b"\x80\x02]q\0" + b"h\0a" * 9_000 + b".",
    "halves of halves": b"\x80\x02)q\0" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(100)) + b"}h\x64Ns.",
    "a memo far away": b"\x80\x02]" + b"".join(b"r" + struct.pack("<I", 2**32 - 1 - i) for i in range(300_000)) + b".",
    "a long list, often": b"\x80\x02](" + b"NN\x86" * 300 + b"eq\0" + b"ccollections\nOrderedDict\nh\0\x85R" * 900 + b".",
    "a table, often": b"\x80\x02}("
    + b"".join(b"X\4\0\0\0%04dN" % i for i in range(9999))
    + b"uq\0}("
    + b"".join(b"X\5\0\0\0%05dh\0" % i for i in range(99_999))
    + b"u.",
    "a long text": b"\x80\x02X" + struct.pack("<I", 1 << 24) + b"a" * (1 << 20),
    "a frame": b"\x80\x04\x95" + b"\xff" * 8 + b"].",
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickles_that_would_take_all_memory_or_for_ever_do_not(tmp_path, name):
    data, start = archive(BOMBS[name]), time.perf_counter()
    refusal(tmp_path / "x.pth", data)
    took = time.perf_counter() - start
    tracemalloc.start()
    if len(data) < 40_000:  # measuring takes ten times as long
        refusal(tmp_path / "x.pth", data)
    largest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{name}: {len(data):,} bytes, {took:.2f} s, at most {largest:,} bytes")
    assert took < 10 and largest < 100 * len(data) + (1 << 20)


def test_whole_models_and_other_programs_are_refused_with_advice(tmp_path):
    torch = pytorch()
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    for new in (True, False):
        torch.save(model, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
        said = refusal(tmp_path / "x.pth")
        assert "names torch.nn.modules" in said and "torch.save(model.state_dict(), 'x.pth')" in said
    assert "PyTorch's torch.save did not write" in refusal(tmp_path / "x.pkl", pickle.dumps({"a": [1.0]}, 2))
    assert "one tensor" not in refusal(tmp_path / "x.pth", archive(b"\x80\x02" + tensor_pickle() + b".", ROW))
    assert "big-endian" in refusal(tmp_path / "x.pth", archive(table(tensor_pickle()), ROW, byteorder=b"big"))
    assert "ZIP archive of a.txt" in refusal(tmp_path / "x.zip", one_file("a.txt"))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_program_is_called_so_and_the_advice_for_it_works(tmp_path):
    torch = pytorch()
    module, path = torch_networks.mobilenet_v2(torch, ALPHA, CLASSES), tmp_path / "x.pt"
    torch.jit.trace(torch.nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)).save(str(path))
    assert "x.pt is a TorchScript program" in refusal(path)
    torch.jit.script(module).save(str(path))
    said = refusal(path)
    assert "x.pt is a TorchScript program" in said and "torch.save(torch.jit.load('x.pt').state_dict(), 'x.pth')" in said
    assert "damaged" not in said
    torch.save(torch.jit.load(str(path)).state_dict(), tmp_path / "x_96.pth")
    equal(importers.read(tmp_path / "x_96.pth"), module.state_dict())
    assert "TorchScript program" in refusal(path, archive(table(tensor_pickle()), ROW, **{"constants.pkl": b"\x80\x02)."}))


def test_checkpoints_with_programs_beside_their_weights_are_told_to_save_the_weights(tmp_path, state):
    torch = pytorch()
    path = tmp_path / "x.pth"
    for beside in (argparse.Namespace(lr=0.1), np.float64(3), torch.nn.Linear(1, 1)):
        for wrap in (dict, collections.OrderedDict):
            for new in (True, False):
                torch.save(wrap({"epoch": 3, "model": state, "other": beside}), path, _use_new_zipfile_serialization=new)
                said = refusal(path)
                assert "nothing of it was run" in said and "torch.save(checkpoint['model'], 'x.pth')" in said
                assert "If it is a whole model" not in said and said.endswith("of a whole model, its state_dict()")
    torch.save(torch.load(path, weights_only=False)["model"], path)
    assert importers.read(path).architecture == "mobilenet_v1"


def one_file(name, method=zipfile.ZIP_STORED, content=b"x"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as out:
        out.writestr(name, content)
    return file.getvalue()


NEGATIVE = b"J" + struct.pack("<i", -1)
HUGE = b"J" + struct.pack("<i", 2**31 - 1)
TENSORS = {
    "a shape too large": tensor_pickle(shape=b"K\2K\3\x86"),
    "an offset too large": tensor_pickle(offset=b"K\1"),
    "an offset below zero": tensor_pickle(offset=NEGATIVE),
    "a negative stride": tensor_pickle(strides=NEGATIVE + b"K\1\x86"),
    "a huge stride": tensor_pickle(strides=HUGE + b"K\1\x86"),
    "a negative size": tensor_pickle(shape=NEGATIVE + b"K\1\x86"),
    "a huge shape of strides 0": tensor_pickle(shape=HUGE + HUGE + b"\x86", strides=b"K\0K\0\x86"),
    "nine axes": tensor_pickle(shape=b"(" + b"K\1" * 9 + b"t", strides=b"(" + b"K\1" * 9 + b"t"),
    "more strides than sizes": tensor_pickle(shape=b"K\2\x85"),
    "no shape": tensor_pickle(shape=b"N"),
    "sizes that are no numbers": tensor_pickle(shape=b"NN\x86"),
    "sizes that are true": tensor_pickle(shape=b"\x88\x88\x86"),
    "a storage that is not there": tensor_pickle(key=b"1"),
    "a storage outside": tensor_pickle(key=b"../../etc/passwd"),
    "more numbers than the storage has": tensor_pickle(numel=b"K\5"),
    "fewer numbers than the storage has": tensor_pickle(numel=b"K\3"),
    "a negative number of numbers": tensor_pickle(numel=NEGATIVE),
    "a very long integer": tensor_pickle(numel=b"\x8a\xff" + b"\x7f" * 255),
    "another type": tensor_pickle(kind=b"DoubleStorage"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_outside_of_their_storage_are_refused(tmp_path, what):
    for data in (archive(table(TENSORS[what]), ROW), stream(table(TENSORS[what]), ROW)):
        said = refusal(tmp_path / "x.pth", data)
        assert "tensor 'a'" in said or "storage" in said, said
        with pytest.raises(MinitlError):
            torch_files.read(data, "x")
    assert "another network" in refusal(tmp_path / "x.pth", archive(table(tensor_pickle()), ROW))


def test_tensors_that_share_their_numbers_do_not_add_up_to_a_bomb(tmp_path):
    large = {"0": bytes(400_000)}
    one = tensor_pickle(numel=b"J" + struct.pack("<i", 100_000), shape=b"J" + struct.pack("<i", 100_000) + b"\x85", strides=b"K\1\x85")
    data = archive(table(*[one] * 25), large)
    assert "share their numbers" in refusal(tmp_path / "x.pth", data)
    broad = tensor_pickle(shape=b"K\4" * 2 + b"K\4\x87", strides=b"K\0" * 3 + b"\x87")
    assert torch_files.read(archive(table(broad), ROW), "x")[0]["a"].shape == (4, 4, 4)


def test_archives_that_are_compressed_overlap_or_lie_are_refused(tmp_path):
    packed = refusal(tmp_path / "x.pth", archive(bytes(10 << 20), method=zipfile.ZIP_DEFLATED))
    assert "has compressed entries ('x/data.pkl')" in packed and "zip -0 -r" in packed and "damaged" not in packed
    good = archive(table(tensor_pickle()), {**ROW, "00": b""})
    at = good.index(b"PK\1\2")
    lying = bytearray(good)
    assert "appears twice" in refusal(tmp_path / "x.pth", good.replace(b"x/data/00", b"x/version"))
    lying[at + 24 : at + 28] = struct.pack("<I", 2**31)
    assert "larger than the file" in refusal(tmp_path / "x.pth", bytes(lying))
    changed = bytearray(good)
    changed[good.index(ROW["0"]) + 1] ^= 1
    assert "another check sum" in refusal(tmp_path / "x.pth", bytes(changed))
    assert "damaged ZIP archive" in refusal(tmp_path / "x.pth", good[:-1])
    assert "damaged ZIP archive" in refusal(tmp_path / "x.pth", good[:at])
    legacy = stream(table(tensor_pickle()), ROW)
    assert "cut off" in refusal(tmp_path / "x.pth", legacy[:-1])
    lying = legacy[: -len(ROW["0"]) - 8] + struct.pack("<Q", 2**62) + ROW["0"]
    assert "should have 4 numbers" in refusal(tmp_path / "x.pth", lying)
    assert "not those that its tensors are in" in refusal(tmp_path / "x.pth", stream(table(tensor_pickle()), {**ROW, "1": b"abcd"}))


# ---- networks that are only similar


def changed(state, how):
    state = dict(state)
    torch = pytorch()
    if how == "missing":
        del state["model.3.3.weight"]
    elif how == "missing norm":
        for name in list(state):
            if name.startswith("model.3.4."):
                del state[name]
    elif how == "half a norm":
        del state["model.3.4.running_var"]
    elif how == "prelu":
        state["model.3.5.weight"] = torch.ones(1)
    elif how == "integers":
        state["model.3.3.weight"] = state["model.3.3.weight"].to(torch.int8)
    elif how == "NaN":
        state["model.3.3.weight"] = state["model.3.3.weight"] * float("nan")
    elif how == "other channels":
        state["model.3.3.weight"] = state["model.3.3.weight"][:, :-1]
    elif how == "bias":
        state["model.3.3.bias"] = torch.zeros(len(state["model.3.3.weight"]))
    elif how == "short bias":
        state["model.3.3.bias"] = torch.zeros(2)
    elif how == "dense alone":
        state = {"fc.weight": torch.zeros(3, 4)}
    elif how == "bn first":
        names = sorted(state, key=lambda name: state[name].ndim)
        state = {name.replace("model.0.0", "model.x0").replace("model.0.1", "model.b"): state[name] for name in names}
    elif how == "long name":
        state["a" * 400] = torch.zeros(1)
    return state


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", "module 'model.3.4' is a BatchNorm of shape .12,. and follows module 'model.3.0' of 12 channels|not mobilenet_v1"),
        ("missing norm", "module 'model.3.3' has no BatchNorm"),
        ("half a norm", "is a BatchNorm with weight, bias, running_mean only"),
        ("prelu", r"its tensor model.3.5.weight of shape \(1,\) has no place here"),
        ("integers", "tensor 'model.3.3.weight' is int8"),
        ("NaN", "numbers of conv_pw_3/kernel are NaN"),
        ("other channels", r"module 'model.3.3' has a kernel of shape \(1, 1, 11, 12\), conv_pw_3 needs \(1, 1, 12, 12\)"),
        ("bias", "module 'model.3.3' has a bias, conv_pw_3 has none"),
        ("short bias", "module 'model.3.3' has a weight of shape .* and a bias of"),
        ("dense alone", "it has no convolutions"),
        ("bn first", "is a BatchNorm of shape .* and follows"),
        ("long name", "names longer than 300"),
    ],
)
def test_what_is_wrong_with_a_network_is_said_with_the_name_of_its_module(tmp_path, state, how, says):
    torch = pytorch()
    torch.save(changed(state, how), tmp_path / "x.pth")
    with pytest.raises(MinitlError, match=says) as error:
        importers.read(tmp_path / "x.pth")
    assert "x.pth" in str(error.value)


# ---- safetensors


def file_of(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(dtype="F32", shape=(2,), span=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


def test_what_is_written_is_read_and_the_package_reads_the_same(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"b/kernel": rng.normal(size=(2, 3)).astype("<f4"), "a": rng.normal(size=4).astype("<f2"), "c": np.arange(3, dtype="<i8")}
    arrays |= {"empty": np.zeros((0, 2), np.float32), "one": np.array(3, np.float32), "turned": np.asfortranarray(arrays["b/kernel"])}
    data = safetensors.write(arrays, {"é": "ü"})
    found, metadata = safetensors.read(data, "x")
    assert metadata == {"é": "ü"} and list(found) == sorted(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    package = pytest.importorskip("safetensors.numpy")
    for name, array in package.load(data).items():
        assert array.dtype == arrays[name].dtype and np.array_equal(array, arrays[name])
    del arrays["turned"]  # the package writes such arrays as they lie
    written = package.save(arrays, {"k": "v"})
    found, metadata = safetensors.read(written, "x")
    assert metadata == {"k": "v"} and all(np.array_equal(found[name], array) for name, array in arrays.items())
    torch = pytorch()
    brain = torch.randn(3, 4).bfloat16()
    found, _ = safetensors.read(pytest.importorskip("safetensors.torch").save({"x": brain}), "x")
    assert np.array_equal(found["x"], brain.float().numpy())


EIGHT = bytes(8)
WRONG = {
    "a hole": (file_of({"a": tensor(), "b": tensor(span=(9, 17))}, bytes(17)), "overlap, or bytes belong to none"),
    "an overlap": (file_of({"a": tensor(), "b": tensor(span=(4, 12))}, bytes(12)), "overlap, or bytes belong to none"),
    "the same place twice": (file_of({"a": tensor(), "b": tensor()}, EIGHT), "overlap, or bytes belong to none"),
    "bytes at the end": (file_of({"a": tensor()}, bytes(9)), "end at 8 of 9"),
    "an end behind the file": (file_of({"a": tensor(span=(0, 9))}, EIGHT), "within 8 bytes"),
    "a beginning below zero": (file_of({"a": tensor(span=(-8, 0))}, EIGHT), "within 8 bytes"),
    "begin and end exchanged": (file_of({"a": tensor(span=(8, 0))}, EIGHT), "within 8 bytes"),
    "three offsets": (file_of({"a": tensor(span=(0, 8, 8))}, EIGHT), "within 8 bytes"),
    "offsets that are no integers": (file_of({"a": tensor(span=(0.0, 8.0))}, EIGHT), "within 8 bytes"),
    "another number of bytes": (file_of({"a": tensor(shape=(3,))}, EIGHT), "needs another number"),
    "an unknown type": (file_of({"a": tensor("F4")}, EIGHT), "is of type 'F4'"),
    "no type": (file_of({"a": {"shape": [2], "data_offsets": [0, 8]}}, EIGHT), "is of type None"),
    "a negative shape": (file_of({"a": tensor(shape=(-2, -1))}, EIGHT), "has the shape"),
    "a huge shape": (file_of({"a": tensor(shape=(1 << 62, 4, 0), span=(0, 0))}), "has the shape"),
    "many axes": (file_of({"a": tensor(shape=[1] * 20)}, EIGHT), "has the shape"),
    "a list": (file_of({"a": []}), "is of type None"),
    "a name twice": (file_of(b'{"a": 1, "a": 2}'), "no JSON"),
    "no JSON": (file_of(b"{not"), "no JSON"),
    "no text": (file_of(b'{"\xff": 1}'), "no JSON"),
    "JSON in JSON": (file_of(b'{"a":' * 100_000), "no JSON"),
    "a number of a million digits": (file_of(b'{"a":' + b"9" * 1_000_000 + b"}"), "no JSON|is of type"),
    "metadata that is no text": (file_of({"__metadata__": {"a": 1}}), "no table of texts"),
    "nothing": (file_of({}), "no convolutions|no layers|another network"),
}


@pytest.mark.parametrize("what", WRONG)
def test_headers_that_lie_are_refused(tmp_path, what):
    data, says = WRONG[what]
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(MinitlError, match=says):
        importers.read(tmp_path / "x.safetensors")


def test_a_header_longer_than_the_file_is_no_safetensors():
    with pytest.raises(MinitlError, match="a header of 999 bytes"):
        safetensors.read(file_of({"a": tensor()}, EIGHT, 999), "x")


def test_a_model_travels_through_safetensors_and_back(tmp_path, capsys):
    model = minitl.model.find("random:mobilenet_v2_0.1_64").replace_head(["Äpfel", "b"])
    model.note(source="somewhere")
    model.save(tmp_path / "m.npz")
    assert cli.main(["convert", str(tmp_path / "m.npz"), "-o", str(tmp_path / "m.safetensors")]) == 0
    assert cli.main(["convert", str(tmp_path / "m.safetensors"), "-o", str(tmp_path / "n.npz")]) == 0
    assert "Conv1/kernel" in capsys.readouterr().out
    there, back = minitl.load(tmp_path / "m.npz"), minitl.load(tmp_path / "n.npz")
    assert back.classes == ["Äpfel", "b"] and back.recipe == there.recipe and back.arguments == there.arguments
    assert back.provenance["source"] == "somewhere"
    arrays = back.graph.arrays()
    assert all(np.array_equal(arrays[name], array) for name, array in there.graph.arrays().items())
    package = pytest.importorskip("safetensors.numpy")
    assert package.load_file(tmp_path / "m.safetensors").keys() == arrays.keys()
    facts = json.loads(safetensors.read((tmp_path / "m.safetensors").read_bytes(), "m")[1]["minitl"])
    for key, value in [
        ("architecture", "vgg99"), ("arguments", {"alpha": 1e9}), ("arguments", 3), ("recipe", {}), ("classes", [3]), ("provenance", []),
        ("classes", ["a"]), ("architecture", None),
    ]:  # fmt: skip
        data = safetensors.write(there.graph.arrays(), {"minitl": json.dumps(facts | {key: value})})
        (tmp_path / "x.safetensors").write_bytes(data)
        with pytest.raises(MinitlError):
            minitl.load(tmp_path / "x.safetensors")


def test_convert_prints_what_became_of_every_tensor(tmp_path, state, capsys):
    torch = pytorch()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "x.pth")
    assert cli.main(["convert", str(tmp_path / "x.pth"), "-o", str(tmp_path / "x.npz")]) == 0
    said = capsys.readouterr().out
    assert (
        "model.0.1.{weight, bias, running_mean, running_var}" in said and "->  conv1_bn/{gamma, beta, moving_mean, moving_variance}" in said
    )
    assert "not used: epoch" in said and "num_batches_tracked" in said and "note: weights taken from its 'state_dict'" in said
    assert cli.main(["convert", str(tmp_path / "x.pth"), "-o", str(tmp_path / "x.npz"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert ["fc.weight", "conv_preds/kernel"] in facts["mapping"] and len(facts["mapping"]) == 137
    assert len(facts["unused"]) == 28 and facts["unused"][-1] == "epoch" and facts["architecture"] == "mobilenet_v1"
    assert cli.main(["convert", str(tmp_path / "x.pth"), "-o", str(tmp_path / "y.pth")]) == 1
    assert "convert writes .npz and .safetensors" in capsys.readouterr().err


# ---- damaged files


def damaged_programs(state, seeds):
    """Containers around a damaged pickle, with right check sums."""
    file = io.BytesIO()
    pytorch().save(state, file)
    with zipfile.ZipFile(file) as found:
        program = found.read("archive/data.pkl")
        rows = {name.removeprefix("archive/data/"): found.read(name) for name in found.namelist() if name.startswith("archive/data/")}
    for seed in seeds:
        yield seed, archive(mutate(program, random.Random(seed)), rows)


def check_programs(path, state, seeds):
    refused = 0
    for seed, data in damaged_programs(state, seeds):
        try:
            tensors, _, _ = torch_files.read(data, "x")
            assert all(array.size <= len(data) for array in tensors.values()), seed
        except MinitlError as error:
            refused += 1
            assert len(str(error)) < 1000, seed
    return refused


def saved(path, state, how):
    torch = pytorch()
    if how == "safetensors":
        arrays = {name: array.numpy() for name, array in state.items()}
        path.write_bytes(safetensors.write(arrays, {}))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "zip")
    return path.read_bytes()


@pytest.mark.parametrize("how", ["zip", "legacy", "safetensors"])
def test_damaged_files_raise_nothing_but_our_error(tmp_path, state, how):
    read, refused = fuzz(tmp_path / "y", saved(tmp_path / "x", state, how), range(100))
    print(f"{how}: of 100 damaged copies {refused} were refused, {read} read")
    if how == "zip":
        print(f"of 200 damaged pickles {check_programs(tmp_path / 'x', state, range(200))} were refused")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["zip", "legacy", "safetensors", "pickles"])
def test_ten_thousand_damaged_files_raise_nothing_but_our_error(tmp_path, state, how):
    if how == "pickles":
        print(f"of 10,000 damaged pickles {check_programs(tmp_path / 'x', state, range(1000, 11_000))} were refused")
        return
    read, refused = fuzz(tmp_path / "y", saved(tmp_path / "x", state, how), range(1000, 11_000))
    print(f"{how}: of 10,000 damaged copies {refused} were refused, {read} read")
