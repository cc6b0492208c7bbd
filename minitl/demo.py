"""The whole path on pictures drawn here: no photos, and nothing from a network.

In: a folder. Out, in it: photos/, and beside model, header and report the program check.c, which holds the header against Python.
A classifier learns on top of the backbone that comes with the package, which has never seen a drawing.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .demo_pictures import draw_photos
from .errors import MinitlError
from .folders import Item
from .images import read_photo
from .model import BUNDLED, Model, find
from .transfer import Run, train

SIZE, COUNT = 112, 400
"""Pixels a side of a picture; pictures of each class."""

CHECK = """\
/* Reads images (int8, %(name)s_INPUT_BYTES each) from standard input, writes logits to standard output. */
#define %(name)s_IMPLEMENTATION
#include "model.h"
#include <stdio.h>
#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#endif

int main(void)
{
    int8_t logits[%(name)s_CLASSES];
#ifdef _WIN32
    _setmode(_fileno(stdin), _O_BINARY);
    _setmode(_fileno(stdout), _O_BINARY);
#endif
    while (fread(model_image(), 1, %(name)s_INPUT_BYTES, stdin) == %(name)s_INPUT_BYTES) {
        if (model_run(model_image(), logits) != 0 || fwrite(logits, 1, sizeof logits, stdout) != sizeof logits) { return 1; }
    }
    return 0;
}
"""


def draw_and_train(out: Path, seed: int, notify: Any) -> Run:
    """Draw the pictures into out/photos and train on them."""
    photos = out / "photos"
    draw_photos(photos, COUNT, seed, SIZE)
    return train(find(BUNDLED), photos, notify=notify, seed=seed)


def check_header(out: Path, model: Model, items: list[Item]) -> str:
    """Compile out/check.c, let it answer for the validation photos, compare with Python. Returns one sentence for the user.

    Raises MinitlError where the program does not compile or answers otherwise: that would be a fault of ours.
    """
    source = out / "check.c"
    source.write_text(CHECK % {"name": "MODEL"}, encoding="ascii")
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        return f"no C compiler was found (cc, gcc, clang), so the header was not run; {source} is the program that would check it"
    inputs = model.recipe.quantise_pixels(np.stack([read_photo(item.path, model.recipe) for item in items]))
    expected = model.quantise().run(inputs).tobytes()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "check.exe"
        built = subprocess.run([compiler, "-std=c99", "-O2", str(source), "-o", str(program)], capture_output=True, text=True)
        if built.returncode:
            raise MinitlError(f"{compiler} does not compile {source}: {built.stderr.strip()[:500]}")
        answered = subprocess.run([str(program)], input=inputs.tobytes(), capture_output=True)
    if answered.returncode or answered.stdout != expected:
        raise MinitlError(
            f"model.h, compiled with {compiler}, does not answer as Python does: please report this, with {out / 'model.npz'}"
        )
    return f"model.h, compiled with {Path(compiler).name}: all {len(expected)} logits of {len(items)} photos equal Python's, bit for bit"
