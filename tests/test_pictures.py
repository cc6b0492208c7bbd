"""Views of photos: what crosses the border of the frozen part is what the whole network would compute of them."""

import numpy as np
import pytest
import small_models
from PIL import Image

from minitl import features
from minitl.augment import Augmentation
from minitl.errors import MinitlError
from minitl.graph import INPUT
from minitl.images import digest, read_photo
from minitl.model import find
from minitl.phases import NOTHING
from minitl.pictures import Views, read_pictures


@pytest.fixture
def photos(tmp_path):
    """Smooth pictures of several proportions; one of them lies on its side by its EXIF note."""
    paths = []
    for i, (width, height) in enumerate([(60, 40), (40, 60), (50, 50), (64, 32), (90, 33)]):
        y, x = np.mgrid[:height, :width]
        pixels = np.stack([x * 200 // width, y * 200 // height, (x + y) * 100 // (width + height)], axis=2).astype(np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 3 else 1
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1], exif=exif)
    return paths


def read(paths, recipe):
    return read_pictures(paths, [digest(path.read_bytes()) for path in paths], recipe)


def model():
    return find(small_models.SMALL)


def test_proportions_are_those_of_the_upright_photo(photos):
    found = read(photos, model().recipe)
    assert np.allclose(found.aspects, [60 / 40, 40 / 60, 1, 32 / 64, 90 / 33])
    assert found.pixels.shape == (5, 40, 40, 3)


def test_without_augmentation_a_view_is_what_the_recipe_reads(photos):
    made = model().replace_head(["a", "b"])
    views = Views(read(photos, made.recipe), made.recipe, NOTHING, made.graph, 0)
    seen = views.feeds()[INPUT]
    expected = made.recipe.normalise(np.stack([read_photo(path, made.recipe) for path in photos]))
    error = np.abs(seen - expected).max() * 127.5
    print(f"largest difference: {error:.1f} of 255")
    assert error < 12


@pytest.mark.parametrize("freeze", ["none", "conv1", "conv_pw_6", "all"])
def test_what_crosses_the_border_is_what_the_network_computes_of_the_view(photos, freeze):
    made = model().replace_head(["a", "b"])
    small_models.settle(made.graph, made.recipe.normalise(small_models.pixels(8)))
    kept, augmentation = read(photos, made.recipe), Augmentation.parse("default")
    images = Views(kept, made.recipe, augmentation, made.graph, 7).feeds(np.array([3, 0]), 5)[INPUT]
    made.freeze(freeze)
    feeds = Views(kept, made.recipe, augmentation, made.graph, 7).feeds(np.array([3, 0]), 5)
    assert list(feeds) == made.graph.border()
    for name, value in feeds.items():
        whole = images if name == INPUT else made.graph.evaluate(images, [name])[name]
        assert np.allclose(value, whole, rtol=1e-4, atol=3e-4), name  # random weights carry rounding far


def test_views_depend_on_seed_epoch_and_photo_alone(photos):
    made = model().replace_head(["a", "b"])
    kept, augmentation = read(photos, made.recipe), Augmentation.parse("default")
    views = Views(kept, made.recipe, augmentation, made.graph, 1)
    one, two = views.feeds(np.array([2, 4]), 1)[INPUT], views.feeds(np.array([4, 1, 2]), 1)[INPUT]
    assert np.array_equal(one[0], two[2]) and np.array_equal(one[1], two[0])
    assert not np.array_equal(views.feeds(np.array([2]), 2)[INPUT][0], one[0])
    some = Views(kept, made.recipe, augmentation, made.graph, 1, np.array([4, 2]))
    assert len(some) == 2 and np.array_equal(some.feeds(np.array([1]), 1)[INPUT][0], one[0])


def test_a_photo_that_changed_is_named(photos):
    digests = [digest(path.read_bytes()) for path in photos]
    Image.new("RGB", (20, 20)).save(photos[2])
    with pytest.raises(MinitlError, match=r"2\.png has vanished or changed"):
        read_pictures(photos, digests, model().recipe)
    photos[1].unlink()
    with pytest.raises(MinitlError, match=r"1\.png has vanished or changed"):
        read_pictures(photos, digests, model().recipe)


def test_many_photos_lie_on_the_disk_and_a_full_one_is_named(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "IN_MEMORY", 100)
    found = read_pictures(photos, [digest(path.read_bytes()) for path in photos], model().recipe, tmp_path / "cache")
    assert isinstance(found.pixels, np.memmap) and not list((tmp_path / "cache").iterdir())
    monkeypatch.setattr(features, "IN_MEMORY", 1 << 30)
    assert np.array_equal(found.pixels, read(photos, model().recipe).pixels)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "IN_MEMORY", 100)
    monkeypatch.setattr(features.os, "posix_fallocate", full, raising=False)
    with pytest.raises(MinitlError, match=r"GB for the photos do not fit into .*No space left.*--cache"):
        read_pictures(photos, [digest(path.read_bytes()) for path in photos], model().recipe, tmp_path / "cache")
