"""The loss's gradient: torch's own on the same images, and a model that notices nothing."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netprune import gradients
from netprune.gradients import gradients_for, loss_gradients
from netprune.loader import normalise
from netprune.saliency import SALIENCIES, taylor
from netprune.weights import prunable_weights, weights_digest


def reference(model, dataset, images):
    """All images in one batch, by `torch.autograd.grad`."""
    weights = prunable_weights(model)
    split = dataset.train
    was = model.training
    model.eval()
    loss = F.cross_entropy(model(normalise(split.images[:images], dataset)), split.labels[:images])
    model.train(was)
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


@pytest.fixture(autouse=True)
def _several_batches(monkeypatch):
    monkeypatch.setattr(gradients, "BATCH", 16)


@pytest.mark.parametrize("images", [1, 16, 40, 72])
def test_loss_gradients_equal_autograd_on_one_batch(tiny_net, tiny_dataset, images):
    expected = reference(tiny_net, tiny_dataset, images)
    found = loss_gradients(tiny_net, tiny_dataset, images=images)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.any()
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max().item()), name


def test_loss_gradients_of_more_images_than_there_are_take_them_all(tiny_net, tiny_dataset):
    found, expected = (loss_gradients(tiny_net, tiny_dataset, images=count) for count in (10_000, 72))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_loss_gradients_read_the_training_split_only(tiny_net, tiny_dataset):
    found = loss_gradients(tiny_net, replace(tiny_dataset, val=None, test=None))
    assert found.keys() == prunable_weights(tiny_net).keys()


def test_loss_gradients_leave_the_model_as_it_is(tiny_net, tiny_dataset):
    tiny_net.train()
    tiny_net.res1.eval()
    tiny_net.conv2[0].weight.requires_grad_(False)
    tiny_net.conv3[0].weight.grad = torch.full_like(tiny_net.conv3[0].weight, 3.0)
    digest, modes, state = weights_digest(tiny_net), [m.training for m in tiny_net.modules()], torch.get_rng_state()
    found = loss_gradients(tiny_net, tiny_dataset)
    assert weights_digest(tiny_net) == digest
    assert [module.training for module in tiny_net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert (tiny_net.conv3[0].weight.grad == 3.0).all()
    assert {n for n, p in tiny_net.named_parameters() if p.grad is not None} == {"conv3.0.weight"}
    assert {n for n, p in tiny_net.named_parameters() if not p.requires_grad} == {"conv2.0.weight"}
    assert not (found["conv3.0.weight"] == 3.0).any()


def test_loss_gradients_need_neither_requires_grad_nor_grad_mode(tiny_net, tiny_dataset):
    expected = loss_gradients(tiny_net, tiny_dataset)
    tiny_net.requires_grad_(False)
    with torch.no_grad():
        found = loss_gradients(tiny_net, tiny_dataset)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(gradient.requires_grad for gradient in found.values())


def test_loss_gradients_of_an_unused_layer_are_zero(tiny_net, tiny_dataset):
    tiny_net.spare = nn.Linear(4, 3)
    found = loss_gradients(tiny_net, tiny_dataset)
    assert found["spare.weight"].shape == (3, 4)
    assert not found["spare.weight"].any()


@pytest.mark.parametrize("name", SALIENCIES)
def test_gradients_for_are_made_for_a_criterion_that_takes_them_only(tiny_net, tiny_dataset, name):
    found = gradients_for(SALIENCIES[name], tiny_net, tiny_dataset if name == "taylor" else None)
    assert (found is not None) == (name == "taylor")


def test_gradients_for_taylor_are_the_loss_gradients(tiny_net, tiny_dataset):
    found, expected = gradients_for(taylor, tiny_net, tiny_dataset), loss_gradients(tiny_net, tiny_dataset)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
