"""A folded graph as the others read it: ONNX for ONNX Runtime, a float .tflite for LiteRT; with its very weights.

In: a Graph of folding.fold. Out: the bytes of a file. Activations are fused where the format has a place for them. Left out: layers that
no MobileNet has (NotImplementedError says which), and training.
"""

import numpy as np

from minitl.geometry import resolve
from minitl.graph import INPUT
from minitl.layers import Add, Conv2D, Dense, DepthwiseConv2D, GlobalAveragePool, ReLU, ReLU6


def onnx_bytes(graph):
    """ONNX, images as (N, C, H, W) with any N; needs the package onnx."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants = [], []

    def constant(name, array):
        constants.append(numpy_helper.from_array(np.asarray(array, np.float32, order="C"), name))
        return name

    def add(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))

    for node in graph.nodes:
        layer, params, inputs = node.layer, graph.params.get(node.name, {}), list(node.inputs)
        weights = [constant(f"{node.name}/bias", params["bias"])] if "bias" in params else []
        if isinstance(layer, Conv2D | DepthwiseConv2D):
            top, bottom, left, right = layer.pads(graph.input_shapes(node)[0])
            depthwise = isinstance(layer, DepthwiseConv2D)
            kernel = params["kernel"].transpose(2, 0, 1)[:, None] if depthwise else params["kernel"].transpose(3, 2, 0, 1)
            group = len(kernel) if depthwise else 1
            inputs += [constant(f"{node.name}/kernel", kernel), *weights]
            add("Conv", inputs, node.name, pads=[top, left, bottom, right], strides=layer.strides, kernel_shape=layer.window, group=group)
        elif isinstance(layer, Dense):
            add("Gemm", [*inputs, constant(f"{node.name}/kernel", params["kernel"]), *weights], node.name)
        elif isinstance(layer, GlobalAveragePool):
            add("GlobalAveragePool", inputs, f"{node.name}/4d")
            add("Flatten", [f"{node.name}/4d"], node.name)
        elif isinstance(layer, ReLU6):
            bounds = [constant(f"{node.name}/{name}", value) for name, value in (("low", 0), ("high", 6))]
            add("Clip", [*inputs, *bounds], node.name)
        elif isinstance(layer, ReLU | Add):
            add({ReLU: "Relu", Add: "Add"}[type(layer)], inputs, node.name)
        else:
            raise NotImplementedError(f"{node.name}: no ONNX for {layer}")
    h, w, c = graph.input_shape
    image = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", c, h, w])
    answer = helper.make_tensor_value_info(graph.output, TensorProto.FLOAT, ["N", *graph.shapes[graph.output]])
    model = helper.make_model(helper.make_graph(nodes, "graph", [image], [answer], constants), opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    return model.SerializeToString()


def tflite_bytes(graph):
    """A float .tflite, images as (1, H, W, C), to be resized; needs the packages flatbuffers and ai_edge_litert."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as s

    model, part, tensors = s.ModelT(), s.SubGraphT(), {}
    model.version, model.buffers, model.operatorCodes, part.tensors, part.operators = 3, [s.BufferT()], [], [], []
    activations = {ReLU: s.ActivationFunctionType.RELU, ReLU6: s.ActivationFunctionType.RELU6}
    fused = {node.inputs[0]: node for node in graph.nodes if type(node.layer) in activations}

    def tensor(name, shape, data=None):
        t = s.TensorT()
        t.name, t.shape, t.type = name, list(shape), s.TensorType.INT32 if name.endswith("/axes") else s.TensorType.FLOAT32
        if data is not None:
            buffer = s.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            model.buffers.append(buffer)
            t.buffer = len(model.buffers) - 1
        part.tensors.append(t)
        tensors[name] = len(part.tensors) - 1
        return tensors[name]

    def constant(name, array):
        return tensor(name, array.shape, array)

    def add(kind, inputs, node, options=None):
        code, op = s.OperatorCodeT(), s.OperatorT()
        code.builtinCode = getattr(s.BuiltinOperator, kind)
        code.deprecatedBuiltinCode, code.version = code.builtinCode, 1
        model.operatorCodes.append(code)
        last = fused.get(node.name, node)
        op.opcodeIndex, op.inputs, op.outputs = len(model.operatorCodes) - 1, inputs, [tensor(last.name, (1, *graph.shapes[last.name]))]
        tensors[node.name] = tensors[last.name]
        if options:
            op.builtinOptionsType, op.builtinOptions = getattr(s.BuiltinOptions, type(options).__name__[:-1]), options
            if hasattr(options, "fusedActivationFunction"):
                options.fusedActivationFunction = activations.get(type(last.layer), s.ActivationFunctionType.NONE)
        part.operators.append(op)

    tensor(INPUT, (1, *graph.input_shape))
    for node in graph.nodes:
        layer, params, shape = node.layer, graph.params.get(node.name, {}), graph.input_shapes(node)[0]
        inputs = [tensors[name] for name in node.inputs]
        if isinstance(layer, Conv2D | DepthwiseConv2D):
            depthwise = isinstance(layer, DepthwiseConv2D)
            kernel = params["kernel"][None] if depthwise else params["kernel"].transpose(3, 0, 1, 2)
            options = s.DepthwiseConv2DOptionsT() if depthwise else s.Conv2DOptionsT()
            options.strideH, options.strideW = layer.strides
            options.dilationHFactor = options.dilationWFactor = options.depthMultiplier = 1
            pads = layer.pads(shape)
            options.padding = s.Padding.SAME if any(pads) else s.Padding.VALID
            if any(pads) and pads != resolve("same", *shape[:2], layer.window, layer.strides):
                raise NotImplementedError(f"{node.name}: no .tflite for padding {pads}")
            inputs += [constant(f"{node.name}/kernel", kernel), constant(f"{node.name}/bias", params["bias"])]
            add("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", inputs, node, options)
        elif isinstance(layer, Dense):
            inputs += [constant(f"{node.name}/kernel", params["kernel"].T), constant(f"{node.name}/bias", params["bias"])]
            add("FULLY_CONNECTED", inputs, node, s.FullyConnectedOptionsT())
        elif isinstance(layer, GlobalAveragePool):
            add("MEAN", [*inputs, constant(f"{node.name}/axes", np.array([1, 2], np.int32))], node, s.ReducerOptionsT())
        elif isinstance(layer, Add):
            add("ADD", inputs, node, s.AddOptionsT())
        elif type(layer) not in activations:
            raise NotImplementedError(f"{node.name}: no .tflite for {layer}")
    part.inputs, part.outputs = [tensors[INPUT]], [tensors[graph.output]]
    model.subgraphs = [part]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
