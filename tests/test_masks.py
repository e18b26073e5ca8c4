"""Masks: as many pruned as were asked for, ties and ends included."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from netprune.errors import InputError
from netprune.masks import (
    apply_masks,
    check_sparsity,
    keep_mask,
    make_masks,
    measured_sparsity,
    prune_order,
    pruned_count,
)
from netprune.saliency import SALIENCIES, taylor
from netprune.weights import prunable_weights, weights_digest


def pruned(mask):
    return int((~mask).sum())


def test_keep_mask_asked_for_20_of_100_with_21_tied_prunes_20():
    scores = torch.cat([torch.full((21,), 0.5), torch.arange(1.0, 80.0)])
    mask = keep_mask(scores, 0.2)
    assert pruned(mask) == 20
    assert mask[20:].all()


def test_keep_mask_asked_for_10_of_30_tied_zeros_prunes_10():
    assert keep_mask(torch.zeros(30), 10 / 30).tolist() == [False] * 10 + [True] * 20


def test_keep_mask_ties_go_by_index_first_first():
    scores = torch.tensor([3.0, 1.0, 2.0, 1.0, 0.0, 1.0])
    assert keep_mask(scores, 0.5).tolist() == [True, False, True, False, False, True]


@pytest.mark.parametrize(("sparsity", "expected"), [(0.0, 0), (1.0, 60), (0.5, 30), (0.999, 60), (0.001, 0)])
def test_keep_mask_ends_prune_nothing_and_everything(sparsity, expected):
    mask = keep_mask(torch.randn(3, 4, 5), sparsity)
    assert mask.shape == (3, 4, 5)
    assert mask.dtype == torch.bool
    assert pruned(mask) == expected


@pytest.mark.parametrize("seed", range(5))
def test_keep_mask_equals_a_stable_sort_in_numpy(seed):
    rng = np.random.default_rng(seed)
    # few distinct values, so that nearly every cut falls into a tie
    scores = rng.integers(0, 4, (7, 11)).astype(np.float32)
    for sparsity in rng.random(20):
        expected = np.ones(scores.size, dtype=bool)
        expected[np.argsort(scores.ravel(), kind="stable")[: round(sparsity * scores.size)]] = False
        assert np.array_equal(keep_mask(torch.from_numpy(scores), sparsity), expected.reshape(scores.shape))


def test_keep_mask_of_a_large_tensor_is_stable_too():
    scores = torch.zeros(100_000)
    mask = keep_mask(scores, 0.3)
    assert not mask[:30_000].any()
    assert mask[30_000:].all()


@pytest.mark.parametrize("shape", [(1,), (13,), (5, 7), (3, 2, 4, 4)])
def test_prune_order_inverts_a_stable_sort_in_numpy(shape):
    scores = np.random.default_rng(0).integers(0, 5, shape).astype(np.float32)
    order = prune_order(torch.from_numpy(scores))
    assert order.dtype == torch.int64
    assert order.shape == shape
    expected = np.empty(scores.size, dtype=np.int64)
    expected[np.argsort(scores.ravel(), kind="stable")] = np.arange(scores.size)
    assert np.array_equal(order.numpy().ravel(), expected)


def test_prune_order_of_any_memory_format_is_the_same():
    scores = torch.randint(0, 9, (6, 5, 3, 3), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(prune_order(scores.to(memory_format=torch.channels_last)), prune_order(scores))


def test_prune_order_and_pruned_count_make_the_mask_of_every_sparsity():
    scores = torch.randint(0, 6, (31,), generator=torch.Generator().manual_seed(1))
    order = prune_order(scores)
    for sparsity in np.linspace(0, 1, 77).tolist():
        assert torch.equal(keep_mask(scores, sparsity), order >= pruned_count(31, sparsity))


@pytest.mark.parametrize("size", [1, 2, 3, 24, 54, 1000, 147_456])
def test_pruned_count_is_the_nearest_whole_number_and_never_falls(size):
    sparsities = np.linspace(0, 1, 2001).tolist()
    counts = [pruned_count(size, sparsity) for sparsity in sparsities]
    assert all(abs(count - sparsity * size) <= 0.5 for count, sparsity in zip(counts, sparsities, strict=True))
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, size)
    assert [pruned_count(size, 1 - kept / size) for kept in range(min(size, 2000))] == [
        size - kept for kept in range(min(size, 2000))
    ]


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.9, 0.99, 1.0])
def test_make_masks_equal_torchs_magnitude_pruning(tiny_net, sparsity):
    weights = prunable_weights(tiny_net)
    masks = make_masks(tiny_net, dict.fromkeys(weights, sparsity))
    assert masks.keys() == weights.keys()
    for name, weight in weights.items():
        layer = nn.Linear(1, 1)
        layer.weight = nn.Parameter(weight.detach().clone())
        prune.l1_unstructured(layer, "weight", amount=round(sparsity * weight.numel()))
        assert torch.equal(masks[name], layer.weight_mask.bool()), name


def test_make_masks_leaves_the_network_as_it_is(tiny_net):
    before = weights_digest(tiny_net)
    masks = make_masks(tiny_net, {"conv2.0.weight": 0.5})
    assert list(masks) == ["conv2.0.weight"]
    assert not masks["conv2.0.weight"].requires_grad
    assert weights_digest(tiny_net) == before


def test_make_masks_takes_another_saliency(tiny_net):
    weight = tiny_net.conv1[0].weight
    mask = make_masks(tiny_net, {"conv1.0.weight": 0.25}, lambda w: -w.abs())["conv1.0.weight"]
    assert weight[~mask].abs().min() >= weight[mask].abs().max()


def test_make_masks_by_gradient_prune_what_changes_the_loss_least(tiny_net):
    generator = torch.Generator().manual_seed(0)
    weights = prunable_weights(tiny_net)
    gradients = {name: torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    masks = make_masks(tiny_net, {"conv2.0.weight": 0.3, "classifier.4.weight": 0.5}, taylor, gradients)
    assert list(masks) == ["conv2.0.weight", "classifier.4.weight"]
    for name, sparsity in (("conv2.0.weight", 0.3), ("classifier.4.weight", 0.5)):
        scores = (weights[name].detach() * gradients[name]).abs().numpy().ravel()
        expected = np.ones(scores.size, dtype=bool)
        expected[np.argsort(scores, kind="stable")[: round(sparsity * scores.size)]] = False
        assert np.array_equal(masks[name].numpy().ravel(), expected)


def test_make_masks_of_sparsity_one_empty_the_layer_alone(tiny_net):
    apply_masks(tiny_net, make_masks(tiny_net, {"conv1.0.weight": 1.0, "conv2.0.weight": 1}))
    measured = measured_sparsity(tiny_net)
    assert [name for name, value in measured.items() if value] == ["conv1.0.weight", "conv2.0.weight"]
    assert measured["conv1.0.weight"] == measured["conv2.0.weight"] == 1.0


def test_make_masks_unknown_layer_is_named_with_the_choices(tiny_net):
    with pytest.raises(InputError, match=r"conv9\.0\.weight.*conv1\.0\.weight"):
        make_masks(tiny_net, {"conv9.0.weight": 0.5})


@pytest.mark.parametrize("name", ["conv1.0.bias", "conv1.1.weight", "conv1.0"])
def test_make_masks_of_what_is_not_prunable_is_refused(tiny_net, name):
    with pytest.raises(InputError, match=name):
        make_masks(tiny_net, {name: 0.5})


@pytest.mark.parametrize("value", [1.0000001, 1.5, -0.1, float("nan"), float("inf")])
def test_make_masks_sparsity_out_of_range_is_named(tiny_net, value):
    with pytest.raises(InputError, match=rf"res1\.0\.0\.weight is {value}"):
        make_masks(tiny_net, {"conv1.0.weight": 0.5, "res1.0.0.weight": value})


def test_check_sparsity_accepts_the_whole_range_and_no_more(tiny_net):
    for value in (0, 0.0, 0.5, 0.999999, 1, 1.0):
        check_sparsity({"conv1.0.weight": value}, tiny_net)
    for value in (-1e-9, 1 + 1e-9):
        with pytest.raises(InputError, match="at least 0 and at most 1"):
            check_sparsity({"conv1.0.weight": value}, tiny_net)


def test_apply_masks_sets_positive_zeros_and_touches_nothing_else(tiny_net):
    weight = tiny_net.conv1[0].weight
    with torch.no_grad():
        weight.view(-1)[:3] = torch.tensor([-1.0, float("nan"), float("-inf")])
        weight.view(-1)[4] = -0.0
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask.view(-1)[:4] = False
    expected = tiny_net.state_dict()["conv1.0.weight"].clone().view(-1)
    expected[:4] = 0.0
    others = {n: t.clone() for n, t in tiny_net.state_dict().items() if n != "conv1.0.weight"}
    apply_masks(tiny_net, {"conv1.0.weight": mask})
    assert torch.equal(weight.detach().view(-1).view(torch.int32), expected.view(torch.int32))
    assert all(torch.equal(tiny_net.state_dict()[name], tensor) for name, tensor in others.items())


def test_apply_masks_of_nothing_changes_nothing(tiny_net):
    before = weights_digest(tiny_net)
    apply_masks(tiny_net, {})
    apply_masks(tiny_net, make_masks(tiny_net, dict.fromkeys(prunable_weights(tiny_net), 0.0)))
    assert weights_digest(tiny_net) == before


def test_measured_sparsity_is_what_was_asked_within_rounding(tiny_net):
    asked = {name: 0.05 + 0.09 * i for i, name in enumerate(prunable_weights(tiny_net))}
    apply_masks(tiny_net, make_masks(tiny_net, asked))
    measured = measured_sparsity(tiny_net)
    for name, weight in prunable_weights(tiny_net).items():
        count = round(asked[name] * weight.numel())
        assert int((weight.detach().numpy() == 0).sum()) == count
        assert measured[name] == pytest.approx(count / weight.numel(), abs=1e-12)


def test_make_masks_of_a_pruned_network_prunes_its_zeros_first_and_brings_back_the_largest_of_the_dense(tiny_net):
    name, dense = "conv4.0.weight", copy.deepcopy(tiny_net)
    apply_masks(tiny_net, make_masks(tiny_net, {name: 0.9}))
    with torch.no_grad():  # what is left has become smaller than all that went
        prunable_weights(tiny_net)[name].mul_(1e-6)
    had = prunable_weights(tiny_net)[name] != 0
    fewer = make_masks(tiny_net, {name: 0.95}, dense=dense)[name]
    assert (fewer & ~had).sum() == 0
    more = make_masks(tiny_net, {name: 0.8}, dense=dense)[name]
    assert (had & ~more).sum() == 0
    back = prunable_weights(dense)[name].abs().masked_fill(had, 0.0)
    least = torch.topk(back.flatten(), int((more & ~had).sum())).values[-1]
    assert torch.equal(more & ~had, back >= least)


@pytest.mark.parametrize("name", SALIENCIES)
@pytest.mark.parametrize("asked", [0.3, 0.6, 0.9])
def test_make_masks_of_a_pruned_network_by_any_criterion_prunes_its_zeros_first(tiny_net, name, asked):
    weights, generator = prunable_weights(tiny_net), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weights.values():
            weight.masked_fill_(torch.rand(weight.shape, generator=generator) < 0.5, 0.0)
    zeros = {layer: int((weight == 0).sum()) for layer, weight in weights.items()}
    gradients = {layer: (weight > 0).float() for layer, weight in weights.items()}  # taylor: half of the rest scores 0
    apply_masks(tiny_net, make_masks(tiny_net, dict.fromkeys(weights, asked), SALIENCIES[name], gradients))
    for layer, weight in weights.items():
        assert int((weight == 0).sum()) == max(zeros[layer], pruned_count(weight.numel(), asked))


def test_make_masks_of_a_pruned_network_whose_dense_layer_was_empty_is_exact(tiny_net):
    name = "conv4.0.weight"
    apply_masks(tiny_net, {name: torch.zeros_like(prunable_weights(tiny_net)[name], dtype=torch.bool)})
    mask = make_masks(tiny_net, {name: 0.25}, dense=copy.deepcopy(tiny_net))[name]
    assert pruned(mask) == pruned_count(mask.numel(), 0.25)
