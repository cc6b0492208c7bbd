"""The script `minitl`, and python -m minitl: the command line, which Ctrl-C may also stop while Python is still importing."""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Run one command; returns the exit code."""
    gc.set_threshold(50_000)  # Python looks for unreachable cycles after every 700 new objects, and imports make many: 8 ms
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        print("\nstopped; files were left as they were", file=sys.stderr)
        return 130
    finally:
        gc.freeze()  # nor need it look through everything at its end: 20 ms


if __name__ == "__main__":
    sys.exit(main())
