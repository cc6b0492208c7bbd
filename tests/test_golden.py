"""The golden answer: kept bit for bit, compared honestly, and each of the usual mistakes found and named."""

import json

import numpy as np
import pytest
import small_models
from conftest import WEIGHTS, needs_shared

import minitl
from minitl import MinitlError, cli, golden, model, weights
from minitl.images import read_photo
from minitl.reference import softmax


@pytest.fixture(scope="module")
def made():
    """A network whose sizes are even, then odd, so that all three paddings differ, and with statistics that keep values apart."""
    one = model.find("random:mobilenet_v1_0.25_36").replace_head(["a", "b", "c", "d"], seed=1)
    small_models.settle(small_models.stir(one.graph), one.recipe.normalise(PIXELS))
    return one


PIXELS = np.ascontiguousarray(small_models.pixels(2, size=40)[:, :36, :36])


def changed(made, **arguments):
    """The same parameters in a network with other arguments."""
    content = made.content()
    content.arguments = {**content.arguments, **arguments}
    content.golden = None
    return minitl.Model(content)


def recorded(made, answer, given=PIXELS, **more):
    return changed(made).with_golden(given, answer, "PyTorch", "2.13", **more)


def test_a_golden_answer_travels_with_the_file_and_is_computed_again(made, tmp_path):
    one = recorded(made, made.logits(PIXELS))
    digest = one.save(tmp_path / "a.npz")
    back = minitl.load(tmp_path / "a.npz")
    assert back.content().golden.facts() == one.content().golden.facts()
    assert back.content().golden.input.tobytes() == PIXELS.tobytes() and back.save(tmp_path / "b.npz") == digest
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = back.check()
    assert found.good and found.difference < 1e-6 and "computes what PyTorch 2.13 computed" in found.sentence()
    assert made.check() is None


def test_the_answer_may_be_probabilities_features_or_in_the_layout_of_pytorch(made):
    x = made.recipe.normalise(PIXELS)
    for one in (
        recorded(made, softmax(made.forward(x))),
        recorded(made, np.float32(np.rint(softmax(made.forward(x)) * 256) / 256), tolerance=0.02),
        recorded(made, made.features(x), node=made.feature_node),
        recorded(made, made.forward(x)[:, None, None], given=x.transpose(0, 3, 1, 2)),
        recorded(made, made.forward(x).astype(np.float64), given=x.astype(np.float64)),
    ):
        assert one.check().good
    assert recorded(made, softmax(made.forward(x))).content().golden.node == golden.PROBABILITIES


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"padding": "torch"}, "padding 'torch' instead of 'same'"),
        ({"padding": "keras"}, "padding 'keras' instead of 'same'"),
        ({"epsilon": 1e-5}, "BatchNorm's epsilon 1e-05 instead of 0.001"),
        ({"padding": "torch", "epsilon": 1e-5}, "padding 'torch' instead of 'same' and BatchNorm's epsilon 1e-05 instead of 0.001"),
    ],
)
def test_a_wrong_padding_or_epsilon_is_found(made, arguments, says):
    found = recorded(made, changed(made, **arguments).logits(PIXELS)).check()
    assert not found.good and found.causes == (says,), found.sentence()
    assert f"likeliest cause: {says}: with this the answer is reproduced" in found.sentence()


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda p: p / 255, "pixels scaled to [0, 1]"),
        (lambda p: p, "pixels scaled not at all, 0 to 255"),
        (lambda p: (p / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], "pixels scaled by ImageNet's mean and deviation"),
        (lambda p: p[..., ::-1] / 127.5 - 1, "channels in the order blue, green, red"),
        (lambda p: p[..., ::-1] / 255, "channels in the order blue, green, red and pixels scaled to [0, 1]"),
    ],
)
def test_wrong_scaling_and_order_of_channels_are_found(made, prepare, says):
    answer = made.forward(prepare(PIXELS.astype(np.float32)).astype(np.float32))
    assert recorded(made, answer).check().causes == (says,)


def test_a_network_that_scales_by_itself_is_found_from_float_input(made):
    given = (PIXELS / 255).astype(np.float32)
    assert recorded(made, made.logits(PIXELS), given=given).check().causes == ("pixels scaled to [0, 1]",)


def test_classes_that_are_off_by_one_are_found(made):
    logits = made.logits(PIXELS)
    background = np.concatenate([np.float32([[9], [9]]), logits], axis=1)
    assert recorded(made, background).check().causes == ("the first class of the source (background?) is missing here",)
    found = recorded(made, logits[:, 1:])
    assert found.check().causes == ("the first class here is none of the source's (background?)",)
    assert "it has 3 outputs, the network 4" in found.check().sentence()
    assert recorded(made, np.roll(logits, 1, axis=1)).check().causes


def test_what_no_usual_mistake_explains_is_said_to_be_so(made):
    found = recorded(made, -made.logits(PIXELS)).check()
    assert not found.causes and "none of the usual mistakes" in found.sentence()
    near = recorded(made, changed(made, padding="torch").logits(PIXELS) * np.float32(1.01)).check()
    assert "padding 'torch' instead of 'same' comes nearest" in near.sentence()


def test_weights_that_were_trained_since_are_not_compared(made):
    one = recorded(made, made.logits(PIXELS))
    one.graph.params["conv_preds"]["bias"] += 1
    assert not one.check().good and "cannot be compared" in one.check().sentence()
    assert one.replace_head(["x", "y"]).check() is None


@pytest.mark.parametrize(
    ("given", "answer", "says"),
    [
        (PIXELS[:, :35], np.ones((2, 4), np.float32), "expected input"),
        (PIXELS, np.ones((1, 4), np.float32), "expected input"),
        (PIXELS.astype(np.int64), np.ones((2, 4), np.float32), "uint8 or float32"),
        (PIXELS, np.full((2, 4), np.nan, np.float32), "not finite"),
        (PIXELS, np.ones((2, 0), np.float32), "no numbers"),
        (np.repeat(PIXELS, 5, axis=0), np.ones((10, 4), np.float32), "at most 8 images"),
        (PIXELS, np.ones((2, 3_000_000), np.float32), "16 MiB"),
        (np.array(["x"]), np.array([None]), "uint8 or float32"),
    ],
)
def test_what_is_no_golden_answer_is_refused(made, given, answer, says):
    with pytest.raises(MinitlError, match=says):
        recorded(made, answer, given)


def test_a_file_with_a_hostile_golden_answer_is_refused(made):
    content = recorded(made, made.logits(PIXELS)).content()
    arrays, meta = content.entries(), content.meta()

    def parse(facts, **changes):
        entries = {name: array for name, array in (arrays | changes).items() if array is not None}
        text = json.dumps(facts | {"sha256": weights.content_hash(facts, entries)}).encode()
        return weights.parse(weights.pack({"minitl.json": np.frombuffer(text, np.uint8), **entries}), "FILE")

    assert parse(meta).golden
    good = meta["golden"]
    for facts in ({**good, "node": "nowhere"}, {**good, "tolerance": 2}, {**good, "tolerance": True}, {**good, "framework": "a\n"},
                  {**good, "version": "x" * 99}, {**good, "more": 1}, {**good, "weights": 1}, [], None):  # fmt: skip
        with pytest.raises(MinitlError, match="its golden answer does not fit"):
            parse(meta | {"golden": facts})
    for changes in ({"golden/input": None}, {"golden/output": None}, {"golden/input": PIXELS[:1]}, {"golden/output": PIXELS},
                    {"golden/input": np.zeros((9, 36, 36, 3), np.uint8), "golden/output": np.zeros((9, 4), np.float32)}):  # fmt: skip
        with pytest.raises(MinitlError, match="its golden answer does not fit"):
            parse(meta, **changes)
    with pytest.raises(MinitlError, match="its golden answer does not fit"):
        parse({name: value for name, value in meta.items() if name != "golden"})
    with pytest.raises(MinitlError):
        parse(meta, **{"golden/other": PIXELS})


@needs_shared
def test_a_real_network_computes_what_litert_computes_and_a_turned_one_is_found():
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    path = WEIGHTS / "vww_96_float.tflite"
    one = minitl.load(path)
    photo = read_photo(WEIGHTS / "grace_hopper.bmp", one.recipe)
    interpreter = litert.Interpreter(str(path))
    interpreter.allocate_tensors()

    def answer(x):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.ascontiguousarray(x[None] / 255, np.float32))
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    found = one.with_golden(photo[None], answer(photo), "LiteRT").check()
    assert found.good and found.difference < 1e-5, found.sentence()
    turned = one.with_golden(photo[None], answer(photo[..., ::-1]), "LiteRT").check()
    assert turned.causes == ("channels in the order blue, green, red",)


def test_convert_writes_only_what_agrees_and_info_checks_it(made, tmp_path, capsys):
    def convert(output, *more, given=PIXELS):
        np.savez(tmp_path / "golden.npz", input=given, output=output)
        made.save(tmp_path / "in.npz")
        files = [str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz"), "--golden", str(tmp_path / "golden.npz")]
        code = cli.main(["convert", *files, *more])
        return code, capsys.readouterr()

    code, said = convert(changed(made, padding="torch").logits(PIXELS))
    assert code == 1 and "padding 'torch' instead of 'same'" in said.err and not (tmp_path / "out.npz").exists()
    code, said = convert(made.logits(PIXELS) * np.float32(1.02), "--tolerance", "0.05")
    assert code == 0 and "0.05 is allowed" in said.out
    assert cli.main(["info", "--check", str(tmp_path / "out.npz")]) == 0
    assert "computes what the framework that these weights come from computed" in capsys.readouterr().out
    assert cli.main(["info", "--check", str(tmp_path / "in.npz")]) == 0
    assert "keeps no answer" in capsys.readouterr().out
    wrong = minitl.load(tmp_path / "out.npz").content()
    wrong.arguments = wrong.arguments | {"padding": "torch"}
    minitl.Model(wrong).save(tmp_path / "wrong.npz")
    assert cli.main(["info", "--check", str(tmp_path / "wrong.npz")]) == 1
    assert "padding 'same' instead of 'torch'" in capsys.readouterr().out
    assert cli.main(["info", "--check", "--json", str(tmp_path / "wrong.npz")]) == 1
    assert json.loads(capsys.readouterr().out)["check"]["causes"] == ["padding 'same' instead of 'torch'"]
    (tmp_path / "out.npz").unlink()
    for wrong, says in (("in.npz", "holds"), ("nowhere", "no file"), ("", "no file")):
        assert cli.main(["convert", str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz"), "--golden", str(tmp_path / wrong)]) == 1
        assert says in capsys.readouterr().err and not (tmp_path / "out.npz").exists()
    assert convert(np.ones((2, 4)))[0] == 1  # float64
