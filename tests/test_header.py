"""The emitted header: the same bits as Python under every compiler at hand, exact figures, and nothing that a name can break."""

import platform
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import DATA, WEIGHTS, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_graphs import Builder, images, random_graph
from litert_graphs import integer_graph, interpreter
from PIL import Image
from test_integer import EDGES, exact_requantise

from minitl import emit_c, integer
from minitl.errors import MinitlError
from minitl.images import Recipe
from minitl.integer import Tensor

STRICT = "-Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Werror".split()
COMPILERS = {
    "gcc": ["gcc", "-std=c99"],
    "g++": ["g++", "-std=c++11", "-x", "c++"],
    "clang": ["clang", "-std=c99"],
    "clang++": ["clang++", "-std=c++11", "-x", "c++"],
    "gcc -m32": ["gcc", "-std=c99", "-m32"],
}
COUNT = 12  # images per network


def works(command):
    """Whether a compiler is there and can link a program."""
    if shutil.which(command[0]) is None:
        return False
    source = b'#include <stdio.h>\nint main(void) { return puts("") < 0; }\n'
    language = [] if "-x" in command else ["-x", "c"]
    return subprocess.run([*command, *language, "-", "-o", "/dev/null"], input=source, capture_output=True).returncode == 0


def compiler(name):
    if not works(COMPILERS[name]):
        pytest.skip(f"no working {name} here")
    return COMPILERS[name]


def compile_c(command, *arguments, cwd):
    done = subprocess.run([*command, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]


def emit(graph, name, **changes):
    """A header with plain arguments where the test does not care."""
    size = graph.tensors[graph.output].size
    arguments = {
        "classes": [f"class {i}" for i in range(size)],
        "recipe": None,
        "provenance": {"licence": "none"},
        "version": "0",
    } | changes
    return emit_c.emit(graph, name, **arguments)


DRIVE = """
static int drive_NAME(void)
{
    int8_t *arena = (int8_t *)malloc(UPPER_ARENA_BYTES), *image = (int8_t *)malloc(UPPER_INPUT_BYTES);
    int8_t *one = (int8_t *)malloc(UPPER_CLASSES), *two = (int8_t *)malloc(UPPER_CLASSES);
    int k, bad = 0;
    for (k = 0; k < COUNT; k++) {
        bad |= fread(image, 1, UPPER_INPUT_BYTES, stdin) != UPPER_INPUT_BYTES;
        bad |= NAME_run_in(arena, image, two);
        bad |= NAME_RUN;
        bad |= memcmp(one, two, UPPER_CLASSES) != 0;
        bad |= fwrite(one, 1, UPPER_CLASSES, stdout) != UPPER_CLASSES;
    }
    bad |= !NAME_run_in(0, image, one) || !NAME_run_in(arena, 0, one) || !NAME_run_in(arena, image, 0);
    free(arena);
    free(image);
    free(one);
    free(two);
    return bad;
}
"""


def driver(names, run="NAME_run(image, one)"):
    """A program that runs COUNT images of each network from stdin to stdout, with arenas of exactly the stated size on the heap."""
    parts = ["#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>"]
    parts += [f'#define {name.upper()}_IMPLEMENTATION\n#include "{name}.h"\n' for name in names]
    parts += [
        DRIVE.replace("NAME_RUN", run).replace("NAME", name).replace("UPPER", name.upper()).replace("COUNT", str(COUNT)) for name in names
    ]
    calls = "".join(f"    if (drive_{name}()) {{ return {i + 1}; }}\n" for i, name in enumerate(names))
    return "\n".join(parts) + f"\nint main(void)\n{{\n{calls}    return 0;\n}}\n"


def check_program(command, graphs, cwd, count=COUNT):
    """Feeds images to a driver's program and compares every logit with Python's."""
    inputs = [images(graph, count, seed) for seed, graph in enumerate(graphs)]
    done = subprocess.run([command], input=b"".join(x.tobytes() for x in inputs), cwd=cwd, capture_output=True)
    assert done.returncode == 0, (done.returncode, done.stderr.decode()[:4000])
    logits, compared = np.frombuffer(done.stdout, np.int8), 0
    for seed, (graph, x) in enumerate(zip(graphs, inputs, strict=True)):
        expected = graph.run(x)
        found = logits[compared : compared + expected.size].reshape(expected.shape)
        np.testing.assert_array_equal(found, expected, err_msg=f"network {seed}")
        compared += expected.size
    assert compared == logits.size
    return compared


def all_sizes():
    """Networks for what random ones could miss: stride 2 at odd and even sizes under both paddings, 1x1 input, one channel."""
    graphs = []
    for size in (7, 8):
        for padding in ((0, 1, 0, 1), (1, 1, 1, 1), (0, 0, 0, 0)):
            build = Builder(np.random.default_rng(size), (size, size + 1, 3))
            build.conv(5, (3, 3), (2, 2), padding)
            build.depthwise((3, 3), (1, 1), (1, 1, 1, 1))
            build.conv(7, (1, 1))
            build.depthwise((3, 3), (2, 2), padding if padding[1] else (1, 1, 1, 1))
            build.mean()
            build.dense(3)
            graphs.append(build.graph())
    build = Builder(np.random.default_rng(1), (1, 1, 1))
    build.conv(1, (3, 3), (1, 1), (1, 1, 1, 1))
    build.depthwise((1, 1))
    build.pool(integer.MaxPool, (1, 1), (1, 1))
    build.dense(1)
    graphs.append(build.graph())
    build = Builder(np.random.default_rng(2), (9, 6, 4))
    build.pool(integer.AveragePool, (3, 2), (2, 2), (1, 1, 1, 0))
    build.pool(integer.AveragePool, build.tensors[build.last].shape[:2], (1, 1))
    build.reshape((4,))  # the output is a reshape, and nothing has weights
    graphs.append(build.graph())
    build = Builder(np.random.default_rng(3), (2, 2, 3))
    build.reshape((12,))
    graphs.append(build.graph())
    build = Builder(np.random.default_rng(4), (3, 1, 2))
    build.requantise(Tensor("", (1,), 0.03, 5))
    graphs.append(build.graph())
    return graphs


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """(folder with headers n0.h.. and the driver, graphs)."""
    folder = tmp_path_factory.mktemp("networks")
    graphs = [*all_sizes(), *(random_graph(1000 + seed) for seed in range(14))]
    names = [f"n{i}" for i in range(len(graphs))]
    assert {type(op) for graph in graphs for op in graph.ops} == set(integer.OPS)
    for name, graph in zip(names, graphs, strict=True):
        (folder / f"{name}.h").write_text(emit(graph, name), encoding="ascii")
    (folder / "main.c").write_text(driver(names))
    return folder, graphs


@pytest.mark.parametrize("name", COMPILERS)
def test_many_networks_in_one_program_equal_python(networks, name):
    folder, graphs = networks
    compile_c(compiler(name), "-O2", *STRICT, "main.c", "-o", "program", cwd=folder)
    print(f"{name}: {check_program(folder / 'program', graphs, folder)} logits equal")


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_no_undefined_behaviour_and_no_byte_outside_the_buffers(networks, name):
    folder, graphs = networks
    sanitise = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    if not works([*compiler(name), *sanitise]):
        pytest.skip(f"{name} has no sanitizers here")
    compile_c(compiler(name), *sanitise, "main.c", "-o", "sanitised", cwd=folder)
    check_program(folder / "sanitised", graphs, folder)


def test_requantisation_in_c_equals_exact_fractions(tmp_path):
    (tmp_path / "main.c").write_text(
        f'#include <stdio.h>\n#include "{emit_c.KERNELS.resolve()}"\n'
        "int main(void)\n{\n    int32_t v[3];\n    while (fread(v, 4, 3, stdin) == 3) {\n"
        "        int32_t r = minitl_requantise(v[0], v[1], v[2]);\n        int8_t c = minitl_clamp(r, -128, -128, 127);\n"
        "        fwrite(&r, 4, 1, stdout);\n        fwrite(&c, 1, 1, stdout);\n    }\n    return 0;\n}\n"
    )
    command = [*compiler("gcc"), "-Wno-unused-function", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    compile_c(command, *STRICT, "-Wno-unused-function", "main.c", "-o", "program", cwd=tmp_path)
    done = subprocess.run([tmp_path / "program"], input=np.array(EDGES, np.int32).tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr
    found = np.frombuffer(done.stdout, np.dtype([("r", "<i4"), ("c", "i1")]))
    expected = np.array([exact_requantise(*map(int, edge)) for edge in EDGES])
    np.testing.assert_array_equal(found["r"], expected)
    np.testing.assert_array_equal(found["c"], np.clip(expected - 128, -128, 127))
    print(f"{len(EDGES)} cases equal")


def test_two_files_may_include_it_and_cpp_may_call_c(tmp_path):
    graph = random_graph(7)
    (tmp_path / "net.h").write_text(emit(graph, "net"))
    (tmp_path / "net.c").write_text('#include "net.h"\n#define NET_IMPLEMENTATION\n#include "net.h"\n#include "net.h"\n')
    (tmp_path / "main.cpp").write_text(
        '#include "net.h"\n#include "net.h"\n#include <stdio.h>\nint main() {\n'
        "    static int8_t image[NET_INPUT_BYTES], logits[NET_CLASSES];\n"
        "    if (net_run(image, 0) == 0 || net_run(0, logits) == 0 || net_run(image, logits) != 0) { return 1; }\n"
        '    for (int i = 0; i < NET_CLASSES; i++) { printf("%d %s\\n", logits[i], net_class_names[i]); }\n    return 0;\n}\n'
    )
    compile_c(compiler("gcc"), "-O2", *STRICT, "-c", "net.c", cwd=tmp_path)
    compile_c(["g++", "-std=c++11"], "-O2", *STRICT, "main.cpp", "net.o", "-o", "program", cwd=tmp_path)
    lines = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True).stdout.splitlines()
    logits = graph.run(np.zeros((1, *graph.tensors["x"].shape), np.int8))[0]
    assert lines == [f"{logit} class {i}" for i, logit in enumerate(logits)]


def sections(path):
    """{section or symbol: bytes} of an object file."""
    lines = subprocess.run(["size", "-A", path], capture_output=True, text=True, check=True).stdout.splitlines()
    return {parts[0]: int(parts[1]) for line in lines if len(parts := line.split()) == 3 and parts[1].isdigit()}


def test_with_the_callers_arena_the_header_owns_no_memory(tmp_path):
    graph = random_graph(7)
    (tmp_path / "net.h").write_text(emit(graph, "net"))
    (tmp_path / "main.c").write_text("#define NET_CALLER_ARENA\n" + driver(["net"], run="NAME_run_in(arena, image, one)"))
    compile_c(compiler("gcc"), "-O2", *STRICT, "main.c", "-o", "program", cwd=tmp_path)
    check_program(tmp_path / "program", [graph], tmp_path)
    (tmp_path / "net.c").write_text('#define NET_CALLER_ARENA\n#define NET_IMPLEMENTATION\n#include "net.h"\n')
    compile_c(compiler("gcc"), "-Os", "-c", "net.c", cwd=tmp_path)
    found = sections(tmp_path / "net.o")
    assert found[".bss"] == found[".data"] == 0
    symbols = subprocess.run(["nm", "-g", "net.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert "net_run_in" in symbols and "net_run" not in symbols


def test_ram_and_flash_are_what_the_comment_says(tmp_path):
    compiler("gcc")
    for seed in (7, 8, 9):
        graph = random_graph(seed)
        text = emit(graph, "net")
        (tmp_path / "net.h").write_text(text)
        (tmp_path / "net.c").write_text('#define NET_IMPLEMENTATION\n#include "net.h"\n')
        compile_c(COMPILERS["gcc"], "-Os", "-c", "net.c", cwd=tmp_path)
        arena, flash = (int(re.search(rf"{what}: ([\d,]+) bytes", text)[1].replace(",", "")) for what in ("RAM", "Flash"))
        figures = emit_c.figures(graph, ["class 0"] * graph.tensors[graph.output].size)
        assert (arena, flash) == (figures.arena, sum(figures.constants.values()))
        found = sections(tmp_path / "net.o")
        print(f"stated: RAM {arena}, flash {flash}; found: .bss {found['.bss']}, .rodata {found['.rodata']}, .text {found['.text']}")
        assert found[".bss"] == arena and found[".data"] == 0
        assert 0 <= found[".rodata"] - flash < 32  # gcc aligns both objects to 16 or 32 bytes on this machine
        table = subprocess.run(["nm", "-S", "net.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
        sizes = [int(parts[1], 16) for line in table if len(parts := line.split()) == 4 and parts[2] in "rR"]
        assert sum(sizes) == flash and len(sizes) <= 2


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the header states the bound for x86-64 (and for Cortex-M4)")
@pytest.mark.parametrize("level", ["-Os", "-O2", "-O3"])
def test_the_stack_stays_below_the_stated_bound(networks, level):
    folder, graphs = networks
    worst = 0
    for i in range(0, len(graphs), 4):
        (folder / "one.c").write_text(f'#define N{i}_IMPLEMENTATION\n#include "n{i}.h"\n')
        compile_c(compiler("gcc"), level, "-fstack-usage", "-c", "one.c", "-o", "one.o", cwd=folder)
        frames = {line.split("\t")[0].split(":")[-1]: int(line.split("\t")[1]) for line in (folder / "one.su").read_text().splitlines()}
        outer = sum(size + 8 for name, size in frames.items() if "_run" in name)
        inner = sum(size + 8 for name, size in frames.items() if "requantise" in name or "clamp" in name)
        kernels = [size + 8 for name, size in frames.items() if not re.search("_run|requantise|clamp", name)]
        worst = max(worst, outer + max(kernels, default=0) + inner)
    print(f"{level}: at most {worst} bytes of stack")
    assert worst < (1024 if level == "-O3" else 512)


def test_nothing_but_integers_and_stdint(networks):
    folder, graphs = networks
    for i in range(len(graphs)):
        code = re.sub(r"/\*.*?\*/", "", (folder / f"n{i}.h").read_text(), flags=re.S)
        assert re.findall(r"#include .*", code) == ["#include <stdint.h>"]
        assert not re.search(r"\b(float|double|malloc|free|printf|memcpy|math)\b|\d\.\d", code)
        assert all(name.startswith(f"n{i}_") for name in re.findall(r"^(?:typedef .*?|} )(\w+)(?:\[.*\])?;", code, flags=re.M))


def test_every_symbol_and_macro_has_the_models_prefix(networks):
    folder, graphs = networks
    macros = [*compiler("gcc"), "-dM", "-E", "-"]
    given = set(
        subprocess.run(macros, input="#include <stdint.h>", cwd=folder, capture_output=True, text=True, check=True).stdout.split("\n")
    )
    for i in range(0, len(graphs), 3):
        source = f'#define N{i}_IMPLEMENTATION\n#include "n{i}.h"\n'
        after = subprocess.run(macros, input=source, cwd=folder, capture_output=True, text=True, check=True).stdout.split("\n")
        assert all(line.startswith(f"#define N{i}_") for line in set(after) - given)
        (folder / "symbols.c").write_text(source)
        compile_c(compiler("gcc"), "-O0", "-c", "symbols.c", cwd=folder)
        listed = subprocess.run(["nm", "symbols.o"], cwd=folder, capture_output=True, text=True, check=True).stdout
        names = {line.split()[-1] for line in listed.splitlines()}
        assert {name for name in names if not name.startswith(f"n{i}_")} <= {"arena.0", "_GLOBAL_OFFSET_TABLE_"}, names


def test_only_the_kernels_of_the_network_are_in_the_header():
    build = Builder(np.random.default_rng(0), (4, 4, 2))
    build.conv(2, (1, 1))
    build.dense(2)
    functions = set(re.findall(r"net_(\w+)\(", emit(build.graph(), "net")))
    assert functions == {"requantise", "clamp", "first", "last", "pointwise", "dense", "run", "run_in"}


def test_every_op_has_an_emitter_and_every_kernel_a_user():
    assert set(emit_c.EMITTERS) == set(integer.OPS)
    used = {needed for name, (needs, _) in emit_c._sections().items() for needed in needs}
    assert set(emit_c._sections()) - used == {
        "conv2d", "pointwise", "depthwise_conv2d", "dense", "average_pool", "max_pool", "global_mean", "add", "copy_rows", "rescale",
    }  # fmt: skip


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
    compile_c(compiler("gcc"), "-O2", *STRICT, "main.c", "-o", "program", cwd=tmp_path)
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
        (tmp_path / f"{name}.h").write_text(emit(random_graph(7), name))
        (tmp_path / "main.c").write_text(f'#define {name.upper()}_IMPLEMENTATION\n#include "{name}.h"\nint main(void) {{ return 0; }}\n')
        compile_c(["gcc", "-std=c99", "-Wall", "-Werror"], "main.c", "-o", "main", cwd=tmp_path)


def test_the_manual_names_the_file_and_finds_the_licence_of_the_backbone():
    graph = random_graph(7)
    classes = [f"c{i}" for i in range(graph.tensors[graph.output].size)]
    text = emit_c.emit(graph, "cats", classes, None, {"backbone": {"licence": "Apache-2.0"}}, "1", "model.h")
    assert '#include "model.h"' in text and "cats.h" not in text and "not known to minitl" not in text
    assert "not known to minitl" in emit_c.emit(graph, "cats", classes, None, {}, "1")
