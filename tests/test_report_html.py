"""The HTML report: every claim of minitl/report_html.py."""

import base64
import html.parser
import io
import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from conftest import DATA, needs_shared
from PIL import Image
from test_report import CASES, complete, made_up

from minitl.drawing import BLUE, draw_bars, draw_reliability
from minitl.folders import list_folder
from minitl.report import NEIGHBOURS, SHOWN, worst_mistakes
from minitl.report_html import COLOURS, NUMBERED, Svg, page

VOID = {"meta", "img", "br", "wbr"}
SECTIONS = ["curves", "choice", "more-photos", "confusion", "mistakes", "reliability", "trained", "neither", "skipped", "settings"]


class Reader(html.parser.HTMLParser):
    """What a browser would find: tags in order, attributes, text; raises where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        assert tag not in VOID, f"{tag} must end with />"
        self.open.append(tag)
        self.tags.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes), attributes

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.mark.parametrize("name", CASES)
def test_the_page_is_well_formed_and_fetches_nothing(name):
    text = page(CASES[name])
    print(f"{name}: {len(text.encode()) / 1000:.0f} kB")
    xml.etree.ElementTree.fromstring(text)
    read = Reader(text)
    ids = read.attributes("id")
    assert len(ids) == len(set(ids)) and len(text.encode()) < 600_000
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in read.attributes("href"))
    assert {link[1:] for link in read.attributes("href") if link[0] == "#"} <= set(ids)
    assert all(link.startswith("data:image/") for link in read.attributes("src"))
    assert not any(key.startswith("on") for _, attributes in read.tags for key in attributes)
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style and "//" not in style
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"<(bdi|title)\b.*?</\1>", "", text))


def test_all_sections_are_there_in_order_and_old_reports_have_theirs():
    assert Reader(page(CASES["all entries"])).attributes("id") == SECTIONS
    old = Reader(page(CASES["2 classes"]))
    assert old.attributes("id") == ["curves", "confusion", "mistakes"]
    assert Reader(page(CASES["entries that are empty"])).attributes("id") == ["curves", "confusion", "mistakes"]
    assert Reader(page(CASES["no history"])).attributes("id") == ["confusion", "mistakes"]


@pytest.mark.parametrize("name", ["2 classes", "all entries", "all entries, 200 classes, 1000 epochs"])
def test_the_same_report_gives_the_same_page(name):
    assert page(CASES[name]) == page(json.loads(json.dumps(CASES[name])))


def test_names_are_shown_as_they_are_and_do_nothing():
    names = [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "Äpfel & Birnen",
        "黄瓜",
        "تفاح",
        "&lt;b&gt;",
        "👩‍👩‍👧",
        "a" * 255,
    ]
    report = complete(made_up(names, photos=400, skill=0.5))
    report["skipped"] = [{"file": name + "/x.jpg", "reason": name} for name in names]
    report["notes"], report["facts"] = names, {"<b>what</b>": "<i>value</i>"}
    report["phases"][0]["name"] = report["layers"][0]["name"] = report["auto"]["rows"][0]["what"] = names[0]
    report["layers"][0]["block"] = report["neither"]["measure"] = names[1]
    text = page(report)
    read = Reader(text)
    words = "".join(read.words)
    assert all(name in words for name in [*names, "<b>what</b>", "<i>value</i>"])
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "i"}) and not read.attributes("onerror")
    assert xml.etree.ElementTree.fromstring(text) is not None


def test_names_that_no_page_can_hold_are_replaced():
    report = complete(made_up(["x\udc80\x00y", "\ufffe\x85", "b"]))
    text = page(report)
    assert "x\ufffd\ufffdy" in "".join(Reader(text).words)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", text.encode().decode())


def test_every_picture_says_what_it_shows_and_every_table_names_its_cells():
    text = page(CASES["all entries"])
    read = Reader(text)
    for tag, attributes in read.tags:
        if tag == "svg":
            assert attributes["role"] == "img" and len(attributes["aria-label"]) > 2
        if tag == "img":
            assert len(attributes["alt"]) > 2
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    tree = xml.etree.ElementTree.fromstring(text)
    assert [len(tree.findall(f".//{tag}")) for tag in ("h1", "main", "header")] == [1, 1, 1] and tree.get("lang") == "en"
    for table in tree.iter("table"):
        assert table.find("caption").text and table.findall("thead/tr/th")
        widths = {len(row) for row in table.findall("thead/tr") + table.findall("tbody/tr")}
        assert len(widths) == 1, "".join(table.itertext())


@pytest.mark.parametrize("n", [2, 3, NUMBERED])
def test_the_confusion_table_holds_every_count(n):
    report = made_up([f"class {i}" for i in range(n)], photos=500)
    tree = xml.etree.ElementTree.fromstring(page(report))
    table = tree.find(".//table[@class='matrix']")
    cells = [[int((cell.text or "0").replace(",", "")) for cell in row.findall("td")] for row in table.findall("tbody/tr")]
    assert cells == report["val"]["float"]["confusion"]
    assert ["".join(th.itertext()) for th in table.findall("thead/tr/th")] == report["classes"]


def test_a_large_confusion_matrix_is_a_picture_with_a_pixel_for_each_cell():
    report = CASES["200 classes"]
    tree = xml.etree.ElementTree.fromstring(page(report))
    assert tree.find(".//table[@class='matrix']") is None
    link = tree.find(".//image").get("href")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))).convert("RGBA"))
    matrix = np.array(report["val"]["float"]["confusion"])
    assert pixels.shape == (200, 200, 4) and ((pixels[..., 3] > 0) == (matrix > 0)).all()
    diagonal = pixels[np.arange(200), np.arange(200)]
    assert (diagonal[diagonal[:, 3] > 0, :3] == BLUE).all()


def test_photos_are_inside_and_the_page_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    files = [f"{i}.png" for i in range(SHOWN * (1 + NEIGHBOURS))]
    for file in files:  # noise is what JPEG likes least
        Image.fromarray(rng.integers(0, 256, (200, 300, 3), np.uint8)).save(tmp_path / file)
    report = complete(made_up(["a", "b"], files=files[:SHOWN], labels=[0] * SHOWN, skill=-99))
    for k, mistake in enumerate(report["mistakes"]):
        mistake["nearest"] = [{"file": files[SHOWN + 2 * k + j], "true": "a", "similarity": 0.5} for j in range(2)]
    text = page(report, tmp_path)
    pictures = [a["src"] for tag, a in Reader(text).tags if tag == "img"]
    assert len(pictures) == SHOWN * (1 + NEIGHBOURS) and all(p.startswith("data:image/jpeg;base64,") for p in pictures)
    first = Image.open(io.BytesIO(base64.b64decode(pictures[0].split(",")[1])))
    print(f"{len(text.encode()) / 1000:.0f} kB with {len(pictures)} photos of noise, {first.size}")
    assert len(text.encode()) < 1_000_000 and first.size == (160, 160)
    assert text == page(report, {file: tmp_path / file for file in files})
    (tmp_path / files[0]).unlink()
    (tmp_path / files[1]).write_text("no picture")
    read = Reader(page(report, tmp_path))
    assert len([tag for tag, _ in read.tags if tag == "img"]) == len(files) - 2 and read.words.count("no photo") == 2


def test_thousands_of_mistakes_and_skipped_files_are_cut_and_said_so():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1], 5000)
    files = [f"{'long name ' * 20}{i}.jpg" for i in range(5000)]
    report = made_up(["a", "b"], mistakes=worst_mistakes(files, 1 - p.argmax(axis=1), p, ["a", "b"]))
    report["skipped"] = [{"file": file, "reason": "unreadable"} for file in files]
    text = page(report)
    print(f"{len(text.encode()) / 1000:.0f} kB")
    assert len(text.encode()) < 250_000 and "5,000 in all; the first 100" in text and "888 more are in report.json" in text


def test_colours_have_a_dark_twin_that_can_be_read():
    """Contrast as WCAG 2.1 defines it, of everything that text is written in, on the page's own colours: 4.5 at least, light and dark."""

    def luminance(colour):
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for k in (0, 1):
        for name in ("ink", "grey", "blue", "red"):
            for behind in ("paper", "pale"):
                light, dark = sorted((luminance(COLOURS[name][k]) + 0.05, luminance(COLOURS[behind][k]) + 0.05), reverse=True)
                print(f"{name} on {behind}: {light / dark:.1f}")
                assert light / dark >= 4.5, (name, k)
    assert "@media screen and (prefers-color-scheme:dark)" in page(CASES["2 classes"])


def test_charts_stay_inside_their_picture():
    for name, report in CASES.items():
        tree = xml.etree.ElementTree.fromstring(page(report))
        for svg in tree.iter("svg"):
            width, height = map(float, svg.get("viewBox").split()[2:])
            points = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter("circle")]
            points += [tuple(map(float, pair.split(","))) for line in svg.iter("polyline") for pair in line.get("points").split()]
            points += [(float(t.get("x")), float(t.get("y"))) for t in svg.iter("text") if t.get("x")]
            points += [(float(b.get("x")) + float(b.get("width")), float(b.get("y")) + float(b.get("height"))) for b in svg.iter("rect")]
            assert all(-1 <= x <= width + 1 and -1 <= y <= height + 1 for x, y in points), (name, svg.get("aria-label"))


def test_drawings_without_anything_in_them_are_empty():
    sheet = Svg()
    draw_bars(sheet, [], 0, 0, 100)
    assert sheet.marks == []
    draw_reliability(sheet, [(0.0, 0.1, 0, 0.0, 0.0)], 0, 0, 100)
    assert not any("rect" in mark for mark in sheet.marks)


@needs_shared
def test_a_page_with_real_photos_stays_small():
    listing = list_folder(DATA / "fruit")
    val, train = ([item for item in listing.items if item.part == part] for part in ("val", "train"))
    report = complete(made_up(listing.classes, files=[i.name for i in val], labels=[i.label for i in val], skill=0))
    for mistake, item in zip(report["mistakes"], train, strict=False):
        mistake["nearest"] = [{"file": item.name, "true": listing.classes[item.label], "similarity": 0.5}] * 2
    text = page(report, listing.root)
    pictures = [tag for tag, _ in Reader(text).tags if tag == "img"]
    print(f"{len(text.encode()) / 1000:.0f} kB with {len(pictures)} photos")
    assert len(pictures) == 36 and len(text.encode()) < 1_000_000
