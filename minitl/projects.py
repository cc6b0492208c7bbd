"""A header -> folders that are ready to build: an Arduino library, and a plain C project for the host and for Cortex-M.

Enters: the text of a header of emit_c, its prefix, class names, the recipe. Leaves: {relative path: bytes}; nothing is written here.

The plain project runs on the host and, under qemu, on every core of qemu.py, whose start-up code and linker scripts it carries. Left
out: drivers for cameras (a stub stands in their place), makers' board packages, CMake.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from . import qemu
from .emit_c import Header, check_name, comment_text
from .errors import MinitlError
from .images import Recipe
from .version import __version__

LONGEST_LIBRARY_NAME = 63
"""Arduino's limit; a C name of ours is shorter."""


def _fill(template: str, name: str, **more: object) -> bytes:
    """@name@, @NAME@ and others of a template replaced."""
    words = {"name": name, "NAME": name.upper(), "version": __version__, **more}
    return re.sub(f"@({'|'.join(words)})@", lambda found: str(words[found[1]]), template).encode()


def _words(classes: Sequence[str], recipe: Recipe | None) -> str:
    """What goes in and what comes out, on one line."""
    size = f"{recipe.width}x{recipe.height} RGB images" if recipe else "Images"
    names = ", ".join(map(comment_text, classes[:20])) + (", ..." if len(classes) > 20 else "")
    return f"{size} to {len(classes)} classes: {names}"


def _model(header: str | Header, name: str, folder: str) -> dict[str, bytes]:
    """The network's own files under `folder`; MinitlError where the header was made under another name."""
    check_name(name)
    text = header if isinstance(header, str) else header.text
    if f"int {name}_run(const int8_t *image, int8_t *logits)" not in text:
        raise MinitlError(f"project {name!r}: expected a header with {name}_run, found none; give the header and the name it was made with")
    files = {f"{folder}/{name}.h": text.encode(), f"{folder}/{name}.c": _fill(NETWORK_C, name)}
    if isinstance(header, Header):
        files |= {f"{folder}/{name}_weights.bin": header.blob, f"{folder}/{name}_weights.S": header.stub.encode()}
    return files


def _answer(header: str | Header, name: str) -> str:
    """The C expression for what the last run says: the name of class number `best`, or of the answer that it is none of them."""
    text = header if isinstance(header, str) else header.text
    known = f"{name}_class_names[best]"
    return f"{name}_is_neither() ? {name.upper()}_NEITHER : {known}" if f"int {name}_is_neither(void)" in text else known


# ---- Arduino -------------------------------------------------------------------------------------------------------------------

LIBRARY = """\
name=@name@
version=@version@
author=minitl
maintainer=minitl
sentence=An image classifier as integer C, without dependencies.
paragraph=@words@
category=Data Processing
url=@url@
architectures=*
includes=@name@.h
"""

NETWORK_C = """\
/* The network itself: the one file that compiles it. */
#define @NAME@_SELFTEST /* about 2 KB of flash at -Os and -O2; leave it out here and where @name@_selftest is called */
#define @NAME@_IMPLEMENTATION
#include "@name@.h"
"""

SKETCH = """\
/* Classifies one picture a second and prints the class. Put your camera into take_picture(). */
#define @NAME@_SELFTEST
#include <@name@.h>

static int8_t logits[@NAME@_CLASSES];

@camera@/* Fills the image: rows from the top, pixels from the left@order@. Here a grey one stands for a camera. */
static void take_picture(int8_t *image)
{
    for (uint32_t i = 0; i < @NAME@_INPUT_BYTES; i++) {
        image[i] = @pixel@;
    }
}

void setup()
{
    Serial.begin(115200);
    while (!Serial && millis() < 5000) {
    }
    const char *wrong = @name@_selftest();
    Serial.print(F("self-test: "));
    Serial.println(wrong == 0 ? "equal to Python in every bit" : wrong);
}

void loop()
{
    take_picture(@name@_image());
    const unsigned long start = micros();
    @name@_run(@name@_image(), logits);
    const unsigned long took = micros() - start;
    int best = 0;
    for (int i = 1; i < @NAME@_CLASSES; i++) {
        if (logits[i] > logits[best]) {
            best = i;
        }
    }
    Serial.print(@answer@);
    Serial.print(F(", logit "));
    Serial.print((int)logits[best]);
    Serial.print(F(", "));
    Serial.print(took);
    Serial.println(F(" us"));
    delay(1000);
}
"""


CAMERA = """\
/* A camera's RGB565 frame to the image, nearest pixels. Many cameras send the two bytes of a pixel the other way round: swap them. */
void @name@_from_rgb565(const uint16_t *frame, int32_t width, int32_t height, int8_t *image)
{
    int32_t w = width, h = height, x, y; /* the part that the network sees: all, or the largest centred box of its shape */
    if (@NAME@_INPUT_CROP_PER_MILLE > 0) {
        w = width * @NAME@_INPUT_HEIGHT < height * @NAME@_INPUT_WIDTH ? width : height * @NAME@_INPUT_WIDTH / @NAME@_INPUT_HEIGHT;
        w = w * @NAME@_INPUT_CROP_PER_MILLE / 1000;
        h = w * @NAME@_INPUT_HEIGHT / @NAME@_INPUT_WIDTH;
    }
    frame += (height - h) / 2 * width + (width - w) / 2;
    for (y = 0; y < @NAME@_INPUT_HEIGHT; y++) {
        for (x = 0; x < @NAME@_INPUT_WIDTH; x++) {
            const int32_t p = frame[y * h / @NAME@_INPUT_HEIGHT * width + x * w / @NAME@_INPUT_WIDTH];
            const int32_t red = (p >> 11) * 255 / 31, green = (p >> 5 & 63) * 255 / 63, blue = (p & 31) * 255 / 31;
            *image++ = @NAME@_QUANTIZE_PIXEL(red, 0);
            *image++ = @NAME@_QUANTIZE_PIXEL(green, 1);
            *image++ = @NAME@_QUANTIZE_PIXEL(blue, 2);
        }
    }
}

"""
"""For sketches whose network sees photos."""


def arduino(header: str | Header, name: str, classes: Sequence[str], recipe: Recipe | None, url: str = "") -> dict[str, bytes]:
    """An Arduino library (specification 1.5): put the folder into `libraries` and open the example.

    header: of emit_c.emit, or of emit_blob. name: its prefix, also the library's name. recipe: None where the input is no photo.
    url: of the library, for those who publish it. Raises MinitlError where the header was made under another name.
    """
    files = _model(header, name, "src")
    assert len(name) <= LONGEST_LIBRARY_NAME
    pixel, order = (f"{name.upper()}_QUANTIZE_PIXEL(128, i % 3)", ", red, green, blue") if recipe else ("0", "")
    camera = _fill(CAMERA, name).decode() if recipe else ""
    return files | {
        "library.properties": _fill(LIBRARY, name, words=_words(classes, recipe), url=url),
        f"examples/{name}_demo/{name}_demo.ino": _fill(SKETCH, name, pixel=pixel, order=order, camera=camera, answer=_answer(header, name)),
    }


# ---- plain C -------------------------------------------------------------------------------------------------------------------

MAIN_C = """\
/* Runs the self-test, then every image that comes in: @formats@.
   For each one a line: the class@or@, a tab, the logits. Status 1: the self-test failed; 2: the input is not a whole number of images. */
#define @NAME@_SELFTEST
#include "board/board.h"
#include "model/@name@.h"

static int8_t logits[@NAME@_CLASSES];

static void say_number(int value) /* -128..127 */
{
    char text[5], *p = text + 4;
    unsigned rest = (unsigned)(value < 0 ? -value : value);
    *p = 0;
    do {
        *--p = (char)('0' + rest % 10u);
        rest /= 10u;
    } while (rest != 0);
    if (value < 0) {
        *--p = '-';
    }
    board_say(p);
}

static void say_answer(void)
{
    int i, best = 0;
    for (i = 1; i < @NAME@_CLASSES; i++) {
        if (logits[i] > logits[best]) {
            best = i;
        }
    }
    board_say(@answer@);
    for (i = 0; i < @NAME@_CLASSES; i++) {
        board_say(i == 0 ? "\\t" : " ");
        say_number(logits[i]);
    }
    board_say("\\n");
}
@read_image@
int main(void)
{
    const char *wrong = @name@_selftest();
    int found;
    if (wrong != 0) {
        board_say("self-test: another answer than Python's at layer ");
        board_say(wrong);
        board_say("\\n");
        return 1;
    }
    board_say("self-test: equal to Python in every bit\\n");
    while ((found = read_image(@name@_image())) > 0) {
        if (@name@_run(@name@_image(), logits) != 0) {
            return 1;
        }
        say_answer();
    }
    if (found < 0) {
        board_say("the input is not a whole number of images\\n");
        return 2;
    }
    return 0;
}
"""

READ_RAW = """
/* 1: an image, 0: the end, -1: less than an image. */
static int read_image(int8_t *image)
{
    const uint32_t bytes = board_read(image, @NAME@_INPUT_BYTES);
    return bytes == @NAME@_INPUT_BYTES ? 1 : bytes == 0 ? 0 : -1;
}
"""

READ_PPM = """
/* The next number of a PPM header and the one character after it; -1 where there is none. Comments are skipped. */
static int32_t read_number(void)
{
    int32_t value = -1;
    uint8_t c;
    while (board_read(&c, 1) == 1) {
        if (c == '#' && value < 0) {
            while (board_read(&c, 1) == 1 && c != '\\n') {
            }
        } else if (c >= '0' && c <= '9' && value < 65536) {
            value = (value < 0 ? 0 : value) * 10 + (c - '0');
        } else if (value >= 0) {
            return value;
        }
    }
    return value;
}

/* 1: an image, 0: the end, -1: something else. A file that begins with "P6" and white space is a PPM. */
static int read_image(int8_t *image)
{
    uint8_t *bytes = (uint8_t *)image;
    const uint32_t head = board_read(bytes, 3);
    uint32_t i;
    if (head == 0) {
        return 0;
    }
    if (head < 3) {
        return -1;
    }
    if (bytes[0] != 'P' || bytes[1] != '6' || (bytes[2] != ' ' && bytes[2] != '\\n' && bytes[2] != '\\r' && bytes[2] != '\\t')) {
        return board_read(image + 3, @NAME@_INPUT_BYTES - 3) == @NAME@_INPUT_BYTES - 3 ? 1 : -1; /* raw */
    }
    if (read_number() != @NAME@_INPUT_WIDTH || read_number() != @NAME@_INPUT_HEIGHT || read_number() != 255) {
        board_say("expected a PPM of @width@x@height@ pixels with values up to 255\\n");
        return -1;
    }
    if (board_read(bytes, @NAME@_INPUT_BYTES) != @NAME@_INPUT_BYTES) {
        return -1;
    }
    for (i = 0; i < @NAME@_INPUT_BYTES; i++) {
        const int32_t p = bytes[i];
        image[i] = @NAME@_QUANTIZE_PIXEL(p, i % 3u);
    }
    return 1;
}
"""

HOST_C = """\
/* board.h for a computer: the input is stdin, the messages go to stdout. Left out: what main.c does not use. */
#include "board.h"
#include <stdio.h>

uint32_t board_read(void *to, uint32_t bytes)
{
    return (uint32_t)fread(to, 1, bytes, stdin);
}

void board_say(const char *text)
{
    fputs(text, stdout);
}
"""

MAKEFILE = """\
# make: for this computer. make arm CORE=cortex-m4: for a microcontroller (arm-none-eabi-gcc). make run-arm: there, under qemu.
# What was built with another compiler or other flags is built again.
CC ?= cc
CFLAGS ?= -O3
ARM_CC ?= @gcc@
ARM_SIZE ?= @size@
CORE ?= cortex-m4
IMAGES ?=

@cores@

ifndef MACHINE_$(CORE)
$(error CORE is $(CORE); expected one of @names@)
endif

HOST_PROGRAM = build/@name@
ARM_PROGRAM = build/@name@-$(CORE).elf
SOURCES = main.c @sources@
HEADERS = @others@ board/board.h

.PHONY: host run arm run-arm size clean always

# $(call compiler,words): writes the words into the target where they have changed
compiler = @mkdir -p build; echo '$(subst ','\\'',$(1))' > $@.new; cmp -s $@.new $@ && rm $@.new || mv $@.new $@

host: $(HOST_PROGRAM)

run: host
	$(HOST_PROGRAM) < $(or $(IMAGES),/dev/null)

arm: $(ARM_PROGRAM)

build/.compiler: always
	$(call compiler,$(CC) $(CFLAGS))

build/.compiler-$(CORE): always
	$(call compiler,$(ARM_CC) $(FLAGS_$(CORE)) $(CFLAGS))

$(HOST_PROGRAM): $(SOURCES) board/host.c $(HEADERS) build/.compiler
	$(CC) -std=c99 $(CFLAGS) -Imodel $(SOURCES) board/host.c -o $@

$(ARM_PROGRAM): $(SOURCES) board/board.c board/$(CORE).ld $(HEADERS) build/.compiler-$(CORE)
	$(ARM_CC) $(FLAGS_$(CORE)) @freestanding@ @board_flags@ $(BOARD_$(CORE)) -c board/board.c -o build/board-$(CORE).o
	$(ARM_CC) $(FLAGS_$(CORE)) @freestanding@ $(CFLAGS) -Imodel @link@ -T board/$(CORE).ld $(SOURCES) build/board-$(CORE).o -lgcc -o $@ \\
	|| { echo "$(CORE): if a region overflowed, the network is too large for qemu's $(MACHINE_$(CORE)): take another CORE" >&2; exit 1; }

run-arm: arm
	@rm -f build/input
	$(if $(IMAGES),cp $(IMAGES) build/input)
	cd build && @qemu@

size: arm
	$(ARM_SIZE) $(ARM_PROGRAM)

clean:
	rm -rf build
"""

README = """\
@name@: @words@.
Written by minitl @version@.

make
    builds build/@name@ for this computer
build/@name@ < IMAGES
    self-test, then a line for each image, @formats@: its class and the logits
make arm CORE=cortex-m4
    builds for a microcontroller with @gcc@: @names@
    (cortex-m0, whose board has 16 KB of RAM, is for small networks only)
make run-arm CORE=cortex-m4 IMAGES=FILE
    runs that under qemu-system-arm; the answers are the same
make size CORE=cortex-m4
    flash (text + data) and RAM (data + bss, which includes @stack@ bytes for the stack)

model/ is all that firmware needs: one file defines @NAME@_IMPLEMENTATION and includes model/@name@.h, whose first comment is the manual.
board/ is for qemu's boards and speaks to the host through semihosting. On a board of your own, replace board.c and the .ld file by your
vendor's, and board_read and board_say by your camera and your display.
"""


def _make_cores() -> str:
    """The table of cores as variables of make."""
    lines = []
    for core, board in qemu.CORES.items():
        lines += [f"FLAGS_{core} = {' '.join(board.flags)}", f"MACHINE_{core} = {board.machine}"]
        lines += [f"BOARD_{core} = {' '.join(flags)}"] if (flags := qemu.board_defines(core)) else []
    return "\n".join(lines)


def plain(header: str | Header, name: str, classes: Sequence[str], recipe: Recipe | None) -> dict[str, bytes]:
    """A C project: Makefile, main.c, the model, and start-up code and linker scripts for the cores of qemu.py.

    main reads images, raw int8 or (with a recipe) PPM of the right size, from stdin, under qemu from a file. Arguments as in arduino().
    """
    model = _model(header, name, "model")
    upper, answer = name.upper(), _answer(header, name)
    formats = f"raw int8 ({upper}_INPUT_BYTES each)" + (f" or PPM (P6, {recipe.width}x{recipe.height})" if recipe else "")
    sizes = {"width": recipe.width, "height": recipe.height} if recipe else {}
    read_image = _fill(READ_PPM if recipe else READ_RAW, name, **sizes).decode()
    core = next(iter(qemu.CORES))
    line = shlex.join(qemu.command(core, "PROGRAM")).replace("PROGRAM", f"{name}-$(CORE).elf")
    makefile = _fill(
        MAKEFILE,
        name,
        sources=" ".join(path for path in model if path.endswith((".c", ".S"))),
        others=" ".join(path for path in model if path.endswith((".h", ".bin"))),
        gcc=qemu.GCC,
        size=qemu.SIZE,
        cores=_make_cores(),
        names=", ".join(qemu.CORES),
        freestanding=" ".join(qemu.FREESTANDING),
        board_flags=" ".join(qemu.BOARD_FLAGS),
        link=" ".join(qemu.LINK),
        qemu=line.replace(qemu.CORES[core].machine, "$(MACHINE_$(CORE))"),
    )
    stack = qemu.CORES["cortex-m4"].stack
    return {
        "README.txt": _fill(
            README, name, words=_words(classes, recipe), formats=formats, gcc=qemu.GCC, names=", ".join(qemu.CORES), stack=stack
        ),
        "Makefile": makefile,
        "main.c": _fill(
            MAIN_C, name, formats=formats, read_image=read_image, answer=answer, **{"or": f" or {upper}_NEITHER" if "?" in answer else ""}
        ),
        **model,
        "board/board.h": qemu.BOARD_H.encode(),
        "board/board.c": qemu.BOARD_C.encode(),
        "board/host.c": HOST_C.encode(),
        **{f"board/{core}.ld": qemu.linker_script(core).encode() for core in qemu.CORES},
    }
