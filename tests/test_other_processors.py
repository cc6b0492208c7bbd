"""What was compiled for other processors gives the same answers there: executed by QEMU, or here where that is possible."""

import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import small_models
from compiled import compile_c, works
from integer_graphs import awkward_graphs, every_kind, images, random_graph
from pretended import KERNELS, PROCESSORS
from small_models import chain
from test_int8_engine import without_kernel_zeros

from minitl import engine, int8_engine, kernels_fast, native, processor, reference
from minitl.architectures import build
from minitl.errors import MinitlError
from minitl.folding import fold
from minitl.graph import INPUT, Graph
from minitl.layers import Add, AveragePool, Concat, Conv2D, Dense, DepthwiseConv2D, Flatten, MaxPool, ReLU, ReLU6

COMPILERS = {"aarch64": ["aarch64-linux-gnu-gcc", "-static", "-no-pie"], "AMD64": ["gcc", "-no-pie"]}
EMULATORS = {  # they refuse what these processors have not
    "neoverse-n1": ["qemu-aarch64", "-cpu", "neoverse-n1"],
    "cortex-a72": ["qemu-aarch64", "-cpu", "cortex-a72"],
    "sse2": ["qemu-x86_64", "-cpu", "Conroe"],
    "avx": ["qemu-x86_64", "-cpu", "SandyBridge"],
}


def float_networks():
    """[(folded graph, images)]: every kind of operation. Their first convolutions take the same way with any width of vectors.

    The one that reads images of three colours straight away, for as many outputs as a vector has lanes, adds in an order of its own.
    """
    rng = np.random.default_rng(0)
    nodes = chain(
        ("a", Conv2D((3, 3), (2, 2), filters=19), INPUT),
        ("b", Conv2D((1, 1), filters=33, use_bias=True), "a"),
        ("c", ReLU(), "a"),
        ("d", DepthwiseConv2D((5, 3), (2, 1), "same", use_bias=True), "b"),
        ("e", DepthwiseConv2D((3, 3), (2, 1), "same"), "b"),
        ("f", ReLU6(), "e"),
        ("g", Concat(), "d", "f"),
        ("i", Flatten(), "g"),
        ("j", Concat(), "c", "b", "a"),
        ("k", Conv2D((1, 1), filters=17), "j"),
        ("l", Conv2D((2, 3), filters=17, use_bias=True), "j"),
        ("s", Add(), "k", "l"),
        ("n", Add(), "s", "k"),
        ("r", ReLU(), "n"),
        ("m", MaxPool((2, 2), (2, 2), "valid"), "r"),
        ("v", AveragePool((3, 2), (1, 1), "same"), "m"),
        ("t", Flatten(), "v"),
        ("u", Concat(), "t", "i"),
        ("h", Dense(11), "u"),
        ("y", Dense(4), "h"),
        end=False,
    )
    first = chain(("a", Conv2D((3, 3), (2, 2), filters=4, use_bias=True)), ("b", ReLU6()))
    graphs = [small_models.stir(Graph(n, (19, 23, 3)).initialise(0)) for n in (nodes, first)]
    for name, alpha, size in (("mobilenet_v1", 0.75, 33), ("mobilenet_v2", 0.75, 48)):
        graph = build(name, alpha=alpha, input_shape=[size, size, 3], classes=5).initialise(1)
        small_models.settle(small_models.stir(graph), rng.standard_normal((4, size, size, 3)).astype(np.float32))
        graphs.append(fold(graph))
    return [(graph, rng.standard_normal((2, *graph.input_shape)).astype(np.float32)) for graph in graphs]


def integer_networks():
    """[(graph, images)]."""
    graphs = [every_kind(), *awkward_graphs()[::2], *(random_graph(seed) for seed in range(8))]
    return [(graph, images(graph, 3)) for graph in map(without_kernel_zeros, graphs)]


@pytest.fixture(scope="module")
def networks():
    """{file of fast/: [(graph, images)]}."""
    return dict(zip(KERNELS, (float_networks(), integer_networks()), strict=True))


def compiled(name, networks, folder):
    """A program with the kernels for a processor."""
    command = COMPILERS[PROCESSORS[name].machine]
    if not works(command):
        pytest.skip(f"no working {command[0]} here")
    (folder / "graphs").write_bytes(pickle.dumps(networks))
    script = Path(__file__).with_name("pretended.py")
    done = subprocess.run([sys.executable, script, name, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    compile_c([*command, "-O1"], "main.c", *(f"{kernel}.o" for kernel in KERNELS), "-o", "program", cwd=folder)


def disassembled(name, folder, *options):
    """{file of fast/: instructions, as objdump prints them}."""
    tool = "aarch64-linux-gnu-objdump" if PROCESSORS[name].machine == "aarch64" else "objdump"
    return {
        kernel: subprocess.run([tool, "-d", *options, f"{kernel}.o"], cwd=folder, capture_output=True, text=True).stdout
        for kernel in KERNELS
    }


def check(name, networks, folder, fused):
    """Run the program; integers have the bits of the integer graph, floats those of the engine here where both use fused multiply-add."""
    emulator = EMULATORS[name]
    if shutil.which(emulator[0]) is None:
        pytest.skip(f"no {emulator[0]} here")
    with open(folder / "networks", "rb") as file:
        done = subprocess.run([*emulator, "./program"], stdin=file, cwd=folder, capture_output=True)
    assert done.returncode == 0, (done.returncode, done.stderr.decode()[-2000:])
    rest, worst = done.stdout, 0.0

    def take(like):
        nonlocal rest
        size = -(-like.nbytes // 64) * 64
        found, rest = np.frombuffer(rest[: like.nbytes], like.dtype).reshape(like.shape), rest[size:]
        return found

    for graph, x in networks["inference"]:
        plain = graph.evaluate(x, ops=reference)[graph.output]
        found = take(plain)
        worst = max(worst, np.abs(found - plain).max() / np.abs(plain).max())
        if fused and "fma" in processor.host()[1]:
            assert found.tobytes() == engine.Engine(graph).run(x)[graph.output].tobytes()
    count = 0
    for graph, x in networks["integers"]:
        expected = graph.run(x)
        np.testing.assert_array_equal(take(expected), expected)
        count += expected.size
    assert not rest and worst < 1e-4
    print(f"{name}: {count} integer logits equal; floats at most {worst:.1e} of the largest from reference.py")


@pytest.mark.parametrize("name", ["neoverse-n1", pytest.param("cortex-a72", marks=pytest.mark.slow)])
def test_whole_networks_on_arm(name, networks, tmp_path):
    """Compiled as native.py does on ARM, executed by QEMU."""
    compiled(name, networks, tmp_path)
    check(name, networks, tmp_path, fused=True)
    code = disassembled(name, tmp_path)
    fused, dots = (len(re.findall(rf"\b{what}\b", code[kernel])) for what, kernel in (("fmla", "inference"), ("sdot", "integers")))
    print(f"fmla {fused} times, sdot {dots}")
    assert fused > 300 and (dots > 50) == (name == "neoverse-n1")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sse2", "avx"])
def test_whole_networks_on_x86_without_avx2(name, networks, tmp_path):
    compiled(name, networks, tmp_path)
    check(name, networks, tmp_path, fused=False)
    code = "".join(disassembled(name, tmp_path).values())
    assert "fmadd" not in code and ("vmulps" in code) == (name == "avx") and (name == "avx" or "%ymm" not in code)


def inner_loops(code):
    """[[instruction, ...]]: loops without jumps within."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"^ *([0-9a-f]+):\s+(.*)$", code, re.MULTILINE)]
    places, found = {at: i for i, (at, _) in enumerate(lines)}, []
    for i, (at, text) in enumerate(lines):
        jump = re.match(r"(?:j\w+|b\.\w+)\s+([0-9a-f]+)", text)
        if jump and int(jump[1], 16) <= at and int(jump[1], 16) in places:
            body = [text for _, text in lines[places[int(jump[1], 16)] : i]]
            if not any(re.match(r"(j\w+|call|ret|b|bl|b\.\w+|cbn?z)\b", text) for text in body):
                found.append(body)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kernel", "register", "product", "sums"),
    [
        ("skylake", "inference", "%zmm", "vfmadd", (28, 27)),
        ("skylake", "integers", "%zmm", "vpmaddwd", (24,)),
        ("icelake", "integers", "%zmm", "vpdpbusd", (24,)),
        ("cortex-a72", "inference", ".4s", "fmla", (16, 18)),
        ("neoverse-n1", "integers", ".4s", "sdot", (12,)),
    ],
)
def test_the_sums_of_the_largest_tiles_stay_in_registers(name, kernel, register, product, sums, networks, tmp_path):
    """Looked at, not run: loops with so many products, of whole vectors, touch the stack once at most (for an address)."""
    compiled(name, networks, tmp_path)
    loops = inner_loops(disassembled(name, tmp_path, "--no-show-raw-insn")[kernel])
    for count in sums:
        tiles = [loop for loop in loops if sum(product in text and register in text for text in loop) == count]
        stack = [sum(bool(re.search(r"\(%rsp|\[sp", text)) for text in loop) for loop in tiles]
        print(f"{name} {kernel}: {len(tiles)} loops of {count} products, {min(stack)} to {max(stack)} accesses to the stack")
        assert sorted(stack)[:2][-1] <= 1


# ---- where nothing can be compiled


def test_where_no_machine_code_can_be_made_the_plain_kernels_answer_and_one_sentence_says_so(monkeypatch):
    """As on a processor that LLVM does not know: float and int8 inference, and a training step."""
    said, tried = [], []

    def fail(name):
        tried.append(name)
        raise numba.core.errors.LoweringError("no such\ninstruction")

    monkeypatch.setattr(native, "_compile", fail)
    monkeypatch.setattr(native, "_place", lambda name, again=False: None)
    monkeypatch.setattr(native.jit, "announce", said.append)
    caches = [native._loaded, native._say_once, kernels_fast._library]
    for cache in caches:
        cache.cache_clear()
    try:
        for graph, x in float_networks()[:1] * 2:
            made = engine.make(graph)
            assert isinstance(made, engine.Plain)
            expected = graph.evaluate(x, ops=reference)[graph.output]
            np.testing.assert_allclose(made.run(x)[graph.output], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        for graph, x in integer_networks()[:2]:
            made = int8_engine.make(graph)
            assert isinstance(made, int8_engine.Plain)
            np.testing.assert_array_equal(made.run(x)[graph.output], graph.run(x))
        x, w = np.ones((1, 4, 4, 8), np.float32), np.ones((3, 3, 8), np.float32)
        np.testing.assert_array_equal(kernels_fast.depthwise_conv2d(x, w, (1, 1), (0, 0, 0, 0)), np.full((1, 2, 2, 8), 9))
        with pytest.raises(MinitlError, match=r"cannot be used on this machine.*MINITL_ENGINE=plain runs without them"):
            native.load("inference")
    finally:
        for cache in caches:
            cache.cache_clear()
    assert sorted(set(tried)) == sorted(tried) and {"inference", "integers", "training"} <= set(tried), "each is tried once"
    sentences = [sentence for sentence in said if "compiling" not in sentence]
    assert sentences == ["the fast kernels cannot be used on this machine (no such instruction): plain ones, which are slower, take over"]
