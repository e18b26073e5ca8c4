"""What moves the weights, beside references."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netprune import optimizers
from netprune.optimizers import MuonAdamW, linear_schedule, make_optimizer, make_schedule, orthogonalised
from netprune.recipes import TrainConfig


@pytest.fixture
def problem():
    """A small network of convolutions, normalisation and a linear layer; images and labels for it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.Flatten(),
        nn.Linear(144, 3),
    )
    return model, torch.randn(8, 3, 8, 8), torch.arange(8) % 3


def take_steps(model, optimizers, images, labels, count=3):
    for _ in range(count):
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        for optimizer in optimizers:
            optimizer.step()


class Unflattened(nn.Module):
    """A convolution whose weight is stored as the matrix that Muon is meant to see."""

    def __init__(self, conv):
        super().__init__()
        self.conv, self.weight = conv, nn.Parameter(conv.weight.detach().flatten(1).clone())
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())

    def forward(self, images):
        return F.conv2d(images, self.weight.view_as(self.conv.weight), self.bias, padding=self.conv.padding)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_adamw_equals_torchs_two_on_a_network_of_matrices(problem, memory_format, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # in which torch computes
    model, images, labels = problem
    flat = copy.deepcopy(model)
    for index in (0, 3):
        flat[index] = Unflattened(flat[index])
    matrices = [flat[0].weight, flat[3].weight, flat[5].weight]
    others = [flat[1].weight, flat[1].bias, flat[3].bias, flat[5].bias]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=0.02, betas=(0.9, 0.99), weight_decay=0)
    take_steps(flat, [muon, adamw], images, labels)
    model.to(memory_format=memory_format)
    take_steps(model, [MuonAdamW(model, lr=0.02, weight_decay=0.3)], images, labels)
    for index in (0, 3, 5):
        torch.testing.assert_close(
            model[index].weight.flatten(1), flat[index].weight.flatten(1), rtol=0.05, atol=2e-3
        )  # torch's is bf16
    for ours, theirs in zip((m.bias for m in (model[1], model[3], model[5])), others[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert model[0].weight.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_adamw_prepared_takes_the_same_steps_and_moves_momenta_once(problem, memory_format):
    model, images, labels = problem
    model.to(memory_format=memory_format)
    apart = copy.deepcopy(model)
    take_steps(model, [MuonAdamW(model, lr=0.02, weight_decay=0.3)], images, labels)
    optimizer = MuonAdamW(apart, lr=0.02, weight_decay=0.3)
    for _ in range(3):
        apart.zero_grad()
        F.cross_entropy(apart(images), labels).backward()
        optimizer.prepare()
        optimizer.step()
    for ours, theirs in zip(apart.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_muon_adamw_step_has_singular_values_near_one_in_units_of_its_rate(problem):
    model, images, labels = problem
    before = model[0].weight.detach().clone()
    take_steps(model, [MuonAdamW(model, lr=0.01, weight_decay=0)], images, labels, count=1)
    moved = torch.linalg.svdvals((model[0].weight.detach() - before).flatten(1)) / (0.01 * 0.2 * 27**0.5)
    assert moved.min() > 0.5
    assert moved.max() < 1.5


def test_muon_adamw_moves_matrices_beyond_its_limit_as_adamw_does(problem, monkeypatch):
    model, images, labels = problem
    reference = copy.deepcopy(model)
    monkeypatch.setattr(optimizers, "LARGEST_MATRIX", 2)
    take_steps(model, [MuonAdamW(model, lr=0.01, weight_decay=0.2)], images, labels)
    groups = [
        {"params": [p for p in reference.parameters() if p.ndim > 1], "weight_decay": 0.2},
        {"params": [p for p in reference.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    take_steps(reference, [torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99))], images, labels)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_muon_adamw_leaves_a_weight_without_gradient(problem):
    model, images, labels = problem
    model[0].requires_grad_(False)
    before = model[0].weight.detach().clone()
    take_steps(model, [MuonAdamW(model, lr=0.01, weight_decay=0.1)], images, labels)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
@pytest.mark.parametrize("schedule", ["one_cycle", "linear"])
def test_make_schedule_moves_the_rate_of_every_group(problem, optimizer, schedule):
    model, images, labels = problem
    config = TrainConfig(optimizer=optimizer, schedule=schedule, max_lr=0.01)
    made = make_optimizer(model, config)
    scheduler = make_schedule(made, config, 10)
    rates = []
    for _ in range(10):
        rates.append({group["lr"] for group in made.param_groups})
        take_steps(model, [made], images, labels, count=1)
        scheduler.step()
    assert all(len(rate) == 1 for rate in rates)
    rates = [rate.pop() for rate in rates]
    assert max(rates) == pytest.approx(0.01, rel=0.05)
    assert rates[0] < 0.5 * max(rates) > rates[-1]
    if schedule == "linear":
        assert rates == pytest.approx([0.01 * linear_schedule(step, 10, 0.2) for step in range(10)])


@pytest.mark.parametrize("shape", [(4, 40), (40, 4), (16, 16), (1, 9)])
def test_orthogonalised_keeps_singular_vectors_and_brings_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    s = torch.linalg.svdvals(orthogonalised(matrix))
    theirs = torch.linalg.svd(matrix, full_matrices=False)
    if shape != (16, 16):  # whose smallest values five steps do not bring all the way
        assert 0.5 < s.min() <= s.max() < 1.5
    assert s.max() < 1.5
    back = theirs[0].T @ orthogonalised(matrix) @ theirs[2].T
    torch.testing.assert_close(back, back.diagonal().diag_embed(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 12), (64, 576), (576, 64), (40, 1000)])
def test_orthogonalised_of_a_wide_matrix_equals_the_plain_steps_in_double_precision(shape):
    high = min(shape)
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.linalg.qr(torch.randn(n, high, generator=generator, dtype=torch.float64))[0] for n in shape)
    matrix = left * torch.logspace(0, -5, high, dtype=torch.float64) @ right.T  # far from well conditioned
    a, b, c = optimizers.NEWTON_SCHULZ
    wanted = (matrix.T if shape[0] > shape[1] else matrix) / matrix.norm()
    for _ in range(optimizers.NEWTON_SCHULZ_STEPS):
        gram = wanted @ wanted.T
        wanted = a * wanted + (b * gram + c * gram @ gram) @ wanted
    wanted = wanted.T if shape[0] > shape[1] else wanted
    torch.testing.assert_close(orthogonalised(matrix.float()).double(), wanted, rtol=0, atol=1e-3)


def test_orthogonalised_of_zeros_is_zeros():
    assert not orthogonalised(torch.zeros(3, 5)).any()
