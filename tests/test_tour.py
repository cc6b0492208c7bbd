"""The tour in minitl/README.md: every block runs, one after the other, and prints what stands below it."""

import contextlib
import io
import re
from pathlib import Path

import pytest

TOUR = Path(__file__).parents[1] / "minitl" / "README.md"
NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]\d+)?")


def blocks():
    """(code, what it printed when it was written) of every block."""
    text = TOUR.read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```\n", text, re.DOTALL)


def same(said, written):
    """Equal but for numbers with a point, which may differ by a hundredth: another Pillow decodes and scales a little differently."""
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (said, written)]
    return NUMBER.sub("#", said) == NUMBER.sub("#", written) and numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.02)


def test_every_block_of_the_tour_prints_what_stands_below_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    found = blocks()
    assert len(found) == TOUR.read_text(encoding="utf-8").count("```python") > 10
    for code, written in found:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert same(printed.getvalue(), written), f"{code}\nprinted\n{printed.getvalue()}\nand not\n{written}"
