"""The networks: names, sizes and work against published figures; numbers and gradients against PyTorch twins written here.

The twins know the networks from their papers and from Keras' or torchvision's names alone: they share the parameters with ours and nothing
else. VGG16 and InceptionV3 are compared with Keras itself, in test_peers_keras.py.
"""

import math

import numpy as np
import pytest
from gradients import relative_error
from peers import pytorch

from minitl import kernels, reference
from minitl.architectures import ARCHITECTURES, blocks, build, complete, feature_node, parameters
from minitl.errors import MinitlError
from minitl.layers import Add, BatchNorm, Conv2D, Dense, DepthwiseConv2D, Dropout, ReLU, ReLU6

# alpha: parameters without classifier; 10^6 multiply-accumulates without classifier at 96, 128 and 224 pixels; features
PUBLISHED = {
    ("mobilenet_v1", 0.25): (218_544, "7.49", "13.3", "40.8", 256),
    ("mobilenet_v1", 0.5): (829_536, "27.4", "48.6", "149", 512),
    ("mobilenet_v1", 0.75): (1_832_976, "59.6", "106", "325", 768),
    ("mobilenet_v1", 1.0): (3_228_864, "104", "185", "568", 1024),
    ("mobilenet_v2", 0.35): (410_208, "10.7", "18.9", "58.0", 1280),
    ("mobilenet_v2", 0.5): (706_224, "17.6", "31.3", "95.9", 1280),
    ("mobilenet_v2", 0.75): (1_382_064, "38.2", "67.8", "208", 1280),
    ("mobilenet_v2", 1.0): (2_257_984, "55.0", "97.8", "299", 1280),
    ("mobilenet_v2", 1.3): (3_766_048, "93.3", "166", "508", 1664),
    ("mobilenet_v2", 1.4): (4_363_712, "107", "190", "580", 1792),
}
V2_RESIDUALS = (2, 4, 5, 7, 8, 9, 11, 12, 14, 15)
V2_STRIDES = (1, 3, 6, 13)
V1_STRIDES = (2, 4, 6, 12)
WIDTHS = {"mobilenet_v1": 0.25, "mobilenet_v2": 0.35}
networks = pytest.mark.parametrize("architecture", list(WIDTHS))


@pytest.mark.parametrize(("architecture", "alpha"), list(PUBLISHED))
def test_parameters_work_and_features_are_the_published_ones(architecture, alpha):
    parameters, *work, features = PUBLISHED[architecture, alpha]
    for size, expected in zip((96, 128, 224), work, strict=True):
        graph = build(architecture, alpha=alpha, input_shape=[size, size, 3], classes=None)
        counted = sum(node.layer.macs(*graph.input_shapes(node)) for node in graph.nodes)
        digits = 2 - math.floor(math.log10(counted / 1e6))  # three significant ones
        assert round(counted / 1e6, digits) == float(expected)
        assert sum(math.prod(s) for of_node in graph.param_shapes().values() for s in of_node.values()) == parameters
        assert graph.shapes[graph.output] == (features,)


def test_the_classifier_adds_a_dense_layer_with_bias():
    graph = build("mobilenet_v1")
    assert sum(math.prod(s) for of_node in graph.param_shapes().values() for s in of_node.values()) == 4_253_864  # Keras' summary
    graph = build("mobilenet_v2")
    assert sum(math.prod(s) for of_node in graph.param_shapes().values() for s in of_node.values()) == 3_538_984


def keras_names_v1():
    names = ["conv1", "conv1_bn", "conv1_relu"]
    for i in range(1, 14):
        names += [f"conv_{kind}_{i}{part}" for kind in ("dw", "pw") for part in ("", "_bn", "_relu")]
    return [*names, "global_average_pooling2d", "dropout", "conv_preds"]


def keras_names_v2():
    names = ["Conv1", "bn_Conv1", "Conv1_relu"]
    for i in range(17):
        block = f"block_{i}" if i else "expanded_conv"
        names += [f"{block}_expand", f"{block}_expand_BN", f"{block}_expand_relu"] if i else []
        names += [f"{block}_depthwise", f"{block}_depthwise_BN", f"{block}_depthwise_relu", f"{block}_project", f"{block}_project_BN"]
        names += [f"{block}_add"] if i in V2_RESIDUALS else []
    return [*names, "Conv_1", "Conv_1_bn", "out_relu", "global_average_pooling2d", "dropout", "predictions"]


@pytest.mark.parametrize(("architecture", "names"), [("mobilenet_v1", keras_names_v1()), ("mobilenet_v2", keras_names_v2())])
def test_nodes_have_keras_names_in_keras_order(architecture, names):
    for alpha in (0.35, 0.5, 1.0, 1.4):
        assert [node.name for node in build(architecture, alpha=alpha).nodes] == names


def test_the_first_block_of_v2_is_residual_where_rounding_makes_it_as_wide_as_the_stem():
    graph = build("mobilenet_v2", alpha=0.25)
    assert graph["expanded_conv_add"].inputs == ("Conv1_relu", "expanded_conv_project_BN")
    assert [node.name for node in graph.nodes if node.name != "expanded_conv_add"] == keras_names_v2()


def test_v2_widths_are_the_rounded_ones_of_the_paper():
    for alpha, stem, widths in [
        (0.35, 16, (8, 8, 16, 24, 32, 56, 112)),
        (0.5, 16, (8, 16, 16, 32, 48, 80, 160)),
        (0.75, 24, (16, 24, 24, 48, 72, 120, 240)),
        (1.0, 32, (16, 24, 32, 64, 96, 160, 320)),
        (1.3, 40, (24, 32, 40, 80, 128, 208, 416)),
        (1.4, 48, (24, 32, 48, 88, 136, 224, 448)),
    ]:
        shapes = build("mobilenet_v2", alpha=alpha).shapes
        assert shapes["Conv1"] == (112, 112, stem)
        firsts = ["expanded_conv", "block_1", "block_3", "block_6", "block_10", "block_13", "block_16"]
        assert [shapes[f"{block}_project"] for block in firsts] == [
            (size, size, width) for size, width in zip((112, 56, 28, 14, 14, 7, 7), widths, strict=True)
        ]
        assert shapes["block_13_expand"][2] == 6 * widths[4]


@networks
def test_every_size_from_32_is_accepted_with_every_padding(architecture):
    for padding in ("same", "keras", "torch"):
        for height in (*range(32, 100), 128, 200, 224, 256, 4096):
            shapes = build(architecture, alpha=0.25, input_shape=[height, 4128 - height, 3], padding=padding).shapes
            if padding != "keras":
                assert shapes[keras_names_v1()[-4] if architecture == "mobilenet_v1" else "out_relu"][0] == math.ceil(height / 32)


@networks
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 97), (128, 96)])
def test_the_value_of_every_node_has_the_shape_that_the_graph_says(architecture, size):
    for padding in ("same", "keras", "torch"):
        graph = build(architecture, alpha=WIDTHS[architecture], input_shape=[*size, 3], classes=7, padding=padding).initialise(0)
        x = np.random.default_rng(1).standard_normal((2, *size, 3)).astype(np.float32)
        values = graph.evaluate(x, [node.name for node in graph.nodes])
        assert {name: value.shape[1:] for name, value in values.items()} == {n.name: graph.shapes[n.name] for n in graph.nodes}
        assert all(np.isfinite(value).all() and value.dtype == np.float32 for value in values.values())


# ---- PyTorch


def padded(functional, x, stride, rule):
    """Room for a 3x3 window: 'same' puts one pixel before only at odd sizes, 'keras' never at stride 2, 'torch' always."""

    def before(size):
        return {"same": size % 2, "keras": 0, "torch": 1}[rule] if stride == 2 else 1

    return functional.pad(x, (before(x.shape[3]), 1, before(x.shape[2]), 1))


class TorchTwin:
    def __init__(self, torch, arrays, padding, training):
        self.functional, self.padding, self.training = torch.nn.functional, padding, training
        self.p = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}

    def norm(self, x, name):
        gamma, beta, mean, variance = (self.p[f"{name}/{part}"] for part in ("gamma", "beta", "moving_mean", "moving_variance"))
        return self.functional.batch_norm(x, mean.detach(), variance.detach(), gamma, beta, self.training, 0.0, 1e-3)

    def conv(self, x, name, stride=1, padding=None):
        kernel = self.p[f"{name}/kernel"].permute(3, 2, 0, 1)
        return self.functional.conv2d(
            padded(self.functional, x, stride, padding or self.padding) if kernel.shape[2] == 3 else x, kernel, None, stride
        )

    def depthwise(self, x, name, stride):
        kernel = self.p[f"{name}/kernel"].permute(2, 0, 1)[:, None]
        return self.functional.conv2d(padded(self.functional, x, stride, self.padding), kernel, None, stride, groups=len(kernel))

    def mobilenet_v1(self, x):
        relu6 = self.functional.relu6
        x = relu6(self.norm(self.conv(x, "conv1", 2, "same" if self.padding == "keras" else None), "conv1_bn"))
        for i in range(1, 14):
            x = relu6(self.norm(self.depthwise(x, f"conv_dw_{i}", 2 if i in V1_STRIDES else 1), f"conv_dw_{i}_bn"))
            x = relu6(self.norm(self.conv(x, f"conv_pw_{i}"), f"conv_pw_{i}_bn"))
        return x.mean((2, 3)) @ self.p["conv_preds/kernel"] + self.p["conv_preds/bias"]

    def mobilenet_v2(self, x):
        relu6 = self.functional.relu6
        if self.padding == "keras":
            self.padding = "same"
        x = relu6(self.norm(self.conv(x, "Conv1", 2), "bn_Conv1"))
        for i in range(17):
            block, before = f"block_{i}" if i else "expanded_conv", x
            if i:
                x = relu6(self.norm(self.conv(x, f"{block}_expand"), f"{block}_expand_BN"))
            x = relu6(self.norm(self.depthwise(x, f"{block}_depthwise", 2 if i in V2_STRIDES else 1), f"{block}_depthwise_BN"))
            x = self.norm(self.conv(x, f"{block}_project"), f"{block}_project_BN")
            x = x + before if i in V2_RESIDUALS else x
        x = relu6(self.norm(self.conv(x, "Conv_1"), "Conv_1_bn"))
        return x.mean((2, 3)) @ self.p["predictions/kernel"] + self.p["predictions/bias"]


def trained_like(graph, seed=3):
    """Statistics, scales and shifts of every size, so that none can be forgotten unnoticed, and activations at both bounds."""
    rng = np.random.default_rng(seed)
    residual = any(isinstance(node.layer, Add) for node in graph.nodes)  # sums grow, and with them what rounding costs
    for node in graph.nodes:
        for name, array in graph.params.get(node.name, {}).items():
            if name in ("gamma", "moving_variance"):
                array[...] = rng.uniform(0.5, 1.6 if name == "gamma" and not residual else 1.25, array.shape)
            elif name != "kernel":
                array[...] = rng.standard_normal(array.shape) / 4
    return graph


@networks
@pytest.mark.parametrize(("size", "padding"), [((64, 64), "same"), ((97, 50), "same"), ((97, 50), "keras"), ((64, 49), "torch")])
def test_logits_are_those_of_pytorch(architecture, size, padding):
    torch = pytorch()
    graph = build(architecture, alpha=WIDTHS[architecture], input_shape=[*size, 3], classes=10, padding=padding).initialise(1)
    x = np.random.default_rng(2).standard_normal((3, *size, 3)).astype(np.float32)
    twin = TorchTwin(torch, trained_like(graph).arrays(), padding, training=False)
    expected = getattr(twin, architecture)(torch.tensor(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    errors = [relative_error(graph.evaluate(x, ops=ops)[graph.output], expected) for ops in (reference, kernels)]
    print(f"{architecture} {size} {padding}: reference {errors[0]:.1e}, kernels {errors[1]:.1e}")
    assert max(errors) < 1e-5


@networks
@pytest.mark.parametrize(("padding", "training"), [("same", True), ("same", False), ("keras", True), ("torch", False)])
def test_gradients_of_all_parameters_are_those_of_pytorch(architecture, padding, training):
    """training False: every BatchNorm is frozen and runs on stored statistics, everything else trains."""
    torch = pytorch()
    shape = (3, 50, 35, 3)
    graph = build(architecture, alpha=WIDTHS[architecture], input_shape=shape[1:], classes=4, padding=padding).initialise(1)
    graph = trained_like(graph).astype(np.float64)
    norms = [node.name for node in graph.nodes if isinstance(node.layer, BatchNorm)]
    for name in [] if training else norms:
        graph.freeze("=" + name)
    x, targets = np.random.default_rng(2).standard_normal(shape), np.eye(4)[[0, 2, 1]]
    logits, tape = graph.forward(x)
    losses, dlogits = kernels.softmax_cross_entropy(logits, targets)
    grads = graph.backward(dlogits, tape)

    twin = TorchTwin(torch, graph.arrays(), padding, training)
    loss = torch.nn.functional.cross_entropy(
        getattr(twin, architecture)(torch.tensor(x.transpose(0, 3, 1, 2).copy())), torch.tensor(targets)
    )
    loss.backward()
    assert abs(losses.mean() - loss.item()) < 1e-9 * abs(loss.item())
    found = {f"{node}/{name}": array for node, of_node in grads.items() for name, array in of_node.items()}
    frozen = [] if training else norms
    theirs = {name: tensor.grad.numpy() for name, tensor in twin.p.items() if tensor.grad is not None}
    expected = {name: array for name, array in theirs.items() if name.split("/")[0] not in frozen}
    assert found.keys() == expected.keys() and len(found) == len(graph.arrays()) - (2 if training else 4) * len(norms)
    # A shift that the next BatchNorm removes has no gradient but rounding: below 1e-6 of the largest, differences are measured by that.
    floor = 1e-6 * max(np.abs(array).max() for array in expected.values())
    errors = {name: relative_error(found[name], expected[name], floor) for name in found}
    worst = max(errors, key=lambda name: errors[name])
    print(f"{architecture} {padding} {'batch' if training else 'stored'} statistics: largest {errors[worst]:.1e} in {worst}")
    assert errors[worst] < 1e-8


# ---- choices


@networks
def test_odd_sizes_tell_the_padding_families_apart_and_even_ones_only_torch(architecture):
    def logits(size, padding):
        graph = build(architecture, alpha=WIDTHS[architecture], input_shape=[size, size, 3], classes=5, padding=padding).initialise(1)
        return trained_like(graph).evaluate(np.random.default_rng(2).standard_normal((1, size, size, 3)).astype(np.float32))[graph.output]

    for size, differ in [(64, False), (50, architecture == "mobilenet_v1")]:  # 50 -> 25: odd where a block strides
        assert np.array_equal(logits(size, "same"), logits(size, "keras")) != differ
        assert not np.allclose(logits(size, "same"), logits(size, "torch"))


@networks
def test_a_folded_network_has_biases_and_no_normalisation(architecture):
    plain, folded = (build(architecture, batch_norm=flag, classes=3) for flag in (True, False))
    assert not any(isinstance(node.layer, BatchNorm) for node in folded.nodes)
    assert [n.name for n in folded.nodes] == [n.name for n in plain.nodes if not isinstance(n.layer, BatchNorm)]
    assert all(set(of_node) == {"kernel", "bias"} for of_node in folded.param_shapes().values())
    biased = build(architecture, use_bias=True, classes=3).param_shapes()
    assert {name for name, of_node in biased.items() if "bias" in of_node} == folded.param_shapes().keys()


@networks
def test_activation_dropout_epsilon_and_momentum_reach_every_layer(architecture):
    graph = build(architecture, activation="relu", dropout=0.25, epsilon=1e-5, momentum=0.9)
    kinds = {type(node.layer) for node in graph.nodes}
    assert ReLU in kinds and ReLU6 not in kinds
    assert {(n.layer.epsilon, n.layer.momentum) for n in graph.nodes if isinstance(n.layer, BatchNorm)} == {(1e-5, 0.9)}
    assert [n.layer.rate for n in graph.nodes if isinstance(n.layer, Dropout)] == [0.25]
    assert {type(node.layer) for node in build(architecture).nodes} >= {Conv2D, DepthwiseConv2D, Dense, ReLU6}
    defaults = {(n.layer.epsilon, n.layer.momentum) for n in build(architecture).nodes if isinstance(n.layer, BatchNorm)}
    assert defaults == {(1e-3, 0.99 if architecture == "mobilenet_v1" else 0.999)}


@networks
def test_features_are_the_pooled_image_with_or_without_a_classifier(architecture):
    assert feature_node(architecture) == "global_average_pooling2d" == build(architecture, classes=None).output
    graph = build(architecture, classes=7)
    assert graph.shapes[graph.output] == (7,)
    assert graph[graph["dropout"].inputs[0]].name == feature_node(architecture)


@networks
def test_hidden_layers_stand_between_the_features_and_the_classifier(architecture):
    plain, deep = build(architecture, classes=5), build(architecture, classes=5, hidden=[16, 8], dropout=0.3)
    before, last = [node.name for node in plain.nodes[:-1]], plain.output
    added = [f"hidden_{i}{part}" for i in (1, 2) for part in ("", "_relu", "_dropout")]
    assert [node.name for node in deep.nodes] == [*before, *added, last] and before[-2:] == [feature_node(architecture), "dropout"]
    assert [deep.shapes[f"hidden_{i}"] for i in (1, 2)] == [(16,), (8,)] and deep.shapes[last] == (5,)
    assert [node.layer.rate for node in deep.nodes if isinstance(node.layer, Dropout)] == [0.3] * 3
    assert build(architecture, classes=5, hidden=()).nodes == build(architecture, classes=5, hidden=[]).nodes == plain.nodes
    assert [n.name for n in build(architecture, classes=None, hidden=[16]).nodes] == before[:-1]


@networks
def test_complete_arguments_build_the_same_network_again(architecture):
    given = {"alpha": 0.5, "input_shape": [96, 64, 3], "classes": 3}
    full = complete(architecture, given)
    assert full.items() >= given.items() and {"padding", "epsilon", "momentum", "activation", "batch_norm"} <= full.keys()
    assert build(architecture, **full).nodes == build(architecture, **given).nodes


def test_v2_adds_only_where_shapes_agree():
    graph = build("mobilenet_v2", alpha=0.35)
    adds = [node for node in graph.nodes if isinstance(node.layer, Add)]
    assert [node.name for node in adds] == [f"block_{i}_add" for i in V2_RESIDUALS]
    for node in adds:
        i = int(node.name.split("_")[1])
        before = f"block_{i - 1}_add" if i - 1 in V2_RESIDUALS else f"block_{i - 1}_project_BN"
        assert node.inputs == (before, f"block_{i}_project_BN")


# ---- hostile arguments

NESTED = [[[[[[[[1]]]]]]]]
NEVER = ["1", "", None, True, math.nan, math.inf, -math.inf, -1, 10**400, -(10**400), 1e308, [], {}, NESTED, [1.0], b"1", 1j, object()]
HOSTILE = {
    "alpha": [*NEVER, 0, 0.01, 4.01],
    "input_shape": [
        *NEVER, 96, "96x96x3", [96, 96], [96, 96, 3, 1], [96.0, 96, 3], [96, "96", 3], [True, 96, 3], [96, 96, 0], [96, 96, True],
        [31, 96, 3], [96, 31, 3], [96, 4097, 3],
        [96, 96, 65], [10**400, 96, 3], [-96, -96, 3], [math.nan, 96, 3], [[96], 96, 3], {96: 1, 97: 1, 3: 1},
    ],
    "classes": [*(v for v in NEVER if v is not None), 0, 2.5, 100_001, [10]],
    "activation": [*NEVER, "swish", "RELU6", ["relu6"]],
    "batch_norm": [v for v in NEVER if v is not True] + [0, 1],
    "use_bias": [v for v in NEVER if v is not True] + [0, 1],
    "epsilon": [*NEVER, 0, 1.5],
    "momentum": [*NEVER, 1.01],
    "padding": [*NEVER, "valid", "SAME", ["same"], (0, 1, 0, 1), [0, 1, 0, 1]],
    "dropout": [*NEVER, 0.991],
    "top": [v for v in NEVER if v is not True] + [0, 1],
    "cut": [v for v in NEVER if v is not None and not isinstance(v, str)],
    "hidden": [*(v for v in NEVER if v != []), 128, "128", [0], [-1], [4097], [8.0], [True], [None], [[8]], [10**400], [8] * 5, {8: 8}],
}  # fmt: skip


@pytest.mark.parametrize(("architecture", "argument"), [(network, name) for network in ARCHITECTURES for name in parameters(network)])
def test_hostile_arguments_are_refused_by_name(architecture, argument):
    for value in HOSTILE[argument]:
        with pytest.raises(MinitlError, match=f"argument {argument} of the network must be") as refusal:
            build(architecture, **{argument: value})
        assert len(str(refusal.value)) < 250, "the message repeats the value at length"


@pytest.mark.parametrize("call", [build, feature_node, lambda name, **arguments: complete(name, arguments)])
@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("resnet50", {}, "'resnet50' is unknown; minitl has mobilenet_v1, mobilenet_v2"),
        ("", {}, "unknown"),
        (None, {}, "unknown"),
        (["mobilenet_v1"], {}, "unknown"),
        ({}, {}, "unknown"),
        (1, {}, "unknown"),
        ("mobilenet_v1", {"width": 1}, "no argument 'width'; it has alpha, input_shape"),
        ("mobilenet_v2", {"architecture": "mobilenet_v1"}, "no argument 'architecture'"),
        ("mobilenet_v2", {"self": 1, "__class__": 2}, "no argument '__class__'"),
    ],
)
def test_unknown_networks_and_arguments_are_refused_with_the_known_ones(call, name, arguments, words):
    with pytest.raises(MinitlError, match=words):
        call(name, **arguments)


@pytest.mark.parametrize(
    ("architecture", "count"), [("mobilenet_v1", 15), ("mobilenet_v2", 20), ("vgg16", 6), ("inception_v3", 13), ("resnet18", 10)]
)
def test_blocks_cover_a_network_in_order(architecture, count):
    found = blocks(architecture, alpha=0.25, classes=3)
    assert [name for names in found.values() for name in names] == [node.name for node in build(architecture, alpha=0.25, classes=3).nodes]
    assert len(found) == count and list(found)[-1] == "classifier" and found["classifier"][0] == feature_node(architecture)


# ---- other networks


def size_of(graph):
    return sum(math.prod(shape) for of_node in graph.param_shapes().values() for shape in of_node.values())


@pytest.mark.parametrize(
    ("architecture", "arguments", "expected"),
    [
        ("vgg16", {"top": True}, 138_357_544),  # Keras' summary
        ("vgg16", {"classes": None}, 14_714_688),
        ("inception_v3", {}, 23_851_784),
        ("inception_v3", {"classes": None}, 21_802_784),
        ("resnet18", {}, 11_689_512 + 9_600),  # torchvision's, and the statistics of its BatchNorms
    ],
)
def test_the_number_of_parameters_is_the_published_one(architecture, arguments, expected):
    assert size_of(build(architecture, **arguments)) == expected


@pytest.mark.parametrize("architecture", ["vgg16", "inception_v3", "resnet18"])
def test_networks_take_any_size_and_width_and_every_value_has_the_shape_that_the_graph_says(architecture):
    for size in [(75, 96), (81, 77)]:
        graph = build(architecture, alpha=0.06, input_shape=[*size, 3], classes=7, hidden=[5]).initialise(0)
        x = np.random.default_rng(1).standard_normal((2, *size, 3)).astype(np.float32)
        values = graph.evaluate(x, [node.name for node in graph.nodes])
        assert {name: value.shape[1:] for name, value in values.items()} == {n.name: graph.shapes[n.name] for n in graph.nodes}
        assert all(np.isfinite(value).all() for value in values.values())
    with pytest.raises(MinitlError, match="use a larger input"):
        build("inception_v3", input_shape=[74, 74, 3])


def torchvision_resnet18(torch, alpha):
    """ResNet18 as torchvision structures it, written anew."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            if stride > 1:
                self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))

    class ResNet18(nn.Module):
        def __init__(self):
            super().__init__()
            widths = [int(c * alpha) for c in (64, 64, 128, 256, 512)]
            self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(widths[0])
            for i in range(1, 5):
                stage = nn.Sequential(Block(widths[i - 1], widths[i], 1 if i == 1 else 2), Block(widths[i], widths[i], 1))
                setattr(self, f"layer{i}", stage)
            self.fc = nn.Linear(widths[4], 5)

        def forward(self, x):
            x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
            return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))

    return ResNet18()


PARTS = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}


def as_torch(array):
    return array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


@pytest.mark.parametrize("training", [True, False])
def test_resnet18_is_torchvisions(training):
    torch = pytorch()
    graph = trained_like(build("resnet18", alpha=0.25, input_shape=[64, 49, 3], classes=5).initialise(1)).astype(np.float64)
    twin = torchvision_resnet18(torch, 0.25).double().train(training)
    state = {}
    for node, of_node in graph.params.items():
        for name, array in of_node.items():
            state[f"{node.replace('_', '.')}.{PARTS.get(name, 'running_var')}"] = torch.tensor(as_torch(array).copy())
    assert state.keys() == {name for name in twin.state_dict() if not name.endswith("tracked")}
    twin.load_state_dict(state, strict=False)
    if not training:
        for node in graph.nodes:
            graph.frozen |= {node.name: True} if isinstance(node.layer, BatchNorm) else {}
    x, dy = np.random.default_rng(2).standard_normal((3, 64, 49, 3)), np.random.default_rng(3).standard_normal((3, 5))
    y, tape = graph.forward(x)
    grads = graph.backward(dy, tape)
    expected = twin(torch.tensor(x.transpose(0, 3, 1, 2).copy()))
    (expected * torch.tensor(dy)).sum().backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in twin.named_parameters()}
    floor = 1e-6 * max(np.abs(array).max() for array in theirs.values())
    errors = [relative_error(y, expected.detach().numpy())]
    for node, of_node in grads.items():
        for name, array in of_node.items():
            errors.append(relative_error(as_torch(array), theirs[f"{node.replace('_', '.')}.{PARTS[name]}"], floor))
    print(f"resnet18: largest {max(errors):.1e} of {len(errors)}")
    assert max(errors) < 1e-8 and len(errors) == 1 + (62 if training else 22)


# ---- ending earlier


def test_a_network_ends_at_any_layer_that_it_has():
    whole, cut = build("inception_v3", classes=None), build("inception_v3", cut="mixed7", classes=3, hidden=[1024])
    names = [node.name for node in whole.nodes]
    assert [node.name for node in cut.nodes] == [
        *names[: names.index("mixed7") + 1], "avg_pool", "dropout", "hidden_1", "hidden_1_relu", "hidden_1_dropout", "predictions",
    ]  # fmt: skip
    assert cut.shapes["mixed7"] == (17, 17, 768) and cut.shapes["hidden_1"] == (1024,)
    assert list(blocks("inception_v3", cut="mixed7"))[-2:] == ["mixed7", "classifier"]
    inside = [node.name for node in build("inception_v3", cut="activation_7", classes=None).nodes]  # in one branch of mixed0
    assert "activation_7" in inside and "activation_5" not in inside and inside[-1] == "avg_pool"


def test_every_layer_of_every_network_can_be_the_last_one():
    for architecture in ARCHITECTURES:
        for node in build(architecture, alpha=0.1, input_shape=[96, 96, 3], classes=None).nodes:
            arguments = {"alpha": 0.1, "input_shape": [96, 96, 3], "cut": node.name}
            graph, feature = build(architecture, classes=4, **arguments), feature_node(architecture, **arguments)
            assert graph.shapes[graph.output] == (4,) and len(graph.shapes[feature]) == 1
            listed = [name for block in blocks(architecture, classes=4, **arguments).values() for name in block]
            assert listed == [node.name for node in graph.nodes]


def test_a_layer_that_keras_lists_with_its_activation_is_taken_with_it():
    assert build("vgg16", cut="block5_conv3", classes=None)["global_average_pooling2d"].inputs == ("block5_conv3_relu",)
    assert feature_node("vgg16", cut="fc1", top=True) == "fc1_relu" == build("vgg16", cut="fc1", top=True, classes=None).output


def test_an_unknown_layer_to_end_at_is_refused_with_those_that_are_like_it():
    with pytest.raises(MinitlError, match="no layer 'mixed11'; did you mean mixed1"):
        build("inception_v3", cut="mixed11")
    with pytest.raises(MinitlError, match="no layer 'fc1'"):
        build("vgg16", cut="fc1")


def test_only_a_network_that_was_cut_says_so():
    assert "cut" not in complete("vgg16", {}) and "cut" not in complete("vgg16", {"cut": None})
    assert complete("vgg16", {"cut": "block4_pool"})["cut"] == "block4_pool"
