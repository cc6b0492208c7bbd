"""The list of weights of others: facts that have the form of facts, names that say what they name, and the command that shows them."""

import hashlib
import json
import re
from urllib.parse import urlsplit

import pytest
from conftest import WEIGHTS, needs_shared

from minitl import MinitlError, cli, model
from minitl.architectures import build
from minitl.manifest import ENTRIES


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINITL_CACHE", str(tmp_path / "cache"))


def test_every_entry_has_the_form_of_a_fact():
    assert len(ENTRIES) > 140 and len({e.url for e in ENTRIES.values()}) == len(ENTRIES)
    for name, entry in ENTRIES.items():
        assert name == entry.name and f"{entry.architecture}_{entry.alpha}_{entry.side}" in name and re.fullmatch(r"[a-z0-9_.-]+", name)
        for url in (entry.url, entry.mirror or entry.url):
            assert urlsplit(url).scheme == "https" and re.fullmatch(r"[\w./:@-]+", url, re.ASCII), url
        assert entry.checksum is None or re.fullmatch(r"sha256:([0-9a-f]{64}|[0-9a-f]{8})|md5:[0-9a-f]{32}", entry.checksum), name
        assert entry.accuracy is None or 30 < entry.accuracy < 80
        assert entry.format in ("keras-h5", "tflite", "torch", "safetensors", "onnx", "tfjs", "tarball")
        build(entry.architecture, alpha=entry.alpha, input_shape=[entry.side, entry.side, 3])


def test_known_addresses_are_what_the_patterns_make():
    google = "https://storage.googleapis.com/"
    for name, url in {
        "keras-mobilenet_v1_0.75_160": google + "tensorflow/keras-applications/mobilenet/mobilenet_7_5_160_tf_no_top.h5",
        "keras-mobilenet_v2_1.0_224-top": google
        + "tensorflow/keras-applications/mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5",
        "tf-mobilenet_v2_0.35_96": google + "mobilenet_v2/checkpoints/mobilenet_v2_0.35_96.tgz",
        "torchvision-mobilenet_v2_1.0_224-v2": "https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth",
        "tfjs-mobilenet_v1_0.5_224": google + "tfjs-models/tfjs/mobilenet_v1_0.50_224/model.json",
    }.items():
        assert ENTRIES[name].url == url


@needs_shared
def test_real_files_have_the_sizes_and_checksums_of_the_list():
    files = {entry.url.rsplit("/")[-1]: entry for entry in ENTRIES.values()}
    checked = 0
    for path in WEIGHTS.iterdir():
        if entry := files.get(path.name):
            kind, digits = entry.checksum.split(":")
            assert path.stat().st_size == entry.bytes and hashlib.new(kind, path.read_bytes()).hexdigest() == digits, path.name
            checked += 1
    assert checked >= 8


def test_the_command_lists_all_or_what_has_a_word(capsys):
    assert cli.main(["weights"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(ENTRIES) + 1
    assert cli.main(["weights", "Coral"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all(line.startswith("coral-") and "SHA-256" in line for line in lines[1:])
    assert cli.main(["weights", "safetensors", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["weights"]
    assert len(rows) == 2 and rows[0]["kept"] is None and rows[0]["bytes"] is None and rows[0]["accuracy"] == 75.39
    assert cli.main(["weights", "inception"]) == 1
    assert "no weights have 'inception'" in capsys.readouterr().err


def test_a_name_that_was_not_fetched_says_how(capsys, tmp_path):
    with pytest.raises(MinitlError, match="minitl weights pull coral-mobilenet_v1"):
        model.find("coral-mobilenet_v1_0.25_128-quant")
    assert cli.main(["train", str(tmp_path), "--weights", "tf-mobilenet_v1_1.0_224", "-o", str(tmp_path / "out")]) == 1
    assert "not been fetched yet" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert cli.main(["weights", "pull", "mobilenet_v2_0.35_96"]) == 1
    assert "did you mean keras-mobilenet_v2_0.35_96" in capsys.readouterr().err
    for words in (["coral", "extra"], ["pull"], ["coral", "--to", "x"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["weights", *words])
        assert stop.value.code == 2
