"""What an int8 network costs: every claim of minitl/network_report.py."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import WEIGHTS, needs_shared
from integer_graphs import random_graph
from litert_graphs import integer_graph, interpreter
from small_models import SMALL, SMALL_V2, model, pixels

from minitl import memory
from minitl.emit_c import figures
from minitl.folding import fold
from minitl.graph import INPUT
from minitl.integer import IntegerGraph
from minitl.network_report import CEILING, alive_bytes, draw_network, rows, signal_to_noise, table
from minitl.report import MARGIN, WIDTH, to_png


@pytest.fixture(scope="module")
def small():
    """(model, its int8 network, preprocessed images)."""
    made = model(name=SMALL)
    return made, made.quantise(), [made.recipe.normalise(photo[None]) for photo in pixels(3, seed=7)]


def measured(graph):
    """Rows with everything that can be measured, made up."""
    rng = np.random.default_rng(0)
    instructions = [(i, int(rng.integers(1, 10**8))) for i in range(len(graph.ops))]
    return rows(graph, memory.plan(graph), instructions, {name: float(rng.uniform(-5, 40)) for name in graph.tensors})


# ---- rows ----------------------------------------------------------------------------------------------------------------------


def test_rows_add_up_to_the_network(small):
    graph = small[1]
    found = measured(graph)
    assert [row["op"] for row in found] == list(range(len(graph.ops)))
    assert sum(row["macs"] for row in found) == graph.macs()
    arrays = [(op.kernel.size, op.bias.size) for op in graph.ops if hasattr(op, "kernel")]
    assert sum(row["kernel_bytes"] for row in found) == sum(k for k, _ in arrays)
    assert sum(row["other_bytes"] for row in found) >= sum(9 * b for _, b in arrays)  # int32 bias, int32 multiplier, int8 shift
    assert abs(sum(row["share"] for row in found) - 1) < 1e-9
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("seed", range(20))
def test_the_flash_of_the_rows_is_that_of_the_header(seed):
    graph = random_graph(seed)
    size = figures(graph, classes := [f"class {i}" for i in range(graph.tensors[graph.output].size)])
    found = measured(graph)
    rest = size.constants["class names"] + size.constants.get("padding", 0)
    assert sum(row["kernel_bytes"] + row["other_bytes"] for row in found) + rest == size.flash
    assert all(row["kernel_bytes"] >= 0 and row["other_bytes"] >= 0 for row in found)
    lines = table(found, size.flash).splitlines()
    last = ["class", "names,", "padding", f"{rest:,}"]
    assert lines[-2].split() == last and f" {size.flash:,} " in lines[-1] and len(lines) == len(found) + 3, (lines, classes)


def test_what_nobody_measured_is_none(small):
    graph = small[1]
    plan = memory.plan(graph)
    assert all(row["instructions"] is row["share"] is row["snr_db"] is None for row in rows(graph, plan))
    some = rows(graph, plan, [(1, 30), (2, 10)], {graph.ops[2].output: 12.34})
    assert [row["share"] for row in some[:4]] == [None, 0.75, 0.25, None]
    assert [row["snr_db"] for row in some[:4]] == [None, None, 12.3, None]


def test_alive_bytes_are_those_that_a_count_finds():
    for seed in range(40):
        graph = random_graph(seed)
        plan = memory.plan(graph)
        for i in range(len(graph.ops)):
            taken = np.zeros(plan.size, bool)
            for buffer, offset in plan.buffers:
                if buffer.first <= i <= buffer.last:
                    taken[offset : offset + buffer.size] = True
            assert alive_bytes(plan, i) == taken.sum() <= plan.size


# ---- signal and noise ------------------------------------------------------------------------------------------------------------


def test_signal_to_noise_is_that_of_the_formula(small):
    made, graph, images = small
    found = signal_to_noise(fold(made.graph), graph, images)
    x = np.concatenate(images)
    q = np.clip(np.rint(x / graph.tensors[INPUT].scale) + graph.tensors[INPUT].zero_point, -128, 127).astype(np.int8)
    logits = graph.tensors[graph.output]
    real = logits.scale * (graph.run(q).astype(np.float64) - logits.zero_point)
    exact = made.forward(x).astype(np.float64)
    expected = 10 * np.log10((exact**2).sum() / ((exact - real) ** 2).sum())
    print(f"logits {found[graph.output]:.4f} dB, expected {expected:.4f}; layers: {', '.join(f'{v:.0f}' for v in found.values())}")
    assert abs(found[graph.output] - expected) < 0.01
    assert set(found) == set(graph.tensors) and found[INPUT] > 40


def test_a_damaged_layer_shows_where_it_is(small):
    made, graph, images = small
    folded = fold(made.graph)
    before = signal_to_noise(folded, graph, images)
    k = 4
    ops = list(graph.ops)
    ops[k] = replace(ops[k], bias=np.roll(ops[k].bias, 1))
    after = signal_to_noise(folded, IntegerGraph(graph.tensors, tuple(ops), graph.input, graph.output), images)
    print(f"{ops[k].name}: {before[ops[k].output]:.1f} dB, damaged {after[ops[k].output]:.1f} dB")
    assert all(after[op.output] == before[op.output] for op in ops[:k])
    assert after[ops[k].output] < before[ops[k].output] - 6


def test_a_layer_without_any_difference_gets_the_ceiling(small):
    made, graph, _ = small
    nothing = [np.zeros((1, *graph.tensors[INPUT].shape), np.float32)]  # 0 is exact, whatever the scale
    assert signal_to_noise(fold(made.graph), graph, nothing)[INPUT] == CEILING
    json.dumps(signal_to_noise(fold(made.graph), graph, []), allow_nan=False)


# ---- table and page --------------------------------------------------------------------------------------------------------------


def test_the_table_fits_a_terminal_and_leaves_out_what_is_not_known(small):
    graph = small[1]
    full = measured(graph)
    full[3]["name"] = "a/very/long/name/" * 9 + "end\u00df"
    text = table(full)
    print(text)
    lines = text.splitlines()
    assert len(lines) == len(full) + 2 and max(map(len, lines)) <= 120 and text.isascii()
    assert f"{graph.macs():,}" in lines[-1] and "a/very" in lines[4] and lines[0].split()[-3:] == ["instructions", "share", "dB"]
    assert table(rows(graph, memory.plan(graph))).splitlines()[0].split()[-3:] == ["MACs", "flash", "RAM"]


@pytest.mark.parametrize("seed", range(12))
def test_a_page_of_any_network_keeps_its_margins(seed):
    graph = random_graph(seed)
    found = measured(graph)
    for row in found:
        row["name"] *= 1 + 20 * (row["op"] % 2)
    words = ["a sentence about channels " * 20, "b" * 300]
    page = draw_network("title " * 40, found, memory.plan(graph), flash=123, accuracy=0.9, core="cortex-m4", facts=words, notes=words)
    shown = np.asarray(page)
    assert page.width == WIDTH and (shown[:, : MARGIN - 2] == 255).all() and (shown[:, WIDTH - MARGIN + 3 :] == 255).all()
    assert (shown[-MARGIN + 2 :] == 255).all()


def test_the_same_rows_give_the_same_page_and_less_is_shown_without_measurements(small):
    graph = small[1]
    plan = memory.plan(graph)
    full = draw_network("net", measured(graph), plan)
    assert to_png(full) == to_png(draw_network("net", measured(graph), plan))
    bare = draw_network("net", rows(graph, plan), plan)
    orange = [int((np.abs(np.asarray(page).astype(int) - (225, 125, 35)).sum(-1) < 9).sum()) for page in (full, bare)]
    print(f"orange pixels, with and without instructions: {orange}")
    assert orange[0] > 4 * orange[1] > 0  # the outline of the image is orange, too


@needs_shared
def test_the_rows_of_the_person_detector_are_those_of_its_paper_figures():
    graph = integer_graph(interpreter(WEIGHTS / "vww_96_int8.tflite"))[0]
    found = rows(graph, memory.plan(graph))
    assert sum(row["macs"] for row in found) == 7_489_664 and sum(row["kernel_bytes"] for row in found) == 208_112
    by_kind = {kind: sum(row["macs"] for row in found if row["kind"] == kind) for kind in ("pointwise", "depthwise", "conv2d")}
    print(by_kind)
    assert by_kind["conv2d"] == 497_664 and by_kind["pointwise"] > 6_000_000


def test_a_network_with_residuals_has_a_page():
    made = model(name=SMALL_V2)
    graph = made.quantise()
    noise = signal_to_noise(fold(made.graph), graph, [made.recipe.normalise(pixels(1))])
    page = draw_network("V2", rows(graph, memory.plan(graph), noise=noise), memory.plan(graph))
    assert page.height > 19 * len(graph.ops)
