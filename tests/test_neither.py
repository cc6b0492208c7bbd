"""The third answer: which photos it rejects, what it costs, and the same decision in Python's integers and in C, to the last one."""

import json
import re
import subprocess
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import small_models
from compiled import STRICT, compile_c, compiler, sections
from conftest import DATA, WEIGHTS, needs_shared
from integer_graphs import Builder
from test_header import arm

import minitl
from minitl import cli, constant_channels, emit_c, features, neither, transfer, weights
from minitl.errors import MinitlError
from minitl.neither import Rule


def told(made, seed=0, keep=0.8):
    """A model that knows neither, from pictures that stand for its classes."""
    pixels, labels = small_models.pixels(30, seed=seed), np.arange(30) % len(made.classes)
    f = made.features(made.recipe.normalise(pixels))
    rows = neither.directions(f, labels, len(made.classes))
    return made.tell_neither(neither.choose(rows, f, made.deploy().features(pixels), keep))


@pytest.fixture(scope="module")
def model():
    return told(small_models.model())


# ---- the measure


def test_likeness_is_the_square_of_a_cosine_and_does_not_depend_on_brightness():
    rows = np.array([[3, 4, 0], [0, 0, 5]], np.int8)
    f = np.array([[3.0, 4, 0], [0, 0, 2], [1, 0, 0], [-1, -1, -1], [0, 0, 0]])
    assert neither.likeness(f, rows).tolist() == [25, 25, 9, 0, 0]
    assert np.allclose(neither.likeness(1e3 * f, rows), neither.likeness(f, rows))
    rule = Rule(rows, 9, np.zeros(2, np.int64), 0)
    assert rule.is_neither(f).tolist() == [False, False, False, True, True]
    assert rule.is_neither(f.astype(np.int64)).tolist() == rule.is_neither(f).tolist()


def test_directions_are_means_of_photos_of_length_one():
    f = np.array([[10.0, 0], [0, 1], [0, 2]])
    assert neither.directions(f, np.array([0, 0, 1]), 2).tolist() == [[90, 90], [0, 127]]
    for labels in ([0, 0, 0], [1, 1, 1]):
        with pytest.raises(MinitlError, match="give at least one photo of every class"):
            neither.directions(f, np.array(labels), 2)


@pytest.mark.parametrize("keep", [1, 0.99, 0.95, 0.9, 0.5])
@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 272])
def test_the_threshold_keeps_the_share_and_no_needless_photo(keep, count):
    values = np.random.default_rng(count).uniform(0, 1e6, count)
    limit = neither.threshold(values, keep)
    assert (values >= limit).mean() >= keep - 1e-9
    assert (values < limit + 1).sum() == min(int(count * (1 - keep) + 1e-9), count - 1) + 1, "a higher threshold would do"


def test_a_photo_of_a_class_left_out_is_compared_with_the_others_only():
    rng = np.random.default_rng(0)
    f, labels, rows = rng.uniform(0, 1, (12, 5)), np.arange(12) % 3, rng.integers(0, 128, (3, 5)).astype(np.int8)
    unknown = neither.unknown_likeness(f, labels, rows)
    for i, label in enumerate(labels):
        assert np.isclose(unknown[i], neither.likeness(f[i : i + 1], rows[[c for c in range(3) if c != label]])[0], rtol=1e-12)
    assert neither.unknown_likeness(f, labels % 2, rows[:2]) is None


def test_the_trade_off_says_what_is_kept_and_what_is_rejected():
    values, right = np.arange(1, 101.0), np.arange(1, 101) > 10  # the ten lowest answers were wrong
    chosen = neither.Neither(np.array([[0, 127]], np.int8), neither.threshold(values, 0.97), 0, 0.97)
    found = neither.report(chosen, values, right, np.arange(20.0), "other things")
    rows = {round(row["kept"], 2): row for row in found["rows"]}
    assert [row["kept"] for row in found["rows"]] == sorted(rows, reverse=True) and rows[0.97]["chosen"]
    assert rows[1.0]["accuracy"] == 0.9 and rows[0.9]["accuracy"] == 1 and rows[0.95]["rejected_wrong"] == 0.5
    assert rows[0.9]["rejected_unknown"] == 11 / 20 and found["measure"] == "cosine" and 0 < found["threshold"] < 1
    assert sum(row["chosen"] for row in found["rows"]) == 1 and json.dumps(found)
    alone = neither.report(chosen, values, np.ones(100, bool))
    assert all(row["rejected_unknown"] is None and row["rejected_wrong"] is None for row in alone["rows"])


def test_the_answer_has_a_name_that_no_class_has():
    assert neither.word(["cat", "dog"]) == "neither" and neither.word(["Neither", "cat"]) == "none of these"
    assert neither.word(["neither", "None of these"]) == "no known class"


# ---- with the model


def test_it_comes_back_from_the_file_and_changes_its_hash(model, tmp_path):
    digest = model.save(tmp_path / "m.npz")
    loaded = minitl.load(tmp_path / "m.npz")
    assert loaded.neither.facts() == model.neither.facts() and np.array_equal(loaded.neither.directions, model.neither.directions)
    assert loaded.content().content_hash() == digest and loaded.emit("m") == model.emit("m")
    plain = replace(model.content(), neither=None)
    other = replace(model.content(), neither=replace(model.neither, threshold=model.neither.threshold + 1))
    assert len({digest, plain.content_hash(), other.content_hash()}) == 3 and "neither" not in plain.meta()


HOSTILE = {
    "measure": ["energy", None, [], {}],
    "threshold": [-1, 1.5, True, "1", None, 10**400, 127**2 * 102 + 1, [1]],
    "threshold_int8": [-1, 0.0, False, 2**70],
    "kept": [-0.1, 1.1, True, "1", None, [], 10**400],
}


def test_a_hostile_record_is_refused(model):
    content = model.content()
    meta, arrays = content.meta(), content.entries()
    records = [meta["neither"] | {key: value} for key, values in HOSTILE.items() for value in values]
    records += [None, [], "x", {}, meta["neither"] | {"more": 1}, {k: v for k, v in meta["neither"].items() if k != "kept"}]
    name = weights.NEITHER
    cases = [(meta | {"neither": record}, arrays) for record in records]
    cases += [(meta, {k: v for k, v in arrays.items() if k != name}), ({k: v for k, v in meta.items() if k != "neither"}, arrays)]
    cases += [(meta, arrays | {name: bad}) for bad in (
        arrays[name][:2], arrays[name][:, 1:], arrays[name].ravel(), np.full_like(arrays[name], 255), np.full((3, 102), 0.5, np.float32),
    )]  # fmt: skip
    for wrong, entries in cases:
        text = weights._json(wrong | {"sha256": weights.content_hash(wrong, entries)})
        with pytest.raises(MinitlError, match="FILE: what it says about 'neither' does not fit the network") as refusal:
            weights.parse(weights.pack({weights.JSON_ENTRY: np.frombuffer(text, np.uint8), **entries}), "FILE")
        assert len(str(refusal.value)) < 400


def test_partly_frozen_layers_come_back_as_they_were(model, tmp_path):
    made = small_models.model()
    made.graph.freeze("=conv_pw_13", mask := np.arange(102) % 3 == 0)
    made.save(tmp_path / "m.npz")
    loaded = minitl.load(tmp_path / "m.npz")
    assert np.array_equal(loaded.graph.frozen["conv_pw_13"], mask) and loaded.graph.frozen["conv1"] is True
    assert "conv_preds" not in loaded.graph.frozen and loaded.graph.trainable()[0][2].sum() == (~mask).sum()


def test_what_changes_the_features_forgets_it(model):
    assert model.replace_head(["a", "b"]).neither is None
    again = minitl.Model(model.content()).calibrate(small_models.pixels(4))
    assert again.neither is None and model.neither is not None and again.deploy().rule is None
    with pytest.raises(MinitlError, match=r"told for \(3, 102\) classes and features, the model has \(2, 102\)"):
        model.replace_head(["a", "b"]).tell_neither(model.neither)


def test_a_share_that_is_none_is_refused():
    for keep in (0, 0.4, 1.01, float("nan")):
        with pytest.raises(MinitlError, match=r"must lie between 0\.5 and 1"):
            neither.choose(np.ones((2, 3), np.int8), np.ones((4, 3)), np.ones((4, 3), np.int64), keep)


def test_both_networks_keep_the_share_that_was_asked_for_and_reject_the_same_photos_mostly(model):
    pixels = small_models.pixels(30)
    (_, float_says), (_, int8_says) = model.judge(pixels), model.deploy().judge(pixels)
    assert float_says.sum() == int8_says.sum() == 6
    logits = model.judge(pixels)[0]
    assert np.array_equal(logits, model.logits(pixels)) and np.array_equal(model.deploy().judge(pixels)[0], model.deploy().logits(pixels))


def test_predict_says_neither_and_what_would_be_nearest(model, tmp_path, capsys):
    from PIL import Image

    for i, photo in enumerate(small_models.pixels(30)):
        Image.fromarray(photo).resize((37, 37)).save(tmp_path / f"{i:02}.png")
    model.save(tmp_path / "m.npz")
    paths = sorted(tmp_path.glob("*.png"))
    for int8 in (False, True):
        answers = model.predict(paths, int8)
        assert 0 < sum(a.neither for a in answers) < 30 and all(len(a.classes) == 3 for a in answers)
        assert cli.main(["predict", str(tmp_path / "m.npz"), *map(str, paths), "--json", *["--int8"] * int8]) == 0
        assert [p["neither"] for p in json.loads(capsys.readouterr().out)["photos"]] == [a.neither for a in answers]
        assert cli.main(["predict", str(tmp_path / "m.npz"), *map(str, paths), *["--int8"] * int8]) == 0
        for line, a in zip(capsys.readouterr().out.splitlines(), answers, strict=True):
            assert (": neither (nearest: " in line) == a.neither and f"{a.classes[0][0]} {100 * a.classes[0][1]:.1f} %" in line


# ---- in C

MAIN = """
#define NET_IMPLEMENTATION
#include "net.h"
#include <stdio.h>
int main(void)
{
    static int8_t image[NET_INPUT_BYTES], logits[NET_CLASSES];
    while (fread(image, 1, sizeof image, stdin) == sizeof image) {
        if (net_run(image, logits) != 0 || putchar(net_is_neither()) < 0) { return 1; }
    }
    return 0;
}
"""


def in_c(folder, header, x, name="gcc", flags=("-O2",)):
    """What the header says of int8 images (N, ...), (N,) bool."""
    (folder / "net.h").write_text(header)
    (folder / "main.c").write_text(MAIN)
    compile_c(compiler(name), *STRICT, *flags, "main.c", "-o", "program", cwd=folder)
    done = subprocess.run([folder / "program"], input=x.tobytes(), capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()[:2000]
    return np.frombuffer(done.stdout, np.uint8).astype(bool)


def exact(rule, f):
    """The decision in fractions of Python's, whose integers cannot overflow."""
    said = []
    for row in f.tolist():
        sums = [sum(a * b for a, b in zip(row, w, strict=True)) for w in rule.directions.tolist()]
        best = max(total + int(start) for total, start in zip(sums, rule.start, strict=True))
        length = rule.length + sum(a * a for a in row)
        said.append(best <= 0 or Fraction(best * best, max(length, 1)) < rule.threshold)
    return np.array(said)


@pytest.mark.parametrize(("classes", "channels"), [(1, 1), (2, 3), (3, 102), (10, 256), (200, 64), (2, 5120)])
def test_the_header_decides_as_fractions_do_whatever_the_features(tmp_path, classes, channels):
    """A network that hands its input on as the features: every zero point, extremes, values at the threshold itself."""
    rng = np.random.default_rng(classes)
    for case, zero in enumerate((-128, 127, 0)):
        build = Builder(rng, (1, 1, channels))
        build.tensors["x"] = replace(build.tensors["x"], zero_point=zero)
        build.mean()
        watched = build.last
        build.tensors[watched] = replace(build.tensors[watched], scale=build.tensors["x"].scale, zero_point=zero)
        build.ops[-1] = replace(build.ops[-1], multiplier=2**30, shift=1)
        build.dense(classes)
        graph = replace(build.graph(), watched=watched)
        x = rng.integers(-128, 128, (300, 1, 1, channels)).astype(np.int8)
        x[:4] = np.array([-128, 127, zero, min(zero + 1, 127)])[:, None, None, None]
        values = graph.run_all(x)[watched]
        assert np.array_equal(values, x[:, 0, 0])
        f = values.astype(np.int64) - zero
        rows = rng.integers(-127, 128, (classes, channels)).astype(np.int8) if case else np.full((classes, channels), 127, np.int8)
        limits = np.floor(neither.likeness(f, rows))
        start, length = (rng.integers(-1000, 1000, classes), 12345) if case == 2 else (np.zeros(classes, np.int64), 0)
        rule = Rule(rows, int(np.median(limits)), start, length)
        expected = exact(rule, f)
        assert np.array_equal(rule.is_neither(f), expected)
        about = emit_c.About("net", [f"c{i}" for i in range(classes)], None, {}, "0", neither=rule)
        sanitise = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
        assert np.array_equal(in_c(tmp_path, emit_c.emit(graph, about), x, flags=sanitise), expected)
        print(f"{classes} x {channels}, zero point {zero}: {expected.sum()} of {len(expected)} are neither")


@pytest.mark.parametrize("name", ["gcc", "clang", "g++", "gcc -m32"])
@pytest.mark.parametrize("hidden", [[], [7, 200, 5]])
def test_a_models_header_says_neither_where_python_does(tmp_path, name, hidden):
    """Hidden layers larger than the features would be written over them, if the arena did not keep them."""
    made = small_models.model()
    if hidden:
        made = made.replace_head(["cat", "dog", "cow"], seed=1, hidden=hidden).freeze("all").calibrate(small_models.pixels(8))
    pixels = small_models.pixels(30)
    network = told(made).deploy()
    x = network.recipe.quantise_pixels(pixels)
    expected = network.judge(pixels)[1]
    assert 0 < expected.sum() < 30
    assert np.array_equal(in_c(tmp_path, network.emit("net"), x, name), expected)


def test_removing_constant_channels_changes_no_decision(tmp_path):
    """A feature that is constant and not 0 goes into the numbers that the sums start from; one that only the classifier ignores stays."""
    made = small_models.model(calibrated=False)
    last = made.graph.params["conv_pw_13_bn"]
    last["gamma"][:5] = 0
    last["beta"][:5] = [0.5, 1, 2, 0, -1]
    made.graph.params["conv_preds"]["kernel"][8:11] = 0
    told(made.calibrate(small_models.pixels(8)))
    whole, pruned = made.deploy(keep_constant=True), made.deploy()
    left = pruned.removal.kept[made.feature_node].tolist()
    assert not {0, 1, 2, 3, 4} & set(left) and {8, 9, 10} <= set(left) and pruned.rule.start.any() and pruned.rule.length > 0
    pixels = small_models.pixels(60, seed=5)
    expected = whole.judge(pixels)[1]
    assert 0 < expected.sum() < 60 and np.array_equal(pruned.judge(pixels)[1], expected)
    x = made.recipe.quantise_pixels(pixels)
    for network in (whole, pruned):
        assert np.array_equal(in_c(tmp_path, network.emit("net"), x), expected)
    without = constant_channels.remove(replace(pruned.original, watched=""))
    assert not {8, 9, 10} & set(without.kept[made.feature_node].tolist())


def test_the_stated_flash_counts_it_and_a_model_without_it_has_none_of_it(model):
    network, plain = model.deploy(), replace(model.deploy(), neither=None)
    size, before = network.figures(), plain.figures()
    text = network.emit("m")
    print(f"{size.constants['neither']} bytes of constants, {size.code - before.code} of code, {size.arena - before.arena} of RAM")
    assert size.constants["neither"] == network.rule.directions.size and size.code > before.code
    assert f"#define M_CONSTANT_BYTES {size.flash}\n" in text and '#define M_NEITHER "neither"\n' in text and "m_is_neither() says" in text
    assert not re.search("is_neither|M_NEITHER|NEITHER\\.", plain.emit("m"))
    assert '#define M_NEITHER "none of these"\n' in network.named(["neither", "a", "b"]).emit("m")


@pytest.mark.parametrize("core", ["cortex-m0", "cortex-m4", "cortex-m55"])
@pytest.mark.parametrize(("level", "factor"), [("-Os", 1), ("-O2", 1), ("-O3", 1.5), ("-O0", 2.5)])
def test_its_code_stays_below_the_stated_bound(model, tmp_path, core, level, factor):
    rule = replace(model.deploy().rule, start=np.array([1, -2, 30000]), length=1)
    bytes_of = {}
    for kind, one in (("with", rule), ("without", None)):
        graph = model.deploy().graph
        (tmp_path / "net.h").write_text(emit_c.emit(graph, emit_c.About("net", model.classes, None, {}, "0", neither=one)))
        (tmp_path / "net.c").write_text('#define NET_IMPLEMENTATION\n#include "net.h"\n')
        compile_c(arm(core), level, "-c", "net.c", cwd=tmp_path)
        bytes_of[kind] = sum(size for name, size in sections(tmp_path / "net.o").items() if name.startswith(".text"))
    code = bytes_of["with"] - bytes_of["without"]
    print(f"{core} {level}: {code} bytes, stated {emit_c.CODE['neither'] * factor:.0f}")
    assert code <= emit_c.CODE["neither"] * factor


def test_weights_in_a_blob_and_the_callers_arena_decide_the_same(model, tmp_path):
    network = model.deploy()
    pixels = small_models.pixels(30)
    header = network.emit_blob("net")
    (tmp_path / "net.h").write_text(header.text)
    (tmp_path / "net_weights.bin").write_bytes(header.blob)
    (tmp_path / "net_weights.S").write_text(header.stub)
    source = MAIN.replace("net_run(image", "net_run_in(arena, image").replace("net_is_neither()", "net_is_neither_in(arena)")
    source = source.replace("int main", "static int32_t arena[NET_ARENA_BYTES / 4];\nint main")
    (tmp_path / "main.c").write_text("#define NET_CALLER_ARENA\n" + source)
    compile_c(compiler("gcc"), *STRICT, "-O2", "main.c", "net_weights.S", "-o", "program", cwd=tmp_path)
    x = model.recipe.quantise_pixels(pixels)
    done = subprocess.run([tmp_path / "program"], input=x.tobytes(), capture_output=True, check=True)
    assert np.array_equal(np.frombuffer(done.stdout, np.uint8).astype(bool), network.judge(pixels)[1])


# ---- real photos


@needs_shared
def test_photos_of_other_things_are_rejected_and_monkeys_are_kept(tmp_path):
    backbone = minitl.load(WEIGHTS / "mobilenet_v1_0.25_128_quant.tflite").replace_head(["a", "b"]).freeze("all")

    def rows(paths):
        return features.extract(backbone.graph, backbone.recipe, paths).features.rows

    listing, _ = transfer.choose_photos(DATA / "monkeys", None)
    items = [item for item in listing.items if item.part == "val"] + [item for item in listing.items if item.part == "train"][::5]
    labels = np.array([item.label for item in items])
    f, val = rows([item.path for item in items]), np.array([item.part == "val" for item in items])
    directions = neither.directions(f[~val], labels[~val], 10)
    values = neither.likeness(f[val], directions)
    limit = neither.threshold(values, 0.95)
    others = {name: rows(sorted((DATA / name).rglob("*.jpg"))[::5]) for name in ("fruit", "person", "imagenet-sample")}
    rejected = {name: float((neither.likeness(x, directions) < limit).mean()) for name, x in others.items()}
    rejected["a monkey left out"] = float((neither.unknown_likeness(f[val], labels[val], directions) < limit).mean())
    print(f"kept {(values >= limit).mean():.3f}, rejected {rejected}")
    assert (values >= limit).mean() >= 0.95 and min(rejected[name] for name in others) > 0.9 and rejected["a monkey left out"] > 0.1
