"""What a process pays for before it does anything: names that are imported when they are used, and Ctrl-C at any moment."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_models
from test_images import unix

import minitl
from minitl import cli, demo_pictures, qemu, training
from minitl.processor import LINUX_X86

ROOT = Path(minitl.__file__).parents[1]


def python(code, *words, **environment):
    """A fresh process that runs `code` -> (exit code, what it printed, its errors)."""
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    return process.returncode, process.stdout, process.stderr


RUN = """
import sys
from minitl.__main__ import main
try:
    main()
except SystemExit:
    pass
print("imported:", *sorted(name for name in sys.modules if "." not in name))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(a model that can be deployed, a photo)."""
    folder = tmp_path_factory.mktemp("cold")
    small_models.model(("apple", "banana")).save(folder / "model.npz")
    return folder / "model.npz", demo_pictures.draw_photos(folder / "photos", 1, size=40)[0]


def imported(*words):
    code, said, errors = python(RUN, *words)
    assert code == 0 and not errors, errors
    return set(said.rsplit("imported:", 1)[1].split())


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"], ["no-such-command"]])
def test_what_only_talks_imports_neither_numpy_nor_pillow_nor_a_compiler(words):
    code, said, errors = python(RUN, *words)
    assert code == 0 and ("usage" in said + errors or "minitl" in said)
    assert not {"numpy", "PIL", "numba", "llvmlite"} & set(said.rsplit("imported:", 1)[1].split())


def test_info_does_not_import_a_compiler(files):
    assert not {"numba", "llvmlite"} & imported("info", files[0])


@pytest.mark.parametrize("more", [[], ["--int8"]])
@pytest.mark.skipif(not LINUX_X86, reason="elsewhere LLVM loads the kernels")
def test_predict_imports_neither_a_compiler_nor_what_one_photo_does_not_need_once_the_kernels_are_kept(files, more):
    python(RUN, "predict", *files, *more)  # may compile, and say so
    assert not {"numba", "llvmlite", "secrets", "random", "zipfile"} & imported("predict", *files, *more)


def test_a_jpeg_is_read_without_the_readers_of_other_formats(files):
    said = python("import sys, minitl; minitl.load(sys.argv[1]).predict(sys.argv[2]); print(*sys.modules)", *files)[1]
    assert "PIL.JpegImagePlugin" in said and "PIL.GifImagePlugin" not in said and "concurrent.futures" not in said


# ---- the package


def test_importing_the_package_imports_no_part_of_it():
    said = python("import minitl, sys; print(*sorted(name for name in sys.modules if name.partition('.')[0] in ('minitl', 'numpy')))")[1]
    assert said.split() == ["minitl", "minitl.errors", "minitl.version"]


def test_each_name_is_the_one_of_its_module():
    assert sorted([*sum(minitl._HOMES.values(), ()), "MinitlError", "__version__"]) == sorted(minitl.__all__)
    for home, names in minitl._HOMES.items():
        for name in names:
            assert getattr(minitl, name) is getattr(importlib.import_module(f"minitl.{home}"), name)
    assert set(minitl.__all__) <= set(dir(minitl))


def test_modules_are_found_as_attributes_and_what_does_not_exist_is_missed():
    assert python("import minitl; print(minitl.geometry.resolve.__name__)")[1] == "resolve\n"
    for name in ("nothing", "_nothing", "__wrapped__"):
        assert not hasattr(minitl, name)


def test_all_names_can_be_imported_at_once():
    assert python("from minitl import *; print(train.__name__, Settings.__name__)")[:2] == (0, "train Settings\n")


WAYS = [
    "import minitl, numpy",
    "import minitl.graph",
    "from minitl import load",
    "import minitl, importlib.util as u; u.find_spec('numpy'); import numpy",
]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task") or (os.cpu_count() or 1) < 2, reason="needs /proc and several processors")
@pytest.mark.parametrize("way", WAYS)
def test_numpy_gets_one_blas_thread_however_it_is_imported(way):
    show = "; import os; print(len(os.listdir('/proc/self/task')), 'OPENBLAS_NUM_THREADS' in os.environ)"
    assert python(way + show)[1] == "1 False\n"


def test_the_number_of_blas_threads_that_somebody_asked_for_is_left_alone():
    assert python("import minitl.graph, os; print(os.environ['OPENBLAS_NUM_THREADS'])", OPENBLAS_NUM_THREADS="2")[1] == "2\n"


# ---- the command line


def test_what_the_command_line_offers_without_importing_it_exists():
    assert list(cli.CORES) == sorted(qemu.CORES)
    assert all(f"\n    {name} " in cli.parser().format_help() for name in cli.COMMANDS)
    assert all(cli.parser(name).format_usage() == cli.parser().format_usage() for name in cli.COMMANDS)
    assert "{" + ",".join(training.OPTIMISERS) + "}" in python(RUN, "train", "--help", COLUMNS="200")[1]


INTERRUPTED = """
import sys
word = sys.argv.pop(1)
class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == word:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from minitl.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("moment", ["minitl.cli", "argparse", "minitl.files", "minitl.model", "numpy", "PIL", "minitl.weights"])
def test_ctrl_c_while_importing_is_130_without_a_traceback(files, moment):
    code, said, errors = python(INTERRUPTED, moment, "predict", *files)
    assert (code, said, errors) == (130, "", "\nstopped; files were left as they were\n")


@unix
def test_ctrl_c_at_any_moment_of_a_prediction_prints_no_traceback_of_ours(files):
    """Before Python has read its first line of ours it may end in its own way."""
    for after in (0.1, 0.15, 0.2, 0.3, 0.4):
        process = subprocess.Popen(
            [sys.executable, "-m", "minitl", "predict", *map(str, files)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(2)
        errors = process.communicate(timeout=60)[1]
        assert process.returncode in (0, 130, -2) and "minitl" not in errors.split("Traceback")[-1], errors
