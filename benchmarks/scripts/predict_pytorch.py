"""python predict_pytorch.py MODEL.pt PHOTO    (a TorchScript file)"""

import sys

import numpy as np
import torch
from PIL import Image

model = torch.jit.load(sys.argv[1])
picture = Image.open(sys.argv[2]).convert("RGB").resize((96, 96), Image.Resampling.BILINEAR)
x = torch.from_numpy(np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255)
with torch.inference_mode():
    print("class", model(x).argmax().item(), flush=True)
