"""A layer's measured damage as a function: monotone, and never read past its last point."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from netprune.sensitivity import Curve, LayerCurve, Sensitivity


@dataclass(frozen=True, slots=True)
class Damage:
    """Damage of one layer by its sparsity: straight lines between points, from nothing pruned on."""

    size: int
    """Weights in the layer."""
    sparsities: Curve
    """`(S,)`, rising; the first is the sparsity that the layer has already."""
    values: Curve
    """`(S,)`, nats, from 0, never falling."""

    @property
    def last(self) -> float:
        """The largest sparsity that was measured."""
        return float(self.sparsities[-1])

    def __call__(self, sparsity: float) -> float:
        """Damage at a sparsity.

        Raises:
            ValueError: past the last point: a curve says nothing there.
        """
        if sparsity > self.last + 1e-12:
            raise ValueError(f"sparsity {sparsity} lies past the curve's last point, {self.last}")
        return float(np.interp(sparsity, self.sparsities, self.values))

    def until(self, sparsity: float) -> Damage:
        """The same curve, ending at a sparsity, or where it ends anyway; its first point stays."""
        if sparsity >= self.last:
            return self
        kept = max(1, int(np.searchsorted(self.sparsities, sparsity)))
        end = max(sparsity, float(self.sparsities[0]))
        return Damage(self.size, np.append(self.sparsities[:kept], end), np.append(self.values[:kept], self(end)))

    def most_at(self, damage: float) -> float:
        """The largest sparsity whose damage is not above `damage`."""
        beyond = np.flatnonzero(self.values > damage)
        if not len(beyond):
            return self.last
        i = int(beyond[0])
        if i == 0:
            return float(self.sparsities[0])
        share = (damage - self.values[i - 1]) / (self.values[i] - self.values[i - 1])
        return float(self.sparsities[i - 1] + share * (self.sparsities[i] - self.sparsities[i - 1]))

    def hull(self) -> list[tuple[float, float]]:
        """Lower convex hull of the points, as (sparsity, damage): between two of them the slope is constant, and it
        rises from piece to piece."""
        hull: list[tuple[float, float]] = []
        for point in zip(self.sparsities.tolist(), self.values.tolist(), strict=True):
            while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
                hull.pop()
            hull.append(point)
        return hull

    def hull_pieces(self) -> list[tuple[float, float]]:
        """The hull as (slope, length) pieces."""
        return [(_slope(a, b), b[0] - a[0]) for a, b in itertools.pairwise(self.hull())]


def fit(curve: LayerCurve) -> Damage:
    """The monotone curve from 0 nearest to the measured one: isotonic regression, each point weighted by 1/SE², and
    then nothing below 0 (which is the nearest such curve: Barlow et al. 1972).

    Noise makes a measured curve fall here and there, below zero too; pruning more of a layer by the same order never
    helps for a reason that could be used. It ends where the damage is no finite number.
    """
    curve = curve.while_finite()
    beyond = curve.sparsities > curve.start  # what is gone already cannot be kept
    if not beyond.any():
        return Damage(curve.size, np.array([curve.start]), np.array([0.0]))
    # a point without noise (nothing changed) is exact, not infinitely heavy
    weights = 1 / np.maximum(curve.damage_se[beyond], 1e-4) ** 2
    monotone = isotonic_regression(curve.damage[beyond], weights=weights).x
    return Damage(
        curve.size,
        np.concatenate([[curve.start], curve.sparsities[beyond]]),
        np.concatenate([[0.0], np.maximum(monotone, 0.0)]),
    )


def fit_all(sensitivity: Sensitivity) -> dict[str, Damage]:
    """Weight name → fitted curve."""
    return {curve.layer: fit(curve) for curve in sensitivity.curves}


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
