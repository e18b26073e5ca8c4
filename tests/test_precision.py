"""The format a recipe gets on this device."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from netprune import compute
from netprune.compute import Format
from netprune.errors import InputError
from netprune.precision import PRECISIONS, fit_to_device
from netprune.recipes import TrainConfig
from netprune.scanner import scan
from netprune.training import train
from netprune.weights import weights_digest

SHORT = TrainConfig(epochs=3, batch_size=16, seed=5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_fit_to_device_gives_a_format_of_that_precision_and_leaves_the_network_alone(tiny_dataset, tiny_net, precision):
    tiny_net.res1.eval()
    digest, modes, state = weights_digest(tiny_net), [m.training for m in tiny_net.modules()], torch.get_rng_state()
    config, seconds = fit_to_device(tiny_net, tiny_dataset, SHORT, precision)
    assert replace(config, format=Format()) == SHORT
    asked = Format(bf16=precision == "bf16", winograd=precision == "winograd", channels_last=True)
    assert precision == "auto" or config.format == asked
    assert not config.format.compiled  # a training of seconds is not worth it
    assert 0 < seconds < 60
    assert weights_digest(tiny_net) == digest
    assert [m.training for m in tiny_net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in tiny_net.parameters())


@pytest.mark.parametrize("faster", [True, False])
def test_fit_to_device_of_a_long_training_tries_compilation(tiny_dataset, tiny_net, monkeypatch, faster):
    def seconds(model, images, labels, form):
        return 1.0 if not form.compiled else 0.5 if faster else 2.0

    monkeypatch.setattr(compute, "training_seconds", seconds)
    config, epoch_seconds = fit_to_device(tiny_net, tiny_dataset, replace(SHORT, epochs=100))
    assert config.format == Format(compiled=faster)
    assert epoch_seconds == 72


@pytest.mark.parametrize(("epochs", "winograd"), [(20, False), (60, True)])
def test_fit_to_device_of_a_long_training_of_a_slow_network_measures_on_more_images(
    tiny_dataset, tiny_net, monkeypatch, epochs, winograd
):
    def seconds(model, images, labels, form):  # an image takes half a second; Winograd's pays from 8 images on
        return 2.0 if form.compiled else 0.25 if form.winograd and len(images) >= 8 else 0.5

    monkeypatch.setattr(compute, "training_seconds", seconds)
    config, epoch_seconds = fit_to_device(tiny_net, tiny_dataset, replace(SHORT, epochs=epochs))
    assert config.format == (Format(winograd=True, channels_last=True) if winograd else Format())
    assert epoch_seconds == (18 if winograd else 36)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_fit_to_device_of_a_network_that_runs_contiguous_only_gives_that_layout(
    tiny_dataset, contiguous_net, precision
):
    digest, state = weights_digest(contiguous_net), torch.get_rng_state()
    config, _ = fit_to_device(contiguous_net, tiny_dataset, SHORT, precision)
    assert not config.format.channels_last
    assert not config.format.winograd
    assert precision == "auto" or config.format == Format(bf16=precision == "bf16")
    assert weights_digest(contiguous_net) == digest
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_fit_to_device_of_a_network_that_never_runs_raises_what_it_raises(tiny_dataset, precision):
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        fit_to_device(nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), tiny_dataset, SHORT, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_train_of_a_network_that_runs_contiguous_only_learns_in_any_precision(tiny_dataset, contiguous_net, precision):
    config = replace(SHORT, max_lr=0.01)
    results = train(contiguous_net, tiny_dataset, fit_to_device(contiguous_net, tiny_dataset, config, precision)[0])
    assert results[-1].train_loss < results[0].train_loss


class Selecting(nn.Module):
    """Puts what a layer computes into a tensor of its own making, which is fp32."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.Linear(256, 3)

    def forward(self, images):
        x = self.conv(images)
        kept = torch.zeros(x.shape)
        kept[x > 0] = x[x > 0]
        return self.fc(kept.flatten(1))


class Averaging(Selecting):
    """Moves a statistic of fp32 towards what a layer computes, in train mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4, 8, 8))

    def forward(self, images):
        x = self.conv(images)
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return self.fc((x - self.mean).flatten(1))


@pytest.mark.parametrize("network", [Selecting, Averaging])
def test_network_that_fails_in_bf16_alone_is_fitted_trained_and_scanned_in_fp32(tiny_dataset, network, monkeypatch):
    monkeypatch.setattr(compute, "HOPELESS", float("inf"))
    config, _ = fit_to_device(network(), tiny_dataset, TrainConfig(epochs=1, batch_size=16))
    assert not config.format.bf16
    train(network(), tiny_dataset, config)
    scan(network(), tiny_dataset)
    with pytest.raises(InputError, match=r"fails when it is trained in bf16, .*: choose fp32 or auto"):
        fit_to_device(network(), tiny_dataset, TrainConfig(), "bf16")


def test_fit_to_device_of_an_unknown_precision_names_the_known_ones(tiny_dataset, tiny_net):
    with pytest.raises(InputError, match=r"precision is 'fp8'; it must be auto, fp32, bf16 or winograd"):
        fit_to_device(tiny_net, tiny_dataset, SHORT, "fp8")


def test_fit_to_device_of_winograd_off_the_cpu_is_refused(tiny_dataset, tiny_net):
    with pytest.raises(InputError, match=r"precision winograd is for a CPU, and this is meta"):
        fit_to_device(tiny_net.to("meta"), tiny_dataset, SHORT, "winograd")
