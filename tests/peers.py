"""Other frameworks that tests compare with, where they are installed (pip install 'minitl[peers]')."""

from typing import Any

import pytest


def pytorch() -> Any:
    """The module torch, or the test is skipped. On one thread: its threads spin, and beside a busy process a second becomes a minute."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch
