"""TensorFlow.js layers models and TensorFlow's tarballs, made by hand: read as they were, and damaged or hostile ones refused by name."""

import gzip
import io
import itertools
import json
import os
import random
import tarfile

import numpy as np
import pytest
from importer_files import keras_config, keras_weights, mutate, network, tflite

from minitl import importers
from minitl.errors import MinitlError

BOTH = pytest.mark.parametrize("architecture", ["mobilenet_v1", "mobilenet_v2"])


def quantised(array, dtype):
    """(bytes, entry of the manifest, the numbers that they stand for)."""
    if dtype == "float16":
        stored = array.astype(np.float16)
        return stored.tobytes(), {"dtype": dtype}, stored.astype(np.float32)
    low, high = float(array.min()), float(array.max())
    scale = (high - low) / np.iinfo(dtype).max or 1.0
    stored = np.rint((array - low) / scale).astype(dtype)
    meant = (stored.astype(np.float64) * scale + low).astype(np.float32)
    return stored.tobytes(), {"dtype": dtype, "scale": scale, "min": low, "original_dtype": "float32"}, meant


def write(folder, graph, shard=4 << 20, topology="keras", groups="one", dtype=None, change=lambda model: None):
    """A model.json and its shards; returns (path, the arrays that the file stands for, in the order of keras_weights)."""
    meant, layers = [], [(name, weights) for name, weights in keras_weights(graph) if weights]
    manifest, number = [], 0
    for part in [layers] if groups == "one" else [[layer] for layer in layers]:
        number, data, weights = number + 1, b"", []
        for _, arrays in part:
            for name, array in arrays:
                entry = {"name": name.removesuffix(":0"), "shape": list(array.shape), "dtype": "float32"}
                if dtype:
                    raw, entry["quantization"], array = quantised(array, dtype)
                else:
                    raw = array.tobytes()
                data, meant = data + raw, [*meant, array]
                weights.append(entry)
        pieces = [data[at : at + shard] for at in range(0, len(data), shard)]
        end = ".bin" if groups == "one" else ""  # the files of 2018 have none
        paths = [f"group{number}-shard{i}of{len(pieces)}{end}" for i in range(1, len(pieces) + 1)]
        for path, piece in zip(paths, pieces, strict=True):
            (folder / path).write_bytes(piece)
        manifest.append({"paths": paths, "weights": weights})
    config = keras_config(graph)
    if topology == "2018":  # old Keras: the classifier's softmax comes before its Reshape
        layer = config["config"]["layers"]
        if layer[-1]["name"] == "predictions":
            at, end = layer[-2], layer[-1]
            end["inbound_nodes"], at["inbound_nodes"] = at["inbound_nodes"], [[["predictions", 0, 0, {}]]]
            layer[-2:] = [end, at]
    model = {
        "modelTopology": {"keras": {"keras_version": "2.4.0", "model_config": config}, "2018": {"model_config": config}, "js": config}.get(
            topology
        ),
        "weightsManifest": manifest,
    }
    if topology == "keras":
        model["format"] = "layers-model"
    change(model)
    (folder / "model.json").write_text(json.dumps(model))
    return folder / "model.json", meant


def equal(imported, graph, meant):
    """The network's arrays are these, given in the order of keras_weights."""
    assert imported.arrays.keys() == graph.arrays().keys()
    at = 0
    for name, weights in keras_weights(graph):
        for weight, _ in weights:
            part = weight.split("/")[1].split(":")[0].replace("depthwise_", "")
            found = imported.arrays[f"{name}/{part}"]
            assert np.array_equal(found, meant[at].reshape(found.shape)), weight
            at += 1


@BOTH
@pytest.mark.parametrize("topology", ["keras", "js", None])
def test_layers_models_arrive_unchanged(tmp_path, architecture, topology):
    graph, _ = network(architecture, input_shape=[96, 96, 3])
    path, meant = write(tmp_path, graph, shard=100_000, topology=topology)
    imported = importers.read(path)
    equal(imported, graph, meant)
    assert imported.provenance["format"] == "tfjs" and len(imported.provenance["beside"]) > 5
    assert imported.arguments["input_shape"] == ([224, 224, 3] if topology is None else [96, 96, 3])
    assert imported.recipe.mean == (127.5,) * 3


@BOTH
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16"])
def test_quantised_numbers_are_what_tensorflow_js_makes_of_them(tmp_path, architecture, dtype):
    graph, _ = network(architecture)
    path, meant = write(tmp_path, graph, dtype=dtype)
    equal(importers.read(path), graph, meant)


def test_an_array_may_begin_in_one_shard_and_end_in_another(tmp_path):
    graph, _ = network(alpha=0.1)
    path, meant = write(tmp_path, graph, shard=997)  # not even a whole number of floats
    equal(importers.read(path), graph, meant)


def test_the_layout_of_2018_with_one_group_for_each_layer_is_read(tmp_path):
    graph, _ = network("mobilenet_v1", padding="keras")
    path, meant = write(tmp_path, graph, topology="2018", groups="each")
    assert not list(tmp_path.glob("*.bin")) and (tmp_path / "group55-shard1of1").exists()
    imported = importers.read(path)
    equal(imported, graph, meant)
    assert imported.arguments["padding"] == "keras"


def test_the_order_of_the_arrays_of_a_layer_does_not_matter(tmp_path):
    graph, _ = network(alpha=0.1)

    def turn(model):
        for group in model["weightsManifest"]:
            group["weights"].reverse()
            at = group["paths"][0]
            sizes = [4 * int(np.prod(w["shape"])) for w in reversed(group["weights"])]
            data, ends = (tmp_path / at).read_bytes(), np.cumsum([0, *sizes])
            (tmp_path / at).write_bytes(b"".join([data[a:b] for a, b in itertools.pairwise(ends)][::-1]))

    path, meant = write(tmp_path, graph, groups="each", change=turn)
    equal(importers.read(path), graph, meant)


CHANGES = {
    "a path": (lambda m: m["weightsManifest"][0]["paths"].__setitem__(0, "../group1-shard1of1.bin"), "only files beside it"),
    "an absolute path": (lambda m: m["weightsManifest"][0]["paths"].__setitem__(0, "/etc/passwd"), "only files beside it"),
    "an address": (lambda m: m["weightsManifest"][0]["paths"].__setitem__(0, "https://example.com/x"), "only files beside it"),
    "a missing shard": (lambda m: m["weightsManifest"][0]["paths"].append("more.bin"), "'more.bin' beside it, which is not there"),
    "no shard": (lambda m: m["weightsManifest"][0]["paths"].clear(), "bytes more than its shards hold"),
    "a shard twice": (lambda m: m["weightsManifest"][0]["paths"].append("group1-shard1of1.bin"), "lists 'group1-shard1of1.bin' twice"),
    "a smaller shape": (lambda m: m["weightsManifest"][0]["weights"][0]["shape"].__setitem__(0, 1), "does not fit"),
    "a huge shape": (lambda m: m["weightsManifest"][0]["weights"][0].update(shape=[1 << 30, 1 << 30]), "arrays of .* bytes in one group"),
    "a shape below 0": (lambda m: m["weightsManifest"][0]["weights"][0].update(shape=[-1]), r"of shape \[-1\]"),
    "a shape of texts": (lambda m: m["weightsManifest"][0]["weights"][0].update(shape=["3"]), r"of shape \['3'\]"),
    "an array twice": (lambda m: m["weightsManifest"][0]["weights"][1].update(name="conv1/kernel"), "two arrays called 'conv1/kernel'"),
    "texts": (lambda m: m["weightsManifest"][0]["weights"][0].update(dtype="string"), "as string, expected float32"),
    "whole numbers": (lambda m: m["weightsManifest"][0]["weights"][0].update(dtype="int32"), "layer 'conv1'"),
    "another quantisation": (lambda m: m["weightsManifest"][0]["weights"][0].update(quantization={"dtype": "int4"}), "as int4"),
    "no scale": (lambda m: m["weightsManifest"][0]["weights"][0].update(quantization={"dtype": "uint8", "min": 0}), "scale and minimum"),
    "a list for a group": (lambda m: m["weightsManifest"].__setitem__(0, []), "is not what TensorFlow.js writes"),
    "no manifest": (lambda m: m.pop("weightsManifest"), "without a weightsManifest"),
    "a graph model": (lambda m: m.update(format="graph-model"), "is a graph model"),
    "a frozen graph": (lambda m: m.update(modelTopology={"node": []}), "is a graph model"),
    "no topology that can be read": (lambda m: m.update(modelTopology={"model_config": [1]}), "it is a Keras None"),
}


@pytest.mark.parametrize("how", CHANGES)
def test_what_is_wrong_with_a_model_json_is_said(tmp_path, how):
    change, says = CHANGES[how]
    path, _ = write(tmp_path, network(alpha=0.1)[0], change=change)
    with pytest.raises(MinitlError, match=says) as error:
        importers.read(path)
    assert "model.json" in str(error.value)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_shard_that_is_a_link_or_too_long_is_not_read(tmp_path):
    path, _ = write(tmp_path, network(alpha=0.1)[0])
    shard = tmp_path / "group1-shard1of1.bin"
    with open(shard, "ab") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(MinitlError, match="has 1099511627776 bytes, expected at most"):
        importers.read(path)
    shard.unlink()
    shard.symlink_to("/etc/passwd")
    with pytest.raises(MinitlError, match="is a link"):
        importers.read(path)


def test_json_that_is_no_model_is_refused(tmp_path):
    for text in ('{"a": 1}', "{" * 100_000, '{"weightsManifest": 3}', "{}", '{"a": ' + "9" * 5000 + "}", "{\xff"):
        (tmp_path / "x.json").write_text(text, encoding="latin-1")
        with pytest.raises(MinitlError, match=r"x.json"):
            importers.read(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b'{"a":"' + b" " * (1 << 24) + b'"}')
    with pytest.raises(MinitlError, match="at most 16777216"):
        importers.read(tmp_path / "x.json")


def damage(folder, seeds):
    """(read, refused) of damaged copies of a model.json, its shards as they were."""
    data, counts = write(folder, network(alpha=0.1)[0], topology=None, dtype="uint8")[0].read_bytes(), [0, 0]
    for seed in seeds:
        (folder / "model.json").write_bytes(mutate(data, random.Random(seed)))
        try:
            importers.read(folder / "model.json")
            counts[0] += 1
        except MinitlError as error:
            counts[1] += 1
            assert str(error).isprintable() and len(str(error)) < 600, seed
    return counts


def test_damaged_model_jsons_raise_nothing_but_our_error(tmp_path):
    print("read and refused:", damage(tmp_path, range(200)))


@pytest.mark.slow
def test_ten_thousand_damaged_model_jsons_raise_nothing_but_our_error(tmp_path):
    print("read and refused:", damage(tmp_path, range(1000, 11_000)))


# ---- tarballs


def tarball(path, files, **entry):
    """A .tgz of {name: bytes}; entry: attributes of every entry."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in entry.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return path


def published(tmp_path):
    """(path, arrays): a tarball like TensorFlow's."""
    graph, arrays = network(batch_norm=False)
    data = tflite(graph).bytes()
    files = {
        "./": b"",
        "./net.ckpt.data-00000-of-00001": os.urandom(700_000),
        "./net_eval.pbtxt": b"node {}\n" * 10_000,
        "./net.tflite": data,
    }
    return tarball(tmp_path / "net.tgz", files), arrays


def test_the_tflite_in_a_tarball_is_read_and_nothing_is_unpacked(tmp_path):
    path, arrays = published(tmp_path)
    imported = importers.read(path)
    assert all(np.array_equal(imported.arrays[name], array) for name, array in arrays.items())
    assert imported.provenance["inside"] == "./net.tflite" and imported.provenance["file"] == "net.tgz"
    assert os.listdir(tmp_path) == ["net.tgz"]


def test_what_is_wrong_with_a_tarball_is_said(tmp_path):
    data = tflite(network(batch_norm=False)[0]).bytes()
    path = tmp_path / "x.tgz"
    with pytest.raises(MinitlError, match=r"holds no .tflite.*: a.ckpt"):
        importers.read(tarball(path, {"a.ckpt": b"1"}))
    with pytest.raises(MinitlError, match=r"holds a.tflite and b.tflite"):
        importers.read(tarball(path, {"a.tflite": data, "b.tflite": data}))
    with pytest.raises(MinitlError, match=r"a.tflite in it is no TensorFlow Lite file"):
        importers.read(tarball(path, {"a.tflite": b"text"}))
    with pytest.raises(MinitlError, match=r"holds no .tflite"):
        importers.read(tarball(path, {"a.tflite": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"))
    with pytest.raises(MinitlError, match=r"no .tgz of a published network"):
        importers.read(tarball(path, {f"{i}": b"" for i in range(1001)}))
    for plain in (b"no archive" * 100, b"\xff" * 2048):
        path.write_bytes(gzip.compress(plain))
        with pytest.raises(MinitlError, match=r"no .tgz of a published network"):
            importers.read(path)
    whole = tarball(path, {"a.tflite": data}).read_bytes()
    for cut in (20, 3000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(MinitlError, match=r"cut off|ends inside"):
            importers.read(path)
    path.write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])  # the checksum
    with pytest.raises(MinitlError, match="cannot be unpacked"):
        importers.read(path)


def test_a_bomb_is_refused_before_it_has_unfolded(tmp_path):
    path = tmp_path / "bomb.tgz"
    path.write_bytes(gzip.compress(header(1 << 32) + bytes(20 << 20)))
    with pytest.raises(MinitlError, match="unpacks to more than 50 times"):
        importers.read(path)


def header(size):
    info = tarfile.TarInfo("a.tflite")
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_tarballs_raise_nothing_but_our_error(tmp_path, count):
    data = tarball(
        tmp_path / "x.tgz", {"a.pb": b"1" * 3000, "a.tflite": tflite(network(alpha=0.1, batch_norm=False)[0]).bytes()}
    ).read_bytes()
    plain = gzip.decompress(data)
    read = 0
    for seed in range(count):
        rng = random.Random(seed)
        (tmp_path / "x.tgz").write_bytes(mutate(data, rng) if seed % 2 else gzip.compress(mutate(plain[:5000], rng) + plain[5000:], 1))
        try:
            importers.read(tmp_path / "x.tgz")
            read += 1
        except MinitlError as error:
            assert str(error).isprintable() and len(str(error)) < 600, seed
    print(f"of {count} damaged tarballs {read} were read")
