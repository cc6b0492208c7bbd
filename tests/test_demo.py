"""The demo, whole but small: the same code with fewer pictures; and the README, whose commands and names must exist."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minitl import cli, demo, demo_pictures, images, model

README = Path(__file__).parents[1] / "README.md"


def test_the_demo_ends_with_a_header_that_agrees_with_python(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "COUNT", 20)
    assert cli.main(["demo", "-o", str(tmp_path / "demo")]) == 0
    said = capsys.readouterr().out
    assert "bit for bit" in said or "no C compiler" in said
    for name in (*cli.OUTPUTS, "check.c"):
        assert (tmp_path / "demo" / name).stat().st_size > 0, name


def test_the_demo_works_without_a_c_compiler_and_a_second_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "COUNT", 10)
    monkeypatch.setattr(demo.shutil, "which", lambda name: None)
    for _ in range(2):
        assert cli.main(["demo", "-o", str(tmp_path)]) == 0
    assert "no C compiler was found" in capsys.readouterr().out


def test_the_check_program_finds_a_wrong_header(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "COUNT", 10)
    assert cli.main(["demo", "-o", str(tmp_path)]) == 0
    header = (tmp_path / "model.h").read_text()
    wrong = re.sub(r"(/\* bias_0 \*/ \{\n\s*)(-?\d+)", lambda m: f"{m[1]}{int(m[2]) + 100000}", header)
    assert wrong != header
    (tmp_path / "model.h").write_text(wrong)
    from minitl import MinitlError, list_folder, load

    items = list_folder(tmp_path / "photos").items
    if demo.shutil.which("cc") or demo.shutil.which("gcc"):
        with pytest.raises(MinitlError, match="does not answer as Python does"):
            demo.check_header(tmp_path, load(tmp_path / "model.npz"), items)


def tour():
    """Names of files and folders in the README's table, in order."""
    text = README.read_text(encoding="utf-8").split("## A tour in reading order")[1].split("###")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ") and "`" in line]
    return [name for row in rows[1:] for name in re.findall(r"`([\w/]+(?:\.py|\.h|/))`", row)]


def test_the_tour_names_every_file_once():
    names, package = tour(), README.parent / "minitl"
    assert len(names) == len(set(names))
    assert all((package / name).exists() for name in names)
    assert {n for n in names if n.endswith(".py") and "/" not in n} == {p.name for p in package.glob("*.py")} - {
        "__init__.py",
        "__main__.py",
    }


def test_each_file_imports_only_from_those_above_it_in_the_tour():
    order = {name.removesuffix(".py").removesuffix("/"): at for at, name in enumerate(tour())}
    package = README.parent / "minitl"
    for path in sorted(package.rglob("*.py")):
        if path.name in ("__init__.py", "__main__.py") and path.parent == package:
            continue
        parts = path.relative_to(package).with_suffix("").parts
        own, depth = "/".join(parts) if "/".join(parts) in order else parts[0], len(parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                start = (
                    [*parts[: depth - node.level], *(node.module or "").split(".")] if node.module else list(parts[: depth - node.level])
                )
                for alias in node.names:
                    candidates = ["/".join([*start, alias.name]), "/".join(start), start[0] if start else alias.name]
                    name = next(c for c in candidates if c in order)
                    assert order[name] < order[own] or name == own, f"{own} imports {name}, which comes after it"


def test_the_commands_of_the_readme_are_understood():
    text = README.read_text(encoding="utf-8")
    lines = [line for line in re.findall(r"^(?:\.venv/bin/)?minitl .*$", text, re.M)]
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(re.split(r"\s{2,}", line)[0].replace("...", "-o x --weights y"))[1:]
        cli.parser().parse_args(words)


def test_the_python_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    """With drawn pictures and a tiny network under the names that it uses; files are recognised by content."""
    monkeypatch.chdir(tmp_path)
    paths = demo_pictures.draw_photos("photos", 6, size=40)
    paths[0].rename("new.jpg")
    backbone = model.find("random:mobilenet_v1_0.1_32")
    backbone.save("mobilenet_v1_0.25_128_quant.tflite")
    code = README.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names: dict = {"pixels": images.read_photo("new.jpg", backbone.recipe)[None]}
    exec(code, names)
    assert names["logits"].shape == (1, 3) and names["features"].shape[0] == 1
    assert (tmp_path / "model.h").stat().st_size > 10_000 and "new.jpg" in capsys.readouterr().out


def test_importing_minitl_leaves_the_environment_as_it_was():
    code = "import os; before = dict(os.environ); import minitl; print(before == dict(os.environ))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True"


def test_an_installation_has_every_folder_of_the_package():
    root = README.parent
    listed = re.search(r"^packages = \[(.*)\]$", (root / "pyproject.toml").read_text(), re.MULTILINE)
    folders = {".".join(path.parent.relative_to(root).parts) for path in (root / "minitl").rglob("*.py")}
    assert listed and {name.strip(' "') for name in listed[1].split(",")} == folders | {"minitl.bundled"}  # weights/
