"""Features and their cache: a row depends on its photo and the frozen layers alone, costs one forward pass once, and is never stale."""

import multiprocessing
import os
import random
import shutil
from dataclasses import replace

import numpy as np
import PIL
import pytest
import small_models
from test_images import ordinary_user, unix

from minitl import features
from minitl.demo_pictures import draw_photos
from minitl.features import Cache, Row, cache_key, extract
from minitl.graph import INPUT, Graph
from minitl.images import read_photo
from minitl.layers import Add, Conv2D
from minitl.model import find


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("photos"), 4, size=48)


def frozen(freeze="all", name=small_models.SMALL, classes=("a", "b", "c")):
    model = find(name).replace_head(list(classes)).freeze(freeze)
    small_models.settle(small_models.stir(model.graph), model.recipe.normalise(small_models.pixels(4)))
    return model


@pytest.fixture
def passes(monkeypatch):
    """Counts the forward passes: the list grows with every image that goes through a network."""
    seen = []
    features_of = features.features_of

    def counting(*arguments):
        seen.append(1)
        return features_of(*arguments)

    monkeypatch.setattr(features, "features_of", counting)
    return seen


def rows(model, paths, cache=None):
    found = extract(model.graph, model.recipe, paths, cache)
    assert not found.cache_problem, found.cache_problem
    return found.features.rows


# ---- what a row is


def close(found, expected):
    """Folding rounds; BatchNorms of random numbers enlarge that."""
    worst = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"largest difference {worst:.1e} of the largest value")
    assert worst < 1e-3


def test_a_row_is_the_value_that_the_trainable_part_reads(photos):
    model = frozen()
    got = extract(model.graph, model.recipe, photos).features
    assert got.parts == [("dropout", (102,))]
    for path, row, i in zip(photos, got.rows, range(len(photos)), strict=True):
        x = model.recipe.normalise(read_photo(path, model.recipe)[None])
        values = model.graph.evaluate(x, ["global_average_pooling2d", "conv_preds"])
        close(row, values["global_average_pooling2d"][0])
        close(model.graph.evaluate(got.feeds([i]))["conv_preds"], values["conv_preds"])


def test_rows_do_not_depend_on_order_neighbours_or_cache(photos, tmp_path):
    model = frozen()
    alone = np.concatenate([rows(model, [path]) for path in photos])
    shuffled = random.Random(0).sample(range(len(photos)), len(photos))
    assert rows(model, photos).tobytes() == alone.tobytes()
    assert rows(model, [photos[i] for i in shuffled])[np.argsort(shuffled)].tobytes() == alone.tobytes()
    for _ in ("computed", "read back"):
        assert rows(model, photos, tmp_path).tobytes() == alone.tobytes()


def test_a_border_inside_a_residual_block_has_two_values(photos, tmp_path):
    model = frozen("block_2_depthwise", small_models.SMALL_V2)
    assert model.graph.border() == ["block_1_project_BN", "block_2_depthwise_relu"]
    first = extract(model.graph, model.recipe, photos, tmp_path)
    again = extract(model.graph, model.recipe, photos, tmp_path)
    assert again.reused == len(photos) and again.features.rows.tobytes() == first.features.rows.tobytes()
    assert [name for name, _ in first.features.parts] == model.graph.border()
    for i, path in enumerate(photos):
        x = model.recipe.normalise(read_photo(path, model.recipe)[None])
        feeds = again.features.feeds([i])
        for name, value in model.graph.evaluate(x, [*model.graph.border(), "predictions"]).items():
            close(feeds[name] if name in feeds else model.graph.evaluate(feeds)[name], value)


def test_with_nothing_frozen_the_rows_are_pixels_and_nothing_is_kept(photos, tmp_path, passes):
    model = frozen("none")
    passes.clear()
    found = extract(model.graph, model.recipe, photos, tmp_path)
    assert found.features.rows.dtype == np.uint8 and found.features.parts == [(INPUT, (32, 32, 3))] and not passes
    pixels = np.stack([read_photo(path, model.recipe) for path in photos])
    assert np.array_equal(found.features.feeds()[INPUT], model.recipe.normalise(pixels))
    assert np.array_equal(found.features.take(np.array([3, 1])).feeds([1])[INPUT], model.recipe.normalise(pixels[[1]]))
    assert list(tmp_path.iterdir()) == []


def test_the_input_beside_another_value_is_kept_as_it_is_fed(photos):
    """A graph that reads the photo twice: through a frozen convolution, and as it is."""
    nodes = small_models.chain(
        ("a", Conv2D((3, 3), (1, 1), "same", 3)), ("b", Conv2D((1, 1), (1, 1), "same", 3), INPUT), ("sum", Add(), "a", "b")
    )
    graph = Graph(nodes, (32, 32, 3)).initialise(0).freeze("=a")
    recipe = find(small_models.SMALL).recipe
    assert graph.border() == [INPUT, "a"]
    found = extract(graph, recipe, photos)
    x = recipe.normalise(np.stack([read_photo(path, recipe) for path in photos]))
    difference = np.abs(graph.evaluate(found.features.feeds())["logits"] - graph.evaluate(x)["logits"]).max()
    print(f"largest difference {difference:.2e}")
    assert difference < 1e-5


# ---- what a key is


def test_renaming_and_moving_a_photo_costs_nothing_and_a_new_one_costs_one_pass(photos, tmp_path, passes):
    model, cache = frozen(), tmp_path / "cache"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    copies = [shutil.copy(path, tmp_path / "a" / path.name) for path in photos[:5]]
    passes.clear()
    first = rows(model, copies, cache)
    assert len(passes) == 5
    moved = [shutil.move(path, tmp_path / "b" / f"other name {i}.png") for i, path in enumerate(copies)]
    passes.clear()
    found = extract(model.graph, model.recipe, [*moved, photos[5]], cache)
    assert len(passes) == 1 and found.reused == 5 and found.features.rows[:5].tobytes() == first.tobytes()
    passes.clear()
    twice = extract(model.graph, model.recipe, [photos[6], photos[6]], cache)
    assert len(passes) == 1 and twice.digests[0] == twice.digests[1] and np.array_equal(*twice.features.rows)


def test_a_changed_photo_is_computed_again(photos, tmp_path):
    model, path = frozen(), tmp_path / "photo.jpg"
    shutil.copy(photos[0], path)
    before = rows(model, [path], tmp_path)
    shutil.copy(photos[1], path)
    after = rows(model, [path], tmp_path)
    assert not np.array_equal(before, after) and np.array_equal(after, rows(model, [photos[1]]))


def test_whatever_can_change_a_row_changes_the_key(monkeypatch):
    keys = {cache_key(frozen().graph, frozen().recipe)}

    def distinct(graph, recipe, what):
        key = cache_key(graph, recipe)
        assert key not in keys, what
        keys.add(key)

    for what, change in (
        ("one weight by one bit", lambda g: g.params["conv_dw_1"].update(kernel=np.nextafter(g.params["conv_dw_1"]["kernel"], 9))),
        ("a sign of zero", lambda g: g.params["conv1_bn"].update(beta=-np.zeros(3, np.float32))),
        ("zero", lambda g: g.params["conv1_bn"].update(beta=np.zeros(3, np.float32))),
        ("statistics", lambda g: g.params["conv1_bn"].update(moving_mean=np.ones(3, np.float32))),
    ):
        model = frozen()
        change(model.graph)
        distinct(model.graph, model.recipe, what)
    assert cache_key(frozen("conv_pw_13").graph, frozen().recipe) in keys  # nothing above it can be trained but the classifier
    for cut in ("conv_dw_13", "conv_pw_12", "conv_dw_12", "conv1"):
        model = frozen(cut)
        distinct(model.graph, model.recipe, cut)
    recipe = frozen().recipe
    for change in (
        {"mean": (127.5, 127.5, 127.4)},
        {"std": (1, 1, 1)},
        {"resize": "squash"},
        {"crop_fraction": 0.9},
        {"interpolation": "bicubic"},
    ):
        distinct(frozen().graph, replace(recipe, **change), change)
    for arguments in ({"epsilon": 2e-3}, {"activation": "relu"}, {"padding": "torch"}):
        model = find(small_models.SMALL)
        model._weights.arguments.update(arguments)
        model = model.replace_head(["a", "b", "c"]).freeze("all")
        model.graph.params = frozen().graph.params  # the same numbers in another network
        distinct(model.graph, model.recipe, arguments)
    other = frozen(name="random:mobilenet_v1_0.1_40")
    distinct(other.graph, other.recipe, "size")
    for module, version in ((features, "__version__"), (PIL, "__version__")):
        with monkeypatch.context() as m:
            m.setattr(module, version, "99")
            distinct(frozen().graph, recipe, version)
    assert cache_key(frozen().graph, recipe) in keys


def test_which_frozen_values_are_read_belongs_to_the_key():
    """The same frozen layers, and rows of the same width: of the second layer here, of the first one there."""
    layers = [("a", Conv2D((1, 1), (1, 1), "same", 3)), ("b", Conv2D((1, 1), (1, 1), "same", 3))]
    one, two = (
        Graph(small_models.chain(*layers, ("c", Conv2D((1, 1), (1, 1), "same", 3), read)), (8, 8, 3)).initialise(0) for read in ("a", "b")
    )
    keys = [cache_key(graph.freeze("=a").freeze("=b"), find(small_models.SMALL).recipe) for graph in (one, two)]
    assert one.border() == ["a"] and two.border() == ["b"] and keys[0] != keys[1]


def test_what_lies_above_the_cut_does_not_change_the_key():
    model = frozen("conv_pw_11")
    key = cache_key(model.graph, model.recipe)
    model.graph.freeze("=conv_pw_13")
    model.graph.freeze("=conv_pw_12", np.arange(102) % 2 == 0)
    model.graph.params["conv_dw_12"]["kernel"] = model.graph.params["conv_dw_12"]["kernel"] + 1
    assert cache_key(model.graph, model.recipe) == key
    more = find(small_models.SMALL).replace_head(["x", "y"], seed=9).freeze("all")
    less = find(small_models.SMALL).replace_head(["a", "b", "c", "d"], seed=1).freeze("all")
    assert cache_key(more.graph, more.recipe) == cache_key(less.graph, less.recipe)


def test_other_weights_never_meet_old_rows(photos, tmp_path):
    one, two = frozen(), frozen()
    two.graph.params["conv_pw_13"]["kernel"] = two.graph.params["conv_pw_13"]["kernel"] * 2
    a, b = rows(one, photos, tmp_path), rows(two, photos, tmp_path)
    assert not np.array_equal(a, b) and np.array_equal(b, rows(two, photos))
    assert len(list((tmp_path / "features").iterdir())) == 2


# ---- damage, and a disk that cannot be used


def cached_files(cache):
    return sorted(cache.rglob("*.npz"))


def test_a_damaged_cache_file_is_thrown_away_and_computed_again(photos, tmp_path, passes):
    model = frozen()
    good = rows(model, photos, tmp_path)
    (path,) = cached_files(tmp_path)
    content = path.read_bytes()
    middle = len(content) // 2
    rng = np.random.default_rng(0)
    flips = [bytes([*content[:i], content[i] ^ 1, *content[i + 1 :]]) for i in rng.integers(0, len(content), 12).tolist()]
    for damaged in (b"", b"x", content[:middle], content[:-1], content[:middle] + b"\0" * 64 + content[middle + 64 :], *flips):
        for old in cached_files(tmp_path):
            old.unlink()
        path.write_bytes(damaged)
        passes.clear()
        assert rows(model, photos, tmp_path).tobytes() == good.tobytes()
        assert len(passes) in (0, len(photos))
        passes.clear()
        assert rows(model, photos, tmp_path).tobytes() == good.tobytes() and not passes


def test_a_row_that_vanishes_is_computed_again(photos, tmp_path, monkeypatch):
    model, initialise = frozen(), Cache.__init__
    good = rows(model, photos[:1], tmp_path)

    def known_but_gone(self, *arguments):
        initialise(self, *arguments)
        assert self.places
        self._open.clear()
        for path in cached_files(tmp_path):
            path.unlink()

    monkeypatch.setattr(Cache, "__init__", known_but_gone)
    found = extract(model.graph, model.recipe, photos[:1], tmp_path)
    assert not found.reused and not found.skipped and found.features.values().tobytes() == good.tobytes()


def test_the_same_photo_again_is_neither_decoded_nor_computed_nor_blamed_differently(photos, tmp_path, passes, monkeypatch):
    model, decoded, read = frozen(), [], read_photo
    monkeypatch.setattr(features, "read_photo", lambda data, recipe: decoded.append(1) or read(data, recipe))
    bad = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for path in bad:
        path.write_text("no picture")
    passes.clear()
    found = extract(model.graph, model.recipe, [photos[0], bad[0], photos[1], photos[0], bad[1], photos[0]])
    assert len(passes) == 2 and len(decoded) == 3 and found.kept == [0, 2, 3, 5]
    assert [path for path, _ in found.skipped] == bad and len({reason for _, reason in found.skipped}) == 1
    assert np.array_equal(found.features.rows[[0, 0]], found.features.rows[2:]) and found.looks[0] == found.looks[2]


def test_rows_of_another_shape_or_type_are_not_taken(photos, tmp_path):
    model = frozen()
    good = rows(model, photos, tmp_path)
    (path,) = cached_files(tmp_path)
    arrays = dict(features.unpack(path.read_bytes(), "x"))
    for change in (
        {"values": arrays["values"][:, :-1]},
        {"values": arrays["values"][:-1]},
        {"values": arrays["values"].astype(np.float16)},
        {"keys": arrays["keys"][:, :31]},
        {"looks": arrays["looks"][:-1]},
        {"values": np.float32(0)},
    ):
        for old in cached_files(tmp_path):
            old.unlink()
        path.write_bytes(features.pack(arrays | change))
        assert rows(model, photos, tmp_path).tobytes() == good.tobytes()
        assert not path.exists()
    path.write_bytes(features.pack({"values": arrays["values"]}))
    assert rows(model, photos, tmp_path).tobytes() == good.tobytes()


def test_a_file_where_the_cache_should_be_costs_only_the_cache(photos, tmp_path):
    model = frozen()
    (tmp_path / "cache").write_bytes(b"mine")
    found = extract(model.graph, model.recipe, photos, tmp_path / "cache")
    assert "cannot be used" in found.cache_problem
    assert found.features.rows.tobytes() == rows(model, photos).tobytes()
    assert (tmp_path / "cache").read_bytes() == b"mine"


@unix
@ordinary_user
def test_a_read_only_cache_folder_costs_only_the_cache(photos, tmp_path):
    model = frozen()
    tmp_path.chmod(0o555)
    found = extract(model.graph, model.recipe, photos, tmp_path / "cache")
    tmp_path.chmod(0o755)
    assert "cannot be used" in found.cache_problem and len(found.features) == len(photos)


def test_a_full_disk_costs_only_the_cache(photos, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    model = frozen()
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(features, "ROWS_PER_FILE", 2)
    found = extract(model.graph, model.recipe, photos, tmp_path)
    assert "No space left" in found.cache_problem and found.features.rows.tobytes() == rows(model, photos).tobytes()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_leftovers_of_a_kill_do_no_harm(photos, tmp_path, passes):
    model = frozen()
    good = rows(model, photos, tmp_path)
    (path,) = cached_files(tmp_path)
    (path.parent / f".{path.name}.0123456789abcdef.tmp").write_bytes(path.read_bytes()[:100])
    (path.parent / "notes.txt").write_bytes(b"a user's")
    passes.clear()
    assert rows(model, photos, tmp_path).tobytes() == good.tobytes() and not passes


# ---- what is lost when a run stops


def test_an_interruption_loses_nothing_that_was_computed(photos, tmp_path, passes):
    model = frozen()

    def stop(done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(model.graph, model.recipe, photos, tmp_path, stop)
    passes.clear()
    assert extract(model.graph, model.recipe, photos, tmp_path).reused == 7 and len(passes) == len(photos) - 7


def test_rows_are_written_every_few_photos_or_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "ROWS_PER_FILE", 3)
    store = Cache(tmp_path, "key", 2)
    row = Row(np.float32([1, 2]), 5)
    for i in range(7):
        store.add(f"{i:064x}", row)
    assert len(cached_files(tmp_path)) == 2 and len(Cache(tmp_path, "key", 2).places) == 6
    monkeypatch.setattr(features, "SECONDS_PER_FILE", 0.0)
    store.add(f"{7:064x}", row)
    again = Cache(tmp_path, "key", 2)
    assert len(again.places) == 8 and again.get(f"{7:064x}").look == 5 and again.get(f"{7:064x}").values.tolist() == [1, 2]


# ---- bad photos, and company


def test_bad_photos_are_named_and_the_rows_of_the_others_stay_in_order(photos, tmp_path):
    model = frozen()
    (tmp_path / "text.jpg").write_text("no picture")
    half = tmp_path / "half.jpg"
    half.write_bytes(photos[0].read_bytes()[:900])
    paths = [photos[0], tmp_path / "text.jpg", photos[1], half, tmp_path / "nowhere.jpg", photos[2]]
    seen = []
    found = extract(model.graph, model.recipe, paths, tmp_path / "cache", lambda done, total: seen.append((done, total)))
    assert found.kept == [0, 2, 5] and [path.name for path, _ in found.skipped] == ["text.jpg", "half.jpg", "nowhere.jpg"]
    assert found.features.rows.tobytes() == rows(model, photos[:3]).tobytes()
    assert seen == [(i, 6) for i in range(1, 7)] and all(reason for _, reason in found.skipped)
    nothing = extract(model.graph, model.recipe, paths[3:5])
    assert len(nothing.features) == 0 and len(nothing.skipped) == 2


def _work(folder, cache, answers):
    model = frozen()
    answers.put(rows(model, sorted(folder.rglob("*.jpg")), cache).tobytes())


def test_two_processes_may_share_a_cache(photos, tmp_path):
    folder = photos[0].parent.parent
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    workers = [context.Process(target=_work, args=(folder, tmp_path, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert results[0] == results[1] == rows(frozen(), sorted(folder.rglob("*.jpg"))).tobytes()
    found = extract(frozen().graph, frozen().recipe, photos, tmp_path)
    assert found.reused == len(photos)
