"""weights/pretrain.py, whole but tiny: drawn pictures, a network of a few channels."""

import csv
import importlib.util
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from minitl import MinitlError, load, training
from minitl.demo_pictures import draw_photos

SCRIPT = Path(__file__).parents[1] / "weights" / "pretrain.py"
TINY = ["--weights", "random:mobilenet_v1_0.1_32", "--epochs", "3", "--batch", "16", "--rate", "0.05", "--warmup", "0.5"]


@pytest.fixture(scope="module")
def pretrain():
    spec = importlib.util.spec_from_file_location("pretrain", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    draw_photos(folder / "train", 20, size=40)
    draw_photos(folder / "val", 6, seed=1, size=40)
    return folder


def run(pretrain, photos, out, *options):
    return pretrain.main([str(photos), "--out", str(out), *TINY, *options])


def curve(out):
    return list(csv.DictReader(io.StringIO((out / "curve.csv").read_text())))


def test_a_run_leaves_a_backbone_that_knows_its_classes_and_a_curve(pretrain, photos, tmp_path):
    assert run(pretrain, photos, tmp_path, "--sizes", "32,64") == 0
    model = load(tmp_path / "backbone.npz")
    assert model.classes == ["apple", "banana", "cucumber"] and "3 epochs" in model.provenance["trained"] and model.pretrained
    assert [int(line["epoch"]) for line in curve(tmp_path)] == [1, 2, 3]
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert all(np.array_equal(a, a.astype(np.float16)) for a in model.graph.arrays().values()), "half precision"


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(pretrain, photos, tmp_path, monkeypatch):
    assert run(pretrain, photos, tmp_path / "whole") == 0

    class Killed(Exception):
        pass

    step, seen = training.train_step, []

    def dies(*arguments, **options):
        seen.append(1)
        if len(seen) == 7:
            raise Killed
        return step(*arguments, **options)

    monkeypatch.setattr(pretrain.Checkpoint, "keeper", every_step(pretrain.Checkpoint.keeper))
    monkeypatch.setattr(training, "train_step", dies)
    with pytest.raises(Killed):
        run(pretrain, photos, tmp_path / "killed")
    monkeypatch.setattr(training, "train_step", step)
    assert run(pretrain, photos, tmp_path / "killed") == 0
    for name in ("backbone.npz", "curve.csv", "curve.png"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def every_step(keeper):
    """The keeper, made to save at every step instead of every half minute."""

    def impatient(self, *arguments):
        keep = keeper(self, *arguments)

        def now(at):
            self._saved = -1e9
            keep(at)

        return now

    return impatient


def test_archives_give_the_bytes_that_folders_give(pretrain, photos, tmp_path):
    archives = []
    for part in ("train", "val"):
        archives.append(str(tmp_path / f"{part}.tar"))
        with tarfile.open(archives[-1], "w") as archive:
            archive.add(photos / part, part)
    assert run(pretrain, photos, tmp_path / "folder", "--epochs", "1") == 0
    assert pretrain.main([*archives, "--out", str(tmp_path / "archives"), *TINY, "--epochs", "1"]) == 0
    assert (tmp_path / "folder" / "backbone.npz").read_bytes() == (tmp_path / "archives" / "backbone.npz").read_bytes()


def test_a_teacher_is_asked_once_about_every_view(pretrain, photos, tmp_path, capsys):
    assert run(pretrain, photos, tmp_path / "teacher", "--weights", "random:mobilenet_v1_0.25_32") == 0
    taught = ["--teacher", str(tmp_path / "teacher" / "backbone.npz"), "--views", "2"]
    assert run(pretrain, photos, tmp_path / "taught", *taught) == 0
    assert capsys.readouterr().out.count("the teacher knows") == 2
    assert len(list((tmp_path / "taught").glob("teacher-*.npy"))) == 2
    alone = [line["train_loss"] for line in curve(tmp_path / "teacher")]
    assert alone != [line["train_loss"] for line in curve(tmp_path / "taught")]


def test_mistakes_are_told_in_one_sentence(pretrain, photos, tmp_path, capsys):
    (tmp_path / "no.tar").write_bytes(b"not an archive")
    for arguments, word in (
        ([str(tmp_path / "no.tar")], "no .tar archive"),
        ([str(tmp_path / "nothing")], "nothing"),
        ([str(photos), "--teacher", str(tmp_path / "t.npz")], "--views"),
        ([str(photos), "--sizes", "a,b"], "--sizes"),
        ([str(photos), "--epochs", "0"], "epochs"),
    ):
        assert pretrain.main([*arguments, "--out", str(tmp_path / "out"), *TINY, *arguments[1:]]) == 1
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1
    other = tmp_path / "other"
    draw_photos(other, 5, size=40)
    (other / "apple").rename(other / "pear")
    assert run(pretrain, other, tmp_path / "pears") == 0
    with pytest.raises(MinitlError, match="other classes"):
        pretrain.run(
            pretrain.arguments(
                [str(photos), "--out", str(tmp_path / "o"), *TINY, "--views", "1", "--teacher", str(tmp_path / "pears" / "backbone.npz")]
            )
        )
