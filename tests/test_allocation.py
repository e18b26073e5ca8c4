"""Allocations: the asked density, and no better one on a grid."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.nn.utils import prune

from netprune.allocation import document, equal_slope, global_magnitude, uniform
from netprune.errors import InputError
from netprune.evaluation import Evaluation
from netprune.masks import apply_masks, check_sparsity, make_masks
from netprune.models import prunable_weights
from netprune.sensitivity import Sensitivity

SEEDS = range(4)
TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def sensitivity(sizes, sparsities, damage):
    """A scan with the given damage, `(L, S)`."""
    damage = np.asarray(damage, dtype=float)
    return Sensitivity(
        layers=tuple(f"layer{i}" for i in range(len(sizes))),
        sizes=tuple(sizes),
        sparsities=tuple(sparsities),
        loss=damage + 1.0,
        loss_se=np.zeros_like(damage),
        accuracy=np.zeros_like(damage),
        accuracy_se=np.zeros_like(damage),
        baseline=Evaluation(loss=1.0, loss_se=0.0, accuracy=1.0, accuracy_se=0.0, count=1),
        split="val",
        val_digest="",
        digest="",
    )


def convex(seed, sizes=(40, 100, 60)):
    """Rising slopes in every layer, on the grid 0.1 … 0.9."""
    slopes = np.sort(np.random.default_rng(seed).exponential(1.0, (len(sizes), 9)), axis=1)
    return sensitivity(sizes, TENTHS, 0.1 * slopes.cumsum(axis=1))


def ragged(seed, layers=6):
    """Noise: dips, steps and negative damage, as a scan of a small network gives."""
    rng = np.random.default_rng(seed)
    damage = rng.normal(0, 0.3, (layers, 6)).cumsum(axis=1)
    return sensitivity(rng.integers(3, 5000, layers).tolist(), TENTHS[3:], damage)


def kept(scan, allocation):
    return sum(size * (1 - allocation[layer]) for layer, size in zip(scan.layers, scan.sizes, strict=True))


def hull(x, y, at):
    """The lower convex hull of points at one place: the lowest chord over it."""
    return min(
        y[i] + (y[j] - y[i]) * (at - x[i]) / (x[j] - x[i]) if i != j else y[i]
        for i in range(len(x))
        for j in range(i, len(x))
        if x[i] - 1e-12 <= at <= x[j] + 1e-12
    )


def hull_damage(scan, allocation):
    x = (0.0, *scan.sparsities)
    return sum(hull(x, (0.0, *d), allocation[name]) for name, d in zip(scan.layers, scan.damage, strict=True))


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_slope_on_convex_curves_is_never_worse_than_any_grid_allocation(seed):
    scan = convex(seed)
    grid = np.arange(10) / 10
    damage = np.concatenate([np.zeros((3, 1)), scan.damage], axis=1)
    for choice in itertools.product(range(10), repeat=3):
        weights_kept = sum(size * (1 - grid[i]) for size, i in zip(scan.sizes, choice, strict=True))
        allocation = equal_slope(scan, weights_kept / sum(scan.sizes))
        ours = sum(np.interp(allocation[name], grid, d) for name, d in zip(scan.layers, damage, strict=True))
        assert ours <= sum(damage[layer, i] for layer, i in enumerate(choice)) + 1e-9
        assert kept(scan, allocation) == pytest.approx(weights_kept)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("density", [0.11, 0.3, 0.62, 0.95])
def test_equal_slope_on_any_curves_reaches_the_linear_programs_optimum(seed, density):
    scan = ragged(seed)
    points, layers = 7, len(scan.layers)
    damage = np.concatenate([np.zeros((layers, 1)), scan.damage], axis=1)
    pruned = np.outer(scan.sizes, (0.0, *scan.sparsities))
    one_a_layer = np.kron(np.eye(layers), np.ones(points))
    best = scipy.optimize.linprog(
        damage.ravel(),
        A_eq=np.vstack([one_a_layer, pruned.ravel()]),
        b_eq=[*np.ones(layers), (1 - density) * sum(scan.sizes)],
        method="highs",
    )
    assert hull_damage(scan, equal_slope(scan, density)) == pytest.approx(best.fun, abs=1e-7)


def test_equal_slope_stops_every_layer_at_the_same_slope():
    # damage s²·c has slope 2·s·c: at the optimum s is inverse to c / n
    grid = np.arange(1, 1000) / 1000
    scan = sensitivity((1000, 2000, 1000), grid, [grid**2, grid**2, 2 * grid**2])
    found = equal_slope(scan, 0.7)
    slopes = [2 * found["layer0"] / 1000, 2 * found["layer1"] / 2000, 4 * found["layer2"] / 1000]
    assert slopes == pytest.approx([slopes[0]] * 3, rel=0.01)


@pytest.mark.parametrize("seed", range(12))
def test_equal_slope_at_any_density_is_a_sparsity_that_keeps_it(seed):
    scan = ragged(seed) if seed % 2 else convex(seed, sizes=(54, 144, 288, 576, 1152, 2304, 128, 24))
    reachable = 1 - max(scan.sparsities)
    for density in np.random.default_rng(seed).uniform(0.01, 1, 200).tolist():
        found = equal_slope(scan, density)
        assert tuple(found) == scan.layers
        assert all(0 <= sparsity <= max(scan.sparsities) + 1e-12 for sparsity in found.values()), (density, found)
        assert kept(scan, found) / sum(scan.sizes) == pytest.approx(max(density, reachable), abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_slope_of_a_smaller_budget_prunes_no_layer_less(seed):
    scan = ragged(seed)
    found = [equal_slope(scan, density) for density in np.linspace(0.05, 1, 60)]
    for smaller, larger in itertools.pairwise(found):
        assert all(smaller[name] >= larger[name] - 1e-12 for name in scan.layers)


def test_equal_slope_ends_prune_nothing_and_the_whole_scanned_range():
    scan = ragged(0)
    assert set(equal_slope(scan, 1.0).values()) == {0.0}
    assert list(equal_slope(scan, 0.001).values()) == pytest.approx([0.9] * 6)


def test_equal_slope_prunes_first_where_it_helps():
    scan = sensitivity((100, 100), (0.4, 0.8), [[0.1, 0.4], [-0.2, -0.1]])
    assert equal_slope(scan, 0.8) == pytest.approx({"layer0": 0.0, "layer1": 0.4})


def test_equal_slope_of_a_scan_from_zero_equals_the_scan_without_zero():
    scan = convex(1)
    zeros = np.zeros((3, 1))
    with_zero = sensitivity(scan.sizes, (0.0, *scan.sparsities), np.concatenate([zeros, scan.damage], axis=1))
    for density in (0.2, 0.5, 0.77):
        assert equal_slope(with_zero, density) == pytest.approx(equal_slope(scan, density))


def test_equal_slope_is_accepted_by_make_masks_and_gives_the_count(tiny_net):
    weights = prunable_weights(tiny_net)
    rng = np.random.default_rng(0)
    shape = (len(weights), 9)
    scan = sensitivity([w.numel() for w in weights.values()], TENTHS, rng.normal(0.1, 1, shape))
    total = sum(scan.sizes)
    for density in rng.uniform(0.1, 1, 100).tolist():
        found = dict(zip(weights, equal_slope(scan, density).values(), strict=True))
        masks = make_masks(tiny_net, found)
        assert abs(sum(int(mask.sum()) for mask in masks.values()) - density * total) <= len(weights) / 2


@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 0.937, 1.0])
def test_global_magnitude_equals_one_threshold_over_all_layers(tiny_net, density):
    weights = prunable_weights(tiny_net)
    total = sum(w.numel() for w in weights.values())
    allocation = global_magnitude(tiny_net, density)
    masks = make_masks(tiny_net, allocation)
    cut = sorted(value for w in weights.values() for value in w.detach().abs().flatten().tolist())
    count = round((1 - density) * total)
    threshold = cut[count - 1] if count else -1.0
    for name, weight in weights.items():
        expected = weight.detach().abs() > threshold
        if expected.any():
            assert torch.equal(masks[name], expected), name
        else:
            assert masks[name].sum() == 1, name


def test_global_magnitude_equals_torchs_global_pruning(tiny_net):
    allocation = global_magnitude(tiny_net, 0.3)
    ours = make_masks(tiny_net, allocation)
    modules = {name: tiny_net.get_submodule(name.removesuffix(".weight")) for name in allocation}
    total = sum(module.weight.numel() for module in modules.values())
    prune.global_unstructured(
        [(module, "weight") for module in modules.values()], prune.L1Unstructured, amount=round(0.7 * total)
    )
    for name, module in modules.items():
        assert torch.equal(ours[name], module.weight_mask.bool()), name


def test_global_magnitude_keeps_one_weight_of_a_layer_that_would_be_emptied(tiny_net):
    with torch.no_grad():
        tiny_net.conv1[0].weight.mul_(1e-6)
    allocation = global_magnitude(tiny_net, 0.2)
    apply_masks(tiny_net, make_masks(tiny_net, allocation))
    assert int((tiny_net.conv1[0].weight != 0).sum()) == 1


def test_global_magnitude_with_every_weight_tied_prunes_the_exact_count(tiny_net):
    for weight in prunable_weights(tiny_net).values():
        with torch.no_grad():
            weight.fill_(0.5)
    sizes = {name: w.numel() for name, w in prunable_weights(tiny_net).items()}
    allocation = global_magnitude(tiny_net, 0.75)
    pruned = sum(round(allocation[name] * size) for name, size in sizes.items())
    emptied = sum(allocation[name] == 1 - 1 / size for name, size in sizes.items())
    assert pruned + emptied == round(0.25 * sum(sizes.values()))


@pytest.mark.parametrize("density", [1.0, 0.25, 0.002])
def test_uniform_gives_every_layer_the_same_sparsity(tiny_net, density):
    layers = list(prunable_weights(tiny_net))
    allocation = uniform(layers, density)
    assert allocation == dict.fromkeys(layers, 1 - density)
    check_sparsity(allocation, tiny_net)


def test_document_gives_the_first_layer_less_than_the_rest(tiny_net):
    layers = list(prunable_weights(tiny_net))
    assert document(layers) == {"conv1.0.weight": 0.6, **dict.fromkeys(layers[1:], 0.9)}


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, math.nan, math.inf])
def test_allocation_density_out_of_range_is_refused(tiny_net, density):
    for allocate in (
        lambda: uniform(["a"], density),
        lambda: global_magnitude(tiny_net, density),
        lambda: equal_slope(convex(0), density),
    ):
        with pytest.raises(InputError, match=f"density is {density}"):
            allocate()
