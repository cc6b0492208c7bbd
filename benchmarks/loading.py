"""How long a weights file takes to read: every array of it, by our readers and by the libraries of the formats.

Out: a table. Each real file as its maker published it, and one network as PyTorch saves it, in both of its containers; ours beside h5py,
the code that flatc makes of TensorFlow Lite's schema, and torch.load. The clock covers opening the file; before it starts, all must have
read the same numbers. Last column: all that `minitl.load` does: the same, dequantised, matched layer by layer, checked, hashed.
"""

import tempfile
import zlib
from pathlib import Path

import numpy as np
from contenders import WEIGHTS, model_of
from tables import Table, number
from turns import Contender, Turns, imported

NETWORK = "V2 1.0@224"
PEERS = {"h5": ("h5py", "h5py"), "tflite": ("flatbuffers", "flatbuffers"), "pth": ("torch.load", "torch")}
"""{kind of file: (who, work)}"""
GOAL = 3


def report(quick, threads):
    table = Table(
        "Loading",
        "Milliseconds to read all arrays of a file, which lies in the system's memory; minitl / it: how many times as long, beside it the "
        "most that we want.",
        ("", "minitl, ms", "the format's library", "ms", "minitl / it", "goal", "minitl.load, ms"),
    )
    with tempfile.TemporaryDirectory() as folder:
        files = [path for kind in ("h5", "tflite") for path in sorted(WEIGHTS.glob(f"*.{kind}"))]
        if not files:
            table.remark(f"Without real files: there are none in {WEIGHTS}.")
        try:
            files += save_as_pytorch(Path(folder))
        except ImportError as error:
            table.remark(f"Without .pth: {error}.")
        for path in files[:1] + files[-1:] if quick else files:
            _row(table, path, 3 if quick else 15)
    return table


def save_as_pytorch(folder):
    """A network's arrays as a state_dict, in PyTorch's ZIP container and in the stream from before 1.6."""
    import torch

    arrays = {name: torch.from_numpy(array.copy()) for name, array in model_of(NETWORK).graph.arrays().items()}
    torch.save(arrays, folder / "zip.pth")
    torch.save(arrays, folder / "stream.pth", _use_new_zipfile_serialization=False)
    return [folder / "zip.pth", folder / "stream.pth"]


def _row(table, path, rounds):
    kind = path.suffix[1:]
    who, work = PEERS[kind]
    arguments = {"path": str(path)}
    contenders = [
        Contender("ours", f"loading:{kind}_by_ours", arguments, ours=True),
        Contender(who, f"loading:{kind}_by_{work}", arguments),
    ]
    if kind != "pth":
        contenders.append(Contender("whole", "loading:model_by_ours", arguments, ours=True))
    with Turns(contenders) as turns:
        for name, problem in turns.missing.items():
            table.remark(f"Without {name}: {problem}.")
        if who in turns.processes:
            assert np.array_equal(turns.answer("ours"), turns.answer(who)), f"{path.name}: {who} reads other numbers than minitl"
        times = {name: 1000 * seconds for name, seconds in turns.medians(rounds, 0.2).items()} | {"nobody": float("nan")}
    beside = times.get(who, times["nobody"])
    ratio = "" if beside != beside else f"{times['ours'] / beside:.2f}"
    name = f"{path.name} ({NETWORK})" if kind == "pth" else path.name
    table.add(name, number(times["ours"]), who, number(beside), ratio, f"({GOAL})", number(times.get("whole", times["nobody"])))


# ---- the work, each in a process of its own: path -> function that reads all arrays, and tells the first time what they were


def _telling(read):
    """read() gives the arrays; the function around it answers with their sums (CRC-32), sorted, when it is first called."""
    imported()
    told = []

    def step():
        arrays = read()
        if told:
            return None
        told.append(True)
        return np.array(sorted(zlib.crc32(np.ascontiguousarray(array).tobytes()) for array in arrays), np.float64)

    return step


def h5_by_ours(path):
    from minitl.importers import file_bytes, hdf5

    def below(node):
        for name in node.children():
            child = node.child(name)
            if child.is_dataset():
                yield child.array()
            else:
                yield from below(child)

    return _telling(lambda: list(below(hdf5.read(file_bytes(path), "file"))))


def h5_by_h5py(path):
    import h5py

    def read():
        arrays = []
        with h5py.File(path, "r") as file:
            file.visititems(lambda _, node: arrays.append(node[()]) if isinstance(node, h5py.Dataset) else None)
        return arrays

    return _telling(read)


def tflite_by_ours(path):
    from minitl.importers import file_bytes, tflite

    return _telling(lambda: [tensor.data for tensor in tflite.parse(file_bytes(path), "file").tensors if tensor.data is not None])


def tflite_by_flatbuffers(path):
    """The same facts of tensors and operators as ours, but for the options of the operators."""
    from ai_edge_litert import schema_py_generated as schema

    dtypes = {0: "f4", 1: "f2", 2: "i4", 3: "u1", 4: "i8", 6: "?", 7: "i2", 9: "i1", 10: "f8"}

    def read():
        model = schema.Model.GetRootAsModel(Path(path).read_bytes(), 0)
        graph, arrays = model.Subgraphs(0), []
        for i in range(graph.TensorsLength()):
            tensor = graph.Tensors(i)
            tensor.Name()
            if (quantisation := tensor.Quantization()) and quantisation.ScaleLength():
                quantisation.ScaleAsNumpy(), quantisation.ZeroPointAsNumpy(), quantisation.QuantizedDimension()
            buffer = model.Buffers(tensor.Buffer())
            if buffer.DataLength():
                arrays.append(buffer.DataAsNumpy().view(dtypes[tensor.Type()]).reshape(tensor.ShapeAsNumpy()))
        for i in range(graph.OperatorsLength()):
            operator = graph.Operators(i)
            model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()
            operator.InputsAsNumpy(), operator.OutputsAsNumpy()
        return arrays

    return _telling(read)


def pth_by_ours(path):
    from minitl.importers import file_bytes, torch_files

    return _telling(lambda: list(torch_files.read(file_bytes(path), "file")[0].values()))


def pth_by_torch(path):
    import torch

    torch.set_num_threads(1)
    loaded = torch.load(path, weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in loaded.values())
    return _telling(lambda: [tensor.numpy() for tensor in torch.load(path, weights_only=True).values()])


def model_by_ours(path):
    import minitl

    def step():
        return next(iter(minitl.load(path).graph.arrays().values()))

    imported()
    return step
