"""The same network in PyTorch, with the same numbers, laid out as PyTorch likes it best: what ours is compared with.

In: a Graph with parameters and its freeze mask (whole layers; a mask over channels has no counterpart there). Out: a module that takes
(N, C, H, W), channels last. What the graph has frozen asks for no gradient, and its BatchNorms stay on their stored statistics.
Made to be fast and small in memory: activations work in place, padding is left to the convolution where the two sides are equal.
"""

import numpy as np
import torch
from torch import nn

from minitl.folding import count_readers
from minitl.graph import INPUT
from minitl.layers import Add, BatchNorm, Conv2D, Dense, DepthwiseConv2D, Dropout, GlobalAveragePool, ReLU, ReLU6

TORCH_NAME = {"kernel": "weight", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def torch_layout(layer, name, array):
    """A parameter of ours as PyTorch keeps it."""
    if name == "kernel":
        array = {Conv2D: lambda k: k.transpose(3, 2, 0, 1), DepthwiseConv2D: lambda k: k.transpose(2, 0, 1)[:, None], Dense: lambda k: k.T}[
            type(layer)
        ](array)
    return torch.from_numpy(np.array(array))


def our_layout(layer, name, tensor):
    """The inverse of torch_layout."""
    array = tensor.detach().numpy()
    if name == "kernel":
        array = {
            Conv2D: lambda k: k.transpose(2, 3, 1, 0),
            DepthwiseConv2D: lambda k: k[:, 0].transpose(1, 2, 0),
            Dense: lambda k: k.T,
        }[type(layer)](array)
    return np.array(array)


class Twin(nn.Module):
    """See the head of this file."""

    def __init__(self, graph):
        super().__init__()
        self.graph, readers = graph, count_readers(graph)
        self.last_reader = {name: node.name for node in graph.nodes for name in node.inputs}
        self.layers = nn.ModuleDict({node.name: self._module(graph, node, readers) for node in graph.nodes})
        for node in graph.nodes:
            for name, array in graph.params.get(node.name, {}).items():
                self._tensor(node, name).data = torch_layout(node.layer, name, array)
            self.layers[node.name].requires_grad_(graph.in_training(node.name) is True)
        self.to(memory_format=torch.channels_last)
        self.train()

    @staticmethod
    def _module(graph, node, readers):
        layer, shape = node.layer, graph.input_shapes(node)[0]
        alone = readers[node.inputs[0]] == 1 and node.inputs[0] != INPUT
        if isinstance(layer, Conv2D | DepthwiseConv2D):
            top, bottom, left, right = layer.pads(shape)
            even = (top, left) == (bottom, right)
            groups, filters = (shape[2], shape[2]) if isinstance(layer, DepthwiseConv2D) else (1, layer.filters)
            conv = nn.Conv2d(shape[2], filters, layer.window, layer.strides, (top, left) if even else 0, groups=groups, bias=layer.use_bias)
            return conv if even else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), conv)
        if isinstance(layer, BatchNorm):
            return nn.BatchNorm2d(shape[2], eps=layer.epsilon, momentum=1 - layer.momentum)
        if isinstance(layer, ReLU6):
            return nn.ReLU6(inplace=alone)
        if isinstance(layer, ReLU):
            return nn.ReLU(inplace=alone)
        if isinstance(layer, GlobalAveragePool):
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        if isinstance(layer, Dense):
            return nn.Linear(shape[0], layer.units, bias=layer.use_bias)
        if isinstance(layer, Add) or (isinstance(layer, Dropout) and layer.rate == 0):
            return nn.Identity()
        raise NotImplementedError(f"{node.name}: no PyTorch twin for {layer}")

    def _tensor(self, node, name):
        module = self.layers[node.name]
        return getattr(module[-1] if isinstance(module, nn.Sequential) else module, TORCH_NAME.get(name, name))

    def forward(self, x):
        """(N, C, H, W) -> logits. Every value is dropped after its last reader."""
        values = {INPUT: x}
        del x
        for node in self.graph.nodes:
            module = self.layers[node.name]
            xs = [values[name] for name in node.inputs]
            for name in node.inputs:
                if self.last_reader[name] == node.name:
                    values.pop(name, None)
            values[node.name] = xs[0] + xs[1] if isinstance(node.layer, Add) else module(xs.pop())
        return values[self.graph.output]

    def train(self, mode=True):
        """BatchNorms that are frozen stay in eval mode."""
        super().train(mode)
        for node in self.graph.nodes:
            if isinstance(node.layer, BatchNorm) and self.graph.in_training(node.name) is False:
                self.layers[node.name].eval()
        return self

    def arrays(self):
        """Parameters and statistics as Graph.arrays() gives them."""
        return {
            f"{node.name}/{name}": our_layout(node.layer, name, self._tensor(node, name))
            for node in self.graph.nodes
            for name in self.graph.params.get(node.name, {})
        }

    def groups(self, decay):
        """For an optimiser of PyTorch: weight decay on kernels only, and nothing that is frozen."""
        kernels, others = [], []
        for node, name, _ in self.graph.trainable():
            (kernels if name == "kernel" else others).append(self._tensor(self.graph[node], name))
        return [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def to_torch(images):
    """(N, H, W, C) -> (N, C, H, W), the same memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def torch_step(twin, optimiser, x, labels):
    """Forward, backward, update. Returns the mean loss from before the update."""
    optimiser.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(twin(x), labels)
    loss.backward()
    optimiser.step()
    return loss.detach()
