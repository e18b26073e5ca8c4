"""Fitted curves: monotone, nearest to what was measured, and never read past their end."""

import itertools
import math

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from netprune.curves import Damage, fit, fit_all
from netprune.evaluation import Evaluation
from netprune.sensitivity import LayerCurve, Sensitivity

SEEDS = range(6)


def curve(sparsities, damage, se=None, *, layer="a", size=1000, start=0.0):
    count = len(sparsities)
    damage = np.asarray(damage, dtype=float)
    return LayerCurve(
        layer=layer,
        size=size,
        start=start,
        sparsities=np.asarray(sparsities, dtype=float),
        loss=1 + damage,
        damage=damage,
        damage_se=np.full(count, 0.01) if se is None else np.asarray(se, dtype=float),
        accuracy=np.zeros(count),
        accuracy_se=np.zeros(count),
        count=np.full(count, 100),
        changed=np.ones(count, dtype=bool),
    )


def ragged(seed, points=12, start=0.0):
    """Noise around a rising curve, dips and negative damage among it, each point with an error of its own."""
    rng = np.random.default_rng(seed)
    sparsities = start + (1 - start) * np.sort(rng.choice(np.arange(1, 100), points, replace=False)) / 100
    damage = 2 * sparsities**4 + rng.normal(0, 0.4, points)
    return curve(sparsities, damage, rng.uniform(0.001, 0.5, points), start=start)


def rising(seed, points=9):
    rng = np.random.default_rng(seed)
    sparsities = np.sort(rng.choice(np.arange(1, 100), points, replace=False)) / 100
    return Damage(50, np.concatenate([[0.0], sparsities]), np.concatenate([[0.0], rng.exponential(1, points).cumsum()]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("start", [0.0, 0.37])
def test_fit_equals_scikit_learns_weighted_isotonic_regression(seed, start):
    measured = ragged(seed, start=start)
    expected = IsotonicRegression(y_min=0).fit_transform(
        measured.sparsities, measured.damage, sample_weight=measured.damage_se**-2
    )
    found = fit(measured)
    assert found.size == 1000
    assert found.sparsities.tolist() == [start, *measured.sparsities.tolist()]
    assert found.values[1:] == pytest.approx(expected, abs=1e-9)


def test_fit_of_noise_about_nothing_takes_what_falls_below_it_for_noise_too():
    assert fit(curve([0.2, 0.4, 0.6, 0.8], [-0.05, 0.02, -0.04, 0.03])).values.tolist() == [0, 0, 0, 0, 0.03]


def test_until_ends_the_curve_where_it_is_told_to_and_leaves_the_rest():
    whole = Damage(10, np.array([0.1, 0.5, 0.9]), np.array([0.0, 0.2, 1.0]))
    cut = whole.until(0.7)
    assert (cut.sparsities.tolist(), cut.values.tolist()) == ([0.1, 0.5, 0.7], pytest.approx([0.0, 0.2, 0.6]))
    assert whole.until(0.5).sparsities.tolist() == [0.1, 0.5]
    assert whole.until(0.9) is whole
    assert set(whole.until(0.05).sparsities.tolist()) == {0.1}, "what is gone already stays so"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("start", [0.0, 0.37])
def test_fit_never_falls_and_starts_from_nothing(seed, start):
    found = fit(ragged(seed, start=start))
    assert (found.sparsities[0], found.values[0]) == (start, 0.0)
    assert found(start) == 0.0
    assert (np.diff(found.values) >= 0).all()
    readings = [found(s) for s in np.linspace(start, found.last, 500).tolist()]
    assert readings == sorted(readings)


def test_fit_leaves_a_rising_curve_as_it_was_measured():
    found = fit(curve([0.3, 0.6, 0.9, 1.0], [0.0, 0.25, 1.5, 2.0]))
    assert found.values.tolist() == pytest.approx([0.0, 0.0, 0.25, 1.5, 2.0], abs=1e-12)
    assert found(0.75) == pytest.approx(0.875)
    assert found(0.15) == 0.0


def test_fit_believes_a_sharp_point_more_than_a_noisy_one():
    found = fit(curve([0.5, 0.6], [2.0, 1.0], [0.5, 0.01]))
    assert found.values[1:] == pytest.approx([1.0, 1.0], abs=1e-3)


def test_fit_of_points_without_noise_is_finite():
    found = fit(curve([0.5, 0.6, 0.7], [0.0, 0.0, 0.3], [0.0, 0.0, 0.1]))
    assert found.values.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.3])
    level = fit(curve([0.5, 0.6], [0.4, 0.2], [0.0, 0.0]))
    assert level.values.tolist() == pytest.approx([0.0, 0.3, 0.3])


def test_fit_of_negative_damage_is_zero():
    assert fit(curve([0.5, 0.9], [-0.3, -0.1])).values.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_fit_of_a_damage_that_is_not_finite_ends_before_it(broken, at):
    damage = [0.1, 0.3, 0.7, 1.5]
    damage[at] = broken
    found = fit(curve([0.3, 0.6, 0.9, 1.0], damage, start=0.2))
    assert found.sparsities.tolist() == [0.2, 0.3, 0.6, 0.9, 1.0][: at + 1]
    assert found.values.tolist() == pytest.approx([0.0, *damage[:at]])
    assert found.most_at(9.9) == found.last


def test_fit_all_fits_each_layer_by_name():
    curves = (ragged(0), curve([0.5], [0.2], layer="b", size=3))
    scan = Sensitivity(
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
    found = fit_all(scan)
    assert list(found) == ["a", "b"]
    assert found["b"].size == 3
    assert np.array_equal(found["a"].values, fit(curves[0]).values)


@pytest.mark.parametrize("last", [0.9, 1.0])
def test_damage_past_the_last_point_is_refused(last):
    found = fit(curve([0.5, last], [0.1, 0.2]))
    assert found.last == last
    assert found(last) == pytest.approx(0.2)
    assert found(last + 1e-15) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="past the curve's last point"):
        found(last + 1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_most_at_inverts_a_rising_curve(seed):
    found = rising(seed)
    for sparsity in np.linspace(0, found.last, 50).tolist():
        assert found.most_at(found(sparsity)) == pytest.approx(sparsity, abs=1e-9)
    for damage in np.linspace(0, found.values[-1], 50).tolist():
        assert found(found.most_at(damage)) == pytest.approx(damage, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_most_at_is_the_largest_sparsity_of_a_fine_grid(seed):
    found = fit(ragged(seed))
    grid = np.linspace(0, found.last, 20_001)
    damages = np.array([found(s) for s in grid.tolist()])
    for damage in (*np.linspace(0, found.values[-1] * 1.1, 23).tolist(), *found.values.tolist()):
        expected = grid[damages <= damage + 1e-12].max()
        assert found.most_at(damage) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("damage", "expected"), [(-0.1, 0.0), (0.0, 0.2), (0.5, 0.3), (1.0, 0.8), (1.5, 0.85), (2.0, 0.9), (9.0, 0.9)]
)
def test_most_at_on_a_flat_piece_is_its_far_end(damage, expected):
    found = Damage(10, np.array([0.0, 0.2, 0.4, 0.8, 0.9]), np.array([0.0, 0.0, 1.0, 1.0, 2.0]))
    assert found.most_at(damage) == pytest.approx(expected)


def lower_hull(x, y, at):
    """The lower convex hull of points at one place: the lowest chord over it."""
    return min(
        y[i] if i == j else y[i] + (y[j] - y[i]) * (at - x[i]) / (x[j] - x[i])
        for i in range(len(x))
        for j in range(i, len(x))
        if x[i] <= at <= x[j]
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_hull_equals_the_lowest_chords(seed):
    found = fit(ragged(seed))
    x, y = found.sparsities.tolist(), found.values.tolist()
    hull = found.hull()
    assert set(hull) <= set(zip(x, y, strict=True))
    assert (hull[0], hull[-1]) == ((x[0], y[0]), (x[-1], y[-1]))
    for at in (*x, *np.linspace(0, found.last, 101).tolist()):
        expected = lower_hull(x, y, at)
        assert np.interp(at, *zip(*hull, strict=True)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_hull_pieces_rise_in_slope_and_add_up_to_the_curve(seed):
    found = fit(ragged(seed))
    pieces = found.hull_pieces()
    assert all(one[0] < other[0] for one, other in itertools.pairwise(pieces))
    assert all(length > 0 for _, length in pieces)
    assert sum(length for _, length in pieces) == pytest.approx(found.last)
    assert sum(slope * length for slope, length in pieces) == pytest.approx(float(found.values[-1]))


def test_hull_of_points_on_one_line_is_its_ends():
    found = Damage(10, np.array([0.0, 0.25, 0.5, 1.0]), np.array([0.0, 0.5, 1.0, 2.0]))
    assert found.hull() == [(0.0, 0.0), (1.0, 2.0)]
    assert found.hull_pieces() == [(2.0, 1.0)]
