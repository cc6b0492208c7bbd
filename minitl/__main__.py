"""The script `minitl`, and python -m minitl: the command line, which Ctrl-C may also stop while Python is still importing."""

import sys


def main() -> int:
    """Run one command; returns the exit code."""
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        print("\nstopped; files were left as they were", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
