"""How time and memory grow: with the image size, the width of the network, the batch, and the number of photos.

Out: a table and charts. MobileNetV1 from random weights, on as many threads as are allowed; inference beside ONNX Runtime, one training
step of all layers beside PyTorch, `minitl train` (the classifier alone) on distinct drawn pictures beside the PyTorch program of start.py.
"""

import tempfile
from pathlib import Path

import inference
import start
from contenders import network
from tables import Table, number
from turns import Contender, Turns

from minitl.drawing import BLUE, ORANGE, Chart, Curve

AXES = {
    "image size": [("V1 0.25@{}", size, 32) for size in (96, 128, 160, 192, 224)],
    "alpha": [("V1 {}@96", alpha, 32) for alpha in (0.25, 0.5, 0.75, 1.0)],
    "batch": [("V1 0.25@96", batch, batch) for batch in (1, 2, 4, 8, 16, 32, 64)],
}
PHOTOS = (100, 300, 1000, 3000)
OURS, ONNX, PYTORCH = "minitl", "ONNX Runtime", "PyTorch"


def report(quick, threads):
    table = Table(
        "Growth",
        "Inference and training: milliseconds for one image. Memory: MiB at most, of inference and training above the "
        "imports, of programs the whole process.",
        ("", "inference, ms", "memory", "ONNX Runtime, ms", "memory", "training, ms", "memory", "PyTorch, ms", "memory"),
    )
    for axis, points in AXES.items():
        table.heading(axis)
        curves = []
        for name, x, batch in points[:2] if quick else points:
            found = _point(name.format(x), batch, max(threads), quick, table)
            curves.append((x, found))
            table.add(f"{x:g}", *(number(value) for pair in found for value in pair))
        for which, what in ((0, "training step, ms for one image"), (1, "training step, MiB")):
            of = {"minitl": 2, "PyTorch": 3}
            table.charts.append(_chart(what, axis, {who: [(x, found[k][which]) for x, found in curves] for who, k in of.items()}))
    _photos(table, (30, 90) if quick else PHOTOS)
    return table


def _chart(title, across, values):
    """values: {who: [(x, y), ...]}, nan where nothing was measured."""
    runs = {who: [(x, y) for x, y in points if y == y] for who, points in values.items()}
    curves = [Curve(who, colour, [run]) for (who, run), colour in zip(runs.items(), (BLUE, ORANGE), strict=True) if run]
    return Chart(title, across, curves, ticks=sorted({x for run in runs.values() for x, _ in run}))


def _point(name, batch, threads, quick, table):
    """(ms for one image, MiB) of our inference, ONNX Runtime's, our training and PyTorch's; nan for who is missing."""
    with tempfile.TemporaryDirectory() as folder:
        files = inference.files_of(network(name), Path(folder), table)
        arguments = {"name": name, "batch": batch, "threads": threads, "file": files.get("onnx")}
        contenders = [Contender("inference", "contenders:inference_of_ours", arguments, threads, ours=True)]
        if "onnx" in files:
            contenders.append(Contender(ONNX, "contenders:onnx_runtime", arguments, threads))
        arguments = {"network": name, "case": "all layers", "batch": batch, "threads": threads, "kept": False}
        contenders.append(Contender("training", "contenders:step_of_ours", arguments, threads, ours=True))
        contenders.append(Contender(PYTORCH, "contenders:step_of_pytorch", arguments, threads))
        with Turns(contenders) as turns:
            medians, memory = turns.medians(2 if quick else 5, 0.02 if quick else 0.1), turns.memory()
        for who, why in turns.missing.items():
            table.remark(f"Without {who}: {why}.")
    nan = float("nan")
    return [
        (1000 * medians[who] / batch, memory[who].growth) if who in medians else (nan, nan)
        for who in ("inference", ONNX, "training", PYTORCH)
    ]


def _photos(table, counts):
    """Seconds and MiB of whole programs, from a folder of pictures to a classifier."""
    from minitl import demo_pictures

    if not start.BACKBONE.is_file():
        table.remark(f"Without photos: no {start.BACKBONE.name}, which README says where to get.")
        return
    table.heading("photos (256x256) -> classifier on MobileNetV1 0.25 at 128x128; whole programs: seconds")
    seconds, memory = {OURS: [], PYTORCH: []}, {OURS: [], PYTORCH: []}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if start.installed("torch"):
            start.save_for_pytorch(folder / "backbone.pt")
        for count in counts:
            photos = folder / f"photos {count}"
            demo_pictures.draw_photos(photos / "train", count // 4, size=256)  # three classes
            demo_pictures.draw_photos(photos / "val", count // 12, seed=1, size=256)
            programs = {OURS: (start.train(photos, folder / "out", folder / f"features {count}"), {})}
            if start.installed("torch"):
                programs[PYTORCH] = start.script("train_pytorch", photos, folder / "backbone.pt", 0.25, 128)
            row = {who: ("", "") for who in seconds}
            for who, ((_, time, peak, _),) in start.launch(1, programs).items():
                seconds[who].append((count, time))
                memory[who].append((count, peak))
                row[who] = number(time), number(peak)
            table.add(f"{count:,}", "", "", "", "", *row[OURS], *row[PYTORCH])
    for what, values in (("photos to classifier, seconds", seconds), ("photos to classifier, MiB", memory)):
        table.charts.append(_chart(what, "photos", values))
