"""What a .tflite file says beside its network: how pixels become its input, and what its outputs are called.

Enters: the parsed model and the file's bytes. Leaves: NormalizationOptions (mean, std) and the label file, where they are there. Labels lie
in a ZIP archive that is appended to the file. Left out: all other metadata (authors, ranges, licences).

Source: tensorflow/lite/metadata schema (metadata_schema.fbs, file identifier M001).
"""

from __future__ import annotations

import io
import zipfile

import numpy as np

from .flatbuffer import Table
from .tflite import Model

MOST_LABEL_BYTES = 1 << 22
NORMALISATION = 1  # ProcessUnitOptions: the union's number of NormalizationOptions


def normalisation(model: Model) -> tuple[np.ndarray, np.ndarray] | None:
    """(mean, std) of the input, float32, one number or one per channel; None if the file does not say."""
    if "TFLITE_METADATA" not in model.metadata:
        return None
    data = model.metadata["TFLITE_METADATA"].tobytes()
    if data[4:8] != b"M001":
        raise model.error("its metadata is damaged: it does not begin as TensorFlow Lite's metadata does")
    for subgraph in Table.root(data, f"{model.name} (metadata)").tables(3, 16):
        for tensor in subgraph.tables(2, 1):  # the input
            for unit in tensor.tables(4, 16):
                options = unit.table(1)
                if unit.number(0, "B") == NORMALISATION and options is not None:
                    mean, std = options.vector(0, "<f4"), options.vector(1, "<f4")
                    if len(mean) not in (1, 3) or len(std) not in (1, 3):
                        raise model.error(f"its metadata normalises {len(mean)} and {len(std)} channels, expected 1 or 3")
                    return mean, std
    return None


def labels(data: bytes, model: Model, classes: int | None, notes: list[str]) -> list[str] | None:
    """The lines of the appended text file that has one line per class; None where there is none."""
    if classes is None or data.rfind(b"PK\5\6", max(0, len(data) - 66_000)) < 0:
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist()[:100]:
                if entry.filename.endswith(".txt") and entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    with archive.open(entry) as file:
                        lines = file.read(MOST_LABEL_BYTES).decode().splitlines()
                    if len(lines) == classes and all(line.strip() for line in lines):
                        return [line.strip() for line in lines]
    except Exception as problem:  # zipfile raises a dozen kinds of errors for damaged archives
        raise model.error(f"the archive of labels at its end is damaged ({type(problem).__name__}); get the file again") from None
    notes.append(f"the appended archive has no text file with {classes} lines: class names are unknown")
    return None
