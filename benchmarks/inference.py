"""Inference: the same network, the same weights, the same images; ours, PyTorch, ONNX Runtime and LiteRT, float32 and int8.

Out: a table. BatchNorms are folded on all sides; the others get the network in their own format (formats.py, twins.py), PyTorch in its best
layout, eager or compiled by torch.jit. Every answer is compared with the plain kernels' before anything is timed.

The limit is the time that the multiply-adds alone would take, or reading weights and images once, whichever is longer; both speeds
are measured in the same turns (machine.py).
"""

import importlib
import tempfile
from pathlib import Path

import machine
import numpy as np
from contenders import FILES, WEIGHTS, images_of, int8_images_of, network
from tables import Table, number
from turns import Contender, Turns

GOALS = {  # the least that we set ourselves: ours / theirs, by network and batch
    ("V1 0.25@96", 1): {"LiteRT float": 1.25, "ONNX Runtime": 1.4, "PyTorch": 7, "LiteRT int8": 1},
    ("V1 0.25@96", 32): {"LiteRT float": 1.25, "ONNX Runtime": 1.4, "PyTorch": 2, "LiteRT int8": 1},
    ("V2 1.0@224", 1): {"ONNX Runtime": 1.1, "PyTorch": 2, "LiteRT int8": 1},
    ("V2 1.0@224", 32): {"ONNX Runtime": 1.5, "PyTorch": 3.5, "LiteRT int8": 1},
}
PYTORCH = ("eager, NHWC", "eager, NCHW", "optimised, NHWC", "optimised, NCHW")
OURS, OURS_INT8 = "minitl float", "minitl int8"


def report(quick, threads):
    table = Table(
        "Inference",
        "ours / this one: how many times the throughput, beside it the least we want. Memory: MiB at most, above the imports / of the "
        "process. Limit: share of the time that this machine's multiply-adds (or memory) allow.",
        ("", "ms", "images/s", "ours / this one", "goal", "memory", "limit", "differs"),
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in list(FILES)[: 1 if quick else None]:
            graph = network(name)
            files = files_of(graph, Path(folder), table)
            for batch in (1, 32):
                for count in threads:
                    for rows in (_float, _int8):
                        rows(table, name, graph, batch, count, files, quick)
    return table


def files_of(graph, folder, table):
    """{format: path} of the network for the others; a format whose package is not installed is left out, and the table says so."""
    import formats

    files = {}
    for format, package in (("onnx", "onnx"), ("tflite", "ai_edge_litert")):
        try:
            importlib.import_module(package)
            (folder / f"network.{format}").write_bytes(getattr(formats, f"{format}_bytes")(graph))
            files[format] = str(folder / f"network.{format}")
        except (ImportError, NotImplementedError) as error:
            table.note += f" Without .{format}: {error}."
    return files


def _measure(contenders, rounds, seconds, correct, threads):
    """Medians, memory, largest differences from what is correct; and who is missing."""
    limits = [Contender(kind, f"machine:{kind}", {"threads": threads}, threads) for kind in ("arithmetic", "reading")]
    with Turns([*contenders, *limits]) as turns:
        differences = {c.name: correct(c.name, turns.answer(c.name)) for c in contenders if c.name in turns.processes}
        return turns.medians(rounds, seconds), turns.memory(), differences, turns.missing


def _float(table, name, graph, batch, threads, files, quick):
    arguments = {"name": name, "batch": batch, "threads": threads}
    contenders = [Contender(OURS, "contenders:inference_of_ours", arguments, threads, ours=True)]
    for how in PYTORCH[:1] if quick else PYTORCH:
        contenders.append(Contender(f"PyTorch {how}", "contenders:inference_of_pytorch", arguments | {"how": how}, threads))
    if "onnx" in files:
        contenders.append(Contender("ONNX Runtime", "contenders:onnx_runtime", arguments | {"file": files["onnx"]}, threads))
    if "tflite" in files:
        contenders.append(Contender("LiteRT float", "contenders:litert", arguments | {"file": files["tflite"]}, threads))
    x = images_of(graph.input_shape, batch)
    expected = np.concatenate([graph.evaluate(x[i : i + 1])[graph.output] for i in range(batch)])

    def correct(who, answer):
        difference = np.abs(answer - expected).max() / np.abs(expected).max()
        if not difference < 1e-4:
            raise AssertionError(f"{who} answers {difference:.1e} of the largest logit away from the plain kernels")
        return f"{difference:.0e}"

    heavy = name.startswith("V2") and batch > 1
    medians, memory, differences, missing = _measure(contenders, 3 if quick or heavy else 9, 0.02 if quick else 0.1, correct, threads)
    weights = sum(array.nbytes for array in graph.arrays().values())
    flops = 2 * batch * sum(node.layer.macs(*graph.input_shapes(node)) for node in graph.nodes)
    least = max(flops / (machine.flops(threads) / medians["arithmetic"]), (weights + x.nbytes) / (machine.BYTES / medians["reading"]))
    best = min((who for who in medians if who.startswith("PyTorch")), key=medians.get, default=None)
    shown = [who for who in differences if not who.startswith("PyTorch") or who == best]
    speeds = f"{machine.flops(threads) / medians['arithmetic'] / 1e9:.0f} GFLOP/s, {machine.BYTES / medians['reading'] / 1e9:.0f} GB/s read"
    table.rows.append((f"{name}, batch {batch}, {threads} thread{'s' * (threads > 1)}   (limits: {speeds})",))
    _rows(table, name, batch, shown, medians, memory, differences, OURS, least)
    for who, why in missing.items():
        table.rows.append((f"without {who}: {why}",))


def _int8(table, name, graph, batch, threads, files, quick):
    from minitl import importers
    from minitl.importers import tflite_int8
    from minitl.kernels import softmax

    path = WEIGHTS / FILES[name][1]
    if not path.is_file():
        return table.rows.append((f"without int8: no {path.name}",))
    arguments = {"batch": batch, "threads": threads, "file": str(path)}
    contenders = [Contender(OURS_INT8, "contenders:int8_of_ours", arguments | {"keep_constant": True}, threads, ours=True)]
    contenders.append(
        Contender(
            "the same, constant channels removed", "contenders:int8_of_ours", arguments | {"keep_constant": False}, threads, ours=True
        )
    )
    contenders.append(Contender("LiteRT int8", "contenders:litert", arguments, threads))
    integer = tflite_int8.read(importers.file_bytes(path), path.name).graph
    out = integer.tensors[integer.output]
    expected = integer.run(int8_images_of(integer.tensors[integer.input].shape, batch))
    probabilities = softmax(((expected.astype(np.float32) - out.zero_point) * out.scale).astype(np.float32))

    def correct(who, answer):
        if not who.startswith("LiteRT"):
            assert np.array_equal(answer, expected), f"{who} differs from the integer graph"
            return "0"
        lowest = 0 if path.name != FILES["V1 0.25@96"][1] else -128
        return f"{np.abs((answer - lowest) / 256 - probabilities).max():.2f}"

    heavy = name.startswith("V2") and batch > 1
    medians, memory, differences, missing = _measure(contenders, 3 if quick or heavy else 9, 0.02 if quick else 0.1, correct, threads)
    _rows(table, name, batch, list(differences), medians, memory, differences, OURS_INT8, None)
    for who, why in missing.items():
        table.rows.append((f"without {who}: {why}",))


def _rows(table, name, batch, shown, medians, memory, differences, ours, least):
    for who in shown:
        goal = next((goal for key, goal in GOALS[name, batch].items() if who.startswith(key)), None)
        table.add(
            who,
            number(1000 * medians[who]),
            number(batch / medians[who]),
            f"{medians[who] / medians[ours]:.2f}",
            f"({goal:g})" if goal else "",
            f"{memory[who].growth:.0f} / {memory[who].process:.0f}",
            f"{100 * least / medians[who]:.0f} %" if least else "",
            differences[who],
        )
