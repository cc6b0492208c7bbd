"""Where the tests find real weights and photos: ../shared beside the checkout, or the folder named by MINITL_SHARED."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("MINITL_SHARED") or Path(__file__).resolve().parents[2] / "shared")
WEIGHTS = SHARED / "weights"
DATA = SHARED / "data"

needs_shared = pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"needs real weights and photos: no {SHARED} (set MINITL_SHARED)")
