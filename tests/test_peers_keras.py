"""The networks of keras.applications with random weights: logits and gradients of all parameters are Keras' (on PyTorch).

The parameters go over by the names of the layers, so these are proved, too. Keras has no width multiplier for VGG16 and InceptionV3:
they come whole, on small images.
"""

import os

import numpy as np
import pytest
from gradients import relative_error
from peers import pytorch

from minitl import kernels, kernels_fast
from minitl.architectures import build
from minitl.layers import BatchNorm

os.environ.setdefault("KERAS_BACKEND", "torch")

NETWORKS = {
    "mobilenet_v1": ("MobileNet", 64, {"alpha": 0.25, "padding": "keras"}),
    "mobilenet_v2": ("MobileNetV2", 64, {"alpha": 0.35}),
    "vgg16": ("VGG16", 32, {"top": True}),
    "inception_v3": ("InceptionV3", 107, {}),
}
CLASSES = 5


def keras_twin(architecture, dtype):
    """(Keras' network without softmax, and ours) with the same random parameters, and statistics that are not 0 and 1."""
    pytorch()
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("keras runs on another backend; KERAS_BACKEND=torch is tested")
    name, size, arguments = NETWORKS[architecture]
    keras.utils.clear_session()
    keras.config.set_dtype_policy(np.dtype(dtype).name)
    width = {"alpha": arguments["alpha"]} if "alpha" in arguments else {}
    try:  # those with a global pool end in features, since Keras builds their classifiers for some sizes only
        base = getattr(keras.applications, name)(
            input_shape=(size, size, 3), include_top=architecture == "vgg16", weights=None, classifier_activation=None, **width,
            **({"classes": CLASSES} if architecture == "vgg16" else {"pooling": "avg"}),
        )  # fmt: skip
    finally:
        keras.config.set_dtype_policy("float32")
    graph = build(architecture, input_shape=[size, size, 3], classes=CLASSES if architecture == "vgg16" else None, **arguments).initialise(
        1
    )
    rng = np.random.default_rng(3)
    for params in graph.params.values():
        for part, array in params.items():
            if part in ("gamma", "moving_variance"):
                array[...] = rng.uniform(0.6, 1.4, array.shape)
            elif part != "kernel":
                array[...] = rng.standard_normal(array.shape) / 10
    layers = {layer.name: layer for layer in base.layers}
    assert graph.params.keys() == {layer.name for layer in base.layers if layer.weights}, "layers have other names than Keras'"
    for node, params in graph.params.items():
        theirs = [weight.shape for weight in layers[node].weights]
        layers[node].set_weights([array.reshape(shape) for array, shape in zip(params.values(), theirs, strict=True)])
    return base, graph.astype(dtype)


SLOW = {"vgg16", "inception_v3"}
networks = pytest.mark.parametrize("architecture", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NETWORKS])


@networks
def test_logits_are_those_of_keras(architecture):
    model, graph = keras_twin(architecture, np.float32)
    x = np.random.default_rng(2).standard_normal((2, *graph.input_shape)).astype(np.float32)
    expected = model(x, training=False).detach().numpy()
    found = {ops.__name__: relative_error(graph.evaluate(x, ops=ops)[graph.output], expected) for ops in (kernels, kernels_fast)}
    print(architecture, found)
    assert max(found.values()) < 1e-4


@pytest.mark.parametrize(
    ("architecture", "training"),
    [pytest.param(n, b, marks=[pytest.mark.slow] * (n in SLOW)) for n in NETWORKS for b in (True, False) if b or n != "vgg16"],
)
def test_gradients_of_all_parameters_are_those_of_keras(architecture, training, monkeypatch):
    """In float64, since rounding to float32 switches ReLUs on and off, and one in a hundred gradients of a deep network is another then.

    training False: every BatchNorm is frozen and runs on stored statistics, everything else trains.
    """
    torch = pytorch()
    dtypes = pytest.importorskip("keras.src.backend.common.dtypes")
    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")  # Keras' dense layers and sums would be float32
    model, graph = keras_twin(architecture, np.float64)
    for node in graph.nodes:
        if isinstance(node.layer, BatchNorm) and not training:
            graph.freeze("=" + node.name)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, *graph.input_shape)).astype(np.float32).astype(np.float64)  # Keras' input layer rounds to float32
    y, tape = graph.forward(x)
    dy = rng.standard_normal(y.shape)
    grads = graph.backward(dy, tape)
    (model(torch.tensor(x), training=training) * torch.tensor(dy)).sum().backward()
    expected = {}
    for layer in model.layers:
        for weight in layer.trainable_weights:
            expected[layer.name, weight.name] = weight.value.grad.numpy()
    found = {(node, part): array for node, of_node in grads.items() for part, array in of_node.items()}
    floor = 1e-6 * max(np.abs(array).max() for array in expected.values())
    errors = {}
    for (node, part), array in found.items():
        theirs = expected[node, part].reshape(array.shape)
        errors[node, part] = relative_error(array, theirs, floor)
    worst = max(errors, key=lambda name: errors[name])
    print(f"{architecture} training {training}: {len(found)} arrays, largest {errors[worst]:.1e} in {worst}")
    frozen = [] if training else [n.name for n in graph.nodes if isinstance(n.layer, BatchNorm)]
    assert {node for node, _ in found} == {node for node, _ in expected} - set(frozen)
    assert errors[worst] < 1e-8
