"""Real weights, real photos: what the project promises, measured end to end and printed."""

import csv
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, WEIGHTS, needs_shared

import minitl
from minitl import emit_c, folders, qemu, transfer
from minitl.cli import main
from minitl.images import read_photos

pytestmark = needs_shared

STRICT = ["-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def pixels(paths, recipe):
    return np.stack([found for _, found in read_photos(paths, recipe)])


def train_three(weights, photos, cache):
    """Mean accuracies of three seeds, (float, int8), and the last run."""
    backbone = minitl.load(WEIGHTS / weights)
    runs = [transfer.train(backbone, DATA / photos, cache=cache, seed=seed) for seed in range(3)]
    accuracy = [[run.report["val"][kind]["accuracy"] for run in runs] for kind in ("float", "int8")]
    print(f"{weights} on {photos}: float {np.round(accuracy[0], 4)}, int8 {np.round(accuracy[1], 4)}")
    return np.mean(accuracy[0]), np.mean(accuracy[1]), runs


# ---- foreign weights compute what their makers meant


def test_vww_float_equals_litert_on_random_and_real_images():
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    model = minitl.load(WEIGHTS / "vww_96_float.tflite")
    paths = sorted((DATA / "person" / "val").rglob("*.jpg"))[::4]
    x = np.concatenate([model.recipe.normalise(pixels(paths, model.recipe)), np.random.default_rng(0).random((16, 96, 96, 3), np.float32)])
    theirs = litert.Interpreter(str(WEIGHTS / "vww_96_float.tflite"))
    theirs.allocate_tensors()
    worst = 0.0
    for image in x:
        theirs.set_tensor(theirs.get_input_details()[0]["index"], image[None])
        theirs.invoke()
        probabilities = theirs.get_tensor(theirs.get_output_details()[0]["index"])
        logits = model.forward(image[None]).astype(np.float64)
        ours = np.exp(logits - logits.max())
        worst = max(worst, np.abs(ours / ours.sum() - probabilities).max())
    print(f"largest difference to LiteRT on {len(paths)} photos and 16 random images: {worst:.2e}")
    assert worst < 1e-5


def test_the_keras_file_and_the_tflite_file_of_one_network_agree():
    a, b = minitl.load(WEIGHTS / "vww_96.h5"), minitl.load(WEIGHTS / "vww_96_float.tflite")
    x = np.random.default_rng(1).random((8, 96, 96, 3), np.float32)
    difference = np.abs(a.forward(x) - b.forward(x)).max()
    print(f"largest difference of logits: {difference:.2e}")
    assert difference < 1e-4


@pytest.mark.parametrize(
    ("weights", "published"),
    [("mobilenet_v1_0.25_128_quant", 44.8), ("mobilenet_v2_1.0_224_quant", 88.2), ("tf2_mobilenet_v2_1.0_224_ptq", 85.8)],
)
def test_dequantised_networks_reach_the_accuracy_of_the_quantised_ones(weights, published):
    model = minitl.load(WEIGHTS / f"{weights}.tflite")
    assert model.arguments["classes"] == 1001
    rows = list(csv.reader((DATA / "imagenet-sample" / "labels.csv").open()))
    truth = np.array([int(row[1]) for row in rows]) + 1  # class 0 is 'background'
    answers = []
    for _, photo in read_photos([DATA / "imagenet-sample" / row[0] for row in rows], model.recipe):
        answers.append(model.forward(model.recipe.normalise(photo[None])).argmax())
    top1 = 100 * (np.array(answers) == truth).mean()
    print(f"{weights}: top-1 {top1:.1f} %, LiteRT {published} %")
    assert abs(top1 - published) <= 1.5


# ---- transfer


@pytest.mark.parametrize(
    ("weights", "least"),
    [
        ("mobilenet_v1_0.25_128_quant.tflite", 0.85),
        ("mobilenet_2_5_224_tf_no_top.h5", 0.91),
        pytest.param("mobilenet_v2_1.0_224_quant.tflite", 0.95, marks=pytest.mark.slow),
        pytest.param("tf2_mobilenet_v2_1.0_224_ptq.tflite", 0.95, marks=pytest.mark.slow),
    ],
)
def test_monkeys_are_learned_and_int8_loses_at_most_one_point(cache, weights, least):
    accuracy, int8, _ = train_three(weights, "monkeys", cache)
    print(f"lost by quantisation: {100 * (accuracy - int8):.2f} points, the mean of three seeds")
    assert accuracy >= least
    assert accuracy - int8 <= 0.010


def test_fruit_is_learned_without_a_mistake(cache):
    accuracy, _, runs = train_three("mobilenet_v1_0.25_128_quant.tflite", "fruit", cache)
    print("missed:", [[mistake["file"] for mistake in run.report["mistakes"]] for run in runs])
    assert accuracy == 1


@pytest.mark.parametrize(("weights", "least"), [("mobilenet_v1_0.25_128_quant.tflite", 0.75), ("vww_96.h5", 0.78)])
def test_person_or_no_person(cache, weights, least):
    accuracy, _, _ = train_three(weights, "person", cache)
    assert accuracy >= least


# ---- the header, on every validation photo of the monkeys


@pytest.fixture(scope="session")
def monkeys(cache, tmp_path_factory):
    """A trained model, its header, its vectors, and a C program that answers for inputs.bin."""
    folder = tmp_path_factory.mktemp("monkeys")
    weights = str(WEIGHTS / "mobilenet_v1_0.25_128_quant.tflite")
    assert main(["train", str(DATA / "monkeys"), "--weights", weights, "-o", str(folder / "out"), "--cache", str(cache)]) == 0
    assert main(["vectors", str(folder / "out" / "model.npz"), str(DATA / "monkeys"), "-o", str(folder)]) == 0
    (folder / "main.c").write_text(
        """#define MODEL_IMPLEMENTATION
#include "out/model.h"
#include <stdio.h>
int main(void) {
    static int8_t image[MODEL_INPUT_HEIGHT * MODEL_INPUT_WIDTH * MODEL_INPUT_CHANNELS];
    int8_t logits[MODEL_CLASSES];
    while (fread(image, 1, sizeof image, stdin) == sizeof image) {
        if (model_run(image, logits) != 0 || fwrite(logits, 1, sizeof logits, stdout) != sizeof logits) { return 1; }
    }
    return 0;
}
"""
    )
    return folder


@pytest.mark.parametrize(
    "compiler",
    [
        ["gcc", "-std=c99", *STRICT],
        ["g++", "-x", "c++", "-std=c++11", *STRICT],
        ["gcc", "-std=c99", *STRICT, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    ],
    ids=["gcc", "g++", "sanitizers"],
)
def test_the_header_answers_as_python_for_every_validation_photo(monkeys, compiler, tmp_path):
    program = tmp_path / "program"
    subprocess.run([*compiler, "main.c", "-o", str(program)], cwd=monkeys, check=True)
    theirs = subprocess.run([str(program)], stdin=(monkeys / "inputs.bin").open("rb"), capture_output=True, check=True)
    assert theirs.stderr == b""
    expected = (monkeys / "logits.bin").read_bytes()
    assert len(expected) == 272 * 10
    assert theirs.stdout == expected


def test_a_simulated_cortex_m4_answers_as_python_for_every_validation_photo(monkeys):
    if why := qemu.unavailable("cortex-m4"):
        pytest.skip(why)
    images = np.frombuffer((monkeys / "inputs.bin").read_bytes(), np.int8).reshape(272, -1)
    found = qemu.logits((monkeys / "out" / "model.h").read_text(), "model", "cortex-m4", images)
    print(f"{found.size} logits of {len(found)} photos on the core")
    assert found.tobytes() == (monkeys / "logits.bin").read_bytes() and found.shape == (272, 10)


def test_the_header_is_the_exported_one(monkeys, tmp_path):
    assert main(["export", str(monkeys / "out" / "model.npz"), "-o", str(tmp_path / "model.h")]) == 0
    assert (tmp_path / "model.h").read_bytes() == (monkeys / "out" / "model.h").read_bytes()
    assert emit_c.identifier_from("model.h") == "model"


def test_evaluate_repeats_what_training_printed(monkeys, capsys):
    import json

    report = json.loads((monkeys / "out" / "report.json").read_text())
    for flags, kind in (([], "float"), (["--int8"], "int8")):
        assert main(["evaluate", str(monkeys / "out" / "model.npz"), str(DATA / "monkeys"), "--json", *flags]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["accuracy"] == report["val"][kind]["accuracy"]
        assert found["count"] == 272
        assert found["confusion"] == report["val"][kind]["confusion"]


def test_nothing_of_the_users_was_changed(cache, tmp_path):
    import hashlib
    import shutil

    photos = tmp_path / "fruit"
    shutil.copytree(DATA / "fruit", photos)

    def state(root: Path):
        return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}

    before = state(photos)
    weights = str(WEIGHTS / "mobilenet_v1_0.25_128_quant.tflite")
    assert main(["train", str(photos), "--weights", weights, "-o", str(tmp_path / "out"), "--cache", str(cache)]) == 0
    assert state(photos) == before


def test_folders_agree_with_the_listing_of_the_data(cache):
    listing = folders.list_folder(DATA / "monkeys")
    assert len(listing.classes) == 10 and len(listing.items) == 1097 + 272 and not listing.skipped
