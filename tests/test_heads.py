"""What stands between the features and the answer: hidden layers from Python to C, and classifiers made of a few photos."""

import numpy as np
import pytest
import small_models
from compiled import STRICT, check_program, compile_c, compiler, driver
from conftest import DATA, WEIGHTS, needs_shared

import minitl
from minitl import features, folding, heads, phases, training, transfer, weights
from minitl.errors import MinitlError
from minitl.features import Features
from minitl.layers import Dense

# ---- hidden layers


@pytest.fixture(scope="module")
def deep():
    """A small model with two hidden layers of odd sizes, and two units in the first that no image can switch on."""
    made = small_models.model(calibrated=False).replace_head(["cat", "dog", "cow"], seed=1, hidden=[13, 9], dropout=0.2)
    small_models.stir(made.graph)
    small_models.settle(made.graph, made.recipe.normalise(small_models.pixels(8)))
    made.graph.params["hidden_1"]["kernel"][:, 4:6] *= np.float32(1e-3)
    made.graph.params["hidden_1"]["bias"][4:6] = -9
    return made.freeze("all").calibrate(small_models.pixels(8))


def test_freezing_all_leaves_the_hidden_layers_to_train_and_nothing_else_moves(deep):
    model = deep.replace_head(["a", "b", "c"], hidden=[16]).freeze("all")
    assert {node for node, _, _ in model.graph.trainable()} == {"hidden_1", "conv_preds"}
    assert model.graph.border() == deep.replace_head("abc").freeze("all").graph.border(), "features are cached under another name"
    before = {name: array.tobytes() for name, array in model.graph.arrays().items()}
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = (rng.normal(size=(3, 102))[labels] + 0.3 * rng.normal(size=(60, 102))).astype(np.float32)
    features = Features(x, [("dropout", (102,))], model.recipe)
    history = training.fit(model.graph, features, labels, features, labels, training.Settings(epochs=20, rate=0.01))
    changed = {name for name, array in model.graph.arrays().items() if array.tobytes() != before[name]}
    print(f"accuracy {history.epochs[-1].val_accuracy:.3f} after {len(history.epochs)} epochs")
    assert changed == {f"{node}/{part}" for node in ("hidden_1", "conv_preds") for part in ("kernel", "bias")}
    assert history.epochs[-1].val_accuracy == 1


def test_a_model_with_hidden_layers_comes_back_from_its_file(deep, tmp_path):
    digest = deep.save(tmp_path / "m.npz")
    loaded = minitl.load(tmp_path / "m.npz")
    assert loaded.arguments["hidden"] == [13, 9] and loaded.content().content_hash() == digest
    x = deep.recipe.normalise(small_models.pixels(3))
    assert loaded.forward(x).tobytes() == deep.forward(x).tobytes()
    assert loaded.features(x).shape == (3, 102) and loaded.emit("m") == deep.emit("m")


def test_a_file_from_before_hidden_layers_has_none(tmp_path):
    model = small_models.model()
    content = model.content()
    meta = content.meta()
    del meta["arguments"]["hidden"]
    digest = weights.content_hash(meta, content.entries())
    text = weights._json(meta | {"sha256": digest})
    old = weights.pack({weights.JSON_ENTRY: np.frombuffer(text, np.uint8), **content.entries()})
    (tmp_path / "old.npz").write_bytes(old)
    loaded = minitl.load(tmp_path / "old.npz")
    assert loaded.graph.nodes == model.graph.nodes and not loaded.arguments["hidden"]
    assert loaded.emit("m") == model.emit("m")


def test_hidden_layers_are_integers_without_rectifiers_of_their_own(deep):
    integer = deep.quantise()
    assert [(op.name, op.output) for op in integer.ops[-3:]] == [
        ("hidden_1", "hidden_1_relu"), ("hidden_2", "hidden_2_relu"), ("conv_preds", "conv_preds"),
    ]  # fmt: skip
    values = integer.run_all(deep.recipe.quantise_pixels(small_models.pixels(8)))  # others leave the ranges
    features, logits = ((values[name].astype(np.float32) - t.zero_point) * np.float32(t.scale)
                        for name, t in ((name, integer.tensors[name]) for name in (deep.feature_node, integer.output)))  # fmt: skip
    exact = deep.graph.evaluate({deep.feature_node: features})[deep.graph.output]
    noise = np.square(exact - logits).mean() / exact.var()
    print(f"the head alone, int8 against float: {-10 * np.log10(noise):.1f} dB")
    assert noise < 0.01
    folded = folding.fold(deep.graph)
    assert not any(node.name.endswith("dropout") for node in folded.nodes) and isinstance(folded["hidden_1"].layer, Dense)


def test_units_that_never_switch_on_are_left_out_and_every_bit_stays(deep):
    whole, pruned = deep.deploy(keep_constant=True), deep.deploy()
    sizes = {op.name: op.kernel.shape for op in pruned.graph.ops if op.name.startswith("hidden")}
    print(f"{sizes}; {pruned.summary}")
    assert sizes["hidden_1"][1] <= 11 and sizes["hidden_2"][0] == sizes["hidden_1"][1]
    x = deep.recipe.quantise_pixels(small_models.pixels(16, seed=3))
    assert np.array_equal(whole.graph.run(x), pruned.graph.run(x))


@pytest.mark.parametrize("name", ["gcc", "clang", "g++"])
def test_a_header_with_hidden_layers_equals_python(deep, tmp_path, name):
    networks = [deep.deploy(), deep.deploy(keep_constant=True)]
    for i, network in enumerate(networks):
        (tmp_path / f"n{i}.h").write_text(network.emit(f"n{i}"))
    (tmp_path / "main.c").write_text(driver(["n0", "n1"]))
    sanitise = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if name == "gcc" else []
    compile_c(compiler(name), "-O1", *STRICT, *sanitise, "-DSELFTEST", "main.c", "-o", "program", cwd=tmp_path)
    print(f"{check_program(tmp_path / 'program', [network.graph for network in networks], tmp_path)} logits equal")


@pytest.mark.parametrize("hidden", [[0], [4097], [True], [1] * 5, ["8"], [8.0], [[8]]])
def test_impossible_hidden_layers_are_refused(deep, hidden):
    with pytest.raises(MinitlError, match="argument hidden of the network must be a list of at most 4 layers with 1 to 4096 units"):
        deep.replace_head(["a", "b"], hidden=hidden)


# ---- imprinted weights


def photos(counts, seed=0, noise=0.5):
    """Features (N, 102) in clusters, of any length, none negative, and labels: counts[c] photos of class c, shuffled."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    centres = rng.uniform(0, 1, (len(counts), 102))
    f = np.maximum(centres[labels] + noise * rng.normal(size=(len(labels), 102)), 0)
    return (f * rng.uniform(1, 30, (len(labels), 1))).astype(np.float32), labels


def head(count, hidden=()):
    return small_models.model(calibrated=False).replace_head([f"c{i}" for i in range(count)], hidden=hidden)


@pytest.mark.parametrize("counts", [(1, 1), (1, 1, 1), (5, 5, 5), (1, 9, 30), (2,) * 10])
def test_an_imprinted_classifier_answers_the_class_nearest_by_angle(counts):
    model, (f, labels) = head(len(counts)), photos(counts)
    heads.imprint(model, f, labels)
    kernel, bias = (model.graph.params["conv_preds"][part] for part in ("kernel", "bias"))
    unit = f / np.linalg.norm(f, axis=1, keepdims=True)
    means = np.stack([unit[labels == c].mean(axis=0) for c in range(len(counts))])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    others, _ = photos((40,) * len(counts), seed=9)
    logits = model.graph.evaluate({model.feature_node: others})[model.graph.output]
    cosines = others / np.linalg.norm(others, axis=1, keepdims=True) @ means.T
    assert np.array_equal(logits.argmax(axis=1), cosines.argmax(axis=1)) and not bias.any()
    lengths = np.linalg.norm(kernel, axis=0)
    assert np.allclose(lengths, lengths[0], rtol=1e-5) and kernel.dtype == np.float32
    again = head(len(counts))
    heads.imprint(again, f, labels)
    assert again.graph.params["conv_preds"]["kernel"].tobytes() == kernel.tobytes()
    print(f"{counts}: scale times mean length {lengths[0] * np.linalg.norm(f, axis=1).mean():.1f}")


def test_the_scale_is_the_one_that_makes_the_labels_likeliest():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 4))
    labels = np.where(rng.random(50) < 0.6, logits.argmax(axis=1), rng.integers(0, 4, 50))
    targets = np.eye(4)[labels] * (1 - 1 / 51) + 1 / 51 / 4

    def loss(scale):
        z = scale * logits
        return -(targets * (z - np.log(np.exp(z).sum(axis=1, keepdims=True)))).sum()

    found = heads.fitting_scale(logits, labels)
    tried = np.linspace(0.01, 5, 500)
    print(f"{found:.4f}, by trying {tried[np.argmin([loss(s) for s in tried])]:.2f}")
    assert all(loss(found) <= loss(scale) + 1e-9 for scale in tried)
    assert heads.fitting_scale(-np.eye(4)[labels], labels) < 1e-9  # worse than chance: no trust at all
    assert 1 < heads.fitting_scale(np.eye(4)[labels], labels) < 20  # all right: much, but not for ever


def test_a_photo_left_out_is_judged_by_the_others_only():
    f, labels = photos((3, 4, 2))
    found = heads.left_out_logits(f.astype(np.float64), labels, 3)
    for i in range(len(f)):
        rest = np.arange(len(f)) != i
        means = heads.class_means(f[rest], labels[rest], 3)
        assert np.allclose(found[i, labels[i]], f[i] @ means[labels[i]], rtol=1e-6)


def test_what_cannot_be_imprinted_is_refused(deep):
    f, labels = photos((3, 3, 3))
    with pytest.raises(MinitlError, match="hidden layers before its classifier: use replace_head without hidden, or train it"):
        heads.imprint(deep, f, labels)
    for bad_f, bad_labels, words in (
        (f[:, :5], labels, "imprinting needs features"),
        (f, labels[:-1], "imprinting needs features"),
        (f[:0], labels[:0], "imprinting needs features"),
        (f, labels + 1, "labels must be whole numbers from 0 to 2, found 1 to 3"),
        (f, labels - 1, "found -1 to 1"),
        (f, labels.astype(np.float32), "whole numbers"),
        (f, np.minimum(labels, 1), "class number 2 has no photo"),
        (0 * f, labels, "no photo with features other than 0"),
    ):
        with pytest.raises(MinitlError, match=words):
            heads.imprint(head(3), bad_f, bad_labels)
    with pytest.raises(MinitlError, match="has no classifier"):
        heads.imprint(minitl.model.find(small_models.SMALL), f, labels)


@needs_shared
def test_with_two_photos_of_a_monkey_imprinting_beats_training():
    backbone = minitl.load(WEIGHTS / "mobilenet_v1_0.25_128_quant.tflite")
    listing, _ = transfer.choose_photos(DATA / "monkeys", None)
    labels, val = np.array([item.label for item in listing.items]), np.array([item.part == "val" for item in listing.items])
    rng = np.random.default_rng(0)
    pairs = [np.stack([rng.choice(np.flatnonzero(~val & (labels == c)), 2, replace=False) for c in range(10)]) for _ in range(3)]
    used = np.unique(np.concatenate([np.flatnonzero(val), *map(np.ravel, pairs)]))
    empty = backbone.replace_head(listing.classes).freeze("all")
    found = features.extract(empty.graph, empty.recipe, [listing.items[i].path for i in used]).features

    def take(photos):
        return found.take(np.searchsorted(used, photos))

    def accuracy(model):
        logits = training.predict(model.graph, take(np.flatnonzero(val)))
        return float((logits.argmax(axis=1) == labels[val]).mean())

    imprinted, trained = [], []
    for pair in pairs:
        model = backbone.replace_head(listing.classes)
        heads.imprint(model, take(pair.ravel()).values(), labels[pair.ravel()])
        imprinted.append(accuracy(model))
        model = backbone.replace_head(listing.classes).freeze("all")
        one, other = take(pair[:, 0]), take(pair[:, 1])  # the other one decides when to stop
        training.fit(model.graph, one, np.arange(10), other, np.arange(10), phases.head_settings(phases.HEAD, one))
        trained.append(accuracy(model))
    print(f"imprinted {np.round(imprinted, 3)}, trained {np.round(trained, 3)}")
    assert np.mean(imprinted) > np.mean(trained) + 0.05
