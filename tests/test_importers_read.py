"""importers.read: files of any kind and in any state go in, a network or one sentence comes out."""

import hashlib
import os
import random

import numpy as np
import pytest
from conftest import WEIGHTS, needs_shared
from importer_files import keras_config, keras_weights, mutate, network, tflite, write_keras
from PIL import Image

from minitl import importers
from minitl.errors import MinitlError

REAL = ["mobilenet_2_5_224_tf_no_top.h5", "vww_96.h5", "vww_96_int8.tflite", "mobilenet_v1_0.25_128_quant.tflite", "vww_96_float.tflite"]


def refusal(path):
    with pytest.raises(MinitlError) as error:
        importers.read(path)
    text = str(error.value)
    assert text.isprintable() and len(text) < 400
    return text


def test_what_is_no_weights_file_is_said_in_a_sentence(tmp_path):
    assert "no such file" in refusal(tmp_path / "nowhere.h5")
    assert "folder" in refusal(tmp_path)
    assert "0 bytes" in refusal((tmp_path / "empty.h5").touch() or tmp_path / "empty.h5")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", tmp_path / "picture.h5")
    assert "a PNG picture" in refusal(tmp_path / "picture.h5")
    for name, data, says in [
        ("a.h5", b"<!DOCTYPE html>", "download went wrong"),
        ("b.h5", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("c.tflite", b"PK\3\4 rest", "ZIP archive"),
        ("d.tflite", b"x", "begins with b'x'"),
        ("e.tflite", b"\xff\xff\xff\x7fTFL3", "damaged or cut off"),
        ("f.h5", b"\x89HDF\r\n\x1a\n", "cut off"),
    ]:
        (tmp_path / name).write_bytes(data)
        assert says in refusal(tmp_path / name)
    assert "embedded null" in refusal("a\0b") or "cannot read" in refusal("a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.h5")
        assert "no ordinary file" in refusal(tmp_path / "pipe.h5")


def test_the_format_is_known_by_the_content_and_the_origin_is_recorded(tmp_path):
    graph, arrays = network(batch_norm=False)
    path = tmp_path / "called.h5"
    path.write_bytes(tflite(graph).bytes())
    imported = importers.read(path)
    assert imported.provenance["format"] == "tflite" and imported.provenance["file"] == "called.h5"
    assert imported.provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(np.array_equal(imported.arrays[name], array) for name, array in arrays.items())
    assert all(array.flags.owndata or array.base is not None for array in imported.arrays.values())


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_every_cut_of_a_real_file_is_refused(tmp_path, name):
    data = (WEIGHTS / name).read_bytes()
    labels = data.rfind(b"PK\1\2")  # the archive of labels at the end may be missing: the network is whole without it
    end = len(data) - 1 if labels < 0 else data.index(b"PK\3\4", labels - 40_000) - 1
    for cut in np.linspace(1, end, 25).astype(int):
        (tmp_path / "x").write_bytes(data[:cut])
        refusal(tmp_path / "x")


def fuzz(path, data, seeds):
    """(read, refused) of damaged copies; anything but MinitlError fails the test."""
    counts = [0, 0]
    for seed in seeds:
        path.write_bytes(mutate(data, random.Random(seed)))
        try:
            imported = importers.read(path)
            counts[0] += 1
            assert all(np.isfinite(array).all() for array in imported.arrays.values()), seed
        except MinitlError as error:
            counts[1] += 1
            assert str(error).isprintable() and len(str(error)) < 600, seed
    return counts


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_damaged_real_files_raise_nothing_but_our_error(tmp_path, name):
    read, refused = fuzz(tmp_path / "x", (WEIGHTS / name).read_bytes(), range(60))
    print(f"{name}: of 60 damaged copies {refused} were refused, {read} read")


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_two_thousand_damaged_copies_of_each_real_file_raise_nothing_but_our_error(tmp_path, name):
    read, refused = fuzz(tmp_path / "x", (WEIGHTS / name).read_bytes(), range(1000, 3000))
    print(f"{name}: of 2000 damaged copies {refused} were refused, {read} read")


def test_damaged_keras_files_raise_nothing_but_our_error(tmp_path):
    pytest.importorskip("h5py")
    graph, _ = network("mobilenet_v1", alpha=0.1)
    for i, config in enumerate([None, keras_config(graph)]):
        data = write_keras(tmp_path / f"{i}.h5", keras_weights(graph), config, vlen=bool(i)).read_bytes()
        print(fuzz(tmp_path / "x", data, range(100)))
