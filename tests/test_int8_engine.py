"""The int8 engine against the integer graph, whose bits it must have: every operation, awkward sizes, every form of the dot product."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, WEIGHTS, needs_shared
from integer_graphs import Builder, awkward_graphs, every_kind, images, random_graph

from minitl import int8_engine, model, native, program, reference_int8
from minitl.images import read_photos
from minitl.int8_engine import Engine, Plain, make
from minitl.integer import SUM_LIMIT, AveragePool, Dense, IntegerGraph, MaxPool, Tensor, Weighted

pytestmark = pytest.mark.skipif(native.plain(), reason="MINITL_ENGINE=plain")

TESTS = Path(__file__).parent


def without_kernel_zeros(graph):
    """Quads are for weights of which 0 is the zero point."""
    return replace(graph, ops=tuple(replace(op, kernel_zero=0) if isinstance(op, Weighted) else op for op in graph.ops))


def check(graph, count=3, seed=0, threads=None):
    """All tensors of a graph; -> how many numbers were compared."""
    if native.DOT[0] == 4:
        graph = without_kernel_zeros(graph)
    x = images(graph, count, seed)
    expected, found = graph.run_all(x), Engine(graph, list(graph.tensors), threads).run(x)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=f"tensor {name}")
    return sum(values.size for values in expected.values())


def test_every_tensor_of_random_networks_has_the_bits_of_the_integer_graph():
    count = sum(check(random_graph(seed), 3, seed) for seed in range(40))
    print(f"{count} numbers equal")


def test_every_kind_of_operation_and_the_awkward_ones():
    count = sum(check(graph) for graph in [*awkward_graphs(), every_kind()])
    print(f"{count} numbers equal")


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 9, 16, 24, 33])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_and_products_of_any_width(channels, stride):
    for size in (1, 2, 3, 4, 5, 6, 9, 13):
        build = Builder(np.random.default_rng(size), (size, size + 2, channels))
        build.depthwise((3, 3), (stride, stride), (1, 1, 1, 1))
        build.conv(channels + 3, (1, 1))
        build.depthwise((3, 3), (1, 1), (1, 1, 1, 1))
        build.conv(channels, (3, 3), (stride, 1), (1, 1, 1, 1))
        build.dense(5)
        check(build.graph(), 2)


@pytest.mark.parametrize("count", [0, 1, 2, 33])
def test_a_batch_of_any_size_on_any_number_of_threads_is_the_same(count):
    graph = without_kernel_zeros(every_kind())
    x = images(graph, 33)[:count]
    expected = graph.run(x)
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(Engine(graph, threads=threads).run(x)[graph.output], expected)


def test_threads_within_an_image_change_nothing(monkeypatch):
    monkeypatch.setattr(program, "WORTH_THREADS", 0)
    for graph in [*awkward_graphs()[:8], every_kind(), random_graph(3)]:
        for threads in (2, 3, 5):
            check(graph, 1, threads=threads)


def test_images_that_are_unaligned_strided_or_read_only():
    graph = without_kernel_zeros(every_kind())
    x = images(graph, 4)
    expected = graph.run(x)
    engine = make(graph)
    raw = np.zeros(x.nbytes + 1, np.int8)
    unaligned = raw[1:].reshape(x.shape)
    unaligned[...] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    strided = np.repeat(x, 2, axis=2)[:, :, ::2]
    for variant in (unaligned, frozen, strided, x[::-1][::-1]):
        np.testing.assert_array_equal(engine.run(variant)[graph.output], expected)


def requantising(bias, multiplier, shift):
    """A network that only requantises: acc is the bias, for an image of zeros."""
    n = len(bias)
    tensors = {"x": Tensor("x", (1, 1, 1), 1.0, 0), "f": Tensor("f", (1,), 1.0, 0), "y": Tensor("y", (n,), 1.0, 0)}
    from minitl.integer import Reshape

    op = Dense("y", ("f",), "y", np.zeros((1, n), np.int8), bias.astype(np.int32), multiplier.astype(np.int32), shift.astype(np.int32))
    return IntegerGraph(tensors, (Reshape("f", ("x",), "f"), op), "x", "y")


def test_requantisation_is_exact_at_ties_and_extremes():
    rng = np.random.default_rng(0)
    shift = rng.integers(-31, 6, 200_000)
    multiplier = rng.integers(2**30, 2**31, shift.size)
    multiplier[: shift.size // 4] = rng.choice([0, 2**30, 2**30 + 1, 3 * 2**29, 2**31 - 1], shift.size // 4)
    most = (SUM_LIMIT - 1) >> np.maximum(shift, 0)
    bias = rng.integers(-most, most + 1)
    # Near each half of an output: the smallest sum that reaches it, and its neighbours.
    real = multiplier.astype(np.float64) * 2.0 ** (shift - 31)
    near = np.rint((rng.integers(-130, 131, shift.size) + 0.5) / np.maximum(real, 1e-9)) + rng.integers(-2, 3, shift.size)
    bias = np.where((np.arange(shift.size) % 4 > 0) & (np.abs(near) <= most), near, bias).astype(np.int64)
    bias[::97], bias[1::97] = most[::97], -most[1::97]
    graph = requantising(bias, multiplier, shift)
    found = Engine(graph).run(np.zeros((1, 1, 1, 1), np.int8))["y"][0]
    expected = np.clip(reference_int8.requantise(bias, multiplier, shift), -128, 127)
    np.testing.assert_array_equal(found, expected)
    inside = (np.abs(expected) < 127).sum()
    print(f"{shift.size} requantisations equal, {inside} of them not clamped")
    assert inside > 100_000


def test_all_sums_around_every_output_of_one_channel():
    """Both signs, so many shifts that halves are met exactly."""
    for right in (0, 1, 2, 5, 9):
        for multiplier in (2**30, 2**30 + 2**29, 2**31 - 1):
            bias = np.arange(-140 * 2 ** (right + 1), 140 * 2 ** (right + 1))
            graph = requantising(bias, np.full(bias.size, multiplier), np.full(bias.size, -right))
            found = Engine(graph).run(np.zeros((1, 1, 1, 1), np.int8))["y"][0]
            np.testing.assert_array_equal(found, np.clip(reference_int8.requantise(bias, multiplier, -right), -128, 127))


def test_means_of_all_sums_round_halves_away_from_zero():
    for window in ((1, 2), (2, 3), (5, 5)):
        for zero in (-128, 0, 57):
            n = window[0] * window[1]
            tensors = {name: Tensor(name, (*window, 1) if name == "x" else (1, 1, 1), 0.1, zero) for name in ("x", "y")}
            graph = IntegerGraph(tensors, (AveragePool("y", ("x",), "y", window, (1, 1)),), "x", "y")
            totals = np.arange(-128 * n, 127 * n + 1)
            x = (totals[:, None] // n + (np.arange(n) < (totals % n)[:, None])).astype(np.int8).reshape(-1, *window, 1)
            np.testing.assert_array_equal(Engine(graph).run(x)["y"], graph.run(x))
    maxima = IntegerGraph(tensors, (MaxPool("y", ("x",), "y", window, (1, 1)),), "x", "y")
    np.testing.assert_array_equal(Engine(maxima).run(x)["y"], maxima.run(x))


def test_nothing_is_written_outside_of_the_block_and_of_the_answers(monkeypatch):
    """Guards on both sides of the block, whose reserve for threads alone may change, and of an answer."""
    guards = []

    def guarded(size):
        block = np.full(4096 + size + program.BEHIND + 4096, 0x5A, np.uint8)
        start = 2048 - block[2048:].ctypes.data % 64 + 64
        guards.append((block, start, start + size, start + size + program.BEHIND))
        return block[start:]

    monkeypatch.setattr(program, "room", guarded)
    for graph in [*awkward_graphs(), every_kind(), *(random_graph(seed) for seed in range(10))]:
        check(graph, 2, threads=1)
    for block, start, end, last in guards:
        assert (block[:start] == 0x5A).all() and (block[end + 64 : last] == 0x5A).all() and (block[last:] == 0x5A).all()
    print(f"{len(guards)} blocks whole")


def test_what_the_engine_refuses_is_computed_as_before():
    n = 4
    graph = requantising(np.array([3, -3, 0, 1]), np.full(n, 2**30), np.zeros(n))
    wide = replace(graph.ops[1], kernel=np.full((1, n), 127, np.int8), shift=np.full(n, 9, np.int32), kernel_zero=-128)
    graph = replace(graph, ops=(graph.ops[0], wide))
    with pytest.raises(program.Unsupported):
        Engine(graph)
    engine, x = make(graph, ["f", "y"]), np.array([[[[1]]], [[[-2]]]], np.int8)
    assert isinstance(engine, Plain)
    found = engine.run(x)
    np.testing.assert_array_equal(found["y"], graph.run(x))
    np.testing.assert_array_equal(found["f"], x.reshape(2, 1))


def test_the_plain_way_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("MINITL_ENGINE", "plain")
    graph = every_kind()
    x = images(graph, 3)
    assert isinstance(make(graph), Plain)
    np.testing.assert_array_equal(make(graph).run(x)[graph.output], graph.run(x))


def test_fields_and_kinds_are_those_of_the_kernels():
    from minitl.fast import integers

    assert int8_engine.FIELDS == integers.FIELDS and int8_engine.KINDS == integers.KINDS
    assert integers.GROUP == native.DOT[0]


def test_numba_is_not_imported_where_the_kernels_are_on_disk():
    Engine(every_kind())
    if native._place("integers") is None:
        pytest.skip("nothing can be kept on disk here")
    code = (
        "import sys; from integer_graphs import Builder, images, np; from minitl.int8_engine import Engine\n"
        "build = Builder(np.random.default_rng(0), (5, 5, 3), kernel_zeros=False)\n"
        "build.conv(4, (3, 3)); build.depthwise((3, 3)); build.dense(2); graph = build.graph()\n"
        "Engine(graph).run(images(graph, 2)); print('numba' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(TESTS)}, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"


# ---- real networks, real photos


@needs_shared
@pytest.mark.parametrize(
    ("weights", "photos"),
    [
        ("vww_96_int8", "person/val"),
        ("tf2_mobilenet_v2_1.0_224_ptq", "imagenet-sample"),
        ("mobilenet_v1_0.25_128_quant", "imagenet-sample"),
        ("mobilenet_v2_1.0_224_quant", "imagenet-sample"),
    ],
)
def test_real_networks_answer_on_real_photos_with_the_same_bits(weights, photos):
    network = model.deployable(WEIGHTS / f"{weights}.tflite")
    paths = sorted((DATA / photos).rglob("*.jpg"))[::7][: 40 if "96" in weights else 5]
    pixels = np.stack([found for _, found in read_photos(paths, network.pictures())])
    x = network.pictures().quantise_pixels(pixels)
    engine = make(network.graph)
    fast = isinstance(engine, Engine)
    assert fast or (native.DOT[0] == 4 and "_quant" in weights), "weights with a zero point of their own do not go into quads"
    np.testing.assert_array_equal(engine.run(x)[network.graph.output], network.graph.run(x))
    np.testing.assert_array_equal(make(network.original).run(x)[network.original.output], network.graph.run(x))
    np.testing.assert_array_equal(network.logits(pixels), network._real(network.graph.run(x)))
    print(f"{weights}: {len(x)} photos, {'fast' if fast else 'plain'}")


# ---- other processors


@pytest.mark.slow
@pytest.mark.parametrize("dot", [2, 4])
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_every_width_and_both_forms_of_the_dot_product_give_the_same_bits(lanes, dot):
    """VNNI's instruction cannot run everywhere: MINITL_DOT=4 puts the same together from others, all else is as with it."""
    tests = "random_networks or every_kind or any_width or exact or means or outside or any_number or real_networks"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        str(TESTS / "test_int8_engine.py"),
        "-k",
        tests,
        "-m",
        "not slow",
    ]
    environment = {**os.environ, "MINITL_LANES": str(lanes), "MINITL_DOT": str(dot)}
    out = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=TESTS)
    assert out.returncode == 0, out.stdout[-3000:]
    print(out.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(native.platform.machine().lower() not in ("x86_64", "amd64"), reason="x86 only")
@pytest.mark.parametrize(
    ("cpu", "features", "lanes", "instruction"),
    [
        ("icelake-server", "avx2,avx512f,avx512bw,avx512vl,avx512vnni", 16, "vpdpbusd"),
        ("alderlake", "avx2,avxvnni", 8, "vpdpbusd"),
        ("skylake-avx512", "avx2,avx512f,avx512bw,avx512vl", 16, "vpmaddwd"),
        ("haswell", "avx2", 8, "vpmaddwd"),
        ("x86-64", "sse2", 4, "pmaddwd"),
    ],
)
def test_the_machine_code_for_other_processors_has_their_instruction(cpu, features, lanes, instruction):
    """Compiled for them, not run. Numba is told the processor by its own variables, minitl by what LLVM says of it."""
    features = ",".join(f"+{feature}" for feature in features.split(","))
    code = (
        "import llvmlite.binding as llvm, platform, types\n"
        "platform.machine = lambda: 'AMD64'  # as on Windows, where LLVM is asked and not the system\n"
        f"llvm.get_host_cpu_name = lambda: {cpu!r}\n"
        f"llvm.get_host_cpu_features = lambda: types.SimpleNamespace(flatten=lambda: {features!r})\n"
        "import numba\n"
        "from minitl import native\n"
        "from minitl.fast import integers\n"
        f"assert native.LANES == {lanes}, native.LANES\n"
        "integers.run.compile((numba.types.int64,) * 12)\n"
        "text = integers.run.overloads[(numba.types.int64,) * 12].library.get_asm_str()\n"
        f"print(sum({instruction!r} in line.split()[:2] for line in text.splitlines()))\n"
    )
    environment = {**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    environment.pop("MINITL_LANES", None), environment.pop("MINITL_DOT", None)
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-2000:]
    print(f"{cpu}: {instruction} {out.stdout.strip()} times")
    assert int(out.stdout) > 50
