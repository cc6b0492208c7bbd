"""The folders build as they are: on the host, for Cortex-M, and as an Arduino sketch; their programs answer what Python answers."""

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from integer_graphs import Builder, images, random_graph
from test_header import STRICT, compile_c, emit

from minitl import emit_c, neither, projects, qemu
from minitl.errors import MinitlError
from minitl.files import write_together
from minitl.images import Recipe
from minitl.integer import Tensor

RECIPE = Recipe(10, 7)


def network(name, classes=("cat", "a dog", "été")):
    """(graph, header) for photos of 7x10 pixels."""
    build = Builder(np.random.default_rng(5), (RECIPE.height, RECIPE.width, 3))
    build.tensors["x"] = Tensor("x", (RECIPE.height, RECIPE.width, 3), *RECIPE.input_quantisation)
    build.conv(6, (3, 3), (2, 2), (1, 1, 1, 1))
    build.depthwise((3, 3), (1, 1), (1, 1, 1, 1))
    build.mean()
    build.dense(len(classes))
    return build.graph(), emit(build.graph(), name, classes=list(classes), recipe=RECIPE)


def knowing_neither(name, classes):
    """(graph, header, rule) of the same network, for which about half of all images show none of the classes."""
    graph = network(name)[0]
    watched = graph.ops[-1].inputs[0]
    graph = replace(graph, watched=watched)
    values = graph.run_all(images(graph, 40, 3))[watched].astype(int) - graph.tensors[watched].zero_point
    rows = np.random.default_rng(1).integers(0, 128, (len(classes), values.shape[1])).astype(np.int8)
    rule = neither.Rule(rows, int(np.median(neither.likeness(values, rows))), np.zeros(len(classes), int), 0)
    return graph, emit(graph, name, classes=list(classes), recipe=RECIPE, neither=rule), rule


def weights_apart(name, classes):
    """The same network with its weights beside the header."""
    return emit_c.emit_blob(network(name, classes)[0], emit_c.About(name, classes, RECIPE, {"licence": "none"}, "0"))


def write(folder, files):
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    write_together({folder / path: data for path, data in files.items()})


def lines(graph, pixels, classes):
    """What main.c prints for uint8 (N, H, W, 3) pixels."""
    logits = graph.run(RECIPE.quantise_pixels(pixels))
    return [f"{classes[row.argmax()]}\t{' '.join(map(str, row))}" for row in logits.tolist() for row in [np.array(row)]]


def ppm(pixels):
    """Pictures as one stream of PPM files, each with a comment."""
    return b"".join(f"P6\n# made here\n{RECIPE.width} {RECIPE.height}\n255\n".encode() + p.tobytes() for p in pixels)


def make(folder, *arguments, status=0):
    if shutil.which("make") is None:
        pytest.skip("no make here")
    done = subprocess.run(["make", "-s", *arguments], cwd=folder, capture_output=True, text=True)
    assert (done.returncode == 0) == (status == 0), done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["net", "main", "board", "host", "build"])
def test_the_plain_project_builds_and_answers_as_python(tmp_path, name):
    classes = ("cat", "a dog", "été")
    graph, header = network(name, classes)
    write(tmp_path, projects.plain(header, name, classes, RECIPE))
    make(tmp_path, "CFLAGS=-O2 " + " ".join(STRICT))
    pixels = np.random.default_rng(0).integers(0, 256, (5, RECIPE.height, RECIPE.width, 3), dtype=np.uint8)
    expected = ["self-test: equal to Python in every bit", *lines(graph, pixels, classes)]
    for data in (ppm(pixels), RECIPE.quantise_pixels(pixels).tobytes()):
        done = subprocess.run([tmp_path / "build" / name], input=data, capture_output=True, check=True)
        assert done.stdout.decode().splitlines() == expected
    for bad in (ppm(pixels)[:-1], b"P6\n3 3\n255\n" + bytes(27), b"P6\n7 10\n65535\n" + bytes(420)):
        assert subprocess.run([tmp_path / "build" / name], input=bad, capture_output=True).returncode == 2
    (tmp_path / "photo.ppm").write_bytes(ppm(pixels[:1]))
    assert make(tmp_path, "run", "IMAGES=photo.ppm").splitlines() == expected[:2]
    make(tmp_path, "clean")
    assert not (tmp_path / "build").exists()


def test_the_plain_project_takes_weights_from_a_file_of_their_own(tmp_path):
    classes = ("cat", "a dog", "été")
    graph, _ = network("net", classes)
    write(tmp_path, projects.plain(weights_apart("net", classes), "net", classes, RECIPE))
    make(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (5, RECIPE.height, RECIPE.width, 3), dtype=np.uint8)
    done = subprocess.run([tmp_path / "build/net"], input=ppm(pixels), capture_output=True, check=True)
    assert done.stdout.decode().splitlines()[1:] == lines(graph, pixels, classes)


@pytest.mark.parametrize(("core", "apart"), [*((core, False) for core in qemu.CORES), ("cortex-m4", True)])
def test_the_plain_project_answers_the_same_on_every_core(tmp_path, core, apart):
    if why := qemu.unavailable(core):
        pytest.skip(why)
    classes = ("cat", "a dog", "été")
    graph, header = network("net", classes)
    header = weights_apart("net", classes) if apart else header
    write(tmp_path, projects.plain(header, "net", classes, RECIPE))
    pixels = np.random.default_rng(0).integers(0, 256, (5, RECIPE.height, RECIPE.width, 3), dtype=np.uint8)
    (tmp_path / "photos.ppm").write_bytes(ppm(pixels))
    expected = ["self-test: equal to Python in every bit", *lines(graph, pixels, classes)]
    assert make(tmp_path, "run-arm", f"CORE={core}", "IMAGES=photos.ppm").splitlines() == expected
    assert make(tmp_path, "run-arm", f"CORE={core}").splitlines() == expected[:1]
    flash, ram = re.search(r"\n\s*(\d+)\s+\d+\s+(\d+)", make(tmp_path, "size", f"CORE={core}")).groups()
    print(f"{core}: {flash} bytes of flash, {ram} of RAM")


def test_messages_come_on_standard_output_and_a_network_too_large_for_a_board_gets_a_sentence(tmp_path):
    if why := qemu.unavailable("cortex-m0"):
        pytest.skip(why)
    build = Builder(np.random.default_rng(5), (80, 80, 3))
    build.mean()
    build.dense(3)
    write(tmp_path, projects.plain(emit(build.graph(), "net"), "net", ("a", "b", "c"), None))
    done = subprocess.run(["make", "-s", "run-arm"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "self-test: equal to Python in every bit\n" and done.stderr == ""
    assert "too large for qemu's microbit: take another CORE" in make(tmp_path, "arm", "CORE=cortex-m0", status=2)
    for line in make(tmp_path, "-nB", "arm").splitlines():
        flags = [word for word in line.split() if word.startswith("-")]
        assert len(set(flags)) == len(flags), line


def test_another_compiler_or_other_flags_build_again_and_nothing_else_does(tmp_path):
    _, header = network("net")
    write(tmp_path, projects.plain(header, "net", ("a", "b", "c"), RECIPE))
    program = tmp_path / "build/net"

    def built(*words):
        before = program.stat().st_mtime_ns if program.exists() else 0
        make(tmp_path, *words)
        return program.stat().st_mtime_ns != before

    words = [
        [],
        ["CFLAGS=-O1"],
        ["CFLAGS=-O1"],
        ["CFLAGS=-O1", "CC=gcc"],
        ["CFLAGS=-O1 -DX='\"a b\"'"],
        ["CFLAGS=-O1 -DX='\"a b\"'"],
        [],
        [],
    ]
    assert [built(*w) for w in words] == [True, True, False, True, True, False, True, False]


def test_make_refuses_a_core_that_it_does_not_know(tmp_path):
    _, header = network("net")
    write(tmp_path, projects.plain(header, "net", ("a", "b", "c"), RECIPE))
    assert "cortex-m4" in make(tmp_path, "arm", "CORE=cortex-m5", status=2)


def test_without_a_recipe_the_project_reads_raw_images(tmp_path):
    graph = random_graph(7)
    classes = [f"class {i}" for i in range(graph.tensors[graph.output].size)]
    write(tmp_path, projects.plain(emit(graph, "net"), "net", classes, None))
    make(tmp_path, "CFLAGS=-O1 " + " ".join(STRICT))
    x = images(graph, 4, 0)
    done = subprocess.run([tmp_path / "build/net"], input=x.tobytes(), capture_output=True, check=True)
    found = [line.split("\t")[1] for line in done.stdout.decode().splitlines()[1:]]
    assert found == [" ".join(map(str, row)) for row in graph.run(x)]


def test_both_projects_say_neither_where_the_model_does(tmp_path):
    classes = ("cat", "Neither", "été")
    graph, header, rule = knowing_neither("net", classes)
    write(tmp_path, projects.plain(header, "net", classes, RECIPE))
    make(tmp_path, "CFLAGS=-O1 " + " ".join(STRICT))
    x = images(graph, 40, 3)
    done = subprocess.run([tmp_path / "build/net"], input=x.tobytes(), capture_output=True, check=True)
    found = [line.split("\t")[0] for line in done.stdout.decode().splitlines()[1:]]
    values = graph.run_all(x)
    says = rule.is_neither(values[graph.watched].astype(int) - graph.tensors[graph.watched].zero_point)
    known = [classes[i] for i in values[graph.output].argmax(axis=1)]
    assert found == ["none of these" if no else name for no, name in zip(says, known, strict=True)] and 5 < says.sum() < 35
    sketch = projects.arduino(header, "net", classes, RECIPE)["examples/net_demo/net_demo.ino"].decode()
    assert "Serial.print(net_is_neither() ? NET_NEITHER : net_class_names[best]);" in sketch
    assert "is_neither" not in projects.arduino(network("net")[1], "net", classes, RECIPE)["examples/net_demo/net_demo.ino"].decode()


ARDUINO_H = """\
#include <stdint.h>
#include <stdio.h>
#define F(text) text
inline unsigned long micros() { static unsigned long now = 0; return now += 7; }
inline unsigned long millis() { return 0; }
inline void delay(unsigned long) {}
struct Stream {
    void begin(long) {}
    operator bool() { return true; }
    void print(const char *text) { fputs(text, stdout); }
    void print(int value) { printf("%d", value); }
    void print(unsigned long value) { printf("%lu", value); }
    void println(const char *text) { puts(text); }
};
static Stream Serial;
"""


@pytest.mark.parametrize(("recipe", "apart"), [(RECIPE, False), (None, False), (RECIPE, True)])
def test_the_sketch_compiles_and_prints_the_class(tmp_path, recipe, apart):
    classes = ("cat", "a dog", "été")
    graph, header = network("pets", classes)
    header = weights_apart("pets", classes) if apart else header
    files = projects.arduino(header, "pets", classes, recipe)
    write(tmp_path, files)
    (tmp_path / "Arduino.h").write_text(ARDUINO_H)
    sketch = tmp_path / "examples/pets_demo/pets_demo.ino"  # Arduino puts the include before it and calls setup and loop
    (tmp_path / "main.cpp").write_text(
        f'#include "Arduino.h"\n#include "{sketch}"\nint main() {{ setup(); for (int i = 0; i < 2; i++) {{ loop(); }} }}\n'
    )
    compile_c(["gcc", "-std=c99"], "-O2", *STRICT, "-c", "src/pets.c", "-o", "pets.o", cwd=tmp_path)
    if apart:
        compile_c(["gcc"], "-Isrc", "-c", "src/pets_weights.S", "-o", "weights.o", cwd=tmp_path)
    objects = ["pets.o", "weights.o"] if apart else ["pets.o"]
    compile_c(["g++", "-std=c++11"], "-O2", *STRICT, "-Isrc", "main.cpp", *objects, "-o", "sketch", cwd=tmp_path)
    found = subprocess.run([tmp_path / "sketch"], capture_output=True, check=True).stdout.decode().splitlines()
    shape = (1, RECIPE.height, RECIPE.width, 3)
    grey = RECIPE.quantise_pixels(np.full(shape, 128, np.uint8)) if recipe else np.zeros(shape, np.int8)
    logits = graph.run(grey)[0]
    answer = f"{classes[logits.argmax()]}, logit {logits.max()}, 7 us"
    assert found == ["self-test: equal to Python in every bit", answer, answer]


@pytest.mark.parametrize(
    "recipe", [Recipe(10, 7, resize="crop"), Recipe(10, 7, resize="crop", crop_fraction=0.875), Recipe(10, 7, resize="squash")]
)
@pytest.mark.parametrize(("width", "height"), [(31, 23), (7, 10), (40, 17)])
def test_a_frame_of_a_camera_becomes_the_image(tmp_path, recipe, width, height):
    build = Builder(np.random.default_rng(5), (10, 7, 3))
    build.tensors["x"] = Tensor("x", (10, 7, 3), *recipe.input_quantisation)
    build.mean()
    build.dense(3)
    files = projects.arduino(emit(build.graph(), "pets", classes=["a", "b", "c"], recipe=recipe), "pets", ("a", "b", "c"), recipe)
    sketch = files["examples/pets_demo/pets_demo.ino"].decode()
    write(tmp_path, files)
    camera = sketch[sketch.index("/* A camera's") : sketch.index("/* Fills the image")]
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "src/pets.h"\nvoid pets_from_rgb565(const uint16_t *, int32_t, int32_t, int8_t *);\n'
        f"{camera}int main(void) {{ static uint16_t f[{width * height}]; static int8_t i[PETS_INPUT_BYTES];\n"
        f"if (fread(f, 2, {width * height}, stdin) == 0) {{ return 1; }} pets_from_rgb565(f, {width}, {height}, i);\n"
        "return fwrite(i, 1, sizeof i, stdout) != sizeof i; }\n"
    )
    compile_c(["gcc", "-std=c99"], "-O1", *STRICT, "main.c", "-o", "camera", cwd=tmp_path)
    frame = np.random.default_rng(0).integers(0, 65536, (height, width)).astype(np.uint16)
    found = subprocess.run([tmp_path / "camera"], input=frame.tobytes(), capture_output=True, check=True).stdout
    wide = frame.astype(int)
    pixels = np.stack([(wide >> 11) * 255 // 31, (wide >> 5 & 63) * 255 // 63, (wide & 31) * 255 // 31], -1)
    w, h = width, height
    if recipe.resize == "crop":
        w = int((width if width * 10 < height * 7 else height * 7 // 10) * recipe.crop_fraction)
        h = w * 10 // 7
    pixels = pixels[(height - h) // 2 :, (width - w) // 2 :]
    picked = pixels[np.arange(10)[:, None] * h // 10, np.arange(7) * w // 7].astype(np.uint8)
    assert found == recipe.quantise_pixels(picked[None]).tobytes()


def test_the_library_follows_arduinos_specification():
    _, header = network("pets")
    files = projects.arduino(header, "pets", ("a\nversion=9", "b*/", "ü"), RECIPE, url="https://example.org/pets")
    properties = dict(line.split("=", 1) for line in files["library.properties"].decode("ascii").splitlines())
    required = {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"}
    assert required <= set(properties) and len(properties) == len(files["library.properties"].splitlines())
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.\-]{0,62}", properties["name"]) and properties["architectures"] == "*"
    assert re.fullmatch(r"\d+\.\d+\.\d+", properties["version"]) and properties["includes"] == "pets.h"
    assert properties["category"] == "Data Processing"  # one of the specification's list
    assert set(files) == {"library.properties", "src/pets.h", "src/pets.c", "examples/pets_demo/pets_demo.ino"}


def test_a_header_of_another_name_is_refused():
    _, header = network("pets")
    for make_project in (projects.arduino, projects.plain):
        with pytest.raises(MinitlError, match="cats_run"):
            make_project(header, "cats", ("a", "b", "c"), RECIPE)
