"""minitl: transfer learning small enough to read and exact enough to ship.

    import minitl
    model = minitl.load("mobilenet_v1_0.25_128_quant.tflite")      # or a model of ours; see model.py for what it can do
    run = minitl.train(model, "photos")                            # photos/CLASS/*.jpg; see transfer.py
    run.model.save("model.npz")
    open("model.h", "w").write(run.model.emit("model"))

photo -> NHWC array -> float graph -> (frozen part: cached features) -> trained head -> folded graph -> integer graph -> C header
"""

# One thread in NumPy's BLAS: sums keep one order on any number of cores, and on a busy machine the threads of OpenBLAS, which wait by
# spinning, made training of a small network more than ten times slower. BLAS reads this once, when NumPy is first imported.
import os
import sys

_ours = "numpy" not in sys.modules and "OPENBLAS_NUM_THREADS" not in os.environ
if _ours:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy  # noqa: E402, F401

if _ours:
    del os.environ["OPENBLAS_NUM_THREADS"]

from .errors import MinitlError  # noqa: E402
from .estimator import PhotoClassifier  # noqa: E402
from .folders import list_folder  # noqa: E402
from .model import Answer, Deployment, Model, deployable, load  # noqa: E402
from .training import Settings  # noqa: E402
from .transfer import Run, evaluate, fit, train  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = [
    "Answer", "Deployment", "MinitlError", "Model", "PhotoClassifier", "Run", "Settings", "__version__", "deployable", "evaluate", "fit",
    "list_folder", "load", "train",
]  # fmt: skip
