"""Keras .h5 -> our networks: the numbers arrive unchanged, and what is not exactly a MobileNet is refused by name."""

import json

import numpy as np
import pytest
from conftest import WEIGHTS, needs_shared
from importer_files import keras_config, keras_weights, network, write_keras

from minitl import architectures, importers
from minitl.errors import MinitlError
from minitl.importers.names import ALPHAS

h5py = pytest.importorskip("h5py")

BOTH = pytest.mark.parametrize("architecture", ["mobilenet_v1", "mobilenet_v2"])


def equal(imported, arrays):
    assert imported.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert imported.arrays[name].dtype == np.float32 and np.array_equal(imported.arrays[name], array), name
    architectures.build(imported.architecture, **imported.arguments).load(imported.arrays)


def renamed(layers, old, new):
    """The same layers with one of them called otherwise."""
    return [(new if name == old else name, weights) for name, weights in layers]


# ---- weights alone


@BOTH
@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("vlen", [False, True])
def test_weights_alone_arrive_unchanged_under_our_names(tmp_path, architecture, classes, vlen):
    graph, arrays = network(architecture, classes=classes)
    imported = importers.read(write_keras(tmp_path / "mobilenet_2_5_96_tf.h5", keras_weights(graph), vlen=vlen))
    equal(imported, arrays)
    assert imported.architecture == architecture and imported.arguments["alpha"] == 0.25 and imported.arguments["classes"] == classes
    assert imported.arguments["input_shape"] == [96, 96, 3] and imported.recipe.height == 96
    assert imported.arguments["padding"] == ("keras" if architecture == "mobilenet_v1" else "same")
    assert any("taken from the file's name" in note for note in imported.provenance["notes"])


@BOTH
@pytest.mark.parametrize("alpha", [*ALPHAS, 0.07, 0.6, 2.0])
def test_the_width_multiplier_is_found_from_the_shapes(tmp_path, architecture, alpha):
    graph, arrays = network(architecture, alpha=alpha, classes=None)
    imported = importers.read(write_keras(tmp_path / "x.h5", keras_weights(graph)))
    equal(imported, arrays)
    if alpha in ALPHAS and not (architecture == "mobilenet_v2" and alpha == 0.1):
        assert imported.arguments["alpha"] == alpha
    assert any("224 x 224 assumed" in note for note in imported.provenance["notes"])


def test_names_of_older_files_and_split_lists_of_names_are_known(tmp_path):
    graph, arrays = network("mobilenet_v2")
    layers = renamed(keras_weights(graph), "predictions", "Logits")
    equal(importers.read(write_keras(tmp_path / "x.h5", layers, chunks=4)), arrays)


def break_layers(layers, how):
    name, weights = next((n, w) for n, w in layers if n == "conv_pw_3")
    i = layers.index((name, weights))
    if how == "missing":
        return layers[:i] + layers[i + 1 :]
    if how == "missing norm":
        return [pair for pair in layers if pair[0] != "conv_dw_5_bn"]
    if how == "extra":
        return [*layers, ("dense_7", [("dense_7/kernel:0", np.zeros((3, 3), np.float32))])]
    if how == "twice":
        return [*layers, (name, [])]
    array = weights[0][1].copy()
    if how == "shape":
        array = array[..., :-1]
    if how == "integers":
        array = array.astype(np.int32)
    if how in ("NaN", "infinite"):
        array[0, 0, 1, 1] = np.nan if how == "NaN" else np.inf
    if how == "too large":
        array = array.astype(np.float64) * 1e300
    if how == "two biases":
        return [*layers[:i], (name, [*weights, ("b:0", np.zeros(32, "f4")), ("c:0", np.zeros(32, "f4"))]), *layers[i + 1 :]]
    if how == "bias":
        return [*layers[:i], (name, [*weights, ("b:0", np.zeros(32, "f4"))]), *layers[i + 1 :]]
    return [*layers[:i], (name, [(weights[0][0], array)]), *layers[i + 1 :]]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", "lacks the layer 'conv_pw_3'"),
        ("missing norm", "lacks the layer 'conv_dw_5_bn'"),
        ("extra", "the layer 'dense_7', which mobilenet_v1 does not have"),
        ("twice", "two layers called 'conv_pw_3'"),
        ("shape", r"'conv_pw_3' has a kernel of shape \(1, 1, 32, 31\), conv_pw_3 needs \(1, 1, 32, 32\)"),
        ("integers", "conv_pw_3.* as int32, expected floats"),
        ("NaN", "1 of 1024 numbers of conv_pw_3/kernel are NaN"),
        ("infinite", "1 of 1024 numbers of conv_pw_3/kernel are NaN or infinite"),
        ("too large", "1024 of 1024 numbers of conv_pw_3/kernel"),
        ("two biases", "'conv_pw_3' holds .* expected a 4-dimensional kernel and perhaps a bias"),
        ("bias", "'conv_pw_3' has a bias, conv_pw_3 has none"),
    ],
)
def test_what_is_wrong_with_a_layer_is_said_with_its_name(tmp_path, how, says):
    layers = break_layers(keras_weights(network(classes=None)[0]), how)
    if how == "twice":
        layers = [pair for pair in layers if pair[1] or pair[0] != "conv_pw_3"]
        write_keras(tmp_path / "x.h5", layers)
        with h5py.File(tmp_path / "x.h5", "a") as file:
            file.attrs["layer_names"] = np.append(file.attrs["layer_names"], b"conv_pw_3")
    else:
        write_keras(tmp_path / "x.h5", layers)
    with pytest.raises(MinitlError, match=says) as error:
        importers.read(tmp_path / "x.h5")
    assert "x.h5" in str(error.value)


def test_a_negative_variance_is_refused(tmp_path):
    graph, _ = network()
    graph.params["conv_dw_2_bn"]["moving_variance"][3] = -0.1
    with pytest.raises(MinitlError, match="conv_dw_2_bn/moving_variance holds a negative variance"):
        importers.read(write_keras(tmp_path / "x.h5", keras_weights(graph)))


def test_another_network_is_called_another_network(tmp_path):
    names = [f"res{stage}{block}_branch2{part}" for stage in "2345" for block in "ab" for part in "abc"]
    layers = [(name, [(f"{name}/kernel:0", np.zeros((1, 1, 4, 4), np.float32))]) for name in ["conv1", *names]]
    with pytest.raises(MinitlError, match=r"resnet.h5 is another network.* 1 of its 25 layers \(conv1, res2a_branch2a"):
        importers.read(write_keras(tmp_path / "resnet.h5", layers))
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["numbers"] = np.zeros(3)
    with pytest.raises(MinitlError, match=r"plain.h5 is not a file of Keras weights: its root has no layer_names"):
        importers.read(tmp_path / "plain.h5")
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros(3)
    with pytest.raises(MinitlError, match=r"does not say what the layer layers/conv2d is called"):
        importers.read(tmp_path / "x.weights.h5")


# ---- whole models


@pytest.mark.parametrize("keras", [2, 3])
@pytest.mark.parametrize(("architecture", "padding"), [("mobilenet_v1", "same"), ("mobilenet_v1", "keras"), ("mobilenet_v2", "same")])
def test_whole_models_are_recognised_with_all_that_their_configuration_says(tmp_path, architecture, keras, padding):
    graph, arrays = network(architecture, input_shape=[65, 97, 3], padding=padding)
    imported = importers.read(write_keras(tmp_path / "x.h5", keras_weights(graph), keras_config(graph, keras), vlen=keras == 3))
    equal(imported, arrays)
    assert imported.arguments["input_shape"] == [65, 97, 3] and imported.arguments["padding"] == padding
    assert imported.arguments["momentum"] == 0.99 and imported.arguments["epsilon"] == 1e-3


def anonymous(layers, config):
    """The same model under names that say nothing, as in MLPerf Tiny's file."""
    listed = [layer["name"] for layer in config["config"]["layers"]]
    new = {name: f"layer_{i}" for i, name in enumerate(listed)}
    text = json.dumps(config)
    for name in sorted(listed, key=len, reverse=True):
        text = text.replace(f'"{name}"', f'"{new[name]}"')
    return [(new[name], [(f"w{k}", a) for k, (_, a) in enumerate(weights)]) for name, weights in layers if name in new], json.loads(text)


def test_a_whole_model_is_recognised_whatever_its_layers_are_called(tmp_path):
    graph, arrays = network(activation="relu", use_bias=True, classes=2)
    imported = importers.read(write_keras(tmp_path / "x.h5", *anonymous(keras_weights(graph), keras_config(graph))))
    equal(imported, arrays)
    assert imported.arguments["use_bias"] and imported.arguments["activation"] == "relu"
    assert imported.recipe.mean == (0, 0, 0) and imported.recipe.std == (255, 255, 255) and imported.recipe.resize == "squash"


def change(config, name, **values):
    for layer in config["config"]["layers"]:
        if layer["name"] == name:
            layer["config"].update(values)


def reconnect(config, name, *inputs):
    for layer in config["config"]["layers"]:
        if layer["name"] == name:
            layer["inbound_nodes"] = [[[i, 0, 0, {}] for i in inputs]]


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda c: change(c, "block_3_depthwise", strides=[1, 1]), r"'block_3_depthwise' .*has strides \(1, 1\), .* needs \(2, 2\)"),
        (lambda c: change(c, "block_3_depthwise", padding="valid"), r"'block_3_depthwise' .*padding .*needs"),
        (lambda c: change(c, "block_3_depthwise", dilation_rate=[2, 2]), "dilated"),
        (lambda c: change(c, "block_3_depthwise", data_format="channels_first"), "channels_first"),
        (lambda c: change(c, "block_3_depthwise", activation="relu"), "does not follow a convolution|second|has the activation"),
        (lambda c: change(c, "block_3_depthwise_relu", max_value=None), "has the activation relu, block_3_depthwise needs relu6"),
        (lambda c: change(c, "block_3_depthwise_relu", max_value=4), "no plain ReLU"),
        (lambda c: change(c, "block_3_depthwise_BN", epsilon=1e-5), "BatchNorms differ"),
        (lambda c: change(c, "block_3_depthwise_BN", epsilon=10**400), "epsilon and momentum"),
        (lambda c: change(c, "block_3_depthwise_BN", axis=[1]), "normalises axis"),
        (lambda c: reconnect(c, "block_4_add", "block_2_add", "block_4_project_BN"), "'block_4_add' .*reads .*'block_2_add'"),
        (lambda c: reconnect(c, "block_4_add", "block_3_project_BN", "block_4_project"), "read before its BatchNorm"),
        (lambda c: reconnect(c, "block_4_add", "nowhere", "block_4_project_BN"), "reads 'nowhere', which does not come before"),
        (lambda c: reconnect(c, "block_4_expand", "block_2_add"), "'block_4_expand' .*reads"),
        (lambda c: c["config"]["layers"].pop(20), "reads .* which does not come before it"),
        (lambda c: c["config"]["layers"].append(dict(c["config"]["layers"][5])), "two layers called"),
        (lambda c: c["config"]["layers"][7].update(class_name="Lambda"), r"\(Lambda\) is of a kind that networks here do not have"),
        (lambda c: c["config"]["layers"][7].update(inbound_nodes=[[["Conv1", 0, 0, {}]]] * 2), "used twice"),
        (lambda c: c["config"]["layers"][0]["config"].update(batch_input_shape=[None, None, 64, 3]), "expected .null, height, width, 3."),
        (lambda c: c["config"]["layers"][0]["config"].update(batch_input_shape=[None, 9, 9, 3]), "input_shape"),
        (lambda c: c.update(class_name="MyOwn"), "it is a Keras 'MyOwn'"),
        (lambda c: c.update(class_name="Sequential"), r"\(Add\) reads layer"),
        (lambda c: c["config"].update(layers=[3]), "no layer"),
    ],
)
def test_a_configuration_that_is_only_similar_is_refused_by_the_name_of_the_layer(tmp_path, break_it, says):
    graph, _ = network("mobilenet_v2", input_shape=[64, 64, 3])
    config = keras_config(graph)
    break_it(config)
    with pytest.raises(MinitlError, match=says) as error:
        importers.read(write_keras(tmp_path / "x.h5", keras_weights(graph), config))
    assert "x.h5" in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", "[]", '{"class_name": "Functional"}', '{"config": {"layers": null}}'])
def test_a_configuration_that_is_no_json_or_no_model_is_refused(tmp_path, text):
    write_keras(tmp_path / "x.h5", keras_weights(network()[0]), {})
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file.attrs["model_config"] = text
    with pytest.raises(MinitlError, match=r"model_config is no JSON|expected a functional or sequential model"):
        importers.read(tmp_path / "x.h5")


# ---- published files


@needs_shared
def test_the_official_weights_arrive_bit_for_bit():
    imported = importers.read(WEIGHTS / "mobilenet_2_5_224_tf_no_top.h5")
    expected = {"alpha": 0.25, "input_shape": [224, 224, 3], "classes": None, "activation": "relu6", "batch_norm": True, "use_bias": False}
    assert imported.architecture == "mobilenet_v1" and expected.items() <= imported.arguments.items()
    assert (imported.arguments["epsilon"], imported.arguments["momentum"], imported.arguments["padding"]) == (1e-3, 0.99, "keras")
    assert imported.recipe.mean == imported.recipe.std == (127.5,) * 3 and imported.recipe.resize == "crop"
    assert imported.provenance["sha256"].startswith("dbdb03ee") and imported.classes is None
    with h5py.File(WEIGHTS / "mobilenet_2_5_224_tf_no_top.h5") as file:
        for name, array in imported.arrays.items():
            node, part = name.split("/")
            depthwise = node.startswith("conv_dw") and part == "kernel"
            theirs = file[f"{node}/{node}/{'depthwise_kernel' if depthwise else part}:0"][()]
            assert np.array_equal(theirs[..., 0] if depthwise else theirs, array), name
    print(f"{len(imported.arrays)} arrays, {sum(a.size for a in imported.arrays.values())} numbers, largest error 0")
    assert sum(a.size for a in imported.arrays.values()) == 218_544


@needs_shared
def test_the_person_detector_as_h5_and_as_tflite_is_the_same_function():
    """One file has BatchNorms and anonymous layers, the other had them folded by TensorFlow's converter."""
    with_norms, folded = importers.read(WEIGHTS / "vww_96.h5"), importers.read(WEIGHTS / "vww_96_float.tflite")
    assert with_norms.recipe == folded.recipe and with_norms.arguments["use_bias"] and not folded.arguments["batch_norm"]
    x = np.random.default_rng(0).random((4, 96, 96, 3), np.float32)
    ys = []
    for imported in (with_norms, folded):
        graph = architectures.build(imported.architecture, **imported.arguments).load(imported.arrays)
        ys.append(graph.evaluate(x)[graph.output])
    error = np.abs(ys[0] - ys[1]).max()
    print(f"logits of the .h5 and of the .tflite differ by at most {error:.2g} (largest logit {np.abs(ys[0]).max():.2g})")
    assert error < 1e-4


# ---- models inside of models


def nested(graph, how):
    """(layers, config) of a MobileNetV2 as Keras 2 stores its backbone inside of another model: its trainable arrays first."""
    layers, config = keras_weights(graph), keras_config(graph)["config"]["layers"]
    at = next(i for i, layer in enumerate(config) if layer["class_name"] == "GlobalAveragePooling2D")
    base, ends = config[:at], config[at:]
    inner = {"name": "base", "layers": base, "input_layers": [["input_1", 0, 0]], "output_layers": [[base[-1]["name"], 0, 0]]}
    model = {"class_name": "Functional", "name": "base", "config": inner, "inbound_nodes": [[["input_1", 0, 0, {}]]]}
    arrays = [pair for name, weights in layers if name != "predictions" for pair in weights]
    arrays.sort(key=lambda pair: "moving" in pair[0])
    head = dict(layers)["predictions"]
    groups = [("input_1", []), ("base", arrays), (ends[0]["name"], []), ("predictions", head)]
    if how == "sequential":
        outer = [model, *ends]
        return groups, {"class_name": "Sequential", "config": {"name": "s", "layers": outer}}
    ends[0]["inbound_nodes"] = [[["base", 1, 0, {}]]]  # its second call: the first was its own making
    return groups, {"class_name": "Functional", "config": {"name": "f", "layers": [dict(base[0]), model, *ends]}}


@pytest.mark.parametrize("how", ["sequential", "functional"])
def test_a_backbone_inside_of_another_model_is_found(tmp_path, how):
    graph, arrays = network("mobilenet_v2", input_shape=[64, 64, 3])
    imported = importers.read(write_keras(tmp_path / "x.h5", *nested(graph, how)))
    equal(imported, arrays)
    assert imported.architecture == "mobilenet_v2" and imported.arguments["input_shape"] == [64, 64, 3]


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda c: c["layers"][1]["config"].update(output_layers=[["Conv_1", 0, 0], ["block_1_add", 0, 0]]), "has the outputs"),
        (lambda c: c["layers"][1]["config"].update(output_layers=None), "has the outputs None"),
        (lambda c: c["layers"][1].update(inbound_nodes=[[["nowhere", 0, 0, {}]]]), "inside of it reads"),
        (lambda c: c["layers"][1].update(inbound_nodes=[[["input_1", 0, 0, {}]]] * 2), "used twice"),
        (lambda c: c["layers"][1]["config"].update(layers=[]), "expected a functional or sequential model with layers"),
        (lambda c: c["layers"][1]["config"].update(output_layers=[["block_1_expand", 0, 0]]), "read before its BatchNorm"),
    ],
)
def test_a_model_inside_of_another_that_cannot_be_followed_is_refused(tmp_path, break_it, says):
    layers, config = nested(network("mobilenet_v2", input_shape=[64, 64, 3])[0], "functional")
    break_it(config["config"])
    with pytest.raises(MinitlError, match=says):
        importers.read(write_keras(tmp_path / "x.h5", layers, config))
