"""MobileNets as people write them in PyTorch, with random numbers: what the readers of PyTorch's and ONNX's files are tested with.

Names of modules are torchvision's for V2 (features.0.0, features.1.conv.0.0, ...) and those of a widely copied V1.
"""

from minitl.architectures.mobilenet_v1 import BLOCKS as V1
from minitl.architectures.mobilenet_v2 import BLOCKS as V2
from minitl.architectures.mobilenet_v2 import divisible_by_8


def convolution(torch, before, after, window, stride=1, groups=1, activation=True):
    """Convolution, BatchNorm, ReLU6 as one module."""
    nn = torch.nn
    layers = [nn.Conv2d(before, after, window, stride, window // 2, groups=groups, bias=False), nn.BatchNorm2d(after)]
    return nn.Sequential(*layers, nn.ReLU6(inplace=True)) if activation else layers


def mobilenet_v1(torch, alpha=0.1, classes=4):
    channels = int(32 * alpha)
    layers = [convolution(torch, 3, channels, 3, 2)]
    for filters, stride in V1:
        after = int(filters * alpha)
        depthwise = convolution(torch, channels, channels, 3, stride, channels)
        layers.append(torch.nn.Sequential(*depthwise, *convolution(torch, channels, after, 1)))
        channels = after

    class MobileNetV1(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1))
            self.fc = torch.nn.Linear(channels, classes)

        def forward(self, x):
            return self.fc(self.model(x).view(-1, channels))

    return filled(torch, MobileNetV1())


def mobilenet_v2(torch, alpha=0.1, classes=4):
    class InvertedResidual(torch.nn.Module):
        def __init__(self, before, after, stride, expansion):
            super().__init__()
            inner = before * expansion
            layers = [convolution(torch, before, inner, 1)] if expansion > 1 else []
            layers += [convolution(torch, inner, inner, 3, stride, inner), *convolution(torch, inner, after, 1, activation=False)]
            self.conv = torch.nn.Sequential(*layers)
            self.residual = stride == 1 and before == after

        def forward(self, x):
            return x + self.conv(x) if self.residual else self.conv(x)

    class MobileNetV2(torch.nn.Module):
        def __init__(self):
            super().__init__()
            channels = divisible_by_8(32 * alpha)
            layers = [convolution(torch, 3, channels, 3, 2)]
            for expansion, filters, repeats, first_stride in V2:
                for i in range(repeats):
                    after = divisible_by_8(filters * alpha)
                    layers.append(InvertedResidual(channels, after, 1 if i else first_stride, expansion))
                    channels = after
            self.features = torch.nn.Sequential(*layers, convolution(torch, channels, 1280, 1))
            self.classifier = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(1280, classes))

        def forward(self, x):
            x = torch.nn.functional.adaptive_avg_pool2d(self.features(x), (1, 1))
            return self.classifier(torch.flatten(x, 1))

    return filled(torch, MobileNetV2())


def filled(torch, model):
    """The model, ready to predict, with BatchNorms that are not those of a fresh one."""
    torch.manual_seed(0)
    for name, array in model.state_dict().items():
        if array.ndim == 1:
            array.uniform_(0.5, 1.5)
            if name.endswith(("running_mean", "bias")):
                array.sub_(1.0)
    return model.eval()
