"""minitl: transfer learning small enough to read and exact enough to ship.

    import minitl
    model = minitl.load("mobilenet_v1_0.25_128_quant.tflite")      # or a model of ours; see model.py for what it can do
    run = minitl.train(model, "photos")                            # photos/CLASS/*.jpg; see transfer.py
    run.model.save("model.npz")
    open("model.h", "w").write(run.model.emit("model"))

photo -> NHWC array -> float graph -> (frozen part: cached features) -> trained head -> folded graph -> integer graph -> C header
"""

from .errors import MinitlError
from .model import Answer, Model, load
from .training import Settings
from .transfer import Run, evaluate, train
from .version import __version__

__all__ = ["Answer", "MinitlError", "Model", "Run", "Settings", "__version__", "evaluate", "load", "train"]
