"""What stands between the features and the answer: hidden layers from Python to C, and classifiers made of a few photos."""

import numpy as np
import pytest
import small_models
from compiled import STRICT, check_program, compile_c, compiler, driver

import minitl
from minitl import folding, training, weights
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
