"""Files written by the real Keras 3: .keras, .weights.h5, and .h5 with and without the model: every number arrives, bit for bit.

Where Keras is not installed, archives made by hand with h5py stand for them, and for what Keras does not write.
"""

import io
import json
import os
import zipfile

import numpy as np
import pytest
from importer_files import keras_config, network

from minitl import MinitlError, importers, load
from minitl.importers import keras_archive
from minitl.layers import BatchNorm, Conv2D, Dense, DepthwiseConv2D

os.environ.setdefault("KERAS_BACKEND", "torch")
h5py = pytest.importorskip("h5py")

NETWORKS = {
    "mobilenet_v1": ("MobileNet", {"alpha": 0.25, "input_shape": (64, 64, 3)}),
    "mobilenet_v2": ("MobileNetV2", {"alpha": 0.35, "input_shape": (64, 64, 3)}),
    "vgg16": ("VGG16", {"input_shape": (64, 64, 3)}),
    "inception_v3": ("InceptionV3", {"input_shape": (107, 107, 3)}),
}
SLOW = {"vgg16", "inception_v3"}
FORMATS = ("x.keras", "x.weights.h5", "x.h5", "x_weights.h5")


def real_keras():
    pytest.importorskip("torch")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("keras runs on another backend")
    keras.utils.clear_session()
    return keras


def randomise(model):
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape).astype(np.float32))


def write(model, path):
    if path.name == "x_weights.h5":  # Keras 3 still writes the layout of keras.applications' files, but for these only
        from keras.src.legacy.saving import legacy_h5_format

        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, model)
    else:
        (model.save_weights if path.name.endswith(".weights.h5") else model.save)(path)
    return path


def arrived(found, layers):
    """Whether every array of Keras' layers is there, in our layout; VGG16's first kernel with its colours turned round."""
    theirs = {layer.name: [np.asarray(weight) for weight in layer.get_weights()] for layer in layers if layer.weights}
    graph = load_graph(found)
    assert theirs.keys() == graph.params.keys()
    for node, params in graph.params.items():
        for array, expected in zip(params.values(), theirs[node], strict=True):
            if node == "block1_conv1" and expected.ndim == 4:
                expected = expected[:, :, ::-1]
            assert array.dtype == np.float32 and np.array_equal(array.reshape(expected.shape), expected), node


def load_graph(found):
    from minitl.architectures import build

    return build(found.architecture, **found.arguments).load(found.arrays)


@pytest.mark.parametrize("architecture", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NETWORKS])
def test_every_number_of_every_kind_of_file_arrives(tmp_path, architecture):
    keras = real_keras()
    name, arguments = NETWORKS[architecture]
    model = getattr(keras.applications, name)(include_top=False, weights=None, **arguments)
    randomise(model)
    for file in FORMATS:
        found = importers.read(write(model, tmp_path / file))
        assert found.architecture == architecture and found.arguments["classes"] is None
        assert found.arguments["alpha"] == arguments.get("alpha", 1) and len(found.mapping) >= len(found.arrays)
        arrived(found, model.layers)
        if not file.endswith("weights.h5"):
            assert tuple(found.arguments["input_shape"]) == arguments["input_shape"]
        (tmp_path / file).unlink()


@pytest.mark.slow
def test_the_classifiers_of_vgg16_and_inception_arrive(tmp_path):
    keras = real_keras()
    for name, size in [("VGG16", 96), ("InceptionV3", 299)]:
        keras.utils.clear_session()
        shape = (size, size, 3)
        model = getattr(keras.applications, name)(weights=None, classes=7, input_shape=shape)
        for file in ("x.keras", f"x_{size}.weights.h5", "x.h5"):
            found = importers.read(write(model, tmp_path / file))
            assert found.arguments["classes"] == 7 and found.arguments.get("top", False) == (name == "VGG16")
            arrived(found, model.layers)
            (tmp_path / file).unlink()


def backbone(keras, **more):
    model = keras.applications.MobileNet(input_shape=(64, 64, 3), alpha=0.25, include_top=False, weights=None, **more)
    randomise(model)
    return model


def wrapped(keras, base, how):
    """A classifier around a backbone, as the lessons build it."""
    layers = keras.layers
    ends = [layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(8, activation="relu"), layers.Dense(3, activation="softmax")]
    if how == "sequential":
        return keras.Sequential([layers.Input((64, 64, 3)), layers.RandomFlip(), base, *ends]), ends
    if how == "sequential without an input":
        return keras.Sequential([base, *ends]), ends
    x = image = keras.Input((64, 64, 3))
    x = base(x, training=False)
    for layer in ends:
        x = layer(x)
    return keras.Model(image, x), ends


@pytest.mark.parametrize("how", ["sequential", "sequential without an input", "functional"])
def test_a_classifier_around_a_backbone_is_read_as_one_network(tmp_path, how):
    keras = real_keras()
    base = backbone(keras)
    model, ends = wrapped(keras, base, how)
    x = np.random.default_rng(2).standard_normal((2, 64, 64, 3)).astype(np.float32)
    expected = np.asarray(model(x, training=False).detach())
    for file in ("x.keras", "x.h5"):
        write(model, tmp_path / file)
        found = importers.read(tmp_path / file)
        assert found.arguments["hidden"] == [8] and found.arguments["classes"] == 3
        assert np.array_equal(found.arrays["hidden_1/kernel"], np.asarray(ends[2].kernel.value.detach()))
        logits = load(tmp_path / file).forward(x)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        print(f"{how} {file}: largest difference of a probability {np.abs(p - expected).max():.1e}")
        assert np.abs(p - expected).max() < 1e-5


@pytest.mark.slow
def test_logits_of_the_files_are_those_of_keras_blue_first_included(tmp_path):
    keras = real_keras()
    for name, arguments in NETWORKS.values():
        keras.utils.clear_session()
        model = getattr(keras.applications, name)(include_top=False, weights=None, pooling="avg", **arguments)
        model.save(tmp_path / "x.keras")
        loaded = load(tmp_path / "x.keras")
        pixels = np.random.default_rng(1).integers(0, 256, (2, *arguments["input_shape"]), np.uint8)
        module = getattr(keras.applications, {"VGG16": "vgg16", "InceptionV3": "inception_v3"}.get(name, "mobilenet"))
        expected = np.asarray(model(module.preprocess_input(pixels.astype(np.float32)), training=False).detach())
        found = loaded.logits(pixels)
        print(name, np.abs(found - expected).max() / np.abs(expected).max())
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


# ---- by hand


KINDS = {Conv2D: "conv2d", DepthwiseConv2D: "depthwise_conv2d", Dense: "dense", BatchNorm: "batch_normalization"}


def layout(graph, names=True, inside="layers"):
    """The HDF5 file of a network in Keras 3's layout."""
    counts, file = dict.fromkeys(KINDS.values(), 0), io.BytesIO()
    with h5py.File(file, "w") as root:
        root.create_group("optimizer/vars")
        for node in graph.nodes:
            if node.name not in graph.params:
                continue
            kind = "conv2d" if node.name == "conv_preds" else KINDS[type(node.layer)]
            key = f"{kind}_{counts[kind]}" if counts[kind] else kind
            counts[kind] += 1
            group = root.create_group(f"{inside}/{key}/vars")
            if names:
                group.attrs["name"] = node.name
            for i, (part, array) in enumerate(graph.params[node.name].items()):
                if part == "kernel" and kind == "depthwise_conv2d":
                    array = array[..., None]
                group[str(i)] = array[None, None] if node.name == "conv_preds" and part == "kernel" else array
    return file.getvalue()


def archive(entries, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as out:
        for name, content in entries.items():
            out.writestr(name, content)
    return file.getvalue()


def parts(graph, **how):
    config = json.dumps(keras_config(graph, 3)).encode()
    return {"metadata.json": b"{}", "config.json": config, "model.weights.h5": layout(graph, **how)}


def read(tmp_path, data, name="x.keras"):
    (tmp_path / name).write_bytes(data)
    return importers.read(tmp_path / name)


@pytest.mark.parametrize("how", [{}, {"names": False}, {"names": False, "inside": "_layer_checkpoint_dependencies"}])
@pytest.mark.parametrize("architecture", ["mobilenet_v1", "mobilenet_v2"])
def test_archives_by_hand_arrive_with_names_or_counted_by_the_configuration(tmp_path, architecture, how):
    graph, arrays = network(architecture, input_shape=[64, 64, 3])
    found = read(tmp_path, archive(parts(graph, **how)))
    assert found.architecture == architecture and found.arrays.keys() == arrays.keys()
    assert all(np.array_equal(found.arrays[name], arrays[name]) for name in arrays)


def test_weights_alone_are_found_by_name_and_need_it(tmp_path):
    graph, arrays = network("mobilenet_v2")
    found = read(tmp_path, layout(graph), "x_64.weights.h5")
    assert all(np.array_equal(found.arrays[name], arrays[name]) for name in arrays)
    with pytest.raises(MinitlError, match=r"does not say what the layer .* is called"):
        read(tmp_path, layout(graph, names=False), "y.weights.h5")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p.pop("model.weights.h5"), "it has no model.weights.h5"),
        (lambda p: p.update({"config.json": b"{"}), "no JSON"),
        (lambda p: p.update({"config.json": b'{"class_name": "Functional"}'}), "with layers"),
        (lambda p: p.update({"model.weights.h5": b"PK"}), "does not begin as an HDF5 file does"),
        (lambda p: p.update({"model.weights.h5": p["model.weights.h5"][:3000]}), "cut off"),
        (lambda p: p.update({"../config.json": b""}), None),
    ],
)
def test_archives_that_are_not_whole_are_refused(tmp_path, change, says):
    content = parts(network()[0])
    change(content)
    if says is None:
        assert read(tmp_path, archive(content)).architecture == "mobilenet_v1", "entries of other names are left alone"
        return
    with pytest.raises(MinitlError, match=says):
        read(tmp_path, archive(content))


def test_compressed_archives_and_other_changes_are_refused(tmp_path):
    content = parts(network()[0])
    with pytest.raises(MinitlError, match=r"has compressed entries \(.*without compression") as error:
        read(tmp_path, archive(content, zipfile.ZIP_DEFLATED))
    assert "damaged" not in str(error.value)
    whole = bytearray(archive(content))
    at = whole.index(b"\x89HDF") + 5000
    whole[at] ^= 1
    with pytest.raises(MinitlError, match="another check sum"):
        read(tmp_path, bytes(whole))


def test_a_model_inside_of_itself_ends(tmp_path):
    inner = {"class_name": "InputLayer", "config": {"name": "i", "batch_shape": [None, 64, 64, 3]}}
    for _ in range(40):
        inner = {"class_name": "Sequential", "name": "s", "config": {"name": "s", "layers": [inner]}}
    with pytest.raises(MinitlError, match="functional or sequential model with layers"):
        read(tmp_path, archive(parts(network()[0]) | {"config.json": json.dumps(inner).encode()}))


@pytest.mark.parametrize("cases", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_archives_raise_our_own_error_only(tmp_path, cases):
    rng = np.random.default_rng(cases)
    content = parts(network(alpha=0.1, input_shape=[32, 32, 3])[0])
    refused = 0
    for case in range(cases):
        changed = dict(content)
        target = ["config.json", "model.weights.h5", None][case % 3]
        data = bytearray(content[target] if target else archive(content))
        for _ in range(int(rng.integers(1, 8))):
            at = int(rng.integers(len(data))) if rng.random() < 0.7 else int(rng.integers(min(len(data), 4000)))
            data[at] = int(rng.integers(256))
        if rng.random() < 0.1:
            del data[int(rng.integers(len(data))) :]
        try:
            if target:
                changed[target] = bytes(data)
            importers._convert(archive(changed) if target else bytes(data), "x.keras", None)
        except MinitlError:
            refused += 1
    print(f"{refused} of {cases} refused")
    assert refused > cases / 4


@pytest.mark.parametrize("cases", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_configurations_that_say_anything_raise_our_own_error_only(tmp_path, cases):
    """Values of the JSON replaced by values of other kinds."""
    graph = network("mobilenet_v2", alpha=0.1, input_shape=[32, 32, 3], classes=None)[0]
    content, rng = parts(graph), np.random.default_rng(0)
    root = keras_archive.layers(importers.hdf5.read(content["model.weights.h5"], "x"))
    text = content["config.json"].decode()
    paths = list(places(json.loads(text)))
    for at in rng.choice(len(paths), cases, replace=False):
        for value in (None, 10**400, -1, "x", [], {}, [[1]], [{"x": []}], True)[: 3 if at % 2 else 9]:
            config = json.loads(text)
            inner = config
            for key in paths[at][:-1]:
                inner = inner[key]
            inner[paths[at][-1]] = value
            try:
                importers.keras_h5.from_layers(dict(root), json.dumps(config), "x", "keras")
            except MinitlError as problem:
                assert len(str(problem)) < 600


def places(value, path=()):
    """Paths to everything inside of a JSON value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))
