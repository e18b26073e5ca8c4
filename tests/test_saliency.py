"""Saliency: each criterion against its formula written plainly, and what the rest of the library may expect of it."""

import itertools
from decimal import Decimal, localcontext

import numpy as np
import pytest
import scipy.stats
import torch

from netprune.errors import InputError
from netprune.masks import make_masks, prune_order
from netprune.saliency import (
    SALIENCIES,
    find_saliency,
    lamp,
    magnitude,
    needs_gradient,
    norm_loss,
    random,
    score,
    taylor,
)
from netprune.weights import prunable_weights

SHAPES = [(1,), (7,), (5, 9), (4, 3, 3, 3)]
BY_MAGNITUDE = [magnitude, lamp, norm_loss]


def noise(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tied(shape, seed=0):
    """Few distinct values, signs and zeros among them."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def weights_of(kind, shape, seed=0):
    return {"noise": noise, "tied": tied}[kind](shape, seed)


def energies(weight):
    """For each weight, by comparing it with every other: the exact sum of the squares not below its own.

    Of two equal weights the one that stands first goes first, so the other's square is still there.
    """
    squares = [(Decimal(value) ** 2, i) for i, value in enumerate(weight.flatten().tolist())]
    return squares, [sum(other[0] for other in squares if other >= own) for own in squares]


def naive_lamp(weight):
    squares, energy = energies(weight)
    return [float(own / total) if total else 0.0 for (own, _), total in zip(squares, energy, strict=True)]


def naive_norm_loss(weight):
    squares, energy = energies(weight)
    return [float(total.sqrt() - (total - own).sqrt()) for (own, _), total in zip(squares, energy, strict=True)]


NAIVE = {lamp: naive_lamp, norm_loss: naive_norm_loss}


@pytest.mark.parametrize("criterion", NAIVE, ids=["lamp", "norm_loss"])
@pytest.mark.parametrize("kind", ["noise", "tied"])
@pytest.mark.parametrize("shape", SHAPES)
def test_criterion_equals_its_formula_in_exact_arithmetic(criterion, kind, shape):
    weight = weights_of(kind, shape)
    with localcontext() as context:
        context.prec = 80
        expected = NAIVE[criterion](weight)
    found = criterion(weight)
    assert found.shape == weight.shape
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("criterion", NAIVE, ids=["lamp", "norm_loss"])
def test_criterion_of_tiny_weights_beside_huge_ones_keeps_its_digits(criterion):
    weight = torch.tensor([1e-9, -3e4, 2e-9, 1e-3, 1.0, 3e4])
    with localcontext() as context:
        context.prec = 80
        expected = NAIVE[criterion](weight)
    assert all(value > 0 for value in expected)
    assert criterion(weight).tolist() == pytest.approx(expected, rel=1e-9, abs=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_magnitude_is_the_absolute_value(shape):
    weight = noise(shape)
    assert np.array_equal(magnitude(weight).numpy(), np.abs(weight.numpy()))


@pytest.mark.parametrize("criterion", BY_MAGNITUDE)
@pytest.mark.parametrize("kind", ["noise", "tied"])
@pytest.mark.parametrize("shape", SHAPES)
def test_criterion_within_a_layer_orders_as_magnitude_does(criterion, kind, shape):
    weight = weights_of(kind, shape, seed=1)
    assert torch.equal(prune_order(criterion(weight)), prune_order(weight.abs()))


@pytest.mark.parametrize("criterion", [*BY_MAGNITUDE, random])
def test_criterion_of_a_zero_tensor_has_no_nan(criterion):
    scores = criterion(torch.zeros(3, 4))
    assert scores.shape == (3, 4)
    assert not scores.isnan().any()
    if criterion is not random:
        assert not scores.any()


@pytest.mark.parametrize("criterion", [lamp, norm_loss])
def test_criterion_of_a_pruned_tensor_is_that_of_the_kept_weights_alone(criterion):
    kept = noise((20,))
    scores = criterion(torch.cat([torch.zeros(30), kept]))
    assert not scores[:30].any()
    assert torch.allclose(scores[30:], criterion(kept), rtol=1e-12, atol=0)


def test_lamp_of_a_global_threshold_keeps_each_layers_largest_weight():
    layers = [noise(shape, seed) * 10.0 ** (3 * seed - 6) for seed, shape in enumerate(SHAPES)]
    scores = [lamp(layer).flatten() for layer in layers]
    best = torch.cat(scores).argsort(descending=True)[: len(layers)]
    starts = [0, *itertools.accumulate(layer.numel() for layer in layers)]
    expected = {start + int(layer.abs().argmax()) for start, layer in zip(starts, layers, strict=False)}
    assert set(best.tolist()) == expected
    assert [score.max().item() for score in scores] == [1.0] * 4


def test_norm_loss_summed_from_the_smallest_is_the_norm_that_went():
    weight = noise((50,)).double()
    gone = prune_order(weight.abs()) < 30
    expected = weight.norm() - weight[~gone].norm()
    assert norm_loss(weight)[gone].sum().item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_taylor_is_the_weight_times_the_gradient(shape):
    weight, gradient = noise(shape), noise(shape, seed=1)
    assert np.array_equal(taylor(weight, gradient).numpy(), np.abs(weight.numpy() * gradient.numpy()))


def test_random_is_the_same_for_the_same_weights_whatever_drew_before():
    weight = noise((6, 4, 3, 3))
    first = random(weight)
    torch.manual_seed(123)
    torch.rand(5)
    assert torch.equal(random(weight.clone()), first)
    assert torch.equal(random(weight.to(memory_format=torch.channels_last)), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_random_of_another_number_format_is_the_same_for_the_same_weights(dtype):
    weight = noise((8, 4, 3, 3)).to(dtype)
    assert torch.equal(random(weight), random(weight.clone()))
    assert random(weight).shape == weight.shape


def test_random_leaves_torchs_generator_alone():
    state = torch.get_rng_state()
    random(noise((8, 8)))
    assert torch.equal(torch.get_rng_state(), state)


def test_random_of_other_weights_is_another_order():
    one, other = noise((40, 25)), noise((40, 25), seed=1)
    nearly = one.clone()
    nearly[0, 0] += 1
    for different in (other, nearly):
        found = scipy.stats.spearmanr(random(one).flatten(), random(different).flatten()).statistic
        assert abs(found) < 0.15


def test_random_has_nothing_to_do_with_magnitude():
    weight = noise((100, 100))
    scores = random(weight)
    assert abs(scipy.stats.spearmanr(scores.flatten(), weight.abs().flatten()).statistic) < 0.05
    assert scipy.stats.kstest(scores.flatten().numpy(), "uniform").pvalue > 0.001


@pytest.mark.parametrize("name", SALIENCIES)
def test_criterion_neither_changes_nor_follows_the_weight(name):
    weight = noise((5, 4)).requires_grad_()
    before = weight.detach().clone()
    scores = score(SALIENCIES[name], {"a": weight}, {"a": noise((5, 4), seed=1)})["a"]
    scores.mul_(7)
    assert not scores.requires_grad
    assert torch.equal(weight.detach(), before)


@pytest.mark.parametrize("name", SALIENCIES)
def test_criterion_does_not_depend_on_the_memory_format(name):
    weight, gradient = noise((6, 4, 3, 3)), noise((6, 4, 3, 3), seed=1)
    plain, other = (
        score(SALIENCIES[name], {"a": w}, {"a": gradient})["a"]
        for w in (weight, weight.to(memory_format=torch.channels_last))
    )
    assert torch.equal(plain, other)
    assert torch.equal(prune_order(plain), prune_order(other))


def test_needs_gradient_of_taylor_alone():
    assert {name for name, criterion in SALIENCIES.items() if needs_gradient(criterion)} == {"taylor"}
    assert needs_gradient(lambda weight, gradient: weight + gradient)
    assert not needs_gradient(lambda weight: weight)


def test_score_scores_each_weight_by_its_own_gradient():
    weights = {"a": noise((3,)), "b": noise((2, 2), seed=1)}
    gradients = {"a": noise((3,), seed=2), "b": noise((2, 2), seed=3), "c": noise((1,))}
    found = score(taylor, weights, gradients)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], (weights[name] * gradients[name]).abs()) for name in weights)
    assert torch.equal(score(magnitude, weights)["b"], weights["b"].abs())


def test_score_without_the_gradients_it_needs_is_refused(tiny_net):
    with pytest.raises(InputError, match="needs gradients"):
        score(taylor, {"a": noise((3,))})
    with pytest.raises(InputError, match="needs gradients"):
        make_masks(tiny_net, {"conv1.0.weight": 0.5}, taylor)


@pytest.mark.parametrize("name", SALIENCIES)
def test_find_saliency_gives_the_function_of_that_name(name):
    assert find_saliency(name) is SALIENCIES[name]
    assert find_saliency(name).__name__ == name


def test_find_saliency_unknown_name_is_refused_with_the_choices():
    with pytest.raises(InputError, match=r"'l2'.*magnitude, lamp, norm_loss, taylor, random"):
        find_saliency("l2")


def test_new_criterion_takes_one_function(tiny_net):
    weight = prunable_weights(tiny_net)["conv2.0.weight"]
    mask = make_masks(tiny_net, {"conv2.0.weight": 0.25}, lambda w: -w.abs())["conv2.0.weight"]
    assert int((~mask).sum()) == round(0.25 * weight.numel())
    assert weight[~mask].abs().min() >= weight[mask].abs().max()
