"""A whole run, at its edges: what explodes, what is rare, what is many, what is asked for besides."""

import json

import numpy as np
import pytest
import small_models
from PIL import Image

import minitl
from minitl import autofreeze, cli, features, model, phases, training, transfer
from minitl.augment import Augmentation
from minitl.errors import MinitlError
from minitl.model import find
from minitl.transfer import Notify


def draw(folder, classes, count, size=36, seed=0):
    """folder/CLASS/*.png: noise of the colour of the class."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        (folder / f"class {label:03}").mkdir(parents=True)
        colour = np.random.default_rng(1000 + label).integers(40, 216, 3)
        for i in range(count):
            pixels = np.clip(colour + rng.integers(-30, 30, (size, size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class {label:03}" / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("photos"), 3, 12)


def backbone():
    made = find(small_models.SMALL).note(source="elsewhere")
    small_models.settle(made.graph, made.recipe.normalise(small_models.pixels(8)))
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", ["huge", "none"])
def test_fine_tuning_that_explodes_leaves_the_trained_classifier_and_says_so(photos, monkeypatch, number):
    """With BatchNorm the loss may only become huge; where it is no number any more, the run says so and ends that training."""
    said, real = [], training.train_step

    def step(graph, feeds, targets, optimiser, rate, *rest, **more):
        logits, losses = real(graph, feeds, targets, optimiser, rate, *rest, **more)
        return logits, losses * np.float32("nan") if number == "none" and rate > 100 else losses

    alone = transfer.train(backbone(), photos)
    monkeypatch.setattr(training, "train_step", step)
    run = transfer.train(backbone(), photos, fine_tune="all", rate=1000.0, epochs=3, notify=Notify(say=said.append))
    assert run.report["val"]["float"] == alone.report["val"]["float"] and run.report["phases"][1]["best_epoch"] == 0
    assert any("no longer a number" in line and "smaller rate" in line for line in said) == (number == "none")
    for name, array in alone.model.graph.arrays().items():
        assert np.array_equal(array, run.model.graph.arrays()[name]), name


@pytest.mark.filterwarnings("ignore")
def test_a_network_that_explodes_from_the_start_is_an_error_in_words(photos):
    made = backbone()
    kernel = made.graph.params["conv_pw_13"]["kernel"]
    made.graph.params["conv_pw_13_bn"]["gamma"] = np.full(kernel.shape[-1], 3e38, np.float32)
    with pytest.raises(MinitlError, match=r"no longer a number|not finite"):
        transfer.train(made, photos, freeze="none", epochs=2, augment=None)


def test_one_photo_of_each_class_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(MinitlError, match=r"no photo for validation.*--val"):
        transfer.train(backbone(), draw(tmp_path / "one", 3, 1))
    more = draw(tmp_path / "more", 3, 2, seed=5)
    run = transfer.train(backbone(), tmp_path / "one", val=str(more), imprint=True)
    assert run.report["phases"][0]["name"] == "imprinted classifier" and run.report["val"]["count"] == 6


def test_two_hundred_classes_are_trained_drawn_and_emitted(tmp_path):
    folder = draw(tmp_path / "photos", 200, 3)
    run = transfer.train(backbone(), folder, epochs=2)
    cli.write_run(run, tmp_path, "model")
    assert len(run.report["classes"]) == 200 and (tmp_path / "report.html").stat().st_size > 10_000
    assert "#define MODEL_CLASSES 200" in (tmp_path / "model.h").read_text()


@pytest.mark.parametrize("most", [0, 20_000])
def test_pixels_that_are_kept_give_the_run_of_photos_that_are_read_again(photos, monkeypatch, most):
    runs, reads, real = [], [], transfer.try_photo
    monkeypatch.setattr(transfer, "try_photo", lambda *given: reads.append(given) or real(*given))
    for bound in (features.PIXELS_KEPT, most):
        monkeypatch.setattr(features, "PIXELS_KEPT", bound)
        run = transfer.train(backbone(), photos, epochs=2)
        runs.append((run.model.content().content_hash(), run.network.emit("model"), run.report["val"], run.report["mistakes"]))
        assert bool(reads) == (bound == most)
    assert runs[0] == runs[1]
    found = features.extract(run.model.freeze("all").graph, run.model.recipe, [item.path for item in run.train])
    assert sum(pixels.nbytes for pixels in found.pixels.values()) <= most


def test_imprinting_answers_by_the_nearest_class_and_can_be_fine_tuned(photos):
    run = transfer.train(backbone(), photos, imprint=True)
    assert len(run.report["history"]) == 1 and run.report["history"][0]["train_accuracy"] > 0.8
    deeper = transfer.train(backbone(), photos, imprint=True, fine_tune="1", epochs=1)
    assert [phase["name"] for phase in deeper.report["phases"]] == ["imprinted classifier", "fine-tuning"]
    with pytest.raises(MinitlError, match="hidden"):
        transfer.train(backbone(), photos, imprint=True, hidden=(4,))


def test_neither_is_learned_measured_and_carried_along(photos, tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    for i in range(5):
        Image.fromarray(small_models.pixels(5, seed=9)[i]).save(others / f"{i}.png")
    run = transfer.train(backbone(), photos, other=others)
    table = run.report["neither"]
    assert table["unknown"].startswith("5 photos of") and sum(row["chosen"] for row in table["rows"]) == 1
    run.model.save(tmp_path / "model.npz")
    model = minitl.load(tmp_path / "model.npz")
    assert model.neither is not None and "model_is_neither" in model.emit("model")
    kept = [answer.neither for answer in model.predict([item.path for item in run.val])]
    assert np.mean(kept) <= 0.35
    assert transfer.train(backbone(), photos, other="", epochs=1).report["neither"]["unknown"].startswith("photos of each class")
    with pytest.raises(MinitlError, match=r"between 0\.5 and 1"):
        transfer.train(backbone(), photos, other="", neither_keep=0.2, epochs=1)


def test_rounding_is_trained_only_where_int8_loses_more_than_allowed(photos, monkeypatch):
    calls = []
    monkeypatch.setattr(transfer.Photos, "train_rounded", lambda self, both, seed, kept, note: calls.append(seed) or both)
    transfer.train(backbone(), photos, max_int8_drop=100.0, epochs=1)
    assert not calls
    with pytest.raises(MinitlError, match="from 0 to 100"):
        transfer.train(backbone(), photos, max_int8_drop=-1.0)


def test_training_by_rounding_leaves_an_int8_network_that_is_no_worse(photos, monkeypatch):
    plain = transfer.train(backbone(), photos, fine_tune="2", epochs=1)
    monkeypatch.setattr(transfer, "points_lost", lambda both: 5.0)
    run = transfer.train(backbone(), photos, fine_tune="2", epochs=1, max_int8_drop=0.0)
    assert any("with rounding" in note for note in run.report["notes"]) and not any(
        "with rounding" in note for note in plain.report["notes"]
    )
    assert run.report["val"]["int8"]["accuracy"] >= plain.report["val"]["int8"]["accuracy"]
    assert ("rounding" in run.model.provenance) == (run.report["val"]["int8"]["accuracy"] > plain.report["val"]["int8"]["accuracy"])


def test_the_report_of_auto_holds_the_table_and_the_curve(photos, capsys, tmp_path):
    run = transfer.train(backbone(), photos, freeze="auto", epochs=2)
    rows = run.report["auto"]["rows"]
    assert [row["what"] for row in rows][:2] == ["the classifier alone", "all layers"] and sum(row["chosen"] for row in rows) == 1
    assert run.report["learning"] and run.report["auto"]["sentences"]
    cli.write_run(run, tmp_path, "model")
    json.loads((tmp_path / "report.json").read_text())
    with pytest.raises(MinitlError, match="leave fine_tune out"):
        transfer.train(backbone(), photos, freeze="auto", fine_tune="2")


@pytest.mark.parametrize("count", [2, 4, 16])
def test_auto_takes_a_handful_of_photos(tmp_path, count):
    run = transfer.train(backbone(), draw(tmp_path / "photos", 2, count), freeze="auto", epochs=1)
    auto = run.report["auto"]
    assert bool(auto["rows"]) == (count > 4) and auto["sentences"]
    if count == 2:  # one of each class to train on: nothing to measure by
        assert "too few different photos" in auto["sentences"][0] and run.report["facts"]["frozen"] == "all but the classifier"
    cli.write_run(run, tmp_path, "model")


@pytest.mark.parametrize("origin", ["elsewhere", "random:"])
@pytest.mark.parametrize("augment", [None, Augmentation()])
def test_auto_ends_with_the_bytes_of_the_depth_that_it_chose(photos, monkeypatch, origin, augment):
    """Random weights are trained at once: their validation photos go through the network as it is, not as it was."""

    def choose(*arguments):
        return autofreeze.Choice("all", [], [])

    monkeypatch.setattr(autofreeze, "choose", choose)
    settings = {"epochs": 2, "augment": augment}
    chosen = transfer.train(backbone().note(source=origin), photos, freeze="auto", **settings)
    told = transfer.train(backbone().note(source=origin), photos, fine_tune="all", **settings)
    assert chosen.model.content().content_hash() == told.model.content().content_hash()
    assert chosen.report["history"] == told.report["history"]


def test_a_classifier_on_augmented_photos_has_the_rate_that_suits_its_features(photos):
    plain, augmented = (transfer.train(backbone(), photos, augment=a, epochs=1).report["phases"][0] for a in (None, Augmentation(0.5)))
    assert augmented["rate"] == plain["rate"] != phases.HEAD.rate
    assert transfer.train(backbone(), photos, augment=Augmentation(0.5), rate=0.01, epochs=1).report["phases"][0]["rate"] == 0.01


def test_a_full_disk_at_the_end_keeps_the_checkpoint_and_resuming_needs_no_training(photos, tmp_path, monkeypatch, capsys):
    from minitl import checkpoints

    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    monkeypatch.setattr(model, "find", lambda name, seed: backbone())
    words = ["train", str(photos), "--weights", "x", "--no-cache", "-o", str(tmp_path / "out"), "--fine-tune", "1", "--epochs", "2"]
    real = cli.write_together

    def full(contents):
        raise MinitlError("cannot write out/model.npz: No space left on device; check the free space")

    monkeypatch.setattr(cli, "write_together", full)
    assert cli.main(words) == 1 and "No space left" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint.npz"]
    monkeypatch.setattr(cli, "write_together", real)
    monkeypatch.setattr(training, "fit", lambda *_: pytest.fail("it trained again"))
    assert cli.main([*words, "--resume"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(cli.OUTPUTS)


@pytest.mark.slow
def test_a_hundred_thousand_photos_fit(tmp_path):
    """Small ones; the network is small, too. What is measured is memory and time beside them."""
    import resource

    rng = np.random.default_rng(0)
    for label in range(4):
        (tmp_path / "photos" / f"{label}").mkdir(parents=True)
        for i in range(25_000):
            pixels = rng.integers(0, 128, (12, 12, 3), dtype=np.uint8)
            pixels[..., label % 3] += 60 * (label != 3)
            (tmp_path / "photos" / f"{label}" / f"{i}.ppm").write_bytes(b"P6 12 12 255\n" + pixels.tobytes())
    run = transfer.train(backbone(), tmp_path / "photos", epochs=3, cache=tmp_path / "cache")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"accuracy {run.report['val']['float']['accuracy']:.3f}, seconds {run.report['seconds']}, peak {peak:.0f} MiB")
    assert run.report["val"]["count"] > 19_000 and run.report["val"]["float"]["accuracy"] > 0.5 and peak < 2000  # chance: 0.25
