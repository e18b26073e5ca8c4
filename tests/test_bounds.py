"""Layers that are kept, and largest sparsities: rules under bounds against greedy counting and a linear programme."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from netprune.allocation import ALLOCATORS, BY_DAMAGE, Basis, allocation_from
from netprune.bounds import Bounds, find_bounds
from netprune.curves import fit_all
from netprune.errors import InputError
from netprune.evaluation import Evaluation
from netprune.masks import make_masks
from netprune.saliency import lamp, magnitude, norm_loss, score
from netprune.search_space import REACH, Point, Space
from netprune.seeding import seed_path
from netprune.sensitivity import LayerCurve, Sensitivity
from netprune.weights import prunable_weights

LIMITS = "1=0.5,3=0.8"
SPARSITIES = np.array([0.2, 0.4, 0.6, 0.8, 0.9, 1.0])


@pytest.fixture(scope="module")
def model():
    """Five linear layers of 60 to 400 weights, of different spreads."""
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(n, 10, bias=False) for n in (6, 40, 10, 20, 8)]
    for spread, layer in enumerate(layers, start=1):
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator) / spread
    return nn.Sequential(*layers)


def layer_curve(name, size, damage):
    count = len(damage)
    return LayerCurve(
        layer=name,
        size=size,
        start=0.0,
        sparsities=SPARSITIES,
        loss=damage + 1,
        damage=damage,
        damage_se=np.full(count, 0.01),
        accuracy=np.zeros(count),
        accuracy_se=np.zeros(count),
        count=np.full(count, 100),
        changed=np.ones(count, dtype=bool),
    )


def sensitivity(curves):
    baseline = Evaluation(loss=1.0, loss_se=0.0, accuracy=1.0, accuracy_se=0.0, count=1)
    said = {"split": "val", "val_digest": "", "digest": "", "compute": "", "whole_passes": ""}
    return Sensitivity(curves=tuple(curves), baseline=baseline, max_se=0.0, missed=0, **said)


@pytest.fixture(scope="module")
def scan(model):
    """Convex damage: slopes that rise."""
    rng = np.random.default_rng(0)
    steps = np.diff(SPARSITIES, prepend=0.0)
    return sensitivity(
        layer_curve(name, weight.numel(), np.cumsum(steps * np.sort(rng.exponential(1.0, len(steps)))))
        for name, weight in prunable_weights(model).items()
    )


def kept(bounds, sparsity):
    total = sum(bounds.sizes.values())
    return sum(size * (1 - sparsity[name]) for name, size in bounds.sizes.items()) / total


@pytest.mark.parametrize("rule", ALLOCATORS)
@pytest.mark.parametrize(("keep", "limit"), [("", LIMITS), ("0,2", ""), ("4", LIMITS), ("0", "*=0.7")])
@pytest.mark.parametrize("density", [0.95, 0.6, 0.35])
def test_allocator_under_bounds_meets_its_density_and_passes_none(model, scan, rule, keep, limit, density):
    bounds = find_bounds(model, keep, limit)
    found = ALLOCATORS[rule](Basis(model=model, sensitivity=scan, bounds=bounds), density)
    assert list(found) == list(bounds.sizes)
    assert all(0 <= value <= bounds.limits.get(name, 1.0) for name, value in found.items())
    assert kept(bounds, found) == pytest.approx(density, abs=0.5 * len(found) / sum(bounds.sizes.values()))
    masks = make_masks(model, found)
    for name, limit_of in bounds.limits.items():
        assert 1 - masks[name].float().mean().item() <= limit_of + 1e-6


@pytest.mark.parametrize("rule", ALLOCATORS)
def test_allocator_with_bounds_that_hold_nothing_back_is_the_same(model, scan, rule):
    plain = ALLOCATORS[rule](Basis(model=model, sensitivity=scan), 0.3)
    assert ALLOCATORS[rule](Basis(model=model, sensitivity=scan, bounds=find_bounds(model)), 0.3) == plain


@pytest.mark.parametrize("rule", ALLOCATORS)
def test_allocator_below_what_the_limits_keep_is_refused_with_both_figures(model, scan, rule):
    basis = Basis(model=model, sensitivity=scan, bounds=find_bounds(model, limit="*=0.5"))
    with pytest.raises(InputError, match=r"the density is 0\.3 and the limits keep 0\.5 of the weights"):
        ALLOCATORS[rule](basis, 0.3)


@pytest.mark.parametrize(
    ("rule", "saliency"), [("global_magnitude", magnitude), ("lamp", lamp), ("kept_norm", norm_loss)]
)
@pytest.mark.parametrize("density", [0.7, 0.5, 0.35])
def test_global_threshold_under_limits_equals_pruning_one_by_one_where_there_is_room(model, rule, saliency, density):
    bounds = find_bounds(model, limit=LIMITS)
    room = {name: round(bounds.limits.get(name, 1.0) * size) for name, size in bounds.sizes.items()}
    scores = score(saliency, prunable_weights(model))
    order = sorted((value, name) for name, values in scores.items() for value in values.flatten().tolist())
    left = sum(bounds.sizes.values()) - round(density * sum(bounds.sizes.values()))
    pruned = dict.fromkeys(bounds.sizes, 0)
    for _, name in order:
        if left and pruned[name] < room[name]:
            pruned[name], left = pruned[name] + 1, left - 1
    found = ALLOCATORS[rule](Basis(model=model, bounds=bounds), density)
    assert all(abs(found[name] * size - pruned[name]) <= 1 for name, size in bounds.sizes.items())


@pytest.mark.parametrize("density", [0.8, 0.5, 0.35])
def test_equal_slope_under_limits_does_no_more_damage_than_a_linear_programme(model, scan, density):
    bounds = find_bounds(model, limit=LIMITS)
    fitted = fit_all(scan)
    pieces = [(name, slope, length) for name, damage in fitted.items() for slope, length in damage.hull_pieces()]
    rows = np.array([[float(name == layer) for name, _, _ in pieces] for layer in bounds.sizes])
    best = scipy.optimize.linprog(
        [slope for _, slope, _ in pieces],
        A_ub=rows,
        b_ub=[bounds.limits.get(layer, 1.0) for layer in bounds.sizes],
        A_eq=[[bounds.sizes[name] for name, _, _ in pieces]],
        b_eq=[(1 - density) * sum(bounds.sizes.values())],
        bounds=[(0, length) for _, _, length in pieces],
    )
    for rule in ("equal_slope", "knapsack"):
        found = ALLOCATORS[rule](Basis(model=model, sensitivity=scan, bounds=bounds), density)
        assert sum(fitted[name](value) for name, value in found.items()) == pytest.approx(best.fun, rel=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_knapsack_under_limits_on_dented_curves_is_the_best_there_is(seed):
    rng = np.random.default_rng(seed)
    names = ["a.weight", "b.weight", "c.weight"]
    dents = [rng.exponential(0.3, len(SPARSITIES)) * rng.integers(0, 2, len(SPARSITIES)) for _ in names]
    measured = sensitivity(layer_curve(name, 1200, np.cumsum(dent)) for name, dent in zip(names, dents, strict=True))
    bounds = Bounds(sizes=dict.fromkeys(names, 1200), limits={"a.weight": 0.5})
    model = nn.ModuleDict({name[0]: nn.Linear(40, 30, bias=False) for name in names})
    found = ALLOCATORS["knapsack"](Basis(model=model, sensitivity=measured, bounds=bounds), 0.45)
    curves = fit_all(measured)
    assert found["a.weight"] <= 0.5
    assert kept(bounds, found) <= 0.45 + 1e-6
    grid = np.meshgrid(np.linspace(0, 0.5, 51), *[np.linspace(0, 1, 101)] * 2, indexing="ij")
    damage = sum(np.interp(at, curves[n].sparsities, curves[n].values) for n, at in zip(names, grid, strict=True))
    best = damage[sum(grid) >= 3 * 0.55 - 1e-9].min()
    assert sum(curves[name](value) for name, value in found.items()) <= best + 0.015, "its levels lie that close"


def test_uniform_under_limits_is_the_level_that_fills_the_budget(model):
    bounds = find_bounds(model, limit=LIMITS)

    def over(level):
        return kept(bounds, {name: min(level, bounds.limits.get(name, 1.0)) for name in bounds.sizes}) - 0.35

    level = scipy.optimize.brentq(over, 0, 1)
    found = ALLOCATORS["uniform"](Basis(model=model, bounds=bounds), 0.35)
    assert found == pytest.approx({name: min(level, bounds.limits.get(name, 1.0)) for name in found})


@pytest.mark.parametrize("rule", BY_DAMAGE)
def test_allocator_by_damage_needs_curves_of_the_layers_that_are_not_kept_alone(model, scan, rule):
    part = Sensitivity(**{**{n: getattr(scan, n) for n in scan.__slots__}, "curves": scan.curves[1:]})
    assert ALLOCATORS[rule](Basis(model=model, sensitivity=part, bounds=find_bounds(model, "0")), 0.5)
    with pytest.raises(InputError, match=r"no curve of 0\.weight"):
        ALLOCATORS[rule](Basis(model=model, sensitivity=part, bounds=find_bounds(model)), 0.5)


def test_document_whose_first_layer_is_at_its_limit_takes_no_other_for_the_first(model):
    found = ALLOCATORS["document"](Basis(model=model, bounds=find_bounds(model, limit="0=0.3")), 0.1)
    assert found["0.weight"] == pytest.approx(0.3)
    others = (0.1 * 840 - 0.7 * 60) / 780
    assert list(found.values())[1:] == pytest.approx([1 - others] * 4)


def test_documents_own_numbers_heed_bounds(model):
    found = allocation_from("document", Basis(model=model, bounds=find_bounds(model, "0", "2=0.5,4=0.95")))
    assert found == {"1.weight": 0.6, "2.weight": 0.5, "3.weight": 0.9, "4.weight": 0.9}


# patterns


@pytest.mark.parametrize(
    ("keep", "names"),
    [
        ("conv1.0.weight", {"conv1.0.weight"}),
        ("conv1.0", {"conv1.0.weight"}),
        ("conv1", {"conv1.0.weight"}),
        ("conv1.*", {"conv1.0.weight"}),
        ("res1", {"res1.0.0.weight", "res1.1.0.weight"}),
        (
            " res?.1 , classifier.[34]",
            {"res1.1.0.weight", "res2.1.0.weight", "classifier.3.weight", "classifier.4.weight"},
        ),
        ("", set()),
    ],
)
def test_find_bounds_keep_patterns_match_layers_and_what_holds_them(tiny_net, keep, names):
    bounds = find_bounds(tiny_net, keep)
    assert prunable_weights(tiny_net).keys() - bounds.sizes.keys() == names
    assert bounds.limits == {}
    assert bounds.least == 0


@pytest.mark.parametrize(("keep", "limit"), [("conv9.*", ""), ("", "conv9.*=0.5"), ("conv", "")])
def test_find_bounds_pattern_that_matches_nothing_is_refused_with_the_layers(tiny_net, keep, limit):
    with pytest.raises(InputError) as refused:
        find_bounds(tiny_net, keep, limit)
    assert "matches no layer" in str(refused.value)
    assert all(name in str(refused.value) for name in prunable_weights(tiny_net))


@pytest.mark.parametrize("limit", ["conv1", "conv1=", "=0.5", "conv1=much", "conv1=1.1", "conv1=-0.1", "conv1=nan"])
def test_find_bounds_limit_that_is_none_is_refused_with_an_example(tiny_net, limit):
    with pytest.raises(InputError, match=r"from 0 to 1: res2\.\*=0\.99"):
        find_bounds(tiny_net, limit=limit)


def test_find_bounds_least_of_several_limits_holds_and_zero_is_to_keep(tiny_net):
    bounds = find_bounds(tiny_net, "conv1", "*=0.75,res2.*=0.5,res2.1=0.25,conv3=0")
    assert bounds.limits["res2.0.0.weight"] == 0.5
    assert bounds.limits["res2.1.0.weight"] == 0.25
    assert bounds.limits["conv2.0.weight"] == 0.75
    assert not {"conv1.0.weight", "conv3.0.weight"} & bounds.sizes.keys()


def test_find_bounds_limit_is_rounded_down_to_whole_weights():
    bounds = find_bounds(nn.Linear(3, 3), limit="*=0.5")
    assert bounds.limits == {"weight": 4 / 9}


def test_find_bounds_of_a_weight_with_two_names_is_one_layer_that_either_matches():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert find_bounds(model).sizes == {"0.weight": 16, "1.weight": 16}
    for name in ("0", "2", "2.weight"):
        assert find_bounds(model, name).sizes == {"1.weight": 16}
        assert find_bounds(model, limit=f"{name}=0.5").limits == {"0.weight": 0.5}


def test_find_bounds_that_leave_nothing_are_refused(tiny_net):
    with pytest.raises(InputError, match="leave no layer to prune"):
        find_bounds(tiny_net, "*")


# the space of a search


def test_space_under_limits_keeps_its_density_and_passes_none(model):
    bounds = find_bounds(model, "0", LIMITS)
    space = Space(
        sizes=bounds.sizes,
        path=seed_path(Basis(model=model, bounds=bounds), "kept_norm"),
        limits=bounds.limits,
    )
    assert space.least > bounds.least > 0.2
    rng = np.random.default_rng(0)
    for density, _ in itertools.product(np.geomspace(space.least, space.most, 5), range(4)):
        offsets = {name: float(rng.uniform(-REACH, REACH)) for name in bounds.sizes}
        found = space.at(Point(density=float(density), offsets=offsets))
        assert list(found) == list(bounds.sizes)
        assert all(0 <= value <= bounds.limits.get(name, 1.0) for name, value in found.items())
        assert kept(bounds, found) == pytest.approx(density, abs=len(found) / sum(bounds.sizes.values()))


def test_share_of_a_rule_that_passes_no_limit_asks_it_once():
    asked = []

    def rule(names, density):
        asked.append((names, density))
        return dict.fromkeys(names, 1 - density)

    assert Bounds(sizes={"a": 3, "b": 4}, limits={"a": 0.9}).share(0.3, rule) == {"a": 0.7, "b": 0.7}
    assert asked == [(("a", "b"), 0.3)]
