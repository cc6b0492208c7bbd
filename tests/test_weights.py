"""The weights file: what goes in comes out, bit for bit; what is damaged or hostile is refused in a sentence, cheaply."""

import copy
import io
import json
import tracemalloc
import zipfile

import numpy as np
import pytest
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st

import minitl
from minitl import weights, zips
from minitl.errors import MinitlError
from minitl.quantize import Statistics


@pytest.fixture(scope="module")
def model():
    made = small_models.model(["Käse", "a b", "100 % 🙂"])
    made.graph.freeze("=conv_preds", np.array([True, False, True]))
    return made.note(licence="CC0", training={"photos": 3})


@pytest.fixture(scope="module")
def data(model):
    return weights.to_bytes(model.content())


@pytest.fixture(scope="module")
def parts(data):
    """(the JSON entry as a dict without its hash, the other arrays): what tests change and seal again."""
    arrays = dict(weights.unpack(data, "file"))
    meta = json.loads(arrays.pop("minitl.json").tobytes())
    del meta["sha256"]
    return meta, arrays


def sealed(meta, arrays, text=None):
    """A file with a right hash, so that only what is wrong with its content can be noticed."""
    if text is None:
        text = json.dumps(meta | {"sha256": weights.content_hash(meta, arrays)}).encode()
    return weights.pack({"minitl.json": np.frombuffer(text, np.uint8), **arrays})


def refused(data, *words):
    """The error of parsing data: one line, not too long, that names the file."""
    with pytest.raises(MinitlError) as caught:
        weights.parse(data, "FILE")
    text = str(caught.value)
    assert text.startswith("FILE") and len(text) < 800 and text.isprintable()
    for word in words:
        assert word in text, text
    return text


# ---- there and back


def test_everything_comes_back_bit_for_bit(model, data, tmp_path):
    before, after = model.content(), weights.parse(data, "file")
    assert list(after.arrays) == list(before.arrays)
    for name, array in before.arrays.items():
        assert after.arrays[name].dtype == np.float32 and after.arrays[name].tobytes() == array.tobytes()
        assert after.arrays[name].shape == array.shape
    for field in ("architecture", "arguments", "recipe", "classes", "frozen", "provenance"):
        assert getattr(after, field) == getattr(before, field), field
    assert after.frozen["conv_preds"] == [True, False, True] and after.frozen["conv1"] is True
    assert list(after.calibration) == sorted(before.calibration)
    for name, seen in before.calibration.items():
        assert (after.calibration[name].low, after.calibration[name].high) == (seen.low, seen.high)
        assert after.calibration[name].mean.tobytes() == seen.mean.tobytes()
    digest = model.save(tmp_path / "a.npz")
    loaded = minitl.load(tmp_path / "a.npz")
    assert loaded.save(tmp_path / "b.npz") == digest == loaded.content().content_hash()
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes() == data
    x = model.recipe.normalise(small_models.pixels(2))
    assert loaded.forward(x).tobytes() == model.forward(x).tobytes()
    assert loaded.emit("m") == model.emit("m")


def test_the_same_content_gives_the_same_bytes_and_any_other_content_another_hash(model, data):
    assert weights.to_bytes(small_models.model().content()) == weights.to_bytes(small_models.model().content())
    hashes = {model.content().content_hash()}
    changes = [
        lambda c: c.classes.reverse(),
        lambda c: c.frozen.pop("conv1"),
        lambda c: c.provenance.update(licence="MIT"),
        lambda c: c.arguments.update(epsilon=2e-3),
        lambda c: c.arrays.update({"conv_preds/bias": np.float32([0, 1e-30, 0])}),
        lambda c: c.calibration.update(input=Statistics(-1, 1, np.zeros(3, np.float32))),
    ]
    for change in changes:
        content = copy.deepcopy(model.content())
        change(content)
        hashes.add(content.content_hash())
    assert len(hashes) == 1 + len(changes)


def test_numpy_reads_the_file_without_pickle(model, data):
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        assert json.loads(file["minitl.json"].tobytes())["format"] == weights.FORMAT
        for name, array in model.graph.arrays().items():
            assert np.array_equal(file[name], array)
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None


def test_half_precision_and_small_integers_are_read_as_float32(parts):
    meta, arrays = parts
    changed = dict(arrays)
    changed["conv1/kernel"] = arrays["conv1/kernel"].astype(np.float16)
    changed["conv1_bn/beta"] = np.arange(3, dtype=np.uint8)
    read = weights.parse(sealed(meta, changed), "file")
    assert read.arrays["conv1/kernel"].dtype == read.arrays["conv1_bn/beta"].dtype == np.float32
    assert np.array_equal(read.arrays["conv1_bn/beta"], np.arange(3))


def test_a_network_without_classifier_calibration_or_names_comes_back(tmp_path):
    backbone = minitl.model.find(small_models.SMALL)
    backbone.save(tmp_path / "w.npz")
    loaded = minitl.load(tmp_path / "w.npz")
    assert loaded.classes == [] and loaded.calibration == {} and loaded.provenance == {"source": small_models.SMALL}


# ---- damage


def test_a_flipped_byte_anywhere_is_noticed_or_harmless(data, model):
    """Not every byte of a ZIP archive means something; where the file is still accepted, its content must be the same."""
    rng = np.random.default_rng(0)
    spread = np.unique(rng.integers(0, len(data), 150))
    noticed = 0
    for position in [*range(0, 120), *spread.tolist(), *range(len(data) - 80, len(data))]:
        broken = bytearray(data)
        broken[position] ^= 1 << int(rng.integers(8))
        try:
            read = weights.parse(bytes(broken), "file")
        except MinitlError:
            noticed += 1
            continue
        assert read.content_hash() == model.content().content_hash(), position
    print(f"{noticed} of {200 + len(spread)} flipped bits were noticed, the others changed nothing")
    assert noticed > 200


def test_a_changed_number_in_a_whole_archive_is_found_by_its_hash(parts):
    meta, arrays = parts
    text = json.dumps(meta | {"sha256": weights.content_hash(meta, arrays)}).encode()
    changed = dict(arrays)
    changed["conv_preds/bias"] = arrays["conv_preds/bias"] + np.float32(1e-7)
    refused(sealed(meta, changed, text), "content hash", "damaged or changed")
    refused(sealed(meta, arrays, text.replace(b"CC0", b"MIT")), "content hash")
    refused(sealed(meta, arrays, json.dumps(meta).encode()), "content hash", "None")
    refused(sealed(meta, arrays, json.dumps(meta | {"sha256": "\x1b[2J\ud800" * 9}).encode()), "content hash")


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(data, share):
    refused(data[: int(share * len(data))], "damaged")


def test_a_download_that_is_a_web_page_is_named(tmp_path):
    (tmp_path / "w.npz").write_bytes(b"<html>not found</html>")
    with pytest.raises(MinitlError, match="web page"):
        minitl.load(tmp_path / "w.npz")


# ---- archives from elsewhere


def test_pickled_objects_are_never_loaded(parts):
    meta, arrays = parts
    file = io.BytesIO()
    np.savez(file, **{"minitl.json": np.array([{"evil": 1}], dtype=object)})
    refused(file.getvalue(), "minitl reads")
    refused(sealed(meta, arrays).replace(b"'descr': '<f4'", b"'descr': '|O8'"), "minitl reads")


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }", "claims shape"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, -1), }", "minitl reads"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 10000000000000000000000), }", "damaged"),
        ("{'descr': '<f4', 'fortran_order': True, 'shape': (2,), }", "minitl reads"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", "minitl reads"),
        ("{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", "minitl reads"),
        ("{'descr': [('a', '<f4'), ('b', '<f4')], 'fortran_order': False, 'shape': (1,), }", "minitl reads"),
        ("{'descr': ('<f4', (1000000000,)), 'fortran_order': False, 'shape': (1,), }", ""),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,2), }", "minitl reads"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os').getpid(), }", "damaged"),
        ("{'descr': '<f4'}", "damaged"),
        ("(" * 9000, "damaged"),
        ("'" * 60000, "damaged"),
        ("", "damaged"),
    ],
)
def test_a_lying_array_header_costs_nothing(header, word, recwarn):
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(8)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", npy)
    tracemalloc.start()
    refused(file.getvalue(), word)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20, f"{peak} bytes for a file of {len(npy)}"


def archive_of(entries, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_foreign_archives_are_refused_by_what_is_wrong_with_them():
    one = npy(np.zeros(2, np.float32))
    refused(archive_of([("a.npy", one), ("a.npy", one)]), "twice")
    refused(archive_of([("a.txt", b"hello")]), "no .npy")
    refused(archive_of([("a.npy", one)], zipfile.ZIP_DEFLATED), "has compressed entries", "without compression")
    refused(archive_of([("x" * 60000 + ".npy", one)]), "not written by minitl")
    refused(archive_of([("a.npy", one)]), "minitl.json", "minitl convert --help")
    refused(archive_of([("a.npy", npy(np.zeros(2, np.float32)).replace(b"\x01\x00", b"\x02\x00", 1))]), "version")
    refused(archive_of([]), "minitl.json")
    flagged = bytearray(archive_of([("a.npy", one)]))
    flagged[6] |= 1  # encrypted, in the local header and in the directory
    flagged[flagged.index(b"PK\x01\x02") + 8] |= 1
    refused(bytes(flagged), "encrypted")


def test_zip_bombs_do_not_go_off():
    bomb = archive_of([(f"{i}.npy", bytes(50 << 20)) for i in range(2)], zipfile.ZIP_DEFLATED)
    many = archive_of([(f"{i}.npy", b"") for i in range(zips.MOST_ENTRIES + 1)])
    lying = bytearray(archive_of([("a.npy", npy(np.zeros(2, np.float32)))]))
    directory = lying.index(b"PK\x01\x02")
    lying[directory + 20 : directory + 28] = (2**31).to_bytes(4, "little") * 2  # sizes, packed and unpacked
    tracemalloc.start()
    refused(bomb, "compressed")
    refused(bytes(lying), "larger than the file")
    bounded = tracemalloc.get_traced_memory()[1]
    refused(many, "entries")
    tracemalloc.stop()
    assert bounded < 4 << 20, f"{bounded} bytes for a bomb of {len(bomb)}"


# ---- JSON from elsewhere


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "no object"),
        (b'{"format": 2}', "format 2"),
        (b'{"format": "' + b"9" * 5000 + b'"}', "format '999"),
        (b"{}", "format None"),
        (b'{"format": 1, "x": NaN}', "NaN"),
        (b'{"format": 1, "x": -Infinity}', "Infinity"),
        (b'{"format": 1, "x": 1e999}', "cannot be read"),
        (b'{"format": 1, "x": ' + b"9" * 5000 + b"}", ""),
        (b'{"format": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}", ""),
        (b"[" * 200_000, "cannot be read"),
        (b'{"a":' * 50_000, "cannot be read"),
        (b'{"format": 1, "x": "\\ud800"}', "content hash"),
    ],
)
def test_hostile_json_is_refused(parts, text, word):
    refused(sealed({}, parts[1], text), word)


def test_json_of_many_megabytes_is_not_parsed(parts, monkeypatch):
    monkeypatch.setattr(weights, "LARGEST_JSON", 1000)
    refused(sealed({}, parts[1], b'{"x": "' + b"a" * 1000 + b'"}'), "too long")


WRONG = {
    "architecture": [None, 1, "resnet", "", ["mobilenet_v1"], "__class__"],
    "arguments": [None, [], {}, {"alpha": 1e9}, {"alpha": True}, {"classes": 10**12}, {"classes": "3"}, {"input_shape": [10**9, 32, 3]},
                  {"input_shape": "32"}, {"evil": 1}, {"alpha": [[]]}, {"activation": ["relu"]}, {"padding": {}}, {"alpha": "x" * 10**6}],
    "recipe": [None, [], {}, {"height": 10**9}, {"height": "32"}, {"std": [0, 0, 0]}, {"mean": [1, 2]}, {"resize": "x" * 10**6},
               {"height": 64}, {"crop_fraction": -1}],
    "classes": ["cat", [1, 2, 3], ["a"], [], {"a": 1}, [None] * 3],
    "frozen": [None, [], {"conv1": False}, {"conv1": 1}, {"conv1": [1, 0]}, {"conv1": [True]}, {"nowhere": True}, {"conv1": []},
               {"..conv1": True}, {"*": True}, {"x" * 10**6: True}, {"": True}],
    "provenance": [None, [], "x"],
}  # fmt: skip


@pytest.mark.parametrize("key", WRONG)
def test_an_entry_of_a_wrong_type_or_impossible_value_is_refused(parts, key):
    meta, arrays = parts
    for value in WRONG[key]:
        wrong = meta[key] | value if key in ("arguments", "recipe") and value and isinstance(value, dict) else value
        if wrong == {} and key in ("frozen", "provenance"):
            continue
        tracemalloc.start()
        refused(sealed(meta | {key: wrong}, arrays))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 << 20, (key, str(value)[:100])
    if key != "classes":  # without them, nobody knows the names
        refused(sealed({k: v for k, v in meta.items() if k != key}, arrays))


def test_arrays_that_do_not_fit_the_network_are_refused(parts):
    meta, arrays = parts
    refused(sealed(meta, {k: v for k, v in arrays.items() if k != "conv1/kernel"}), "missing", "conv1/kernel")
    refused(sealed(meta, arrays | {"conv9/kernel": np.zeros(2, np.float32)}), "no layer", "conv9/kernel")
    refused(sealed(meta, arrays | {"conv1/kernel": arrays["conv1/kernel"][..., :2]}), "shape")
    for bad in (np.nan, np.inf):
        refused(sealed(meta, arrays | {"conv_preds/bias": np.float32([0, bad, 0])}), "conv_preds/bias", "not finite")


def test_a_calibration_that_does_not_fit_is_refused(parts):
    meta, arrays = parts
    ranges, mean = "calibration/conv1_relu/range", arrays["calibration/conv1_relu/mean"]
    for change in (
        {ranges: np.float32([1, 0])},
        {ranges: np.float32([0, 1, 2])},
        {ranges: np.float32([[0, 1]])},
        {ranges: np.float32(0)},
        {ranges: np.float32([0, np.inf])},
        {"calibration/conv1_relu/mean": mean[:2]},
        {"calibration/nowhere/range": np.float32([0, 1]), "calibration/nowhere/mean": mean},
        {"calibration/conv1_relu/median": mean},
        {"calibration/conv1_relu": mean},
        {"calibration/": mean},
    ):
        refused(sealed(meta, arrays | change))
    refused(sealed(meta, {k: v for k, v in arrays.items() if k != ranges}), "conv1_relu")


def test_a_calibration_of_extremes_gives_an_integer_network_or_an_error_in_words(parts):
    """Whatever ranges a file claims: quantising ends in a proved graph or in a MinitlError, never in a number that overflowed."""
    meta, arrays = parts
    rng = np.random.default_rng(0)
    names = [name.split("/")[1] for name in arrays if name.endswith("/range")]
    made = 0
    for _ in range(40):
        changed = dict(arrays)
        for name in rng.choice(names, rng.integers(1, 6), replace=False):
            low, high = np.sort(rng.choice([-3e38, -1e10, -1, -1e-30, 0, 1e-45, 1e-20, 1, 6, 1e15, 3e38], 2))
            changed[f"calibration/{name}/range"] = np.float32([low, high])
            changed[f"calibration/{name}/mean"] = changed[f"calibration/{name}/mean"] * np.float32(rng.choice([-1e36, 0, 1, 1e9]))
        model = minitl.Model(weights.parse(sealed(meta, changed), "file"))
        try:
            with np.errstate(all="raise", under="ignore"):
                model.quantise().run(np.zeros((1, 32, 32, 3), np.int8))
            made += 1
        except MinitlError as error:
            assert str(error).isprintable()
    print(f"{made} of 40 could be quantised")


# ---- fuzzing: only MinitlError escapes


def mutate(data, draw):
    """A few cuts, copies, insertions and flips."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(["flip", "set", "insert", "delete", "copy", "number"]))
        if kind == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            data[at] = draw(st.sampled_from([0, 1, 127, 128, 255]))
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 1000))]
        elif kind == "copy":
            start = draw(st.integers(0, len(data) - 1))
            data[at : at + 50] = data[start : start + 50]
        else:
            data[at : at + 4] = draw(st.sampled_from([0, 2**31 - 1, 2**32 - 1, len(data)])).to_bytes(4, "little")
        if not data:
            return b""
    return bytes(data)


def few_arrays(data):
    """The file without most of its arrays: as good for finding holes in the reader, and a hundred times smaller."""
    arrays = dict(weights.unpack(data, "file"))
    kept = {name: arrays[name] for name in ("minitl.json", "conv1/kernel", "conv1_bn/beta", "calibration/conv1_relu/range")}
    return weights.pack(kept)


def check_mutated_archive(data, pick):
    try:
        weights.parse(mutate(data, pick.draw), "file")
    except MinitlError as error:
        assert str(error)


def check_mutated_json(parts, pick):
    """Damage inside of the JSON, with a right hash wherever it still is JSON."""
    meta, arrays = parts
    text = mutate(json.dumps(meta).encode(), pick.draw)
    try:
        changed = json.loads(text)
        wrapped = json.dumps(changed | {"sha256": weights.content_hash(changed, arrays)}).encode()
    except (ValueError, TypeError, RecursionError):
        wrapped = text
    try:
        weights.parse(sealed({}, arrays, wrapped), "file")
    except MinitlError as error:
        assert str(error)


@settings(max_examples=250, deadline=None)
@given(pick=st.data())
def test_a_mutated_archive_is_read_or_refused(data, pick):
    check_mutated_archive(few_arrays(data), pick)


@settings(max_examples=100, deadline=None)
@given(pick=st.data())
def test_mutated_json_under_a_right_hash_is_read_or_refused(parts, pick):
    check_mutated_json(parts, pick)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(pick=st.data())
def test_ten_thousand_mutated_archives_are_read_or_refused(data, pick):
    check_mutated_archive(few_arrays(data), pick)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(pick=st.data())
def test_ten_thousand_mutated_json_entries_are_read_or_refused(parts, pick):
    check_mutated_json(parts, pick)


def test_entries_that_share_their_bytes_do_not_add_up_to_a_bomb():
    """Each entry is an array whose data are the next entry, header and all: every one is valid and smaller than the file."""
    inner, offsets, directory = npy(np.zeros(5000, np.uint8)), [], b""
    for number in range(20):
        record = archive_of([(f"{number:02}.npy", inner)])
        start = record.index(b"PK\x01\x02")
        directory += record[start : record.index(b"PK\x05\x06")]
        inner = npy(np.frombuffer(record[:start], np.uint8))
        offsets.append(len(record[:start]))
    data = record[:start]  # the outermost local header and everything in it
    entry = len(directory) // 20
    central = bytearray(directory)
    for number, size in enumerate(offsets):
        central[number * entry + 42 : number * entry + 46] = (len(data) - size).to_bytes(4, "little")
    closing = b"PK\x05\x06" + bytes(4) + (20).to_bytes(2, "little") * 2
    closing += len(central).to_bytes(4, "little") + len(data).to_bytes(4, "little") + bytes(2)
    with zipfile.ZipFile(io.BytesIO(data + bytes(central) + closing)) as archive:
        assert len(archive.namelist()) == 20
    refused(data + bytes(central) + closing, "claims more bytes")
