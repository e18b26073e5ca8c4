"""Allocations: the asked budget, and nothing better by brute force, a linear programme or torch's own pruning."""

import copy
import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn
from torch.nn.utils import prune

from netprune.allocation import ALLOCATORS, BY_DAMAGE, Basis, find_allocator
from netprune.curves import fit_all
from netprune.errors import InputError
from netprune.evaluation import Evaluation
from netprune.knapsack import BINS
from netprune.masks import apply_masks, make_masks
from netprune.models import Architecture, build_model
from netprune.rules import (
    document,
    equal_drop,
    equal_slope,
    erk,
    global_magnitude,
    global_saliency,
    kept_norm,
    knapsack,
    lamp_threshold,
    shapes_of,
    uniform,
)
from netprune.saliency import taylor
from netprune.sensitivity import LayerCurve, Sensitivity
from netprune.weights import prunable_weights

SEEDS = range(4)
TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DECADES = (0.684, 0.9, 0.968, 0.99, 0.997, 0.999, 1.0)
TINY = Architecture(name="net10", num_classes=3, width=2)
BAD_DENSITIES = [0.0, -0.1, 1.1, math.nan, math.inf]


def curve(layer, size, sparsities, damage, start=0.0):
    """One layer of a scan with the given damage and one error for all points."""
    damage = np.asarray(damage, dtype=float)
    return LayerCurve(
        layer=layer,
        size=int(size),
        start=start,
        sparsities=np.asarray(sparsities, dtype=float),
        loss=damage + 1,
        damage=damage,
        damage_se=np.full(len(damage), 0.01),
        accuracy=np.zeros_like(damage),
        accuracy_se=np.zeros_like(damage),
        count=np.full(len(damage), 100),
        changed=np.ones(len(damage), dtype=bool),
    )


def scan_of(*curves):
    return Sensitivity(
        curves=curves,
        baseline=Evaluation(loss=1.0, loss_se=0.0, accuracy=1.0, accuracy_se=0.0, count=1),
        split="val",
        val_digest="",
        digest="",
        max_se=0.0,
        missed=0,
        compute="",
        whole_passes="",
    )


def rectangular(sizes, sparsities, damage, start=0.0):
    """A scan of the same sparsities in every layer; `damage` is `(L, S)`."""
    return scan_of(*(curve(f"layer{i}", n, sparsities, damage[i], start) for i, n in enumerate(sizes)))


def convex(seed, sizes=(40, 100, 60)):
    """Rising slopes in every layer, on the grid 0.1 … 0.9."""
    slopes = np.sort(np.random.default_rng(seed).exponential(1.0, (len(sizes), 9)), axis=1)
    return rectangular(sizes, TENTHS, 0.1 * slopes.cumsum(axis=1))


def rising(seed, sizes, sparsities=DECADES, start=0.0):
    """Damage that always rises, by steps of any height."""
    rng = np.random.default_rng(seed)
    return rectangular(sizes, sparsities, rng.exponential(0.3, (len(sizes), len(sparsities))).cumsum(axis=1), start)


def ragged(seed, layers=6, points=6):
    """Noise: dips, steps and negative damage, each layer at places of its own, as a scan of a small network gives."""
    rng = np.random.default_rng(seed)
    return scan_of(
        *(
            curve(
                f"layer{i}",
                rng.integers(3, 5000),
                [*np.sort(rng.choice(np.arange(5, 90), points - 1, replace=False)) / 100, 0.9],
                rng.normal(0, 0.3, points).cumsum(),
            )
            for i in range(layers)
        )
    )


def total(scan):
    return sum(scan.sizes.values())


def kept(scan, allocation):
    return sum(size * (1 - allocation[layer]) for layer, size in scan.sizes.items())


def damage_of(scan, allocation):
    return sum(fitted(allocation[layer]) for layer, fitted in fit_all(scan).items())


def lowest_chord(x, y, at):
    """The lower convex hull of points at one place: the lowest chord over it."""
    return min(
        y[i] + (y[j] - y[i]) * (at - x[i]) / (x[j] - x[i]) if i != j else y[i]
        for i in range(len(x))
        for j in range(i, len(x))
        if x[i] - 1e-12 <= at <= x[j] + 1e-12
    )


def hull_damage(scan, allocation):
    return sum(lowest_chord(d.sparsities, d.values, allocation[name]) for name, d in fit_all(scan).items())


def linear_program(scan, density):
    """The least summed damage of any mixture of each layer's points that keeps that many weights."""
    fitted = list(fit_all(scan).values())
    one_a_layer = scipy.linalg.block_diag(*(np.ones((1, len(d.values))) for d in fitted))
    pruned = np.concatenate([d.size * d.sparsities for d in fitted])
    found = scipy.optimize.linprog(
        np.concatenate([d.values for d in fitted]),
        A_eq=np.vstack([one_a_layer, pruned]),
        b_eq=[*np.ones(len(fitted)), (1 - density) * total(scan)],
        method="highs",
    )
    return found.fun


def linears(*shapes, seed=0, scales=None):
    """A network that is only looked at: linear layers of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.ModuleList([nn.Linear(shape[1], shape[0], bias=False) for shape in shapes])
    with torch.no_grad():
        for layer, scale in zip(model, scales or [1.0] * len(shapes), strict=True):
            layer.weight.copy_(scale * torch.randn(layer.weight.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def wide():
    """A network of 420,000 weights and a scan of it, made up: what every rule can start from."""
    model = build_model(Architecture(name="net10", num_classes=10, width=16), seed=0)
    return basis_of(model, rising(0, [w.numel() for w in prunable_weights(model).values()]))


def basis_of(model, scan):
    """The scan's numbers under the model's names."""
    named = zip(prunable_weights(model).items(), scan.curves, strict=True)
    curves = [curve(name, w.numel(), c.sparsities, c.damage, c.start) for (name, w), c in named]
    return Basis(model=model, sensitivity=scan_of(*curves))


# every rule


@pytest.mark.parametrize("density", [1.0, 0.61, 0.2, 0.05, 0.02])
@pytest.mark.parametrize("rule", ALLOCATORS)
def test_allocator_meets_its_budget_to_half_a_weight_a_layer(wide, rule, density):
    found = find_allocator(rule)(wide, density)
    weights = prunable_weights(wide.model)
    assert list(found) == list(weights)
    assert all(0 <= sparsity <= 1 for sparsity in found.values())
    masks = make_masks(wide.model, found)
    remaining = sum(int(mask.sum()) for mask in masks.values())
    budget = density * sum(w.numel() for w in weights.values())
    assert abs(remaining - budget) <= len(weights) / 2
    assert remaining == pytest.approx(budget, rel=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rule", ALLOCATORS)
def test_allocator_on_a_tiny_network_and_a_noisy_scan_meets_its_budget(tiny_net, rule, seed):
    basis = basis_of(tiny_net, ragged(seed, layers=10))
    size = sum(w.numel() for w in prunable_weights(tiny_net).values())
    for density in np.random.default_rng(seed).uniform(0.1, 1, 12).tolist():
        found = find_allocator(rule)(basis, density)
        remaining = sum(int(mask.sum()) for mask in make_masks(tiny_net, found).values())
        assert abs(remaining - density * size) <= 5, density


@pytest.mark.parametrize("rule", sorted(set(ALLOCATORS) - {"knapsack"}))
def test_allocator_with_a_smaller_budget_prunes_no_layer_less(tiny_net, rule):
    for scan, least in ((rising(2, [1] * 10), 0.01), (ragged(1, layers=10), 0.1)):
        basis = basis_of(tiny_net, scan)
        found = [find_allocator(rule)(basis, density) for density in np.geomspace(1, least, 15).tolist()]
        for larger, smaller in itertools.pairwise(found):
            assert all(smaller[name] >= larger[name] - 1e-9 for name in larger)


@pytest.mark.parametrize("rule", ALLOCATORS)
@pytest.mark.parametrize("density", BAD_DENSITIES)
def test_allocator_of_a_density_out_of_range_is_refused(tiny_net, rule, density):
    with pytest.raises(InputError, match=f"density is {density}; it must be above 0 and at most 1"):
        find_allocator(rule)(basis_of(tiny_net, rising(0, [1] * 10)), density)


@pytest.mark.parametrize("rule", ALLOCATORS)
def test_allocator_leaves_the_network_as_it_is(tiny_net, rule):
    before = {name: w.detach().clone() for name, w in prunable_weights(tiny_net).items()}
    find_allocator(rule)(basis_of(tiny_net, rising(0, [1] * 10)), 0.3)
    assert all(torch.equal(w.detach(), before[name]) for name, w in prunable_weights(tiny_net).items())
    assert all(p.requires_grad for p in tiny_net.parameters())


def test_find_allocator_unknown_name_is_refused_with_the_choices():
    with pytest.raises(InputError, match=r"'best'.*uniform, document, global_magnitude, erk, .*knapsack"):
        find_allocator("best")


@pytest.mark.parametrize("rule", BY_DAMAGE)
def test_allocator_by_damage_without_a_scan_is_refused(tiny_net, rule):
    with pytest.raises(InputError, match=f"{rule} goes by damage"):
        find_allocator(rule)(Basis(model=tiny_net), 0.5)


@pytest.mark.parametrize("rule", sorted(set(ALLOCATORS) - set(BY_DAMAGE)))
def test_allocator_not_by_damage_needs_no_scan(tiny_net, rule):
    assert find_allocator(rule)(Basis(model=tiny_net), 0.5).keys() == prunable_weights(tiny_net).keys()


# by shape


@pytest.mark.parametrize("density", [1.0, 0.25, 0.002])
def test_uniform_gives_every_layer_the_same_sparsity(tiny_net, density):
    shapes = shapes_of(tiny_net)
    assert uniform(shapes, density) == dict.fromkeys(prunable_weights(tiny_net), 1 - density)


def test_document_without_a_budget_has_the_documents_numbers(tiny_net):
    first, *others = prunable_weights(tiny_net)
    assert document(shapes_of(tiny_net)) == {first: 0.6, **dict.fromkeys(others, 0.9)}


@pytest.mark.parametrize(
    ("rule", "shapes", "density", "expected"),
    [
        # 4 x · 100 + x · 900 = 100
        (document, {"a": (100, 1), "b": (900, 1)}, 0.1, {"a": 1 - 4 / 13, "b": 1 - 1 / 13}),
        # the first is whole from x = ¼ on: 100 + x · 900 = 500
        (document, {"a": (100, 1), "b": (900, 1)}, 0.5, {"a": 0.0, "b": 1 - 4 / 9}),
        # densities 4/4 · x and 20/100 · x of 4 and 100 weights
        (erk, {"a": (2, 2), "b": (10, 10)}, 0.2, {"a": 1 - 20.8 / 24, "b": 1 - 0.2 * 20.8 / 24}),
        # the first would pass 1: it is whole, and the second keeps 48 of 100
        (erk, {"a": (2, 2), "b": (10, 10)}, 0.5, {"a": 0.0, "b": 0.52}),
        # a kernel counts with its sides: (4 + 2 + 3 + 3) / 72
        (erk, {"a": (4, 2, 3, 3), "b": (6, 12)}, 0.1, {"a": 1 - 12 / 150, "b": 1 - 18 / 150}),
        (erk, {"a": (5, 5)}, 0.3, {"a": 0.7}),
        (erk, {"a": (2, 2), "b": (10, 10)}, 1.0, {"a": 0.0, "b": 0.0}),
    ],
)
def test_rule_by_shape_gives_the_figures_worked_by_hand(rule, shapes, density, expected):
    found = rule({name: torch.Size(shape) for name, shape in shapes.items()}, density)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("density", [0.01, 0.1, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize(
    ("rule", "ratio"),
    [
        (document, lambda shape, first: 4.0 if shape == first else 1.0),
        (erk, lambda shape, _: sum(shape) / math.prod(shape)),
    ],
)
def test_rule_by_shape_equals_a_level_found_by_bisection(tiny_net, rule, ratio, density):
    shapes = shapes_of(tiny_net)
    first, *_ = shapes.values()
    ratios = [ratio(shape, first) for shape in shapes.values()]
    sizes = [math.prod(shape) for shape in shapes.values()]

    def missing(level):
        return sum(n * min(1.0, level * r) for n, r in zip(sizes, ratios, strict=True)) - density * sum(sizes)

    level = scipy.optimize.brentq(missing, 0, 1e9, xtol=1e-14)
    expected = [1 - min(1.0, level * r) for r in ratios]
    assert list(rule(shapes, density).values()) == pytest.approx(expected, abs=1e-9)


# by the weights


@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 0.937, 1.0])
def test_global_magnitude_equals_one_threshold_over_all_layers(tiny_net, density):
    weights = prunable_weights(tiny_net)
    size = sum(w.numel() for w in weights.values())
    allocation = global_magnitude(tiny_net, density)
    masks = make_masks(tiny_net, allocation)
    cut = sorted(value for w in weights.values() for value in w.detach().abs().flatten().tolist())
    count = round((1 - density) * size)
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
    size = sum(module.weight.numel() for module in modules.values())
    prune.global_unstructured(
        [(module, "weight") for module in modules.values()], prune.L1Unstructured, amount=round(0.7 * size)
    )
    for name, module in modules.items():
        assert torch.equal(ours[name], module.weight_mask.bool()), name


@pytest.mark.parametrize(("rule", "scale"), [(global_magnitude, 1e-12), (kept_norm, 1e-12), (lamp_threshold, 0)])
def test_global_rule_keeps_one_weight_of_a_layer_that_would_be_emptied(tiny_net, rule, scale):
    with torch.no_grad():
        tiny_net.conv1[0].weight.mul_(scale)
    allocation = rule(tiny_net, 0.05)
    assert allocation["conv1.0.weight"] == pytest.approx(1 - 1 / 54)
    assert all(mask.any() for mask in make_masks(tiny_net, allocation).values())
    assert int(make_masks(tiny_net, allocation)["conv1.0.weight"].sum()) == 1


def test_lamp_threshold_does_not_depend_on_a_layers_scale(tiny_net):
    before = lamp_threshold(tiny_net, 0.1)
    with torch.no_grad():
        tiny_net.conv2[0].weight.mul_(2.0**-30)
        tiny_net.res1[0][0].weight.mul_(2.0**20)
    assert lamp_threshold(tiny_net, 0.1) == before
    assert global_magnitude(tiny_net, 0.1) != global_magnitude(build_model(TINY), 0.1)


def test_global_magnitude_with_every_weight_tied_prunes_the_exact_count(tiny_net):
    for weight in prunable_weights(tiny_net).values():
        with torch.no_grad():
            weight.fill_(0.5)
    sizes = {name: w.numel() for name, w in prunable_weights(tiny_net).items()}
    allocation = global_magnitude(tiny_net, 0.75)
    pruned = sum(round(allocation[name] * size) for name, size in sizes.items())
    emptied = sum(allocation[name] == 1 - 1 / size for name, size in sizes.items())
    assert pruned + emptied == round(0.25 * sum(sizes.values()))


@pytest.mark.parametrize("density", [0.1, 0.4, 0.8])
def test_global_saliency_by_gradient_equals_numpys_order(tiny_net, density):
    generator = torch.Generator().manual_seed(0)
    weights = prunable_weights(tiny_net)
    gradients = {name: torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    found = global_saliency(tiny_net, density, taylor, gradients)
    scores = [np.abs(w.detach().numpy() * gradients[name].numpy()).ravel() for name, w in weights.items()]
    order = np.argsort(np.concatenate(scores), kind="stable")
    gone = np.isin(np.arange(len(order)), order[: round((1 - density) * len(order))])
    parts = np.split(gone, np.cumsum([len(part) for part in scores])[:-1])
    assert list(found.values()) == pytest.approx([part.mean() for part in parts], abs=1e-12)
    with pytest.raises(InputError, match="needs gradients"):
        global_saliency(tiny_net, density, taylor)


@pytest.mark.parametrize("seed", SEEDS)
def test_lamp_threshold_equals_pruning_the_least_energy_one_by_one(seed):
    model = linears((5, 4), (3, 3), (2, 9), (1, 6), seed=seed, scales=(1, 10, 0.01, 3))
    size = 20 + 9 + 18 + 6
    layers = {name: sorted(w.detach().double().square().flatten().tolist()) for name, w in model.state_dict().items()}
    for remaining in range(size, 4, -1):
        found = lamp_threshold(model, remaining / size)
        counts = {name: round((1 - found[name]) * w.numel()) for name, w in model.state_dict().items()}
        assert counts == {name: len(squares) for name, squares in layers.items()}
        # the next one: of each layer its smallest, and of those the least share of what its layer has left
        layers[min(layers, key=lambda name: layers[name][0] / math.fsum(layers[name]))].pop(0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scales", [(1, 1, 1), (1, 4, 0.5)])
def test_kept_norm_reaches_the_best_of_all_splits(seed, scales):
    model = linears((3, 3), (2, 4), (4, 3), seed=seed, scales=scales)
    squares = [w.detach().double().square().flatten().sort(descending=True).values for w in model.parameters()]
    norms = [np.concatenate([[0.0], s.cumsum(0).sqrt().numpy()]) for s in squares]
    sizes = [len(s) for s in squares]
    splits = np.array(list(itertools.product(*(range(n + 1) for n in sizes))))
    values = sum(norm[splits[:, i]] for i, norm in enumerate(norms))
    for remaining in range(3, sum(sizes) + 1):
        found = kept_norm(model, remaining / sum(sizes)).values()
        counts = [round((1 - s) * n) for s, n in zip(found, sizes, strict=True)]
        whole = (splits.sum(1) == sum(counts)) & (splits >= 1).all(1)  # it empties no layer
        assert remaining <= sum(counts) <= remaining + 2
        ours = sum(norm[count] for norm, count in zip(norms, counts, strict=True))
        if sum(counts) == remaining:
            assert ours == pytest.approx(values[whole].max(), rel=1e-12)
        else:
            assert min(counts) == 1


def test_global_rules_are_three_members_of_one_family():
    # layer 1 is ten times layer 0: the larger α, the less that matters
    model = linears((20, 20), (20, 20), scales=(1, 10))
    found = [rule(model, 0.3)["0.weight"] for rule in (global_magnitude, kept_norm, lamp_threshold)]
    assert found[0] > found[1] + 0.01 > found[2] + 0.02
    assert found[2] == pytest.approx(0.7, abs=0.05)


# by damage


@pytest.mark.parametrize("rule", [equal_drop, equal_slope, knapsack])
def test_rule_by_damage_below_the_scans_reach_is_refused(rule):
    scan = scan_of(curve("a", 100, [0.5, 0.9], [0.1, 0.2]), curve("b", 300, [0.4, 0.6], [0.1, 0.2]))
    reach = (10 + 120) / 400
    assert rule(scan, reach) == pytest.approx({"a": 0.9, "b": 0.6})
    with pytest.raises(InputError, match=r"density is 0\.32 .*keep 0\.325 of the weights: scan to higher"):
        rule(scan, 0.32)


@pytest.mark.parametrize("rule", [equal_drop, equal_slope, knapsack])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("density", [0.5, 0.2])
def test_rule_by_damage_never_goes_where_the_damage_is_not_finite(rule, broken, density):
    sparsities, damages = [0.5, 0.9, 0.99], ([0.1, 0.2, 0.3], [0.2, 0.6, 0.9])
    known = scan_of(*(curve(name, 500, sparsities, d) for name, d in zip("ab", damages, strict=True)))
    whole = scan_of(*(curve(n, 500, [*sparsities, 1.0], [*d, broken]) for n, d in zip("ab", damages, strict=True)))
    assert rule(whole, density) == rule(known, density)
    assert max(rule(whole, density).values()) <= 0.99
    with pytest.raises(InputError, match=r"last points of finite damage keep 0\.01 of the weights"):
        rule(whole, 0.005)


@pytest.mark.parametrize("rule", [equal_drop, equal_slope, knapsack])
def test_rule_by_damage_of_a_pruned_network_goes_on_from_there(rule):
    scan = scan_of(
        curve("a", 100, [0.6, 0.9, 1.0], [0.1, 0.2, 1.0], start=0.5),
        curve("b", 300, [0.9, 1.0], [0.3, 2.0], start=0.8),
    )
    assert rule(scan, 110 / 400) == pytest.approx({"a": 0.5, "b": 0.8}, abs=1e-6)
    for density in (0.27, 0.2, 0.1, 0.01):
        found = rule(scan, density)
        assert kept(scan, found) == pytest.approx(density * 400, abs=1e-6)
        assert 0.5 <= found["a"] <= 1
        assert 0.8 <= found["b"] <= 1
    with pytest.raises(InputError, match=r"density is 0\.3 and the scanned network has only 0\.275"):
        rule(scan, 0.3)


@pytest.mark.parametrize("rule", [equal_drop, equal_slope, knapsack])
def test_rule_by_damage_of_a_network_pruned_beyond_the_first_points_leaves_what_is_gone(rule):
    # the same sparsities were asked of every layer, and b has passed the first of them already
    scan = scan_of(
        curve("a", 216, [0.4, 0.9, 1.0], [0.001, 0.2, 0.6]),
        curve("b", 576, [0.4, 0.9, 1.0], [0.0, 0.02, 0.04], start=0.8),
        curve("c", 24, [0.4, 0.9, 1.0], [0.04, 0.5, 1.0]),
    )
    for density in (0.43, 0.4, 0.3, 0.2, 0.1):
        found = rule(scan, density)
        assert found["b"] >= 0.8 - 1e-9
        assert kept(scan, found) == pytest.approx(density * 816, abs=1e-6)


@pytest.mark.parametrize("rule", [equal_drop, equal_slope, knapsack])
def test_rule_by_damage_of_a_network_with_an_empty_layer_goes_on_with_the_others(rule):
    scan = scan_of(curve("a", 100, [0.4, 0.9, 1.0], [0.1, 0.2, 1.0]), curve("b", 300, [1.0], [0.0], start=1.0))
    for density in (0.25, 0.1, 0.01):
        assert rule(scan, density) == pytest.approx({"a": 1 - 4 * density, "b": 1.0})


@pytest.mark.parametrize("rule", [equal_drop, equal_slope, knapsack])
@pytest.mark.parametrize("seed", range(6))
def test_rule_by_damage_at_any_density_is_a_sparsity_that_keeps_it(rule, seed):
    scan = ragged(seed) if seed % 2 else convex(seed, sizes=(54, 144, 288, 576, 1152, 2304, 128, 24))
    for density in np.random.default_rng(seed).uniform(0.1, 1, 10).tolist():
        found = rule(scan, density)
        assert tuple(found) == scan.layers
        assert all(0 <= found[c.layer] <= c.sparsities[-1] + 1e-12 for c in scan.curves), (density, found)
        assert kept(scan, found) / total(scan) == pytest.approx(density, abs=1e-9)


@pytest.mark.parametrize("rule", [equal_drop, equal_slope, knapsack])
def test_rule_by_damage_has_ends_that_prune_nothing_and_the_whole_scanned_range(rule):
    scan = rising(0, (30, 700, 5, 90), TENTHS)
    assert set(rule(scan, 1.0).values()) == {0.0}
    assert list(rule(scan, 0.1).values()) == pytest.approx([0.9] * 4)
    deep = rising(0, (30, 700, 5, 90))
    assert sum(rule(deep, 1e-4).values()) == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("rule", [equal_drop, equal_slope, knapsack])
def test_rule_by_damage_prunes_first_where_it_costs_nothing(rule):
    scan = scan_of(curve("a", 100, [0.4, 0.8], [0.1, 0.4]), curve("b", 100, [0.4, 0.8], [-0.2, -0.1]))
    assert rule(scan, 0.7) == pytest.approx({"a": 0.0, "b": 0.6})


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("density", [0.9, 0.5, 0.2, 0.05, 0.01])
def test_equal_drop_does_the_same_damage_in_every_layer(seed, density):
    scan = rising(seed, (3000, 40, 900, 12, 500))
    fitted = fit_all(scan)
    damages = {name: fitted[name](s) for name, s in equal_drop(scan, density).items()}
    highest = max(damages.values())
    for name, damage in damages.items():
        # a layer that is gone altogether cannot do more
        assert damage == pytest.approx(min(highest, float(fitted[name].values[-1])), abs=1e-9)


def test_equal_drop_does_not_ask_how_many_weights_a_layer_gives():
    damage = [[0.1, 0.3, 1.0], [0.2, 0.3, 1.0]]
    for sizes in ((10, 1000), (1000, 10)):
        scan = rectangular(sizes, (0.5, 0.8, 1.0), damage)
        found = equal_drop(scan, kept(scan, {"layer0": 0.8, "layer1": 0.8}) / total(scan))
        assert list(found.values()) == pytest.approx([0.8, 0.8])


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_slope_on_convex_curves_is_never_worse_than_any_grid_allocation(seed):
    scan = convex(seed)
    grid = np.arange(10) / 10
    damage = np.array([[0.0, *c.damage] for c in scan.curves])
    choices = np.array(list(itertools.product(range(10), repeat=3)))
    best = damage[np.arange(3), choices].sum(1)
    counts = (1 - grid[choices]) @ list(scan.sizes.values())
    for count in np.unique(counts.round(6)).tolist():
        allocation = equal_slope(scan, count / total(scan))
        ours = sum(np.interp(allocation[c.layer], grid, d) for c, d in zip(scan.curves, damage, strict=True))
        assert ours <= best[counts.round(6) == count].min() + 1e-9
        assert kept(scan, allocation) == pytest.approx(count)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("density", [0.11, 0.3, 0.62, 0.95])
def test_equal_slope_on_any_curves_reaches_the_linear_programs_optimum(seed, density):
    scan = ragged(seed)
    assert hull_damage(scan, equal_slope(scan, density)) == pytest.approx(linear_program(scan, density), abs=1e-7)


def test_equal_slope_stops_every_layer_at_the_same_slope():
    # damage s²·c has slope 2·s·c: at the optimum s is inverse to c / n
    grid = np.arange(1, 1000) / 1000
    scan = rectangular((1000, 2000, 1000), grid, [grid**2, grid**2, 2 * grid**2])
    found = equal_slope(scan, 0.7)
    slopes = [2 * found["layer0"] / 1000, 2 * found["layer1"] / 2000, 4 * found["layer2"] / 1000]
    assert slopes == pytest.approx([slopes[0]] * 3, rel=0.01)


# the knapsack


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("density", [0.12, 0.35, 0.7, 0.97])
def test_knapsack_lies_between_equal_slope_and_the_linear_programs_bound(seed, density):
    scan = ragged(seed, layers=4)
    found = damage_of(scan, knapsack(scan, density))
    assert found <= damage_of(scan, equal_slope(scan, density)) + 1e-12
    assert found >= linear_program(scan, density) - 1e-9


@pytest.mark.parametrize("seed", range(8))
def test_knapsack_is_no_worse_than_any_combination_of_points(seed):
    rng = np.random.default_rng(seed)
    sparsities = [0.2, 0.5, 0.7, 0.8, 0.9, 1.0]
    sizes = rng.integers(20, 2000, 3)
    scan = rectangular(sizes, sparsities, rng.exponential(1.0, (3, 6)).cumsum(axis=1) ** rng.uniform(0.3, 3))
    fitted = list(fit_all(scan).values())
    choices = np.array(list(itertools.product(range(7), repeat=3)))
    damages = sum(fitted[i].values[choices[:, i]] for i in range(3))
    counts = sum(sizes[i] * (1 - fitted[i].sparsities[choices[:, i]]) for i in range(3))
    for density in (0.05, 0.15, 0.3, 0.5, 0.8):
        budget = density * sizes.sum()
        fits = counts <= budget * (1 - 3 / BINS)  # each layer is counted upwards to whole bins
        found = knapsack(scan, density)
        assert kept(scan, found) <= budget + 1e-6
        assert damage_of(scan, found) <= damages[fits].min() + 1e-9


@pytest.mark.parametrize("seed", SEEDS)
def test_knapsack_finds_the_best_combination_that_fills_the_budget_exactly(seed):
    # budgets and counts in whole bins: 100 weights are 20,000 bins of 1/200
    scan = rectangular((50, 100, 100), TENTHS, np.random.default_rng(seed).exponential(1.0, (3, 9)).cumsum(axis=1) ** 2)
    fitted = list(fit_all(scan).values())
    best = min(
        sum(float(fitted[i].values[j]) for i, j in enumerate(choice))
        for choice in itertools.product(range(10), repeat=3)
        if 5 * (10 - choice[0]) + 10 * (10 - choice[1]) + 10 * (10 - choice[2]) <= 100
    )
    found = knapsack(scan, 0.4)
    assert kept(scan, found) <= 100 + 1e-9
    assert damage_of(scan, found) <= best + 1e-9


def test_knapsack_sees_into_a_dent_where_equal_slope_does_not():
    # layer a falls off a cliff at once and costs nothing after it; its hull is one straight line
    scan = scan_of(
        curve("a", 100, [0.1, 0.6, 1.0], [1.0, 1.0, 1.05]), curve("b", 100, [0.2, 0.4, 0.7, 1.0], [0.1, 0.35, 0.9, 3.0])
    )
    budget = 0.85
    slope, found = equal_slope(scan, budget), knapsack(scan, budget)
    assert kept(scan, slope) == pytest.approx(170)
    assert kept(scan, found) == pytest.approx(170)
    fine = np.linspace(0, 0.3, 3001)
    fitted = fit_all(scan)
    best = min(fitted["a"](0.3 - s) + fitted["b"](s) for s in fine.tolist())
    assert damage_of(scan, found) == pytest.approx(best, abs=0.01)
    assert damage_of(scan, slope) > best + 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_knapsack_with_a_smaller_budget_never_does_less_damage(seed):
    scan = ragged(seed, layers=5)
    damages = [damage_of(scan, knapsack(scan, density)) for density in np.geomspace(1, 0.1, 15).tolist()]
    # to the width of a bin
    assert all(later >= earlier - 1e-3 for earlier, later in itertools.pairwise(damages))
    assert damages[-1] > damages[0]


def test_knapsack_takes_its_candidate_where_nothing_fits_the_bins():
    scan = rising(0, (7, 11, 13, 17, 19), (0.3, 0.9))
    assert knapsack(scan, 0.1) == pytest.approx(dict.fromkeys(scan.layers, 0.9))


# weights that several layers share


class Tied(nn.Module):
    """Three convolutions, of which two share their weights, between two other layers; 16×16 images."""

    def __init__(self):
        super().__init__()
        self.first, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(3))
        self.convs[2].weight = self.convs[0].weight

    def forward(self, images):
        x = self.first(images)
        for conv in self.convs:
            x = torch.relu(conv(x))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def tied():
    """The network, and a scan of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tied()
    damages = np.linspace(0.1, 2.0, len(TENTHS) + 1)
    curves = [
        curve(name, weight.numel(), [*TENTHS, 1.0], damages * i)
        for i, (name, weight) in enumerate(prunable_weights(model).items(), start=1)
    ]
    return model, scan_of(*curves)


@pytest.mark.parametrize("rule", ALLOCATORS)
@pytest.mark.parametrize("density", [0.5, 0.1])
def test_allocator_of_tied_convolutions_leaves_the_density_that_was_asked(tied, rule, density):
    model, scan = copy.deepcopy(tied[0]), tied[1]
    found = ALLOCATORS[rule](Basis(model=model, sensitivity=scan), density)
    assert list(found) == ["first.weight", "fc.weight", "convs.0.weight", "convs.1.weight"]
    apply_masks(model, make_masks(model, found))
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]  # each but once
    left = sum(int(weight.count_nonzero()) for weight in weights)
    assert left == pytest.approx(density * sum(weight.numel() for weight in weights), abs=len(weights))
