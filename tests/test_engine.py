"""The float engine gives the values of the plain kernels, whatever the sizes, the batch and the threads."""

import os
import subprocess
import sys

import numpy as np
import pytest
import small_models
from small_models import chain

from minitl import engine, program, reference
from minitl.architectures import build
from minitl.engine import Engine, Plain, Unsupported, Values, make
from minitl.errors import MinitlError
from minitl.folding import fold
from minitl.graph import INPUT, Graph
from minitl.layers import (
    Add,
    AveragePool,
    BatchNorm,
    Concat,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    ReLU,
    ReLU6,
    Reshape,
)


def made(nodes, shape, seed=0):
    """A graph with random weights and biases."""
    return small_models.stir(Graph(nodes, shape).initialise(seed))


def images(count, shape, seed=1):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def check(graph, count=2, wanted=(), tolerance=1e-5):
    """Every wanted value within the tolerance of the largest one, against reference.py."""
    x = images(count, graph.input_shape)
    fast = make(graph, wanted)
    assert isinstance(fast, Engine)
    found, expected = fast.run(x), graph.evaluate(x, wanted, ops=reference)
    assert list(found) == list(expected)
    for name, value in found.items():
        assert value.dtype == np.float32 and value.shape == expected[name].shape
        error = np.abs(value - expected[name]).max() / max(np.abs(expected[name]).max(), 1e-6)
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (13, 5), (16, 12), (3, 3), (6, 24), (5, 27)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid", "keras", "torch"])
def test_convolutions_of_odd_sizes(size, stride, padding):
    strides = (stride, stride)
    check(
        made(
            chain(
                ("c", Conv2D((3, 3), strides, padding, filters=5, use_bias=True)),
                ("r", ReLU6()),
                ("d", DepthwiseConv2D((3, 3), (1, 1), "same", use_bias=True)),
                ("s", DepthwiseConv2D((3, 3), strides, "same")),
                ("p", Conv2D((1, 1), filters=19, use_bias=True)),
                ("q", ReLU()),
                ("t", DepthwiseConv2D((3, 3), strides, "torch", use_bias=True)),
            ),
            (*size, 3),
        ),
        wanted=["c", "r", "d", "s", "p", "t", "logits"],
    )


@pytest.mark.parametrize("width", range(3, 18))
def test_depthwise_rows_of_any_width(width):
    nodes = chain(
        ("d", DepthwiseConv2D((3, 3), (1, 1), "same", use_bias=True), INPUT),
        ("s", DepthwiseConv2D((3, 3), (2, 2), "same", use_bias=True), "d"),
        ("t", DepthwiseConv2D((3, 3), (2, 2), "torch", use_bias=True), "d"),
    )
    check(made(nodes, (5, width, 9)), wanted=["d", "s", "t"])


@pytest.mark.parametrize("channels", [1, 3, 8, 15, 16, 17, 24, 33, 40])
@pytest.mark.parametrize("width", [4, 6, 9])
def test_any_number_of_channels(channels, width):
    nodes = chain(
        ("e", Conv2D((1, 1), filters=channels, use_bias=True)),
        ("a", ReLU6()),
        ("d", DepthwiseConv2D((3, 3), (1, 1), "same", use_bias=True)),
        ("b", ReLU6()),
        ("p", Conv2D((1, 1), filters=channels, use_bias=True)),
        ("s", Add(), "a", "p"),
        ("w", DepthwiseConv2D((3, 3), (2, 2), "same")),
    )
    graph = made(nodes, (7, width, 2))
    check(graph)
    check(graph, wanted=["a", "d", "s"])


@pytest.mark.parametrize("window", [(1, 1), (5, 5), (7, 1), (1, 7), (2, 3), (4, 4)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2), (3, 1)])
def test_windows_of_any_size_and_stride(window, strides):
    nodes = chain(
        ("c", Conv2D(window, strides, "same", filters=9, use_bias=True)),
        ("d", DepthwiseConv2D(window, strides, "same", use_bias=True)),
        ("x", Conv2D(window, (1, 1), "same", filters=4)),
        ("m", MaxPool(window, strides, "same")),
        ("v", AveragePool(window, (1, 1), "same")),
    )
    check(made(nodes, (17, 15, 3)), wanted=["c", "d", "x", "m", "v", "logits"])


def test_branches_sums_and_reshapes():
    nodes = chain(
        ("a", Conv2D((3, 3), (2, 2), filters=6)),
        ("b", Conv2D((1, 1), filters=5, use_bias=True), "a"),
        ("c", ReLU(), "a"),
        ("j", Concat(), "c", "b", "a"),
        ("k", Conv2D((1, 1), filters=17), "j"),
        ("l", Conv2D((1, 1), filters=17, use_bias=True), "j"),
        ("s", Add(), "k", "l"),
        ("r", ReLU(), "s"),
        ("m", MaxPool((2, 2), (2, 2), "valid"), "r"),
        ("f", Flatten()),
        ("h", Dense(11)),
        ("g", ReLU6()),
        ("z", Reshape((1, 1, 11))),
        ("y", Conv2D((1, 1), filters=4, use_bias=True)),
        ("o", Reshape((4,))),
        end=False,
    )
    check(made(nodes, (11, 10, 3)), wanted=["j", "s", "r", "f", "g", "o"])
    check(made(nodes, (11, 10, 3)))


def test_the_image_itself_may_be_read_by_anything():
    nodes = chain(
        ("d", DepthwiseConv2D((3, 3), use_bias=True), INPUT),
        ("p", Conv2D((1, 1), filters=3), INPUT),
        ("s", Add(), "d", "p"),
        ("t", Add(), "s", INPUT),
        ("m", AveragePool((2, 2), (2, 2), "same"), INPUT),
        ("j", Concat(), "t", INPUT),
    )
    check(made(nodes, (6, 5, 3)), wanted=["s", "t", "m", "j", INPUT])
    check(made(chain(("f", Flatten()), ("l", Dense(4)), end=False), (3, 2, 3)))
    check(made(chain(("l", Dense(4)), end=False), (7,)))


@pytest.mark.parametrize(("name", "alpha", "size"), [("mobilenet_v1", 0.25, 96), ("mobilenet_v2", 0.35, 64), ("mobilenet_v1", 0.5, 33)])
def test_whole_networks(name, alpha, size):
    graph = build(name, alpha=alpha, input_shape=[size, size, 3], classes=7).initialise(3)
    x = images(3, (size, size, 3))
    small_models.settle(small_models.stir(graph), x)
    exact = graph.astype(np.float64).evaluate(x.astype(np.float64))[graph.output]
    scale = np.abs(exact).max()
    rounding = np.abs(graph.evaluate(x, ops=reference)[graph.output] - exact).max() / scale
    error = np.abs(Values(graph).run(x)[graph.output] - exact).max() / scale
    print(f"{name} {alpha}@{size}: {error:.1e} from float64, where reference.py in float32 is {rounding:.1e} away")
    assert error < max(1e-5, 4 * rounding)  # random weights carry rounding far


def large():
    """A network whose layers are done in strips, with one image shared by threads."""
    graph = build("mobilenet_v2", alpha=1.0, input_shape=[160, 160, 3], classes=5).initialise(0)
    return small_models.settle(small_models.stir(graph), images(1, (160, 160, 3)))


@pytest.mark.parametrize("count", [0, 1, 2, 33])
def test_a_value_does_not_depend_on_the_batch_nor_on_the_threads(count):
    graph = fold(build("mobilenet_v1", alpha=0.25, input_shape=[40, 40, 3], classes=4).initialise(0))
    x = images(count, (40, 40, 3))
    alone = [Engine(graph, threads=1).run(x[i : i + 1])[graph.output] for i in range(count)]
    expected = np.concatenate(alone) if alone else np.empty((0, 4), np.float32)
    for threads in (1, 2, 3, 7):
        assert Engine(graph, threads=threads).run(x)[graph.output].tobytes() == expected.tobytes()


def test_threads_within_an_image_and_strips_change_no_bit(monkeypatch):
    graph = fold(large())
    x = images(1, graph.input_shape)
    whole = Engine(graph, threads=1)
    assert "block" in [engine.KINDS[row[0]] for row in whole.table]
    expected = whole.run(x)[graph.output]
    for threads in (2, 3, 5):
        assert Engine(graph, threads=threads).run(x)[graph.output].tobytes() == expected.tobytes()
    monkeypatch.setattr(engine, "WORTH_STRIPS", {3: 1e12, 2: 1e12})
    unfused = Engine(graph, threads=2)
    assert "block" not in [engine.KINDS[row[0]] for row in unfused.table]
    assert unfused.run(x)[graph.output].tobytes() == expected.tobytes()
    monkeypatch.setattr(engine, "WORTH_STRIPS", {3: 0, 2: 0})
    for strip in (1, 20_000, 100_000):
        monkeypatch.setattr(engine, "STRIP", {3: strip, 2: strip})
        assert Engine(graph, threads=3).run(x)[graph.output].tobytes() == expected.tobytes()


def test_images_that_are_unaligned_strided_read_only_or_float64():
    graph = made(chain(("c", Conv2D((3, 3), (2, 2), filters=8)), ("r", ReLU6())), (16, 16, 3))
    x = images(3, (16, 16, 3))
    expected = Engine(graph).run(x)[graph.output].tobytes()
    raw = np.zeros(x.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(x.tobytes(), np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(x.shape)
    strided = np.zeros((3, 16, 16, 6), np.float32)[..., ::2]
    strided[...] = x
    fixed = x.copy()
    fixed.flags.writeable = False
    for given in (unaligned, strided, fixed, x.astype(np.float64), np.asfortranarray(x)):
        assert Engine(graph).run(given)[graph.output].tobytes() == expected


def test_nothing_is_written_outside_of_the_block_and_of_the_answers(monkeypatch):
    graph = made(
        chain(("c", Conv2D((3, 3), (2, 2), filters=9)), ("d", DepthwiseConv2D((3, 3))), ("p", Conv2D((1, 1), filters=5))), (13, 11, 3)
    )
    fast = Engine(graph, ["c", "p", "logits"], threads=1)
    block = np.full(fast.size + program.BEHIND + 8192, 0xA5, np.uint8)
    start = -block.ctypes.data % 64 + 4096
    monkeypatch.setattr(program, "room", lambda size: block[start : start + size + program.BEHIND])
    x = images(1, (13, 11, 3))
    before, found = x.copy(), fast.run(x)
    monkeypatch.undo()
    assert all(np.array_equal(value, found[name]) for name, value in Engine(graph, ["c", "p", "logits"]).run(x).items())
    assert (block[:start] == 0xA5).all() and (block[start + fast.size + 64 :] == 0xA5).all()
    assert np.array_equal(x, before)


def test_what_is_not_a_number_is_not_hidden():
    graph = made(chain(("c", Conv2D((1, 1), filters=4)), ("r", ReLU6())), (4, 4, 3))
    x = images(2, (4, 4, 3))
    x[1, 2, 2, 0] = np.nan
    found = Engine(graph).run(x)[graph.output]
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()


def test_what_the_engine_does_not_know_runs_plainly():
    exact = made(chain(("c", Conv2D((3, 3), filters=4))), (5, 5, 3)).astype(np.float64)
    assert isinstance(make(exact), Plain)
    x = images(3, (5, 5, 3)).astype(np.float64)
    assert np.array_equal(make(exact).run(x)[exact.output], np.concatenate([exact.evaluate(x[i : i + 1])[exact.output] for i in range(3)]))
    spread = made(chain(("r", Reshape((2, 2, 3))), ("c", Conv2D((1, 1), filters=2))), (12,))
    with pytest.raises(Unsupported):
        Engine(spread)
    assert isinstance(make(spread), Plain)
    unfolded = build("mobilenet_v1", alpha=0.25, input_shape=[32, 32, 3], classes=2).initialise(0)
    with pytest.raises(Unsupported):
        Engine(unfolded)


def test_the_plain_way_can_be_asked_for(monkeypatch):
    graph = made(chain(("c", Conv2D((3, 3), filters=4))), (5, 5, 3))
    monkeypatch.setenv("MINITL_ENGINE", "plain")
    assert isinstance(make(graph), Plain)
    monkeypatch.setenv("MINITL_ENGINE", "quick")
    with pytest.raises(MinitlError, match="expected fast or plain"):
        make(graph)


def test_images_of_another_size_are_refused():
    graph = made(chain(("c", Conv2D((3, 3), filters=4))), (5, 5, 3))
    with pytest.raises(MinitlError, match=r"takes images \(N, 5, 5, 3\), found \(2, 5, 4, 3\)"):
        Engine(graph).run(images(2, (5, 4, 3)))


def test_several_threads_of_a_program_may_use_one_engine():
    from concurrent.futures import ThreadPoolExecutor

    graph = fold(build("mobilenet_v1", alpha=0.25, input_shape=[32, 32, 3], classes=4).initialise(0))
    fast, x = Engine(graph, threads=2), images(24, (32, 32, 3))
    expected = Engine(graph, threads=1).run(x)[graph.output]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: fast.run(x[i : i + 3])[graph.output], range(0, 24, 3)))
    assert np.concatenate(found).tobytes() == expected.tobytes()


def test_a_model_answers_with_the_weights_of_now():
    model = small_models.model(calibrated=False)
    x = images(2, (32, 32, 3))
    before = model.forward(x)
    kernel = model.graph.params["conv1"]["kernel"]
    kernel[:] = kernel[:, ::-1].copy()  # the same numbers in another order
    after = model.forward(x)
    assert np.abs(after - before).max() > 1e-4
    assert np.allclose(after, model.graph.evaluate(x)[model.graph.output], atol=1e-4)


def test_fields_and_kinds_are_those_of_the_kernels():
    from minitl.fast import inference

    assert (engine.FIELDS, engine.KINDS) == (inference.FIELDS, inference.KINDS)


SCRIPT = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import test_engine, small_models
from minitl.engine import Engine, Values
from minitl.folding import fold
from minitl.native import LANES
graph = fold(test_engine.large())
answers = Engine(graph).run(test_engine.images(2, graph.input_shape))[graph.output]
test_engine.test_any_number_of_channels(17, 6)
test_engine.test_branches_sums_and_reshapes()
print(LANES, hashlib.sha256(answers.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_every_width_of_vectors_gives_the_same_bits(tmp_path):
    """Compiles everything twice more. The processor has fewer lanes than 16 here or there; LLVM makes two vectors of one."""
    folder = os.path.dirname(__file__)
    found = {}
    for lanes in ("4", "8", "16"):
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, folder], env={**os.environ, "MINITL_LANES": lanes}, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        width, digest = run.stdout.split()
        found[width] = digest
    assert list(found) == ["4", "8", "16"] and len(set(found.values())) == 1


def test_a_batchnorm_of_a_vector_stays_one_and_runs_plainly():
    nodes = chain(("p", GlobalAveragePool()), ("r", ReLU()), ("b", BatchNorm()), ("l", Dense(3)), end=False)
    graph = made(nodes, (4, 4, 5))
    x = images(2, (4, 4, 5))
    assert np.allclose(Values(graph).run(x)["l"], graph.evaluate(x, ops=reference)["l"], atol=1e-5)


def test_a_number_of_threads_that_is_none_is_an_error(monkeypatch):
    for wrong in ("0", "-3", "abc"):
        monkeypatch.setenv("MINITL_THREADS", wrong)
        with pytest.raises(MinitlError, match="expected a number of threads, at least 1"):
            program.threads()
