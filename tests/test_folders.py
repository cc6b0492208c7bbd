"""Folders of photos and their division: every claim of minitl/folders.py."""

import hashlib
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, needs_shared
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from test_images import WHOLE, encoded, ordinary_user, scene, unix

from minitl import folders
from minitl.errors import MinitlError
from minitl.folders import difference_hash, find_photos, groups_alike, list_folder, split, with_validation
from minitl.images import PhotoError, Recipe, digest, read_photo, read_photos

PHOTO = encoded(Image.new("RGB", (16, 16), (9, 90, 200)))


def make(root, *names, data=PHOTO):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(data)
    return root


def fingerprint(root):
    """Every name, size, time and content below a folder."""
    return {
        str(p): (os.lstat(p).st_mtime_ns, os.lstat(p).st_mode, hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "")
        for p in sorted(root.rglob("*"))
    }


def rejected(call, *words):
    with pytest.raises(MinitlError) as caught:
        call()
    sentence = str(caught.value)
    print(sentence)
    assert all(word in sentence for word in words) and "\n" not in sentence, sentence


def test_classes_are_sorted_as_keras_and_torchvision_sort_them(tmp_path):
    make(tmp_path, "b/1.jpg", "B/1.JPG", "a/2.Jpeg", "a/1.png", "10/x.webp", "9/x.bmp", ".git/x.jpg", "a/.hidden.jpg", "Zebra/x.TIFF")
    make(tmp_path, "a/Thumbs.db", "a/.DS_Store", "a/desktop.ini", "__MACOSX/a/x.jpg", "labels.csv")
    listing = list_folder(tmp_path)
    assert listing.classes == ["10", "9", "B", "Zebra", "a", "b"]
    assert [(i.name, i.label, i.part) for i in listing.items] == [
        ("10/x.webp", 0, None), ("9/x.bmp", 1, None), ("B/1.JPG", 2, None), ("Zebra/x.TIFF", 3, None),
        ("a/1.png", 4, None), ("a/2.Jpeg", 4, None), ("b/1.jpg", 5, None),
    ]  # fmt: skip
    assert all(item.path == tmp_path / item.name for item in listing.items)
    assert listing.skipped == [] and listing.notes == []


def test_files_that_are_no_photos_are_listed_with_the_reason(tmp_path):
    make(tmp_path, "a/1.jpg", "a/notes.txt", "a/IMG.HEIC", "a/noending", "b/1.jpg", "b/film.mp4", "stray.jpg")
    listing = list_folder(str(tmp_path))
    reasons = {s.name: s.reason for s in listing.skipped}
    assert set(reasons) == {"a/notes.txt", "a/IMG.HEIC", "a/noending", "b/film.mp4", "stray.jpg"}
    assert ".txt" in reasons["a/notes.txt"] and "convert it to JPEG" in reasons["a/IMG.HEIC"] and "outside" in reasons["stray.jpg"]


def test_folders_inside_a_class_are_walked_in_order(tmp_path):
    make(tmp_path, "a/z.jpg", "a/sub/2.jpg", "a/sub/1.jpg", "a/sub/deep/er/0.jpg", "a/b.jpg", "b/.thumbnails/1.jpg", "b/1.jpg")
    assert [i.name for i in list_folder(tmp_path).items] == [
        "a/b.jpg", "a/z.jpg", "a/sub/1.jpg", "a/sub/2.jpg", "a/sub/deep/er/0.jpg", "b/1.jpg",
    ]  # fmt: skip


@unix
def test_links_in_circles_end_and_linked_folders_are_read_once(tmp_path):
    elsewhere = make(tmp_path / "elsewhere", "1.jpg")
    root = make(tmp_path / "root", "a/1.jpg", "a/sub/2.jpg", "b/1.jpg")
    (root / "a/sub/up").symlink_to(root / "a")
    (root / "a/sub/self").symlink_to("self")
    (root / "b/linked").symlink_to(elsewhere)
    (root / "b/again").symlink_to(elsewhere)
    (root / "b/broken.jpg").symlink_to("nowhere.jpg")
    assert [i.name for i in list_folder(root).items] == ["a/1.jpg", "a/sub/2.jpg", "b/1.jpg", "b/broken.jpg", "b/again/1.jpg"]


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Train", "Validation"), ("training", "valid")])
def test_train_and_val_folders_divide(tmp_path, train, val):
    make(tmp_path, f"{train}/a/1.jpg", f"{train}/b/1.jpg", f"{val}/b/2.jpg", "test/a/3.jpg", "extra/readme.md")
    listing = list_folder(tmp_path)
    assert listing.classes == ["a", "b"]
    assert [(Path(i.name).name, i.label, i.part) for i in listing.items] == [
        ("1.jpg", 0, "train"),
        ("1.jpg", 1, "train"),
        ("2.jpg", 1, "val"),
    ]
    notes = " ".join(listing.notes)
    assert "'test'" in notes and "'extra'" in notes and "no validation photos of 'a'" in notes


def test_train_alone_is_split_and_a_class_may_be_called_train(tmp_path):
    listing = list_folder(make(tmp_path / "one", "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg"))
    assert listing.classes == ["a", "b"] and {i.part for i in listing.items} == {None}
    listing = list_folder(make(tmp_path / "two", "train/1.jpg", "plane/1.jpg", "car/1.jpg"))
    assert listing.classes == ["car", "plane", "train"]
    listing = list_folder(make(tmp_path / "three", "train/steam/1.jpg", "plane/1.jpg"))
    assert listing.classes == ["plane", "train"]
    listing = list_folder(make(tmp_path / "four", "train/a/1.jpg", "train/b/1.jpg", "val/a/", "val/b/"))
    assert {i.part for i in listing.items} == {None} and "no photos" in listing.notes[0]


def test_folders_that_cannot_be_used_are_refused_with_what_to_do(tmp_path):
    rejected(lambda: list_folder(tmp_path / "missing"), "missing", "cannot be read", "PHOTOS/CLASS")
    rejected(lambda: list_folder(make(tmp_path, "file.jpg") / "file.jpg"), "this is a file")
    rejected(lambda: list_folder(make(tmp_path, "empty/") / "empty"), "holds no photos", "PHOTOS/CLASS")
    rejected(lambda: list_folder(make(tmp_path, "flat/1.jpg", "flat/2.jpg") / "flat"), "2 photos lie directly", "1.jpg", "PHOTOS/CLASS")
    rejected(lambda: list_folder(make(tmp_path, "one/a/1.jpg") / "one"), "one class only", "'a'")
    rejected(lambda: list_folder(make(tmp_path, "hollow/a/1.jpg", "hollow/b/x.heic") / "hollow"), "'b'", "HEIC", "x.heic")
    rejected(lambda: list_folder(make(tmp_path, "bare/a/", "bare/b/") / "bare"), "holds no photos")
    rejected(lambda: list_folder(make(tmp_path, "new/train/a/1.jpg", "new/train/b/1.jpg", "new/val/c/1.jpg") / "new"), "'c'", "'a', 'b'")
    rejected(lambda: list_folder(make(tmp_path, "direct/train/1.jpg", "direct/val/1.jpg") / "direct"), "train/CLASS")
    rejected(
        lambda: list_folder(make(tmp_path, "2/train/a/1.jpg", "2/train/b/1.jpg", "2/val/a/1.jpg", "2/valid/a/1.jpg") / "2"),
        "'val', 'valid'",
    )
    rejected(lambda: list_folder("zero\0byte"), "cannot be read")
    if os.name == "posix":
        rejected(lambda: list_folder(make(tmp_path, "odd/a/1.jpg", "odd/b\nb/1.jpg") / "odd"), "b?b", "rename")


@unix
@ordinary_user
def test_a_locked_folder_is_named(tmp_path):
    make(tmp_path, "a/1.jpg", "b/1.jpg", "a/locked/1.jpg")
    (tmp_path / "a/locked").chmod(0)
    listing = list_folder(tmp_path)
    (tmp_path / "a/locked").chmod(0o755)
    assert [s.name for s in listing.skipped] == ["a/locked"] and "Permission" in listing.skipped[0].reason


def test_photos_for_a_known_model_may_lack_classes_but_not_add_any(tmp_path):
    make(tmp_path, "b/1.jpg", "b/2.jpg")
    listing = list_folder(tmp_path, ["a", "b", "c"])
    assert listing.classes == ["a", "b", "c"] and [i.label for i in listing.items] == [1, 1]
    rejected(lambda: list_folder(tmp_path, ["x", "y"]), "'b'", "'x', 'y'")
    rejected(lambda: list_folder(make(tmp_path / "none", "a/", "b/"), ["a", "b"]), "no photos")
    only_val = list_folder(make(tmp_path / "v", "val/b/1.jpg"), ["a", "b"])
    assert [(i.label, i.part) for i in only_val.items] == [(1, "val")]


def test_validation_photos_from_a_folder_of_their_own(tmp_path):
    listing = list_folder(make(tmp_path / "photos", "a/1.jpg", "b/1.jpg"))
    both = with_validation(listing, make(tmp_path / "more", "b/7.jpg"))
    assert [(i.name, i.label, i.part) for i in both.items] == [("a/1.jpg", 0, "train"), ("b/1.jpg", 1, "train"), ("b/7.jpg", 1, "val")]
    rejected(lambda: with_validation(listing, make(tmp_path / "other", "c/1.jpg")), "'c'", "'a', 'b'")
    rejected(lambda: with_validation(listing, tmp_path / "photos"), "training photos too")
    parted = list_folder(make(tmp_path / "parts", "train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg"))
    both = with_validation(parted, tmp_path / "more")
    assert [(i.name, i.part) for i in both.items] == [("train/a/1.jpg", "train"), ("train/b/1.jpg", "train"), ("b/7.jpg", "val")]
    assert "left out" in both.notes[-1]
    own = with_validation(listing, tmp_path / "parts")
    assert [i.name for i in own.items if i.part == "val"] == ["val/a/2.jpg"]


def test_photos_without_classes_are_found(tmp_path):
    make(tmp_path, "z.jpg", "sub/a.png", "notes.txt")
    photos, skipped = find_photos(tmp_path)
    assert photos == [tmp_path / "z.jpg", tmp_path / "sub/a.png"] and [s.name for s in skipped] == ["notes.txt"]
    assert find_photos(tmp_path / "notes.txt") == ([tmp_path / "notes.txt"], [])
    rejected(lambda: find_photos(make(tmp_path / "empty", "x/notes.txt")), "no photos", "notes.txt")


def test_nothing_of_the_users_is_changed(tmp_path):
    make(tmp_path, "a/1.png", "a/bad.jpg", "b/sub/2.png", "b/readme.txt")
    (tmp_path / "a/bad.jpg").write_text("text")
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = fingerprint(tmp_path)
    listing = list_folder(tmp_path)
    results = list(read_photos([i.path for i in listing.items], WHOLE))
    assert len(results) == 3 and sum(isinstance(r, PhotoError) for _, r in results) == 1
    assert fingerprint(tmp_path) == before
    for path in tmp_path.rglob("*"):
        path.chmod(0o755)


@needs_shared
def test_real_folders_list_as_they_lie():
    listing = list_folder(DATA / "monkeys")
    assert len(listing.classes) == 10 and listing.classes[0] == "bald_uakari" and listing.skipped == []
    assert sum(i.part == "train" for i in listing.items) == 1097 and sum(i.part == "val" for i in listing.items) == 272


# ---- the split -----------------------------------------------------------------------------------------------------------------


def made_up(counts, seed=0):
    """(labels, digests, hashes) of photos that all look different."""
    rng = random.Random(seed)
    labels = [c for c, n in enumerate(counts) for _ in range(n)]
    return labels, [digest(rng.randbytes(9)) for _ in labels], [rng.getrandbits(64) for _ in labels]


def test_the_split_takes_its_share_of_every_class():
    labels, digests, hashes = made_up([100, 37, 10, 3, 2])
    val = split(labels, digests, hashes, 0.2).val
    assert np.bincount(np.array(labels)[val]).tolist() == [20, 7, 2, 1, 1]
    assert np.bincount(np.array(labels)[split(labels, digests, hashes, 0.99).val]).tolist() == [99, 36, 9, 2, 1]


def test_the_split_depends_on_content_alone():
    labels, digests, hashes = made_up([60, 60])
    val = split(labels, digests, hashes, 0.25).val
    order = random.Random(3).sample(range(120), 120)
    again = split([labels[i] for i in order], [digests[i] for i in order], [hashes[i] for i in order], 0.25).val
    assert np.array_equal(again, val[order])
    swapped = split([1 - c for c in labels], digests, hashes, 0.25).val
    assert np.array_equal(swapped, val)


def test_a_further_photo_moves_few_others():
    labels, digests, hashes = made_up([200, 200])
    val = split(labels, digests, hashes, 0.2).val
    more = made_up([20, 20], seed=9)
    grown = split(labels + more[0], digests + more[1], hashes + more[2], 0.2).val
    moved = int((val != grown[:400]).sum())
    print(f"{moved} of 400 photos moved when 40 were added")
    assert moved <= 16


def test_copies_stay_on_one_side():
    labels, digests, hashes = made_up([50, 50])
    rng = random.Random(5)
    for i in range(0, 100, 4):  # a copy of every fourth: two bits off; of class 0 and of the other class
        labels.append(0)
        digests.append(digest(rng.randbytes(9)))
        hashes.append(hashes[i] ^ (1 << rng.randrange(64)) ^ (1 << rng.randrange(64)))
    result = split(labels, digests, hashes, 0.3)
    assert all(result.val[i] == result.val[100 + k] for k, i in enumerate(range(0, 100, 4)))
    assert np.bincount(np.array(labels)[result.val]).tolist() == [22, 15] and result.repetitive == [] == result.unvalidated


def test_large_copies_do_not_crowd_the_validation_part():
    labels, digests, _ = made_up([100])
    val = split(labels, digests, [0] * 90 + [1 << (i * 6) | 0xFFF << i for i in range(10)], 0.2).val
    assert 1 <= val.sum() <= 20 and not val[:90].any()


def test_a_class_of_nothing_but_copies_is_divided_and_named():
    labels, digests, hashes = made_up([40, 40, 1])
    result = split(labels, digests, [7] * 40 + hashes[40:], 0.2)
    assert np.bincount(np.array(labels)[result.val], minlength=3).tolist() == [8, 8, 0]
    assert result.repetitive == [0] and result.unvalidated == [2]
    same = split([0] * 5, ["aa"] * 5, [7] * 5, 0.2)  # the same bytes five times: nothing to divide
    assert not same.val.any() and same.unvalidated == [0] and same.repetitive == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(0, 5)), min_size=1, max_size=40), st.floats(0.01, 0.99))
@example([(0, 6, 0), (0, 20, 0), (2, 0, 0), (2, 0, 0), (3, 0, 0), (3, 1, 0), (3, 1, 0)], 0.25)
def test_any_split_keeps_its_promises(photos, fraction):
    # a photo's bytes decide its look; the same file does not lie in two classes
    labels = [c for c, _, _ in photos]
    digests = [digest(f"{c} {d}".encode()) for c, d, _ in photos]
    hashes = [int(digest(f"{c} {d}".encode())[0], 16) * 0x1111111111111111 for c, d, _ in photos]
    result = split(labels, digests, hashes, fraction)
    for c in set(labels):
        mine = [i for i, label in enumerate(labels) if label == c]
        sides = {bool(result.val[i]) for i in mine}
        assert False in sides, "a class has nothing to train on"
        if len({digests[i] for i in mine}) > 1:
            assert True in sides, "a class of two photos has nothing to validate on"
        else:
            assert c in result.unvalidated
    side = {}
    for d, v in zip(digests, result.val, strict=True):
        assert side.setdefault(d, v) == v, "the same bytes on both sides"


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, float("nan"), float("inf"), "0.2", None, True])
def test_a_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(MinitlError, match="between 0 and 1"):
        split(*made_up([5, 5]), fraction)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 7) | st.integers(0, 2**64 - 1) | st.sampled_from([0xFF00 << s for s in range(40)]), max_size=40))
def test_groups_agree_with_comparing_every_pair(hashes):
    group = list(range(len(hashes)))
    for i in range(len(hashes)):
        for j in range(i):
            if (hashes[i] ^ hashes[j]).bit_count() <= folders.ALIKE:
                old, new = max(group[i], group[j]), min(group[i], group[j])
                group = [new if g == old else g for g in group]
    assert groups_alike(hashes) == group


@pytest.mark.parametrize("same", [0, 0xFFFF, 0xFFFF_0000_0000_FFFF], ids=["random", "one piece equal", "two pieces equal"])
def test_the_time_to_group_hashes_does_not_grow_with_the_square_of_their_number(same):
    rng = np.random.default_rng(0)
    hashes = (rng.integers(0, 2**63, 20_000, dtype=np.uint64) & ~np.uint64(same)).tolist()
    hashes += [h ^ (1 << 20) for h in hashes[:5000]]
    seconds = []
    for many in (hashes[::5], hashes):
        started = time.process_time()
        groups = groups_alike(many)
        seconds.append(time.process_time() - started)
    print(f"{len(hashes) // 5} and {len(hashes)} hashes: {seconds[0]:.3f} and {seconds[1]:.3f} s")
    assert groups[20_000:] == groups[:5000]
    assert seconds[1] < 15 * seconds[0] + 1  # the square of 5 is 25


@needs_shared
def test_copies_saved_again_are_found_among_real_photos():
    recipe, originals, copies = Recipe(128, 128), [], []
    for path in sorted((DATA / "monkeys/val").rglob("*.jpg"))[::3]:
        originals.append(difference_hash(read_photo(path, recipe)))
        with Image.open(path) as picture:
            smaller = picture.convert("RGB").resize((picture.width * 3 // 4, picture.height * 3 // 4), Image.Resampling.LANCZOS)
        copies.append(difference_hash(read_photo(encoded(smaller, "JPEG", quality=70), recipe)))
    groups = groups_alike(originals + copies)
    n = len(originals)
    found = sum(groups[i] == groups[n + i] for i in range(n))
    false = n - len(set(groups[:n]))
    print(f"{found} of {n} copies found; {false} of the originals joined with another")
    assert found >= 0.95 * n and false <= 0.05 * n


def test_a_difference_hash_is_64_bits_that_ignore_brightness():
    a = np.asarray(scene(96, 96).filter(ImageFilter.GaussianBlur(2)))
    assert 0 <= difference_hash(a) < 2**64
    assert difference_hash(np.zeros((32, 32, 3), np.uint8)) == 0
    ramp = np.repeat(np.arange(90, dtype=np.uint8)[None, :, None], 80, 0).repeat(3, 2)
    assert difference_hash(ramp) == 2**64 - 1 == difference_hash(ramp + 100)
