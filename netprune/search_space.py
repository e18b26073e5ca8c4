"""Where a study looks: one budget for the whole network, and how far each layer departs from the seed path."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from netprune.bounds import Bounds
from netprune.masks import Sparsity
from netprune.proportions import proportional

REACH = 1.5
"""How far a layer's log density may depart from the path: a factor of 4.5 either way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One place in the space."""

    density: float
    """Of all prunable weights together, in (0, 1]."""
    offsets: Mapping[str, float]
    """Weight name → natural logarithm of its density over the path's, within ± `REACH`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """Bounded offsets in log density around a path of seed allocations, plus one overall density.

    The overall density alone says how many weights there are, so that the file's size is smooth in it and nearly
    indifferent to the offsets; these only share the weights out anew. Damage is smooth in both. Raw per-layer
    sparsities have neither property: each moves the size, and most of their range is a network that guesses.
    """

    sizes: Mapping[str, int]
    """Weight name → number of weights."""
    path: tuple[tuple[float, Sparsity], ...]
    """Density and sparsities of some allocations by one rule, densities rising; between them, logarithms of a layer's
    density are interpolated."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Weight name → largest sparsity, of layers that have one: see `Bounds.limits`."""

    @property
    def least(self) -> float:
        """The path's smallest density."""
        return self.path[0][0]

    @property
    def most(self) -> float:
        """The path's largest density."""
        return self.path[-1][0]

    def at(self, point: Point) -> Sparsity:
        """The sparsities at a point: they keep its density of all weights, and one weight of every layer."""
        wanted = {
            name: d * math.exp(point.offsets.get(name, 0.0)) for name, d in self._densities(point.density).items()
        }
        scaled = self._in_proportion(wanted, point.density)
        return {name: min(value, 1 - 1 / self.sizes[name]) for name, value in scaled.items()}

    def locate(self, sparsity: Sparsity) -> Point:
        """The point nearest to an allocation: its own density within the path's, and offsets cut to ± `REACH`."""
        kept = sum(size * (1 - sparsity[name]) for name, size in self.sizes.items()) / sum(self.sizes.values())
        density = min(self.most, max(self.least, kept))
        offsets = {
            name: min(REACH, max(-REACH, math.log(max(1 - sparsity[name], 1 / self.sizes[name]) / path_density)))
            for name, path_density in self._densities(density).items()
        }
        return Point(density=density, offsets=offsets)

    def _densities(self, density: float) -> dict[str, float]:
        at = [math.log(knot) for knot, _ in self.path]
        between = {
            name: math.exp(
                np.interp(math.log(density), at, [math.log(max(1 - s[name], 1 / size)) for _, s in self.path])
            )
            for name, size in self.sizes.items()
        }
        return {name: 1 - value for name, value in self._in_proportion(between, density).items()}

    def _in_proportion(self, ratio: Mapping[str, float], density: float) -> Sparsity:
        bounds = Bounds(sizes=self.sizes, limits=self.limits)
        return bounds.share(
            density, lambda names, share: proportional({name: self.sizes[name] for name in names}, ratio, share)
        )
