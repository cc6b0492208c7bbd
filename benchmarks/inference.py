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

from minitl.importers import tflite_int8
from minitl.kernels import softmax

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
        "ours / this one: how many times the throughput, beside it the least we want; int8 beside our int8. Memory: MiB at most, above the "
        "imports / of the process. Limit: share of the time that this machine's float32 multiply-adds (or memory) allow.",
        ("", "ms", "images/s", "ours / this one", "goal", "memory", "limit", "differs"),
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in list(FILES)[: 1 if quick else None]:
            graph = network(name)
            files = files_of(graph, Path(folder), table)
            for batch in (1, 32):
                for count in threads:
                    _cell(table, name, graph, batch, count, files, quick)
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
            table.remark(f"Without .{format}: {error}.")
    return files


def _cell(table, name, graph, batch, threads, files, quick):
    """The rows of a network, a batch and a number of threads."""
    table.heading(f"{name}, batch {batch}, {threads} thread{'s' * (threads > 1)}")
    contenders, int8 = [], WEIGHTS / FILES[name][1]

    def join(who, work, **more):
        arguments = {"name": name, "batch": batch, "threads": threads} | more
        contenders.append(Contender(who, f"contenders:{work}", arguments, threads, ours=who.startswith("minitl")))

    join(OURS, "inference_of_ours")
    for how in PYTORCH[:1] if quick else PYTORCH:
        join(f"PyTorch {how}", "inference_of_pytorch", how=how)
    if "onnx" in files:
        join("ONNX Runtime", "onnx_runtime", file=files["onnx"])
    if "tflite" in files:
        join("LiteRT float", "litert", file=files["tflite"])
    if int8.is_file():
        join(OURS_INT8, "int8_of_ours", file=str(int8), keep_constant=True)
        join(f"{OURS_INT8}, constant channels removed", "int8_of_ours", file=str(int8), keep_constant=False)
        join("LiteRT int8", "litert", file=str(int8))
    else:
        table.remark(f"Without int8: no {int8.name}.")
    limits = [Contender(kind, f"machine:{kind}", {"threads": threads}, threads) for kind in ("arithmetic", "reading")]
    rounds = 3 if quick or (name.startswith("V2") and batch > 1) else 9
    with Turns([*contenders, *limits]) as turns:
        answers = {who: turns.answer(who) for who in turns.processes if who not in ("arithmetic", "reading")}
        differences = _differences(answers, graph, batch, int8)
        medians, memory = turns.medians(rounds, 0.02 if quick else 0.1), turns.memory()
    for who, why in turns.missing.items():
        table.remark(f"Without {who}: {why}.")

    read = sum(array.nbytes for array in graph.arrays().values()) + 4 * batch * np.prod(graph.input_shape)
    flops = 2 * batch * sum(node.layer.macs(*graph.input_shapes(node)) for node in graph.nodes)
    most_flops, most_read = machine.flops(threads) / medians["arithmetic"], machine.BYTES / medians["reading"]
    least = max(flops / most_flops, read / most_read)
    slower = sorted((who for who in answers if who.startswith("PyTorch")), key=medians.get)[1:]  # only the best is shown
    for who in answers:
        if who not in slower:
            goal = next((goal for key, goal in GOALS[name, batch].items() if who.startswith(key)), None)
            table.add(
                who,
                number(1000 * medians[who]),
                number(batch / medians[who]),
                f"{medians[who] / medians[OURS_INT8 if 'int8' in who else OURS]:.2f}",
                f"({goal:g})" if goal else "",
                f"{memory[who].growth:.0f} / {memory[who].process:.0f}",
                "" if "int8" in who else f"{100 * least / medians[who]:.0f} %",
                differences[who],
            )
    limit = f"limit: {most_flops / 1e9:.0f} GFLOP/s, {most_read / 1e9:.0f} GB/s"
    table.add(limit, number(1000 * least), number(batch / least), f"{least / medians[OURS]:.2f}", "", "", "100 %", "")


def _differences(answers, graph, batch, int8):
    """{who: how far the answer is from the plain kernels'}: relative to the largest logit; for int8 in probability."""
    x = images_of(graph.input_shape, batch)
    expected = np.concatenate([graph.evaluate(x[i : i + 1])[graph.output] for i in range(batch)])
    found = {}
    for who, answer in answers.items():
        if "int8" not in who:
            found[who] = np.abs(answer - expected).max() / np.abs(expected).max()
            assert found[who] < 1e-4, f"{who} answers {found[who]:.1e} of the largest logit away from the plain kernels"
    if OURS_INT8 in answers:
        network = tflite_int8.read(int8.read_bytes(), int8.name).graph
        out = network.tensors[network.output]
        plain = network.run_all(int8_images_of(network.tensors[network.input].shape, batch))[network.output]
        probabilities = softmax(((plain.astype(np.float32) - out.zero_point) * out.scale).astype(np.float32))
        for who in answers:
            if who.startswith(OURS_INT8):
                found[who] = np.abs(answers[who] - plain).max()
                assert found[who] == 0, f"{who} differs from the plain integer kernels"
            elif "int8" in who:  # a softmax ends the file, as int8 or uint8
                theirs = (answers[who] - (0 if answers[who].min() >= 0 else -128)) / 256
                found[who] = np.abs(theirs - probabilities).max()
    return {who: f"{difference:.0e}" if difference else "0" for who, difference in found.items()}
