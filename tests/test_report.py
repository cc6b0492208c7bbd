"""The report page: every claim of minitl/report.py."""

import json
import math

import numpy as np
import pytest
from conftest import DATA, needs_shared
from PIL import Image

from minitl.folders import list_folder
from minitl.report import MARGIN, WIDTH, confusion_matrix, draw, legible, legible_names, nice_ticks, shortened, to_png, worst_mistakes


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
    "large counts": made_up(
        ["a", "b"], val={"count": 10**6, "float": {"accuracy": 0.5, "confusion": [[10**6, 12345], [7, 0]]}, "int8": None}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_drawn_into_the_margin(name):
    page = draw(CASES[name])
    pixels = np.asarray(page.convert("L"))
    print(name, page.size)
    assert page.width == WIDTH and 500 < page.height < 3200
    edge = MARGIN // 2
    for border in (pixels[:edge], pixels[-edge:], pixels[:, :edge], pixels[:, -edge:]):
        assert border.min() == 255
    assert pixels.min() < 60


@pytest.mark.parametrize("name", ["2 classes", "other scripts"])
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
