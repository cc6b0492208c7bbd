"""python -m minitl: the same as the script minitl."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
