"""Where a search begins: the better rules, at densities that close in on the floor."""

import itertools
import math

import pytest

from netprune.allocation import ALLOCATORS, Basis
from netprune.recovery import NOISE
from netprune.rules import shapes_of
from netprune.search_space import Point, Space
from netprune.seeding import CLOSE, DENSITIES, Boundary, Seen, best_rule, boundary, propose, ranked, seed_path

RULES = ("uniform", "erk", "kept_norm")


LIMITS = {"least": 0.004, "most": 0.6}


def closed_in(accuracy, aim=0.8, will=2.0):
    """The trials made until there is nothing more to try, of networks that come to `accuracy(density)`."""
    seen = []
    while (wanted := boundary(seen, aim, will=will, **LIMITS).wanted) is not None:
        seen.append(Seen(density=wanted, accuracy=accuracy(wanted), epochs=1.0))
        assert len(seen) < 12
    return seen


def line(truth, slope=0.03):
    """Comes to 80 % at a density."""
    return lambda density: 0.8 + 1e-15 + slope * math.log(density / truth)


def step(truth):
    """Guesses below a density."""
    return lambda density: 0.9 if density >= truth else 0.1


@pytest.mark.parametrize("truth", [0.005, 0.02, 0.0999, 0.1, 0.13, 0.5])
@pytest.mark.parametrize("shape", [line, step, lambda truth: line(truth, 0.2)], ids=["line", "step", "steep"])
def test_boundary_closes_in_on_the_aim_from_above(shape, truth):
    seen = closed_in(shape(truth), will=1.0)
    high = min(one.density for one in seen if one.accuracy >= 0.8 - 1e-12)
    assert truth <= high * (1 + 1e-9)
    assert high <= truth * CLOSE or shape(truth)(high) <= 0.8 + NOISE
    assert len(seen) <= 9
    assert boundary(seen, 0.8, will=1.0, **LIMITS) == Boundary(None, high)


def test_boundary_on_a_line_needs_few_trials():
    assert len(closed_in(line(0.1), will=1.0)) <= 3
    assert len(closed_in(line(0.3), will=1.0)) <= 3


def test_boundary_of_an_aim_that_all_or_none_meets_ends_at_the_edge():
    assert min(one.density for one in closed_in(lambda _: 0.9)) == 0.004
    assert max(one.density for one in closed_in(lambda _: 0.1)) == 0.6
    assert boundary(closed_in(lambda _: 0.1), 0.8, will=2.0, **LIMITS).met is None


def seen(*trials):
    return [Seen(density=density, accuracy=accuracy, epochs=epochs) for density, accuracy, epochs in trials]


def test_boundary_does_not_heed_a_failure_above_a_success():
    found = boundary(seen((0.2, 0.79, 1), (0.1, 0.82, 1)), 0.8, will=1.0, **LIMITS)
    assert found.met == 0.1
    assert found.wanted <= 0.1 / CLOSE


def test_boundary_moves_down_with_the_training_that_networks_have_had():
    """One that fell short by little would not, were it trained on: the next is looked for below it."""
    short = seen((0.3, 0.82, 1), (0.2, 0.799, 1))
    assert boundary(short, 0.8, will=1.0, **LIMITS).wanted > 0.2
    grown = boundary(short, 0.8, will=3.0, **LIMITS)
    assert grown.met == 0.2
    assert grown.wanted < 0.2


def test_boundary_does_not_heed_a_failure_after_far_less_training_below_a_success():
    # a search that had come down to 0.1 and 0.12 by steps; 0.08 had been pruned in one shot before
    chain = [(0.2, 0.79, 1), (0.12, 0.815, 4), (0.1, 0.81, 5)]
    unheeded = boundary(seen(*chain, (0.08, 0.77, 1)), 0.79, will=6.0, **LIMITS)
    assert unheeded.met == 0.1
    assert unheeded.wanted < 0.075
    assert boundary(seen(*chain, (0.08, 0.77, 5)), 0.79, will=6.0, **LIMITS) == Boundary(None, 0.1), "near enough"


def test_boundary_of_one_density_takes_what_was_trained_longest():
    twice = [*seen((0.2, 0.79, 1), (0.2, 0.81, 3)), *seen((0.1, 0.7, 3))]
    assert boundary(twice, 0.8, will=3.0, **LIMITS).met == 0.2


def test_ranked_puts_the_best_screened_first_and_leaves_out_what_needs_a_scan(tiny_net):
    wanted = ALLOCATORS["erk"](Basis(model=tiny_net), 0.3)
    found = ranked(Basis(model=tiny_net), 0.3, lambda sparsity: float(sparsity != wanted), (*RULES, "knapsack"))
    assert found[0][0] == "erk"
    assert {rule for rule, _ in found} == set(RULES)
    assert found[0][1] == wanted


def left_by(basis, **left):
    """A screening that finds so much left to recover after each rule, at every density."""
    allocated = [(ALLOCATORS[rule](basis, density), left[rule]) for rule in left for density in DENSITIES]
    return lambda sparsity: next(value for one, value in allocated if one == sparsity)


@pytest.mark.parametrize(
    ("left", "best"),
    [
        ({"uniform": 1.0, "erk": 0.9, "kept_norm": 0.89}, "erk"),
        ({"uniform": 1.0, "erk": 0.95, "kept_norm": 0.92}, "uniform"),
        ({"uniform": 1.0, "erk": 0.95, "kept_norm": 0.5}, "kept_norm"),
        ({"uniform": math.inf, "erk": math.inf, "kept_norm": math.inf}, "uniform"),
    ],
    ids=["first of those that are close", "first of all", "clearly the best", "all broken"],
)
def test_best_rule_is_the_first_of_those_after_which_about_the_least_is_left(tiny_net, left, best):
    basis, looks = Basis(model=tiny_net), []
    assert best_rule(basis, left_by(basis, **left), RULES, on_look=lambda *look: looks.append(look)) == best
    assert looks == [(n, 12) for n in range(1, 13)]  # three rules at four of the nine densities


def test_best_rule_that_cannot_reach_a_density_is_another(tiny_net):
    basis = Basis(model=tiny_net)  # which has no scan
    assert best_rule(basis, left_by(basis, erk=1.0, uniform=1.3), ("knapsack", "uniform", "erk")) == "erk"


def test_seed_path_has_rising_densities_of_one_rule(tiny_net):
    path = seed_path(Basis(model=tiny_net), "erk")
    assert [density for density, _ in path] == list(DENSITIES)
    assert path[3][1] == ALLOCATORS["erk"](Basis(model=tiny_net), DENSITIES[3])


def space_of(net):
    sizes = {name: shape.numel() for name, shape in shapes_of(net).items()}
    return Space(sizes=sizes, path=seed_path(Basis(model=net), "erk"))


def on_path(space, density):
    return Point(density=density, offsets=dict.fromkeys(space.sizes, 0.0))


def test_propose_takes_the_path_to_the_density_that_is_wanted(tiny_net):
    space = space_of(tiny_net)
    found = propose(Boundary(0.15, 0.3), space, [], [], lambda _: pytest.fail("it is not their turn"))
    assert found == on_path(space, 0.15)


def test_propose_looks_further_down_than_those_that_run_already(tiny_net):
    space, running = space_of(tiny_net), []
    while (point := propose(Boundary(0.2, None), space, running, running, lambda _: [])) is not None:
        running.append(point)
        assert len(running) < 40
    densities = [point.density for point in running]
    assert len(densities) > 12
    assert all(a / b == pytest.approx(CLOSE) for a, b in itertools.pairwise(densities))
    assert densities[0] == 0.2
    assert densities[-1] >= space.least


def test_propose_then_tries_each_other_rule_once(tiny_net):
    space, basis, asked = space_of(tiny_net), Basis(model=tiny_net), []

    def others(density):
        asked.append(density)
        return [ALLOCATORS[rule](basis, density) for rule in ("erk", "uniform", "kept_norm")]

    known = [on_path(space, 0.2)]
    while (point := propose(Boundary(None, 0.2), space, [], known, others)) is not None:
        known.append(point)
    assert len(known) == 3  # the path's own rule is not tried again
    assert all(math.isclose(point.density, 0.2, rel_tol=1e-3) for point in known)
    assert set(asked) == {0.2}
    assert propose(Boundary(None, 0.19), space, [], known, others) is None  # nor elsewhere
    assert propose(Boundary(None, None), space, [], known, lambda _: pytest.fail("there is no density")) is None
