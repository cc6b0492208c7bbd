"""Drawn pictures: every claim of minitl/demo_pictures.py."""

import random
import time

import numpy as np
import pytest
from PIL import Image

from minitl.demo_pictures import DRAWN, draw_photo, draw_photos
from minitl.errors import MinitlError
from minitl.folders import difference_hash, groups_alike, list_folder
from minitl.images import Recipe, read_photo


def test_the_same_seed_draws_the_same_files_and_more_of_them_change_none(tmp_path):
    few = {p.name: p.read_bytes() for p in draw_photos(tmp_path / "few", 3, seed=5, size=64)}
    many = {p.name: p.read_bytes() for p in draw_photos(tmp_path / "many", 5, seed=5, size=64)}
    other = {p.name: p.read_bytes() for p in draw_photos(tmp_path / "other", 3, seed=6, size=64)}
    assert len(few) == 9 and len(many) == 15
    assert all(many[name] == data for name, data in few.items())
    assert all(other[name] != data for name, data in few.items())


def test_the_folder_lists_as_three_classes_of_different_pictures(tmp_path):
    start = time.perf_counter()
    draw_photos(tmp_path, 40, size=96)
    print(f"120 pictures of 96 pixels in {time.perf_counter() - start:.2f} s")
    listing = list_folder(tmp_path)
    assert listing.classes == sorted(DRAWN) and len(listing.items) == 120 and not listing.skipped
    hashes = [difference_hash(read_photo(item.path, Recipe(96, 96))) for item in listing.items]
    assert len(set(groups_alike(hashes))) >= 115


def test_colour_alone_does_not_tell_the_classes_apart():
    """Nearest mean colour, trained on 60 pictures a class, asked about 30 others: guessing gives 1/3."""

    def mean_colours(name):
        return np.array([np.asarray(draw_photo(name, random.Random(i), 32), np.float64).mean(axis=(0, 1)) for i in range(90)])

    features = {name: mean_colours(name) for name in DRAWN}
    means = np.array([f[:60].mean(axis=0) for f in features.values()])
    right = [np.linalg.norm(f[60:, None] - means, axis=2).argmin(axis=1) == k for k, f in enumerate(features.values())]
    accuracy = float(np.mean(right))
    print(f"nearest mean colour: {accuracy:.2f}")
    assert accuracy < 0.75


@pytest.mark.parametrize("size", [32, 96, 128])
@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_has_the_size_asked_for_and_is_not_flat(name, size):
    picture = draw_photo(name, random.Random(1), size)
    assert picture.size == (size, size) and picture.mode == "RGB" and np.asarray(picture).std() > 10


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MinitlError, match="cannot write"):
        draw_photos(tmp_path / "file", 1)
    assert Image.open(draw_photos(tmp_path / "ok", 1)[0]).format == "JPEG"
