"""Faults put into folders of photos on purpose, and what the doctor says of them; the folder itself must stay as it is."""

import json
import os
import shutil
import time

import numpy as np
import pytest
from conftest import DATA, WEIGHTS, needs_shared
from PIL import Image
from test_images import unix

from minitl import MinitlError, doctor, load, model
from minitl.cli import main
from minitl.folders import list_folder, with_validation

NETWORK = WEIGHTS / "mobilenet_v1_0.25_128_quant.tflite"


def picture(seed, width=160, height=140):
    """A picture that looks like no other."""
    cells = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def fill(folder, count, first, **more):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(first + i).save(folder / f"{i:03}.png", **more)


@pytest.fixture
def healthy(tmp_path):
    for k, name in enumerate(("apple", "banana")):
        fill(tmp_path / "photos" / name, 24, 1000 * k)
    return tmp_path / "photos"


def examine(folder, **more):
    """{kind: Finding}, and the diagnosis."""
    found = doctor.examine(list_folder(folder), **more)
    return {finding.kind: finding for finding in found.findings}, found


def files(finding):
    return {name for row in finding.rows for name in row["files"]}


def test_healthy_photos_get_no_finding(healthy):
    findings, diagnosis = examine(healthy)
    assert findings == {} and diagnosis.readable == diagnosis.photos == 48 and diagnosis.classes == {"apple": 24, "banana": 24}
    assert set(diagnosis.clear) | set(diagnosis.unseen) == set(doctor.KINDS) and not set(diagnosis.clear) & set(diagnosis.unseen)
    assert "not looked for: wrong labels" in "\n".join(diagnosis.lines())


def test_every_fault_of_files_is_found_by_name_and_nothing_else_is(healthy):
    apple, banana = healthy / "apple", healthy / "banana"
    whole = (apple / "000.png").read_bytes()
    (apple / "cut.png").write_bytes(whole[: len(whole) // 2])
    (apple / "empty.jpg").write_bytes(b"")
    (apple / "notes.txt").write_text("mine")
    Image.new("RGB", (150, 150), "white").save(apple / "white.png")
    Image.new("RGB", (150, 150), "black").save(banana / "black.png")
    picture(1).resize((40, 35)).save(apple / "thumbnail.png")  # a near copy of 001, too
    picture(70, 900, 150).save(apple / "panorama.png")
    turned, note = picture(71), Image.Exif()
    note[0x0112] = 6
    turned.save(apple / "phone.jpg", exif=note)
    shutil.copy(apple / "002.png", apple / "again.png")
    shutil.copy(apple / "003.png", banana / "conflict.png")
    picture(4).resize((120, 100)).save(banana / "nearly.jpg")
    findings, diagnosis = examine(healthy)
    assert {kind: files(finding) for kind, finding in findings.items()} == {
        "unreadable": {"apple/cut.png", "apple/empty.jpg"},
        "passed_over": {"apple/notes.txt"},
        "conflict": {"apple/003.png", "banana/conflict.png", "apple/004.png", "banana/nearly.jpg"},
        "blank": {"apple/white.png", "banana/black.png"},
        "tiny": {"apple/thumbnail.png"},
        "narrow": {"apple/panorama.png"},
        "exif": {"apple/phone.jpg"},
        "duplicates": {"apple/002.png", "apple/again.png"},
        "near": {"apple/001.png", "apple/thumbnail.png"},
    }
    assert [f.kind for f in diagnosis.findings] == sorted(findings, key=list(doctor.KINDS).index), "the gravest first"
    assert all(f.costs and f.do and f.count for f in findings.values())
    assert "40 x 35 pixels, enlarged 4.2 times" in findings["tiny"].rows[0]["why"]
    assert "12.8 % of it is seen" in findings["narrow"].rows[0]["why"]
    assert findings["conflict"].figures == {"the same file": 1} and "the same file" in findings["conflict"].rows[0]["why"]
    # 56 can be read: one pair is alike, one equal, two lie in two classes; those have a copy in training with 80 %
    assert findings["near"].figures["leak"] == pytest.approx(8 / diagnosis.readable * 0.8)


def test_copies_across_training_and_validation_are_found(tmp_path):
    for k, name in enumerate(("a", "b")):
        fill(tmp_path / "train" / name, 25, 1000 * k)
        fill(tmp_path / "val" / name, 10, 1000 * k + 500)
    shutil.copy(tmp_path / "train/a/003.png", tmp_path / "val/a/copy.png")
    picture(7).resize((130, 110)).save(tmp_path / "val/a/smaller.jpg", quality=80)
    findings, _ = examine(tmp_path)
    assert list(findings) == ["leak"] and findings["leak"].count == 2 and findings["leak"].figures == {"the same file": 1}
    assert [row["files"] for row in findings["leak"].rows] == [
        ["val/a/copy.png", "train/a/003.png"],
        ["val/a/smaller.jpg", "train/a/007.png"],
    ]
    shutil.move(tmp_path / "val", tmp_path / "elsewhere")
    listing = with_validation(list_folder(tmp_path / "train"), tmp_path / "elsewhere")
    (leak,) = doctor.examine(listing).findings
    assert leak.rows[0]["files"] == [str(tmp_path / "elsewhere/a/copy.png"), "a/003.png"], "names that say which folder"


def test_unequal_few_and_nearly_equal_classes_are_found(tmp_path):
    for k, (name, count) in enumerate({"apple": 60, "Apples": 20, "nectarine": 30, "nectarien": 25, "cat1": 21, "cat2": 5}.items()):
        fill(tmp_path / name, count, 1000 * k)
    findings, _ = examine(tmp_path)
    assert list(findings) == ["few", "unequal", "names"]
    assert [row["files"] for row in findings["names"].rows] == [["Apples", "apple"], ["nectarien", "nectarine"]]
    assert [row["files"] for row in findings["few"].rows] == [["cat2"]] and "5 different photos" in findings["few"].rows[0]["why"]
    assert findings["unequal"].figures["constant"] == pytest.approx(60 / 161)


def test_five_different_photos_are_few_however_often_they_are_there(healthy):
    for path in sorted((healthy / "apple").iterdir())[5:]:
        path.unlink()
    for i in range(20):
        shutil.copy(healthy / "apple/000.png", healthy / "apple" / f"copy{i}.png")
    findings, _ = examine(healthy)
    assert list(findings) == ["duplicates", "few"] and findings["duplicates"].count == 20
    assert "5 different photos" in findings["few"].rows[0]["why"]


def test_a_folder_without_one_readable_photo_is_no_crash(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(b"no picture")
    findings, diagnosis = examine(tmp_path, backbone=model.find("random:mobilenet_v1_0.1_32"))
    assert findings["unreadable"].count == 2 and diagnosis.readable == 0 and diagnosis.accuracy is None
    assert "fewer than 50 photos" in "\n".join(diagnosis.lines())


@pytest.mark.parametrize("arrange", ["alike", "one each", "one blank class"])
def test_odd_folders_are_no_crash_with_a_network(tmp_path, arrange):
    """All photos of a class alike; classes of a single photo; a class of one colour."""
    fill(tmp_path / "b", 60, 1000)
    for i in range(1 if arrange == "one each" else 30):
        (tmp_path / "a").mkdir(exist_ok=True)
        (Image.new("RGB", (90, 90), (i, i, i)) if arrange == "one blank class" else picture(7, 90 + i, 90)).save(
            tmp_path / "a" / f"{i}.png"
        )
    findings, diagnosis = examine(tmp_path, backbone=model.find("random:mobilenet_v1_0.1_32"))
    assert 0 <= diagnosis.accuracy <= 1 and json.dumps(diagnosis.to_dict(), allow_nan=False)
    assert not ("labels" in findings and "a/0.png" in files(findings["labels"])), "what nobody else shows cannot be judged"


# ---- the command


def state(folder):
    """Names, sizes, times and contents of all that lies below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *sorted(folder.rglob("*"))]
    }


@unix
def test_the_folder_stays_as_it_is_even_where_it_can_only_be_read(healthy, tmp_path, capsys):
    before = state(healthy)
    for path in [healthy, *healthy.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        weights = ["--weights", "random:mobilenet_v1_0.1_32", "--cache", str(tmp_path / "cache")]
        assert main(["doctor", str(healthy), *weights]) == 0
    finally:
        for path in [healthy, *healthy.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert state(healthy) == before


def test_a_cache_among_the_photos_is_refused(healthy, capsys):
    before = state(healthy)
    inside = healthy / "apple" / "cache"
    assert main(["doctor", str(healthy), "--weights", "random:mobilenet_v1_0.1_32", "--cache", str(inside)]) == 1
    assert "lies among the photos" in capsys.readouterr().err and state(healthy) == before


def test_findings_are_no_failure_and_json_has_all_of_them(healthy, capsys):
    for i in range(5):
        (healthy / "apple" / f"cut{i}.png").write_bytes((healthy / "apple" / f"00{i}.png").read_bytes()[:200])
    assert main(["doctor", str(healthy)]) == 0
    said = capsys.readouterr().out
    assert "cut2.png" in said and "cut3.png" not in said and "and 2 more; --all names all" in said
    assert main(["doctor", str(healthy), "--all"]) == 0
    assert "cut3.png" in capsys.readouterr().out
    assert main(["doctor", str(healthy), "--json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert err == "" and data["photos"] == 53 and data["readable"] == 48
    (finding,) = data["findings"]
    assert finding["kind"] == "unreadable" and finding["count"] == len(finding["rows"]) == 5 and finding["costs"] and finding["do"]


def test_a_folder_that_cannot_be_used_is_a_mistake(tmp_path, healthy, capsys):
    for given in (
        [str(tmp_path / "nowhere")],
        [str(healthy / "apple")],
        [str(healthy), "--val", "2"],
        [str(healthy), "--weights", "none.h5"],
    ):
        assert main(["doctor", *given]) == 1
        assert capsys.readouterr().err.startswith("minitl doctor: ")


def test_names_that_no_terminal_can_show_are_no_crash(healthy, capsys):
    strange = healthy / "apple" / os.fsdecode(b"bad\xff\nname.jpg")
    try:
        strange.write_bytes(b"no picture")
    except OSError:
        pytest.skip("this file system refuses such a name")
    assert main(["doctor", str(healthy)]) == 0
    assert "apple/bad??name.jpg" in capsys.readouterr().out
    assert main(["doctor", str(healthy), "--json"]) == 0


# ---- many photos


def test_100_000_photos_take_seconds(tmp_path):
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 2**63, 90_000, dtype=np.uint64).tolist()
    looks += looks[:10_000]
    items = [doctor.Item(tmp_path / "x.jpg", f"{i}.jpg", i % 100, "val" if i % 5 == 0 else "train") for i in range(100_000)]
    photos = [doctor.Seen(item, item.name, f"{i:x}", 200, 200, 1, looks[i], 50.0) for i, item in enumerate(items)]
    classes = [f"class {'abcdefghij'[i // 10]}{i}" for i in range(100)]
    started = time.process_time()
    groups = doctor.group(photos)
    found = [
        doctor.check_conflict(photos, groups, classes),
        doctor.check_leak(photos, groups, None),
        doctor.check_duplicates(photos),
        doctor.check_near(photos, groups, 0.2, None),
        doctor.check_few(photos, groups, classes, None),
        doctor.check_unequal(photos, classes, None),
        doctor.check_names([f"kind number {i}" for i in range(10_000)], None),
    ]
    seconds = time.process_time() - started
    print(f"{seconds:.1f} s for 100,000 photos; {[f.kind for f in found if f]}")
    assert seconds < 30


# ---- real photos with known faults


def put_faults(folder, rng):
    """20 wrong labels, 20 turned, 20 copies, 5 cut short, 20 of fruit among the monkeys; {fault: names}."""
    shutil.copytree(DATA / "monkeys", folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    photos = sorted(folder.rglob("*.jpg"))
    chosen = [photos[i] for i in rng.choice(len(photos), 85, replace=False)]
    classes = sorted(path.name for path in (folder / "train").iterdir())
    faults: dict[str, set[str]] = {kind: set() for kind in ("labels", "turned", "duplicates", "leak", "unreadable", "outliers")}

    def name(path):
        return path.relative_to(folder).as_posix()

    for path in chosen[:20]:
        other = rng.choice([c for c in classes if c != path.parent.name])
        faults["labels"].add(name(path.rename(path.parents[1] / other / f"wrong_{path.name}")))
    for path in chosen[20:40]:
        with Image.open(path) as whole:
            way = rng.choice([Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270])
            whole.convert("RGB").transpose(Image.Transpose(int(way))).save(path, quality=95)
        faults["turned"].add(name(path))
    for i, path in enumerate(chosen[40:60]):
        across = i >= 10
        side = {"train": "val", "val": "train"}[path.parts[-3]] if across else path.parts[-3]
        copy = folder / side / path.parent.name / f"copy_{path.name}"
        shutil.copy(path, copy)
        faults["leak" if across else "duplicates"].add(name(copy if side == "val" or not across else path))
    for path in chosen[60:65]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        faults["unreadable"].add(name(path))
    fruit = sorted((DATA / "fruit/train").rglob("*.jpg"))
    for path, at in zip(chosen[65:], rng.choice(len(fruit), 20, replace=False), strict=True):
        copy = path.with_name(f"fruit_{path.name}")
        shutil.copy(fruit[at], copy)
        faults["outliers"].add(name(copy))
    return faults


FOUND = {"labels": (0.75, 0.35), "turned": (0.3, 0.6), "outliers": (0.65, 0.4), "duplicates": (1, 0), "leak": (1, 0), "unreadable": (1, 1)}
"""Least recall and precision; the photos have wrong labels and many copies of their own, so that precision is more than it looks."""


@needs_shared
def test_faults_among_real_photos_are_found(tmp_path):
    faults = put_faults(tmp_path / "photos", np.random.default_rng(0))
    found = doctor.examine(list_folder(tmp_path / "photos"), load(NETWORK), cache=tmp_path / "cache")
    findings = {finding.kind: finding for finding in found.findings}
    print("\n".join(found.lines()))
    for kind, (recall, precision) in FOUND.items():
        named = [row["files"] for row in findings[kind].rows]
        hits = len(faults[kind] & {name for names in named for name in names})
        print(f"{kind}: {hits} of {len(faults[kind])} found, {len(named)} named")
        assert hits >= recall * len(faults[kind]) and hits >= precision * len(named), kind
    labels, leak = findings["labels"].figures, findings["leak"].figures
    assert labels["after"] > labels["before"] - 0.005, "training without the suspects is no worse for the others"
    assert leak["with"] > leak["without"], "copies make the accuracy look better"
    again = doctor.examine(list_folder(tmp_path / "photos"), load(NETWORK), cache=tmp_path / "cache")
    assert again == found, "the same photos, the same findings; from the cache, too"


ORDINARY = {"fruit": {"labels": 3, "turned": 6, "outliers": 3}, "person": {"labels": 5, "turned": 4, "outliers": 8}}


@needs_shared
@pytest.mark.parametrize("photos, most", ORDINARY.items(), ids=ORDINARY)
def test_few_photos_of_ordinary_data_are_suspected(photos, most, tmp_path):
    found = doctor.examine(list_folder(DATA / photos), load(NETWORK), cache=tmp_path)
    named = {kind: 0 for kind in most} | {f.kind: f.count for f in found.findings if f.kind in most}
    print(f"{photos}, {found.readable} photos, {found.accuracy:.3f}: {named}")
    assert all(named[kind] <= most[kind] for kind in most)


def test_a_classifier_in_closed_form_knows_what_was_drawn():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 200)
    rows = (rng.normal(size=(600, 8)) * np.linspace(0.2, 2, 8) + 3 * np.eye(3, 8)[labels]).astype(np.float32)
    head = doctor.Gaussians.fit(rows[::2], labels[::2], 4)
    distances = head.distances(rows[1::2])
    assert np.isinf(distances[:, 3]).all(), "a class without rows is far from everything"
    assert (distances.argmin(axis=1) == labels[1::2]).mean() > 0.95
    for row, at in ((rows[1], 0), (rows[599], 2)):
        away = row.astype(np.float64) - head.means[at]
        assert head.distances(row[None])[0, at] == pytest.approx(away @ head.precision @ away)
    p = doctor.probabilities(distances, doctor.calibrated(distances, labels[1::2]))
    assert np.allclose(p.sum(axis=1), 1) and (p[:, 3] == 0).all()
    assert np.allclose(doctor.probabilities(np.full((1, 4), np.inf), 1.0), 0.25)


def test_damaged_weights_are_a_mistake_and_not_a_diagnosis(healthy):
    fill(healthy / "apple", 40, 0)
    network = model.find("random:mobilenet_v1_0.1_32")
    for params in network.graph.params.values():
        params.update({name: np.full_like(array, np.nan) for name, array in params.items()})
    with pytest.raises(MinitlError, match="damaged"):
        examine(healthy, backbone=network)
