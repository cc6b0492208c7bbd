"""Networks other than MobileNets and backbones that end earlier, from the command line to the file, the header and back.

And a network without an int8 form, which is trained all the same.
"""

import json

import compiled
import numpy as np
import pytest
import small_models

import minitl
from minitl import MinitlError, cli, demo_pictures, model
from minitl.model import find

TINY = "random:mobilenet_v1_0.1_32"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    demo_pictures.draw_photos(folder, 8, size=40)
    return folder


def train(photos, out, *options, weights=TINY):
    return cli.main(["train", str(photos), "--weights", weights, "-o", str(out), "--epochs", "2", "--no-cache", *options])


@pytest.mark.parametrize(
    ("weights", "cut", "channels"),
    [(TINY, "conv_pw_5_relu", 25), ("random:inception_v3_0.06_75", "mixed1", 14), ("random:vgg16_0.06_32", "block3_conv2", 15)],
)
def test_a_network_that_was_cut_is_trained_saved_read_and_asked(tmp_path, photos, capsys, weights, cut, channels):
    assert train(photos, tmp_path, "--cut", cut, "--hidden", "12", "--freeze", "none", weights=weights) == 0
    made = minitl.load(tmp_path / "model.npz")
    assert made.arguments["cut"] == cut and made.graph.shapes[made.feature_node] == (channels,)
    assert list(made.blocks())[-1] == "classifier" and made.graph.shapes["hidden_1"] == (12,)
    assert (tmp_path / "model.h").stat().st_size > 5000
    answers = made.predict([next(iter(sorted(photos.rglob("*.jpg"))))])
    assert len(answers[0].classes) == 3
    capsys.readouterr()
    assert cli.main(["info", str(tmp_path / "model.npz"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["arguments"]["cut"] == cut and made.feature_node in [row["name"] for row in facts["layers"]]
    assert made.freeze("all").graph.frozen[made.graph[made.feature_node].inputs[0]] is True
    again = made.replace_head(["a", "b"])  # a backbone that was cut stays so
    assert again.arguments["cut"] == cut and np.array_equal(again.graph.arrays()[next(iter(again.graph.arrays()))],
                                                            made.graph.arrays()[next(iter(made.graph.arrays()))])  # fmt: skip


def test_what_was_cut_off_is_not_there_any_more():
    cut = find(TINY).replace_head(["a", "b"], cut="conv_pw_5_relu")
    assert cut.replace_head(["a", "b"], cut="conv_pw_3_relu").arguments["cut"] == "conv_pw_3_relu"
    with pytest.raises(MinitlError, match="these weights end at 'conv_pw_5_relu' and lack 'conv_dw_6'"):
        cut.replace_head(["a", "b"], cut="conv_pw_9_relu")


def test_an_unknown_layer_is_refused_before_any_work_and_nothing_is_left(tmp_path, photos, capsys):
    assert train(photos, tmp_path / "out", "--cut", "conv_pw_55") == 1
    assert "no layer 'conv_pw_55'; did you mean conv_pw_5" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_features_of_another_layer_are_other_features(tmp_path, photos):
    whole, cut = (find(TINY).replace_head(["a", "b"], cut=layer) for layer in (None, "conv_pw_7_relu"))
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    value = whole.graph.evaluate(x, ["conv_pw_7_relu"])["conv_pw_7_relu"]
    assert np.allclose(cut.features(x), value.mean(axis=(1, 2)), atol=1e-5)


def test_names_of_random_networks_may_leave_the_width_out():
    assert find("random:resnet18_32").arguments["alpha"] == 1
    assert find("random:inception_v3_0.1_80x96").graph.input_shape == (80, 96, 3)
    with pytest.raises(MinitlError, match=r"'resnet50' is unknown; minitl has mobilenet_v1, .*resnet18"):
        find("random:resnet50_64")


def test_a_network_without_an_int8_form_is_trained_all_the_same_and_the_report_says_why(tmp_path, photos, monkeypatch, capsys):
    def refuse(self, keep_constant=False):
        raise MinitlError("layer 'x' (Swish) has no integer form")

    (tmp_path / "model.h").write_text("of a run before")
    monkeypatch.setattr(model.Model, "deploy", refuse)
    assert train(photos, tmp_path, "--neither", "--max-int8-drop", "1") == 0
    said = capsys.readouterr().out
    assert "no header: layer 'x' (Swish) has no integer form" in said and "model.h" not in said and "no int8" in said
    assert not (tmp_path / "model.h").exists()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["val"]["int8"] is None and any("no int8 form" in note for note in report["notes"])
    assert (tmp_path / "report.html").stat().st_size > 1000 and (tmp_path / "report.png").stat().st_size > 1000
    monkeypatch.undo()
    assert minitl.load(tmp_path / "model.npz").provenance["training"]["val_accuracy"].keys() == {"float"}


@pytest.mark.parametrize(
    ("name", "node"),
    [("random:vgg16_0.06_32", "block5_pool"), ("random:inception_v3_0.06_75", "mixed2"), ("random:resnet18_0.1_32", "layer2_1_relu")],
)
def test_int8_of_every_network_follows_float_and_its_header_says_what_python_says(tmp_path, name, node):
    """Compared where rounding has not yet been passed on through fifty random layers, each of which makes a tenth more of it."""
    made = find(name).replace_head(["cat", "dog", "cow"], seed=3).freeze("all")
    size = made.recipe.height
    x = small_models.pixels(8, size=size + -size % 8)[:, :size, :size]
    small_models.settle(small_models.stir(made.graph), made.recipe.normalise(x))
    network = made.calibrate(x).deploy()
    tensor, expected = network.original.tensors[node], made.graph.evaluate(made.recipe.normalise(x), [node])[node]
    found = tensor.scale * (network.original.run_all(made.recipe.quantise_pixels(x))[node].astype(float) - tensor.zero_point)
    error = np.sqrt(((found - expected) ** 2).mean()) / expected.std()
    print(f"{name}: int8 differs from float at {node} by {error:.3f} of its spread")
    assert error < 0.15
    compiled.write_networks(tmp_path, [network.original, network.graph])
    compiled.compile_c([*compiled.compiler("gcc"), "-O1"], "main.c", "-o", "run", cwd=tmp_path)
    assert compiled.check_program(str(tmp_path / "run"), [network.original, network.graph], tmp_path)
