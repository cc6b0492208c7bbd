"""ONNX files: by both of PyTorch's exporters, in the manner of tf2onnx, by hand; what is no float network or damaged is refused by name."""

import os
import random
import warnings

import numpy as np
import pytest
import torch_networks
from hypothesis import given
from hypothesis import strategies as st
from importer_files import RESCALED, alive, is_rescaled, network
from peers import pytorch
from test_importers_read import fuzz

from minitl import architectures, importers
from minitl.errors import MinitlError
from minitl.importers.names import TORCH_MEAN, TORCH_STD, steps
from minitl.importers.protobuf import Message
from minitl.layers import Add, Conv2D, DepthwiseConv2D, GlobalAveragePool

onnx = pytest.importorskip("onnx")
BOTH = pytest.mark.parametrize("architecture", ["mobilenet_v1", "mobilenet_v2"])


def by_onnxruntime(path, x):
    """The output for pictures (N, H, W, 3), one at a time; the file says in which order it wants the axes."""
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    image = session.get_inputs()[0]
    pictures = [one[None] if image.shape[-1] == 3 else one[None].transpose(0, 3, 1, 2) for one in x]
    dtype = np.float16 if image.type == "tensor(float16)" else np.float32
    return np.array([session.run(None, {image.name: np.ascontiguousarray(one, dtype)})[0].reshape(-1) for one in pictures])


def computed(imported, x):
    """The same from our graph: logits."""
    graph = architectures.build(imported.architecture, **imported.arguments).load(imported.arrays)
    return graph.evaluate(x)[graph.output]


def probabilities(logits):
    """Softmax of each row."""
    e = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def agree(imported, path, softmax=False, limit=1e-4):
    """Largest difference to ONNX Runtime on noise is below the limit, that between the pictures ten times above it; prints both."""
    x = np.random.default_rng(0).standard_normal((2, *imported.arguments["input_shape"])).astype(np.float32)
    ours, theirs = computed(imported, x).astype(np.float64), by_onnxruntime(path, x)
    ours = probabilities(ours) if softmax else ours
    error = np.abs(ours - theirs).max()
    spread = np.ptp(theirs, axis=0).max()
    print(f"{path.name}: largest difference to ONNX Runtime {error:.2g} of {np.abs(theirs).max():.2g}; {spread:.2g} between two pictures")
    assert error < limit and spread > 10 * limit


def in_torch_layout(name, array):
    """One of our arrays as PyTorch has it: OIHW, (C, 1, kh, kw), (O, I)."""
    return {4: (3, 2, 0, 1), 3: (2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim], array


def numbers_of(path):
    """{name: array} of the file by ONNX's own reader, Identity followed."""
    graph = onnx.load(path).graph
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found.update({node.output[0]: found[node.input[0]] for node in graph.node if node.op_type == "Identity" and node.input[0] in found})
    return found


def are_those_of(path, imported):
    """Every number of the network is the one that its file has under the name that the mapping gives, bit for bit."""
    theirs, arrays = numbers_of(path), imported.arrays
    assert [ours for _, ours in imported.mapping] == list(arrays)
    for name, ours in imported.mapping:
        axes, array = in_torch_layout(ours, arrays[ours])
        array = array.transpose(axes)
        expected = np.zeros_like(array) if name.startswith("(not in the file") else theirs[name]
        assert np.array_equal(
            array[:, None] if array.ndim == 3 else array, expected.reshape(array.shape if array.ndim != 3 else expected.shape)
        ), ours


# ---- PyTorch's exporters


def exported(path, model, size=64, **options):
    torch = pytorch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.zeros(1, 3, size, size),), str(path), **options)
    return path


@BOTH
def test_what_the_torchscript_exporter_writes_is_read_bit_for_bit(tmp_path, architecture):
    model = getattr(torch_networks, architecture)(pytorch())
    path = exported(tmp_path / "x.onnx", model, dynamo=False)
    imported = importers.read(path)
    arguments = imported.arguments
    assert imported.architecture == architecture and (arguments["alpha"], arguments["classes"], arguments["padding"]) == (0.1, 4, "torch")
    assert arguments["input_shape"] == [64, 64, 3] and not arguments["batch_norm"] and imported.provenance["format"] == "onnx"
    assert (imported.recipe.mean, imported.recipe.std) == (TORCH_MEAN, TORCH_STD) and "assumed" in imported.provenance["notes"][0]
    are_those_of(path, imported)
    agree(imported, path)


@BOTH
def test_a_batch_norm_that_is_not_folded_arrives_with_its_epsilon(tmp_path, architecture):
    torch = pytorch()
    model = getattr(torch_networks, architecture)(torch)
    options = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
    path = exported(tmp_path / "x.onnx", model, dynamo=False, **options)
    imported = importers.read(path)
    assert imported.arguments["batch_norm"] and (imported.arguments["epsilon"], imported.arguments["momentum"]) == (1e-5, 0.9)
    state = {name: array.numpy() for name, array in model.state_dict().items()}
    for name, ours in imported.mapping:
        axes, array = in_torch_layout(ours, imported.arrays[ours])
        assert np.array_equal(array.transpose(axes).reshape(state[name].shape), state.pop(name)), name
    assert all(name.endswith("num_batches_tracked") for name in state) and not imported.unused
    agree(imported, path)


def test_other_networks_of_pytorch_are_read_too(tmp_path):
    """ResNet18, with a max pool and sums before a ReLU; VGG16, whose first dense layer reads an image flattened channels first."""
    torch = pytorch()
    for architecture in ("resnet18", "vgg16"):
        path = exported(tmp_path / f"{architecture}.onnx", getattr(torch_networks, architecture)(torch), dynamo=False)
        imported = importers.read(path)
        assert imported.architecture == architecture and imported.arguments["classes"] == 4 and imported.recipe.mean == TORCH_MEAN
        agree(imported, path)


@pytest.mark.slow
@BOTH
def test_what_keras_exports_is_read(tmp_path, architecture, monkeypatch):
    """From its backend PyTorch: padding is computed from the size of the picture, a BatchNorm is a difference, a product, a sum."""
    pytorch()
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    make = keras.applications.MobileNet if architecture == "mobilenet_v1" else keras.applications.MobileNetV2
    model = make(input_shape=(96, 96, 3), alpha=0.35, weights=None, classes=7)
    rng = np.random.default_rng(0)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.gamma.assign(rng.uniform(0.7, 1.3, norm.gamma.shape))
        norm.beta.assign(rng.uniform(-0.3, 0.5, norm.beta.shape))
        norm.momentum = 0.0  # the last batch counts
    model(rng.standard_normal((8, 96, 96, 3)).astype(np.float32), training=True)
    dense = model.layers[-1] if architecture == "mobilenet_v2" else model.get_layer("conv_preds")
    dense.kernel.assign(np.array(dense.kernel.value.detach()) * 5)
    model.export(tmp_path / "x.onnx", format="onnx", verbose=False)
    imported = importers.read(tmp_path / "x.onnx")
    assert imported.architecture == architecture and imported.arguments["padding"] == "same" and imported.recipe.mean == (127.5,) * 3
    assert any("folded" in note for note in imported.provenance["notes"])
    agree(imported, tmp_path / "x.onnx", softmax=True)


def test_a_file_that_leaves_the_size_open_gets_that_in_its_name_or_the_usual_one(tmp_path):
    model = torch_networks.mobilenet_v1(pytorch())
    options = {"dynamo": False, "input_names": ["x"], "dynamic_axes": {"x": {0: "n", 2: "h", 3: "w"}}}
    for name, size in [("x.onnx", 224), ("mobilenet_v1_0.1_96.onnx", 96)]:
        imported = importers.read(exported(tmp_path / name, model, **options))
        assert imported.arguments["input_shape"] == [size, size, 3] and f"input size {size}" in imported.provenance["notes"][0]


def test_what_the_dynamo_exporter_writes_is_read_with_the_numbers_from_the_file_beside(tmp_path):
    pytest.importorskip("onnxscript")
    path = exported(tmp_path / "x.onnx", torch_networks.mobilenet_v1(pytorch()), dynamo=True, external_data=True, verbose=False)
    assert (tmp_path / "x.onnx.data").stat().st_size > 100_000
    imported = importers.read(path)
    are_those_of(path, imported)
    agree(imported, path)
    assert list(imported.provenance["beside"]) == ["x.onnx.data"] and len(imported.provenance["beside"]["x.onnx.data"]) == 64


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("optimise", [True, False])
def test_what_the_dynamo_exporter_writes_is_read_optimised_or_not(tmp_path, architecture, optimise):
    pytest.importorskip("onnxscript")
    model = getattr(torch_networks, architecture)(pytorch())
    path = exported(tmp_path / "x.onnx", model, dynamo=True, external_data=False, verbose=False, optimize=optimise)
    imported = importers.read(path)
    assert imported.arguments["batch_norm"] is not optimise and not imported.arguments["use_bias"]
    are_those_of(path, imported)
    agree(imported, path)


# ---- in the manner of tf2onnx, and by hand

FLOATS = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "float64": onnx.TensorProto.DOUBLE}


class File:
    """Nodes and initialisers, one after the other; save() gives the file."""

    def __init__(self, shape, dtype="float32", raw=True, opset=13):
        self.nodes, self.tensors, self.dtype, self.raw, self.opset = [], [], dtype, raw, opset
        self.image = onnx.helper.make_tensor_value_info("image", FLOATS.get(dtype, 1), shape)

    def constant(self, array):
        array = np.asarray(array)
        array = array.astype(self.dtype) if array.dtype.kind == "f" else array
        name = f"constant{len(self.tensors)}"
        if self.raw:
            self.tensors.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        else:
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            self.tensors.append(onnx.helper.make_tensor(name, kind, array.shape, array.reshape(-1).tolist()))
        return name

    def node(self, kind, *inputs, **attributes):
        output = f"value{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def model(self):
        output = onnx.helper.make_tensor_value_info(self.nodes[-1].output[0], self.image.type.tensor_type.elem_type, None)
        graph = onnx.helper.make_graph(self.nodes, "by hand", [self.image], [output], self.tensors)
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)], ir_version=8)

    def save(self, path, **options):
        onnx.save(self.model(), str(path), **options)
        return path


def keras_like(graph, head="MatMul", pads="auto_pad", pool="GlobalAveragePool", before=(), arithmetic=False, **options):
    """Our network as tf2onnx writes Keras' ones: a picture with its channels last, a Transpose, padding SAME."""
    h, w, _ = graph.input_shape
    file = File([1, h, w, 3], **options)
    x = "image"
    for kind, number in before:
        x = file.node(kind, x, file.constant(np.array(number, np.float32)))
    value = {-1: file.node("Transpose", x, perm=[0, 3, 1, 2])}
    for i, step in enumerate(steps(graph)):
        layer, x, params = step.layer, value[step.inputs[0]], graph.params.get(step.name, {})
        if isinstance(layer, (Conv2D, DepthwiseConv2D)):
            depthwise = isinstance(layer, DepthwiseConv2D)
            kernel = params["kernel"].transpose(2, 0, 1)[:, None] if depthwise else params["kernel"].transpose(3, 2, 0, 1)
            t, b, left, r = layer.pads(step.shape)
            attributes = {"strides": list(layer.strides), "group": len(kernel) if depthwise else 1}
            if pads == "auto_pad":
                attributes["auto_pad"] = "SAME_UPPER"
            elif pads == "Pad" and any((t, b, left, r)):
                x = file.node("Pad", x, file.constant(np.array([0, 0, t, left, 0, 0, b, r])))
            elif pads == "pads":
                attributes["pads"] = [t, left, b, r]
            biases = [file.constant(params["bias"])] if "bias" in params and head != "1x1" else []
            x = file.node("Conv", x, file.constant(kernel), *biases, **attributes)
            if "bias" in params and head == "1x1":
                x = file.node("Add", x, file.constant(params["bias"][:, None, None]))
            if step.norm and step.norm in graph.params and arithmetic:
                gamma, beta, mean, variance = (a[:, None, None] for a in graph.params[step.norm].values())
                x = file.node("Sub", x, file.constant(mean))
                x = file.node("Mul", x, file.constant(gamma / np.sqrt(variance + 1e-3)))
                x = file.node("Add", file.constant(beta), x)
            elif step.norm and step.norm in graph.params:
                norm = [file.constant(a) for a in graph.params[step.norm].values()]
                x = file.node("BatchNormalization", x, *norm, epsilon=1e-3, momentum=0.99)
            if step.activation == "relu6" and file.opset < 11:
                x = file.node("Clip", x, min=0.0, max=6.0)
            elif step.activation == "relu6":
                x = file.node("Clip", x, file.constant(np.float32(0)), file.constant(np.float32(6)))
            elif step.activation == "relu":
                x = file.node("Relu", x)
        elif isinstance(layer, Add):
            x = file.node("Add", *[value[j] for j in step.inputs])
        elif isinstance(layer, GlobalAveragePool):
            if pool == "GlobalAveragePool":
                x = file.node(pool, x)
            elif pool == "AveragePool":
                x = file.node(pool, x, kernel_shape=list(step.shape[:2]))
            elif pool == "ReduceMean":
                x = file.node(pool, x, axes=[2, 3])
            else:
                x = file.node("ReduceMean", file.node("Transpose", x, perm=[0, 2, 3, 1]), axes=[1, 2], keepdims=0)
        else:
            kernel, bias = file.constant(params["kernel"]), file.constant(params["bias"])
            flat = file.node("Reshape", x, file.constant(np.array([0, -1])))
            if head == "1x1":
                x = file.node("Conv", x, file.constant(params["kernel"].T[:, :, None, None]), bias)
                x = file.node("Flatten", x)
            elif head == "MatMul":
                x = file.node("Add", file.node("MatMul", flat, kernel), bias)
            elif head == "Gemm":
                x = file.node("Gemm", flat, kernel, bias)
            else:
                x = file.node(
                    "Gemm", file.node("Squeeze", x, file.constant(np.array([2, 3]))), file.constant(params["kernel"].T), bias, transB=1
                )
            x = file.node("Softmax", x, axis=-1 if file.opset >= 13 else 1)
        value[i] = x
    return file


def equal(imported, arrays, as_stored=lambda a: a):
    assert imported.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert imported.arrays[name].dtype == np.float32 and np.array_equal(imported.arrays[name], as_stored(array)), name


WAYS = {
    "as tf2onnx": ({}, {}),
    "limits as attributes": ({}, {"opset": 9, "pads": "pads", "head": "Gemm"}),
    "BatchNorm kept": ({"batch_norm": True}, {"pool": "ReduceMean"}),
    "zeros put around": ({}, {"pads": "Pad", "pool": "AveragePool", "head": "1x1"}),
    "Keras' padding": ({"padding": "keras", "input_shape": [65, 65, 3]}, {"pads": "pads", "head": "Squeeze"}),
    "mean of the last axes": ({"activation": "relu"}, {"pool": "Transpose"}),
    "numbers in lists": ({}, {"raw": False}),
    "halves": ({}, {"dtype": "float16"}),
    "halves in lists": ({}, {"dtype": "float16", "raw": False}),
    "no classifier": ({"classes": None}, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_networks_written_by_hand_arrive_as_they_were_and_are_computed_as_by_onnxruntime(tmp_path, way):
    arguments, options = WAYS[way]
    graph, arrays = network(("mobilenet_v1", "mobilenet_v2")[list(WAYS).index(way) % 2], **{"batch_norm": False, "alpha": 0.1, **arguments})
    path = keras_like(graph if arguments.get("batch_norm") else alive(graph), **options).save(tmp_path / "x.onnx")
    imported = importers.read(path)
    half = options.get("dtype") == "float16"
    equal(imported, arrays, (lambda a: a.astype(np.float16).astype(np.float32)) if half else lambda a: a)
    assert imported.recipe.mean == (127.5,) * 3 and imported.arguments["padding"] == arguments.get("padding", "same")
    agree(imported, path, softmax=imported.arguments["classes"] is not None, limit=0.02 if half else 1e-4)


@BOTH
def test_a_batch_norm_that_is_written_as_arithmetic_is_folded(tmp_path, architecture):
    graph, _ = network(architecture, alpha=0.1)
    path = keras_like(graph, arithmetic=True).save(tmp_path / "x.onnx")
    imported = importers.read(path)
    assert not imported.arguments["batch_norm"] and "folded" in imported.provenance["notes"][0]
    agree(imported, path, softmax=True)


def test_a_value_that_is_read_before_it_is_rescaled_is_refused(tmp_path):
    file = keras_like(network("mobilenet_v2", alpha=0.1)[0], arithmetic=True)
    conv = next(
        node
        for node in file.nodes
        if node.op_type == "Conv" and any(n.op_type == "Sub" and n.input[0] == node.output[0] for n in file.nodes)
    )
    add = next(node for node in file.nodes if node.op_type == "Add" and not any(name.startswith("constant") for name in node.input))
    add.input[1] = conv.output[0]
    with pytest.raises(MinitlError, match="which nothing before it computes"):
        importers.read(file.save(tmp_path / "x.onnx"))


def test_numbers_of_other_widths_are_widened_or_narrowed(tmp_path):
    graph, arrays = network(batch_norm=False)
    equal(importers.read(keras_like(graph, dtype="float64").save(tmp_path / "x.onnx")), arrays)
    model = keras_like(graph).model()
    for tensor in model.graph.initializer:
        if tensor.data_type == 1:
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.uint32) >> 16).astype(np.uint16).tobytes()
            tensor.data_type = onnx.TensorProto.BFLOAT16
    onnx.save(model, tmp_path / "x.onnx")
    equal(importers.read(tmp_path / "x.onnx"), arrays, lambda a: (a.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))


@pytest.mark.parametrize("way", RESCALED)
def test_rescaling_in_the_first_nodes_is_that_of_onnxruntime_on_the_pixels_that_it_is_meant_for(tmp_path, way):
    before, mean, std, divisor = RESCALED[way]
    graph, _ = network(batch_norm=False, alpha=0.1)
    path = keras_like(alive(graph), before=[(kind.title(), number) for kind, number in before]).save(tmp_path / "x.onnx")
    imported = importers.read(path)
    assert is_rescaled(imported.recipe, mean, std)
    assert f"for pixels {'0 to 255' if divisor == 1 else '/ 255'};" in imported.provenance["notes"][0]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    theirs = by_onnxruntime(path, pixels.astype(np.float32) / np.float32(divisor))
    ours = probabilities(computed(imported, imported.recipe.normalise(pixels)))
    assert np.abs(ours - theirs).max() < 1e-4 and np.ptp(theirs, axis=0).max() > 1e-3


def test_a_first_node_that_is_no_scale_is_refused(tmp_path):
    with pytest.raises(MinitlError, match="no scale"):
        importers.read(keras_like(network(batch_norm=False)[0], before=[("Mul", -1.0)]).save(tmp_path / "x.onnx"))


def test_numbers_that_no_layer_reads_are_named(tmp_path):
    file = keras_like(network(batch_norm=False)[0])
    name = file.constant(np.ones(7, np.float32))
    assert importers.read(file.save(tmp_path / "x.onnx")).unused == [name]


# ---- what is refused


def broken(how, tmp_path):
    """A file with one thing wrong."""
    graph, _ = network(batch_norm=False)
    file = keras_like(graph)
    conv = next(node for node in file.nodes if node.op_type == "Conv" and len(node.attribute) and node.output[0] != "value1")
    attribute = {a.name: a for a in conv.attribute}
    clip = next(node for node in file.nodes if node.op_type == "Clip")
    at, kernel = file.nodes.index(conv), next(tensor for tensor in file.tensors if list(tensor.dims) == [8, 3, 3, 3])
    if how == "quantised":
        file.nodes.insert(at, onnx.helper.make_node("DequantizeLinear", ["image", "constant0"], ["q"]))
    elif how == "other domain":
        conv.domain = "com.microsoft"
    elif how == "control flow":
        conv.op_type = "If"
    elif how == "grouped":
        attribute["group"].i = 2
    elif how == "dilated":
        conv.attribute.append(onnx.helper.make_attribute("dilations", [2, 2]))
    elif how == "the other SAME":
        attribute["auto_pad"].s = b"SAME_LOWER"
    elif how == "limits":
        clip.input[2] = file.constant(np.float32(5))
    elif how == "computed kernel":
        conv.input[1] = conv.input[0]
    elif how == "unknown value":
        conv.input[0] = "nowhere"
    elif how == "twice":
        file.nodes.insert(at, file.nodes[at])
    elif how == "two pictures":
        model = file.model()
        model.graph.input.append(onnx.helper.make_tensor_value_info("more", 1, [1]))
        onnx.save(model, tmp_path / "x.onnx")
        return tmp_path / "x.onnx"
    elif how == "a row of numbers":
        file.image.type.tensor_type.shape.dim.pop()
    elif how == "two tensors of a name":
        file.tensors.append(file.tensors[0])
    elif how == "shape":
        kernel.dims[0] = 1 << 30
    elif how == "shape below 0":
        kernel.dims[0] = -1
    elif how == "huge":  # 2 ** 40 numbers out of one
        one, size = file.constant(np.ones(1, np.float32)), file.constant(np.array([1 << 20, 1 << 20]))
        file.nodes.insert(0, onnx.helper.make_node("Expand", [one, size], ["much"]))
    elif how == "doubled for ever":
        for i in range(60):
            name = file.constant(np.ones(1, np.float32)) if i == 0 else f"c{i - 1}"
            file.nodes.insert(i, onnx.helper.make_node("Concat", [name, name], [f"c{i}"], axis=0))
    elif how == "not the end":
        file.nodes[-1], file.nodes[-2] = file.nodes[-2], file.nodes[-1]
    elif how == "NaN":
        kernel.raw_data = np.full(8 * 27, np.nan, np.float32).tobytes()
    return file.save(tmp_path / "x.onnx")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("quantised", "is quantised, which is read from .tflite files"),
        ("other domain", "is an operator of 'com.microsoft'"),
        ("control flow", r"\(If\) is of a kind that networks here do not have"),
        ("grouped", "is dilated or grouped"),
        ("dilated", "is dilated or grouped"),
        ("the other SAME", "padding 'SAME_LOWER'"),
        ("limits", "limits values to 0 and 5, expected 0 and 6"),
        ("computed kernel", "has no constant kernel"),
        ("unknown value", "reads 'nowhere', which nothing before it computes"),
        ("twice", "computes what is there already"),
        ("two pictures", "has 2 inputs, expected one picture"),
        ("a row of numbers", r"its input has shape \[1, 64, 64\]"),
        ("two tensors of a name", "two tensors called 'constant0'"),
        ("shape", r"tensor 'constant\d' has shape \[1073741824, 3, 3, 3\]"),
        ("shape below 0", r"tensor 'constant\d' has shape \[-1, 3, 3, 3\]"),
        ("huge", r"\(Expand\) makes more numbers than the file holds"),
        ("doubled for ever", r"\(Concat\) makes more numbers than the file holds"),
        ("not the end", "computes|its output"),
        ("NaN", "are NaN or infinite"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_the_name_of_the_node(tmp_path, how, says):
    with pytest.raises(MinitlError, match=says) as error:
        importers.read(broken(how, tmp_path))
    assert "x.onnx" in str(error.value)


@pytest.mark.parametrize("kind", ["AveragePool", "MaxPool"])
def test_windows_of_a_pool_with_gaps_are_refused(tmp_path, kind):
    file = keras_like(network(batch_norm=False)[0], pool="AveragePool")
    pool = next(node for node in file.nodes if node.op_type == "AveragePool")
    pool.op_type = kind
    pool.attribute.append(onnx.helper.make_attribute("dilations", [1, 2]))
    with pytest.raises(MinitlError, match=rf"\({kind}\) is dilated by \[1, 2\]"):
        importers.read(file.save(tmp_path / "x.onnx"))


@pytest.mark.parametrize(
    ("opset", "image", "axis", "right"),
    [
        *[(13, False, axis, axis in (1, -1, None)) for axis in (0, 1, -1, -2, None)],
        *[(13, True, axis, axis in (1, -3)) for axis in (0, 1, 2, -1, -3, None)],
        *[(9, True, axis, axis in (1, None)) for axis in (1, 2, None)],
    ],
)
def test_a_softmax_that_is_not_over_the_classes_is_refused(tmp_path, opset, image, axis, right):
    """axis None: the usual one, the last since version 13, before that the second and all after it. image: (1, classes, 1, 1)."""
    graph, arrays = network("mobilenet_v2", batch_norm=False, alpha=0.1)
    file = keras_like(alive(graph), head="1x1", opset=opset)
    flatten, softmax = file.nodes[-2:]
    del softmax.attribute[:]
    softmax.attribute.extend([] if axis is None else [onnx.helper.make_attribute("axis", axis)])
    if image:
        softmax.input[0] = flatten.input[0]
        del file.nodes[-2]
    path = file.save(tmp_path / "x.onnx")
    if not right:
        with pytest.raises(MinitlError, match=r"\(Softmax\) is along axis -?\d, expected that of the classes"):
            importers.read(path)
        assert np.ptp(by_onnxruntime(path, np.zeros((1, 64, 64, 3)))) == 0, "all probabilities would be 1, or 1 / classes"
        return
    imported = importers.read(path)
    equal(imported, arrays)
    agree(imported, path, softmax=True)


def beside(tmp_path, change=lambda entries: None):
    """A network with its numbers in x.data; change: what is done to {key: value} of the first tensor there."""
    graph, arrays = network(batch_norm=False)
    path = keras_like(graph).save(tmp_path / "x.onnx", save_as_external_data=True, location="x.data", size_threshold=64)
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.data_location == 1)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    change(entries)
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path, arrays


def test_numbers_beside_the_file_are_read_and_nothing_else_is(tmp_path):
    path, arrays = beside(tmp_path)
    equal(importers.read(path), arrays)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "x.data").write_bytes((tmp_path / "x.data").read_bytes())
    for location in (
        "../x.data",
        str(tmp_path / "x.data"),
        "inner/x.data",
        "inner\\x.data",
        "c:x.data",
        "..",
        ".",
        "",
        "x.data\0",
        "inner",
    ):
        path, _ = beside(tmp_path, lambda entries, location=location: entries.update(location=location))
        with pytest.raises(MinitlError, match=r"with plain names|no ordinary file"):
            importers.read(path)
    for change, says in [
        ({"offset": "-4"}, "is damaged"),
        ({"offset": "1e3"}, "is damaged"),
        ({"offset": str(1 << 40)}, "has only"),
        ({"length": "4"}, "is damaged"),
        ({"length": str(1 << 62)}, "is damaged"),
        ({"location": "gone.data"}, "'gone.data' beside it, which is not there"),
    ]:
        path, _ = beside(tmp_path, lambda entries, change=change: entries.update(change))
        with pytest.raises(MinitlError, match=says):
            importers.read(path)
    path, _ = beside(tmp_path)
    (tmp_path / "x.data").write_bytes((tmp_path / "x.data").read_bytes()[:-8])
    with pytest.raises(MinitlError, match="has only"):
        importers.read(path)


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
def test_links_and_pipes_beside_the_file_are_refused(tmp_path):
    path, _ = beside(tmp_path)
    os.rename(tmp_path / "x.data", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", tmp_path / "x.data")
    with pytest.raises(MinitlError, match="which is a link"):
        importers.read(path)
    os.remove(tmp_path / "x.data")
    os.mkfifo(tmp_path / "x.data")
    with pytest.raises(MinitlError, match="no ordinary file"):
        importers.read(path)


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=40), st.lists(st.floats(width=32), max_size=20), st.text(max_size=10))
def test_messages_are_read_as_googles_library_reads_them(integers, reals, text):
    tensor = onnx.TensorProto(dims=integers, float_data=reals, name=text, data_type=7)  # dims are not packed, the others are
    tensor.int64_data.extend(integers)
    message = Message(memoryview(tensor.SerializeToString()), "x")
    assert message.integers(1).tolist() == integers and message.integers(7).tolist() == integers
    assert np.array_equal(message.reals(4, "<f4"), np.array(reals, np.float32), equal_nan=True) and message.text(8) == text


def test_more_fields_than_any_network_has_are_refused_before_they_take_time():
    with pytest.raises(MinitlError, match="fields"):
        Message(memoryview(b"\x08\x01" * (1 << 20)), "x")
    for damaged in (b"\x08", b"\x0a\x05abc", b"\x0b", b"\x0d\x01", b"\x08" + b"\xff" * 11, b"\x0a" + b"\xff" * 9 + b"\x01"):
        with pytest.raises(MinitlError, match="damaged or cut off"):
            Message(memoryview(damaged), "x")


def small(tmp_path, way):
    graph, _ = network("mobilenet_v1", alpha=0.1, batch_norm=way == 0)
    return keras_like(graph, pads=("pads", "Pad")[way], raw=way == 0).save(tmp_path / "small.onnx").read_bytes()


@pytest.mark.parametrize("way", [0, 1])
def test_damaged_files_raise_nothing_but_our_error(tmp_path, way):
    read, refused = fuzz(tmp_path / "x", small(tmp_path, way), range(150))
    print(f"of 150 damaged copies {refused} were refused, {read} read")


@pytest.mark.slow
@pytest.mark.parametrize("way", [0, 1])
def test_ten_thousand_damaged_files_raise_nothing_but_our_error(tmp_path, way):
    read, refused = fuzz(tmp_path / "x", small(tmp_path, way), range(1000, 6000))
    print(f"of 5000 damaged copies {refused} were refused, {read} read")


def test_every_cut_of_a_file_is_refused(tmp_path):
    data, rng = small(tmp_path, 0), random.Random(0)
    for _ in range(40):
        (tmp_path / "x").write_bytes(data[: rng.randrange(1, len(data))])
        with pytest.raises(MinitlError):
            importers.read(tmp_path / "x")


def exchange(model, rng):
    """Parts of a graph put into the place of others: every field has its right type, and the whole makes no sense."""
    graph = model.graph
    for _ in range(rng.choice([1, 1, 2, 3])):
        node, other = rng.choice(graph.node), rng.choice(graph.node)
        kind = rng.randrange(8)
        if kind == 0:
            node.op_type = rng.choice(
                ["Shape", "Concat", "Add", "Mul", "Reshape", "Slice", "ReduceMean", "Pad", "MaxPool", "AveragePool", "Cast"]
            )
        elif kind == 1 and node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice([*other.input, *other.output, "", "image"])
        elif kind == 2:
            node.input.extend(list(other.input))
        elif kind == 3:
            del node.input[rng.randrange(len(node.input) + 1) :]
        elif kind == 4:
            node.attribute.extend(list(other.attribute))
        elif kind == 5 and node.attribute:
            attribute = rng.choice(node.attribute)
            attribute.i, attribute.f = rng.choice([-1, 0, 1, 2, 1 << 40, -(1 << 63)]), rng.choice([0.0, -1.0, float("nan"), 1e30])
            attribute.ints.extend([rng.choice([-1, 0, 3, 1 << 40])])
        elif kind == 6:
            graph.node.insert(rng.randrange(len(graph.node)), other)
        else:
            tensor, another = rng.choice(graph.initializer), rng.choice(graph.initializer)
            tensor.dims[:], tensor.raw_data, tensor.data_type = another.dims, another.raw_data, another.data_type
    return model.SerializeToString()


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_graphs_with_their_parts_exchanged_are_refused_or_computed_as_by_onnxruntime(tmp_path, count):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnxruntime.set_default_logger_severity(4)
    ways = [("mobilenet_v1", {"arithmetic": True, "pads": "Pad"}), ("mobilenet_v2", {"pads": "pads", "pool": "Transpose", "head": "Gemm"})]
    models = [keras_like(network(name, alpha=0.1)[0], **options).model() for name, options in ways]
    counts, path, worst = [0, 0, 0], tmp_path / "x.onnx", 0.0
    for seed in range(count):
        model = onnx.ModelProto()
        model.CopyFrom(models[seed % 2])
        path.write_bytes(exchange(model, random.Random(seed)))
        try:
            imported = importers.read(path)
        except MinitlError as error:
            counts[0] += 1
            assert str(error).isprintable() and len(str(error)) < 600, seed
            continue
        x = np.random.default_rng(seed).standard_normal((1, 64, 64, 3)).astype(np.float32)
        try:
            theirs = by_onnxruntime(path, x)[0]
        except Exception:  # it refuses more, such as an input that the operator does not have
            counts[1] += 1
            continue
        counts[2] += 1
        ours = computed(imported, x)[0].astype(np.float64)
        if any(node.op_type == "Softmax" for node in onnx.load(path).graph.node):
            ours = np.exp(ours - ours.max()) / np.exp(ours - ours.max()).sum()
        worst = max(worst, float(np.abs(ours - theirs).max() / max(1, np.abs(theirs).max())))
        assert worst < 1e-3, seed
    print(f"of {count} graphs {counts[0]} were refused, {counts[1]} refused by ONNX Runtime alone, {counts[2]} computed; worst {worst:.2g}")


def test_graphs_that_would_grow_without_end_are_refused_soon(tmp_path):
    for kind, attributes in [("Concat", {"axis": 1}), ("Add", {})]:
        file = File([1, 3, 64, 64])
        x = file.node("Relu", file.node("Conv", "image", file.constant(np.ones((8, 3, 1, 1), np.float32))))
        for _ in range(2000):
            x = file.node(kind, x, x, **attributes)
        file.node("Reshape", x, file.node("Shape", x))
        with pytest.raises(MinitlError):
            importers.read(file.save(tmp_path / "x.onnx"))


def test_a_node_that_nothing_reads_does_not_change_the_network(tmp_path):
    """A BatchNorm or an activation beside the way that the values take."""
    for kind in ("Clip", "BatchNormalization"):
        file = keras_like(network(batch_norm=True)[0])
        beside = next(node for node in file.nodes if node.op_type == kind)
        at = file.nodes.index(beside)
        file.nodes[at + 1].input[0] = beside.input[0]  # past it
        with pytest.raises(MinitlError, match=r"beside|before its BatchNorm"):
            importers.read(file.save(tmp_path / "x.onnx"))
