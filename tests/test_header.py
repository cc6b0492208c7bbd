"""The emitted header: the same bits as Python under every compiler at hand, exact figures, and nothing that a name can break."""

import itertools
import re
import shutil
import struct
import subprocess

import numpy as np
import pytest
from compiled import (
    COMPILERS,
    COUNT,
    STRICT,
    check_program,
    compile_c,
    compiler,
    driver,
    emit,
    refuses,
    sections,
    without_comments,
    works,
    write_networks,
)
from conftest import DATA, WEIGHTS, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_graphs import Builder, awkward_graphs, every_kind, images, random_graph
from litert_graphs import integer_graph, interpreter
from PIL import Image
from test_integer import EDGES, exact_requantise

from minitl import emit_c, integer, memory
from minitl.emit_c import About
from minitl.errors import MinitlError
from minitl.images import Recipe
from minitl.integer import Tensor, Weighted

CORES = ["cortex-m0", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"]


def arm(core, language="gcc"):
    """A compiler for a core; skips where it is not to be had."""
    float_abi = "hard" if core == "cortex-m55" else "soft"
    command = [f"arm-none-eabi-{language}", f"-mcpu={core}", "-mthumb", f"-mfloat-abi={float_abi}", "-ffreestanding"]
    if shutil.which(command[0]) is None or subprocess.run([*command, "-E", "-xc", "/dev/null"], capture_output=True).returncode:
        pytest.skip(f"no {command[0]} for {core} here")
    return [*command, *(["-std=c99"] if language == "gcc" else ["-std=c++11", "-x", "c++"])]


# ---- the same bits as Python ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """(folder with headers n0.h.. and the driver main.c, graphs)."""
    folder = tmp_path_factory.mktemp("networks")
    graphs = [*awkward_graphs(), *(random_graph(1000 + seed) for seed in range(14))]
    write_networks(folder, graphs)
    return folder, graphs


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The same with the few networks that reach every line of every kernel."""
    folder = tmp_path_factory.mktemp("few")
    graphs = [every_kind(), *awkward_graphs()[12::5]]
    write_networks(folder, graphs)
    return folder, graphs


def test_the_networks_need_all_that_a_header_can_do(networks, few):
    for graphs in (networks[1], few[1]):
        assert {type(op) for graph in graphs for op in graph.ops} == set(integer.OPS)
        weighted = [op for graph in graphs for op in graph.ops if isinstance(op, Weighted)]
        assert any((op.multiplier == 0).any() for op in weighted) and any(op.kernel.shape[-1] == 1 for op in weighted)
        plans = [memory.plan(graph) for graph in graphs]
        lying = sum(
            a is not b and a.meets(b) and start < other + b.size and other < start + a.size
            for plan in plans
            for (a, start), (b, other) in itertools.combinations(plan.buffers, 2)
        )
        fused = sum(len(plan.fused) for plan in plans)
        needs = {tuple(emit_c._needs(graph).values()) for graph in graphs}
        print(f"{len(graphs)} networks: {lying} outputs over inputs, {fused} pairs of ops fused, {len(needs)} sets of macros")
        assert lying > 5 and fused > 0
        used = {kernel for graph in graphs for kernel in emit_c._compile(graph, "net")[0].kernels}
        assert used == kernels_for_ops()
    assert len({tuple(emit_c._needs(graph).values()) for graph in networks[1]}) == 8


@pytest.mark.parametrize("name", ["gcc", "clang", "gcc -m32"])
def test_many_networks_in_one_program_equal_python(networks, name):
    folder, graphs = networks
    compile_c(compiler(name), "-O2", *STRICT, "main.c", "-o", "program", cwd=folder)
    print(f"{name}: {check_program(folder / 'program', graphs, folder)} logits equal")


@pytest.mark.parametrize(
    ("level", "c", "cpp"), [("-O0", "c99", "c++98"), ("-Os", "c11", "c++11"), ("-O2", "c99", "c++11"), ("-O3", "c17", "c++17")]
)
@pytest.mark.parametrize("name", COMPILERS)
def test_every_level_and_standard_gives_the_same_bits(few, name, level, c, cpp):
    folder, graphs = few
    standard = f"-std={cpp if '++' in name else c}"
    compile_c([*compiler(name), standard, level, *STRICT], "-DSELFTEST", "main.c", "-o", "program", cwd=folder)
    print(f"{name} {standard} {level}: {check_program(folder / 'program', graphs, folder)} logits equal, self-tests passed")


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_no_undefined_behaviour_and_no_byte_outside_the_buffers(networks, name):
    folder, graphs = networks
    sanitise = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    if not works([*compiler(name), *sanitise]):
        pytest.skip(f"{name} has no sanitizers here")
    compile_c(compiler(name), *sanitise, "-DFENCE=0", "-DSELFTEST", "main.c", "-o", "sanitised", cwd=folder)
    check_program(folder / "sanitised", graphs, folder)


ROUNDING = f"""
#include <stdio.h>
#include "{emit_c.KERNELS.resolve()}"
int main(void)
{{
    int32_t v[7];
    while (fread(v, 4, 7, stdin) == 7) {{
        const int32_t right = v[2], one = minitl_requantise(v[0], v[1], right);
        const int8_t two = minitl_clamp(one / 2, v[4], v[5]);
        const int8_t three = v[6] ? minitl_narrow(v[0], (int32_t)(2 * (int64_t)v[1] - 4294967296), right, 2 * v[3] + 1, v[4], v[5]) : 0;
        fwrite(&one, 4, 1, stdout);
        fwrite(&two, 1, 1, stdout);
        fwrite(&three, 1, 1, stdout);
    }}
    return 0;
}}
"""


def rounding_cases():
    """(cases of (a, multiplier, right, zero point, low, high, whether the multiplier is normal), what the C functions return)."""
    rng = np.random.default_rng(0)
    some = [
        (int(a), int(m), int(s))
        for a, m, s in zip(*(rng.integers(*r, 2000) for r in ((-(2**29), 2**29), (2**30, 2**31), (-31, 2))), strict=True)
    ]
    some += [
        (int(a), int(m), -int(s))
        for a, m, s in zip(*(rng.integers(*r, 2000) for r in ((-9999, 9999), (2**30, 2**31), (0, 12))), strict=True)
    ]
    largest = integer.SUM_LIMIT - 1
    ends = [(sign * (largest >> shift), m, shift) for sign in (1, -1) for m in (2**30, 2**31 - 1) for shift in (0, 1) for _ in range(4)]
    cases, expected = [], []
    for k, (a, multiplier, shift) in enumerate([*ends, *EDGES, *some]):  # every one of the ends with every zero point
        if abs(a) << max(shift, 0) > largest or shift > 30:
            continue
        zero, low, high = ((0, -128, 127), (-128, -128, 127), (127, -128, 127), (-7, -60, 40))[k % 4]
        exact = exact_requantise(a, multiplier, shift)
        normal = multiplier >= 2**30
        cases.append((a, multiplier, -shift, zero, low, high, normal))
        half = abs(exact) // 2 * (1 if exact > 0 else -1)
        expected.append((exact, max(low, min(high, half)), max(low, min(high, exact + zero)) if normal else 0))
    return np.array(cases, np.int32), np.array(expected, np.int64)


def check_rounding(output, expected):
    found = np.frombuffer(output, np.dtype([("one", "<i4"), ("two", "i1"), ("three", "i1")]))
    for i, name in enumerate(found.dtype.names):
        np.testing.assert_array_equal(found[name], expected[:, i])
    print(f"{len(expected)} cases equal to exact fractions, {np.count_nonzero(expected[:, 2])} of narrow() other than 0")


def test_requantisation_in_c_equals_exact_fractions(tmp_path):
    cases, expected = rounding_cases()
    (tmp_path / "main.c").write_text(ROUNDING)
    command = [*compiler("gcc"), "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    compile_c(command, *STRICT, "-Wno-unused-function", "main.c", "-o", "program", cwd=tmp_path)
    done = subprocess.run([tmp_path / "program"], input=cases.tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr
    check_rounding(done.stdout, expected)


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_the_largest_sums_meet_the_largest_zero_points_without_overflow(tmp_path, name):
    graphs = []
    for zero, shift, sign in ((127, 0, 1), (-128, 0, -1), (127, 1, 1), (127, 0, -1)):
        bias = sign * ((integer.SUM_LIMIT - 1 >> shift) - 128)
        numbers = (np.ones((1, 1), np.int8), *(np.array([n], np.int32) for n in (bias, 2**31 - 1, shift)))
        tensors = {"x": Tensor("x", (1,), 1.0, 0), "y": Tensor("y", (1,), 1.0, zero)}
        graphs.append(integer.IntegerGraph(tensors, (integer.Dense("d", ("x",), "y", *numbers),), "x", "y"))
    names = [f"n{i}" for i in range(len(graphs))]
    for one, graph in zip(names, graphs, strict=True):
        (tmp_path / f"{one}.h").write_text(emit(graph, one))
    (tmp_path / "main.c").write_text(driver(names))
    sanitise = ["-fsanitize=undefined", "-fno-sanitize-recover=all"] if name == "gcc" else ["-ftrapv"]
    compile_c(compiler(name), "-O0", *sanitise, "main.c", "-o", "program", cwd=tmp_path)
    check_program(tmp_path / "program", graphs, tmp_path)


# ---- how it is called ----------------------------------------------------------------------------------------------------------


def test_two_files_may_include_it_and_cpp_may_call_c(tmp_path):
    graph = random_graph(7)
    (tmp_path / "net.h").write_text(emit(graph, "net"))
    (tmp_path / "net.c").write_text('#include "net.h"\n#define NET_IMPLEMENTATION\n#include "net.h"\n#include "net.h"\n')
    (tmp_path / "main.cpp").write_text(
        '#include "net.h"\n#include "net.h"\n#include <stdio.h>\nint main() {\n'
        "    int8_t *const image = net_image(), logits[NET_CLASSES];\n"
        "    if (net_run(image, 0) != 1 || net_run(0, logits) != 1 || net_run(image, logits) != 0) { return 1; }\n"
        '    for (int i = 0; i < NET_CLASSES; i++) { printf("%d %s\\n", logits[i], net_class_names[i]); }\n    return 0;\n}\n'
    )
    compile_c(compiler("gcc"), "-O2", *STRICT, "-c", "net.c", cwd=tmp_path)
    compile_c([*compiler("g++")[:2]], "-O2", *STRICT, "main.cpp", "net.o", "-o", "program", cwd=tmp_path)
    lines = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True).stdout.splitlines()
    logits = graph.run(np.zeros((1, *graph.tensors["x"].shape), np.int8))[0]
    assert lines == [f"{logit} class {i}" for i, logit in enumerate(logits)]


def test_with_the_callers_arena_the_header_owns_no_memory(tmp_path):
    graph = every_kind()
    (tmp_path / "net.h").write_text(emit(graph, "net"))
    (tmp_path / "main.c").write_text(driver(["net"], caller=True))
    compile_c(compiler("gcc"), "-O2", *STRICT, "-DSELFTEST", "main.c", "-o", "program", cwd=tmp_path)
    check_program(tmp_path / "program", [graph], tmp_path)
    (tmp_path / "net.c").write_text('#define NET_CALLER_ARENA\n#define NET_IMPLEMENTATION\n#include "net.h"\n')
    compile_c(compiler("gcc"), "-Os", "-c", "net.c", cwd=tmp_path)
    found = sections(tmp_path / "net.o")
    assert found[".bss"] == found[".data"] == 0
    symbols = subprocess.run(["nm", "-g", "--defined-only", "net.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert {line.split()[-1] for line in symbols.splitlines()} == {"net_run_in", "net_class_names"}


HOOK = """
#include <stdio.h>
static void layer(int i, const signed char *values, int bytes)
{
    const int head[2] = {i, bytes};
    fwrite(head, 4, 2, stdout);
    fwrite(values, 1, (size_t)bytes, stdout);
}
#define NET_LAYER(i, values, bytes) layer(i, values, bytes)
#define NET_IMPLEMENTATION
#include "net.h"
int main(void)
{
    int8_t logits[NET_CLASSES];
    return fread(net_image(), 1, NET_INPUT_BYTES, stdin) != NET_INPUT_BYTES || net_run(net_image(), logits) != 0;
}
"""


@pytest.mark.parametrize("number", [None, 0, -1, -3])
def test_the_hook_sees_every_layer_as_python_computes_it(tmp_path, number):
    graph = every_kind() if number is None else awkward_graphs()[number]
    (tmp_path / "net.h").write_text(emit(graph, "net"))
    (tmp_path / "main.c").write_text(HOOK)
    image = images(graph, 3, 0)[2:]
    for flags in ([], ["-DNET_SELFTEST"]):
        compile_c(compiler("gcc"), *STRICT, *flags, "main.c", "-o", "program", cwd=tmp_path)
        output = subprocess.run([tmp_path / "program"], input=image.tobytes(), capture_output=True, check=True).stdout
        values, layers = graph.run_all(image), []
        while output:
            i, size = struct.unpack("<ii", output[:8])
            np.testing.assert_array_equal(np.frombuffer(output[8 : 8 + size], np.int8), values[graph.ops[i].output].ravel())
            layers.append(i)
            output = output[8 + size :]
        assert layers == [i for i in range(len(graph.ops)) if i not in memory.plan(graph).fused]
    print(f"{len(layers)} of {len(graph.ops)} layers seen, the others run inside of the next")


# ---- the test that it carries --------------------------------------------------------------------------------------------------

FLIPS = """
#define NET_SELFTEST
#define NET_IMPLEMENTATION
#include "net.h"
#include <stdio.h>
#include <stdlib.h>
int main(void)
{
    int flip[2];
    while (fread(flip, 4, 2, stdin) == 2) {
        const char *wrong;
        int layer;
        ((unsigned char *)&net_constants)[flip[0]] ^= (unsigned char)flip[1];
        wrong = net_selftest();
        layer = wrong != 0 ? atoi(wrong) : -1;
        fwrite(&layer, 4, 1, stdout);
        ((unsigned char *)&net_constants)[flip[0]] ^= (unsigned char)flip[1];
    }
    return net_selftest() != 0;
}
"""


@pytest.mark.parametrize("number", [None, -4])
def test_the_self_test_finds_a_changed_bit_and_names_its_layer(tmp_path, number):
    graph = every_kind() if number is None else awkward_graphs()[number]
    context = emit_c._compile(graph, "net")[0]
    flips, owners, at = [], [], 0
    for kind, name, values in context.constants.ordered():
        size = emit_c.SIZES[kind] * (1 if kind in (emit_c.SUM, emit_c.WINDOW) else values.size)
        what, _, number = name.partition("_")
        step, first = {"kernel": (1, 0), "bias": (4, 1), "twice": (4, 3), "right": (1, 0), "window": (34, 28), "sum": (44, 8)}.get(
            what, (1, size)
        )
        for k in range(first, size, step):  # of biases and multipliers the bytes that matter, of the others the output's zero point
            alive = what in ("window", "sum") or graph.ops[int(number)].multiplier[_channel(graph.ops[int(number)], what, k)] != 0
            if (what != "kernel" or values.ravel()[k] != 0) and alive:
                flips.append((at + k, 64 if what in ("kernel", "twice") else 16 if what == "bias" else 1))
                owners.append((what, int(number) + (int(number) in context.plan.fused)))
        at += size
    (tmp_path / "net.h").write_text(emit(graph, "net").replace("static const struct net_weights", "static struct net_weights"))
    (tmp_path / "main.c").write_text(FLIPS)
    compile_c(compiler("gcc"), "-O1", "main.c", "-o", "program", cwd=tmp_path)
    done = subprocess.run([tmp_path / "program"], input=np.array(flips, np.int32).tobytes(), capture_output=True, check=True)
    found = np.frombuffer(done.stdout, np.int32)
    assert all(layer in (-1, owner) for layer, (_, owner) in zip(found, owners, strict=True)), "never another layer"
    for what in sorted({what for what, _ in owners}):
        seen = [layer >= 0 for layer, (kind, _) in zip(found, owners, strict=True) if kind == what]
        print(f"{what}: {sum(seen)} of {len(seen)} changes change a layer")
        assert np.mean(seen) > 0.7  # the others are clamped away, or belong to a channel that always is


def _channel(op, what, k):
    """The output channel that byte k of a member belongs to."""
    if what != "kernel":
        return k // (1 if what == "right" else 4)
    outputs = op.kernel.shape[-1]
    each = op.kernel.size // outputs
    return min(k // (each if isinstance(op, integer.DepthwiseConv2D) else each + -each % 8), outputs - 1)


# ---- weights beside the header -------------------------------------------------------------------------------------------------


def write_blob(folder, graph, name):
    header = emit(graph, name, emit_c.emit_blob)
    (folder / f"{name}.h").write_text(header.text, encoding="ascii")
    (folder / f"{name}_weights.bin").write_bytes(header.blob)
    (folder / f"{name}_weights.S").write_text(header.stub, encoding="ascii")
    return header


@pytest.mark.parametrize("name", COMPILERS)
def test_weights_in_a_blob_give_the_same_bits(tmp_path, name):
    graphs = [every_kind(), awkward_graphs()[8], random_graph(7)]  # the second one has no constants
    names = ["n0", "n1", "n2"]
    for network, graph in zip(names, graphs, strict=True):
        write_blob(tmp_path, graph, network)
    (tmp_path / "main.c").write_text(driver(names))
    assembler = [part for part in compiler(name) if part == "-m32"]
    for network in names:
        compile_c(["gcc" if "g" in name[0] else "clang", *assembler], "-c", f"{network}_weights.S", cwd=tmp_path)
    objects = [f"{network}_weights.o" for network in names]
    compile_c(compiler(name), "-O1", *STRICT, "-DSELFTEST", "-c", "main.c", "-o", "main.o", cwd=tmp_path)
    compile_c([compiler(name)[0], *assembler], "main.o", *objects, "-o", "program", cwd=tmp_path)
    print(f"{name}: {check_program(tmp_path / 'program', graphs, tmp_path)} logits equal")


def test_the_blob_is_the_object_that_the_header_would_hold(tmp_path):
    graph = every_kind()
    (tmp_path / "net.h").write_text(emit(graph, "net"))
    header = write_blob(tmp_path, graph, "two")
    (tmp_path / "main.c").write_text(
        '#define NET_IMPLEMENTATION\n#include "net.h"\n#define TWO_IMPLEMENTATION\n#include "two.h"\n'
        "#include <stdio.h>\n#include <string.h>\n"
        "int main(void)\n{\n    fwrite(&net_constants, 1, sizeof net_constants, stdout);\n"
        "    return memcmp(&net_constants, (const char *)&two_constants + 4, sizeof net_constants) != 0;\n}\n"
    )
    compile_c(compiler("gcc"), *STRICT, "main.c", "two_weights.S", "-o", "program", cwd=tmp_path)
    found = subprocess.run([tmp_path / "program"], capture_output=True, check=True).stdout
    assert found == header.blob[4:]
    print(f"{len(found)} bytes equal; the header has {len(header.text)} characters instead of {len(emit(graph, 'net'))}")


def test_a_wrong_blob_is_refused_and_a_missing_one_does_not_build(tmp_path):
    graph, other = random_graph(7), random_graph(8)
    header, wrong = write_blob(tmp_path, graph, "net"), emit(other, "net", emit_c.emit_blob)
    (tmp_path / "main.c").write_text(
        '#define NET_SELFTEST\n#define NET_IMPLEMENTATION\n#include "net.h"\n#include <stdio.h>\nint main(void)\n{\n'
        "    int8_t logits[NET_CLASSES];\n    const char *w = net_selftest();\n"
        '    printf("%d %s\\n", net_run(net_image(), logits), w ? w : "passed");\n    return 0;\n}\n'
    )
    for blob, expected in (
        (header.blob, "0 passed\n"),
        (wrong.blob, "2 the call itself\n"),
        (bytes(4) + header.blob[4:], "2 the call itself\n"),
    ):
        (tmp_path / "net_weights.bin").write_bytes(blob)
        compile_c(compiler("gcc"), "main.c", "net_weights.S", "-o", "program", cwd=tmp_path)
        assert subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True).stdout == expected
    assert "net_constants" in refuses(compiler("gcc"), "main.c", "-o", "program", cwd=tmp_path)
    (tmp_path / "net_weights.bin").unlink()
    assert "net_weights.bin" in refuses(compiler("gcc"), "main.c", "net_weights.S", "-o", "program", cwd=tmp_path)


# ---- memory, known before compiling ----------------------------------------------------------------------------------------------


def stated(text, name="NET"):
    """{what: bytes} of the macros that end in _BYTES."""
    return {what: int(size) for what, size in re.findall(rf"#define {name}_(\w+)_BYTES (\d+)", text)}


def test_ram_and_flash_are_what_the_comment_says(tmp_path):
    compiler("gcc")
    for graph in (every_kind(), *map(random_graph, (7, 8, 9))):
        text = emit(graph, "net")
        (tmp_path / "net.h").write_text(text)
        (tmp_path / "net.c").write_text('#define NET_IMPLEMENTATION\n#include "net.h"\n')
        compile_c(COMPILERS["gcc"], "-Os", "-c", "net.c", cwd=tmp_path)
        arena, flash = (int(re.search(rf"{what}: ([\d,]+) bytes", text)[1].replace(",", "")) for what in ("RAM", "Flash"))
        figures = emit_c.figures(graph, ["class 0"] * graph.tensors[graph.output].size)
        assert (arena, flash) == (figures.arena, figures.flash) == (stated(text)["ARENA"], stated(text)["CONSTANT"])
        found = sections(tmp_path / "net.o")
        print(f"stated: RAM {arena}, flash {flash}; found: .bss {found['.bss']}, .rodata {found['.rodata']}, .text {found['.text']}")
        assert found[".bss"] == arena and found[".data"] == 0
        table = subprocess.run(["nm", "-S", "net.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
        sizes = [int(parts[1], 16) for line in table if len(parts := line.split()) == 4 and parts[2] in "rR"]
        assert sum(sizes) == flash and len(sizes) <= 2
        assert 0 <= found[".rodata"] - flash < 32  # gcc aligns both objects to 16 or 32 bytes on this machine


@pytest.mark.parametrize("standard", ["-std=c99", "-std=c11", "-std=c++98", "-std=c++11"])
def test_limits_are_held_by_the_compiler(tmp_path, standard):
    text = emit(every_kind(), "net")
    sizes = stated(text)
    (tmp_path / "main.c").write_text('#define NET_IMPLEMENTATION\n#include "net.h"\nint main(void) { return 0; }\n')
    command = [*(compiler("g++") if "++" in standard else compiler("gcc")), standard, *STRICT, "main.c", "-o", "program"]
    for level, macro, limit, fact in (
        ("-O1", "RAM", sizes["ARENA"] + sizes["STACK"], "arena_and_stack_fit_the_limit"),
        ("-O0", "RAM", sizes["ARENA"] + 2 * sizes["STACK"], "arena_and_stack_fit_the_limit"),
        ("-Os", "FLASH", sizes["CONSTANT"] + sizes["CODE"], "constants_and_code_fit_the_limit"),
        ("-O3", "FLASH", sizes["CONSTANT"] + sizes["CODE"] // 2 * 3, "constants_and_code_fit_the_limit"),
        ("-O0", "FLASH", sizes["CONSTANT"] + sizes["CODE"] // 2 * 5, "constants_and_code_fit_the_limit"),
    ):
        (tmp_path / "net.h").write_text(text)
        compile_c(command, level, f"-DNET_{macro}_LIMIT={limit}", cwd=tmp_path)
        assert fact in refuses(command, level, f"-DNET_{macro}_LIMIT={limit - 1}", cwd=tmp_path)
    (tmp_path / "net.h").write_text(re.sub(r"(#define NET_CONSTANT_BYTES )(\d+)", lambda found: f"{found[1]}{int(found[2]) + 1}", text))
    assert "constants_have_the_stated_size" in refuses(command, cwd=tmp_path)


# ---- nothing else in it ----------------------------------------------------------------------------------------------------------


def test_nothing_but_integers_and_stdint(networks):
    folder, graphs = networks
    for i in range(len(graphs)):
        code = without_comments((folder / f"n{i}.h").read_text())
        arm_only = code.partition("#if defined(__GNUC__)")[2]
        assert set(re.findall(r"#include (.*)", code.replace(arm_only, ""))) == {"<stdint.h>"}
        assert set(re.findall(r"#include (.*)", arm_only)) <= {"<arm_mve.h>"}
        assert not re.search(r"\b(float|double|malloc|free|printf|memcpy|math)\b|\d\.\d", code)
        assert all(name.startswith(f"n{i}_") for name in re.findall(r"^(?:typedef .*?|} )(\w+)(?:\[.*\])?;", code, flags=re.M))


def check_prefixes(command, prefix, includes, folder):
    """Every macro that the header defines, and every symbol of its object, begins with the prefix."""

    def answer(*line, **more):
        return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True, **more).stdout.splitlines()

    def macros(source):
        return set(answer(*command, "-dM", "-E", "-", input=source))

    source = f'#define {prefix.upper()}_IMPLEMENTATION\n#include "{prefix}.h"\n'
    new = macros(source) - macros(includes)
    assert all(line.startswith(f"#define {prefix.upper()}_") for line in new), new
    (folder / "symbols.c").write_text(source)
    for level in ("-O0", "-O3"):
        compile_c(command, level, "-c", "symbols.c", cwd=folder)
        rows = [line.split() for line in answer("arm-none-eabi-nm" if "arm" in command[0] else "nm", "symbols.o")]
        assert {row[-1] for row in rows if row[-2] != "U" and not row[-1].startswith((f"{prefix}_", "$", ".LC"))} == set()
        undefined = {row[-1] for row in rows if row[-2] == "U"}
        assert undefined <= {"_GLOBAL_OFFSET_TABLE_", "memset", "memcpy", "__aeabi_lmul", "__aeabi_idiv"}, undefined
    return len(new)


def test_every_symbol_and_macro_has_the_models_prefix(few):
    folder, graphs = few
    for i in range(len(graphs)):
        count = check_prefixes([*compiler("gcc")[:1], "-std=c99"], f"n{i}", "#include <stdint.h>", folder)
        print(f"{count} macros")


@pytest.mark.parametrize("core", CORES)
def test_every_symbol_and_macro_has_the_models_prefix_on_a_core(few, core):
    includes = "#include <stdint.h>\n" + "#include <arm_mve.h>\n" * (core == "cortex-m55")
    print(f"{core}: {check_prefixes(arm(core), 'n0', includes, few[0])} macros")


@pytest.mark.parametrize("language", ["gcc", "g++"])
@pytest.mark.parametrize("core", CORES)
def test_compilers_for_a_core_have_nothing_to_complain_about(few, core, language):
    folder, graphs = few
    includes = "".join(f'#define N{i}_IMPLEMENTATION\n#define N{i}_SELFTEST\n#include "n{i}.h"\n' for i in range(len(graphs)))
    (folder / "strict.c").write_text(includes)
    compile_c(arm(core, language), "-O2", *STRICT, "-c", "strict.c", cwd=folder)
    compile_c(arm(core, language), "-Os", *STRICT, *(f"-DN{i}_PORTABLE" for i in range(len(graphs))), "-c", "strict.c", cwd=folder)


def kernels_for_ops():
    """The sections of kernels.h that no other section needs."""
    used = {needed for needs, _ in emit_c._sections().values() for needed in needs}
    return set(emit_c._sections()) - used


def test_only_the_kernels_of_the_network_are_in_the_header():
    build = Builder(np.random.default_rng(0), (4, 4, 2))
    build.dense(2)
    functions = set(re.findall(r"^(?:static|int).*?net_(\w+)\(", emit(build.graph(), "net"), flags=re.M))
    assert {"dense", "dot", "narrow", "clamp", "requantise", "run", "run_in"} <= functions
    assert not functions & {"pointwise", "conv2d", "matrix", "depthwise_3x3", "ring_row", "add", "pad", "max_pool", "copy_rows"}
    build.requantise()
    assert "net_rescale(" in emit(build.graph(), "net")


def test_every_op_has_an_emitter_and_every_kernel_a_user():
    assert set(emit_c.EMITTERS) == set(integer.OPS)
    assert {needed for needs, _ in emit_c._sections().values() for needed in needs} <= set(emit_c._sections())
    graphs = [every_kind(), *awkward_graphs()]
    assert {kernel for graph in graphs for kernel in emit_c._compile(graph, "net")[0].kernels} == kernels_for_ops()


def test_the_macros_say_what_a_network_needs():
    for seed, needs in enumerate(itertools.product((0, 1), repeat=3)):
        text = emit(awkward_graphs()[10 + seed], "net")
        found = tuple(int(re.search(rf"#define NET_{what} (\d)", text)[1]) for what in ("CLAMPS", "KERNEL_ZEROS", "LEFT_SHIFTS"))
        assert found == needs


HOSTILE = [
    '"',
    "\\",
    "??/",
    "??)",
    "*/ int x; /*",
    "é1",
    "\u00fc" + "a",
    "日本語",
    "%s\n\t",
    "\x7f\x01" + "7",
    "a" * 300,
    "minitl_x MINITL_Y",
    " ",
    "",
]


def test_class_names_survive_whatever_they_hold(tmp_path):
    build = Builder(np.random.default_rng(0), (2, 2, 1))
    build.dense(len(HOSTILE))
    graph = build.graph()
    provenance = {f"source {i}": text for i, text in enumerate(HOSTILE)} | {"notes": HOSTILE, "\u202e*/": {"a": "b\\"}, "x": "\\\n/ *\\\n/"}
    text = emit(graph, "net", classes=HOSTILE, provenance=provenance, version="0 */")
    assert text.isascii() and "\\\n" not in text
    (tmp_path / "net.h").write_text(text)
    (tmp_path / "main.c").write_text(
        '#define NET_IMPLEMENTATION\n#include "net.h"\n#include <stdio.h>\nint main(void) { return fwrite(net_class_names, 1, '
        "sizeof net_class_names, stdout) == 0; }\n"
    )
    for name in ("gcc", "g++"):
        compile_c(compiler(name), "-trigraphs", *STRICT, "main.c", "-o", "program", cwd=tmp_path)
        names = np.frombuffer(subprocess.run([tmp_path / "program"], capture_output=True, check=True).stdout, "S301")
        assert [bytes(n).decode() for n in names] == HOSTILE


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_text_in_a_comment_stays_in_it(text):
    line = emit_c.comment_text(text)
    assert line.isascii() and not re.search(r"\*/|/\*|\?\?|\\|[\x00-\x1f]", line)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(4, 4),
        Recipe(4, 4, mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0)),
        Recipe(4, 4, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
        Recipe(4, 4, mean=(-300.0, 0.0, 500.0), std=(1.0, 90.0, 300.0), resize="squash"),
    ],
)
def test_the_pixel_macro_equals_the_recipe(tmp_path, recipe):
    build = Builder(np.random.default_rng(0), (4, 4, 3))
    build.tensors["x"] = Tensor("x", (4, 4, 3), *recipe.input_quantisation)
    build.dense(2)
    (tmp_path / "net.h").write_text(emit(build.graph(), "net", recipe=recipe))
    (tmp_path / "main.c").write_text(
        '#include "net.h"\n#include <stdio.h>\nint main(void)\n{\n    int p, c;\n    for (p = 0; p < 256; p++) {\n'
        "        for (c = 0; c < 3; c++) {\n            int8_t q = NET_QUANTIZE_PIXEL(p, c);\n            fwrite(&q, 1, 1, stdout);\n"
        "        }\n    }\n    return 0;\n}\n"
    )
    compile_c(compiler("gcc"), *STRICT, "main.c", "-o", "program", cwd=tmp_path)
    found = np.frombuffer(subprocess.run([tmp_path / "program"], capture_output=True, check=True).stdout, np.int8).reshape(256, 3)
    pixels = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 1, 1, 3))
    np.testing.assert_array_equal(found, recipe.quantise_pixels(pixels).reshape(256, 3))


# ---- names and refusals ------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
def test_any_file_name_gives_a_c_name(stem):
    emit_c.check_name(emit_c.identifier_from(stem))


@pytest.mark.parametrize(
    ("stem", "name"),
    [("my-model.h", "my_model"), ("model", "model"), ("2nd try", "model_2nd_try"), ("int", "model_int"), ("", "model"), ("été.h", "t")],
)
def test_file_names_become_c_names(stem, name):
    assert emit_c.identifier_from(stem) == name


@pytest.mark.parametrize("name", ["", "2a", "a b", "a-b", "_a", "a__b", "a_", "class", "while", "é", "a" * 49, "x\n", "a;"])
def test_names_that_c_forbids_are_refused(name):
    with pytest.raises(MinitlError, match="C name"):
        emit(random_graph(7), name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["one"]}, "outputs, but 1 class names"),
        ({"classes": []}, "outputs, but 0 class names"),
        ({"classes": ["a\0b"] * 3}, "zero character"),
        ({"recipe": Recipe(5, 4)}, "the recipe makes 5x4x3"),
        ({"recipe": Recipe(4, 4, mean=(0.0, 0.0, 0.0))}, "scale and zero point"),
    ],
)
def test_arguments_that_disagree_are_refused(changes, message):
    build = Builder(np.random.default_rng(0), (4, 4, 3))
    build.tensors["x"] = Tensor("x", (4, 4, 3), *Recipe(4, 4).input_quantisation)
    build.dense(3)
    with pytest.raises(MinitlError, match=message):
        emit(build.graph(), "net", **changes)


def test_a_network_too_wide_for_the_kernels_is_refused_by_layer():
    build = Builder(np.random.default_rng(0), (1, 1, 40000))
    build.depthwise((1, 1))
    build.dense(1)
    with pytest.raises(MinitlError, match=r"depthwise_conv2d 't1'.*32767"):
        emit(build.graph(), "net")


def test_the_same_arguments_give_the_same_bytes():
    assert emit(random_graph(5), "net", provenance={"b": 1, "a": 2}) == emit(random_graph(5), "net", provenance={"a": 2, "b": 1})


# ---- a real network ----------------------------------------------------------------------------------------------------------


@needs_shared
def test_the_visual_wake_words_network_in_c_equals_litert(tmp_path):
    it = interpreter(WEIGHTS / "vww_96_int8.tflite")
    graph, index, _ = integer_graph(it)
    (tmp_path / "vww.h").write_text(emit(graph, "vww", classes=["non_person", "person"]))
    (tmp_path / "main.c").write_text(driver(["vww"]))
    compile_c(compiler("gcc"), "-O2", *STRICT, "-DSELFTEST", "main.c", "-o", "program", cwd=tmp_path)
    files = sorted((DATA / "person/val").glob("*/*"))[:: 114 // COUNT][:COUNT]
    pixels = [np.asarray(Image.open(file).convert("RGB").resize((96, 96))) for file in files]
    x = (np.stack(pixels).astype(np.int16) - 128).astype(np.int8)
    done = subprocess.run([tmp_path / "program"], input=x.tobytes(), capture_output=True, check=True)
    found = np.frombuffer(done.stdout, np.int8).reshape(COUNT, 2)
    np.testing.assert_array_equal(found, graph.run(x))
    expected = []
    for image in x:
        it.set_tensor(index[graph.input], image[None])
        it.invoke()
        expected.append(it.get_tensor(index[graph.output])[0])
    print(f"{np.count_nonzero(found != np.stack(expected))} of {found.size} logits differ from LiteRT's; {emit_c.figures(graph, ['', ''])}")
    assert np.abs(found.astype(int) - np.stack(expected)).max() <= 1


def test_a_name_that_looks_like_the_placeholder_still_compiles(tmp_path):
    for name in ("MINITL_A", "my_minitl", "MINITL"):
        (tmp_path / f"{name}.h").write_text(emit(every_kind(), name))
        upper = name.upper()
        source = f'#define {upper}_SELFTEST\n#define {upper}_IMPLEMENTATION\n#include "{name}.h"\n'
        source += f"int main(void) {{ return {name}_selftest() != 0; }}\n"
        (tmp_path / "main.c").write_text(source)
        compile_c(["gcc", "-std=c99", "-Wall", "-Werror"], "main.c", "-o", "main", cwd=tmp_path)
        subprocess.run([tmp_path / "main"], check=True)


def test_the_manual_names_the_file_and_finds_the_licence_of_the_backbone():
    graph = random_graph(7)
    classes = [f"c{i}" for i in range(graph.tensors[graph.output].size)]
    text = emit_c.emit(graph, About("cats", classes, None, {"backbone": {"licence": "Apache-2.0"}}, "1", "model.h"))
    assert '#include "model.h"' in text and "cats.h" not in text and "not known to minitl" not in text
    assert "not known to minitl" in emit_c.emit(graph, About("cats", classes, None, {}, "1"))
