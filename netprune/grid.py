"""Which sparsities a scan measures: log-spaced in density, and closer where a curve bends."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from netprune.masks import pruned_count
from netprune.sensitivity import LayerCurve

DECADES = 3
POINTS_A_DECADE = 2
BEND = 0.15
"""Nats by which a curve must leave the straight line for points to be added."""
MIN_STEP = 0.2
"""Decades of density between two points that are not divided further."""


def density_grid(weight: Tensor) -> list[float]:
    """Log-spaced in density, from the density that the layer has now down to 0.1 % of it, and nothing left at all."""
    now = density_of(weight)
    steps = range(1, DECADES * POINTS_A_DECADE + 1)
    return distinct([1.0, *(1 - now * 10 ** (-i / POINTS_A_DECADE) for i in steps)], weight)


def density_of(weight: Tensor) -> float:
    """Fraction of the weights that are not zero, in [0, 1]."""
    return int(weight.count_nonzero()) / weight.numel()


def distinct(sparsities: Sequence[float], weight: Tensor) -> list[float]:
    """Rising, and no two that prune the same number of weights: a small layer has fewer steps than the grid.

    Args:
        sparsities: of two that prune the same number the first is taken.
        weight: the layer's; what is zero already is no point.
    """
    by_count: dict[int, float] = {}
    for sparsity in sparsities:
        by_count.setdefault(pruned_count(weight.numel(), sparsity), sparsity)
    already = weight.numel() - int(weight.count_nonzero())
    return [s for count, s in sorted(by_count.items()) if count > already or s == 1.0]


def midpoints(curve: LayerCurve, now: float, classes: int) -> list[float]:
    """New sparsities where the curve of damage over log density bends by more than noise, up to the loss of guessing.

    Beyond ln(classes) the network knows nothing more that could be lost, and no budget is spent there; nor is one where
    the damage is no finite number.
    """
    curve = curve.while_finite()
    if now == 0 or not len(curve.damage):
        return []
    densities = np.maximum(1 - curve.sparsities, now * 10.0 ** -(DECADES + 1 / POINTS_A_DECADE))
    x = -np.log10(np.concatenate([[now], densities]))
    y = np.concatenate([[0.0], curve.damage])
    slopes = np.diff(y) / np.diff(x)
    steps = np.diff(x)
    bends = np.abs(np.diff(slopes)) * np.minimum(steps[1:], steps[:-1])
    noise = 3 * curve.damage_se[:-1]
    sharp = (bends > np.maximum(BEND, noise)) & (y[:-2] < math.log(classes))
    wanted = {side for i in np.flatnonzero(sharp) for side in (i, i + 1)}
    last = len(steps) - 1 if curve.sparsities[-1] == 1 else len(steps)  # towards nothing left there is no middle
    return [float(1 - 10 ** -((x[i] + x[i + 1]) / 2)) for i in sorted(wanted) if i < last and steps[i] > MIN_STEP]
