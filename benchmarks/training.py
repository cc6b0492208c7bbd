"""Training: one step at batch 32, and a classifier on features that are there already; ours and PyTorch, the same numbers, float32.

Out: a table. PyTorch runs channels last, with activations in place (twins.py). Losses are compared before anything is timed; that gradients
are equal, too, is tested elsewhere. What is frozen below "the last two blocks" is computed for every batch on both sides, as it must be
where photos change from epoch to epoch; "from kept features" is what minitl does where they do not. The classifier: 100 epochs of 1,097
photos, validated on 272 after each, the best kept.
"""

import numpy as np
from inference import parts
from tables import Table, number
from turns import Contender, Turns

BATCH, RATE, HEAD_RATE, MOMENTUM, DECAY = 32, 0.001, 0.01, 0.9, 1e-4
CASES = {  # {case: the last frozen layer of each architecture}
    "all layers": {},
    "the last three blocks": {"mobilenet_v1": "conv_pw_10", "mobilenet_v2": "block_13"},
    "the last two blocks": {"mobilenet_v1": "conv_pw_11"},
}
MAIN = "V1 0.25@96"
NETWORKS = {MAIN: list(CASES), "V1 0.25@224": list(CASES)[:2], "V2 0.35@96": list(CASES)[:2]}
GOALS = {"all layers": 1.5, "the last three blocks": 4, "the last two blocks": 4, "head": 5}
OURS, KEPT, PYTORCH = "minitl", "minitl, from kept features", "PyTorch"
EPOCHS, PHOTOS, VALIDATION, FEATURES, CLASSES = 100, 1097, 272, 256, 10


# ---- the contenders, each in its process (turns.py)


def step_of_ours(network, case, batch, kept, **_):
    from turns import imported

    from minitl import training

    imported()
    graph, images, labels = work(network, case, batch)
    optimiser, targets = training.SGD(graph, MOMENTUM, DECAY), training.one_hot(labels, CLASSES)
    if case == "all layers":
        feeds = lambda: {"input": images}  # noqa: E731
    else:
        from minitl.folding import frozen_part

        frozen = frozen_part(graph)
        features = frozen.values(images)
        feeds = (lambda: features) if kept else lambda: frozen.values(images)
    return lambda: training.train_step(graph, feeds(), targets, optimiser, RATE, None)[1].mean()


def step_of_pytorch(network, case, batch, threads, **_):
    import torch
    from turns import imported
    from twins import Twin, to_torch, torch_step

    imported()
    torch.set_num_threads(threads)
    graph, images, labels = work(network, case, batch)
    twin, x, y = Twin(graph), to_torch(images), torch.from_numpy(labels)
    optimiser = torch.optim.SGD(twin.groups(DECAY), RATE, momentum=MOMENTUM, nesterov=True)
    return lambda: torch_step(twin, optimiser, x, y).numpy()


def head_of_ours(epochs, **_):
    from turns import imported

    from minitl import features, images, training
    from minitl.graph import Graph, Node
    from minitl.layers import Dense

    imported()
    rows, labels = photos()
    recipe = images.Recipe(96, 96)
    source = features.Features(rows, [("input", (FEATURES,))], recipe)
    train, val = source.take(np.arange(PHOTOS)), source.take(np.arange(PHOTOS, PHOTOS + VALIDATION))
    settings = training.Settings(epochs=epochs, batch=BATCH, rate=HEAD_RATE, momentum=MOMENTUM, decay=DECAY, patience=epochs)

    def step():
        graph = Graph([Node("logits", Dense(CLASSES), ("input",))], (FEATURES,)).initialise(0)
        history = training.fit(graph, train, labels[:PHOTOS], val, labels[PHOTOS:], settings)
        return np.float64(history.epochs[history.best - 1].val_loss)

    return step


def head_of_pytorch(threads, epochs):
    import torch
    from torch.nn.functional import cross_entropy
    from turns import imported

    imported()
    torch.set_num_threads(threads)
    rows, labels = map(torch.from_numpy, photos())
    x, y, val_x, val_y = rows[:PHOTOS], labels[:PHOTOS], rows[PHOTOS:], labels[PHOTOS:]

    def step():
        torch.manual_seed(0)
        head = torch.nn.Linear(FEATURES, CLASSES)
        optimiser = torch.optim.SGD(head.parameters(), HEAD_RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
        steps = epochs * -(-PHOTOS // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        best, kept = float("inf"), None
        for _ in range(epochs):
            for chosen in torch.randperm(PHOTOS).split(BATCH):
                optimiser.zero_grad()
                cross_entropy(head(x[chosen]), y[chosen]).backward()
                optimiser.step()
                schedule.step()
            with torch.inference_mode():
                loss = cross_entropy(head(val_x), val_y).item()
            if loss < best:
                best, kept = loss, {name: value.clone() for name, value in head.state_dict().items()}
        head.load_state_dict(kept)
        return np.float64(best)

    return step


def work(network, case, batch):
    """The graph with its freeze mask, images (N, H, W, 3) float32, labels (N,)."""
    from minitl.architectures import build

    architecture, alpha, size = parts(network)
    graph = build(architecture, alpha=alpha, input_shape=[size, size, 3], classes=CLASSES).initialise(0)
    if CASES[case]:
        graph.freeze(".." + CASES[case][architecture])
    rng = np.random.default_rng(0)
    # pure noise makes all images alike for deep layers, whose BatchNorms then magnify rounding
    coarse = rng.random((batch, 8, 8, 3), np.float32)
    images = np.ascontiguousarray(coarse.repeat(size // 8, axis=1).repeat(size // 8, axis=2))
    return graph, images, rng.integers(0, CLASSES, batch)


def photos():
    """Features (N, F) float32 around one point for each class, labels (N,): training photos, then validation photos."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, PHOTOS + VALIDATION)
    rows = 0.3 * rng.standard_normal((CLASSES, FEATURES))[labels] + rng.standard_normal((len(labels), FEATURES))
    return rows.astype(np.float32), labels


# ---- the table


def report(quick, threads):
    table = Table(
        "Training",
        "ours / this one: times the throughput, beside it the least we want. Memory: MiB at most, of a step above the state before "
        "it / above the imports / of the process. Loss: of the first step, or the best validation loss of the classifier.",
        ("", "ms", "images/s", "ours / this one", "goal", "memory", "loss"),
    )
    for network, cases in list(NETWORKS.items())[: 1 if quick else None]:
        for case in cases:
            for count in threads if network == MAIN else threads[:1]:
                arguments = {"network": network, "case": case, "batch": BATCH, "threads": count}
                contenders = [Contender(OURS, "training:step_of_ours", arguments | {"kept": False}, count)]
                if case != "all layers":
                    contenders.append(Contender(KEPT, "training:step_of_ours", arguments | {"kept": True}, count))
                contenders.append(Contender(PYTORCH, "training:step_of_pytorch", arguments, count))
                goal = GOALS[case] if network == MAIN else None
                _rows(table, f"{network}, {case}, batch {BATCH}", count, contenders, BATCH, goal, quick, tolerance=1e-3)
    epochs = 5 if quick else EPOCHS
    for count in threads:
        arguments = {"threads": count, "epochs": epochs}
        contenders = [Contender(who, f"training:head_of_{of}", arguments, count) for who, of in ((OURS, "ours"), (PYTORCH, "pytorch"))]
        title = f"classifier on {FEATURES} kept features, {epochs} epochs of {PHOTOS:,} photos, batch {BATCH}"
        _rows(table, title, count, contenders, epochs * PHOTOS, GOALS["head"], quick, tolerance=0.2)
    return table


def _rows(table, title, threads, contenders, images, goal, quick, tolerance):
    with Turns(contenders) as turns:
        losses = {who: float(turns.answer(who)) for who in turns.processes}
        for who, loss in losses.items():
            if not abs(loss - losses[OURS]) < tolerance:
                raise AssertionError(f"{title}: {who} has a loss of {loss:.5f}, we have {losses[OURS]:.5f}")
        medians, memory = turns.medians(2 if quick else 7, 0.05 if quick else 0.3), turns.memory()
    table.rows.append((f"{title}, {threads} thread{'s' * (threads > 1)}",))
    for who, seconds in medians.items():
        table.add(
            who,
            number(1000 * seconds),
            number(images / seconds),
            f"{seconds / medians[OURS]:.2f}",
            f"({goal:g})" if goal and who == PYTORCH else "",
            f"{memory[who].step:.1f} / {memory[who].growth:.0f} / {memory[who].process:.0f}",
            f"{losses[who]:.5f}",
        )
    for who, why in turns.missing.items():
        table.rows.append((f"without {who}: {why}",))
