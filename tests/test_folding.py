"""Biases folded into the normalisation behind them: the network computes what it did, or nothing is folded."""

import copy

import pytest
import torch
from torch import nn

from netprune.folding import fold_biases
from netprune.loader import normalise
from netprune.weights import weights_digest


def spread_statistics(model):
    """Biases and statistics as a trained network has them."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if "var" in name else -0.5))


def is_left_alone(model):
    before = weights_digest(model)
    fold_biases(model)
    return weights_digest(model) == before


def test_fold_biases_leaves_the_networks_outputs_in_both_modes(tiny_net, tiny_dataset):
    spread_statistics(tiny_net)
    images = normalise(tiny_dataset.val.images, tiny_dataset)
    folded = copy.deepcopy(tiny_net)
    fold_biases(folded)
    assert not any(module.bias.any() for module in folded.modules() if isinstance(module, nn.Conv2d))
    for train_mode in (False, True):  # in this order: a pass in train mode moves the statistics
        outputs = []
        for model in (tiny_net, folded):
            torch.manual_seed(0)  # dropout
            with torch.no_grad():
                outputs.append(model.train(train_mode)(images))
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_fold_biases_leaves_layers_alone_that_are_held_twice_or_have_no_normalisation_behind_them():
    conv, norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    shared = nn.Sequential(nn.Sequential(conv, norm), nn.Sequential(conv, nn.BatchNorm2d(3)))
    twice = nn.Sequential(conv, norm, conv, nn.BatchNorm2d(3))
    tied = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    tied[2].bias = tied[0].bias
    apart = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3))
    untracked = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    for model in (shared, twice, tied, apart, untracked):
        assert is_left_alone(model)


class Residual(nn.Sequential):
    """A chain that is run as none."""

    def forward(self, images):
        """Adds the convolution's own output."""
        return self[1](self[0](images)) + self[0](images)


class Clipped(nn.Conv2d):
    """A convolution that does more than that."""

    def forward(self, images):
        """Zero where the convolution is negative."""
        return super().forward(images).relu()


def test_fold_biases_leaves_layers_alone_that_a_subclass_runs_in_its_own_way():
    for model in (Residual(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), nn.Sequential(Clipped(3, 3, 1), nn.BatchNorm2d(3))):
        assert is_left_alone(model)


class Body(nn.Module):
    """A chain that is held as one; subclasses say how it is run."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


class Indexed(Body):
    def forward(self, images):
        return self.body[0](images) + self.body(images)


class Iterated(Body):
    def forward(self, images):
        given = []
        for layer in self.body:
            images = layer(images)
            given.append(images)
        return sum(given)


class ReadsTheBias(Body):
    def forward(self, images):
        return self.body(images) + self.body[0].bias.sum()


class ReadsTheBiasAsAParameter(Body):
    def forward(self, images):
        return self.body(images) + sum(p.sum() for p in self.parameters())


class ReadsTheBiasInTheStateDict(Body):
    def forward(self, images):
        return self.body(images) + self.state_dict()["body.0.bias"].sum()


class ReadsTheMean(Body):
    def forward(self, images):
        return self.body(images) + self.body[1].running_mean.sum()


class AnotherWayInTraining(Body):
    def forward(self, images):
        return self.body[0](images) + self.body(images) if self.training else self.body(images)


class Untraceable(Body):
    def forward(self, images):
        return self.body(images) if images.sum() > 0 else self.body[0](images)


@pytest.mark.parametrize("kind", Body.__subclasses__())
def test_fold_biases_leaves_layers_alone_of_which_more_is_used_than_the_normalised(kind):
    model = kind()
    before, modes = weights_digest(model), [module.training for module in model.modules()]
    fold_biases(model)
    assert weights_digest(model) == before
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("layer", [0, 1])
def test_fold_biases_leaves_layers_alone_that_somebody_listens_to(layer):
    for listen in (nn.Module.register_forward_hook, nn.Module.register_forward_pre_hook):
        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        listen(model[layer], lambda *_: None)
        assert is_left_alone(model)


def test_fold_biases_leaves_a_bias_alone_that_is_computed():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    nn.utils.parametrize.register_parametrization(model[0], "bias", nn.Tanh())
    assert is_left_alone(model)


class Apart(nn.Module):
    """A convolution and its normalisation under names of their own, as users have them."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images):
        return self.norm(self.conv(images)).relu()


def test_fold_biases_goes_by_what_is_run_and_not_by_what_holds_it():
    model, images = Apart().eval(), torch.randn(4, 3, 5, 5)
    spread_statistics(model)
    expected = model(images)
    fold_biases(model)
    assert not model.conv.bias.any()
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
