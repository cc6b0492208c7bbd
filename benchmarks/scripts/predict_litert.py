"""python predict_litert.py MODEL.tflite PHOTO"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

interpreter = Interpreter(sys.argv[1])
interpreter.allocate_tensors()
picture = Image.open(sys.argv[2]).convert("RGB").resize((96, 96), Image.Resampling.BILINEAR)
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.asarray(picture, np.float32)[None] / 255)
interpreter.invoke()
print("class", interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).argmax(), flush=True)
