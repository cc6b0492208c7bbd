"""Models small enough for tests: MobileNetV1 0.1 at 32 x 32, random weights with a seed, and pictures for it; a quantised .tflite."""

import numpy as np

from minitl.graph import INPUT, Graph, Node
from minitl.layers import BatchNorm, Dense, GlobalAveragePool
from minitl.model import Model, find

SMALL = "random:mobilenet_v1_0.1_32"
SMALL_V2 = "random:mobilenet_v2_0.35_32"


def pixels(count, seed=0, size=32):
    """Photos (count, size, size, 3) uint8 of soft blobs, whose values spread over all of 0..255."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, size // 8, size // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def stir(graph: Graph, seed=1) -> Graph:
    """Give BatchNorms and biases values as after a training: nothing is 0, 1 or the same for all channels."""
    rng = np.random.default_rng(seed)
    for params in graph.params.values():
        for name, array in params.items():
            if name != "kernel":
                low, high = {"gamma": (0.7, 1.3), "moving_variance": (0.5, 1.5)}.get(name, (-0.2, 0.3))
                params[name] = rng.uniform(low, high, array.shape).astype(array.dtype)
    return graph


def settle(graph: Graph, x) -> Graph:
    """Set the statistics of each BatchNorm to those of its own input for the images x, so that values keep their size."""
    for node in graph.nodes:
        if isinstance(node.layer, BatchNorm):
            value = x if node.inputs[0] == INPUT else graph.evaluate(x, [node.inputs[0]])[node.inputs[0]]
            flat = value.reshape(-1, value.shape[-1]).astype(np.float64)
            graph.params[node.name]["moving_mean"] = flat.mean(axis=0).astype(np.float32)
            graph.params[node.name]["moving_variance"] = (flat.var(axis=0) + 1e-3).astype(np.float32)
    return graph


def model(classes=("cat", "dog", "cow"), name=SMALL, calibrated=True) -> Model:
    """A model with a classifier, everything but that frozen, and calibrated."""
    made = find(name).replace_head(list(classes), seed=3).freeze("all")
    settle(stir(made.graph), made.recipe.normalise(pixels(8)))
    return made.calibrate(pixels(8)) if calibrated else made


def chain(*layers, end=True):
    """Nodes from (name, layer, *inputs); without inputs a node reads the one before it. end: pool and a dense layer to 3 logits."""
    nodes = []
    for name, layer, *inputs in (*layers, *((("pool", GlobalAveragePool()), ("logits", Dense(3))) if end else ())):
        nodes.append(Node(name, layer, tuple(inputs) or (nodes[-1].name if nodes else INPUT,)))
    return nodes


def quantised_file(dtype="int8", seed=0, shape=(16, 16, 3), last=None, softmax=True):
    """Bytes of a .tflite that is int8 or uint8 throughout: three convolutions with a residual, three classes. last: one more operator."""
    from test_importers_tflite_int8 import Net

    net = Net(shape, dtype, seed, zero={"int8": -128, "uint8": 0}[dtype])
    net.conv(8, strides=(2, 2), fused="relu")
    before = net.conv(8, (1, 1), fused="relu6")
    net.add(before, net.conv(8, depthwise=True))
    if last:
        net.unary(last)
    net.mean()
    net.dense(3)
    if softmax:
        net.unary("SOFTMAX", scale=[1 / 256], zero_point=[net.low])
    return net.file.bytes()
