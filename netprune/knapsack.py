"""The multiple-choice knapsack: one sparsity a layer, the least summed damage, no more weights than the budget."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from netprune.curves import Damage
from netprune.masks import Sparsity

BINS = 20_000
LEVELS = 100


def cheapest(curves: Mapping[str, Damage], density: float, candidate: Sparsity) -> Sparsity:
    """The sparsities of least summed damage that keep `density` of the weights, and not worse than `candidate`.

    Dynamic programming over layers and the budget, which is cut into 20,000 bins; a level's weights are counted upwards
    to whole bins, so the choice keeps to the budget, and what that leaves over is then given to the layers that gain
    most by it. Source: Kellerer, Pferschy & Pisinger 2004, Knapsack Problems, ch. 11; SPDY (arXiv:2201.13096).

    Args:
        curves: weight name → damage by sparsity.
        density: fraction of all weights to keep.
        candidate: a solution to be beaten; its sparsities are among the levels.
    """
    budget = density * sum(curve.size for curve in curves.values())
    levels = {name: _levels(curve, candidate[name]) for name, curve in curves.items()}
    chosen = _choose(curves, levels, budget)
    if chosen is None:
        return candidate
    found = _spend(curves, chosen, budget)
    return min(found, candidate, key=lambda s: sum(curves[n](v) for n, v in s.items()))


def _levels(curve: Damage, extra: float) -> NDArray[np.float64]:
    """Sparsities to choose from: the curve's own points, and log-spaced densities between them."""
    low, high = float(curve.sparsities[0]), curve.last
    if low == 1:  # nothing left to choose
        return np.array([1.0])
    densities = np.geomspace(max(1 - high, 0.5 / curve.size), 1 - low, LEVELS)
    spaced = np.clip(1 - densities, low, high)
    return np.unique(np.concatenate([curve.sparsities, spaced, [extra]]))


def _choose(
    curves: Mapping[str, Damage], levels: Mapping[str, NDArray[np.float64]], budget: float
) -> dict[str, float] | None:
    """The best level for each layer, or None if not even the sparsest fit the bins."""
    width = budget / BINS
    best = np.zeros(BINS + 1)  # least damage of the layers so far, by bins spent
    choices = []
    for name, curve in curves.items():
        costs = np.ceil(curve.size * (1 - levels[name]) / width - 1e-9).astype(int)
        damages = np.interp(levels[name], curve.sparsities, curve.values)
        following, choice = np.full(BINS + 1, np.inf), np.zeros(BINS + 1, dtype=int)
        for i, (cost, damage) in enumerate(zip(costs.tolist(), damages.tolist(), strict=True)):
            if cost > BINS:
                continue
            with_it = best[: BINS + 1 - cost] + damage
            better = with_it < following[cost:]
            following[cost:][better] = with_it[better]
            choice[cost:][better] = i
        choices.append((name, costs, choice))
        best = following
    if not np.isfinite(best[-1]):
        return None
    left, chosen = BINS, {}
    for name, costs, choice in reversed(choices):
        chosen[name] = float(levels[name][choice[left]])
        left -= int(costs[choice[left]])
    return {name: chosen[name] for name in curves}


def _spend(curves: Mapping[str, Damage], chosen: Mapping[str, float], budget: float) -> dict[str, float]:
    """Keep more weights, up to the budget, where they undo most damage."""
    sparsity = dict(chosen)
    for _ in curves:
        left = budget - sum(curve.size * (1 - sparsity[name]) for name, curve in curves.items())
        if left <= 0:
            break
        lower = {n: max(float(c.sparsities[0]), sparsity[n] - left / c.size) for n, c in curves.items()}
        open_layers = [n for n in curves if lower[n] < sparsity[n]]
        if not open_layers:
            break
        gains = {n: (curves[n](sparsity[n]) - curves[n](lower[n]), sparsity[n] - lower[n]) for n in open_layers}
        name = max(gains, key=lambda n: gains[n])
        sparsity[name] = lower[name]
    return sparsity
