"""Small foreign files made by hand, for the tests of the readers: Keras .h5 files by h5py, .tflite files by the writer below.

The networks are ours with random numbers, so that every array that a reader returns can be compared with the one that was written.
"""

import json
import struct

import numpy as np

from minitl import architectures
from minitl.graph import INPUT
from minitl.importers.names import steps
from minitl.layers import Add, Conv2D, Dense, DepthwiseConv2D, GlobalAveragePool


def network(architecture="mobilenet_v1", seed=0, **arguments):
    """(graph with random parameters, its arrays). Statistics of BatchNorms are random as well."""
    arguments = {"alpha": 0.25, "input_shape": [64, 64, 3], "classes": 3, **arguments}
    graph = architectures.build(architecture, **arguments).initialise(seed)
    rng = np.random.default_rng(seed)
    for params in graph.params.values():
        for name in params:
            if name != "kernel":
                params[name] = rng.uniform(0.5, 1.5, params[name].shape).astype(np.float32)
    return graph, graph.arrays()


def alive(graph):
    """The same graph, folded, as if its BatchNorms had seen pictures: what comes out depends on what goes in."""
    known = {INPUT: np.random.default_rng(1).standard_normal((4, *graph.input_shape)).astype(np.float32)}
    for step in steps(graph):
        if step.kernel_shape:
            params, name = graph.params[step.name], step.name
            y = graph.evaluate(known, [name])[name] - params["bias"]
            axes = tuple(range(y.ndim - 1))
            scale = 1 / y.std(axes)
            params["kernel"] *= scale
            params["bias"] += -0.9 - y.mean(axes) * scale
            known[name] = y * scale + params["bias"]
    return graph


MEANS = (123.68, 116.78, 103.94)
RESCALED = {  # what a file does to its picture -> mean and std for pixels 0..255, and what it takes these pixels divided by
    "x / 255": ([("DIV", 255)], 0, 255, 1),
    "x / 127.5 - 1": ([("MUL", 1 / 127.5), ("SUB", 1)], 127.5, 127.5, 1),
    "x / 127.5 + (-1)": ([("DIV", 127.5), ("ADD", -1)], 127.5, 127.5, 1),
    "x - mean": ([("SUB", MEANS)], MEANS, 1, 1),
    "(x - mean) * 0.017": ([("SUB", MEANS), ("MUL", 0.017)], MEANS, 1 / 0.017, 1),
    "(x - 0.45) / 0.225": ([("SUB", 0.45), ("DIV", 0.225)], 114.75, 57.375, 255),
    "(x - 0.45) * 16": ([("SUB", 0.45), ("MUL", 16)], 114.75, 255 / 16, 255),
    "2 x - 1": ([("MUL", 2), ("SUB", 1)], 127.5, 127.5, 255),
    "2 x": ([("MUL", 2)], 0, 127.5, 255),
}


def is_rescaled(recipe, mean, std):
    """Whether a recipe has these numbers, one each or one for each colour."""
    found = np.array([recipe.mean, recipe.std])
    return np.allclose(found, [np.broadcast_to(mean, 3), np.broadcast_to(std, 3)], rtol=1e-5, atol=1e-4)


# ---- Keras


def keras_weights(graph):
    """[(layer, [(weight name, array)])] as Keras 2 stores the network: depthwise kernels with a last axis of 1, V1's head a convolution."""
    layers = [("input_1", [])]
    for step in steps(graph):
        params = graph.params.get(step.name, {})
        weights = []
        for name, array in params.items():
            if name == "kernel" and isinstance(step.layer, DepthwiseConv2D):
                name, array = "depthwise_kernel", array[..., None]
            elif name == "kernel" and step.name == "conv_preds":
                array = array[None, None]
            weights.append((f"{step.name}/{name}:0", array))
        layers.append((step.name, weights))
        if step.norm and step.norm in graph.params:
            layers.append((step.norm, [(f"{step.norm}/{name}:0", array) for name, array in graph.params[step.norm].items()]))
        layers.append((f"{step.name}_relu_or_so", []))
    return layers


def write_keras(path, layers, config=None, vlen=False, chunks=None, **root_attributes):
    """A legacy Keras .h5 file through h5py; vlen: names as strings of any length (Keras 3); chunks: layer_names split in so many parts."""
    import h5py

    def texts(names):
        if not names:
            return np.array([])
        return np.array(names, h5py.string_dtype()) if vlen else np.array([name.encode() for name in names])

    with h5py.File(path, "w") as file:
        group = file
        if config is not None:
            group = file.create_group("model_weights")
            file.attrs["model_config"] = json.dumps(config)
        file.attrs.update(root_attributes)
        names = [name for name, _ in layers]
        if chunks:
            for i, part in enumerate(np.array_split(np.array(names), chunks)):
                group.attrs[f"layer_names{i}"] = texts(part.tolist())
        else:
            group.attrs["layer_names"] = texts(names)
        for name, weights in layers:
            layer = group.require_group(name)
            layer.attrs["weight_names"] = texts([weight for weight, _ in weights])
            for weight, array in weights:
                layer.create_dataset(weight, data=array)
    return path


def keras_config(graph, keras=2):
    """The model_config of the network as a functional Keras model, in the JSON of Keras 2 or 3."""
    layers = []

    def add(kind, name, inputs, **config):
        if keras == 2:
            nodes = [[[i, 0, 0, {}] for i in inputs]] if inputs else []
        else:
            tensors = [{"class_name": "__keras_tensor__", "config": {"keras_history": [i, 0, 0]}} for i in inputs]
            nodes = [{"args": [tensors] if kind == "Add" else tensors, "kwargs": {}}] if inputs else []
        layers.append({"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes})
        return name

    shape = [None, *graph.input_shape]
    value = {-1: add("InputLayer", "input_1", [], **{"batch_input_shape" if keras == 2 else "batch_shape": shape})}
    for i, step in enumerate(steps(graph)):
        inputs, layer = [value[j] for j in step.inputs], step.layer
        if isinstance(layer, (Conv2D, DepthwiseConv2D)):
            padding = "same"
            if layer.padding == "keras" and layer.strides == (2, 2):
                inputs, padding = [add("ZeroPadding2D", f"{step.name}_pad", inputs, padding=[[0, 1], [0, 1]])], "valid"
            kind = "Conv2D" if isinstance(layer, Conv2D) else "DepthwiseConv2D"
            value[i] = add(kind, step.name, inputs, strides=list(layer.strides), padding=padding, activation="linear")
        elif isinstance(layer, Add):
            value[i] = add("Add", step.name, inputs)
        elif isinstance(layer, GlobalAveragePool):
            value[i] = add("GlobalAveragePooling2D", step.name, inputs)
        elif step.name == "conv_preds":
            x = add("Conv2D", step.name, inputs, strides=[1, 1], padding="same", activation="linear")
            value[i] = add("Activation", "predictions", [add("Reshape", "reshape_2", [x])], activation="softmax")
        elif isinstance(layer, Dense):
            value[i] = add("Dense", step.name, inputs, activation="softmax")
        if step.norm:
            value[i] = add("BatchNormalization", step.norm, [value[i]], axis=[3], epsilon=1e-3, momentum=0.99)
        if step.activation == "relu6":
            value[i] = add("ReLU", f"{step.name}_relu", [value[i]], max_value=6.0)
        elif step.activation == "relu":
            value[i] = add("Activation", f"{step.name}_relu", [value[i]], activation="relu")
    return {"class_name": "Functional", "config": {"name": "model", "layers": layers}}


# ---- FlatBuffers


class Writer:
    """{field: value} -> FlatBuffer. Values: (struct letter, number), str, bytes, array, dict (a table), list of dicts (their vector)."""

    def __init__(self, root, identifier):
        self.out = bytearray(8)
        self.out[4:8] = identifier
        struct.pack_into("<I", self.out, 0, self.table(root))

    def align(self, size):
        self.out += bytes(-len(self.out) % size)

    def table(self, fields):
        count = max(fields, default=-1) + 1
        slots, size = [0] * count, 4
        for number, value in fields.items():
            width = struct.calcsize(value[0]) if isinstance(value, tuple) else 4
            size += -size % width
            slots[number], size = size, size + width
        self.align(8)
        self.out += struct.pack(f"<HH{count}H", 4 + 2 * count, size, *slots)
        self.align(8)
        at = len(self.out)
        vtable = at - (4 + 2 * count) - (-(4 + 2 * count) % 8)
        self.out += struct.pack("<i", at - vtable) + bytes(size - 4)
        for number, value in fields.items():
            where = at + slots[number]
            if isinstance(value, tuple):
                struct.pack_into("<" + value[0], self.out, where, value[1])
            else:
                struct.pack_into("<I", self.out, where, self.reference(value) - where)
        return at

    def reference(self, value):
        if isinstance(value, dict):
            return self.table(value)
        if isinstance(value, list):
            self.align(4)
            at = len(self.out)
            self.out += struct.pack("<I", len(value)) + bytes(4 * len(value))
            for i, item in enumerate(value):
                struct.pack_into("<I", self.out, at + 4 + 4 * i, self.reference(item) - (at + 4 + 4 * i))
            return at
        if isinstance(value, str):
            value = value.encode()
            self.align(4)
            self.out += struct.pack("<I", len(value))
            self.out += value + b"\0"
            return len(self.out) - len(value) - 5
        array = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.ascontiguousarray(value)
        self.out += bytes(-(len(self.out) + 4) % 16)  # so that the numbers themselves are aligned
        at = len(self.out)
        self.out += struct.pack("<I", array.size) + array.tobytes()
        return at


# ---- TensorFlow Lite

TYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int16": 7, "int8": 9}
CODES = {
    "ADD": 0, "AVERAGE_POOL_2D": 1, "CONCATENATION": 2, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 4, "DEQUANTIZE": 6, "FULLY_CONNECTED": 9,
    "MAX_POOL_2D": 17, "MUL": 18, "RELU": 19, "RELU6": 21, "RESHAPE": 22, "SOFTMAX": 25, "PAD": 34, "MEAN": 40, "SUB": 41, "DIV": 42,
    "SQUEEZE": 43, "STRIDED_SLICE": 45, "QUANTIZE": 114, "HARD_SWISH": 117,
}  # fmt: skip
FUSED = {"linear": 0, "relu": 1, "relu_n1_to_1": 2, "relu6": 3}


class TFLite:
    """Tensors and operators, one after the other; bytes() gives the file."""

    def __init__(self):
        self.tensors, self.operators, self.buffers, self.metadata = [], [], [{}], []
        self.inputs, self.outputs = [0], []

    def tensor(self, shape, dtype="float32", data=None, scale=None, zero_point=None, axis=0):
        """Index of a new tensor; data makes it a constant."""
        quantisation = {} if scale is None else {2: np.asarray(scale, "<f4"), 3: np.asarray(zero_point, "<i8"), 6: ("i", axis)}
        if data is not None:
            self.buffers.append({0: np.ascontiguousarray(data).tobytes()})
        buffer = len(self.buffers) - 1 if data is not None else 0
        name = f"tensor{len(self.tensors)}"
        self.tensors.append({0: np.asarray(shape, "<i4"), 1: ("b", TYPES[dtype]), 2: ("I", buffer), 3: name, 4: quantisation})
        return len(self.tensors) - 1

    def constant(self, data, **quantisation):
        data = np.asarray(data)
        return self.tensor(data.shape, data.dtype.name, data, **quantisation)

    def operator(self, kind, inputs, shape, options=(0, {}), **tensor):
        """Index of the tensor that a new operator computes. options: (type number, fields)."""
        output = self.tensor(shape, **tensor)
        fields = {0: ("I", sorted(CODES).index(kind)), 1: np.asarray(inputs, "<i4"), 2: np.asarray([output], "<i4")}
        if options[0]:
            fields.update({3: ("B", options[0]), 4: options[1]})
        self.operators.append(fields)
        return output

    def bytes(self):
        graph = {0: self.tensors, 1: np.asarray(self.inputs, "<i4"), 2: np.asarray(self.outputs, "<i4"), 3: self.operators}
        codes = [{0: ("b", CODES[k]), 2: ("i", 1), 3: ("i", CODES[k])} for k in sorted(CODES)]
        metadata = []
        for name, data in self.metadata:
            self.buffers.append({0: data})
            metadata.append({0: name, 1: ("I", len(self.buffers) - 1)})
        model = {0: ("I", 3), 1: codes, 2: [graph], 3: "made by hand", 4: self.buffers}
        if metadata:
            model[6] = metadata
        return bytes(Writer(model, b"TFL3").out)


def plain(file, array, kind):
    """Weights as they are."""
    return file.constant(array)


def half(file, array, kind):
    """Weights in float16 behind a DEQUANTIZE, as TensorFlow Lite's float16 quantisation stores them."""
    return file.operator("DEQUANTIZE", [file.constant(array.astype(np.float16))], array.shape)


def per_channel(file, array, kind):
    """int8 kernels with a scale for each output channel; biases stay float (dynamic-range quantisation)."""
    if array.ndim == 1:
        return file.constant(array)
    axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
    scale = np.abs(array).max(axis=tuple(i for i in range(array.ndim) if i != axis)) / 127
    shape = [-1 if i == axis else 1 for i in range(array.ndim)]
    q = np.rint(array / scale.reshape(shape)).astype(np.int8)
    return file.constant(q, scale=scale, zero_point=np.zeros(len(scale)), axis=axis)


def tflite(graph, store=plain, pads=False, head="FULLY_CONNECTED", before=(), pool="AVERAGE_POOL_2D"):
    """The network (folded: batch_norm False) as a TFLite builder. pads: PAD and VALID instead of SAME. before: arithmetic first."""
    file, h, w = TFLite(), *graph.input_shape[:2]
    value, size = {-1: file.tensor([1, h, w, 3])}, {-1: (h, w)}
    for kind, number in before:
        value[-1] = file.operator(kind, [value[-1], file.constant(np.array(number, np.float32))], [1, h, w, 3])
    for i, step in enumerate(steps(graph)):
        layer, x, (h, w) = step.layer, value[step.inputs[0]], size[step.inputs[0]]
        fused = ("b", FUSED[step.activation])
        if isinstance(layer, (Conv2D, DepthwiseConv2D)):
            kernel, bias = (graph.params[step.name][name] for name in ("kernel", "bias"))
            depthwise = isinstance(layer, DepthwiseConv2D)
            kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
            padding, sides = 0, layer.pads(step.shape)
            if pads and any(sides):
                t, b, left, r = sides
                table = file.constant(np.array([[0, 0], [t, b], [left, r], [0, 0]], np.int32))
                x, padding = file.operator("PAD", [x, table], [1, h + t + b, w + left + r, step.shape[2]]), 1
            h, w, c = layer.output_shape(step.shape)
            kernel = kernel[None] if depthwise else kernel.transpose(3, 0, 1, 2)
            options = {0: ("b", padding), 1: ("i", layer.strides[1]), 2: ("i", layer.strides[0])}
            options.update({3: ("i", 1), 4: fused} if depthwise else {3: fused})
            inputs = [x, store(file, kernel, kind), store(file, bias, kind)]
            value[i] = file.operator(kind, inputs, [1, h, w, c], (2 if depthwise else 1, options))
        elif isinstance(layer, Add):
            value[i] = file.operator("ADD", [value[j] for j in step.inputs], [1, *step.shape], (11, {0: fused}))
        elif isinstance(layer, GlobalAveragePool):
            c = step.shape[2]
            if pool == "MEAN":
                value[i] = file.operator(pool, [x, file.constant(np.array([1, 2], np.int32))], [1, 1, 1, c], (27, {0: ("B", 1)}))
            else:
                options = {0: ("b", 1), 1: ("i", 1), 2: ("i", 1), 3: ("i", w), 4: ("i", h)}
                value[i] = file.operator(pool, [x], [1, 1, 1, c], (5, options))
            h = w = 1
        else:
            kernel, bias = (graph.params[step.name][name] for name in ("kernel", "bias"))
            if head == "FULLY_CONNECTED":
                x = file.operator("RESHAPE", [x, file.constant(np.array([1, kernel.shape[0]], np.int32))], [1, kernel.shape[0]])
                inputs = [x, store(file, kernel.T, head), store(file, bias, head)]
                logits = file.operator(head, inputs, [1, kernel.shape[1]], (8, {}))
            else:
                inputs = [x, store(file, kernel.T[:, None, None], head), store(file, bias, head)]
                x = file.operator(head, inputs, [1, 1, 1, kernel.shape[1]], (1, {1: ("i", 1), 2: ("i", 1)}))
                logits = file.operator("RESHAPE", [x, file.constant(np.array([1, kernel.shape[1]], np.int32))], [1, kernel.shape[1]])
            value[i] = file.operator("SOFTMAX", [logits], [1, kernel.shape[1]], (9, {0: ("f", 1.0)}))
        size[i] = (h, w)
    file.outputs = [value[i]]
    return file


def metadata(mean, std):
    """TFLITE_METADATA with NormalizationOptions for the input."""
    options = {0: np.asarray(mean, "<f4"), 1: np.asarray(std, "<f4")}
    tensor = {0: "image", 4: [{0: ("B", 1), 1: options}]}
    return bytes(Writer({0: "made by hand", 3: [{2: [tensor]}]}, b"M001").out)


def mutate(data, rng):
    """A damaged copy: bytes changed, numbers replaced by hostile ones, pieces copied over others, the end cut off."""
    out = bytearray(data)

    def place():  # what describes the numbers is mostly at both ends
        near = rng.random()
        if near < 0.4:
            return rng.randrange(min(len(data), 4096))
        return len(data) - 1 - rng.randrange(min(len(data), 20_000)) if near < 0.7 else rng.randrange(len(data))

    kind = rng.random()
    if kind < 0.45:
        for _ in range(rng.choice([1, 1, 2, 4, 16])):
            out[place()] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
    elif kind < 0.6:
        del out[rng.choice([place(), rng.randrange(len(data))]) :]
    elif kind < 0.75:
        a, b, size = place(), place(), rng.choice([1, 4, 8, 16, 64, 512])
        out[a : a + size] = out[b : b + size]
    else:
        size = rng.choice([2, 4, 8])
        at = place() & -size
        top = 1 << 8 * size
        out[at : at + size] = rng.choice([0, 1, top // 2, top // 2 - 1, top - 1, rng.randrange(len(data)) % top, at % top]).to_bytes(
            size, "little"
        )
    return bytes(out)
