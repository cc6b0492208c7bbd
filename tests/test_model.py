"""A model and a whole run from Python: what the verbs promise, and the course of a training from folder to figures."""

import os
import shutil

import importer_files
import numpy as np
import pytest
import small_models
from PIL import Image

import minitl
from minitl import phases, training, transfer
from minitl.demo_pictures import draw_photos
from minitl.errors import MinitlError
from minitl.images import digest, read_photo
from minitl.importers import tflite_int8
from minitl.layers import Dense
from minitl.model import deployable, find
from minitl.transfer import Notify


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    draw_photos(folder, 10, size=40)
    return folder


@pytest.fixture(scope="module")
def model():
    return small_models.model()


# ---- the verbs


def test_forward_is_the_classifier_on_the_features(model):
    x = model.recipe.normalise(small_models.pixels(20))
    logits, features = model.forward(x), model.features(x)
    assert logits.shape == (20, 3) and features.shape == (20, 102) and logits.dtype == features.dtype == np.float32
    head = model.graph.params["conv_preds"]
    assert np.allclose(logits, features @ head["kernel"] + head["bias"], atol=1e-4)
    one_by_one = np.concatenate([model.forward(image[None]) for image in x])
    assert np.abs(one_by_one - logits).max() < 1e-3
    assert model.forward(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("shape", [(2, 32, 32), (2, 33, 32, 3), (2, 3, 32, 32), (32, 32, 3)])
def test_an_image_of_another_shape_is_refused(model, shape):
    with pytest.raises(MinitlError, match=r"takes images \(N, 32, 32, 3\)"):
        model.forward(np.zeros(shape, np.float32))


def test_a_new_head_keeps_the_backbone_and_leaves_the_old_model_alone(model):
    before = {name: array.tobytes() for name, array in model.graph.arrays().items()}
    new = model.replace_head(["x", "y", "z", "w"], seed=5)
    assert new.classes == ["x", "y", "z", "w"] and new.arguments["classes"] == 4 and model.classes == ["cat", "dog", "cow"]
    for name, array in new.graph.arrays().items():
        assert name.startswith("conv_preds") or array.tobytes() == before[name]
    assert new.graph.params["conv_preds"]["kernel"].shape == (102, 4) and np.all(new.graph.params["conv_preds"]["bias"] == 0)
    assert new.calibration == {} and new.graph.frozen == {}
    kernel = lambda m: m.graph.params["conv_preds"]["kernel"].tobytes()  # noqa: E731
    assert kernel(new) == kernel(model.replace_head("xyzw", seed=5)) != kernel(model.replace_head("xyzw", seed=6))
    assert {name: array.tobytes() for name, array in model.graph.arrays().items()} == before


@pytest.mark.parametrize("classes", [[], ["one"], ["same", "same"]])
def test_a_head_needs_two_different_classes(model, classes):
    with pytest.raises(MinitlError, match="two different classes"):
        model.replace_head(classes)


def test_freeze_understands_all_none_a_layer_and_patterns():
    model = find(small_models.SMALL).replace_head(["a", "b"])
    trainable = lambda what: {node for node, _, _ in model.freeze(what).graph.trainable()}  # noqa: E731
    everything = set(model.graph.params)
    assert trainable("all") == {"conv_preds"} and trainable("none") == everything
    above = trainable("conv_pw_12")
    assert above == {"conv_dw_13", "conv_dw_13_bn", "conv_pw_13", "conv_pw_13_bn", "conv_preds"} == trainable("..conv_pw_12")
    assert trainable("=conv_pw_12") == everything - {"conv_pw_12"} and trainable("*_bn") == {n for n in everything if "_bn" not in n}
    assert trainable("all") == {"conv_preds"}  # the mask before is replaced, not added to
    with pytest.raises(MinitlError, match=r"no layer 'conv_pw_77'; did you mean conv_pw_7"):
        model.freeze("conv_pw_77")


def test_predict_ranks_all_classes_and_names_what_it_cannot_read(model, photos, tmp_path):
    good = next((photos / "apple").iterdir())
    (tmp_path / "bad.jpg").write_text("no")
    for int8 in (False, True):
        answers = model.predict([good, tmp_path / "bad.jpg", str(tmp_path / "nowhere.jpg")], int8=int8)
        first = answers[0]
        assert sorted(name for name, _ in first.classes) == ["cat", "cow", "dog"] and first.path == good and not first.problem
        p = [share for _, share in first.classes]
        assert p == sorted(p, reverse=True) and abs(sum(p) - 1) < 1e-5
        assert [answer.classes for answer in answers[1:]] == [[], []] and all(answer.problem for answer in answers[1:])
    x = model.recipe.normalise(read_photo(good, model.recipe)[None])
    logits = model.forward(x)[0].astype(np.float64)
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    by_name = dict(model.predict(good)[0].classes)
    assert np.allclose([by_name[name] for name in model.classes], expected, atol=1e-6)


def test_int8_answers_are_the_integer_networks(model, photos):
    pixels = small_models.pixels(3, seed=4)
    network = model.quantise()
    out = network.tensors[network.output]
    q = network.run(model.recipe.quantise_pixels(pixels), plain=True)
    assert np.allclose(model.deploy().logits(pixels), (q.astype(float) - out.zero_point) * out.scale, rtol=1e-6)


# ---- the int8 network


def test_constant_channels_go_and_every_bit_stays():
    """Random and extreme images; 47 channels of this network never change."""
    model = find(small_models.SMALL).replace_head(["a", "b", "c"]).calibrate(small_models.pixels(8))
    network, kept = model.deploy(), model.deploy(keep_constant=True)
    shape = network.graph.tensors[network.graph.input].shape
    images = np.random.default_rng(0).integers(-128, 128, (40, *shape), dtype=np.int8)
    images[:2] = [[[[-128]]], [[[127]]]]
    assert np.array_equal(network.graph.run(images), kept.graph.run(images, plain=True))
    assert kept.graph.digest() == model.quantise().digest() == network.original.digest() and kept.removal is None and kept.summary == []
    macs, sizes = network.removal.macs, network.removal.kernel_bytes
    print(f"MACs {macs[0]:,} -> {macs[1]:,}, bytes of kernels {sizes[0]:,} -> {sizes[1]:,}")
    assert macs[1] < macs[0] and sizes[1] < sizes[0] and network.figures().flash < kept.figures().flash
    assert model.emit("m") == network.emit("m") != model.emit("m", keep_constant=True) == kept.emit("m")
    words = " ".join(network.emit("m").split("*/")[0].split())
    assert "Constant channels: " in words and f"{macs[0]:,} -> {macs[1]:,} MACs" in words and "Constant channels" not in kept.emit("m")
    assert f"#define M_ARENA_BYTES {network.figures().arena}\n" in network.emit("m")
    assert f"#define M_CONSTANT_BYTES {network.figures().flash}\n" in network.emit("m", "x.h")


def test_a_file_is_deployed_by_what_is_in_it(model, tmp_path):
    model.save(tmp_path / "any.name")
    network = deployable(tmp_path / "any.name")
    assert network.emit("m") == model.emit("m") and network.recipe == model.recipe and network.classes == model.classes
    assert deployable(tmp_path / "any.name", keep_constant=True).emit("m") == model.emit("m", keep_constant=True)
    for dtype in ("int8", "uint8"):
        (tmp_path / "other.npz").write_bytes(small_models.quantised_file(dtype))
        network = deployable(tmp_path / "other.npz")
        assert network.model is None and network.classes == ["class 0", "class 1", "class 2"] and network.recipe.height == 16
        pixels = small_models.pixels(4, size=16)
        q = (pixels.astype(int) - 128).astype(np.int8)  # the uint8 file's own bytes, minus 128
        out = network.graph.tensors[network.graph.output]
        answers = tflite_int8.read(small_models.quantised_file(dtype), "x").graph.run(q, plain=True)
        assert np.allclose(network.logits(pixels), (answers.astype(float) - out.zero_point) * out.scale)
        assert network.provenance["notes"] == network.notes and any("preprocessing" in note for note in network.notes)


def test_what_cannot_be_deployed_is_told_what_to_do(tmp_path):
    graph, _ = importer_files.network(batch_norm=False)
    files = {
        "float.tflite": (importer_files.tflite(graph).bytes(), "computes in float; `minitl train PHOTOS --weights"),
        "float.h5": (b"\x89HDF\r\n\x1a\n and so on", "computes in float; `minitl train PHOTOS --weights"),
        "swish.tflite": (small_models.quantised_file(last="HARD_SWISH"), r"operator \d+ \(HARD_SWISH\) is not supported"),
        "cut.tflite": (small_models.quantised_file()[:900], "cut.tflite"),
        "photo.npz": (b"\xff\xd8\xff\xe0", "a JPEG picture"),
        "empty.npz": (b"", "0 bytes"),
    }
    for name, (data, words) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MinitlError, match=words) as caught:
            deployable(tmp_path / name)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 520
    for name in ("nowhere", "x" * 300, "zero\0byte"):
        with pytest.raises(MinitlError, match=r"expected minitl's \.npz"):
            deployable(tmp_path / name)


def test_a_network_that_reads_no_photos_says_so(tmp_path):
    (tmp_path / "x.tflite").write_bytes(small_models.quantised_file(shape=(16, 16, 1)))
    network = deployable(tmp_path / "x.tflite")
    assert network.recipe is None and "int x_run(" in network.emit("x")
    for verb in (lambda: network.predict("x.jpg"), lambda: network.logits(np.zeros((1, 16, 16, 1), np.uint8))):
        with pytest.raises(MinitlError, match=r"input \(16x16x1\) is made from no photos"):
            verb()


def test_a_deployed_network_is_asked_and_measured_as_a_model_is(model, photos, tmp_path):
    shutil.copytree(photos / "apple", tmp_path / "cat")
    items = minitl.folders.list_folder(tmp_path, model.classes).items
    network = model.deploy()
    paths = [item.path for item in items]
    assert [answer.classes for answer in network.predict(paths)] == [answer.classes for answer in model.predict(paths, int8=True)]
    one, two = minitl.evaluate(network, items), minitl.evaluate(model, items, int8=True)
    assert np.array_equal(one.logits, two.logits) and one.logits.shape == (10, 3)
    both = transfer.evaluate_all([model, network], items)
    assert np.array_equal(both[1].logits, one.logits) and np.array_equal(both[0].logits, minitl.evaluate(model, items).logits)


def test_what_is_missing_is_said(photos):
    backbone = find(small_models.SMALL)
    for verb in (lambda m: m.predict("x.jpg"), lambda m: m.quantise(), lambda m: m.emit("m")):
        with pytest.raises(MinitlError, match="no classifier: train one"):
            verb(backbone)
    with pytest.raises(MinitlError, match="never calibrated"):
        backbone.replace_head(["a", "b"]).quantise()
    assert not isinstance(backbone.graph[backbone.graph.output].layer, Dense) and backbone.features(np.zeros((1, 32, 32, 3))).shape == (
        1,
        102,
    )


def test_classes_without_names_are_numbered():
    model = small_models.model()
    model._weights.classes = None
    assert model.classes == ["class 0", "class 1", "class 2"]


# ---- where models come from


def test_outputs_get_other_names_and_compute_the_same(model):
    x = small_models.pixels(3)
    for network in (model, model.deploy()):
        other = network.named(["x", "y", "z"])
        assert other.classes == ["x", "y", "z"] and network.classes == ["cat", "dog", "cow"]
        assert np.array_equal(other.logits(x), network.logits(x))
        for names, words in ((["x", "y"], "3 classes, found 2 names"), (["x", "", "z"], "class 1"), (["x", "y", "a\nb"], "class 2")):
            with pytest.raises(MinitlError, match=words):
                network.named(names)
    assert '"x" /* 0 */' in model.deploy().named(["x", "y", "z"]).emit("net")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("random:mobilenet_v1_0.1_32", (32, 32, 3)),
        ("random:mobilenet_v2_.35_32x48", (32, 48, 3)),
        ("random:mobilenet_v1_1_33", (33, 33, 3)),
    ],
)
def test_random_networks_have_names(name, shape):
    assert find(name).graph.input_shape == shape
    assert all(np.array_equal(a, b) for a, b in zip(find(name).graph.arrays().values(), find(name).graph.arrays().values(), strict=True))


@pytest.mark.parametrize(
    "name",
    ["random:", "random:mobilenet_v1", "random:mobilenet_v1_1.2.3_96", "random:mobilenet_v1_0.25_0", "random:mobilenet_v1_0.25_16",
     "random:mobilenet_v1_0_96", "random:mobilenet_v1_1000_96", "random:resnet_1_96", "random:mobilenet_v1_0.25_" + "9" * 6000,
     "random:mobilenet_v1_٣_96", "nofile", "x" * 300, "", "zero\0byte", "/", "/dev/null"],
)  # fmt: skip
def test_a_model_that_does_not_exist_is_refused_in_words(name):
    with pytest.raises(MinitlError) as caught:
        find(name)
    assert str(caught.value).isprintable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MinitlError, match="no ordinary file"):
        minitl.load(tmp_path / "pipe")


# ---- a whole run


def test_a_model_of_ones_own_is_trained_in_place(photos):
    model = find(small_models.SMALL).replace_head(["apple", "banana", "cucumber"]).freeze("conv_pw_10")
    model.graph.freeze("=conv_pw_11", np.arange(51) % 2 == 0)
    before = {name: array.copy() for name, array in model.graph.arrays().items()}
    run = minitl.fit(model, minitl.folders.list_folder(photos), epochs=2)
    assert run.model is model and run.model.calibration
    kernel, old = model.graph.params["conv_pw_11"]["kernel"], before["conv_pw_11/kernel"]
    assert np.array_equal(kernel[..., ::2], old[..., ::2]) and np.all(np.any(kernel != old, axis=(0, 1, 2))[1::2])
    assert np.array_equal(model.graph.params["conv_pw_10"]["kernel"], before["conv_pw_10/kernel"])
    with pytest.raises(MinitlError, match="use replace_head"):
        minitl.fit(model.replace_head(["a", "b"]), minitl.folders.list_folder(photos))


def test_the_lines_of_the_readme(photos, tmp_path):
    backbone = find(small_models.SMALL)
    run = minitl.train(backbone, photos, epochs=4)
    digest = run.model.save(tmp_path / "model.npz")
    model = minitl.load(tmp_path / "model.npz")
    assert model.content().content_hash() == digest and model.classes == ["apple", "banana", "cucumber"]
    assert model.emit("m") == run.model.emit("m")
    assert model.provenance["backbone"] == backbone.provenance and model.provenance["training"]["photos"] == {"train": 24, "val": 6}
    result = minitl.evaluate(model, run.val)
    assert result.accuracy == run.report["val"]["float"]["accuracy"] and len(result.items) == 6
    assert np.array_equal(np.array(result.confusion()), np.array(run.report["val"]["float"]["confusion"]))
    for name, array in backbone.graph.arrays().items():
        assert np.array_equal(model.graph.arrays()[name], array), name  # the backbone was frozen


def test_the_report_says_what_happened(photos):
    run = minitl.train(find(small_models.SMALL), photos, epochs=5, seed=3)
    report = run.report
    assert len(report["history"]) == 5 and 1 <= report["best_epoch"] <= 5
    best = report["history"][report["best_epoch"] - 1]
    assert best["val_loss"] == min(line["val_loss"] for line in report["history"])
    assert abs(best["val_accuracy"] - report["val"]["float"]["accuracy"]) < 1e-9
    assert report["val"]["count"] == 6 == np.sum(report["val"]["int8"]["confusion"])
    wrong = 6 - np.trace(report["val"]["float"]["confusion"])
    assert len(report["mistakes"]) == wrong and report["settings"]["seed"] == 3 and report["skipped"] == []


@pytest.mark.parametrize("scale", [0, 1e-6, 1, 30])
def test_features_of_any_length_are_learned_from(photos, scale):
    """The features of a random network are tiny, those of a dead one are zero."""
    backbone = find(small_models.SMALL)
    small_models.settle(backbone.graph, backbone.recipe.normalise(small_models.pixels(8)))
    for name in ("gamma", "beta"):
        backbone.graph.params["conv_pw_13_bn"][name] = backbone.graph.params["conv_pw_13_bn"][name] * np.float32(scale)
    run = minitl.train(backbone, photos, epochs=30)
    rate, history = run.report["settings"]["rate"], run.report["history"]
    print(f"scale {scale}: rate {rate:.4f}, loss {history[0]['train_loss']:.3f} -> {history[-1]['train_loss']:.3f}")
    assert 0 < rate <= phases.HEAD_STEP and history[-1]["train_loss"] < (1.2 if scale <= 1e-6 else 0.8)


def test_deeper_training_starts_from_the_trained_classifier_and_keeps_nothing_worse(photos):
    losses = {}
    for freeze in ("all", "conv_pw_12", "none"):
        backbone = find(small_models.SMALL).note(source="elsewhere")
        small_models.settle(backbone.graph, backbone.recipe.normalise(small_models.pixels(8)))
        run = minitl.train(backbone, photos, freeze=freeze, epochs=10)
        assert [phase["name"] for phase in run.report["phases"]] == ["classifier", "fine-tuning"][: 1 + (freeze != "all")]
        val = minitl.evaluate(run.model, run.val)
        losses[freeze] = training.loss_and_accuracy(val.logits, val.labels)[0]
        assert run.model.graph.frozen.keys() == (find(small_models.SMALL).replace_head(["a", "b"]).freeze(freeze).graph.frozen.keys())
    print(losses)
    assert losses["conv_pw_12"] <= losses["all"] + 1e-5 and losses["none"] <= losses["all"] + 1e-5


def test_all_layers_can_be_trained(photos):
    run = minitl.train(find(small_models.SMALL), photos, freeze="none", epochs=2)
    moved = [
        name for name, array in find(small_models.SMALL).graph.arrays().items() if not np.array_equal(run.model.graph.arrays()[name], array)
    ]
    assert "conv1/kernel" in moved and "conv1_bn/moving_mean" in moved and run.report["settings"]["rate"] == phases.SCRATCH.rate
    assert [phase["name"] for phase in run.report["phases"]] == ["from random weights"]


def test_training_goes_on_from_a_trained_model(photos, tmp_path):
    first = minitl.train(find(small_models.SMALL), photos, epochs=3).model
    first.save(tmp_path / "one.npz")
    second = minitl.train(minitl.load(tmp_path / "one.npz"), photos, freeze="conv_pw_12", epochs=2).model
    assert second.provenance["backbone"] == first.provenance and second.provenance["training"]["freeze"] == "50 of 55 layers"
    assert np.array_equal(second.graph.params["conv1"]["kernel"], first.graph.params["conv1"]["kernel"])


def test_copies_lie_on_one_side(tmp_path, photos):
    """Each photo is there three times, once saved anew; a split by name would put copies on both sides."""
    for name in ("apple", "banana"):
        (tmp_path / name).mkdir()
        for i, path in enumerate(sorted((photos / name).iterdir())):
            shutil.copy(path, tmp_path / name / f"{i}.jpg")
            shutil.copy(path, tmp_path / name / f"copy of {i}.jpg")
            Image.open(path).save(tmp_path / name / f"again {i}.jpg", quality=95)
    run = minitl.train(find(small_models.SMALL), tmp_path, epochs=1)
    val = {item.name.split("/")[0] + item.path.stem.split()[-1] for item in run.val}
    assert len(run.val) == 3 * len(val) == 12


def test_divided_folders_are_used_as_they_are_and_shared_photos_are_mentioned(tmp_path, photos):
    said = []
    for part, count in (("train", 6), ("val", 8)):
        for name in ("apple", "banana"):
            (tmp_path / part / name).mkdir(parents=True)
            for path in sorted((photos / name).iterdir())[count - 6 : count]:
                shutil.copy(path, tmp_path / part / name)
    run = minitl.train(find(small_models.SMALL), tmp_path, epochs=1, notify=Notify(say=said.append))
    assert len(run.val) == 12 and all(item.part == "val" for item in run.val)
    assert any(line.startswith("8 validation photos are copies") for line in said)
    with pytest.raises(MinitlError, match="own train and val folders"):
        minitl.train(find(small_models.SMALL), tmp_path, val="0.2")
    (tmp_path / "more").mkdir()
    for name in ("apple", "banana"):
        shutil.copytree(tmp_path / "val" / name, tmp_path / "more" / name)
    run = minitl.train(find(small_models.SMALL), tmp_path / "train", epochs=1, val=str(tmp_path / "more"))
    assert len(run.val) == 12


def test_the_photos_for_calibration_are_chosen_by_their_content(photos, monkeypatch):
    monkeypatch.setattr(transfer, "CALIBRATION_PHOTOS", 5)
    items = minitl.list_folder(photos).items
    digests = [digest(item.path.read_bytes()) for item in items]
    seen = []
    for order in (range(30), reversed(range(30))):
        chosen = list(order)
        model = small_models.model(["apple", "banana", "cucumber"], calibrated=False)
        transfer.calibrate(model, [items[i] for i in chosen], [digests[i] for i in chosen], {})
        seen.append({name: (s.low, s.high, s.mean.tobytes()) for name, s in model.calibration.items()})
    assert seen[0] == seen[1]


def test_bad_photos_are_counted_and_a_class_of_bad_photos_only_is_an_error(tmp_path, photos):
    shutil.copytree(photos, tmp_path / "photos")
    for name in ("apple", "banana"):
        (tmp_path / "photos" / name / "text.jpg").write_text("no picture")
    (tmp_path / "photos" / "apple" / "notes.txt").write_text("notes")
    run = minitl.train(find(small_models.SMALL), tmp_path / "photos", epochs=1)
    assert sorted(entry["file"] for entry in run.report["skipped"]) == ["apple/notes.txt", "apple/text.jpg", "banana/text.jpg"]
    for path in (tmp_path / "photos" / "banana").iterdir():
        path.write_bytes(b"\xff\xd8\xff damaged")
    with pytest.raises(MinitlError, match="class 'banana' has no photo to train on"):
        minitl.train(find(small_models.SMALL), tmp_path / "photos", epochs=1)


def test_one_photo_twice_cannot_be_divided(tmp_path, photos):
    for name in ("apple", "banana"):
        (tmp_path / name).mkdir()
        shutil.copy(next((photos / name).iterdir()), tmp_path / name / "1.jpg")
    with pytest.raises(MinitlError, match="no photo for validation"):
        minitl.train(find(small_models.SMALL), tmp_path, epochs=1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"seed": -1}, "seed must be"), ({"epochs": 0}, "epochs must be"), ({"freeze": "*"}, "every layer is frozen"), ({"val": "2"}, "share"),
     ({"freeze": "conv_preds"}, "every layer is frozen"), ({"val": "nan"}, "share"), ({"val": "nowhere"}, "nowhere")],
)  # fmt: skip
def test_impossible_wishes_are_refused_before_a_photo_is_read(photos, monkeypatch, wrong, words):
    monkeypatch.setattr(transfer, "extract", lambda *_: pytest.fail("photos were read"))
    with pytest.raises(MinitlError, match=words):
        minitl.train(find(small_models.SMALL), photos, **wrong)


def test_evaluating_reads_photos_one_by_one_and_says_which_cannot_be_read(model, photos, tmp_path):
    shutil.copytree(photos / "apple", tmp_path / "cat")
    (tmp_path / "cat" / "text.jpg").write_text("no")
    listing = minitl.folders.list_folder(tmp_path, model.classes)
    result = minitl.evaluate(model, listing.items, int8=True)
    assert [entry["file"] for entry in result.skipped] == ["cat/text.jpg"] and len(result.items) == 10
    assert set(result.summary()) == {"accuracy", "count", "classes", "confusion", "skipped", "neither"}
    with pytest.raises(MinitlError, match="none of the 1 photos can be read"):
        minitl.evaluate(model, [item for item in listing.items if "text" in item.name])
