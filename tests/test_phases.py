"""What a run consists of: which training follows which, with what frozen, at what rate; and the depths that a user may name."""

import numpy as np
import pytest
import small_models

from minitl import phases
from minitl.augment import Augmentation
from minitl.errors import MinitlError
from minitl.model import find, random_backbone
from minitl.phases import NOTHING, plan, rate_factors


def model(pretrained=True, hidden=()):
    backbone = find(small_models.SMALL)
    if pretrained:
        backbone.note(source="elsewhere")
    return backbone.replace_head(["a", "b", "c"], hidden=hidden).freeze("all")


def trained(made, mask):
    """Blocks in which something is not frozen."""
    return [name for name, nodes in made.blocks().items() if any(not np.all(mask.get(n, False)) for n in nodes if n in made.graph.params)]


def test_the_classifier_alone_is_one_training_without_augmentation():
    (only,) = plan(model(), {})
    assert only.name == "classifier" and only.settings == phases.HEAD and only.augmentation == NOTHING
    assert trained(model(), only.frozen) == ["classifier"]


def test_more_is_trained_after_the_classifier_and_augmented():
    made = model().unfreeze("3")
    first, second = plan(made, {"epochs": 7, "seed": 3, "batch": 8})
    assert trained(made, first.frozen) == ["classifier"] and trained(made, second.frozen) == [
        "block_11",
        "block_12",
        "block_13",
        "classifier",
    ]
    assert second.augmentation == Augmentation.parse("default") and first.augmentation == NOTHING
    assert (first.settings.epochs, second.settings.epochs) == (phases.HEAD.epochs, 7)
    assert first.settings.seed == second.settings.seed == 3 and first.settings.batch == second.settings.batch == 8


def test_random_weights_are_trained_at_once():
    (only,) = plan(model(pretrained=False).unfreeze("all"), {})
    assert only.name == "from random weights" and only.settings == phases.SCRATCH
    assert len(plan(model(pretrained=False), {})) == 1  # the classifier on random features: what was asked for


def test_gradual_unfreezing_goes_down_block_by_block():
    made = model().unfreeze("3")
    steps = plan(made, {"epochs": 12}, gradual=True)
    assert [len(trained(made, step.frozen)) for step in steps] == [1, 2, 3, 4]
    assert [step.settings.epochs for step in steps[1:]] == [4, 4, 4] and steps[-1].frozen == made.graph.frozen


def test_a_folded_network_gets_a_smaller_rate():
    made = find(small_models.SMALL)
    assert phases.deep_settings(made).rate == phases.DEEP.rate and plan(made, {})[0].settings.rate == phases.SCRATCH.rate
    folded = random_backbone("mobilenet_v1", made.arguments | {"batch_norm": False}, made.recipe, "random")
    assert phases.deep_settings(folded).rate == phases.FOLDED_RATE and plan(folded, {})[0].settings.rate == phases.PLAIN_RATE


def test_rates_fall_from_block_to_block():
    made = model()
    factors, blocks = rate_factors(made, 0.5), made.blocks()
    assert (
        rate_factors(made, 1.0) == {} and factors["conv_preds"] == 1 and factors["conv_pw_13"] == 0.5 and factors["conv_dw_12_bn"] == 0.25
    )
    assert factors["conv1"] == 0.5 ** (len(blocks) - 1)


def test_depths_have_names():
    for what, count in (("all", 15), ("1", 2), ("block_12", 3), ("conv_dw_12", 3), ("14", 15)):
        made = model().unfreeze(what)
        assert len(trained(made, made.graph.frozen)) == count, what
    made = model().unfreeze("conv_pw_12")
    assert made.graph.frozen["conv_dw_12"] is True and "conv_pw_12" not in made.graph.frozen and len(trained(made, made.graph.frozen)) == 3
    for wrong in ("0", "15", "block_99", "conv_pw_77", ""):
        with pytest.raises(MinitlError, match=r"expected 1 to 14|there is no layer"):
            model().unfreeze(wrong)


def test_batchnorm_can_stay_frozen_while_convolutions_train():
    made = model().unfreeze("3").freeze("*_bn", more=True)
    assert made.graph.frozen["conv_pw_13_bn"] is True and "conv_pw_13" not in made.graph.frozen
    assert model().freeze("conv1,*_bn").graph.frozen.keys() > {"conv1", "conv1_bn", "conv_pw_13_bn"}


def test_hidden_layers_train_with_the_classifier():
    made = model(hidden=(8,))
    assert "hidden_1" not in made.graph.frozen and len(plan(made, {})) == 1


def test_an_unknown_option_is_named():
    from minitl import transfer

    with pytest.raises(MinitlError, match=r"no option 'epoch'.*epochs"):
        transfer.train(find(small_models.SMALL), ".", epoch=3)
