"""What a run consists of: one training after the other, each with its mask, its settings and its augmentation.

In: a Model with the mask that is wished for in the end, and what the user asks for. Out: a list of Phases: the classifier alone first,
then more, since a fresh classifier sends large and senseless gradients into the backbone, which a trained one does not (Kumar et al.
2022, arXiv:2202.10054); a network of random weights is trained at once. The usual settings stand here, with what they were chosen
by. Left out: running them (transfer.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .augment import Augmentation
from .features import Features
from .layers import Array, BatchNorm
from .model import Model
from .training import Settings

NOTHING = Augmentation()

HEAD = Settings(decay=3e-2, patience=100)
"""For a fresh classifier on fixed features; its rate comes from HEAD_STEP, unless it is given. Nothing stops early: it takes a second,
and while the rate is high the validation loss jumps (with a patience of 20 the built-in backbone had 56.9 instead of 59.2 % on monkeys).
Four pairs were tried, (10, 1e-2), (10, 3e-2), (5, 2e-2) and (5, 1e-1); validation accuracy in %, mean of four seeds, of this pair and of
the best: monkeys with MobileNetV1 0.25 at 128 89.1 (89.4), at 224 93.2 (93.8); person with the same two 77.4 (80.3) and 78.7 (78.7), with
MLPerf Tiny's detector 81.8 (82.0), with V2 at 224 81.8 (82.7); fruit 100 with all four pairs. No pair is best everywhere, and the
validation photos are few."""

HEAD_STEP = 10.0
"""Learning rate times the mean squared length of the features. The steepest slope of a softmax regression grows with that length, and
backbones differ in it by a factor of 300 (MLPerf Tiny's person detector 3, MobileNetV1 0.25 at 128 400 to 600, V2 at 224 800).
Lengths below 1 count as 1: with a larger rate the weight decay would overshoot."""

DEEP = Settings(epochs=20, rate=0.01, decay=1e-4, warmup=1.0)
"""For training that changes the layers of the backbone, once the classifier has been trained."""

FOLDED_RATE = 0.0005
"""Instead of DEEP's rate, where there is no BatchNorm to hold the values in bounds: quantised files come with it folded."""

ROUNDED_RATE = 0.002
"""For training with rounding below the classifier."""

SCRATCH = Settings(epochs=60, rate=0.05, decay=1e-3, patience=60, warmup=2.0)
"""For a network whose weights are random. The validation loss jumps for long before it settles, so nothing stops early: MobileNetV1 0.25
at 96 on monkeys had 64.3 % after 60 epochs; with twice the rate and a patience of 20 it stopped at 27.9 %."""

PLAIN_RATE = 0.003
"""Instead of SCRATCH's rate, where there is no BatchNorm. VGG16 of a quarter of the width at 64 on fruit, training loss after five epochs:
0.82 with 0.01, 0.55 with 0.02, 0.50 with 0.003; with 0.05 the first epoch ended in infinity."""


@dataclass(frozen=True)
class Phase:
    """One training of a run. frozen: the mask; epochs that it keeps must beat the loss before it, unless it is the first. imprint: the
    classifier is made of mean features instead."""

    name: str
    frozen: dict[str, bool | Array]
    settings: Settings
    augmentation: Augmentation = NOTHING
    imprint: bool = False


def settings_of(base: Settings, options: Mapping[str, Any]) -> Settings:
    """The settings with what is given among the options; a warm-up that is not takes a quarter of the epochs at most."""
    names = {field.name for field in fields(Settings)}
    given = {name: value for name, value in options.items() if name in names}
    epochs = given.get("epochs")
    if "warmup" not in given and isinstance(epochs, int) and epochs > 0:
        given["warmup"] = min(base.warmup, epochs / 4)
    return replace(base, **given)


def plan(
    model: Model, options: Mapping[str, Any], augment: Augmentation | None = None, gradual: bool = False, imprint: bool = False
) -> list[Phase]:
    """The trainings that lead to the mask of `model`: the classifier alone, then more, at once or (gradual) block by block from the top.

    options: settings of the last training; the classifier before it has its own, but for seed and batch. augment: None for the usual,
    which is nothing for a classifier on fixed features (measured: it gains nothing there) and Augmentation.parse('default') for more.
    """
    graph, last = model.graph, dict(model.graph.frozen)
    head_only = model.feature_node in graph.frozen_prefix()
    usual = NOTHING if head_only else Augmentation.parse("default")
    chosen = usual if augment is None else augment
    if head_only:
        name = "imprinted classifier" if imprint else "classifier"
        return [Phase(name, last, settings_of(HEAD, options), NOTHING if imprint else chosen, imprint)]
    if not model.pretrained and not imprint:
        return [Phase("from random weights", last, settings_of(_with_rate(SCRATCH, model, PLAIN_RATE), options), chosen)]
    head = settings_of(HEAD, {name: value for name, value in options.items() if name in ("seed", "batch", "balance")})
    masks = [("fine-tuning", last)]
    if gradual:
        blocks = model.blocks()
        moving = [node for node in graph.params if not is_frozen(last, node)]
        deeper = [name for name in reversed(list(blocks)[:-1]) if set(moving) & set(blocks[name])]
        masks = []
        for i in range(1, len(deeper) + 1):
            below: dict[str, bool | Array] = {
                node: True for name in blocks if name not in deeper[:i] and name != "classifier" for node in blocks[name]
            }
            masks.append((f"down to {deeper[i - 1]}", last | below))
    settings = settings_of(deep_settings(model), options)
    each = settings_of(settings, {"epochs": max(settings.epochs // len(masks), 1)})
    first = Phase("imprinted classifier" if imprint else "classifier", head_mask(model, last), head, imprint=imprint)
    return [first, *(Phase(name, mask, each, chosen) for name, mask in masks)]


def deep_settings(model: Model) -> Settings:
    """DEEP, with the rate that suits the network."""
    return _with_rate(DEEP, model, FOLDED_RATE)


def _with_rate(settings: Settings, model: Model, rate: float) -> Settings:
    """The settings with this rate for a network without BatchNorm."""
    return settings if any(isinstance(node.layer, BatchNorm) for node in model.graph.nodes) else replace(settings, rate=rate)


def rounded_settings(model: Model, features: Features, seed: int) -> Settings:
    """For training with rounding (qat.py), once everything else is done.

    Measured on monkeys, all ranges made 8 times as wide on purpose: with these rates MobileNetV1 0.25 at 128 went from 82.0 % to 85.9 (the
    classifier alone, mean of three seeds) and 87.5 (the blocks above conv_pw_10), of 88.6 in float; four times the second kept nothing.
    """
    head_only = model.feature_node in model.graph.frozen_prefix()
    rate = head_settings(HEAD, features).rate / 2 if head_only else ROUNDED_RATE
    return Settings(epochs=15, rate=rate, decay=0.0, patience=8, seed=seed, warmup=0.5)


def is_frozen(mask: Mapping[str, bool | Array], node: str) -> bool:
    """Whether all channels of a node are frozen."""
    return bool(np.all(mask.get(node, False)))


def head_mask(model: Model, mask: Mapping[str, bool | Array]) -> dict[str, bool | Array]:
    """The mask, with everything up to the features frozen as well."""
    return dict(mask) | dict.fromkeys(model.graph.match(".." + model.feature_node), True)


def rate_factors(model: Model, layer_decay: float) -> dict[str, float]:
    """{node: share of the learning rate}: each block of the backbone takes layer_decay times that of the one above it.

    Howard and Ruder 2018, arXiv:1801.06146, section 3.2; the classifier takes all.
    """
    if layer_decay == 1:
        return {}
    blocks = list(model.blocks().values())
    return {node: layer_decay**depth for depth, nodes in enumerate(reversed(blocks)) for node in nodes}


def head_settings(settings: Settings, features: Features) -> Settings:
    """The settings with the rate that suits these features, see HEAD_STEP."""
    return replace(settings, rate=HEAD_STEP / max(features.mean_squared_length(), 1.0))


def describe_freeze(model: Model) -> str:
    """The freeze mask in a few words."""
    layers = [node.name for node in model.graph.nodes if node.name in model.graph.params]
    if model.feature_node in model.graph.frozen_prefix():
        return "all but the classifier"
    frozen = sum(is_frozen(model.graph.frozen, name) for name in layers)
    partly = sum(isinstance(model.graph.frozen.get(name), np.ndarray) for name in layers)
    return (f"{frozen} of {len(layers)} layers" if frozen else "nothing") + (f", {partly} in part" if partly else "")
