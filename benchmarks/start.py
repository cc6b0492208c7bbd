"""From nothing to an answer: a fresh process that reads one photo and says what is on it; and a folder of photos -> a trained classifier.

Out: a table. The peers' programs are those of scripts/, as short as is sensible; they read the same photo with Pillow, and the same weights
in their own format. PyTorch's training computes every feature once and writes no header; ours is `minitl train` as it is, with report and
header, its features kept in an empty folder. Programs run in turn; files are in the system's memory, and code was compiled before, but for
"the first time ever".
"""

import importlib.util
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import contenders
import inference
from tables import Table, number

HERE = Path(__file__).parent
BACKBONE = contenders.WEIGHTS / "mobilenet_v1_0.25_128_quant.tflite"
MINITL = [sys.executable, "-m", "minitl"]
NAMES = {"onnx_runtime": "ONNX Runtime", "litert": "LiteRT"}
PREDICT, TRAIN = "minitl predict", "minitl train"


def launch(rounds, programs):
    """{name: [(seconds to the first line, seconds in all, MiB, output), ...]} of {name: (command, environment)}."""
    found = subprocess.run(
        [sys.executable, HERE / "launch.py", str(rounds)], input=json.dumps(programs).encode(), stdout=subprocess.PIPE, check=True
    )
    return json.loads(found.stdout)


def script(name, *arguments):
    return [sys.executable, str(HERE / "scripts" / f"{name}.py"), *map(str, arguments)], {}


def train(photos, out, kept):
    """The command that trains a classifier, with features kept in a folder of their own."""
    return [*MINITL, "train", str(photos), "--weights", str(BACKBONE), "-o", str(out), "--cache", str(kept)]


def installed(package):
    return importlib.util.find_spec(package) is not None


def report(quick, threads):
    table = Table(
        "Cold start, and from photos to a header",
        "Seconds from the start of a process; ours / this one: how many times as fast, beside it the least we want. Memory: MiB at most.",
        ("", "seconds", "slowest", "ours / this one", "goal", "memory", "answer"),
    )
    with tempfile.TemporaryDirectory() as folder:
        _predictions(table, Path(folder), 3 if quick else 25)
        _trainings(table, Path(folder), quick)
    return table


def _predictions(table, folder, rounds):
    """One photo, MobileNetV1 0.25 at 96x96."""
    from minitl import demo_pictures

    photo = folder / "photo.jpg"
    demo_pictures.draw_photo("apple", random.Random(0), 480).save(photo)
    ours = contenders.model_of("V1 0.25@96")
    ours.save(folder / "model.npz")
    graph = contenders.network("V1 0.25@96")
    programs = {
        PREDICT: ([*MINITL, "predict", str(folder / "model.npz"), str(photo)], {}),
        "minitl in Python": script("predict_minitl", folder / "model.npz", photo),
    }
    files = inference.files_of(graph, folder, table)
    for name, package, format in (("onnx_runtime", "onnxruntime", "onnx"), ("litert", "ai_edge_litert", "tflite")):
        if format in files and installed(package):
            programs[NAMES[name]] = script(f"predict_{name}", files[format], photo)
        else:
            table.remark(f"Without {NAMES[name]}.")
    if installed("torch"):
        import torch
        from twins import Twin

        example = torch.zeros(1, 3, 96, 96).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            torch.jit.freeze(torch.jit.trace(Twin(graph).eval(), example)).save(folder / "model.pt")
        programs["PyTorch"] = script("predict_pytorch", folder / "model.pt", photo)
    else:
        table.remark("Without PyTorch: it is not installed.")
    programs["(import numpy and PIL.Image only)"] = ([sys.executable, "-c", "import numpy, PIL.Image; print()"], {})
    ever = launch(1, {"the first time ever": (programs[PREDICT][0], {"MINITL_CACHE": str(folder / "empty")})})
    launch(2, {PREDICT: programs[PREDICT]})
    table.heading("one photo, MobileNetV1 0.25 at 96x96: to the first line of output")
    _rows(table, launch(rounds, programs) | ever, 0, PREDICT, {"ONNX Runtime": 1})


def _trainings(table, folder, quick):
    """A folder of photos, MobileNetV1 0.25 at 128x128."""
    from minitl import demo_pictures

    photos = contenders.SHARED / "data/monkeys"
    title = "monkeys, 10 classes, 1,369 photos"
    if quick or not photos.is_dir():
        photos, title = folder / "photos", "drawn fruit, 3 classes, 240 pictures"
        demo_pictures.draw_photos(photos / "train", 60, size=256)
        demo_pictures.draw_photos(photos / "val", 20, seed=1, size=256)
    if not BACKBONE.is_file():
        table.remark(f"Without training: no {BACKBONE.name}, which README says where to get.")
        return
    out, kept = folder / "out", folder / "features"
    rounds = 1 if quick else 3
    ever = launch(1, {"the first time ever": (train(photos, out, kept / "ever"), {"MINITL_CACHE": str(folder / "empty too")})})
    programs = {}
    if installed("torch"):
        save_for_pytorch(folder / "backbone.pt")
        programs["PyTorch"] = script("train_pytorch", photos, folder / "backbone.pt", 0.25, 128)
    launch(1, {TRAIN: (train(photos, out, kept / "warm"), {})})
    found = {}
    for i in range(rounds):
        for name, runs in launch(1, {TRAIN: (train(photos, out, kept / str(i)), {}), **programs}).items():
            found.setdefault(name, []).extend(runs)
    table.heading(f"{title} -> classifier on MobileNetV1 0.25 at 128x128 (ours with header and report)")
    _rows(table, found | ever, 1, TRAIN, {"PyTorch": 2})


def save_for_pytorch(path):
    """The backbone's weights under the names of scripts/train_pytorch.py: the place in an nn.Sequential."""
    import torch
    from twins import torch_layout

    from minitl import model
    from minitl.folding import fold
    from minitl.layers import Conv2D, DepthwiseConv2D

    graph = fold(model.load(BACKBONE).graph)
    convolutions = [node for node in graph.nodes if isinstance(node.layer, Conv2D | DepthwiseConv2D)]
    state = {}
    for k, node in enumerate(convolutions):
        for name, array in graph.params[node.name].items():
            state[f"{3 * k + 1}.{'weight' if name == 'kernel' else name}"] = torch_layout(node.layer, name, array)
    torch.save(state, path)


def _rows(table, found, which, ours, goals):
    medians = {name: statistics.median(run[which] for run in runs) for name, runs in found.items()}
    for name, runs in found.items():
        answer = next((line for line in runs[-1][3].splitlines() if "class" in line or "accuracy" in line), "")
        table.add(
            name,
            number(medians[name]),
            number(max(run[which] for run in runs)),
            f"{medians[name] / medians[ours]:.2f}",
            f"({goals[name]:g})" if name in goals else "",
            f"{max(run[2] for run in runs):.0f}",
            answer.split(": ")[-1][:40],
        )
