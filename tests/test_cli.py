"""The command line: every command does what its help says, every mistake gets a sentence and its exit code, nothing is ever half done."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import importer_files
import numpy as np
import pytest
import small_models
from conftest import DATA, WEIGHTS, needs_shared
from PIL import Image
from test_images import ordinary_user, unix

import minitl
from minitl import MinitlError, cli, jit, qemu
from minitl.cli import OUTPUTS, main
from minitl.demo_pictures import draw_photos
from minitl.images import read_photo
from minitl.importers import tflite_int8
from minitl.model import BUNDLED, VIEWS

ROOT = Path(__file__).resolve().parents[1]
BACKBONE = ["--weights", small_models.SMALL]


@pytest.fixture(scope="module", autouse=True)
def private_cache(tmp_path_factory):
    """Tests leave the cache of the user alone, but for compiled kernels, which take long."""
    kept, kernels = os.environ.get("MINITL_CACHE"), jit.kernels_folder()
    os.environ["MINITL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    if kernels and os.name == "posix":
        Path(os.environ["MINITL_CACHE"], "kernels").symlink_to(kernels)
    yield Path(os.environ["MINITL_CACHE"])
    os.environ.pop("MINITL_CACHE")
    if kept is not None:
        os.environ["MINITL_CACHE"] = kept


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fruit photos")
    draw_photos(folder, 8, size=48)
    return folder


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """The folder that one training wrote."""
    out = tmp_path_factory.mktemp("trained") / "out"
    assert main(["train", str(photos), "-o", str(out), "--epochs", "5", *BACKBONE]) == 0
    return out


class Said:
    """Exit code, output and errors of one command."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err
        assert "Traceback" not in out + err, err

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def sentence(self):
        """The last line of the errors, which says what is wrong."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


@pytest.fixture
def run(capsys):
    """Runs a command in this process."""

    def command(*words):
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        return Said(code, *capsys.readouterr())

    return command


def started(*words, code="import sys; from minitl.cli import main; sys.exit(main())", **options):
    """A process that runs a command, or other code with the same arguments."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], env=environment, **streams)


def finished(process, timeout=60):
    out, err = process.communicate(timeout=timeout)
    return Said(process.returncode, (out or b"").decode(), (err or b"").decode())


def content(folder):
    """{name: bytes} of all files below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def fails(said, code, *words):
    """One clear sentence that starts with the command, and the exit code."""
    assert said.code == code, said.err
    assert said.sentence.startswith("minitl ") and len(said.sentence) < 600, said.err
    for word in words:
        assert str(word) in said.sentence, said.sentence
    return said


# ---- train


def test_train_writes_four_files_and_says_how_good_it_is(run, photos, tmp_path):
    said = run("train", photos, "-o", tmp_path / "new" / "out", "--epochs", 5, *BACKBONE)
    assert said.code == 0 and sorted(content(tmp_path)) == sorted(f"new/out/{name}" for name in OUTPUTS)
    report = json.loads((tmp_path / "new/out/report.json").read_text("utf-8"))
    shares = [f"{100 * report['val'][kind]['accuracy']:.1f} % {kind}" for kind in ("float", "int8")]
    assert said.out.startswith(f"validation accuracy: {shares[0]}, {shares[1]} ({report['val']['count']} photos)\n")
    assert all(str(tmp_path / "new/out" / name) in said.out for name in OUTPUTS)
    Image.open(tmp_path / "new/out/report.png").load()
    assert "#define MODEL_IMPLEMENTATION" in (tmp_path / "new/out/model.h").read_text()
    assert minitl.load(tmp_path / "new/out/model.npz").classes == ["apple", "banana", "cucumber"]


def test_train_json_is_the_report_and_nothing_else(run, photos, tmp_path):
    said = run("train", photos, "-o", tmp_path, "--epochs", 3, "--json", *BACKBONE)
    assert said.code == 0 and said.err == ""
    assert said.json == json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert {"classes", "history", "best_epoch", "val", "mistakes", "skipped", "settings", "seconds"} <= said.json.keys()
    assert len(said.json["history"]) == 3 and said.json["settings"]["seed"] == 0


def test_the_same_seed_writes_the_same_bytes(run, photos, trained, tmp_path):
    """Other folders, names and times of the photos, other order on the disk, no cache, another process: the same model and header."""
    same = {name: content(trained)[name] for name in ("model.npz", "model.h")}
    moved = tmp_path / "moved"
    for path in random.Random(0).sample(sorted(photos.rglob("*.jpg")), 24):
        (moved / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, moved / path.parent.name / f"{path.stem[-4:]} of {path.parent.name}.JPEG")
    assert run("train", moved, "-o", tmp_path / "a", "--epochs", 5, "--no-cache", *BACKBONE).code == 0
    elsewhere = started(
        "train", os.path.relpath(photos, tmp_path), "-o", "b", "--epochs", 5, "--seed", 0, *BACKBONE,
        cwd=tmp_path, env={"PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo"},
    )  # fmt: skip
    assert finished(elsewhere).code == 0
    assert run("train", photos, "-o", tmp_path / "c", "--epochs", 5, "--seed", 1, *BACKBONE).code == 0
    for name, data in same.items():
        assert (tmp_path / "a" / name).read_bytes() == data, name
        assert (tmp_path / "b" / name).read_bytes() == data, name
        assert (tmp_path / "c" / name).read_bytes() != data, name


def test_nothing_of_the_users_is_changed(run, photos, tmp_path):
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    (copy / "apple" / "bad.jpg").write_text("bad")
    state = lambda: {str(p): (p.stat().st_mtime_ns, p.is_dir() or p.read_bytes()) for p in sorted(copy.rglob("*"))}  # noqa: E731
    before = state()
    out = tmp_path / "out"
    assert run("train", copy, "-o", out, "--epochs", 2, *BACKBONE).code == 0
    (out / "mine.txt").write_text("mine")
    for words in (["train", copy, "-o", out, "--epochs", 2, *BACKBONE], ["evaluate", out / "model.npz", copy],
                  ["predict", out / "model.npz", copy], ["vectors", out / "model.npz", copy, "-o", tmp_path / "vectors"]):  # fmt: skip
        assert run(*words).code == 0
    assert state() == before and (out / "mine.txt").read_text() == "mine" and set(os.listdir(out)) == {*cli.OUTPUTS, "mine.txt"}


def test_train_uses_what_it_was_given(run, photos, tmp_path):
    said = run("train", photos, "-o", tmp_path, "--epochs", 2, "--rate", 0.01, "--batch", 4, "--seed", 9, "--freeze", "conv_pw_12",
               "--name", "fruit_2", "--json", *BACKBONE)  # fmt: skip
    settings = said.json["settings"]
    assert (settings["epochs"], settings["rate"], settings["batch"], settings["seed"]) == (2, 0.01, 4, 9)
    model = minitl.load(tmp_path / "model.npz")
    assert {node for node, _, _ in model.graph.trainable()} >= {"conv_dw_13", "conv_preds"} and "conv_pw_12" in model.graph.frozen
    assert "int fruit_2_run(const int8_t *image, int8_t *logits)" in (tmp_path / "model.h").read_text()
    again = run("train", photos, "-o", tmp_path / "more", "--epochs", 2, "--weights", tmp_path / "model.npz")
    assert again.code == 0  # a model of ours is a backbone, too


def test_val_is_a_share_a_folder_or_the_users_own(run, photos, tmp_path):
    half = run("train", photos, "-o", tmp_path / "o", "--epochs", 1, "--val", "0.5", "--json", *BACKBONE)
    assert half.json["val"]["count"] == 12
    other = tmp_path / "other"
    draw_photos(other, 2, seed=5, size=48)
    folder = run("train", photos, "-o", tmp_path / "o", "--epochs", 1, "--val", other, "--json", *BACKBONE)
    assert folder.json["val"]["count"] == 6 and folder.json["facts"]["training photos"] == 24
    shutil.copytree(photos, tmp_path / "divided" / "train")
    shutil.copytree(other, tmp_path / "divided" / "validation")
    own = run("train", tmp_path / "divided", "-o", tmp_path / "o", "--epochs", 1, "--json", *BACKBONE)
    assert own.json["val"]["count"] == 6
    measured = run("evaluate", tmp_path / "o" / "model.npz", tmp_path / "divided", "--json")
    assert measured.json["count"] == 6 and measured.json["accuracy"] == own.json["val"]["float"]["accuracy"]
    fails(run("train", tmp_path / "divided", "-o", tmp_path / "o", "--val", "0.2", *BACKBONE), 1, "own train and val")
    fails(run("train", photos, "-o", tmp_path / "o", "--val", photos, *BACKBONE), 1, "training photos too")
    for wrong in ("0", "1", "1.5", "-1", "nan", tmp_path / "nowhere"):
        fails(run("train", photos, "-o", tmp_path / "o", f"--val={wrong}", *BACKBONE), 1)


def test_a_second_run_reuses_the_features(run, photos, tmp_path):
    first = run("train", photos, "-o", tmp_path / "a", "--epochs", 2, "--cache", tmp_path / "cache", "--json", *BACKBONE)
    again = run("train", photos, "-o", tmp_path / "a", "--epochs", 2, "--cache", tmp_path / "cache", "--json", *BACKBONE)
    none = run("train", photos, "-o", tmp_path / "a", "--epochs", 2, "--no-cache", "--json", *BACKBONE)
    assert [said.json["features_reused"] for said in (first, again, none)] == [0, 24, 0]
    (tmp_path / "file").write_bytes(b"mine")
    said = run("train", photos, "-o", tmp_path / "a", "--epochs", 2, "--cache", tmp_path / "file", *BACKBONE)
    assert said.code == 0 and "features are not kept" in said.err and (tmp_path / "file").read_bytes() == b"mine"


NAMES_PROGRAM = """
#define MODEL_IMPLEMENTATION
#include "MODEL.H"
#include <stdio.h>
int main(void) { for (int i = 0; i < MODEL_CLASSES; i++) { puts(model_class_names[i]); } return 0; }
"""


def test_names_of_classes_may_be_anything_that_a_folder_can_be_called(run, photos, tmp_path):
    names = ["a b", "100 %s %d", 'O\'Neil "x"', "Käse 🧀", "-rf", "\\n*|??|", "日本", "{0}"]
    for i, name in enumerate(names):
        (tmp_path / "π photos 🙂" / name).mkdir(parents=True)
        for k, path in enumerate(sorted(photos.rglob("*.jpg"))[3 * i : 3 * i + 3]):
            shutil.copy(path, tmp_path / "π photos 🙂" / name / f"ü {k} %s.jpg")
    out = tmp_path / "öut %d"
    assert run("train", tmp_path / "π photos 🙂", "-o", out, "--epochs", 1, *BACKBONE).code == 0
    assert run("info", out / "model.npz", "--json").json["classes"] == sorted(names)
    found = run("evaluate", out / "model.npz", tmp_path / "π photos 🙂", "--json").json
    assert found["count"] == 24 and found["classes"] == sorted(names)
    said = run("predict", out / "model.npz", tmp_path / "π photos 🙂", "--top", 8)
    assert said.code == 0 and all(name in said.out.splitlines()[0] for name in names) and "ü 0 %s.jpg: " in said.out
    if shutil.which("gcc"):
        (tmp_path / "main.c").write_text(NAMES_PROGRAM.replace("MODEL.H", f"{out}/model.h"))
        subprocess.run(["gcc", "-std=c99", "-Wall", "-Werror", "main.c", "-o", "main"], cwd=tmp_path, check=True)
        assert subprocess.run([tmp_path / "main"], capture_output=True, check=True).stdout.decode().splitlines() == sorted(names)


# ---- evaluate and predict


def test_evaluate_counts_every_photo(run, trained, photos):
    said, exact = run("evaluate", trained / "model.npz", photos), run("evaluate", trained / "model.npz", photos, "--json")
    assert set(exact.json) == {"accuracy", "count", "classes", "confusion", "skipped", "neither", "notes"} and exact.json["count"] == 24
    model = minitl.load(trained / "model.npz")
    confusion = np.zeros((3, 3), int)
    for path in photos.rglob("*.jpg"):
        answer = model.predict(path)[0].classes[0][0]
        confusion[model.classes.index(path.parent.name), model.classes.index(answer)] += 1
    assert exact.json["confusion"] == confusion.tolist() and exact.json["accuracy"] == np.trace(confusion) / 24
    assert said.code == 0 and said.out.startswith(f"accuracy: {100 * np.trace(confusion) / 24:.1f} % of 24 photos, float\n")
    assert f"  apple: {confusion[0, 0]} of 8" in said.out
    integer = run("evaluate", trained / "model.npz", photos, "--int8", "--json").json
    answers = [answer.classes[0][0] for answer in model.predict(sorted(photos.rglob("*.jpg")), int8=True)]
    assert integer["accuracy"] == np.mean([path.parent.name == a for path, a in zip(sorted(photos.rglob("*.jpg")), answers, strict=True)])


def test_evaluate_names_what_it_skipped_and_what_it_cannot_match(run, trained, photos, tmp_path):
    shutil.copytree(photos / "apple", tmp_path / "apple")
    (tmp_path / "apple" / "bad.jpg").write_text("bad")
    (tmp_path / "apple" / "notes.doc").write_text("notes")
    said = run("evaluate", trained / "model.npz", tmp_path)
    assert said.code == 0 and "8 photos" in said.out and "skipped apple/bad.jpg: " in said.err and "skipped apple/notes.doc: " in said.err
    assert len(run("evaluate", trained / "model.npz", tmp_path, "--json").json["skipped"]) == 2
    (tmp_path / "pear").mkdir()
    shutil.copy(next((photos / "apple").iterdir()), tmp_path / "pear")
    fails(run("evaluate", trained / "model.npz", tmp_path), 1, "'pear'", "'apple', 'banana', 'cucumber'")


def test_predict_answers_for_files_and_folders(run, trained, photos, tmp_path):
    good = sorted((photos / "banana").iterdir())
    (tmp_path / "bad.jpg").write_text("bad")
    shutil.copy(good[0], tmp_path / "good.png")
    (tmp_path / "notes.txt").write_text("notes")
    model = minitl.load(trained / "model.npz")
    said = run("predict", trained / "model.npz", good[0], good[1], "--top", 2)
    assert said.code == 0 and len(said.out.splitlines()) == 2
    best = model.predict(good[0])[0].classes
    assert said.out.splitlines()[0] == f"{good[0]}: {best[0][0]} {100 * best[0][1]:.1f} %, {best[1][0]} {100 * best[1][1]:.1f} %"
    folder = run("predict", trained / "model.npz", tmp_path)
    assert folder.code == 0 and len(folder.out.splitlines()) == 1 and "bad.jpg" in folder.err and "notes.txt" in folder.err
    named = run("predict", trained / "model.npz", good[0], tmp_path / "bad.jpg", "--json")
    assert named.code == 1  # a photo that was named
    assert [entry["file"] for entry in named.json["photos"]] == [str(good[0])] and len(named.json["photos"][0]["classes"]) == 3
    assert [entry["file"] for entry in named.json["skipped"]] == [str(tmp_path / "bad.jpg")]
    assert run("predict", trained / "model.npz", tmp_path / "nowhere.jpg").code == 1
    integer = run("predict", trained / "model.npz", good[0], "--int8", "--json", "--top", 1).json["photos"][0]["classes"]
    name, probability = model.predict(good[0], int8=True)[0].classes[0]
    assert integer == [{"name": name, "probability": probability}]
    (tmp_path / "empty").mkdir()
    fails(run("predict", trained / "model.npz", tmp_path / "empty"), 1, "no photos")


# ---- export, vectors, convert, info


def test_export_writes_the_header_of_the_training_again(run, trained, tmp_path):
    assert run("export", trained / "model.npz", "-o", tmp_path / "model.h").code == 0
    assert (tmp_path / "model.h").read_bytes() == (trained / "model.h").read_bytes()
    for file, flags, name in (
        ("net.h", [], "net"),
        ("My Net-2.h", [], "My_Net_2"),
        ("2nd.H", [], "model_2nd"),
        ("noending", [], "noending"),
        ("x.h", ["--name", "Other_1"], "Other_1"),
    ):
        said = run("export", trained / "model.npz", "-o", tmp_path / file, *flags)
        assert said.code == 0 and said.out.endswith(f"\nwritten: {tmp_path / file}\n")
        text = (tmp_path / file).read_text()
        assert f"int {name}_run(const int8_t *image, int8_t *logits)" in text and f"#define {name.upper()}_ARENA_BYTES" in text
    for name in ("int", "2x", "a b", "_x", "a__b", "ü", ""):
        said = run("export", trained / "model.npz", "-o", tmp_path / "y.h", "--name", name)
        assert (said.code == 1 and "C name" in said.sentence) or name == ""
    assert sorted(content(tmp_path).keys() - {"y.h"}) == ["2nd.H", "My Net-2.h", "model.h", "net.h", "noending", "x.h"]


ANSWERS = """
#define NAME_SELFTEST
#define NAME_IMPLEMENTATION
#include "HEADER"
#include <stdio.h>
int main(void)
{
    static int8_t logits[NAME_CLASSES];
    const char *wrong = MODEL_selftest();
    if (wrong) { fputs(wrong, stderr); return 1; }
    while (fread(MODEL_image(), 1, NAME_INPUT_BYTES, stdin) == NAME_INPUT_BYTES) {
        if (MODEL_run(MODEL_image(), logits) || fwrite(logits, 1, sizeof logits, stdout) != sizeof logits) { return 2; }
    }
    return 0;
}
"""


def answers(header, name, images):
    """What a header's self-test and the header itself say on this computer: int8 (N, classes)."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    program, stub = header.parent / "answers.c", header.parent / f"{name}_weights.S"
    program.write_text(ANSWERS.replace("NAME", name.upper()).replace("MODEL", name).replace("HEADER", header.name))
    sources = [program.name, *([stub.name] if stub.exists() else [])]
    build = ["gcc", "-std=c99", "-O2", "-Wall", "-Werror", *sources, "-o", "answers"]
    subprocess.run(build, cwd=header.parent, check=True)
    found = subprocess.run([header.parent / "answers"], input=images.tobytes(), capture_output=True)
    assert found.returncode == 0, found.stderr
    program.unlink()
    (header.parent / "answers").unlink()
    return np.frombuffer(found.stdout, np.int8).reshape(len(images), -1)


def noise(shape, count=20):
    """Images int8 (count, *shape)."""
    return np.random.default_rng(1).integers(-128, 128, (count, *shape), dtype=np.int8)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """An int8 .tflite of no architecture of ours."""
    path = tmp_path_factory.mktemp("tflite") / "small.tflite"
    path.write_bytes(small_models.quantised_file())
    return path


def test_export_says_what_the_header_says(run, trained, tmp_path):
    said = run("export", trained / "model.npz", "-o", tmp_path / "net.h")
    text = (tmp_path / "net.h").read_text()
    figure = lambda key: int(re.search(rf"#define NET_{key} (\d+)", text)[1])  # noqa: E731
    words = said.out.splitlines()[0]
    found = [int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", words.removeprefix("int8 network"))]
    macs = minitl.load(trained / "model.npz").deploy().graph.macs()
    assert found == [macs, *(figure(key) for key in ("ARENA_BYTES", "STACK_BYTES", "CONSTANT_BYTES", "CODE_BYTES"))]
    assert "Constant channels: " in said.out and said.err == "" and max(map(len, said.out.splitlines()[:-1])) <= 140
    model = minitl.load(trained / "model.npz")
    images = noise((32, 32, 3))
    assert np.array_equal(answers(tmp_path / "net.h", "net", images), model.quantise().run(images, plain=True))


def test_constant_channels_can_be_kept_and_change_no_answer(run, trained, tmp_path):
    for flags, name in (([], "less"), (["--keep-constant"], "all")):
        assert run("export", trained / "model.npz", "-o", tmp_path / f"{name}.h", *flags).code == 0
    less, full = ((tmp_path / f"{name}.h").read_text() for name in ("less", "all"))
    assert "Constant channels:" in less and "Constant channels" not in full and len(less) < len(full)
    images = noise((32, 32, 3))
    assert np.array_equal(answers(tmp_path / "less.h", "less", images), answers(tmp_path / "all.h", "all", images))


def test_the_same_model_gives_the_same_files_in_any_process(run, trained, quantised, tmp_path):
    for source, name in ((trained / "model.npz", "a"), (quantised, "b")):
        words = ["export", source, "-o", "x.h", "--arduino", "lib", "--project", "prj", "--blob", "--name", "net"]
        for folder, seed in (("one", "1"), ("two", "22")):
            (tmp_path / name / folder).mkdir(parents=True)
            said = finished(started(*words, cwd=tmp_path / name / folder, env={"PYTHONHASHSEED": seed, "LC_ALL": "C", "TZ": "Asia/Tokyo"}))
            assert said.code == 0
        assert content(tmp_path / name / "one") == content(tmp_path / name / "two") and len(content(tmp_path / name / "one")) > 20


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_quantised_tflite_goes_straight_to_c(run, tmp_path, dtype):
    (tmp_path / "small.tflite").write_bytes(small_models.quantised_file(dtype))
    said = run("export", tmp_path / "small.tflite", "-o", tmp_path / "small.h")
    assert said.code == 0 and "softmax left out" in said.err and "preprocessing from the quantisation" in said.err
    images = noise((16, 16, 3))
    expected = tflite_int8.read((tmp_path / "small.tflite").read_bytes(), "x").graph.run(images, plain=True)
    assert np.array_equal(answers(tmp_path / "small.h", "small", images), expected)
    assert hashlib.sha256((tmp_path / "small.tflite").read_bytes()).hexdigest() in (tmp_path / "small.h").read_text()


@needs_shared
@pytest.mark.parametrize("name", ["vww_96_int8", "mobilenet_v1_0.25_128_quant"])
def test_published_quantised_networks_go_straight_to_c(run, tmp_path, name):
    source = WEIGHTS / f"{name}.tflite"
    said = run("export", source, "-o", tmp_path / "net.h")
    assert said.code == 0
    print(said.out)
    network = tflite_int8.read(source.read_bytes(), name).graph
    images = noise(network.tensors[network.input].shape, 5)
    assert np.array_equal(answers(tmp_path / "net.h", "net", images), network.run(images))


def test_what_is_no_int8_network_gets_a_sentence(run, trained, photos, tmp_path):
    graph, _ = importer_files.network(batch_norm=False)
    damaged = bytearray(small_models.quantised_file())
    damaged[len(damaged) // 2 :] = b""
    files = {
        "float.tflite": (importer_files.tflite(graph).bytes(), "minitl train PHOTOS --weights"),
        "float.h5": (b"\x89HDF\r\n\x1a\n", "minitl train PHOTOS --weights"),
        "swish.tflite": (small_models.quantised_file(last="HARD_SWISH"), "(HARD_SWISH) is not supported; supported are CONV_2D"),
        "cut.tflite": (bytes(damaged), "cut.tflite"),
        "text.tflite": (b"I am no network", "found a file that begins with"),
        "empty.tflite": (b"", "0 bytes"),
    }
    for name, (data, words) in files.items():
        (tmp_path / name).write_bytes(data)
        for command in (["export", tmp_path / name, "-o", tmp_path / "x.h", "--project", tmp_path / "x"], ["report", tmp_path / name],
                        ["vectors", tmp_path / name, photos, "-o", tmp_path / "x"], ["evaluate", tmp_path / name, photos, "--int8"],
                        ["predict", tmp_path / name, photos, "--int8"]):  # fmt: skip
            fails(run(*command), 1, words)
    for name in ("nowhere.tflite", "."):
        fails(run("export", tmp_path / name, "-o", tmp_path / "x.h"), 1, "expected minitl's .npz")
    assert sorted(os.listdir(tmp_path)) == sorted(files)


def test_a_quantised_tflite_is_asked_and_measured_with_int8(run, photos, quantised, tmp_path):
    said = run("predict", quantised, photos / "apple", "--int8", "--json")
    expected = minitl.model.deployable(quantised).predict(sorted((photos / "apple").iterdir()))
    found = [[(c["name"], c["probability"]) for c in entry["classes"]] for entry in said.json["photos"]]
    assert said.code == 0 and found == [answer.classes for answer in expected] and found[0][0][0].startswith("class ")
    for i, name in enumerate(("apple", "banana", "cucumber")):
        shutil.copytree(photos / name, tmp_path / "p" / f"class {i}")
    assert run("evaluate", quantised, tmp_path / "p", "--int8", "--json").json["count"] == 24
    said = run("vectors", quantised, photos, "-o", tmp_path / "v")
    assert said.code == 0 and "int8 16x16x3 each" in said.out
    inputs = np.frombuffer((tmp_path / "v/inputs.bin").read_bytes(), np.int8).reshape(24, 16, 16, 3)
    network = tflite_int8.read(quantised.read_bytes(), "x").graph
    assert (tmp_path / "v/logits.bin").read_bytes() == network.run(inputs, plain=True).tobytes()
    (tmp_path / "grey.tflite").write_bytes(small_models.quantised_file(shape=(16, 16, 1)))
    assert run("export", tmp_path / "grey.tflite", "--project", tmp_path / "grey").code == 0
    for words in (
        ["vectors", tmp_path / "grey.tflite", photos, "-o", tmp_path / "w"],
        ["predict", tmp_path / "grey.tflite", photos, "--int8"],
    ):
        fails(run(*words), 1, "made from no photos")


@pytest.mark.parametrize("command", ["export", "report", "convert", "vectors", "train"])
def test_no_output_replaces_the_input(run, trained, photos, tmp_path, command):
    model = shutil.copy(trained / "model.npz", tmp_path / "logits.bin" if command == "vectors" else tmp_path / "model.npz")
    (tmp_path / "link.h").symlink_to(model)
    (tmp_path / "link.png").symlink_to(model)
    before = content(tmp_path)
    words = {
        "export": [[model, "-o", out] for out in (model, tmp_path / "link.h", tmp_path / "." / "x" / ".." / "model.npz")],
        "report": [[model, "--no-qemu", "-o", out] for out in (model, tmp_path / "link.png")],
        "convert": [[model, "-o", out] for out in (model, tmp_path / "link.h")],
        "vectors": [[model, photos, "-o", tmp_path]],
        "train": [[photos, "-o", tmp_path, "--weights", model]],
    }[command]
    for options in words:
        said = run(command, *options)
        assert said.code == 1 and ("is the input itself" in said.sentence or "x/.." in str(options[-1])), said.err
    assert content(tmp_path) == before


def test_outputs_are_called_what_they_are_and_checked_before_the_model_is_read(run, quantised, tmp_path, monkeypatch):
    monkeypatch.setattr(minitl.model, "deployable", lambda *_: pytest.fail("the model was read"))
    monkeypatch.setattr(minitl.model, "load", lambda *_: pytest.fail("the model was read"))
    for out, words in (
        ("x.npz", "is a C header"), ("x.TFLITE", "such as x.h"), ("x.h5", "is a C header"), ("gr\u00fcn.h", "such as gr_n.h"),
        ("a  b.h", "single blanks"), ("a\"b.h", "could not be included"), ("a\\b.h", "could not be included"), (" x.h", "single blanks"),
        ("no/x.h", "its folder does not exist"), ("", "it is a folder"),
    ):  # fmt: skip
        said = run("export", quantised, "-o", f"{tmp_path}/{out}")
        fails(said, 1, words)
        assert len(said.err.splitlines()) == 1  # and no notes before it
    for command in (["export", quantised], ["report", quantised], ["convert", quantised]):
        fails(run(*command, "-o", "-"), 1, "standard output")
    for out in ("x.pdf", "x", "x.json"):
        fails(run("report", quantised, "-o", tmp_path / out), 1, "ends in .png")
    fails(run("report", quantised, tmp_path / "nowhere", "--no-qemu"), 1, "nowhere", "no such photos")
    fails(run("export", quantised, "--project", tmp_path / "no" / "x"), 1, "does not exist")
    fails(run("export", quantised, "-o", tmp_path / "x.h", "--labels", tmp_path / "none.txt"), 1, "none.txt cannot be read")
    assert os.listdir(tmp_path) == []


# ---- names of classes


def test_classes_of_a_tflite_get_the_names_that_are_given(run, quantised, photos, trained, tmp_path):
    names = ["banana", "a b", "\u00fc"]
    (tmp_path / "plain.txt").write_text("\ufeffbanana\r\na b\n\u00fc\n\n", encoding="utf-8")
    (tmp_path / "numbered.txt").write_text("0  banana\n1 a b\n2:\u00fc\n", encoding="utf-8")
    ways = (["--classes", "banana, a b,\u00fc"], ["--labels", tmp_path / "plain.txt"], ["--labels", tmp_path / "numbered.txt"])
    headers = set()
    for way in ways:
        assert run("export", quantised, "-o", tmp_path / "net.h", *way).code == 0
        headers.add((tmp_path / "net.h").read_text())
        assert run("report", quantised, "--no-qemu", "--json", *way).json["classes"] == names
        found = run("predict", quantised, photos / "apple", "--int8", "--json", *way).json["photos"][0]["classes"]
        assert sorted(entry["name"] for entry in found) == sorted(names)
    assert len(headers) == 1 and re.findall(r'"(.*)" /\* \d \*/', headers.pop()) == ["banana", "a b", r"\303\274"]
    fruit = ["--classes", "cucumber,apple,banana"]
    result = run("evaluate", quantised, photos, "--int8", "--json", *fruit).json
    plain = [row["classes"][0]["name"] for row in run("predict", quantised, photos / "apple", "--int8", "--json").json["photos"]]
    assert result["count"] == 24 and result["confusion"][1] == [plain.count(f"class {i}") for i in range(3)]
    assert run("vectors", quantised, photos, "-o", tmp_path / "v", *fruit).code == 0
    answer = run("predict", trained / "model.npz", photos / "apple", "--json", "--classes", "x,y,z").json["photos"][0]["classes"]
    assert sorted(entry["name"] for entry in answer) == ["x", "y", "z"]


def test_names_that_do_not_fit_are_mistakes(run, quantised, trained, photos, tmp_path):
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    (tmp_path / "latin.txt").write_bytes(b"a\nb\n\xfc\n")
    for way, expected in (
        (["--classes", "a,b"], "has 3 classes, found 2 names"), (["--labels", tmp_path / "two.txt"], "has 3 classes, found 2 names"),
        (["--classes", "a,,b"], "the name of class 1"), (["--labels", tmp_path / "gap.txt"], "the name of class 1"),
        (["--labels", tmp_path / "latin.txt"], "not UTF-8"), (["--labels", tmp_path], "cannot be read"),
        (["--classes", ""], "found 1 names"),
    ):  # fmt: skip
        fails(run("export", quantised, "-o", tmp_path / "x.h", *way), 1, expected)
        fails(run("evaluate", trained / "model.npz", photos, *way), 1, expected)
    assert run("export", quantised, "-o", tmp_path / "x.h", "--classes", "a,b,c", "--labels", tmp_path / "two.txt").code == 2
    assert not (tmp_path / "x.h").exists()


def test_the_c_of_the_readme_gives_the_probabilities_of_predict(run, trained, photos, tmp_path):
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    blocks = re.findall(r"```c\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    probability, pixel = (next(block for block in blocks if word in block) for word in ("ldexpf", "frame_width"))
    assert run("export", trained / "model.npz", "-o", tmp_path / "model.h").code == 0
    assert run("vectors", trained / "model.npz", photos, "-o", tmp_path / "v").code == 0
    (tmp_path / "main.c").write_text(
        f'#include <stdio.h>\n#define MODEL_IMPLEMENTATION\n#include "model.h"\n{probability}\n'
        "void pixel(const uint16_t *frame, int frame_width, int x, int y, int8_t *image);\n"
        f"void pixel(const uint16_t *frame, int frame_width, int x, int y, int8_t *image)\n{{\n{pixel}}}\n"
        "int main(void)\n{\n    int8_t logits[MODEL_CLASSES];\n"
        "    while (fread(logits, 1, MODEL_CLASSES, stdin) == MODEL_CLASSES) {\n"
        '        for (int k = 0; k < MODEL_CLASSES; k++) { printf("%.7f\\n", (double)model_probability(logits, k)); }\n'
        "    }\n    return 0;\n}\n"
    )
    subprocess.run(["gcc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "main.c", "-lm", "-o", "main"], cwd=tmp_path, check=True)
    data = (tmp_path / "v/logits.bin").read_bytes()
    found = subprocess.run([tmp_path / "main"], input=data, capture_output=True, check=True).stdout.split()
    names = (tmp_path / "v/names.txt").read_text("utf-8").splitlines()
    answers = {row["file"]: row["classes"] for row in run("predict", trained / "model.npz", *names, "--int8", "--json").json["photos"]}
    expected = [{c["name"]: c["probability"] for c in answers[name]}[fruit] for name in names for fruit in ("apple", "banana", "cucumber")]
    error = float(np.abs(np.array(found, float) - expected).max())
    print(f"{len(found)} probabilities, largest difference {error:.1e}")
    assert len(found) == 72 and error < 1e-5


# ---- folders to flash


def test_folders_are_ready_to_flash(run, quantised, tmp_path):
    said = run("export", quantised, "--arduino", tmp_path / "My Lib", "--project", tmp_path / "prj", "-o", tmp_path / "alone.h")
    assert said.code == 0 and said.out.splitlines()[-1] == f"written: {tmp_path}/alone.h, {tmp_path}/My Lib, {tmp_path}/prj"
    assert {"library.properties", "src/alone.h", "src/alone.c", "examples/alone_demo/alone_demo.ino"} <= content(tmp_path / "My Lib").keys()
    assert (tmp_path / "My Lib/src/alone.h").read_bytes() == (tmp_path / "prj/model/alone.h").read_bytes()
    assert run("export", quantised, "--arduino", tmp_path / "My Lib 2").code == 0 and (tmp_path / "My Lib 2/src/My_Lib_2.h").exists()
    if shutil.which("make") and shutil.which("cc"):
        subprocess.run(["make", "-s"], cwd=tmp_path / "prj", check=True)
        images = noise((16, 16, 3), 4)
        found = subprocess.run([tmp_path / "prj/build/alone"], input=images.tobytes(), capture_output=True, check=True)
        lines = found.stdout.decode().splitlines()
        expected = tflite_int8.read(quantised.read_bytes(), "x").graph.run(images)
        assert lines[0] == "self-test: equal to Python in every bit"
        assert [line.split("\t")[1] for line in lines[1:]] == [" ".join(map(str, row)) for row in expected.tolist()]


def test_a_folder_may_be_named_by_a_dot(run, quantised, tmp_path, monkeypatch):
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path / "pets")
    assert run("export", quantised, "--project", ".").code == 0 and Path("model/pets.h").exists()
    assert run("export", quantised, "--project", ".").code == 0


def test_a_second_export_replaces_what_is_ours_and_nothing_else(run, trained, quantised, tmp_path):
    both = ["--arduino", tmp_path / "lib", "--project", tmp_path / "prj", "--name", "net"]
    assert run("export", quantised, *both).code == 0
    first = content(tmp_path)
    assert run("export", quantised, *both).code == 0 and content(tmp_path) == first
    sketch, main_c = tmp_path / "lib/examples/net_demo/net_demo.ino", tmp_path / "prj/main.c"
    for path in (sketch, main_c):
        path.write_text(path.read_text() + "/* my camera */\n")
    for path in (tmp_path / "lib/mine.txt", tmp_path / "prj/model/mine.h"):
        path.write_text("mine")
    mine = {
        str(p.relative_to(tmp_path)): p.read_bytes() for p in (sketch, main_c, tmp_path / "lib/mine.txt", tmp_path / "prj/model/mine.h")
    }
    said = run("export", trained / "model.npz", *both, "--blob")
    assert said.code == 0 and said.err.count("stays as it is") == 2 and "main.c" in said.err and "net_demo.ino" in said.err
    second = content(tmp_path)
    assert all(second[name] == data for name, data in mine.items()) and second["lib/src/net.h"] != first["lib/src/net.h"]
    assert "lib/src/net_weights.S" in second and "prj/model/net_weights.bin" in second
    assert run("export", trained / "model.npz", *both).code == 0  # without --blob: its files go
    third = content(tmp_path)
    assert not any("weights" in name for name in third) and all(third[name] == data for name, data in mine.items())
    (tmp_path / "prj/model/net.h").write_text("changed by hand")
    before = content(tmp_path)
    fails(run("export", quantised, *both, "-o", tmp_path / "x.h"), 1, "prj/model/net.h was changed")
    assert content(tmp_path) == before


def test_another_name_does_not_break_what_the_user_changed(run, quantised, tmp_path):
    both = ["--arduino", tmp_path / "lib", "--project", tmp_path / "prj"]
    assert run("export", quantised, *both, "--name", "cat").code == 0
    for path in (tmp_path / "lib/examples/cat_demo/cat_demo.ino", tmp_path / "prj/main.c"):
        path.write_text(path.read_text() + "/* my camera */\n")
        before = content(tmp_path)
        fails(run("export", quantised, *both, "--name", "dog"), 1, path, "cat.h", "the same --name", "move it away")
        assert content(tmp_path) == before and run("export", quantised, *both, "--name", "cat").code == 0
        path.unlink()
    assert run("export", quantised, *both, "--name", "dog").code == 0
    assert not any("cat" in path for path in content(tmp_path)) and b"dog.h" in (tmp_path / "prj/main.c").read_bytes()


def test_folders_that_cannot_be_written_are_refused_whole(run, quantised, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "app").mkdir()
    (tmp_path / "app/Makefile").write_bytes(b"mine")
    (tmp_path / "prj").mkdir()
    cases = [
        (["--arduino", tmp_path / "file"], "is a file; expected a folder"),
        (["--project", tmp_path / "file" / "x"], "the folder it is to lie in does not exist"),
        (["--project", tmp_path / "no" / "x"], "the folder it is to lie in does not exist"),
        (["--project", tmp_path / "app"], "Makefile is there and not minitl's"),
        (["--project", tmp_path / "new", "--arduino", tmp_path / "new"], "both"),
        (["--project", tmp_path / "new", "--arduino", tmp_path / "new" / ".." / "new"], "one file"),
        (["--project", tmp_path / "new", "-o", tmp_path / "new" / "main.c"], "one file"),
        (["--project", tmp_path / "new", "-o", tmp_path / "no" / "x.h"], "its folder does not exist"),
        (["--project", tmp_path / "new", "-o", tmp_path / "app"], "it is a folder"),
        (["--project", tmp_path / "new", "--name", "while"], "C name 'while'"),
        (["--blob", "--name", "net", "-o", tmp_path / "net_weights.bin"], "the name of the weights"),
        (["--blob", "--name", "net", "-o", tmp_path / "net_weights.S"], "the name of the weights"),
        (["--arduino", tmp_path / ("x" * 300)], "too long"),
    ]
    before = content(tmp_path)
    for words, expected in cases:
        fails(run("export", quantised, *words, *([] if "--name" in words else ["--name", "net"])), 1, expected)
        assert content(tmp_path) == before and sorted(os.listdir(tmp_path)) == ["app", "file", "prj"], words


@unix
@ordinary_user
def test_a_read_only_folder_is_refused_for_export(run, quantised, tmp_path):
    tmp_path.chmod(0o555)
    for words in (["--arduino", tmp_path / "new"], ["--project", tmp_path], ["-o", tmp_path / "x.h"]):
        fails(run("export", quantised, *words), 1, "Permission denied")
    tmp_path.chmod(0o755)


def test_large_weights_may_lie_beside_the_header(run, trained, tmp_path, monkeypatch):
    said = run("export", trained / "model.npz", "-o", tmp_path / "big.h", "--blob", "--name", "net")
    assert said.code == 0 and sorted(os.listdir(tmp_path)) == ["big.h", "net_weights.S", "net_weights.bin"]
    assert said.out.splitlines()[-1] == f"written: {tmp_path}/big.h, {tmp_path}/net_weights.bin, {tmp_path}/net_weights.S"
    images = noise((32, 32, 3))
    assert np.array_equal(answers(tmp_path / "big.h", "net", images), minitl.load(trained / "model.npz").quantise().run(images))
    monkeypatch.setattr(cli, "LARGE_TEXT", 20_000)
    assert "--blob" in run("export", trained / "model.npz", "-o", tmp_path / "x.h").err
    assert "--blob" not in run("export", trained / "model.npz", "-o", tmp_path / "x.h", "--blob").err


# ---- report


def test_report_shows_every_operation_and_the_totals(run, trained, tmp_path):
    network = minitl.load(trained / "model.npz").deploy()
    said = run("report", trained / "model.npz", "--no-qemu", "-o", tmp_path / "r.png")
    lines = said.out.splitlines()
    assert said.code == 0 and said.err == "" and max(map(len, lines[:-1])) <= 140
    assert lines[0].split() == ["op", "name", "kind", "output", "MACs", "flash", "RAM"] and "conv_preds" in lines[len(network.graph.ops)]
    size = network.figures()
    assert f"{network.graph.macs():,} MACs" in said.out and f"{size.arena:,} bytes" in said.out and f"{size.flash:,} bytes" in said.out
    assert "Constant channels: " in said.out and lines[-1] == f"written: {tmp_path}/r.png"
    page = Image.open(tmp_path / "r.png")
    page.load()
    assert page.width == 1200 and page.height > 1000
    first = (tmp_path / "r.png").read_bytes()
    again = run("report", trained / "model.npz", "--no-qemu", "-o", tmp_path / "r.png")
    assert again.out == said.out and (tmp_path / "r.png").read_bytes() == first
    kept = run("report", trained / "model.npz", "--no-qemu", "--keep-constant")
    assert kept.code == 0 and f"{network.original.macs():,} MACs" in kept.out and "Constant channels" not in kept.out


def test_report_json_has_all_of_it(run, trained, photos):
    facts = run("report", trained / "model.npz", photos, "--no-qemu", "--json", "--count", "5").json
    network = minitl.load(trained / "model.npz").deploy()
    size = network.figures()
    assert facts["ram"]["arena"] == size.arena and facts["flash"]["constants"] == size.flash == sum(facts["flash"]["by_purpose"].values())
    assert [row["name"] for row in facts["rows"]] == [op.name for op in network.graph.ops] and facts["macs"] == network.graph.macs()
    assert facts["sha256"] == network.graph.digest() and facts["classes"] == ["apple", "banana", "cucumber"] and facts["measured"] is None
    assert facts["constant_channels"]["removed"] is True and facts["constant_channels"]["macs_before"] == network.original.macs()
    assert facts["constant_channels"]["kernel_bytes_before"] == network.removal.kernel_bytes[0]
    assert facts["snr_photos"] == 5 and all(row["snr_db"] > -99 for row in facts["rows"]) and facts["input"] == [32, 32, 3]
    accuracy = json.loads((trained / "report.json").read_text("utf-8"))["val"]["int8"]["accuracy"]
    assert abs(facts["val_accuracy_int8"] - accuracy) < 1e-4  # the model remembers four digits
    assert run("report", trained / "model.npz", photos, "--no-qemu", "--json", "--count", "5").json == facts


def test_report_compares_int8_with_float_on_photos(run, trained, quantised, photos, tmp_path):
    said = run("report", trained / "model.npz", photos, "--no-qemu")
    assert said.code == 0 and said.out.splitlines()[0].split()[-1] == "dB" and "on 24 photos" in said.out
    loose = tmp_path / "loose"
    shutil.copytree(photos / "apple", loose)
    (loose / "bad.jpg").write_text("bad")
    said = run("report", trained / "model.npz", loose, "--no-qemu")
    assert said.code == 0 and "on 8 photos" in said.out and "bad.jpg" in said.err
    assert run("report", trained / "model.npz", loose, "--no-qemu", "--count", "1").code in (0, 1)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_text("bad")
    fails(run("report", trained / "model.npz", tmp_path / "bad", "--no-qemu"), 1, "none of the photos", "x.jpg")
    fails(run("report", trained / "model.npz", tmp_path / "nowhere", "--no-qemu"), 1, "nowhere")
    said = run("report", quantised, photos, "--no-qemu")
    assert said.code == 0 and "dB cannot be measured: a quantised .tflite holds no float network" in said.err
    assert "dB" not in said.out.splitlines()[0]


def test_report_counts_instructions_where_it_can(run, quantised):
    if why := qemu.unavailable("cortex-m3"):
        pytest.skip(why)
    facts = run("report", quantised, "--core", "cortex-m3", "--json").json
    counted = sum(row["instructions"] for row in facts["rows"] if row["instructions"] is not None)
    print(f"{facts['measured']['instructions']:,} instructions, {counted:,} by operation")
    assert facts["measured"]["core"] == "cortex-m3" and counted == facts["measured"]["instructions"]
    assert facts["measured"]["flash"] >= facts["flash"]["constants"] and facts["measured"]["arena"] == facts["ram"]["arena"]
    assert facts["measured"]["stack"] < facts["ram"]["stack_below"] and facts["measured"]["code"] < facts["flash"]["code_below"]
    said = run("report", quantised, "--core", "cortex-m3")
    assert len(re.findall(rf" {counted:,}\b", said.out)) == 2  # in the table, and in the sentence below
    assert said.out.splitlines()[0].split()[-2:] == ["instructions", "share"] and "cortex-m3 under QEMU" in said.out


def test_report_without_the_tools_says_what_to_install(run, quantised, monkeypatch):
    monkeypatch.setattr(qemu.shutil, "which", lambda name: None)
    said = run("report", quantised)
    assert said.code == 0 and "apt install gcc-arm-none-eabi" in said.err and "instructions" not in said.out.splitlines()[0]
    facts = run("report", quantised, "--json")
    assert facts.json["measured"] is None and any("apt install" in note for note in facts.json["notes"])
    assert run("report", quantised, "--no-qemu").err.count("apt install") == 0


def test_a_network_too_large_for_the_board_has_a_report_still(run, quantised, monkeypatch):
    def too_large(*_):
        raise MinitlError("arm-none-eabi-gcc failed: region FLASH overflowed")

    monkeypatch.setattr(qemu, "unavailable", lambda core: None)
    monkeypatch.setattr(qemu, "profile", too_large)
    said = run("report", quantised)
    assert said.code == 0 and "not counted: arm-none-eabi-gcc failed" in said.err and "MACs" in said.out


def test_vectors_are_what_python_computes(run, trained, photos, tmp_path):
    said = run("vectors", trained / "model.npz", photos, "-o", tmp_path / "v")
    assert said.code == 0 and "24 photos" in said.out and sorted(os.listdir(tmp_path / "v")) == ["inputs.bin", "logits.bin", "names.txt"]
    paths = [Path(line) for line in (tmp_path / "v/names.txt").read_text("utf-8").splitlines()]
    assert sorted(paths) == sorted(photos.rglob("*.jpg"))
    model = minitl.load(trained / "model.npz")
    pixels = np.stack([read_photo(path, model.recipe) for path in paths])
    q = model.recipe.quantise_pixels(pixels)
    assert (tmp_path / "v/inputs.bin").read_bytes() == q.tobytes() and q.size == 24 * 32 * 32 * 3
    assert (tmp_path / "v/logits.bin").read_bytes() == model.quantise().run(q, plain=True).tobytes()


def test_vectors_hold_the_third_answer_of_models_that_have_one(run, photos, tmp_path):
    assert run("train", photos, "-o", tmp_path / "out", "--epochs", 2, "--neither", "--neither-keep", 0.6, *BACKBONE).code == 0
    said = run("vectors", tmp_path / "out/model.npz", photos, "-o", tmp_path / "v")
    assert said.code == 0 and "neither.bin" in said.out
    answers = minitl.deployable(tmp_path / "out/model.npz").predict((tmp_path / "v/names.txt").read_text("utf-8").splitlines())
    third = (tmp_path / "v/neither.bin").read_bytes()
    print(f"{sum(third)} of {len(third)} photos are neither")
    assert third == bytes(answer.neither for answer in answers) and 0 < sum(third) < 24


def test_vectors_take_photos_without_classes_and_skip_bad_ones(run, trained, photos, tmp_path):
    loose = tmp_path / "loose"
    shutil.copytree(photos / "apple", loose)
    (loose / "bad.jpg").write_text("bad")
    (loose / "line\nbreak.jpg").write_bytes(next((photos / "apple").iterdir()).read_bytes())
    said = run("vectors", trained / "model.npz", loose, "-o", tmp_path / "v")
    assert said.code == 0 and "bad.jpg" in said.err and (tmp_path / "v/inputs.bin").stat().st_size == 9 * 32 * 32 * 3
    assert len((tmp_path / "v/names.txt").read_text().splitlines()) == 9
    fails(run("vectors", trained / "model.npz", tmp_path / "v", "-o", tmp_path / "w"), 1, "no photos")
    backbone = tmp_path / "b.npz"
    minitl.model.find(small_models.SMALL).save(backbone)
    fails(run("vectors", backbone, loose, "-o", tmp_path / "w"), 1, "no classifier")
    fails(run("export", backbone, "-o", tmp_path / "w.h"), 1, "no classifier")
    fails(run("predict", backbone, loose), 1, "no classifier")
    fails(run("evaluate", backbone, photos), 1)
    assert not (tmp_path / "w").exists() and not (tmp_path / "w.h").exists()


def test_info_shows_layers_work_mask_and_origin(run, trained):
    facts = run("info", trained / "model.npz", "--json").json
    assert {"architecture", "arguments", "layers", "parameters", "macs", "recipe", "classes", "calibrated", "sha256", "provenance"} <= set(
        facts
    )
    model = minitl.load(trained / "model.npz")
    assert facts["sha256"] == model.content().content_hash() and facts["calibrated"] is True
    assert facts["parameters"] == sum(row["parameters"] for row in facts["layers"]) == sum(a.size for a in model.graph.arrays().values())
    assert facts["macs"] == model.quantise().macs()  # BatchNorm costs none
    rows = {row["name"]: row for row in facts["layers"]}
    assert rows["conv1"]["frozen"] == "yes" and rows["conv_preds"]["frozen"] == "" and rows["conv_pw_13_relu"]["output"] == [1, 1, 102]
    text = run("info", trained / "model.npz").out
    for word in ("conv_pw_13_bn", "BatchNorm", "alpha: 0.1", "crop_fraction: 0.875", "classes: 3: apple, banana, cucumber", facts["sha256"],
                 f"source: {small_models.SMALL}", "freeze: all"):  # fmt: skip
        assert word in text, word


def test_info_shows_partial_masks(run, tmp_path):
    model = small_models.model()
    model.graph.unfreeze("=conv_pw_13").freeze("=conv_pw_13", np.arange(102) < 30)
    model.save(tmp_path / "m.npz")
    rows = {row["name"]: row["frozen"] for row in run("info", tmp_path / "m.npz", "--json").json["layers"]}
    assert rows["conv_pw_13"] == "30 of 102 channels"


FOREIGN = ["mobilenet_v1_0.25_128_quant.tflite", "vww_96_float.tflite", "vww_96.h5", "mobilenet_2_5_224_tf_no_top.h5"]


@needs_shared
@pytest.mark.parametrize("name", FOREIGN)
def test_convert_and_info_read_foreign_files(run, name, tmp_path):
    source = WEIGHTS / name
    said = run("convert", source, "-o", tmp_path / "w.npz")
    assert said.code == 0 and str(tmp_path / "w.npz") in said.out
    ours, theirs = run("info", tmp_path / "w.npz", "--json").json, run("info", source, "--json").json
    assert ours == theirs and ours["provenance"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert run("info", source).code == 0 and run("convert", tmp_path / "w.npz", "-o", tmp_path / "again.npz").code == 0
    assert (tmp_path / "w.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    before, after = minitl.load(source).graph.arrays(), minitl.load(tmp_path / "w.npz").graph.arrays()
    assert all(np.array_equal(before[key], after[key]) for key in before)


# ---- usage


@pytest.mark.parametrize(
    "words",
    [[], ["frob"], ["train"], ["train", "x"], ["train", "x", "-o", "y", "--epochs", "many"], ["train", "x", "-o", "y", "--frob"],
     ["predict", "m.npz"], ["predict", "m.npz", "x", "--top", "0"], ["predict", "m.npz", "x", "--top", "few"], ["export", "m.npz"],
     ["evaluate", "m.npz"], ["info"], ["convert", "x"], ["vectors", "m.npz", "x"], ["info", "a", "b"], ["export", "m.npz", "--blob"],
     ["export", "-o", "x.h"], ["report"], ["report", "m.npz", "--core", "z80"], ["report", "m.npz", "--count", "0"],
     ["report", "m.npz", "p", "q"]],
    ids=lambda words: " ".join(words) or "nothing",
)  # fmt: skip
def test_a_command_that_cannot_be_understood_ends_with_2(run, words):
    said = run(*words)
    assert said.code == 2 and said.out == "" and "usage: minitl" in said.err and ": error: " in said.sentence


@pytest.mark.parametrize("command", ["", "train", "evaluate", "predict", "export", "report", "convert", "info", "vectors", "demo"])
def test_help_teaches(run, command):
    said = run(*([command] if command else []), "--help")
    assert said.code == 0 and said.err == "" and "usage: minitl" in said.out and len(said.out) > 200
    assert max(map(len, said.out.splitlines())) <= 140


def test_the_version_is_the_packages(run):
    assert run("--version").out == f"minitl {minitl.__version__}\n"


def test_the_module_and_the_script_are_the_same_command():
    said = subprocess.run(
        [sys.executable, "-m", "minitl", "--version"], capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True
    )
    assert said.stdout.decode() == f"minitl {minitl.__version__}\n"
    text = (ROOT / "pyproject.toml").read_text()
    assert 'minitl = "minitl.__main__:main"' in text


# ---- mistakes


def classes_of(folder, photos, **extra):
    """Two classes of three good photos each, and in the first one the extra files {name: bytes}."""
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
    for i, path in enumerate(sorted(photos.rglob("*.jpg"))[:6]):
        shutil.copy(path, folder / ("one", "two")[i % 2] / f"{i}.jpg")
    for name, data in extra.items():
        (folder / "one" / name.replace("_", ".")).write_bytes(data)
    return folder


def test_folders_without_classes_are_mistakes(run, photos, tmp_path):
    train = lambda folder: run("train", folder, "-o", tmp_path / "out", "--epochs", 1, *BACKBONE)  # noqa: E731
    (tmp_path / "empty").mkdir()
    fails(train(tmp_path / "empty"), 1, "empty", "no photos", "PHOTOS/CLASS/photo.jpg")
    (tmp_path / "one").mkdir()
    shutil.copytree(photos / "apple", tmp_path / "one" / "apple")
    fails(train(tmp_path / "one"), 1, "one class only", "'apple'")
    fails(train(photos / "apple"), 1, "8 photos lie directly in it")
    (tmp_path / "two" / "a").mkdir(parents=True)
    (tmp_path / "two" / "b").mkdir()
    fails(train(tmp_path / "two"), 1, "no photos")
    fails(train(tmp_path / "nowhere"), 1, "nowhere", "No such file")
    fails(train(next((photos / "apple").iterdir())), 1, "this is a file")
    assert content(tmp_path / "out") == {} if (tmp_path / "out").exists() else True


@pytest.fixture(scope="module")
def strange_photos(tmp_path_factory):
    """{name: (bytes, word of the reason or None where it is a good photo)}."""
    folder = tmp_path_factory.mktemp("strange")
    gradient = np.add.outer(np.arange(4000) // 20, np.arange(5000) // 40).astype(np.uint8)
    large = Image.fromarray(np.stack([gradient, gradient.T.reshape(4000, 5000), 255 - gradient], -1))
    large.save(folder / "large.jpg", quality=85)
    Image.new("RGB", (1, 1)).save(folder / "tiny.png")
    data = (folder / "large.jpg").read_bytes()
    return {
        "text_jpg": (b"I am no picture", "not a picture"),
        "half_jpg": (data[: len(data) // 2], "cut short"),
        "tiny_png": ((folder / "tiny.png").read_bytes(), "1 x 1 pixels"),
        "empty_jpg": (b"", "empty"),
        "large_jpg": (data, None),
    }


def test_bad_photos_are_named_skipped_and_counted(run, photos, strange_photos, tmp_path):
    folder = classes_of(tmp_path / "p", photos, **{name: data for name, (data, _) in strange_photos.items()})
    said = run("train", folder, "-o", tmp_path / "out", "--epochs", 1, *BACKBONE)
    assert said.code == 0 and "skipped: 4 files" in said.out
    report = json.loads((tmp_path / "out/report.json").read_text("utf-8"))
    reasons = {entry["file"]: entry["reason"] for entry in report["skipped"]}
    assert reasons.keys() == {f"one/{name.replace('_', '.')}" for name, (_, word) in strange_photos.items() if word}
    for name, (data, word) in strange_photos.items():
        path = tmp_path / "p" / "one" / name.replace("_", ".")
        said = run("predict", tmp_path / "out/model.npz", path)
        if word:
            assert word in reasons[f"one/{path.name}"], reasons
            assert said.code == 1 and word in said.err and path.name in said.err
        else:
            assert said.code == 0 and len(data) > 10**5 and path.name in said.out


def test_a_class_whose_photos_are_all_bad_is_named(run, photos, tmp_path):
    folder = classes_of(tmp_path / "p", photos)
    for path in (folder / "two").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    said = run("train", folder, "-o", tmp_path / "out", "--epochs", 1, *BACKBONE)
    fails(said, 1, "'two'", "3 files were skipped", "two/")


def test_bad_weights_are_mistakes(run, photos, trained, tmp_path):
    data = bytearray((trained / "model.npz").read_bytes())
    at = data.rindex(b"conv_preds/bias.npy", 0, data.index(b"PK\x01\x02")) + 19 + 128
    data[at] ^= 1
    (tmp_path / "flipped.npz").write_bytes(bytes(data))
    arrays = dict(minitl.weights.unpack((trained / "model.npz").read_bytes(), "x"))
    arrays["conv_preds/bias"] = arrays["conv_preds/bias"] + 1
    (tmp_path / "hash.npz").write_bytes(minitl.weights.pack(arrays))
    (tmp_path / "cut.npz").write_bytes((trained / "model.npz").read_bytes()[:5000])
    np.savez(tmp_path / "numpy.npz", a=np.zeros(3, np.float32))
    cases = {
        "flipped.npz": "damaged",
        "hash.npz": "hash",
        "cut.npz": "damaged",
        "numpy.npz": "not one of minitl's",
        "nowhere.npz": "No such",
        ".": "is a folder",
    }
    photo = next((photos / "apple").iterdir())
    for name, word in cases.items():
        path = tmp_path / name
        for words in (["info", path], ["predict", path, photo], ["evaluate", path, photos], ["export", path, "-o", tmp_path / "x.h"],
                      ["convert", path, "-o", tmp_path / "x.npz"], ["vectors", path, photos, "-o", tmp_path / "v"], ["report", path],
                      ["export", path, "--project", tmp_path / "v"], ["evaluate", path, photos, "--int8"],
                      ["train", photos, "-o", tmp_path / "o", "--weights", path]):  # fmt: skip
            fails(run(*words), 1, word)
    fails(run("info", photo), 1, "JPEG")
    assert not {"x.h", "x.npz", "v"} & set(os.listdir(tmp_path)) and content(tmp_path / "o") == {}


def test_a_view_of_the_photos_travels_in_the_model_and_the_header(run, photos, tmp_path):
    for view, resize, fraction in (("square", "crop", 1.0), ("whole", "squash", 0.875), ("centre", "crop", 0.875)):
        assert run("train", photos, "-o", tmp_path / view, "--epochs", "1", "--view", view, *BACKBONE).code == 0
        recipe = minitl.load(tmp_path / view / "model.npz").recipe
        assert (recipe.resize, recipe.crop_fraction) == (resize, fraction)
    headers = {(tmp_path / view / "model.h").read_text() for view in ("square", "whole", "centre")}
    assert len(headers) == 3 and set(VIEWS) == {"centre", "square", "whole"}, "the command line offers all of them"
    with pytest.raises(MinitlError, match="one of centre, square, whole"):
        minitl.load(tmp_path / "square" / "model.npz").viewing("edge")


def test_without_weights_the_backbone_that_comes_with_minitl_is_used(run, photos, tmp_path):
    assert run("train", photos, "-o", tmp_path / "o", "--epochs", "2").code == 0
    assert minitl.load(tmp_path / "o" / "model.npz").provenance["backbone"] == minitl.load(BUNDLED).provenance
    assert cli.parser().parse_args(["train", "x", "-o", "y"]).weights == BUNDLED


@needs_shared
def test_bad_foreign_weights_are_mistakes(run, photos, tmp_path):
    whole = (WEIGHTS / "vww_96_float.tflite").read_bytes()
    (tmp_path / "cut.tflite").write_bytes(whole[: len(whole) // 2])
    whole = (WEIGHTS / "vww_96.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5", "w") as file:  # a network that is none of ours
        file.attrs["layer_names"] = [b"dense_1"]
        group = file.create_group("dense_1")
        group.attrs["weight_names"] = [b"dense_1/kernel:0"]
        group.create_dataset("dense_1/kernel:0", data=np.zeros((4, 2), np.float32))
    for name in ("cut.tflite", "cut.h5", "other.h5"):
        for words in (["info", tmp_path / name], ["train", photos, "-o", tmp_path / "o", "--weights", tmp_path / name],
                      ["convert", tmp_path / name, "-o", tmp_path / "x.npz"]):  # fmt: skip
            fails(run(*words), 1, name)
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["--freeze", "conv_pw_99"], "did you mean conv_pw_9"), (["--freeze", "*"], "every layer is frozen"), (["--freeze", ""], "no layer"),
     (["--freeze", "conv_preds"], "every layer is frozen"), (["--seed=-1"], "seed must be"), (["--seed", str(2**40)], "seed must be"),
     (["--epochs", "0"], "epochs must be"), (["--batch", "0"], "batch must be"), (["--rate", "nan"], "rate must be"),
     (["--rate=-1"], "rate must be"), (["--name", "2x"], "C name"), (["--weights", "random:x"], "is no network"),
     (["--weights", "random:mobilenet_v1_0.25_16"], "32 to 4096"), (["--weights", "x" * 300], "cannot be read")],
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:40],
)  # fmt: skip
def test_impossible_wishes_are_mistakes(run, photos, tmp_path, words, expected):
    fails(run("train", photos, "-o", tmp_path, *BACKBONE, *words), 1, expected)
    assert content(tmp_path) == {}


def test_wishes_that_contradict_each_other_are_refused_before_any_work(run, photos, tmp_path, monkeypatch):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.jpg").write_bytes(b"no photo")
    monkeypatch.setattr(minitl.transfer, "extract", lambda *_: pytest.fail("photos were read"))
    words = ["train", photos, "-o", tmp_path / "out", *BACKBONE]
    fails(run(*words, "--imprint", "--hidden", "8"), 1, "leave --hidden out")
    fails(run(*words, "--neither", tmp_path / "none"), 1, "no such folder")
    fails(run(*words, "--neither", tmp_path / "bad"), 1, "none of its photos can be read", "bad.jpg")
    assert not (tmp_path / "out").exists()
    said = run("train", "-o", tmp_path / "out", *BACKBONE, "--neither", photos)
    assert said.code == 2 and "before --neither" in said.sentence
    said = run(*words, "--hidden", "many")
    assert said.code == 2 and "as in 128" in said.sentence and "'many'" in said.sentence


def test_options_that_change_nothing_are_named(run, photos, tmp_path):
    words = ["train", photos, "-o", tmp_path / "out", "--epochs", 1, *BACKBONE]
    said = run(*words, "--gradual", "--layer-decay", 0.5, "--neither-keep", 0.9)
    assert said.code == 0
    assert [line.split()[0] for line in said.err.splitlines() if "changes nothing" in line] == [
        "--gradual",
        "--layer-decay",
        "--neither-keep",
    ]
    said = run(*words, "--gradual", "--layer-decay", 0.5, "--neither-keep", 0.9, "--neither", "--fine-tune", 1)
    assert said.code == 0 and "changes nothing" not in said.err
    said = run("train", photos, "-o", tmp_path / "out", "--epochs", 1, "--weights", "random:mobilenet_v1_0.25_32")
    assert said.code == 0 and "--freeze none trains them" in said.err


def test_a_network_that_is_always_right_has_its_third_answer_and_its_report(run, photos, tmp_path):
    """None of its answers is wrong, so there is no share of wrong answers to speak of."""
    same = tmp_path / "photos"
    for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        (same / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (40 + i, 40), colour).save(same / name / f"{i}.png")
    said = run("train", same, "-o", tmp_path / "out", "--imprint", "--neither", *BACKBONE)
    assert said.code == 0 and "100.0 % float" in said.out and "neither: keeps" in said.out
    assert "There are no wrong answers" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_a_disk_that_is_full_at_the_end_costs_no_training_that_was_saved(run, photos, tmp_path, monkeypatch):
    words = ["train", photos, "-o", tmp_path / "out", "--epochs", 2, *BACKBONE]
    finish = minitl.checkpoints.Checkpoint.finish

    def slow(self, *arguments):
        self._saved = -1e9  # as if the training had taken long
        return finish(self, *arguments)

    monkeypatch.setattr(minitl.checkpoints.Checkpoint, "finish", slow)
    with monkeypatch.context() as full:
        full.setattr(cli, "write_together", lambda files: (_ for _ in ()).throw(MinitlError("cannot write: No space left")))
        fails(run(*words), 1, "No space left", "--resume", "checkpoint.npz")
    assert os.listdir(tmp_path / "out") == ["checkpoint.npz"]
    said = run(*words, "--resume")
    assert said.code == 0 and "going on from" in said.err and sorted(os.listdir(tmp_path / "out")) == sorted(OUTPUTS)


def test_a_checkpoint_of_an_earlier_run_is_not_offered_at_ctrl_c(run, photos, tmp_path, monkeypatch):
    (tmp_path / "checkpoint.npz").write_bytes(b"of another run")

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(minitl.transfer, "extract", stopped)
    said = run("train", photos, "-o", tmp_path, *BACKBONE)
    assert said.code == 130 and said.sentence == "stopped; files were left as they were"
    assert os.listdir(tmp_path) == ["checkpoint.npz"]


def test_an_output_among_the_photos_is_refused(run, photos, trained, tmp_path):
    """Its report.png would be a photo of the class 'out' in the next run."""
    folder = classes_of(tmp_path / "p", photos)
    (tmp_path / "link").symlink_to(folder)
    for out in (folder, folder / "out", tmp_path / "link" / "out", folder / "one" / "deep" / "out"):
        fails(run("train", folder, "-o", out, "--epochs", 1, *BACKBONE), 1, "lies inside")
        fails(run("vectors", trained / "model.npz", folder, "-o", out), 1, "lies inside")
    fails(run("train", tmp_path / "link", "-o", folder / "out", "--epochs", 1, *BACKBONE), 1, "lies inside")
    assert sorted(os.listdir(folder)) == ["one", "two"] and sorted(os.listdir(folder / "one")) == ["0.jpg", "2.jpg", "4.jpg"]


def test_an_output_that_cannot_be_written_is_refused_before_any_work(run, photos, trained, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"mine")
    monkeypatch.setattr(minitl.transfer, "extract", lambda *_: pytest.fail("photos were read"))
    for out in (tmp_path / "file", tmp_path / "file" / "below", "/dev/null/x", tmp_path / ("x" * 300)):
        fails(run("train", photos, "-o", out, *BACKBONE), 1)
        fails(run("vectors", trained / "model.npz", photos, "-o", out), 1)
    fails(run("export", trained / "model.npz", "-o", tmp_path), 1, "it is a folder")
    fails(run("export", trained / "model.npz", "-o", tmp_path / "no" / "x.h"), 1, "its folder does not exist")
    fails(run("report", trained / "model.npz", "--no-qemu", "-o", tmp_path), 1, "it is a folder")
    fails(run("convert", trained / "model.npz", "-o", tmp_path), 1, "it is a folder")
    assert (tmp_path / "file").read_bytes() == b"mine" and os.listdir(tmp_path) == ["file"]


@unix
@ordinary_user
def test_a_read_only_output_folder_is_refused(run, photos, tmp_path):
    tmp_path.chmod(0o555)
    fails(run("train", photos, "-o", tmp_path / "out", *BACKBONE), 1, "Permission denied")
    fails(run("train", photos, "-o", tmp_path, *BACKBONE), 1, "Permission denied")
    tmp_path.chmod(0o755)


# ---- full disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KiB, where the system lets us make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        not sys.platform.startswith("linux")
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full_leaves_the_old_files(run, photos, trained, small_disk):
    for name in OUTPUTS:
        (small_disk / name).write_bytes(b"old")
    (small_disk / "filler").write_bytes(bytes(400 << 10))
    before = content(small_disk)
    fails(run("train", photos, "-o", small_disk, "--epochs", 1, *BACKBONE), 1, "No space left on device", "free space")
    fails(run("export", trained / "model.npz", "-o", small_disk / "model.h"), 1, "No space left")
    for folder in (small_disk / "new", small_disk):
        fails(run("export", trained / "model.npz", "--project", folder, "-o", small_disk.parent / "x.h", "--name", "x"), 1, "No space left")
    fails(run("report", trained / "model.npz", "--no-qemu", "-o", small_disk / "r.png"), 1, "No space left")
    assert content(small_disk) == before and not (small_disk / "new").exists() and not (small_disk.parent / "x.h").exists()
    said = run("train", photos, "-o", small_disk.parent / "out", "--epochs", 1, "--cache", small_disk, *BACKBONE)
    assert said.code == 0  # a full cache costs the cache
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    fails(run("train", photos, "-o", small_disk, "--epochs", 1, *BACKBONE), 1, "Read-only file system")
    fails(run("train", photos, "-o", small_disk / "new", "--epochs", 1, *BACKBONE), 1, "Read-only file system")


@pytest.mark.parametrize("fail_at", [2, 3, 4, 5])
def test_a_disk_that_fills_up_while_writing_leaves_the_old_files(run, photos, trained, tmp_path, monkeypatch, fail_at):
    shutil.copytree(trained, tmp_path / "out")
    before = content(tmp_path / "out")
    calls = []

    def filling_up(handle, real=os.fsync):
        calls.append(handle)
        if len(calls) == fail_at:  # the first one is the probe of the folder
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", filling_up)
    monkeypatch.setattr("minitl.files._sync_folder", lambda folder: None)
    fails(run("train", photos, "-o", tmp_path / "out", "--epochs", 2, "--no-cache", *BACKBONE), 1, "No space left")
    assert content(tmp_path / "out") == before and len(calls) == fail_at


@unix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["info", "predict"])
def test_full_standard_output_is_a_sentence(trained, photos, command):
    words = [command, trained / "model.npz", *([photos] if command == "predict" else [])]
    with open("/dev/full", "wb") as full:
        said = finished(started(*words, stdout=full))
    fails(said, 1, "No space left on device")
    assert len(said.err.strip().splitlines()) == 1


@unix
def test_a_reader_that_has_gone_is_no_error(trained):
    process = started("info", trained / "model.npz", "--json")
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 0


@unix
def test_names_that_the_terminal_cannot_show_are_no_error(trained, photos, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9 \xff.jpg"
    shutil.copy(next((photos / "apple").iterdir()), os.fsdecode(name))
    shutil.copy(next((photos / "apple").iterdir()), tmp_path / "🙂.jpg")
    for encoding in ("ascii:strict", "utf-8:strict"):
        said = finished(started("predict", trained / "model.npz", tmp_path, env={"PYTHONIOENCODING": encoding}))
        assert said.code == 0 and len(said.out.splitlines()) == 2
    listed = finished(started("predict", trained / "model.npz", tmp_path, "--json", env={"PYTHONIOENCODING": "ascii:strict"}))
    assert {entry["file"] for entry in listed.json["photos"]} == {os.fsdecode(name), str(tmp_path / "🙂.jpg")}


# ---- Ctrl-C and kill -9

SLOW = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores Ctrl-C
os.environ["MINITL_THREADS"] = "1"
from minitl import features, quick, cli
def slowly(function):
    def slow(*arguments, **more):
        print("step", file=sys.stderr, flush=True)
        time.sleep(0.2)
        return function(*arguments, **more)
    return slow
WHERE
sys.exit(cli.main())
"""
SLOW_TRAINING = SLOW.replace("WHERE", "quick.Head.run = slowly(quick.Head.run)")
SLOW_PHOTOS = SLOW.replace("WHERE", "features.features_of = slowly(features.features_of)")


def wait_for(process, word, times):
    """Read the process's errors until the word came so many times."""
    seen = 0
    while seen < times:
        line = process.stderr.readline()
        assert line, "the process ended early"
        seen += word in line


@unix
@pytest.mark.parametrize("code", [SLOW_TRAINING, SLOW_PHOTOS], ids=["while training", "while reading photos"])
def test_ctrl_c_ends_with_130_and_leaves_everything_as_it_was(run, photos, trained, tmp_path, code):
    shutil.copytree(trained, tmp_path / "out")
    before = content(tmp_path / "out")
    words = ["train", photos, "-o", tmp_path / "out", "--cache", tmp_path / "cache", "--seed", 1, *BACKBONE]
    process = started(*words, code=code)
    wait_for(process, b"step", 6)
    process.send_signal(signal.SIGINT)
    said = finished(process)
    assert said.code == 130 and said.out == ""
    if code == SLOW_PHOTOS:
        assert said.sentence == "stopped; files were left as they were"
    else:
        assert said.sentence.startswith("stopped after a whole step and saved in ") and "--resume" in said.sentence
        (tmp_path / "out" / "checkpoint.npz").unlink()
    assert content(tmp_path / "out") == before
    again = run(*words, "--epochs", 2, "--json")
    assert again.code == 0 and again.json["features_reused"] >= (24 if code == SLOW_TRAINING else 3)


def whole(folder, old, new):
    """Names of the outputs that are new already; each of them must be old or new, none half a file."""
    changed = []
    for name in OUTPUTS:
        data = (folder / name).read_bytes()
        if data == old[name]:
            continue
        changed.append(name)
        if name == "report.json":  # holds times, so it is never the same; the pages, too
            assert json.loads(data)["classes"]
        elif name == "report.html":
            assert data.startswith(b"<!DOCTYPE html>") and data.endswith(b"</html>\n")
        elif name == "report.png":
            Image.open(folder / name).load()
        else:
            assert data == new[name], f"{name} is neither old nor new"
    return changed


@unix
def test_kill_9_at_any_moment_leaves_old_or_new_files_and_the_features(run, photos, trained, tmp_path):
    """Killed at random moments of a whole run; then the same command is given again."""
    words = ["train", photos, "--epochs", 200, "--seed", 5, *BACKBONE]
    clean = started(*words, "-o", tmp_path / "new", "--cache", tmp_path / "other cache")
    begun = time.monotonic()
    assert finished(clean).code == 0
    whole_time = time.monotonic() - begun
    old, new = content(trained), content(tmp_path / "new")
    out, rng, moments = tmp_path / "out", random.Random(os.getpid()), []
    shutil.copytree(trained, out)
    for _ in range(4):
        process = started(*words, "-o", out, "--cache", tmp_path / "cache")
        moment = rng.uniform(0.3, 1) * whole_time
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        moments.append(round(moment, 2))
        old = old if not whole(out, old, new) else content(out)
    print(f"killed after {moments} s of {whole_time:.2f}")
    assert run(*words, "-o", out, "--cache", tmp_path / "cache").code == 0
    assert set(whole(out, content(trained), new)) == set(OUTPUTS)


KILLED = """
import os, signal, sys
from minitl import cli, files
calls = 0
def deadly(name):
    real = getattr(os, name)
    def call(*arguments):
        global calls
        calls += 1
        if calls == {at}:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    setattr(os, name, call)
cli.prepare_folder = lambda *_: None  # its probe is of no interest here
deadly("{name}")
sys.exit(cli.main())
"""


@unix
@pytest.mark.parametrize(("name", "at", "new_files"), [("fsync", 1, 0), ("fsync", 4, 0), ("replace", 1, 0), ("replace", 3, 2)])
def test_kill_9_while_writing_leaves_whole_files(run, photos, trained, tmp_path, name, at, new_files):
    words = ["train", photos, "-o", tmp_path / "out", "--epochs", 3, "--seed", 6, *BACKBONE, "--cache", tmp_path / "cache"]
    assert run(*words).code == 0
    new = content(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    shutil.copytree(trained, tmp_path / "out")
    killed = finished(started(*words, code=KILLED.format(name=name, at=at)))
    assert killed.code == -signal.SIGKILL
    assert len(whole(tmp_path / "out", content(trained), new)) == new_files
    again = run(*words, "--json")
    assert again.code == 0 and again.json["features_reused"] == 24
    assert set(whole(tmp_path / "out", content(trained), new)) == set(OUTPUTS)


@unix
@pytest.mark.parametrize(("name", "at"), [("fsync", 3), ("replace", 1), ("replace", 6)])
def test_kill_9_while_exporting_leaves_folders_that_the_same_command_completes(run, trained, quantised, tmp_path, name, at):
    words = ["--project", tmp_path / "prj", "--arduino", tmp_path / "lib", "--name", "net"]
    assert run("export", trained / "model.npz", *words).code == 0
    new = content(tmp_path)
    shutil.rmtree(tmp_path / "prj")
    shutil.rmtree(tmp_path / "lib")
    assert run("export", quantised, *words).code == 0
    old = content(tmp_path)
    assert finished(started("export", trained / "model.npz", *words, code=KILLED.format(name=name, at=at))).code == -signal.SIGKILL
    left = {path: data for path, data in content(tmp_path).items() if not path.endswith(".tmp")}
    assert left.keys() == old.keys() and all(data in (old[path], new[path]) for path, data in left.items())
    assert (left == old) == (name == "fsync" or at == 1)
    assert run("export", trained / "model.npz", *words).code == 0
    assert {path: data for path, data in content(tmp_path).items() if not path.endswith(".tmp")} == new


# ---- what is said on the way


def test_progress_is_quiet_when_asked_short_on_a_terminal_and_rare_elsewhere(capsys, monkeypatch):
    quiet = cli.Console(quiet=True)
    quiet.say("x")
    quiet.counter("photos")(3, 3)
    assert capsys.readouterr().err == ""
    plain = cli.Console()
    progress = plain.counter("photos")
    for done in range(1, 101):
        progress(done, 100)
    assert capsys.readouterr().err == "  photos: 100\n"
    terminal = cli.Console()
    terminal.terminal = True
    monkeypatch.setattr(terminal, "shown", -10.0)
    progress = terminal.counter("photos")
    progress(1, 100)
    terminal.say("a note")
    progress(100, 100)
    text = capsys.readouterr().err
    assert text.startswith("\r\x1b[K  photos: 1 of 100\n  a note\n") and text.endswith("photos: 100\n")


def test_times_and_shares_are_written_for_people():
    assert [cli.duration(s) for s in (0, 45, 89, 180, 5399, 7560)] == ["0 s", "45 s", "89 s", "3 min", "90 min", "2.1 h"]
    assert cli.percent(0.8641) == "86.4 %"


@needs_shared
def test_a_real_backbone_on_real_photos_from_the_command_line(run, tmp_path):
    """A few photos of three monkeys: the path that most users take."""
    for folder in sorted((DATA / "monkeys" / "train").iterdir())[:3]:
        (tmp_path / "photos" / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:15]:
            shutil.copy(path, tmp_path / "photos" / folder.name)
    said = run("train", tmp_path / "photos", "-o", tmp_path / "out", "--weights", WEIGHTS / FOREIGN[0], "--epochs", 40)
    assert said.code == 0
    report = json.loads((tmp_path / "out/report.json").read_text("utf-8"))
    print(said.out)
    assert report["val"]["float"]["accuracy"] >= 0.7 and report["history"][-1]["train_loss"] < 0.3
