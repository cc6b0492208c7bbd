"""The one error that is meant for the person at the keyboard.

Whoever raises it names the object, what was expected, what was found and what to do next, in one sentence or two. The command
line prints it without a traceback and exits with 1. Anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class MinitlError(ValueError):
    """A mistake in what the user gave us: a file, a folder, a name, a number."""
