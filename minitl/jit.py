"""One way to compile a kernel: numba.njit with the options that every kernel of the project wants.

Compiled code is kept on disk (Numba's own cache, beside the source or in the user's cache folder), so that only the first run
ever pays for compiling. Where neither place can be written, the kernel is compiled anew in each process and works all the same.
No fastmath: results must not depend on how a compiler reorders sums. No eager signatures: read-only and memory-mapped arrays
are welcome.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def njit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` on first call, without the GIL, with division by zero as in NumPy."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # Numba found no folder that it may write its cache to
        return numba.njit(nogil=True, error_model="numpy")(function)
