"""python predict_onnx_runtime.py MODEL.onnx PHOTO"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
picture = Image.open(sys.argv[2]).convert("RGB").resize((96, 96), Image.Resampling.BILINEAR)
x = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255
print("class", session.run(None, {"input": np.ascontiguousarray(x)})[0].argmax(), flush=True)
