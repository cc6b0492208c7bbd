"""Integer graphs read off a LiteRT interpreter, for tests: the same network, computed by somebody else, every tensor of it.

Only what the published int8 files need: 'same' padding, strides seen in the shapes, and no clamp but int8's own (their ReLU and
ReLU6 are expressed by scale and zero point).
"""

import numpy as np

from minitl.geometry import resolve
from minitl.integer import (
    Add,
    AveragePool,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    GlobalMean,
    IntegerGraph,
    Reshape,
    Tensor,
    add_parameters,
    mean_parameters,
    quantise_multipliers,
)


def interpreter(path):
    """LiteRT with its reference kernels, every intermediate tensor kept."""
    litert = __import__("pytest").importorskip("ai_edge_litert.interpreter")
    result = litert.Interpreter(
        str(path), experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF, experimental_preserve_all_tensors=True
    )
    result.allocate_tensors()
    return result


def integer_graph(it):
    """(IntegerGraph without QUANTIZE and SOFTMAX, {tensor name in it: tensor index in LiteRT}, index of its input)."""
    details = {d["index"]: d for d in it.get_tensor_details()}
    tensors, ops, index = {}, [], {}

    def tensor(i, drop_batch=True):
        scale, zero = details[i]["quantization"]
        name, shape = f"t{i}", tuple(details[i]["shape"][1:].tolist())
        tensors.setdefault(name, Tensor(name, shape, float(scale), int(zero)))
        index[name] = int(i)
        return tensors[name]

    steps = [d for d in it._get_ops_details() if d["op_name"] not in ("QUANTIZE", "SOFTMAX", "DELEGATE")]
    first = tensor(steps[0]["inputs"][0])
    for step in steps:
        kind, out = step["op_name"], tensor(step["outputs"][0])
        source = tensor(step["inputs"][0])
        common = (f"{kind.lower()} {out.name}", (source.name,), out.name)
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            kernel, bias = it.get_tensor(step["inputs"][1]), it.get_tensor(step["inputs"][2])
            scales = details[step["inputs"][1]]["quantization_parameters"]["scales"].astype(np.float64)
            scales = np.broadcast_to(scales, bias.shape)
            weights = (bias, *quantise_multipliers(source.scale * scales / out.scale))
            if kind == "FULLY_CONNECTED":
                ops.append(Dense(*common, np.ascontiguousarray(kernel.T), *weights))
                continue
            stride = -(-source.shape[0] // out.shape[0])
            padding = resolve("same", *source.shape[:2], kernel.shape[1:3], (stride, stride))
            depthwise = kind == "DEPTHWISE_CONV_2D"
            kernel = np.ascontiguousarray(kernel[0] if depthwise else kernel.transpose(1, 2, 3, 0))
            ops.append((DepthwiseConv2D if depthwise else Conv2D)(*common, kernel, *weights, strides=(stride, stride), padding=padding))
        elif kind == "AVERAGE_POOL_2D":
            ops.append(AveragePool(*common, source.shape[:2], source.shape[:2]))
        elif kind == "MEAN":  # keep_dims: its (1, 1, C) is a (C,) and a reshape here
            h, w, c = source.shape
            flat = Tensor(f"{out.name}_flat", (c,), out.scale, out.zero_point)
            tensors[flat.name] = flat
            ops.append(GlobalMean(common[0], common[1], flat.name, *mean_parameters(source.scale, out.scale, h * w)))
            ops.append(Reshape(f"reshape {out.name}", (flat.name,), out.name))
        elif kind == "ADD":
            other = tensor(step["inputs"][1])
            parameters = add_parameters(source.scale, other.scale, out.scale)
            ops.append(Add(common[0], (source.name, other.name), out.name, *parameters))
        elif kind == "RESHAPE":
            ops.append(Reshape(*common))
        else:
            raise AssertionError(f"a test network with {kind}")
    return IntegerGraph(tensors, tuple(ops), first.name, ops[-1].output), index, first
