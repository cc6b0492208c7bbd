"""Networks as people write them in PyTorch, with random numbers: what the readers of PyTorch's and ONNX's files are tested with.

Names of modules are torchvision's (features.0.0, features.1.conv.0.0, ...), for MobileNetV1 those of a widely copied file.
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


def resnet18(torch, alpha=0.125, classes=4):
    nn = torch.nn

    class BasicBlock(nn.Module):
        def __init__(self, before, after, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
            self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
            self.downsample = None
            if stride > 1:
                self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class ResNet18(nn.Module):
        def __init__(self):
            super().__init__()
            channels = int(64 * alpha)
            self.conv1, self.bn1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            for i in range(4):
                after = int(64 * alpha) << i
                stage = nn.Sequential(BasicBlock(channels, after, 2 if i else 1), BasicBlock(after, after, 1))
                setattr(self, f"layer{i + 1}", stage)
                channels = after
            self.fc = nn.Linear(channels, classes)

        def forward(self, x):
            x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, (1, 1)), 1))

    return filled(torch, ResNet18())


def vgg16(torch, alpha=0.05, classes=4, size=64):
    nn, layers, channels = torch.nn, [], 3
    for filters, convolutions in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]:
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, int(filters * alpha), 3, padding=1), nn.ReLU(inplace=True)]
            channels = int(filters * alpha)
        layers.append(nn.MaxPool2d(2, 2))
    units, pixels = int(4096 * alpha), size // 32

    class VGG16(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(*layers)
            self.avgpool = nn.AdaptiveAvgPool2d((pixels, pixels))
            first, second = nn.Linear(channels * pixels**2, units), nn.Linear(units, units)
            dense = [first, nn.ReLU(True), nn.Dropout(), second, nn.ReLU(True), nn.Dropout(), nn.Linear(units, classes)]
            self.classifier = nn.Sequential(*dense)

        def forward(self, x):
            return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))

    return filled(torch, VGG16())


def filled(torch, model, size=64):
    """The model as after training: statistics of its BatchNorms are those of pictures, so what comes out depends on what goes in."""
    torch.manual_seed(0)
    norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for part in model.modules():
        if isinstance(part, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.kaiming_normal_(part.weight)
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.7, 1.3)
        torch.nn.init.uniform_(norm.bias, -0.3, 0.5)
        norm.momentum = 1.0  # the last batch counts
    if norms:
        with torch.no_grad():
            model.train()(torch.randn(8, 3, size, size))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()
