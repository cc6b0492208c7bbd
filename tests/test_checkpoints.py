"""Stopping and going on: whatever kills a run, a continued one ends with the same files, and a checkpoint of another run is refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_models
from PIL import Image

from minitl import checkpoints, quick, transfer
from minitl.augment import Augmentation
from minitl.checkpoints import Checkpoint, Stopped
from minitl.errors import MinitlError
from minitl.model import find
from minitl.weights import pack, unpack


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """36 pictures of three colours, with noise."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label, name in enumerate(("apple", "banana", "cucumber")):
        (folder / name).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 160, (40, 40, 3))
            pixels[..., label] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


WAYS = {
    "head": {},
    "two": {"fine_tune": "2", "epochs": 3},
    "gradual": {"fine_tune": "3", "gradual": True, "epochs": 6, "average": 0.9, "optimiser": "adamw", "rate": 0.001},
    "scratch": {"freeze": "none", "epochs": 3, "mixup": 0.2, "smoothing": 0.1, "balance": True},
    "rounded": {"max_int8_drop": 0.0, "epochs": 3, "fine_tune": "1"},
    "hidden": {"hidden": (8,), "dropout": 0.3, "epochs": 20},
    "auto": {"freeze": "auto", "epochs": 2},
}


def train(photos, checkpoint, resume=False, pretrained=True, **options):
    backbone = find(small_models.SMALL)
    small_models.settle(backbone.graph, backbone.recipe.normalise(small_models.pixels(8)))
    if pretrained:
        backbone.note(source="elsewhere")
    return transfer.train(backbone, photos, checkpoint=checkpoint, resume=resume, **options)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bytes(photos, tmp_path, monkeypatch, way):
    monkeypatch.setattr(transfer, "points_lost", lambda both: 5.0)
    options = WAYS[way] | {"pretrained": way != "scratch", "batch": 8, "patience": 4}
    expected = train(photos, None, **options)
    monkeypatch.setattr(quick, "MOST_STEPS", 1)  # the classifier, too, may be stopped after any step
    path, rng, stops = tmp_path / "checkpoint.npz", random.Random(0), 0
    for _ in range(40):
        left = rng.randint(1, 6)

        def keeper(self, number, graph, real=Checkpoint.keeper):
            keep = real(self, number, graph)

            def stopping(at):
                nonlocal left
                left -= 1
                self._asked = left == 0
                keep(at)

            return stopping

        monkeypatch.setattr(Checkpoint, "keeper", keeper)
        try:
            run = train(photos, path, resume=True, **options)
            break
        except Stopped:
            stops += 1
    run.checkpoint.remove()
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
    print(f"{way}: stopped {stops} times")
    assert stops >= 2 and run.model.content().content_hash() == expected.model.content().content_hash()
    assert [line["val_loss"] for line in run.report["history"]] == [line["val_loss"] for line in expected.report["history"]]


def command(photos, out, *more):
    weights = "random:mobilenet_v1_0.2_32"
    words = ["--weights", weights, "--freeze", "none", "--epochs", "40", "--augment", "default", "-o", str(out), "--no-cache", *more]
    return [sys.executable, "-m", "minitl", "train", str(photos), *words]


def test_a_killed_run_goes_on_to_the_same_files(photos, tmp_path):
    """kill -9 and Ctrl-C at random moments; checkpoints are written after every step, so that the moments differ."""
    eager = "import sys; from minitl import checkpoints, cli; checkpoints.SECONDS = 0.0; sys.exit(cli.main(sys.argv[1:]))"
    arguments = command(photos, tmp_path / "killed", "--resume")[3:]
    whole = subprocess.run(command(photos, tmp_path / "whole"), capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    rng, done = random.Random(1), 0
    for kill in range(10):
        process = subprocess.Popen([sys.executable, "-c", eager, *arguments], stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        target = tmp_path / "killed" / "checkpoint.npz"
        before = target.stat().st_mtime_ns if target.exists() else 0
        while process.poll() is None and time.monotonic() < until and (not target.exists() or target.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL if kill % 2 or os.name == "nt" else signal.SIGINT)
        process.communicate()
        done += process.returncode != 0
    print(f"{done} kills met a run that was going on")
    last = subprocess.run([sys.executable, "-c", eager, *arguments], capture_output=True, text=True)
    assert last.returncode == 0 and done >= 3, last.stderr
    for file in ("model.npz", "model.h"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    assert not (tmp_path / "killed" / "checkpoint.npz").exists()


# ---- files that are not ours, not whole, or of another run


def stopped(photos, path, monkeypatch, **options):
    """A checkpoint of a run that was stopped in its third step."""
    steps = []

    def keeper(self, number, graph, real=Checkpoint.keeper):
        keep = real(self, number, graph)

        def stopping(at):
            steps.append(1)
            self._asked = len(steps) == 3
            keep(at)

        return stopping

    monkeypatch.setattr(Checkpoint, "keeper", keeper)
    with pytest.raises(Stopped):
        train(photos, path, **options)
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("then", "what"),
    [
        ({"seed": 1}, "settings"),
        ({"epochs": 7}, "settings"),
        ({"fine_tune": "1"}, "settings"),
        ({"hidden": (4,)}, "settings"),
        ({"val": "0.4"}, "photos"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(photos, tmp_path, monkeypatch, then, what):
    path = tmp_path / "checkpoint.npz"
    stopped(photos, path, monkeypatch)
    with pytest.raises(MinitlError, match=rf"of another run: it was made with other .*({what}).*leave --resume out"):
        train(photos, path, resume=True, **then)


def test_the_settings_of_a_run_are_compared_to_the_last_digit(photos, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.npz"
    stopped(photos, path, monkeypatch, augment=Augmentation(mirror=0.3))
    with pytest.raises(MinitlError, match="of another run: it was made with other settings"):
        train(photos, path, resume=True, augment=Augmentation(mirror=0.30000001))


def test_a_damaged_checkpoint_is_refused_in_words(photos, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.npz"
    stopped(photos, path, monkeypatch)
    whole = path.read_bytes()
    arrays = unpack(whole, "checkpoint")
    facts = json.loads(arrays[checkpoints.JSON].tobytes())
    without = {name: array for name, array in arrays.items() if not name.startswith("now/")}
    odd = dict(arrays) | {checkpoints.JSON: np.frombuffer(json.dumps(facts | {"histories": 3}).encode(), np.uint8)}
    for bad in (b"", b"text", whole[:100], whole[:-30], pack(without), pack(odd)):
        path.write_bytes(bad)
        with pytest.raises(MinitlError, match="checkpoint"):
            train(photos, path, resume=True)


NONSENSE = (None, True, -1, 1.5, "x", [], {}, [1], {"a": 1}, 10**30)


def test_whatever_a_checkpoint_claims_no_other_error_escapes(photos, tmp_path, monkeypatch):
    """Every entry of the JSON replaced by nonsense, arrays that are gone, of another shape, of another type."""
    path, options = tmp_path / "checkpoint.npz", {"epochs": 1, "average": 0.9, "optimiser": "adamw"}
    stopped(photos, path, monkeypatch, **options, batch=8)
    arrays = unpack(path.read_bytes(), "checkpoint")
    text = arrays.pop(checkpoints.JSON).tobytes()
    trial = {"depth": None, "accuracy": 0.5, "error": 0.1, "photos": 2, "seconds": 1.0}
    files = [(arrays, json.dumps(nonsense)) for nonsense in NONSENSE] + [(arrays, "[" * 100_000)]
    for number, (change, nonsense) in enumerate((change, nonsense) for change in range(60) for nonsense in NONSENSE):
        facts = json.loads(text) | {"trials": [dict(trial)], "histories": []}
        places = list(entries(facts))
        if change < len(places) and number % 8 == change % 8:
            holder, key = places[change]
            holder[key] = nonsense
            files.append((arrays, json.dumps(facts)))
    assert len(files) > 40
    for kind in ("now", "best", "average", "mean", "order"):
        name = next(name for name in arrays if name.startswith(kind))
        odd = (np.zeros(3, np.float32), np.zeros(arrays[name].shape, np.float16), np.full(arrays[name].shape, 255, np.uint8), None)
        files += [({k: array for k, array in (arrays | {name: bad}).items() if array is not None}, text.decode()) for bad in odd]
    refused = 0
    for other, words in files:
        path.write_bytes(pack(other | {checkpoints.JSON: np.frombuffer(words.encode(), np.uint8)}))
        try:
            train(photos, path, resume=True, batch=8, **options)
        except MinitlError as error:
            refused += 1
            assert "--resume" in str(error)
    print(f"{refused} of {len(files)} refused, the others were harmless")
    assert refused > len(files) / 2


def entries(facts):
    """(what holds it, its key or index) of everything in a JSON value, but for the hashes of what the run depends on."""
    for key, value in facts.items() if isinstance(facts, dict) else enumerate(facts):
        yield facts, key
        if isinstance(value, (dict, list)) and key != "depends":
            yield from entries(value)


def test_without_a_checkpoint_a_run_begins_anew_and_says_so(photos, tmp_path):
    said = []
    train(photos, tmp_path / "none.npz", resume=True, notify=transfer.Notify(say=said.append), epochs=2)
    assert "there is no checkpoint to go on from: beginning anew" in said


def test_a_disk_that_cannot_be_written_costs_the_checkpoint_and_not_the_run(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    folder = tmp_path / "gone"
    folder.mkdir()
    folder.rmdir()
    run = train(photos, folder / "checkpoint.npz", epochs=2)
    assert any("cannot be saved on its way" in note for note in run.report["notes"])


def test_a_photo_that_vanishes_half_way_is_named(photos, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(photos, tmp_path / "photos")
    real = transfer.read_pictures

    def vanish(paths, *rest):
        Path(paths[3]).unlink()
        return real(paths, *rest)

    monkeypatch.setattr(transfer, "read_pictures", vanish)
    with pytest.raises(MinitlError, match=r"\.png has vanished or changed since it was first read"):
        train(tmp_path / "photos", None, fine_tune="1", epochs=1, augment=Augmentation.parse("mirror"))
