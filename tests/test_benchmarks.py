"""What the benchmarks compare is the same work: files made for others hold our network, and answers are equal before anything is timed."""

import os
import subprocess
import sys
from pathlib import Path

import formats
import numpy as np
import pytest

from minitl import model
from minitl.architectures import build
from minitl.folding import fold

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", params=["mobilenet_v1", "mobilenet_v2"])
def network(request):
    return request.param, fold(build(request.param, alpha=0.25, input_shape=[32, 32, 3], classes=4, padding="same").initialise(0))


def test_our_importer_reads_the_weights_back_from_the_tflite_file_made_for_litert(network, tmp_path):
    pytest.importorskip("ai_edge_litert")
    architecture, graph = network
    (tmp_path / f"{architecture}.tflite").write_bytes(formats.tflite_bytes(graph))
    found = model.load(tmp_path / f"{architecture}.tflite").graph
    x = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    assert np.array_equal(fold(found).evaluate(x)[found.output], graph.evaluate(x)[graph.output])


def test_onnx_runtime_answers_as_we_do(network):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = network[1]
    x = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    session = onnxruntime.InferenceSession(formats.onnx_bytes(graph), providers=["CPUExecutionProvider"])
    found = session.run(None, {"input": np.ascontiguousarray(x.transpose(0, 3, 1, 2))})[0]
    expected = graph.evaluate(x)[graph.output]
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("table", ["inference", "training", "start", "growth", "loading"])
def test_the_one_command_prints_and_draws_every_table(table, tmp_path):
    out = tmp_path / "out.png"
    command = [sys.executable, BENCHMARKS / "all.py", "--quick", "--only", table, "--threads", "1", "-o", out]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size > 10_000 and "minitl" in out.with_suffix(".txt").read_text()
