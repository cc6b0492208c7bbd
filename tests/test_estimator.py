"""PhotoClassifier: what a Python user hands it, what comes back, and what real scikit-learn asks of it."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_models
from conftest import DATA, WEIGHTS, needs_shared
from PIL import Image

import minitl
from minitl import MinitlError, PhotoClassifier, demo_pictures
from minitl.estimator import NotFittedError, Photos
from minitl.model import find

NAMES = np.array(["red", "green", "blue"])


@pytest.fixture(scope="module")
def backbone():
    return find(small_models.SMALL_V2)


@pytest.fixture(scope="module")
def X():
    """(30, 32, 32, 3) uint8, ten each of red, green and blue."""
    rng = np.random.default_rng(5)
    photos = rng.integers(40, 70, (30, 32, 32, 3), dtype=np.uint8)
    for i in range(30):
        photos[i, :, :, i % 3] += rng.integers(140, 170, dtype=np.uint8)
    return photos


@pytest.fixture(scope="module")
def y():
    return NAMES[np.arange(30) % 3]


@pytest.fixture(scope="module")
def trained(backbone, X, y):
    return PhotoClassifier(backbone, epochs=40).fit(X, y)


@pytest.fixture(scope="module")
def paths(X, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, photo in enumerate(X):
        Image.fromarray(photo).save(folder / f"{i:02}.png")
    return sorted(folder.iterdir())


# ---- fit and predict


def test_it_learns_and_answers_in_the_labels_it_was_given(trained, X, y):
    assert trained.classes_.tolist() == ["blue", "green", "red"]
    answers = trained.predict(X)
    assert answers.dtype == y.dtype and trained.score(X, y) == (answers == y).mean() > 0.9
    p, logits = trained.predict_proba(X), trained.decision_function(X)
    assert p.shape == logits.shape == (30, 3) and np.allclose(p.sum(axis=1), 1)
    assert np.array_equal(trained.classes_[p.argmax(axis=1)], answers)


@pytest.mark.parametrize("labels", [np.array([7, -2]), np.array([True, False]), np.array([1.0, 0.0]), np.array(["b", "a"], object)])
def test_labels_keep_their_type_and_two_classes_have_one_decision(backbone, X, labels):
    y = labels[np.arange(30) % 3 // 2]
    model = PhotoClassifier(backbone, epochs=5).fit(X, y)
    assert model.classes_.tolist() == sorted(labels.tolist()) and model.predict(X).dtype == y.dtype
    decision = model.decision_function(X)
    assert decision.shape == (30,) and np.array_equal(model.predict(X) == model.classes_[1], decision > 0)
    assert np.array_equal(PhotoClassifier(backbone, epochs=5).fit(X, y.reshape(-1, 1)).predict(X), model.predict(X))


def test_the_same_seed_gives_the_same_numbers_and_fitting_again_starts_anew(trained, backbone, X, y):
    again = PhotoClassifier(backbone, epochs=40).fit(X[:20], y[:20]).fit(X, y)
    assert np.array_equal(again.predict_proba(X), trained.predict_proba(X))
    other = PhotoClassifier(backbone, epochs=40, seed=1).fit(X, y)
    assert not np.array_equal(other.predict_proba(X), trained.predict_proba(X))


def test_training_leaves_what_it_was_given_as_it_was(backbone, X, y):
    before, photos = backbone.content().content_hash(), X.copy()
    PhotoClassifier(backbone, freeze="none", epochs=1).fit(X, y)
    assert backbone.content().content_hash() == before and np.array_equal(X, photos)


@pytest.mark.parametrize(
    "more", [{"freeze": "block_15_add"}, {"fine_tune": 1, "augment": "none"}, {"fine_tune": "all", "settings": {"patience": 2}}]
)
def test_more_than_the_classifier_can_be_trained(backbone, X, y, more):
    pretrained = backbone.replace_head(["a", "b"]).note(training="elsewhere")  # not known to be random, so that its classifier comes first
    deep = PhotoClassifier(pretrained, epochs=3, rate=1e-3, **more).fit(X, y)
    assert deep.score(X, y) > 0.8 and len(deep.history_.epochs) <= 3
    moved = not np.array_equal(deep.model_.graph.params["Conv_1"]["kernel"], backbone.graph.params["Conv_1"]["kernel"])
    assert moved == (deep.history_.best > 0)


def test_photos_are_augmented_the_same_way_as_files_and_as_arrays(backbone, X, y, paths):
    """From random weights, all layers: the same numbers but for the crop, which pixels of the network's size do not get."""
    losses = []
    for photos in (X, X, paths):
        model = PhotoClassifier(backbone, freeze="none", augment="crop,mirror", epochs=2, batch=10, rate=1e-6).fit(photos, y)
        losses.append([line.train_loss for line in model.history_.epochs])
    assert losses[0] == losses[1] and np.isfinite(losses).all()
    assert losses[0][0] == pytest.approx(losses[2][0], rel=0.3)


def test_hidden_layers_and_dropout(backbone, X, y):
    model = PhotoClassifier(backbone, hidden=(16,), dropout=0.1, epochs=60).fit(X, y)
    assert model.score(X, y) > 0.8 and any(node.name.startswith("hidden_1") for node in model.model_.graph.nodes)


def test_the_model_predicts_the_same_is_saved_and_becomes_a_header(trained, X, y, paths, tmp_path):
    model = trained.model_
    assert model.calibration and model is trained.model_
    assert np.allclose(trained.decision_function(X), model.logits(X), atol=1e-4)
    model.save(tmp_path / "model.npz")
    assert minitl.load(tmp_path / "model.npz").classes == ["blue", "green", "red"]
    assert "#ifndef" in model.emit("colours")
    answers = model.deploy().logits(X).argmax(axis=1)
    assert (trained.classes_[answers] == y).mean() > 0.9


def test_one_photo_of_each_class_is_enough_to_train(backbone, X, y):
    model = PhotoClassifier(backbone, epochs=30).fit(X[:3], y[:3])
    assert model.predict(X[:3]).tolist() == y[:3].tolist()


def test_an_unfitted_classifier_says_so_as_scikit_learn_would(backbone, X, y):
    new = PhotoClassifier(backbone)
    for ask in (new.predict, new.predict_proba, new.decision_function, lambda X: new.score(X, y), lambda X: new.model_):
        with pytest.raises(NotFittedError, match="not trained yet: call fit"):
            ask(X)
    assert issubclass(NotFittedError, ValueError) and issubclass(NotFittedError, AttributeError) and not hasattr(new, "model_")


# ---- what X may be


def test_paths_and_pixels_of_any_kind_mean_the_same_photos(trained, X, paths):
    expected = trained.decision_function(X)
    nested = np.empty(30, object)
    nested[:] = list(X)
    same = {
        "floats 0..255": X.astype(float), "floats 32": X.astype(np.float32), "whole numbers": X.astype(np.int64), "list of photos": list(X),
        "objects": nested, "rows": X.reshape(30, -1), "lists": X.tolist(), "other strides": np.asfortranarray(X),
    }  # fmt: skip
    for name, photos in same.items():
        assert np.array_equal(trained.decision_function(photos), expected), name
    # files of the network's size are cropped, as every file is
    by_path = trained.decision_function(paths)
    for photos in ([str(p) for p in paths], np.array([str(p) for p in paths]), np.array(paths, object), np.array(paths, object)[:, None]):
        assert np.array_equal(trained.decision_function(photos), by_path)
    assert (by_path.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9


def test_photos_of_other_sizes_are_prepared_as_files_are(trained, X, tmp_path):
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (100, 50), (64, 64)]
    photos = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    for i, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f"{i}.png")
    from_files = trained.decision_function(sorted(tmp_path.iterdir()))
    assert np.array_equal(trained.decision_function(photos), from_files)
    assert np.array_equal(trained.decision_function(photos[2].reshape(1, -1)), from_files[2:])  # a square row


def test_grey_photos_are_grey_on_all_channels(trained, X):
    grey = X[..., 0]
    expected = trained.decision_function(np.repeat(grey[..., None], 3, axis=3))
    for photos in (grey, grey[..., None], grey.reshape(30, -1), list(grey)):
        assert np.array_equal(trained.decision_function(photos), expected)


def test_floats_from_0_to_1_are_understood_and_never_mixed_up(trained, backbone, X, y):
    unit = PhotoClassifier(backbone, epochs=40).fit(X / 255, y)
    assert np.array_equal(unit.decision_function(X / 255), trained.decision_function(X))
    assert np.array_equal(unit.decision_function(X), trained.decision_function(X))  # uint8 can only mean one thing
    with pytest.raises(MinitlError, match=r"in 0\.\.255, but those of fit\(\) were in 0\.\.1"):
        unit.predict(X.astype(float))
    with pytest.raises(MinitlError, match=r"in 0\.\.1, but those of fit\(\) were in 0\.\.255"):
        trained.predict(X / 255)
    assert trained.predict(np.zeros((1, 32, 32, 3))).shape == unit.predict(np.zeros((1, 32, 32, 3))).shape == (1,)  # a black photo


@pytest.mark.parametrize(
    ("photos", "said"),
    [
        ("photo.jpg", "one path"),
        (Path("photo.jpg"), "one path"),
        ([], "no photos"),
        (np.zeros((0, 32, 32, 3), np.uint8), "no photos"),
        (None, "found NoneType"),
        ([["a.jpg", "b.jpg"]], "expected paths"),
        ([1, 2, 3], "expected paths"),
        (["a.jpg", 3], "cannot be read|expected paths"),
        (np.zeros((2, 3, 32, 32)), "red first"),
        (np.zeros((32, 32, 3)), "X\\[None\\]"),
        (np.zeros((2, 32, 32, 4), np.uint8), "red first"),
        (np.zeros((2, 10)), "rows of 10 numbers"),
        (np.zeros((2, 0)), "rows of 0 numbers"),
        (np.full((2, 32, 32, 3), np.nan), "pixels from nan"),
        (np.full((2, 32, 32, 3), -1), "pixels from -1"),
        (np.full((2, 32, 32, 3), 300), "to 300"),
        (np.zeros((2, 4, 4, 3), np.uint8), "too few"),
        (["missing.jpg"], "1 of 1 photos cannot be read, such as missing.jpg"),
        (np.array([["x" * 5] * 2]), "expected paths"),
        (np.zeros((2, 32, 32, 3), complex), "expected paths"),
        ([np.zeros((32, 32, 3)), np.zeros((16, 16))], None),
        ([np.zeros((32, 32, 3)), "a.jpg"], "expected paths"),
        ([np.zeros((32, 32, 3), np.uint8), np.ones((16, 16, 3))], r"in 0\.\.1, but"),
    ],
)
def test_what_is_no_photo_is_answered_with_one_sentence(trained, photos, said):
    if said is None:
        assert len(trained.predict(photos)) == 2
        return
    with pytest.raises(MinitlError, match=said):
        trained.predict(photos)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, "one label for each photo"),
        (["a"] * 30, "one class only"),
        (["a", "b"], "30 photos, y 2 labels"),
        ([0.5, 1.5] * 15, "not whole"),
        ([float("nan"), 1.0] * 15, "not whole"),
        ([[1, 2]] * 30, "shape"),
        (np.array([1, "a"] * 15, object), "found int, str"),
    ],
)
def test_labels_that_make_no_classes_are_refused(backbone, X, labels, said):
    with pytest.raises(MinitlError, match=said):
        PhotoClassifier(backbone).fit(X, labels)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"rate": -1}, "rate"), ({"epochs": 0}, "epochs"), ({"settings": {"warm": 1}}, "settings: expected a dict of momentum"),
        ({"settings": 3}, "settings: expected"), ({"val": 2}, "between 0 and 1"), ({"freeze": "conv_nowhere"}, "conv_nowhere"),
        ({"backbone": "no.tflite"}, "no.tflite cannot be read"), ({"backbone": 3}, "3 cannot be read"), ({"hidden": (0,)}, "hidden"),
        ({"hidden": "x"}, "hidden"),
        ({"dropout": 2}, "dropout"), ({"cache": 3}, "cache"), ({"seed": None}, "seed"), ({"freeze": None}, "freeze"),
    ],
)  # fmt: skip
def test_parameters_are_checked_by_fit_and_not_before(backbone, X, y, parameters, said):
    with pytest.raises(MinitlError, match=said):
        PhotoClassifier(**{"backbone": backbone} | parameters).fit(X, y)


def test_numbers_of_numpy_are_numbers(backbone, X, y):
    model = PhotoClassifier(backbone, epochs=np.int64(2), rate=np.float32(0.01), seed=np.int64(1), hidden=np.array([4])).fit(X, y)
    assert len(model.history_.epochs) == 2


def test_a_cache_saves_the_features_of_files(backbone, paths, y, tmp_path, monkeypatch):
    first = PhotoClassifier(backbone, epochs=3, cache=tmp_path).fit(paths, y)
    expected = first.decision_function(paths)
    from minitl import features

    monkeypatch.setattr(features, "features_of", None)  # nothing is computed again
    second = PhotoClassifier(backbone, epochs=3, cache=str(tmp_path)).fit(paths[::-1], y[::-1])
    assert np.abs(second.decision_function(paths) - expected).max() < 1


# ---- the manners


def test_parameters_are_kept_untouched_and_shown():
    hidden = [8]
    model = PhotoClassifier("x.tflite", rate=0.1, hidden=hidden)
    assert model.hidden is hidden and set(model.get_params()) >= {"backbone", "freeze", "rate", "seed", "cache"}
    assert repr(model) == "PhotoClassifier(backbone='x.tflite', hidden=[8], rate=0.1)"
    assert model.set_params(rate=0.2, freeze="none") is model and model.rate == 0.2
    with pytest.raises(MinitlError, match="'speed' is no parameter of PhotoClassifier"):
        model.set_params(speed=1)


def test_copies_and_pickles_answer_alike(trained, X):
    expected = trained.predict_proba(X)
    for twin in (copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        assert np.array_equal(twin.predict_proba(X), expected) and twin.model_.calibration


def test_minitl_works_without_scikit_learn_and_never_imports_it(X):
    code = (
        "import sys; import numpy as np; import minitl; c = minitl.PhotoClassifier('random:mobilenet_v1_0.1_32', epochs=1)\n"
        "X = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)\n"
        "c.fit(X, [0, 1] * 3).score(X, [0, 1] * 3); repr(c)\n"
        "print([name for name in sys.modules if name.startswith('sklearn')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# ---- real scikit-learn


@pytest.fixture(scope="module")
def sklearn():
    return pytest.importorskip("sklearn")


def test_it_is_cloned_and_known_as_a_classifier(sklearn, trained, backbone):
    from sklearn.base import clone, is_classifier
    from sklearn.exceptions import NotFittedError as Theirs
    from sklearn.utils.validation import check_is_fitted

    twin = clone(trained)
    assert is_classifier(twin) and not hasattr(twin, "classes_") and repr(clone(PhotoClassifier("a"))) == "PhotoClassifier(backbone='a')"
    check_is_fitted(trained)
    with pytest.raises(Theirs):
        check_is_fitted(twin)


def test_cross_validation_and_grid_search(sklearn, backbone, X, y, paths):
    from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict, cross_val_score

    model = PhotoClassifier(backbone, epochs=20)
    for photos in (X, X.reshape(30, -1), paths, [str(path) for path in paths]):
        scores = cross_val_score(model, photos, y, cv=3, error_score="raise")
        print("scores", scores)
        assert scores.mean() > 0.8
    assert cross_val_score(model, X, y == "red", cv=3, scoring="roc_auc", error_score="raise").mean() > 0.8
    assert cross_val_score(model, X, y, cv=3, scoring="neg_log_loss", error_score="raise").mean() > -0.7
    assert cross_val_predict(model, X, y, cv=StratifiedKFold(3), method="predict_proba").shape == (30, 3)
    search = GridSearchCV(model, {"rate": [1e-9, 0.05], "hidden": [(), (4,)]}, cv=2, error_score="raise").fit(X, y)
    assert search.best_params_ == {"rate": 0.05, "hidden": ()} and search.score(X, y) > 0.9
    assert "#ifndef" in search.best_estimator_.model_.emit("best")


def test_pipelines_and_two_processes(sklearn, backbone, X, y, paths):
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import VotingClassifier
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    pipe = make_pipeline(FunctionTransformer(np.flip, kw_args={"axis": 2}), PhotoClassifier(backbone, epochs=20))
    assert pipe.fit(X, y).score(X, y) > 0.8 and pipe.classes_.tolist() == ["blue", "green", "red"]
    assert pipe.set_params(photoclassifier__rate=1e-9).get_params()["photoclassifier__rate"] == 1e-9
    assert "PhotoClassifier" in pipe._repr_html_() and "PhotoClassifier" in repr(pipe)
    assert cross_val_score(PhotoClassifier(backbone, epochs=20), X, y, cv=2, n_jobs=2, error_score="raise").mean() > 0.7
    both = VotingClassifier([(f"seed_{s}", PhotoClassifier(backbone, epochs=5, seed=s)) for s in (0, 1)], voting="soft").fit(X, y)
    assert both.score(X, y) > 0.6
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"file": [str(path) for path in paths], "label": y})
    assert PhotoClassifier(backbone, epochs=20).fit(table["file"], table["label"]).score(table["file"], table["label"]) > 0.8
    chosen = make_pipeline(ColumnTransformer([("file", "passthrough", ["file"])]), PhotoClassifier(backbone, epochs=20))
    assert chosen.fit(table, table["label"]).score(table, table["label"]) > 0.8


def test_rows_of_another_length_are_refused_as_scikit_learn_does(sklearn, backbone, X, y):
    model = PhotoClassifier(backbone, epochs=2).fit(X.reshape(30, -1), y)
    assert model.n_features_in_ == 3072
    with pytest.raises(ValueError, match="X has 192 features, but PhotoClassifier is expecting 3072 features as input"):
        model.predict(np.zeros((2, 192)))
    assert not hasattr(model.fit(X, y), "n_features_in_")


def test_the_checks_of_scikit_learn_that_need_no_tables_pass(sklearn, backbone):
    from sklearn.utils import estimator_checks as checks

    model = PhotoClassifier(backbone, epochs=1)
    for check in (
        "check_estimator_cloneable", "check_estimator_repr", "check_no_attributes_set_in_init", "check_get_params_invariance",
        "check_set_params", "check_estimator_tags_renamed", "check_valid_tag_types", "check_estimators_unfitted",
        "check_do_not_raise_errors_in_init_or_set_param", "check_estimator_get_tags_default_keys",
    ):  # fmt: skip
        if hasattr(checks, check):
            getattr(checks, check)("PhotoClassifier", model)


@needs_shared
def test_real_fruit_in_cross_validation(sklearn, tmp_path):
    from sklearn.model_selection import GridSearchCV, cross_val_score

    listing = minitl.list_folder(DATA / "fruit")
    paths, names = [item.path for item in listing.items], [listing.classes[item.label] for item in listing.items]
    model = PhotoClassifier(WEIGHTS / "mobilenet_v1_0.25_128_quant.tflite", cache=tmp_path)
    scores = cross_val_score(model, paths, names, cv=3, error_score="raise")
    print(f"fruit, three parts: {np.round(scores, 4)}")
    assert scores.mean() > 0.97
    search = GridSearchCV(model.set_params(epochs=20), {"rate": [1e-6, 0.02]}, cv=2, error_score="raise").fit(paths, names)
    assert search.best_params_ == {"rate": 0.02}


def test_the_lines_of_the_readme_run_as_they_stand(sklearn, tmp_path, monkeypatch, capsys):
    """With drawn pictures and a tiny network under the names that they use."""
    monkeypatch.chdir(tmp_path)
    demo_pictures.draw_photos("photos", 8, size=40)
    find(small_models.SMALL).save("mobilenet_v1_0.25_128_quant.tflite")
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    exec(next(block for block in blocks if "PhotoClassifier" in block), {})
    assert "hidden" in capsys.readouterr().out and minitl.load("best.npz").classes == ["apple", "banana", "cucumber"]


def test_photos_are_known_by_name_in_errors(backbone, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    photos = Photos([tmp_path / "bad.jpg"], backbone.recipe)
    with pytest.raises(MinitlError, match=r"bad\.jpg"):
        list(photos.prepared())
