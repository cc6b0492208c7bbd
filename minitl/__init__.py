"""minitl: transfer learning small enough to read and exact enough to ship.

    import minitl
    model = minitl.load("mobilenet_v1_0.25_128_quant.tflite")      # or a model of ours; see model.py for what it can do
    run = minitl.train(model, "photos")                            # photos/CLASS/*.jpg; see transfer.py
    run.model.save("model.npz")
    open("model.h", "w").write(run.model.emit("model"))

photo -> NHWC array -> float graph -> (frozen part: cached features) -> trained head -> folded graph -> integer graph -> C header

Names are imported when they are first used, so that a program pays for what it needs only.
"""

from __future__ import annotations

import importlib
import os
import sys

from .errors import MinitlError
from .version import __version__

TYPE_CHECKING = False  # as in typing, whose import takes longer than all of this
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from typing import Any

    from .estimator import PhotoClassifier
    from .folders import list_folder
    from .model import Answer, Deployment, Model, deployable, load
    from .training import Settings
    from .transfer import Run, evaluate, fit, train

__all__ = [
    "Answer", "Deployment", "MinitlError", "Model", "PhotoClassifier", "Run", "Settings", "__version__", "deployable", "evaluate", "fit",
    "list_folder", "load", "train",
]  # fmt: skip

_HOMES = {
    "estimator": ("PhotoClassifier",),
    "folders": ("list_folder",),
    "model": ("Answer", "Deployment", "Model", "deployable", "load"),
    "training": ("Settings",),
    "transfer": ("Run", "evaluate", "fit", "train"),
}
"""Where the names of __all__ are."""


def __getattr__(name: str) -> Any:
    """A name of __all__, or a module of the package, when it is first used (PEP 562)."""
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home:
        globals()[name] = found = getattr(importlib.import_module(f".{home}", __name__), name)
        return found
    try:
        if not name.startswith("_"):
            return importlib.import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _OneThread:
    """One thread in NumPy's BLAS, unless OPENBLAS_NUM_THREADS or an earlier import of NumPy says otherwise.

    Sums then keep one order on any number of cores; and on a busy machine the threads of OpenBLAS, which wait by spinning, made training
    of a small network more than ten times slower. BLAS reads the variable once, when NumPy is first imported, by whomever: so this
    stands before Python's own finders of modules, waits for NumPy, and leaves the environment as it was.
    """

    @staticmethod
    def find_spec(name: str, *where: Any) -> ModuleSpec | None:
        """What Python asks for every module that is imported."""
        if name != "numpy":
            return None
        others = (finder for finder in sys.meta_path if finder is not _OneThread)
        spec = next((spec for finder in others if (spec := finder.find_spec(name, *where))), None)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                ours = "OPENBLAS_NUM_THREADS" not in os.environ
                if ours:
                    os.environ["OPENBLAS_NUM_THREADS"] = "1"
                try:
                    execute(module)
                finally:
                    if ours:
                        del os.environ["OPENBLAS_NUM_THREADS"]

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "numpy" not in sys.modules:
    sys.meta_path.insert(0, _OneThread)
