"""Training: one step at batch 32, and a classifier on features that are there already; ours and PyTorch, the same numbers, float32.

Out: a table. PyTorch runs channels last, with activations in place (twins.py). Losses are compared before anything is timed; that gradients
are equal, too, is tested elsewhere. What is frozen below "the last two blocks" is computed for every batch on both sides, as it must be
where photos change from epoch to epoch; "from kept features" is what minitl does where they do not. The classifier: 100 epochs of 1,097
photos, validated on 272 after each, the best kept.
"""

from contenders import BATCH, CASES, FEATURES, PHOTOS
from tables import Table, number
from turns import Contender, Turns

MAIN = "V1 0.25@96"
NETWORKS = {MAIN: list(CASES), "V1 0.25@224": list(CASES)[:2], "V2 0.35@96": list(CASES)[:2]}
GOALS = {"all layers": 1.5, "the last three blocks": 4, "the last two blocks": 4, "head": 5}
OURS, KEPT, PYTORCH = "minitl", "minitl, from kept features", "PyTorch"
EPOCHS = 100


def report(quick, threads):
    table = Table(
        "Training",
        "ours / this one: times the throughput, beside it the least we want. Memory: MiB at most, above the imports / of the "
        "process. Loss: of the first step, or the best validation loss of the classifier.",
        ("", "ms", "images/s", "ours / this one", "goal", "memory", "loss"),
    )
    for network, cases in list(NETWORKS.items())[: 1 if quick else None]:
        for case in cases:
            for count in threads if network == MAIN else threads[:1]:
                arguments = {"network": network, "case": case, "batch": BATCH, "threads": count}
                contenders = [Contender(OURS, "contenders:step_of_ours", arguments | {"kept": False}, count, ours=True)]
                if case != "all layers":
                    contenders.append(Contender(KEPT, "contenders:step_of_ours", arguments | {"kept": True}, count, ours=True))
                contenders.append(Contender(PYTORCH, "contenders:step_of_pytorch", arguments, count))
                goal = GOALS[case] if network == MAIN else None
                _rows(table, f"{network}, {case}, batch {BATCH}", count, contenders, BATCH, goal, quick, tolerance=1e-3)
    epochs = 5 if quick else EPOCHS
    for count in threads:
        arguments = {"threads": count, "epochs": epochs}
        contenders = [
            Contender(who, f"contenders:head_of_{of}", arguments, count, of == "ours") for who, of in ((OURS, "ours"), (PYTORCH, "pytorch"))
        ]
        title = f"classifier on {FEATURES} kept features, {epochs} epochs of {PHOTOS:,} photos, batch {BATCH}"
        _rows(table, title, count, contenders, epochs * PHOTOS, GOALS["head"], quick, tolerance=0.2)
    return table


def _rows(table, title, threads, contenders, images, goal, quick, tolerance):
    table.heading(f"{title}, {threads} thread{'s' * (threads > 1)}")
    with Turns(contenders) as turns:
        losses = {who: float(turns.answer(who)) for who in turns.processes}
        for who, loss in losses.items():
            if not abs(loss - losses[OURS]) < tolerance:
                raise AssertionError(f"{title}: {who} has a loss of {loss:.5f}, we have {losses[OURS]:.5f}")
        medians, memory = turns.medians(2 if quick else 7, 0.05 if quick else 0.3), turns.memory()
    for who, seconds in medians.items():
        table.add(
            who,
            number(1000 * seconds),
            number(images / seconds),
            f"{seconds / medians[OURS]:.2f}",
            f"({goal:g})" if goal and who == PYTORCH else "",
            f"{memory[who].growth:.0f} / {memory[who].process:.0f}",
            f"{losses[who]:.5f}",
        )
    for who, why in turns.missing.items():
        table.remark(f"Without {who}: {why}.")
