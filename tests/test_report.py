"""The report page: every claim of minitl/report.py."""

import json
import math
import tracemalloc

import numpy as np
import pytest
from conftest import DATA, needs_shared
from PIL import Image

from minitl import report as report_module
from minitl.drawing import MARGIN, WIDTH, duration, legible, nice_ticks, shortened, thinned, wilson
from minitl.folders import list_folder
from minitl.report import confusion_matrix, draw, legible_names, nearest_training, reliability, to_png, worst_mistakes


def made_up(classes, epochs=20, photos=200, skill=2.0, files=None, labels=None, **changes):
    """A report with random answers; `skill` 99: all right."""
    rng = np.random.default_rng(0)
    n = len(classes)
    labels = rng.integers(0, n, photos) if labels is None else np.array(labels)
    files = files or [f"{classes[c]}/{i}.jpg" for i, c in enumerate(labels)]
    scores = rng.normal(0, 1, (len(labels), n))
    scores[np.arange(len(labels)), labels] += skill
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    matrix = confusion_matrix(labels, p.argmax(axis=1), n)
    one = {"accuracy": float((p.argmax(axis=1) == labels).mean()) if len(labels) else 0.0, "confusion": matrix.tolist()}
    history = [
        {"epoch": e, "train_loss": 2 / e, "train_accuracy": 1 - 0.7 / e, "val_loss": 2.2 / e + 0.1, "val_accuracy": 1 - 0.8 / e}
        for e in range(1, epochs + 1)
    ]
    report = {
        "classes": classes, "history": history, "best_epoch": max(1, epochs * 2 // 3),
        "val": {"count": len(labels), "float": one, "int8": one},
        "mistakes": worst_mistakes(files, labels, p, classes), "skipped": [], "facts": {"backbone": "mobilenet_v1", "seed": 0},
    }  # fmt: skip
    return {**report, **changes}


def complete(report):
    """The report with every entry that newer runs add."""
    history, n = report["history"], len(report["history"])
    rng, middle = np.random.default_rng(1), max(n // 2, 1)
    for line in history:
        line.update(rate=0.1 / line["epoch"], phase=int(line["epoch"] > middle))
    p = rng.dirichlet(np.ones(3), 200)
    layers = [
        {
            "name": f"conv_{i}", "block": f"block_{i // 2}", "kind": "Conv2D", "output": [64 >> i // 4, 64 >> i // 4, 8 << i // 4],
            "parameters": 0 if i % 5 == 4 else 100 << i // 2, "trained": (0.0, 0.25, 1.0)[min(i // 7, 2)],
        }
        for i in range(20)
    ]  # fmt: skip
    for mistake in report["mistakes"]:
        mistake["nearest"] = [
            {"file": f"train/{k}.jpg", "true": mistake[key], "similarity": 0.5} for k, key in enumerate(("true", "predicted"))
        ]
    phase = {"best_epoch": middle, "frozen": "all but the classifier", "rate": 0.01, "seconds": 3.2}
    return {
        **report,
        "val": {**report["val"], "calibration": reliability(p, rng.integers(0, 3, 200))},
        "phases": [
            {**phase, "name": "classifier", "first_epoch": 1, "last_epoch": middle},
            {**phase, "name": "fine-tuning", "first_epoch": middle + 1, "last_epoch": n, "best_epoch": 0, "seconds": 4000},
        ],
        "layers": layers, "memory": {"peak_bytes": 412_000_000}, "seconds": {"photos": 1.0, "training": 70.0, "all": 71.5},
        "auto": {
            "rows": [
                {"what": what, "accuracy": 0.8 + 0.02 * k, "error": 0.015, "photos": 900, "seconds": 9.0 * k, "chosen": k == 1}
                for k, what in enumerate(("the classifier alone", "the last 3 blocks", "all layers"))
            ],
            "sentences": ["The last 3 blocks gain 2.0 points."],
        },
        "learning": [{"photos_per_class": 5 * 2**k, "accuracy": 0.6 + 0.05 * k, "error": 0.03 / (k + 1)} for k in range(5)],
        "neither": {
            "measure": "energy", "threshold": -3.25, "unknown": "40 photos of fruit",
            "rows": [
                {"kept": 1 - k / 40, "accuracy": 0.9 + k / 400, "rejected_wrong": k / 20, "rejected_unknown": k / 30, "chosen": k == 7}
                for k in range(20)
            ],
        },
        "skipped": [{"file": "train/broken.jpg", "reason": "the file ends too early"}], "notes": ["3 validation photos are copies"],
        "settings": {"epochs": n, "rate": 0.0169477, "optimiser": "sgd", "balance": False},
    }  # fmt: skip


def test_confusion_counts_agree_with_counting():
    rng = np.random.default_rng(0)
    true, answers = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    matrix = confusion_matrix(true, answers, 5)
    for i in range(5):
        for j in range(5):
            assert matrix[i, j] == sum(t == i and a == j for t, a in zip(true, answers, strict=True))
    assert confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]


def test_the_worst_mistake_is_the_surest():
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.8, 0.2], [0.2, 0.8]])
    got = worst_mistakes(["d", "c", "b", "x", "a"], [1, 0, 0, 0, 0], p, ["cat", "dog"])
    assert [m["file"] for m in got] == ["d", "a", "b", "c"]
    assert got[0] == {"file": "d", "true": "dog", "predicted": "cat", "probability": 0.9}
    assert len(worst_mistakes(["d", "c"], [1, 0], p[:2], ["cat", "dog"], limit=1)) == 1
    json.dumps(got)


CASES = {
    "2 classes": made_up(["no_person", "person"]),
    "3 classes, nothing wrong": made_up(["apple", "banana", "cucumber"], skill=99),
    "10 long names": made_up([f"a very long class name indeed number {i}" for i in range(10)]),
    "50 classes": made_up([f"species_{i}" for i in range(50)]),
    "200 classes": made_up([f"species_{i}" for i in range(200)], photos=2000),
    "one epoch": made_up(["a", "b"], epochs=1),
    "no history": made_up(["a", "b"], epochs=0, best_epoch=None),
    "1000 epochs": made_up(["a", "b"], epochs=1000),
    "no int8": made_up(["a", "b"], val={"count": 1, "float": {"accuracy": 1.0, "confusion": [[1, 0], [0, 0]]}, "int8": None}),
    "no photos": made_up(["a", "b"], photos=0),
    "other scripts": made_up(["Äpfel", "бананы", "黄瓜", "crème brûlée"], facts={"Größe": "黄"}),
    "nothing but skipped": made_up(["a", "b"], skipped=[{"file": "x" * 300, "reason": "y" * 300}] * 30),
    "many facts": made_up(["a", "b"], facts={f"fact {i}": "z" * (i * 5) for i in range(80)}),
    "diverged": made_up(
        ["a", "b"],
        history=[
            {"epoch": e, "train_loss": v, "train_accuracy": 0.5, "val_loss": v, "val_accuracy": None}
            for e, v in enumerate((1.0, 1e30, math.inf, math.nan), 1)
        ],
    ),
    "all entries": complete(made_up(["apple", "banana", "cucumber"])),
    "all entries, 200 classes, 1000 epochs": complete(made_up([f"species_{i}" for i in range(200)], epochs=1000, photos=2000)),
    "all entries, one epoch, nothing wrong": complete(made_up(["a", "b"], epochs=1, skill=99)),
    "all entries, other scripts": complete(made_up(["<script>alert(1)</script>", "黄瓜", "\u202eevil", "a" * 255, "x\udc80\x00y"])),
    "entries that are empty": made_up(
        ["a", "b"],
        phases=[],
        layers=[],
        memory={"peak_bytes": None},
        auto=None,
        learning=[],
        neither=None,
        notes=[],
        settings={},
        seconds={},
    ),
    "neither, every answer right": made_up(
        ["a", "b"],
        neither={
            "measure": "cosine",
            "threshold": 0.6,
            "unknown": "",
            "rows": [{"kept": 0.95, "accuracy": 1.0, "rejected_wrong": None, "rejected_unknown": None, "chosen": True}],
        },
    ),
    "always right": made_up(
        ["a", "b"],
        history=[{"epoch": 1, "train_loss": 0.0, "train_accuracy": 1.0, "val_loss": 0.0, "val_accuracy": 1.0}],
        best_epoch=1,
        learning=[{"photos_per_class": n, "accuracy": 1.0, "error": 0.0} for n in (1, 2)],
    ),
    "large counts": made_up(
        ["a", "b"], val={"count": 10**6, "float": {"accuracy": 0.5, "confusion": [[10**6, 12345], [7, 0]]}, "int8": None}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_drawn_into_the_margin(name):
    page = draw(CASES[name])
    pixels = np.asarray(page.convert("L"))
    print(name, page.size)
    assert page.width == WIDTH and 500 < page.height < 4400
    edge = MARGIN // 2
    for border in (pixels[:edge], pixels[-edge:], pixels[:, :edge], pixels[:, -edge:]):
        assert border.min() == 255
    assert pixels.min() < 60


@pytest.mark.parametrize("name", ["2 classes", "other scripts", "all entries"])
def test_the_same_report_gives_the_same_bytes(name):
    first = to_png(draw(CASES[name]))
    assert first == to_png(draw(json.loads(json.dumps(CASES[name])))) and first[:8] == b"\x89PNG\r\n\x1a\n"


def test_thumbnails_come_from_a_folder_or_a_table(tmp_path):
    files = [f"{i}.png" for i in range(12)]
    for file in files:
        Image.new("RGB", (50, 40), (255, 0, 255)).save(tmp_path / file)
    report = made_up(["a", "b"], files=files, labels=[0] * 12, skill=-5)
    assert len(report["mistakes"]) == 12

    def magenta(page):
        return int((np.asarray(page) == (255, 0, 255)).all(axis=2).sum())

    from_folder, from_table = draw(report, tmp_path), draw(report, {file: tmp_path / file for file in files})
    assert magenta(from_folder) == 12 * 170 * 170 and from_folder.tobytes() == from_table.tobytes()
    (tmp_path / "3.png").unlink()
    (tmp_path / "4.png").write_text("no picture")
    assert magenta(draw(report, tmp_path)) == 10 * 170 * 170
    assert magenta(draw(report)) == 0 == magenta(draw(report, {}))


def test_calibration_bins_agree_with_counting():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4) * 0.5, 500).astype(np.float32)
    labels = rng.integers(0, 4, 500)
    found = reliability(p, labels)
    assert json.loads(json.dumps(found)) == found and sum(b["count"] for b in found["bins"]) == 500
    error = 0.0
    for b in found["bins"]:
        inside = [
            (row.max(), row.argmax() == y) for row, y in zip(p.astype(float), labels, strict=True) if b["low"] < row.max() <= b["high"]
        ]
        assert b["count"] == len(inside)
        if inside:
            sure, right = (sum(v) / len(inside) for v in zip(*inside, strict=True))
            assert math.isclose(b["confidence"], sure) and math.isclose(b["accuracy"], right)
            error += len(inside) / 500 * abs(sure - right)
        else:
            assert b["confidence"] is None and b["accuracy"] is None
    print(f"expected calibration error {found['error']:.4f}")
    assert math.isclose(found["error"], error)


def test_answers_as_sure_as_right_have_no_calibration_error():
    p = np.tile([[0.75, 0.25]], (8, 1))
    assert reliability(p, [0] * 6 + [1] * 2)["error"] == 0
    assert reliability(p, [1] * 8)["error"] == 0.75
    assert reliability(np.array([[1.0, 0.0]]), [0])["bins"][9]["count"] == 1
    assert reliability(np.zeros((0, 3)), [])["error"] == 0


def test_nearest_photos_agree_with_comparing_all(monkeypatch):
    rng = np.random.default_rng(0)
    train, query = rng.normal(3, 1, (50, 6)).astype(np.float32), rng.normal(3, 1, (7, 6)).astype(np.float32)
    names, labels = [f"{i:02}.jpg" for i in rng.permutation(50)], rng.integers(0, 3, 50)
    found = nearest_training(train, names, labels, ["a", "b", "c"], query)
    away, back = query - train.mean(axis=0), train - train.mean(axis=0)
    for q, row in zip(away, found, strict=True):
        alike = [float(q @ t / np.linalg.norm(q) / np.linalg.norm(t)) for t in back]
        best = sorted(range(50), key=lambda i: -alike[i])[:2]
        assert [m["file"] for m in row] == [names[i] for i in best] and [m["true"] for m in row] == ["abc"[labels[i]] for i in best]
        assert all(abs(m["similarity"] - alike[i]) < 1e-4 for m, i in zip(row, best, strict=True))
    monkeypatch.setattr(report_module, "BLOCK", 7)
    assert nearest_training(train, names, labels, ["a", "b", "c"], query) == found
    assert json.loads(json.dumps(found)) == found


def test_equally_near_photos_come_by_name_and_odd_cases_are_answered():
    train = np.array([[1, 0], [0, 1], [1, 0], [1, 0], [0, 1]], np.uint8)
    found = nearest_training(train, ["d", "x", "b", "c", "a"], [0, 1, 0, 0, 1], ["n", "m"], np.array([[1, 0]], np.uint8), limit=3)
    assert [m["file"] for m in found[0]] == ["b", "c", "d"] and found[0][0] == {"file": "b", "true": "n", "similarity": 1.0}
    same = nearest_training(np.ones((2, 3)), ["b", "a"], [0, 0], ["n"], np.ones((1, 3)))
    assert [m["file"] for m in same[0]] == ["a", "b"] and same[0][0]["similarity"] == 0
    assert nearest_training(np.zeros((0, 3)), [], [], ["n"], np.ones((2, 3))) == [[], []]
    assert nearest_training(train, list("abcde"), [0] * 5, ["n"], np.zeros((0, 2))) == []


def test_neighbours_among_100_000_photos_need_little_memory():
    train = np.random.default_rng(0).random((100_000, 64), np.float32)
    tracemalloc.start()
    found = nearest_training(train, [f"{i}.jpg" for i in range(100_000)], np.zeros(100_000, int), ["a"], train[:12])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{peak / 1e6:.1f} MB beside {train.nbytes / 1e6:.1f} MB of features")
    assert peak < 30e6 and [row[0]["file"] for row in found] == [f"{i}.jpg" for i in range(12)]


def test_neighbours_are_drawn_beside_the_mistake(tmp_path):
    for file, colour in (("v.png", (255, 0, 255)), ("t.png", (0, 255, 255))):
        Image.new("RGB", (50, 40), colour).save(tmp_path / file)
    report = made_up(["a", "b"], files=["v.png"], labels=[0], skill=-99)
    report["mistakes"][0]["nearest"] = [{"file": "t.png", "true": "b", "similarity": 0.7}] * 3
    page = np.asarray(draw(report, tmp_path))
    assert (page == (255, 0, 255)).all(axis=2).sum() == 160 * 160 and (page == (0, 255, 255)).all(axis=2).sum() == 2 * 92 * 92


def test_more_trained_layers_are_more_blue():
    report = complete(made_up(["a", "b"]))

    def blue(trained):
        layers = [{**layer, "trained": trained} for layer in report["layers"]]
        return int((np.asarray(draw({**report, "layers": layers})) == (45, 105, 190)).all(axis=2).sum())

    frozen, half, whole = (blue(share) for share in (0.0, 0.5, 1.0))
    print(frozen, half, whole)
    assert abs((half - frozen) * 2 - (whole - frozen)) < 0.02 * (whole - frozen) and whole > frozen + 10_000


def test_what_neither_costs_is_said_with_and_without_wrong_answers():
    said = [" ".join(report_module.neither_sentences(CASES[name])) for name in ("all entries", "neither, every answer right")]
    assert "35.0 % of the wrong answers are withheld" in said[0] and "There are no wrong answers" in said[1]


def test_training_that_kept_nothing_is_not_shown_as_if_it_had():
    """The second training of these reports has no best epoch."""
    assert "nothing of 'fine-tuning' was kept" in report_module.trained_remark(CASES["all entries"])
    better = CASES["all entries"] | {"phases": [phase | {"best_epoch": 1} for phase in CASES["all entries"]["phases"]]}
    assert report_module.trained_remark(better) == report_module.layers_sentence(better["layers"])


def test_thinned_curves_keep_ends_and_extremes():
    points = [(float(i), math.sin(i) + (9 if i == 777 else 0)) for i in range(5000)]
    kept = thinned(points)
    assert len(kept) <= 400 and kept[0] == points[0] and kept[-1] == points[-1] and points[777] in kept and kept == sorted(kept)
    assert thinned(points[:400]) == points[:400]


def test_the_interval_of_a_share_is_wilsons():
    assert np.allclose(wilson(0.5, 10), (0.2366, 0.7634), atol=1e-4)  # worked example of many textbooks
    assert wilson(0.0, 2)[0] == 0 and wilson(1.0, 2)[1] == 1 and wilson(1.0, 2)[0] > 0.3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (4.21, "4.2 s"), (59.4, "59 s"), (59.7, "1 min 0 s"), (75, "1 min 15 s"), (3599.7, "1 h 0 min"), (4000, "1 h 7 min")],
)
def test_durations_are_said_as_people_do(seconds, text):
    assert duration(seconds) == text


def test_names_become_letters_that_the_font_has():
    assert legible("Äpfel, crème brûlée, Łódź, größe, ½") == "Apfel, creme brulee, Lodz, grosse, 1\u20442"
    assert legible("黄瓜\udc80\n") == "????"
    assert legible_names(["what?", "黄瓜", "Äpfel"]) == ["what?", "class 1", "Apfel"]


def test_a_long_text_keeps_its_beginning_and_end():
    text = "val/white_headed_capuchin/n5015.jpg"
    cut = shortened(text, 14, 120)
    assert shortened(text, 14, 1000) == text and cut.startswith("val/") and cut.endswith(".jpg") and "…" in cut
    assert shortened(text, 14, 1) == "" and len(shortened("x" * 10**6, 14, 300)) < 100


@pytest.mark.parametrize(("low", "high"), [(0, 2.7), (0, 1e-9), (0.31, 0.99), (1, 40), (0, 1e30), (20, 100), (1, 1)])
def test_ticks_are_few_and_cover_the_range(low, high):
    ticks = nice_ticks(low, high, 6)
    assert 1 <= len(ticks) <= 8 and ticks[0] <= low + 1e-12 and ticks[-1] >= high - 1e-9 * abs(high) - 1e-12


@needs_shared
def test_a_page_with_real_photos():
    listing = list_folder(DATA / "fruit")
    val = [item for item in listing.items if item.part == "val"]
    report = made_up(listing.classes, files=[i.name for i in val], labels=[i.label for i in val], skill=0)
    page = draw(report, listing.root)
    with_photos, without = len(to_png(page)), len(to_png(draw(report)))
    print(f"{page.size}, {with_photos >> 10} KiB, without photos {without >> 10} KiB")
    assert with_photos > 2 * without
