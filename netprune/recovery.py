"""What accuracy to expect of a density after so many finetune epochs, learned from a study's own trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GAIN, GAIN_SPREAD = 0.01, 0.01
SLOPE, SLOPE_SPREAD = 0.03, 0.03
NOISE = 0.005
"""What is supposed before anything is measured: the accuracy that each e-fold of finetune epochs and of density brings,
with the spread of the supposition, and the noise of a finetuning."""
LEAST_SLOPE = 0.003
"""More weights are never worth nothing: keeps a noisy flat curve from asking for densities far away."""
NEAR = math.log(2.0)
"""Within which distance in log density a trial counts in full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovery:
    """Accuracy as a plane, near one density: level + slope · ln density + gain · ln epochs."""

    slope: float
    """Accuracy an e-fold of density brings, above 0."""
    gain: float
    """Accuracy an e-fold of finetune epochs brings, at least 0."""
    density: float
    epochs: float
    accuracy: float
    """A point of the plane."""

    @classmethod
    def fit(
        cls, densities: Sequence[float], epochs: Sequence[float], accuracies: Sequence[float], *, near: float
    ) -> Recovery:
        """Least squares, with suppositions about slope and gain that a few trials outweigh.

        Accuracy over log density is bent: trials count the less the further their density is from `near`.

        Args:
            densities: of trials, at least one, in (0, 1].
            epochs: that their networks have been finetuned in all, above 0.
            accuracies: in [0, 1].
            near: density at which the plane is to hold.

        >>> round(Recovery.fit([0.1], [1.0], [0.8], near=0.1).gain, 3)
        0.01
        >>> many = Recovery.fit([0.1] * 8, [1, 2, 4, 8] * 2, [0.80, 0.82, 0.84, 0.86] * 2, near=0.1)
        >>> round(many.gain, 3)
        0.028
        """
        points, y = np.stack([np.log(densities), np.log(epochs)], axis=1), np.asarray(accuracies)
        away = (points[:, 0] - math.log(near)) / NEAR
        weights = np.exp(-0.5 * (away**2 - np.min(away**2)))  # the nearest counts in full, wherever it is
        middle, level = np.average(points, axis=0, weights=weights), np.average(y, weights=weights)
        x, y = points - middle, y - level
        prior, spread = np.array([SLOPE, GAIN]), np.array([SLOPE_SPREAD, GAIN_SPREAD])
        trust = np.diag(1 / spread**2)
        weighted = x.T * weights / NOISE**2
        slope, gain = np.linalg.solve(weighted @ x + trust, weighted @ y + trust @ prior)
        return cls(
            slope=max(LEAST_SLOPE, float(slope)),
            gain=max(0.0, float(gain)),
            density=math.exp(middle[0]),
            epochs=math.exp(middle[1]),
            accuracy=float(level),
        )

    def more(self, had: float, has: float) -> float:
        """Accuracy that training from `had` finetune epochs to `has` in all brings."""
        return self.gain * math.log(has / had)

    def density_at(self, accuracy: float, epochs: float) -> float:
        """The density that comes to an accuracy after so many finetune epochs; above 1 where none does."""
        short = accuracy - self.accuracy - self.more(self.epochs, epochs)
        return self.density * math.exp(min(50.0, short / self.slope))
