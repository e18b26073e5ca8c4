"""Masks: as many pruned as were asked for, ties and ends included."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from netprune.errors import InputError
from netprune.masks import apply_masks, check_sparsity, keep_mask, make_masks, measured_sparsity
from netprune.models import prunable_weights, weights_digest


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


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.9, 0.99])
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


def test_make_masks_unknown_layer_is_named_with_the_choices(tiny_net):
    with pytest.raises(InputError, match=r"conv9\.0\.weight.*conv1\.0\.weight"):
        make_masks(tiny_net, {"conv9.0.weight": 0.5})


@pytest.mark.parametrize("name", ["conv1.0.bias", "conv1.1.weight", "conv1.0"])
def test_make_masks_of_what_is_not_prunable_is_refused(tiny_net, name):
    with pytest.raises(InputError, match=name):
        make_masks(tiny_net, {name: 0.5})


@pytest.mark.parametrize("value", [1.0, 1.5, -0.1, float("nan"), float("inf")])
def test_make_masks_sparsity_out_of_range_is_named(tiny_net, value):
    with pytest.raises(InputError, match=rf"res1\.0\.0\.weight is {value}"):
        make_masks(tiny_net, {"conv1.0.weight": 0.5, "res1.0.0.weight": value})


def test_check_sparsity_accepts_the_whole_range(tiny_net):
    for value in (0, 0.0, 0.5, 0.999999):
        check_sparsity({"conv1.0.weight": value}, tiny_net)
    with pytest.raises(InputError):
        check_sparsity({"conv1.0.weight": 1}, tiny_net)


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
