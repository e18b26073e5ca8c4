"""The format a recipe gets on this device."""

from dataclasses import replace

import pytest
import torch

from netprune import compute
from netprune.compute import Format
from netprune.errors import InputError
from netprune.models import weights_digest
from netprune.precision import PRECISIONS, fit_to_device
from netprune.recipes import TrainConfig

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


def test_fit_to_device_of_an_unknown_precision_names_the_known_ones(tiny_dataset, tiny_net):
    with pytest.raises(InputError, match=r"precision is 'fp8'; it must be auto, fp32, bf16 or winograd"):
        fit_to_device(tiny_net, tiny_dataset, SHORT, "fp8")


def test_fit_to_device_of_winograd_off_the_cpu_is_refused(tiny_dataset, tiny_net):
    with pytest.raises(InputError, match=r"precision winograd is for a CPU, and this is meta"):
        fit_to_device(tiny_net.to("meta"), tiny_dataset, SHORT, "winograd")
