"""TFLite files: parsed as LiteRT parses them, computed as LiteRT computes them, refused by the operator that differs."""

import io
import random
import zipfile

import numpy as np
import pytest
from conftest import WEIGHTS, needs_shared
from importer_files import RESCALED, TFLite, alive, half, is_rescaled, metadata, mutate, network, per_channel, plain, tflite

from minitl import architectures, importers
from minitl.errors import MinitlError
from minitl.importers import tflite as parser
from minitl.importers import tflite_float

BOTH = pytest.mark.parametrize("architecture", ["mobilenet_v1", "mobilenet_v2"])
FILES = {
    "vww_96_float.tflite": ("mobilenet_v1", 0.25, 2, 0, 255),
    "vww_96_int8.tflite": ("mobilenet_v1", 0.25, 2, 0, 255),
    "mobilenet_v1_0.25_128_quant.tflite": ("mobilenet_v1", 0.25, 1001, 128, 128),
    "mobilenet_v2_1.0_224_quant.tflite": ("mobilenet_v2", 1.0, 1001, 128, 128),
    "tf2_mobilenet_v2_1.0_224_ptq.tflite": ("mobilenet_v2", 1.0, 1001, 127, 127.5),
    "mobilenet_v2_035_96_embedder_with_metadata.tflite": ("mobilenet_v2", 0.35, None, 127.5, 127.5),
}


def litert(path=None, content=None, keep=False):
    """LiteRT with its reference kernels."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    result = interpreter.Interpreter(
        model_path=None if path is None else str(path),
        model_content=content,
        experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=keep,
    )
    result.allocate_tensors()
    return result


def run(interpreter, x):
    """The output for a batch, one picture at a time."""
    results = []
    for one in x:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], one[None])
        interpreter.invoke()
        results.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    return np.array(results)


def outputs(imported, x, softmax=True):
    """The same from our graph."""
    graph = architectures.build(imported.architecture, **imported.arguments).load(imported.arrays)
    y = graph.evaluate(x)[graph.output].astype(np.float64)
    if not softmax:
        return y
    e = np.exp(y - y.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def folded(architecture="mobilenet_v1", **arguments):
    return network(architecture, batch_norm=False, **arguments)


def read(tmp_path, data, name="x.tflite"):
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.bytes())
    return importers.read(tmp_path / name)


# ---- the parse


@needs_shared
@pytest.mark.parametrize("name", FILES)
def test_published_files_are_parsed_as_litert_parses_them(name):
    model, interpreter = parser.parse((WEIGHTS / name).read_bytes(), name), litert(WEIGHTS / name, keep=True)
    theirs = {d["index"]: d for d in interpreter.get_tensor_details()}
    constants = scales = 0
    for tensor in model.tensors:
        detail = theirs[tensor.index]
        assert tensor.name == detail["name"] and tensor.dtype == detail["dtype"] and tensor.shape == tuple(detail["shape"])
        parameters = detail["quantization_parameters"]
        if tensor.quantisation is None:
            assert parameters["scales"].size == 0
        else:
            assert np.array_equal(tensor.quantisation.scale, parameters["scales"])
            assert np.array_equal(tensor.quantisation.zero_point, parameters["zero_points"])
            assert len(tensor.quantisation.scale) == 1 or tensor.quantisation.axis == parameters["quantized_dimension"]
            scales += len(parameters["scales"])
        if tensor.data is not None:
            assert np.array_equal(tensor.data, interpreter.get_tensor(tensor.index))
            constants += 1
    for operator, detail in zip(model.operators, interpreter._get_ops_details(), strict=False):
        assert operator.kind == detail["op_name"]
        assert list(operator.inputs) == detail["inputs"].tolist() and list(operator.outputs) == detail["outputs"].tolist()
    print(f"{name}: {len(model.operators)} operators, {len(model.tensors)} tensors, {constants} constants, {scales} scales are equal")
    assert constants > 50 and len(model.operators) >= 31


@needs_shared
@pytest.mark.parametrize("name", FILES)
def test_quantised_constants_become_scale_times_difference_to_the_zero_point(name):
    model, interpreter = parser.parse((WEIGHTS / name).read_bytes(), name), litert(WEIGHTS / name, keep=True)
    theirs, worst = {d["index"]: d for d in interpreter.get_tensor_details()}, 0.0
    for operator in model.operators:
        if operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            for index in operator.inputs[1:]:
                q, parameters = interpreter.get_tensor(index).astype(np.float64), theirs[index]["quantization_parameters"]
                ours = tflite_float.dequantise(model, model.tensors[index])
                if parameters["scales"].size:
                    along = [-1 if i == parameters["quantized_dimension"] else 1 for i in range(q.ndim)]
                    along = along if parameters["scales"].size > 1 else [1] * q.ndim
                    q = (q - parameters["zero_points"].reshape(along)) * parameters["scales"].astype(np.float64).reshape(along)
                worst = max(worst, float(np.abs(ours - q).max() / np.abs(q).max()))
    print(f"{name}: largest relative error {worst:.2g} (float32 rounds at {2**-24:.2g})")
    assert worst <= 2**-24


# ---- the network


@needs_shared
@pytest.mark.parametrize("name", FILES)
def test_published_networks_are_recognised(name):
    architecture, alpha, classes, mean, std = FILES[name]
    imported = importers.read(WEIGHTS / name)
    found = imported.arguments
    assert (imported.architecture, found["alpha"], found["classes"], found["batch_norm"]) == (architecture, alpha, classes, False)
    assert found["padding"] == "same" and found["activation"] == ("relu" if "vww" in name else "relu6")
    assert imported.recipe.mean == (mean,) * 3 and imported.recipe.std == (std,) * 3
    assert imported.recipe.resize == ("squash" if "vww" in name or "embedder" in name else "crop")
    architectures.build(imported.architecture, **found).load(imported.arrays)
    if classes == 1001:
        assert imported.classes is not None and imported.classes[:2] == ["background", "tench, Tinca tinca"]
    else:
        assert imported.classes is None


@needs_shared
def test_the_float_person_detector_computes_what_litert_computes():
    path = WEIGHTS / "vww_96_float.tflite"
    x = np.random.default_rng(0).random((8, 96, 96, 3), np.float32)
    error = np.abs(outputs(importers.read(path), x) - run(litert(path), x)).max()
    print(f"largest difference from LiteRT in probability: {error:.2g}")
    assert error < 1e-5


@BOTH
@pytest.mark.parametrize("how", ["plain", "PAD", "MEAN", "1x1 head", "half", "per channel", "no head", "odd"])
def test_networks_written_by_hand_are_read_as_they_were_and_computed_as_by_litert(tmp_path, architecture, how):
    """LiteRT runs the same bytes, so this checks the writer too. Keras' padding appears as PAD operators."""
    arguments = {"padding": "keras"} if how == "PAD" and architecture == "mobilenet_v1" else {}
    arguments.update({"classes": None} if how == "no head" else {})
    arguments.update({"input_shape": [65, 97, 3]} if how in ("odd", "PAD") else {})
    graph, arrays = folded(architecture, **arguments)
    store = {"half": half, "per channel": per_channel}.get(how, plain)
    pool, head = "MEAN" if how == "MEAN" else "AVERAGE_POOL_2D", "CONV_2D" if how == "1x1 head" else "FULLY_CONNECTED"
    data = tflite(graph, store, pads=how == "PAD", head=head, pool=pool).bytes()
    imported = read(tmp_path, data)
    assert imported.architecture == architecture and imported.arguments["alpha"] == 0.25
    if how == "PAD" and architecture == "mobilenet_v1":
        assert imported.arguments["padding"] == "keras"
    worst = 0.0
    for name, array in arrays.items():
        limit = {"half": 2.0**-11, "per channel": 1 / 254}.get(how, 0) * np.abs(array).max() * 1.001
        worst = max(worst, float(np.abs(imported.arrays[name] - array).max()))
        assert np.abs(imported.arrays[name] - array).max() <= limit, name
    if how == "per channel":
        return  # LiteRT quantises the activations of such networks as it runs
    x = np.random.default_rng(0).uniform(-1, 1, (2, *graph.input_shape)).astype(np.float32)
    theirs = run(litert(content=data), x).reshape(2, -1)
    ours = outputs(imported, x, softmax=how != "no head")
    error = np.abs(ours - theirs).max() / max(1, np.abs(theirs).max())
    print(f"{architecture}, {how}: parameters differ by {worst:.2g}, outputs from LiteRT by {error:.2g}")
    assert error < 5e-5


def quantised_input(dtype, scale, zero_point):
    file = tflite(folded()[0])
    file.tensors[0][1] = ("b", {"uint8": 3, "int8": 9}[dtype])
    file.tensors[0][4] = {2: np.array([scale], "<f4"), 3: np.array([zero_point], "<i8")}
    return file


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point", "mean", "std"),
    [
        ("uint8", 1 / 128, 128, 128, 128),
        ("uint8", 2 / 255, 127, 127, 127.5),
        ("int8", 1 / 255, -128, 0, 255),
        ("int8", 2 / 255, 0, 128, 127.5),
    ],
)
def test_a_quantised_input_says_how_pixels_become_numbers(tmp_path, dtype, scale, zero_point, mean, std):
    recipe = read(tmp_path, quantised_input(dtype, scale, zero_point)).recipe
    assert recipe.mean == (mean,) * 3 and recipe.std == (std,) * 3
    q = np.arange(256)
    real = scale * (q - zero_point - (128 if dtype == "int8" else 0))  # an int8 input holds pixel - 128
    assert np.abs((q - recipe.mean[0]) / recipe.std[0] - real).max() < 1e-5


def test_preprocessing_is_taken_from_the_metadata_then_from_the_first_operators_then_assumed_and_noted(tmp_path):
    file = tflite(folded()[0])
    assumed = read(tmp_path, file)
    assert assumed.recipe.mean == (127.5,) * 3 and any("assumed" in note for note in assumed.provenance["notes"])
    file.metadata.append(("TFLITE_METADATA", metadata([10, 20, 30], [64.0])))
    stated = read(tmp_path, file)
    assert stated.recipe.mean == (10, 20, 30) and stated.recipe.std == (64,) * 3
    assert not any("assumed" in note for note in stated.provenance["notes"])
    file = tflite(folded()[0], before=[("MUL", 2), ("SUB", 1)])
    file.metadata.append(("TFLITE_METADATA", metadata([127.5], [127.5])))
    rescaled = read(tmp_path, file)
    assert rescaled.recipe.mean == rescaled.recipe.std == (127.5,) * 3  # once, not twice
    assert "the metadata says the same and is not applied again" in rescaled.provenance["notes"][0]
    file.metadata[:] = [("TFLITE_METADATA", metadata([0], [255]))]
    other = read(tmp_path, file)
    assert other.recipe == rescaled.recipe and "says mean [0.0], std [255.0] and is not" in other.provenance["notes"][0]


@pytest.mark.parametrize("way", RESCALED)
def test_rescaling_in_the_first_operators_is_that_of_litert_on_the_pixels_that_it_is_meant_for(tmp_path, way):
    before, mean, std, divisor = RESCALED[way]
    file = tflite(alive(folded(alpha=0.1)[0]), before=before)
    imported = read(tmp_path, file)
    assert is_rescaled(imported.recipe, mean, std) and imported.recipe.resize == ("crop" if divisor == 1 else "squash")
    (note,) = imported.provenance["notes"]
    assert note == f"preprocessing from the first operators, for pixels {'0 to 255' if divisor == 1 else '/ 255'}"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    theirs = run(litert(content=file.bytes()), pixels.astype(np.float32) / np.float32(divisor))
    ours = outputs(imported, imported.recipe.normalise(pixels))
    assert np.abs(ours - theirs).max() < 1e-4 and np.ptp(theirs, axis=0).max() > 1e-3


def test_rescaling_of_a_quantised_input_is_joined_with_its_scale(tmp_path):
    file = tflite(folded()[0], before=[("MUL", 2), ("SUB", (0.5, 1, 1.5))])
    file.tensors[0] |= quantised_input("uint8", 1 / 255, 0).tensors[0]
    assert is_rescaled(read(tmp_path, file).recipe, (63.75, 127.5, 191.25), 127.5)


def test_what_is_no_rescaling_of_colours_is_refused(tmp_path):
    for before, says in [
        ([("MUL", -1)], "no scale"),
        ([("DIV", 0)], "no scale"),
        ([("MUL", (1, 2))], r"\(2,\), expected one, or one for each colour"),
        ([("MUL", [[1], [2], [3]])], "one for each colour"),
    ]:
        with pytest.raises(MinitlError, match=says):
            read(tmp_path, tflite(folded()[0], before=before))
    file = tflite(folded()[0], before=[("SUB", 1)])
    file.operators[0][1] = file.operators[0][1][::-1]  # 1 - x
    with pytest.raises(MinitlError, match="nothing before it computes"):
        read(tmp_path, file)
    file = tflite(folded()[0], before=[("MUL", 2), ("SUB", 1)])
    file.operators[1][1] = np.array([0, *file.operators[1][1][1:]], "<i4")  # beside the first
    with pytest.raises(MinitlError, match="nothing before it computes"):
        read(tmp_path, file)


def test_labels_in_the_appended_archive_are_the_classes(tmp_path):
    data = tflite(folded(classes=3)[0]).bytes()

    def with_files(**files):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
            for name, text in files.items():
                z.writestr(f"{name}.txt", text)
        return data + archive.getvalue()

    labels = with_files(readme="one line", labels="cat\n dog \nnaïve\n")
    assert read(tmp_path, labels).classes == ["cat", "dog", "naïve"]
    other = read(tmp_path, with_files(labels="cat\ndog\n"))
    assert other.classes is None and any("3 lines" in note for note in other.provenance["notes"])
    assert read(tmp_path, data).classes is None
    with pytest.raises(MinitlError, match="archive of labels"):
        read(tmp_path, labels.replace(b"labels.txt", b"lab\0ls.txt", 1))
    assert read(tmp_path, with_files(labels="x" * 100_000_000)).classes is None  # 100 MB in 100 kB


# ---- refusals


def broken(break_it):
    file = tflite(folded("mobilenet_v2", alpha=0.5)[0])
    break_it(file)
    return file


def operators(file, code):
    """The operators of a kind, in order (codes are sorted by name)."""
    from importer_files import CODES

    return [o for o in file.operators if o[0][1] == sorted(CODES).index(code)]


def insert(file, kind, at, options=(0, {})):
    """A new operator between an operator and what it reads."""
    reader = file.operators[at]
    source = int(reader[1][0])
    shape = file.tensors[source][0].tolist()
    output = file.operator(kind, [source], shape, options)
    file.operators.insert(at, file.operators.pop())
    reader[1] = np.asarray([output, *reader[1][1:]], "<i4")


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (
            lambda f: operators(f, "DEPTHWISE_CONV_2D")[1][4].update({1: ("i", 1)}),
            r"\(DEPTHWISE_CONV_2D\) has strides \(2, 1\), .* needs \(2, 2\)",
        ),
        (lambda f: operators(f, "DEPTHWISE_CONV_2D")[1][4].update({0: ("b", 1)}), r"\(DEPTHWISE_CONV_2D\) has padding .*\(0, 0, 0, 0\)"),
        (lambda f: operators(f, "DEPTHWISE_CONV_2D")[1][4].update({0: ("b", 7)}), "padding 7, which is none of same, valid"),
        (lambda f: operators(f, "DEPTHWISE_CONV_2D")[1][4].update({4: ("b", 0)}), "activation linear, .* needs relu6"),
        (lambda f: operators(f, "DEPTHWISE_CONV_2D")[1][4].update({5: ("i", 2)}), "dilated"),
        (lambda f: operators(f, "ADD")[0][4].update({0: ("b", 1)}), r"\(ADD\) has the activation relu, block_2_add needs linear"),
        (lambda f: operators(f, "ADD")[0].update({1: operators(f, "ADD")[0][1][[0, 0]]}), r"\(ADD\) reads .*block_2_add needs"),
        (lambda f: operators(f, "AVERAGE_POOL_2D")[0][4].update({3: ("i", 1)}), r"window of \(2, 1\), global_average_pooling2d needs all"),
        (lambda f: insert(f, "HARD_SWISH", 5), r"operator 5 \(HARD_SWISH\) is of a kind that MobileNets do not have"),
        (lambda f: insert(f, "SOFTMAX", 5), r"operator 5 \(SOFTMAX\) is of a kind"),
        (lambda f: insert(f, "RESHAPE", 5), r"operator 5 \(RESHAPE\) comes before the pooling"),
        (lambda f: insert(f, "MUL", 5), r"operator 5 \(MUL\) is of a kind"),
        (lambda f: f.operators.pop(5), "which nothing before it computes"),
        (lambda f: f.operators.append(f.operators[-1]), "comes after the classifier's SOFTMAX"),
        (lambda f: f.operators[3][1].__setitem__(0, 99_999), "a tensor that does not exist"),
        (lambda f: f.operators[3][1].__setitem__(1, -1), "has no constant kernel"),
        (lambda f: f.operators[3].update({0: ("I", 999)}), "of no kind that it lists"),
        (lambda f: f.tensors[0].update({0: np.array([1, 64, 64, 1], "<i4")}), r"input has shape \(1, 64, 64, 1\)"),
        (lambda f: f.tensors[0].update({0: np.array([1, 8, 8, 3], "<i4")}), "input_shape"),
        (lambda f: f.tensors[1].update({0: np.array([16, 3, 3, 1 << 20], "<i4")}), "has shape .* and 1728 bytes"),
        (lambda f: f.tensors[1].update({4: {2: np.array([np.nan], "<f4"), 3: np.array([0], "<i8")}}), "not a positive number"),
        (lambda f: f.tensors[1].update({4: {2: np.ones(5, "<f4"), 3: np.zeros(5, "<i8")}}), "5 scales and 5 zero points"),
        (lambda f: setattr(f, "outputs", [5]), "not what its last layer computes"),
        (lambda f: setattr(f, "inputs", [0, 1]), "2 inputs"),
    ],
)
def test_a_network_that_is_only_similar_is_refused_by_the_name_of_the_operator(tmp_path, break_it, says):
    with pytest.raises(MinitlError, match=says) as error:
        read(tmp_path, broken(break_it))
    assert "x.tflite" in str(error.value) and len(str(error.value)) < 400


def test_numbers_that_are_none_are_refused_by_name(tmp_path):
    graph, _ = folded()
    graph.params["conv_pw_7"]["bias"][2] = np.nan
    with pytest.raises(MinitlError, match="1 of 128 numbers of conv_pw_7/bias are NaN"):
        read(tmp_path, tflite(graph))


def test_networks_without_depthwise_convolutions_are_called_other_networks(tmp_path):
    file = TFLite()
    x = file.tensor([1, 64, 64, 3])
    kernel = file.constant(np.ones((4, 3, 3, 3), np.float32))
    file.outputs = [file.operator("CONV_2D", [x, kernel], [1, 64, 64, 4], (1, {1: ("i", 1), 2: ("i", 1)}))]
    with pytest.raises(MinitlError, match=r"x.tflite is another network: it has 0 depthwise and 1 other convolutions .mobilenet_v1 has 13"):
        read(tmp_path, file)


def test_operators_that_share_one_kernel_are_refused_before_they_fill_the_memory(tmp_path):
    file = TFLite()
    x, kernel = file.tensor([1, 64, 64, 3]), file.constant(np.zeros((100, 10, 10, 100), np.int8), scale=[1], zero_point=[0])
    for _ in range(3000):
        x = file.operator("CONV_2D", [x, kernel], [1, 64, 64, 100], (1, {1: ("i", 1), 2: ("i", 1)}))
    file.outputs = [x]
    with pytest.raises(MinitlError, match="share their kernels"):
        read(tmp_path, file)


def test_damaged_files_raise_nothing_but_our_error(tmp_path):
    data, refused = tflite(folded("mobilenet_v2", alpha=0.1)[0]).bytes(), 0
    for seed in range(200):
        try:
            read(tmp_path, mutate(data, random.Random(seed)))
        except MinitlError as error:
            refused += 1
            assert str(error).isprintable()
    print(f"{refused} of 200 damaged files were refused; the others differ in numbers only")
    assert refused > 50
