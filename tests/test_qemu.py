"""Emitted headers on simulated Cortex-M boards, and on a big-endian computer: the same bits as Python; and what is counted there."""

import re
import shutil
import tempfile

import numpy as np
import pytest
from compiled import STRICT, check_program, compile_c, compiler, emit, write_networks
from conftest import WEIGHTS, needs_shared
from integer_graphs import awkward_graphs, every_kind, images, random_graph
from litert_graphs import integer_graph, interpreter
from test_header import check_rounding, rounding_cases, write_blob

from minitl import emit_c, qemu
from minitl.errors import MinitlError

COUNT = 20  # images per network
BIG = [core for core in qemu.CORES if qemu.CORES[core].ram[1] > 65536]


def needs(core):
    if why := qemu.unavailable(core):
        pytest.skip(why)


# ---- many networks in one program --------------------------------------------------------------------------------------------

DRIVE = """
static int drive_NAME(void)
{
    int8_t one[UPPER_CLASSES], two[UPPER_CLASSES];
    const char *wrong;
    int k, i, bad = 0;
    memset(arena + UPPER_ARENA_BYTES, 0x5A, 16);
    if ((wrong = NAME_selftest_in(arena)) != 0) {
        board_say(wrong);
        return 1;
    }
    for (k = 0; k < COUNT; k++) {
        if (board_read(image, UPPER_INPUT_BYTES) != UPPER_INPUT_BYTES || NAME_run_in(arena, image, one) != 0) {
            return 2;
        }
        memcpy(arena + UPPER_IMAGE_OFFSET, image, UPPER_INPUT_BYTES);
        if (NAME_run_in(arena, (int8_t *)arena + UPPER_IMAGE_OFFSET, two) != 0) {
            return 3;
        }
        board_write(one, UPPER_CLASSES);
        bad |= memcmp(one, two, UPPER_CLASSES) != 0;
    }
    for (i = 0; i < 16; i++) {
        bad |= arena[UPPER_ARENA_BYTES + i] != 0x5A;
    }
    return bad ? 4 : 0;
}
"""


def board_driver(names):
    """A program that runs COUNT images of each network, from outside the arena and inside it, in an arena with a fence behind it."""
    head = '#include "board.h"\nvoid *memcpy(void *, const void *, unsigned);\nvoid *memset(void *, int, unsigned);\n'
    head += "int memcmp(const void *, const void *, unsigned);\nint main(void);\n"
    parts = [f'#define {name.upper()}_SELFTEST\n#define {name.upper()}_IMPLEMENTATION\n#include "{name}.h"\n' for name in names]
    unions = "".join(f"    int8_t {name}[{name.upper()}_{{}}];\n" for name in names)
    parts += [f"static union {{\n{unions.format(*['ARENA_BYTES + 16'] * len(names))}    uint32_t words;\n}} memory;\n"]
    parts += [f"static union {{\n{unions.format(*['INPUT_BYTES'] * len(names))}}} picture;\n"]
    parts += ["static int8_t *const arena = (int8_t *)&memory, *const image = (int8_t *)&picture;\n"]
    parts += [DRIVE.replace("NAME", name).replace("UPPER", name.upper()).replace("COUNT", str(COUNT)) for name in names]
    calls = "".join(f"    if ((status = drive_{name}()) != 0) {{ return {10 * i} + status; }}\n" for i, name in enumerate(names, 1))
    return head + "\n".join(parts) + f"\nint main(void)\n{{\n    int status;\n{calls}    return 0;\n}}\n"


def check_on(core, graphs, folder, flags=("-O3",)):
    """Runs all graphs in one program on a core and compares every logit with Python's; how many were compared."""
    names = [f"n{i}" for i in range(len(graphs))]
    headers = {f"{name}.h": emit(graph, name) for name, graph in zip(names, graphs, strict=True)}
    elf = qemu.build(folder, headers | {"main.c": board_driver(names)}, core, flags)
    inputs = [images(graph, COUNT, seed) for seed, graph in enumerate(graphs)]
    expected = np.concatenate([graph.run(x).ravel() for graph, x in zip(graphs, inputs, strict=True)])
    found = np.frombuffer(qemu.run(elf, core, b"".join(x.tobytes() for x in inputs)), np.int8)
    np.testing.assert_array_equal(found, expected)
    return found.size


@pytest.mark.parametrize("core", qemu.CORES)
def test_many_networks_on_a_core_equal_python(core, tmp_path):
    needs(core)
    graphs = [*awkward_graphs(), *(random_graph(1000 + seed) for seed in range(14))]
    step = {"cortex-m0plus": 1, "cortex-m4": 1, "cortex-m55": 1}.get(core, 3)  # the others run the same code, and a micro:bit is small
    graphs, flags = graphs[::step], ("-O3",) if core in BIG else ("-Os",)
    print(f"{core}: {check_on(core, graphs, tmp_path, flags)} logits of {len(graphs)} networks equal")


SELFTEST = """
#define NET_SELFTEST
#define NET_IMPLEMENTATION
#include "net.h"
#include "board.h"
int main(void);
int main(void)
{
    const char *wrong = net_selftest();
    uint32_t bytes = 0;
    while (wrong != 0 && wrong[bytes] != 0) {
        bytes++;
    }
    board_write(wrong, bytes);
    return 0;
}
"""


@pytest.mark.parametrize("layer", [0, 1, 3, 13])
def test_the_self_test_on_a_core_names_the_layer_that_differs(tmp_path, layer):
    needs("cortex-m4")
    graph = every_kind()
    header = emit(graph, "net")
    broken = re.sub(rf"(/\* bias_{layer} \*/ {{\n *)(-?\d+)", lambda found: f"{found[1]}{int(found[2]) ^ 0x10000}", header)
    assert broken != header
    for text, expected in ((header, ""), (broken, f"{layer} {graph.ops[layer].name}")):
        elf = qemu.build(tmp_path, {"net.h": text, "main.c": SELFTEST}, "cortex-m4", ("-Os",))
        assert qemu.run(elf, "cortex-m4").decode() == expected


ROUNDING = f"""
#include "board.h"
#include "{emit_c.KERNELS.resolve()}"
int main(void);
int main(void)
{{
    int32_t v[7];
    while (board_read(v, 28) == 28) {{
        const int32_t right = v[2], one = minitl_requantise(v[0], v[1], right), twice = (int32_t)((uint32_t)v[1] << 1);
        const int8_t two = minitl_clamp(one / 2, v[4], v[5]);
        int8_t three = v[6] ? minitl_narrow(v[0], twice, right, 2 * v[3] + 1, v[4], v[5]) : 0;
#ifdef MINITL_HELIUM
        if (v[6]) {{
            const int32x4_t four = minitl_narrow4(vdupq_n_s32(v[0]), vdupq_n_s32(twice), vdupq_n_s32(-right), v[3], v[4], v[5]);
            three = vgetq_lane_s32(four, 0) == three && vgetq_lane_s32(four, 3) == three ? three : (int8_t)~three;
        }}
#endif
        board_write(&one, 4);
        board_write(&two, 1);
        board_write(&three, 1);
    }}
    return 0;
}}
"""


@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4", "cortex-m55"])
def test_requantisation_on_a_core_equals_exact_fractions(core, tmp_path):
    needs(core)
    cases, expected = rounding_cases()
    elf = qemu.build(tmp_path, {"main.c": ROUNDING}, core, ("-O2", "-Wno-unused-function"))
    check_rounding(qemu.run(elf, core, cases.tobytes()), expected)


def test_weights_in_a_blob_on_a_core_give_the_same_bits(tmp_path):
    needs("cortex-m4")
    graph = every_kind()
    header = write_blob(tmp_path, graph, "n0")
    objects = [qemu._support(tmp_path, "cortex-m4")]
    (tmp_path / "main.c").write_text(board_driver(["n0"]))
    objects.append(qemu._compile(tmp_path, "main.c", "cortex-m4", ("-O2",)))
    compile_c([qemu.GCC, *qemu.CORES["cortex-m4"].flags], "-c", "n0_weights.S", cwd=tmp_path)
    elf = qemu._link(tmp_path, [*objects, "n0_weights.o"], "cortex-m4")
    found = np.frombuffer(qemu.run(elf, "cortex-m4", images(graph, COUNT).tobytes()), np.int8)
    np.testing.assert_array_equal(found, graph.run(images(graph, COUNT)).ravel())
    print(f"{found.size} logits equal with {len(header.blob)} bytes of weights apart")


def check_random(seeds, folder):
    """Random networks: Python, the host's gcc and a Cortex-M4 agree."""
    needs("cortex-m4")
    graphs = [random_graph(seed) for seed in seeds]
    compared = check_on("cortex-m4", graphs, folder, ("-O2",))
    write_networks(folder, graphs)
    compile_c(compiler("gcc"), "-O1", *STRICT, "main.c", "-o", "host", cwd=folder)
    print(f"{len(graphs)} networks: {compared} logits on the core and {check_program(folder / 'host', graphs, folder)} on the host equal")


def test_random_networks_agree_in_python_on_the_host_and_on_a_core(tmp_path):
    check_random(range(2000, 2012), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(20))
def test_many_more_random_networks_agree(tmp_path, batch):
    check_random(range(3000 + 15 * batch, 3015 + 15 * batch), tmp_path)


BIG_ENDIAN = {"mips": ("mips-linux-gnu-gcc", "qemu-mips"), "powerpc": ("powerpc-linux-gnu-gcc", "qemu-ppc")}


def test_a_big_endian_processor_computes_the_same(tmp_path):
    here = [tools for tools in BIG_ENDIAN.values() if all(map(shutil.which, tools))]
    if not here:
        pytest.skip("no big-endian compiler and simulator here (Debian and Ubuntu: apt install gcc-mips-linux-gnu qemu-user)")
    graphs = [*awkward_graphs(), *(random_graph(1000 + seed) for seed in range(14))]
    write_networks(tmp_path, graphs)
    compile_c([here[0][0], "-std=c99"], "-static", "-O2", *STRICT, "-DSELFTEST", "main.c", "-o", "program", cwd=tmp_path)
    print(f"{here[0][1]}: {check_program([here[0][1], tmp_path / 'program'], graphs, tmp_path)} logits equal")


# ---- a real network ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vww():
    """(graph, header, images, Python's logits) of the person detector."""
    graph = integer_graph(interpreter(WEIGHTS / "vww_96_int8.tflite"))[0]
    x = images(graph, COUNT, 0)
    return graph, emit(graph, "vww", classes=["non_person", "person"]), x, graph.run(x)


@needs_shared
@pytest.mark.parametrize(
    ("core", "flags"),
    [("cortex-m4", "-O3"), ("cortex-m4", "-Os"), ("cortex-m55", "-O3"), ("cortex-m3", "-O2"), ("cortex-m7", "-O3"), ("cortex-m33", "-O3")],
)
def test_the_visual_wake_words_network_on_a_core_equals_python(vww, core, flags):
    needs(core)
    _, header, x, expected = vww
    found = qemu.logits(header, "vww", core, x, (flags,))
    np.testing.assert_array_equal(found, expected)
    print(f"{core} {flags}: {found.size} logits equal")


@needs_shared
def test_a_profile_adds_up_and_repeats(vww):
    needs("cortex-m4")
    graph, header, x, _ = vww
    one = qemu.profile(header, "vww", "cortex-m4", x[-1])
    assert qemu.profile(header, "vww", "cortex-m4", x[-1]) == one
    assert [i for i, _ in one.by_op] == sorted({i for i, _ in one.by_op}) and max(i for i, _ in one.by_op) < len(graph.ops)
    assert sum(count for _, count in one.by_op) == one.instructions
    stated = {what: int(re.search(rf"#define VWW_{what} (\d+)", header)[1]) for what in ("ARENA_BYTES", "CONSTANT_BYTES")}
    assert one.arena == stated["ARENA_BYTES"]
    assert stated["CONSTANT_BYTES"] - 64 < one.constants < stated["CONSTANT_BYTES"] + 256  # class names are not linked here
    assert 500 < one.code < 16384 and 50 < one.stack < 1024
    assert one.resolution == pytest.approx(40, rel=1e-4)
    print(one)


def check_bounds(graph, core, level):
    """One run stays below the stack and the code that the header states; the part of the code that it takes."""
    found = qemu.profile(emit(graph, "net"), "net", core, images(graph, 1, 0)[0], (level,))
    code, stack = emit_c.figures(graph, [""] * graph.tensors[graph.output].size).code, emit_c.STACK
    print(f"{core} {level}: stack {found.stack} of {stack}, code {found.code} of {code}, {found.code / code:.2f}")
    assert found.stack < (2 * stack if level == "-O0" else stack)
    assert found.code < {"-O0": 3, "-O1": 1.2, "-O3": 1.7}.get(level, 1) * code
    return found.code / code


@pytest.mark.parametrize("level", ["-Os", "-O2", *(pytest.param(level, marks=pytest.mark.slow) for level in ("-O0", "-O1", "-O3"))])
@pytest.mark.parametrize("core", qemu.CORES)
def test_stack_and_code_stay_below_what_the_header_promises(core, level):
    needs(core)
    for graph in (every_kind(), awkward_graphs()[20]):
        check_bounds(graph, core, level)


@needs_shared
@pytest.mark.parametrize(("core", "level"), [("cortex-m4", "-Os"), ("cortex-m4", "-O2"), ("cortex-m55", "-O3")])
def test_stack_and_code_of_a_real_network_stay_below_and_are_not_far(vww, core, level):
    needs(core)
    assert check_bounds(vww[0], core, level) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("level", ["-Os", "-O2", "-O3"])
@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4", "cortex-m55"])
def test_stack_and_code_of_small_and_random_networks_stay_below(core, level):
    needs(core)
    for graph in (*awkward_graphs()[5:24:2], *map(random_graph, range(500, 506))):
        check_bounds(graph, core, level)


# ---- the tool itself ---------------------------------------------------------------------------------------------------------

NOPS = """
#include "board.h"
int main(void);
int main(void)
{
    uint32_t times[3];
    times[0] = board_ticks();
    __asm__ volatile(".rept 50000\\n\\tnop\\n\\t.endr");
    times[1] = board_ticks();
    __asm__ volatile(".rept 10000\\n\\tnop\\n\\t.endr");
    times[2] = board_ticks();
    board_write(times, sizeof times);
    return 0;
}
"""


@pytest.mark.parametrize("core", BIG)
def test_ticks_count_instructions(core, tmp_path):
    needs(core)
    times = np.frombuffer(qemu.run(qemu.build(tmp_path, {"main.c": NOPS}, core), core, count=True), "<u4").astype(int)
    ratio = 40000 / (np.diff(times)[0] - np.diff(times)[1])  # what a tick costs, free of what reading it costs
    print(f"{core}: {ratio:.2f} instructions a tick")
    assert ratio == pytest.approx(qemu_ratio(core), rel=0.01)


def qemu_ratio(core):
    """Nanoseconds per period of the board's processor clock, as its manual states the clock."""
    return {"mps2-an505": 50, "mps3-an547": 31.25}.get(qemu.CORES[core].machine, 40)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("int main(void) { return 7; }", "status 7"),
        ("int main(void) { return *(volatile int *)0xE0000000u; }\n", None),
        ('int main(void) { __asm__ volatile("udf #0"); return 0; }', "a fault"),
        ("int main(void) { for (;;) { } }", "not done after 1 seconds"),
        ("int main(void) { return nothing; }", r"(?s)main\.c failed.*nothing"),
        ("int main(void) { extern int nothing; return nothing; }", "nothing"),
        ("volatile char much[1 << 26]; int main(void) { return much[5]; }", "RAM"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, source, message):
    needs("cortex-m4")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def attempt():
        with tempfile.TemporaryDirectory() as folder:
            folder = type(tmp_path)(folder)
            qemu.run(qemu.build(folder, {"main.c": source}, "cortex-m4"), "cortex-m4", timeout=1)

    if message is None:
        attempt()
    else:
        with pytest.raises(MinitlError, match=message):
            attempt()
    assert not list(tmp_path.iterdir())


def test_logits_leave_no_file_and_refuse_images_of_another_size(tmp_path, monkeypatch):
    needs("cortex-m4")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    graph = random_graph(7)
    header = emit(graph, "board")
    x = images(graph, COUNT, 3)
    np.testing.assert_array_equal(qemu.logits(header, "board", "cortex-m4", x), graph.run(x))
    with pytest.raises(MinitlError, match="BOARD_INPUT_BYTES"):
        qemu.logits(header, "board", "cortex-m4", x[:2, ..., :0])
    with pytest.raises(MinitlError, match="cortex-m4"):
        qemu.logits(header, "board", "cortex-m5", x)
    assert not list(tmp_path.iterdir())


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "arm-none-eabi-gcc is not on the PATH" in qemu.unavailable("cortex-m4")
    with pytest.raises(MinitlError, match="apt install"):
        qemu.logits("", "net", "cortex-m4", np.zeros((1, 1), np.int8))
