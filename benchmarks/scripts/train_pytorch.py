"""A classifier on a frozen MobileNetV1, as short as is sensible: python train_pytorch.py PHOTOS BACKBONE.pt ALPHA SIZE

PHOTOS/train/CLASS/*.jpg and PHOTOS/val/CLASS/*.jpg. Every photo is read once and goes through the backbone once, in batches of 32,
read by as many threads as there are processors; then the classifier is trained on the features for 100 epochs.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn


def mobilenet_v1(alpha):
    def conv(inputs, outputs, window, stride, groups=1):
        pad = nn.ZeroPad2d((0, 1, 0, 1)) if stride == 2 else nn.Identity()  # as TensorFlow pads
        return [pad, nn.Conv2d(inputs, outputs, window, stride, window // 2 if stride == 1 else 0, groups=groups), nn.ReLU6(inplace=True)]

    width = int(32 * alpha)
    layers = conv(3, width, 3, 2)
    for channels, stride in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)] + [(512, 1)] * 5 + [(1024, 2), (1024, 1)]:
        layers += conv(width, width, 3, stride, groups=width) + conv(width, int(channels * alpha), 1, 1)
        width = int(channels * alpha)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), width


folder, weights, alpha, size = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
backbone, width = mobilenet_v1(alpha)
backbone.load_state_dict(torch.load(weights))
backbone = backbone.eval().to(memory_format=torch.channels_last)
classes = sorted(path.name for path in (folder / "train").iterdir())


def read(path):
    return np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def features(part):
    paths = sorted((folder / part).glob("*/*.jpg"))
    found = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, torch.inference_mode():
        photos = pool.map(read, paths)
        for i in range(0, len(paths), 32):
            x = torch.from_numpy(np.stack([next(photos) for _ in paths[i : i + 32]])).permute(0, 3, 1, 2)
            found.append(backbone(x.float() / 127.5 - 1))
    return torch.cat(found).clone(), torch.tensor([classes.index(path.parent.name) for path in paths])


x, y = features("train")
val_x, val_y = features("val")
head = nn.Linear(width, len(classes))
optimiser = torch.optim.Adam(head.parameters(), 1e-3)
for _ in range(100):
    for chosen in torch.randperm(len(x)).split(32):
        optimiser.zero_grad()
        nn.functional.cross_entropy(head(x[chosen]), y[chosen]).backward()
        optimiser.step()
with torch.inference_mode():
    print(f"validation accuracy: {100 * (head(val_x).argmax(1) == val_y).float().mean():.1f} %")
torch.save(head.state_dict(), Path(weights).with_name("head.pt"))
