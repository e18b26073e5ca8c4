"""New statistics for batch normalisation: averages, and nothing else changes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netprune.data import Split
from netprune.evaluation import evaluate
from netprune.loader import normalise
from netprune.pruning import pruned_copy
from netprune.recalibration import recalibrate
from netprune.recipes import TrainConfig
from netprune.training import train
from netprune.weights import prunable_weights


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_recalibrate_takes_the_averages_of_the_training_images(tiny_dataset, tiny_net):
    recalibrate(tiny_net, tiny_dataset, images=48)
    first, reached = tiny_net.conv1[0], norms(tiny_net)[0]
    given = first(normalise(tiny_dataset.train.images[:48], tiny_dataset))
    torch.testing.assert_close(reached.running_mean, given.mean((0, 2, 3)))
    torch.testing.assert_close(reached.running_var, given.var((0, 2, 3)))


class Functional(nn.Module):
    """Dropout as a function, which goes by the mode of the module that calls it."""

    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


@pytest.mark.parametrize("dropout", [nn.Dropout(0.5), nn.Dropout2d(0.5), Functional()])
def test_recalibrate_behind_dropout_takes_statistics_without_it(tiny_dataset, dropout):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv, later = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
    model = nn.Sequential(conv, dropout, nn.BatchNorm2d(4), nn.ReLU(), dropout, later, nn.BatchNorm2d(4))
    recalibrate(model, tiny_dataset, images=48)
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        first = conv(normalise(tiny_dataset.train.images[:48], tiny_dataset))
        second = later(F.relu(F.batch_norm(first, None, None, training=True)))
    for norm, given in ((model[2], first), (model[6], second)):
        torch.testing.assert_close(norm.running_mean, given.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, given.var((0, 2, 3)))


def test_recalibrate_leaves_weights_modes_momentum_and_the_generator_alone(tiny_dataset, tiny_net):
    tiny_net.res1.eval()
    before = {name: p.clone() for name, p in tiny_net.named_parameters()}
    modes, momenta = [m.training for m in tiny_net.modules()], [n.momentum for n in norms(tiny_net)]
    state = torch.get_rng_state()
    recalibrate(tiny_net, tiny_dataset)
    assert all(torch.equal(p, before[name]) for name, p in tiny_net.named_parameters())
    assert [n.momentum for n in norms(tiny_net)] == momenta
    assert [m.training for m in tiny_net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_recalibrate_brings_back_what_pruning_alone_lost(tiny_dataset, tiny_net):
    train(tiny_net, tiny_dataset, TrainConfig(epochs=6, batch_size=24, max_lr=0.02))
    sparsity = dict.fromkeys(prunable_weights(tiny_net), 0.5)
    pruned = pruned_copy(tiny_net, tiny_dataset, sparsity).model
    before = evaluate(pruned, tiny_dataset.val, tiny_dataset)
    recalibrate(pruned, tiny_dataset)
    assert evaluate(pruned, tiny_dataset.val, tiny_dataset).loss < before.loss


@pytest.mark.parametrize("count", [2, 255, 256, 257, 513])
def test_recalibrate_never_takes_a_batch_of_one(tiny_dataset, count):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))  # which raises for a single value a channel
    repeated = tiny_dataset.train.take(torch.arange(count) % 72)
    recalibrate(model, replace(tiny_dataset, train=repeated), images=count)
    assert model[1].running_var.isfinite().all()


def test_recalibrate_gives_every_image_the_same_weight(tiny_dataset):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    grey = torch.arange(258).clamp(max=255).to(torch.uint8)  # two that a batch of 256 leaves over are white
    images = grey.view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    train = Split(images, torch.zeros(258, dtype=torch.long))
    recalibrate(model, replace(tiny_dataset, train=train))
    mean = normalise(images, tiny_dataset).mean((0, 2, 3))
    torch.testing.assert_close(model[1].running_mean, mean)


@pytest.mark.parametrize(("side", "batch"), [(32, 150), (64, 60), (512, 30)])
def test_recalibrate_larger_images_go_in_smaller_batches(tiny_dataset, tiny_net, side, batch):
    seen = []
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    model[0].register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    images = torch.zeros(300, 3, side, side, dtype=torch.uint8)
    train = Split(images, torch.zeros(300, dtype=torch.long))
    recalibrate(model, replace(tiny_dataset, train=train, val=train.first(1)))
    assert seen == [batch] * (300 // batch)


def test_recalibrate_reads_a_batch_at_a_time(tiny_dataset, tiny_net, monkeypatch):
    read, between = [], Split.between
    monkeypatch.setattr(Split, "between", lambda *given: read.append(given[1:]) or between(*given))
    train = tiny_dataset.train.take(torch.arange(600) % 72)
    recalibrate(tiny_net, replace(tiny_dataset, train=train), images=512)
    assert read == [(0, 256), (256, 512)]


def test_recalibrate_network_without_normalisation_is_left_alone(tiny_dataset):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))
    before = model[1].weight.clone()
    model.forward = None  # nor is it run
    recalibrate(model, tiny_dataset)
    assert torch.equal(model[1].weight, before)
