"""Where a search begins: the better rules, at densities that close in on the floor."""

import math

import pytest

from netprune.allocation import ALLOCATORS, Basis, shapes_of
from netprune.search_space import Point, Space
from netprune.seeding import CLOSE, DENSITIES, best_rule, next_density, propose, ranked, seed_path

RULES = ("uniform", "erk", "kept_norm")


def closed_in(truth, least=0.004, most=0.6):
    """The densities tried until there is nothing more to try, with a floor that `truth` and above meets."""
    meets = {}
    while (density := next_density(meets, least, most)) is not None:
        assert density not in meets
        meets[density] = density >= truth
    return meets


@pytest.mark.parametrize("truth", [0.005, 0.02, 0.0999, 0.1, 0.13, 0.5])
def test_next_density_closes_in_on_the_floor_from_both_sides(truth):
    meets = closed_in(truth)
    high, low = min(d for d, met in meets.items() if met), max(d for d, met in meets.items() if not met)
    assert low < truth <= high <= low * CLOSE
    assert len(meets) <= 8


def test_next_density_of_a_floor_that_all_or_none_meets_ends_at_the_edge():
    assert min(closed_in(0.0)) == 0.004
    assert max(closed_in(1.0)) == 0.6


def test_next_density_does_not_heed_a_failure_above_a_success():
    assert next_density({0.2: False, 0.1: True}, 0.004, 0.6) == next_density({0.1: True}, 0.004, 0.6)


def test_ranked_puts_the_best_screened_first_and_leaves_out_what_needs_a_scan(tiny_net):
    wanted = ALLOCATORS["erk"](Basis(model=tiny_net), 0.3)
    found = ranked(Basis(model=tiny_net), 0.3, lambda sparsity: float(sparsity != wanted), (*RULES, "knapsack"))
    assert found[0][0] == "erk"
    assert {rule for rule, _ in found} == set(RULES)
    assert found[0][1] == wanted


def test_best_rule_has_the_least_sum_of_ranks(tiny_net):
    basis = Basis(model=tiny_net)
    liked = [ALLOCATORS["kept_norm"](basis, density) for density in DENSITIES[1:]]
    liked.append(ALLOCATORS["uniform"](basis, DENSITIES[0]))
    assert best_rule(basis, lambda sparsity: float(sparsity not in liked), RULES) == "kept_norm"


def test_seed_path_has_rising_densities_of_one_rule(tiny_net):
    path = seed_path(Basis(model=tiny_net), "erk")
    assert [density for density, _ in path] == list(DENSITIES)
    assert path[3][1] == ALLOCATORS["erk"](Basis(model=tiny_net), DENSITIES[3])


def begun(truths, others, net):
    """What a search begins with, when each floor is met from a density of its own on, by the path alone."""
    sizes = {name: shape.numel() for name, shape in shapes_of(net).items()}
    space = Space(sizes=sizes, path=seed_path(Basis(model=net), "erk"))
    tried = []
    while (point := propose(tried, space, others)) is not None:
        on_path = not any(point.offsets.values())
        tried.append((point, [on_path and point.density >= truth for truth in truths]))
        assert len(tried) < 40
    return tried


def test_propose_closes_in_on_each_floor_and_then_tries_other_rules_there(tiny_net):
    basis, asked = Basis(model=tiny_net), []

    def others(density):
        asked.append(density)
        return [ALLOCATORS[rule](basis, density) for rule in ("erk", "uniform", "kept_norm")]

    tried = begun((0.2, 0.05), others, tiny_net)
    path = [point for point, _ in tried if not any(point.offsets.values())]
    for truth in (0.2, 0.05):
        high = min(p.density for p in path if p.density >= truth)
        low = max(p.density for p in path if p.density < truth)
        assert high <= low * CLOSE
        assert high in asked
        there = [point for point, _ in tried if any(point.offsets.values()) and math.isclose(point.density, high)]
        assert len(there) == 2  # the path's own rule is not tried again


def test_propose_with_no_feasible_density_asks_nobody_else(tiny_net):
    tried = begun((2.0,), lambda _: pytest.fail("there is no density to ask at"), tiny_net)
    assert max(point.density for point, _ in tried) == pytest.approx(DENSITIES[-1])


def test_propose_goes_on_from_what_was_tried(tiny_net):
    tried = begun((0.2,), lambda _: [], tiny_net)
    sizes = {name: shape.numel() for name, shape in shapes_of(tiny_net).items()}
    space = Space(sizes=sizes, path=seed_path(Basis(model=tiny_net), "erk"))
    assert propose(tried[:2], space, lambda _: []) == tried[2][0]
    assert propose([], space, lambda _: []) == Point(density=0.1, offsets=dict.fromkeys(sizes, 0.0))
