"""The HDF5 reader against h5py: every value the same bit, every damaged or unusual file one sentence."""

import random
import struct

import numpy as np
import pytest
from conftest import WEIGHTS, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from importer_files import mutate

from minitl.errors import MinitlError
from minitl.importers import hdf5, hdf5_bytes

h5py = pytest.importorskip("h5py")


def same(ours, theirs):
    """Equal in shape, kind and every bit; strings as h5py gives them."""
    if isinstance(theirs, h5py.Empty):
        return ours.size == 0
    if ours.dtype == object:
        theirs = np.array(theirs, object)
        decoded = [t.decode() if isinstance(t, bytes) else t for t in theirs.reshape(-1)]
        return ours.shape == theirs.shape and ours.reshape(-1).tolist() == decoded
    theirs = np.asarray(theirs)
    if ours.shape == ():  # a NumPy scalar has lost its byte order and its trailing zeros
        theirs = theirs.astype(ours.dtype)
    return ours.shape == theirs.shape and ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()


def compare(path):
    """(datasets, attributes, bytes) compared between our reader and h5py, over the whole file."""
    counts = [0, 0, 0]

    def visit(ours, theirs):
        assert sorted(ours.attributes()) == sorted(theirs.attrs)
        for name in theirs.attrs:
            assert same(ours.attribute(name), theirs.attrs[name]), (ours.path, name)
            counts[1] += 1
        if isinstance(theirs, h5py.Dataset):
            values = ours.array()
            assert ours.is_dataset() and same(values, theirs[()]), ours.path
            counts[0], counts[2] = counts[0] + 1, counts[2] + values.nbytes
            return
        assert list(ours.children()) == list(theirs)
        for name in theirs:
            visit(ours.child(name), theirs[name])

    with h5py.File(path) as file:
        visit(hdf5.read(path.read_bytes(), path.name), file)
    return counts


def everything(data):
    """Read all that a file holds, so that any damage is met."""

    def visit(node, depth):
        for name in node.attributes():
            node.attribute(name)
        if node.is_dataset():
            node.array()
        if depth < 8:
            for name in node.children():
                visit(node.child(name), depth + 1)

    visit(hdf5.read(data, "x.h5"), 0)


def sample(path, groups=3):
    with h5py.File(path, "w") as file:
        file.attrs["backend"] = "tensorflow"
        file.attrs["long"] = "ä" * 50_000
        for i in range(groups):
            group = file.create_group(f"layer_{i}/layer_{i}")
            group["kernel:0"] = np.arange(24, dtype="<f4").reshape(2, 3, 4) + i
            group.attrs["weight_names"] = np.array([b"kernel:0", b"bias:0"])
    return path


@needs_shared
@pytest.mark.parametrize("name", ["mobilenet_2_5_224_tf_no_top.h5", "vww_96.h5"])
def test_published_files_are_read_bit_for_bit_as_h5py_does(name):
    datasets, attributes, size = compare(WEIGHTS / name)
    print(f"{name}: {datasets} datasets of {size} bytes and {attributes} attributes are equal, largest error 0")
    assert datasets > 100


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8", "i1", "<u2", ">i4", "<i8", "S5"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 4)])
def test_every_type_and_shape_is_read_as_h5py_does(tmp_path, dtype, shape):
    values = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a/b"] = values
        file.attrs["a"] = values
    assert compare(tmp_path / "x.h5")[:2] == [1, 1]


def test_strings_of_any_length_and_many_attributes_are_read_as_h5py_does(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["config"] = "{" + "ü" * 100_000 + "}"
        file.attrs["names"] = np.array(["", "a", "conv_1/kernel:0" * 20], h5py.string_dtype())
        file.attrs["nothing"] = np.array([])
        file.attrs["empty"] = h5py.Empty("f4")
        file.attrs["größe"] = 3
        for i in range(60):
            file.attrs[f"attribute {i}"] = np.arange(i)
        file["strings"] = np.array(["x", "y" * 300], h5py.string_dtype())
    assert compare(tmp_path / "x.h5")[:2] == [1, 65]


def test_a_group_of_a_thousand_is_a_tree_of_several_levels_and_read_in_order(tmp_path):
    assert compare(sample(tmp_path / "x.h5", groups=1000))[:2] == [1000, 1002]


def test_datasets_are_views_of_the_file_and_cannot_be_written(tmp_path):
    node = hdf5.read(sample(tmp_path / "x.h5").read_bytes(), "x.h5").child("layer_1/layer_1/kernel:0")
    values = node.array()
    assert not values.flags.owndata and not values.flags.writeable


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"chunks": (4,)}, "chunked"),
        ({"compression": "gzip"}, "chunked"),
        ({"data": np.zeros(16, bool)}, "type 8"),
        ({"data": np.zeros(16, "c8")}, "type 6"),
    ],
)
def test_unusual_datasets_are_refused_by_name_with_advice(tmp_path, options, says):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("some/kernel", **{"data": np.zeros(16), **options})
    node = hdf5.read((tmp_path / "x.h5").read_bytes(), "x.h5").child("some/kernel")
    with pytest.raises(MinitlError, match=f"some/kernel .*{says}") as error:
        node.array()
    assert "save the weights again" in str(error.value)


def test_links_new_layouts_and_unwritten_values_are_refused(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["soft"] = h5py.SoftLink("/elsewhere")
        file["hard"] = np.zeros(3)
        file.create_dataset("huge", shape=(1 << 40,), dtype="f4")
        file.create_dataset("unwritten", shape=(10,), dtype="f4")
    root = hdf5.read(path.read_bytes(), "x.h5")
    for name, says in [("soft", "link"), ("huge", "more than the file can hold"), ("unwritten", "never written")]:
        with pytest.raises(MinitlError, match=says):
            root.child(name).array()
    assert root.child("hard").array().tolist() == [0, 0, 0] and root.child("nowhere/at/all") is None
    for options, says in [({"libver": "latest"}, "superblock"), ({"track_order": True}, "libver='latest'|version")]:
        with h5py.File(path, "w", **options) as file:
            file["a"] = np.zeros(3)
        with pytest.raises(MinitlError, match=says):
            everything(path.read_bytes())


def test_every_cut_of_a_file_is_named_as_cut_off(tmp_path):
    data = sample(tmp_path / "x.h5").read_bytes()
    everything(data)
    for end in range(0, len(data), 97):
        with pytest.raises(MinitlError, match=r"cut off|does not begin"):
            everything(data[:end])


def test_a_tree_that_contains_itself_ends(tmp_path):
    data = bytearray(sample(tmp_path / "x.h5").read_bytes())
    tree = data.index(b"TREE")
    struct.pack_into("<Q", data, tree + 32, tree)  # its first child is itself
    data[tree + 5] = 1
    with pytest.raises(MinitlError, match="not a tree"):
        everything(bytes(data))


def test_strings_that_all_point_at_one_long_string_are_refused_before_they_fill_the_memory(tmp_path):
    count = 5000
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["s"] = np.array(["z" * 60_000] + ["y"] * (count - 1), h5py.string_dtype())
    data = bytearray((tmp_path / "x.h5").read_bytes())
    offset = data.index(struct.pack("<I", 60_000))
    for i in range(count):
        data[offset + 16 * i : offset + 16 * i + 16] = data[offset : offset + 16]
    with pytest.raises(MinitlError, match="without end"):
        hdf5.read(bytes(data), "x.h5").child("s").array()


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damaged_files_raise_nothing_but_our_error(tmp_path_factory, seed):
    global DATA
    if DATA is None:
        DATA = sample(tmp_path_factory.mktemp("h5") / "x.h5", groups=5).read_bytes()
    try:
        everything(mutate(DATA, random.Random(seed)))
    except MinitlError as error:
        assert str(error).isprintable()


DATA = None


def test_the_bound_on_work_leaves_room_for_real_files(tmp_path):
    path = sample(tmp_path / "x.h5", groups=500)
    root = hdf5.read(path.read_bytes(), "x.h5")
    for i in range(500):
        root.child(f"layer_{i}/layer_{i}/kernel:0").array()
    print(f"work for 500 layers: {root.file._work} of {hdf5_bytes.MOST_WORK}")
    assert root.file._work < hdf5_bytes.MOST_WORK / 10
