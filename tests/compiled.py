"""Emitted headers through the compilers at hand: a program that feeds many networks, and compares its logits with Python's."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from integer_graphs import images

from minitl import emit_c

STRICT = "-Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Werror".split()
COMPILERS = {
    "gcc": ["gcc", "-std=c99"],
    "g++": ["g++", "-std=c++11", "-x", "c++"],
    "clang": ["clang", "-std=c99"],
    "clang++": ["clang++", "-std=c++11", "-x", "c++"],
    "gcc -m32": ["gcc", "-std=c99", "-m32"],
}
COUNT = 12
"""Images per network."""


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


def refuses(command, *arguments, cwd):
    """What a compiler complains about; it must."""
    done = subprocess.run([*command, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr


def emit(graph, name, function=emit_c.emit, **changes):
    """A header (or with emit_c.emit_blob header and blob) with plain arguments where the test does not care."""
    size = graph.tensors[graph.output].size
    arguments = {
        "classes": [f"class {i}" for i in range(size)],
        "recipe": None,
        "provenance": {"licence": "none"},
        "version": "0",
    } | changes
    return function(graph, emit_c.About(name, **arguments))


HEAD = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifndef FENCE
#define FENCE 16
#endif
#define FAIL(when) (fprintf(stderr, "wrong: %s\\n", when), 1)

static int8_t *fenced(size_t size)
{
    int8_t *memory = (int8_t *)malloc(size + 2 * FENCE);
    memset(memory, 0x5A, size + 2 * FENCE);
    return memory + FENCE;
}

static int unfence(int8_t *memory, size_t size)
{
    size_t i;
    int bad = 0;
    for (i = 0; i < FENCE; i++) {
        bad |= memory[size + i] != 0x5A || *(memory - 1 - i) != 0x5A;
    }
    free(memory - FENCE);
    return bad;
}
"""

DRIVE = """
__attribute__((noinline)) static int drive_NAME(void)
{
    int8_t *arena = fenced(UPPER_ARENA_BYTES), *image = fenced(UPPER_INPUT_BYTES), *kept = fenced(UPPER_INPUT_BYTES);
    int8_t *one = fenced(UPPER_CLASSES), *two = fenced(UPPER_CLASSES);
    int k, bad = 0;
    if (NAME_run_in(0, image, one) != 1 || NAME_run_in(arena, 0, one) != 1 || NAME_run_in(arena, image, 0) != 1) {
        return FAIL("NULL pointers");
    }
    if (NAME_run_in(arena + 1, image, one) != 1 || NAME_run_in(arena + 2, image, one) != 1 || one[0] != 0x5A || arena[1] != 0x5A) {
        return FAIL("a misaligned arena");
    }
    for (k = 0; k < COUNT; k++) {
#ifdef SELFTEST
        if (k < 2 && NAME_selftest_in(arena) != 0) {
            return FAIL(NAME_selftest_in(arena));
        }
#endif
        bad |= fread(kept, 1, UPPER_INPUT_BYTES, stdin) != UPPER_INPUT_BYTES;
        memcpy(image, kept, UPPER_INPUT_BYTES);
        bad |= NAME_run_in(arena, image, one) || memcmp(image, kept, UPPER_INPUT_BYTES) != 0;
        bad |= fwrite(one, 1, UPPER_CLASSES, stdout) != UPPER_CLASSES;
        memcpy(arena + UPPER_IMAGE_OFFSET, image, UPPER_INPUT_BYTES);
        if (bad || NAME_run_in(arena, arena + UPPER_IMAGE_OFFSET, two) || memcmp(one, two, UPPER_CLASSES) != 0) {
            return FAIL("an image in the caller's arena");
        }
#ifndef UPPER_CALLER_ARENA
        if (NAME_run(image, two) || memcmp(one, two, UPPER_CLASSES) != 0 || memcmp(image, kept, UPPER_INPUT_BYTES) != 0) {
            return FAIL("an image from outside");
        }
        memcpy(NAME_image(), image, UPPER_INPUT_BYTES);
        if (NAME_run(NAME_image(), two) || memcmp(one, two, UPPER_CLASSES) != 0) {
            return FAIL("an image in the static arena");
        }
#ifdef SELFTEST
        bad |= k < 2 && NAME_selftest() != 0;
#endif
#endif
    }
    bad |= unfence(arena, UPPER_ARENA_BYTES) | unfence(image, UPPER_INPUT_BYTES) | unfence(kept, UPPER_INPUT_BYTES);
    bad |= unfence(one, UPPER_CLASSES) | unfence(two, UPPER_CLASSES);
    return bad ? FAIL("a byte outside the buffers") : 0;
}
"""


def for_network(template, name):
    """A C template in which NAME and UPPER stand for a network's prefix."""
    return template.replace("NAME", name).replace("UPPER", name.upper())


def driver(names, caller=False):
    """A program that runs COUNT images of each network from stdin to stdout, called in every way, between fences of FENCE bytes.

    With -DSELFTEST it tests itself, too. caller: no static arena.
    """
    flags = "#ifdef SELFTEST\n#define UPPER_SELFTEST\n#endif\n" + "#define UPPER_CALLER_ARENA\n" * caller
    include = flags + '#define UPPER_IMPLEMENTATION\n#include "NAME.h"\n'
    parts = [HEAD, *(for_network(include, name) for name in names)]
    parts += [for_network(DRIVE.replace("COUNT", str(COUNT)), name) for name in names]
    calls = "".join(f"    if (drive_{name}()) {{ return {i + 1}; }}\n" for i, name in enumerate(names))
    return "\n".join(parts) + f"\nint main(void)\n{{\n{calls}    return 0;\n}}\n"


def check_program(command, graphs, cwd, count=COUNT):
    """Feeds images to a driver's program and compares every logit with Python's; how many."""
    inputs = [images(graph, count, seed) for seed, graph in enumerate(graphs)]
    command = command if isinstance(command, list) else [command]
    done = subprocess.run(command, input=b"".join(x.tobytes() for x in inputs), cwd=cwd, capture_output=True)
    assert done.returncode == 0, (done.returncode, done.stderr.decode()[:4000])
    logits, compared = np.frombuffer(done.stdout, np.int8), 0
    for seed, (graph, x) in enumerate(zip(graphs, inputs, strict=True)):
        expected = graph.run(x)
        found = logits[compared : compared + expected.size].reshape(expected.shape)
        np.testing.assert_array_equal(found, expected, err_msg=f"network {seed}")
        compared += expected.size
    assert compared == logits.size
    return compared


def write_networks(folder, graphs):
    """Headers n0.h.. and the driver main.c, in `folder`."""
    names = [f"n{i}" for i in range(len(graphs))]
    for name, graph in zip(names, graphs, strict=True):
        (folder / f"{name}.h").write_text(emit(graph, name), encoding="ascii")
    (folder / "main.c").write_text(driver(names))


def sections(path):
    """{section: bytes} of an object file."""
    lines = subprocess.run(["size", "-A", path], capture_output=True, text=True, check=True).stdout.splitlines()
    return {parts[0]: int(parts[1]) for line in lines if len(parts := line.split()) == 3 and parts[1].isdigit()}


def without_comments(text):
    """C without its comments."""
    return re.sub(r"/\*.*?\*/", "", text, flags=re.S)
