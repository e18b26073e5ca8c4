"""The screening: what it says before any training agrees with what a finetuning would say."""

import copy

import pytest
import torch
import torch.nn.functional as F

from netprune.evaluation import eval_mode
from netprune.loader import normalise
from netprune.masks import apply_masks, make_masks
from netprune.recalibration import recalibrate
from netprune.recipes import TrainConfig
from netprune.saliency import SALIENCIES
from netprune.screening import SHARPNESSES, Screen
from netprune.training import train
from netprune.weights import prunable_weights, weights_digest


@pytest.fixture
def trained(tiny_net, tiny_dataset):
    train(tiny_net, tiny_dataset, TrainConfig(epochs=6, batch_size=16))
    return tiny_net


def by_hand(net, dataset, sparsity):
    model = copy.deepcopy(net)
    apply_masks(model, make_masks(model, sparsity))
    recalibrate(model, dataset, 512)
    with eval_mode(model), torch.no_grad():
        logits = model(normalise(dataset.train.images, dataset))
    return min(F.cross_entropy(logits * s, dataset.train.labels).item() for s in SHARPNESSES)


def test_screen_equals_its_steps_taken_one_by_one(trained, tiny_dataset):
    sparsity = {"conv3.0.weight": 0.8, "classifier.3.weight": 0.5, "res1.0.0.weight": 0.9}
    assert Screen(trained, tiny_dataset)(sparsity) == pytest.approx(by_hand(trained, tiny_dataset, sparsity), rel=1e-3)


def test_screen_of_a_network_that_runs_contiguous_only_equals_its_steps(contiguous_net, tiny_dataset):
    sparsity = {"fc.weight": 0.5}
    found = Screen(contiguous_net, tiny_dataset)(sparsity)
    assert found == pytest.approx(by_hand(contiguous_net, tiny_dataset, sparsity), rel=1e-3)


def test_screen_leaves_the_dense_network_alone_and_repeats_itself(trained, tiny_dataset):
    before = weights_digest(trained)
    screen = Screen(trained, tiny_dataset)
    sparsity = dict.fromkeys(prunable_weights(trained), 0.5)
    assert screen(sparsity) == screen(sparsity)
    assert weights_digest(trained) == before


def test_screen_of_a_network_that_divides_by_nothing_is_worse_than_any_other(trained, tiny_dataset):
    broken = copy.deepcopy(trained)
    broken.classifier[4].weight.data.fill_(float("nan"))
    assert Screen(trained, tiny_dataset).left(broken) == float("inf")


def test_screen_of_more_sparsity_is_worse(trained, tiny_dataset):
    screen = Screen(trained, tiny_dataset)
    losses = [screen(dict.fromkeys(prunable_weights(trained), sparsity)) for sparsity in (0.0, 0.6, 0.95)]
    assert losses == sorted(losses)


def test_screen_looks_at_no_validation_image(trained, tiny_dataset):
    import dataclasses

    blind = dataclasses.replace(tiny_dataset, val=tiny_dataset.val.first(0))
    sparsity = dict.fromkeys(prunable_weights(trained), 0.5)
    assert Screen(trained, blind)(sparsity) == Screen(trained, tiny_dataset)(sparsity)


@pytest.mark.parametrize("name", SALIENCIES)
def test_screen_prunes_by_the_criterion_it_was_given(trained, tiny_dataset, name):
    found = {n: Screen(trained, tiny_dataset, n)({"conv4.0.weight": 0.9}) for n in ("magnitude", name)}
    assert (found["magnitude"] == found[name]) == (name in ("magnitude", "lamp", "norm_loss"))
