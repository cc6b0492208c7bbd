"""LiteRT beside our integer graphs, for tests: the same file, computed by somebody else, every tensor of it."""

import re
from pathlib import Path

import numpy as np

from minitl.importers import tflite_int8


def interpreter(path=None, content=None):
    """LiteRT with its reference kernels, every intermediate tensor kept."""
    litert = __import__("pytest").importorskip("ai_edge_litert.interpreter")
    result = litert.Interpreter(
        None if path is None else str(path),
        model_content=content,
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    result.allocate_tensors()
    result.file = path
    return result


def integer_graph(it):
    """(IntegerGraph of the file of an interpreter, {tensor name in it: tensor index in LiteRT}, its input tensor)."""
    graph = tflite_int8.read(Path(it.file).read_bytes(), Path(it.file).name).graph
    return graph, tensor_indices(graph), graph.tensors[graph.input]


def tensor_indices(graph):
    """{name: index in the file} of the tensors that are the file's own."""
    found = {name: re.fullmatch(r"t(\d+)(_row)?", name) for name in graph.tensors}
    return {name: int(match[1]) for name, match in found.items() if match}


def as_int8(values):
    """uint8 as the reader takes it: q - 128."""
    return (values.astype(np.int16) - 128).astype(np.int8) if values.dtype == np.uint8 else values


def compare(graph, it, x):
    """{kind of op: (values, how many differ from LiteRT's, by how much at most)} over int8 images x (N, ...), each layer on its own.

    The file's input is int8 or uint8.
    """
    entry, index, found = it.get_input_details()[0], tensor_indices(graph), {}
    for image, ours in zip(x, _runs(graph, x), strict=True):
        raw = (image.astype(np.int16) + 128).astype(np.uint8) if entry["dtype"] == np.uint8 else image
        it.set_tensor(entry["index"], raw.reshape(entry["shape"]))
        it.invoke()
        for op in graph.ops:
            if op.output in index:
                theirs = as_int8(it.get_tensor(index[op.output])).reshape(ours[op.output].shape)
                apart = np.abs(theirs.astype(np.int16) - ours[op.output])
                values, different, largest = found.get(op.kind, (0, 0, 0))
                found[op.kind] = values + apart.size, different + int(np.count_nonzero(apart)), max(largest, int(apart.max()))
    return found


def _runs(graph, x):
    for image in x:
        yield {name: value[0] for name, value in graph.run_all(image[None]).items()}
