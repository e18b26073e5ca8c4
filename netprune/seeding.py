"""Where a search begins: the best allocation at each of some densities, and the density at which the floor lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from netprune.allocation import ALLOCATORS, Basis
from netprune.errors import InputError
from netprune.masks import Sparsity
from netprune.search_space import Point, Space

RULES = ("kept_norm", "lamp", "erk", "global_magnitude", "knapsack")
"""Those that were the best, or within a standard deviation of it, somewhere (README, Which layer, how much?)."""
DENSITIES = tuple(float(d) for d in np.geomspace(0.004, 0.6, 9))
FIRST, STEP, CLOSE = 0.1, 2.5, 1.3
"""The first density that is tried, the factor to the next while only one side is known, and the factor between
densities on the two sides of the floor at which they are close enough."""


def ranked(
    basis: Basis, density: float, screen: Callable[[Sparsity], float], rules: Sequence[str] = RULES
) -> list[tuple[str, Sparsity]]:
    """Each rule's allocation at a density, the best by `screen` first; rules that cannot reach it are left out."""
    found = []
    for rule in rules:
        try:
            found.append((rule, ALLOCATORS[rule](basis, density)))
        except InputError:  # below what the scan reached, or no scan
            continue
    return sorted(found, key=lambda one: screen(one[1]))


def densities(basis: Basis) -> tuple[float, ...]:
    """Those of a path: `DENSITIES`, of what the layers' limits leave to be pruned."""
    return tuple(basis.least + (1 - basis.least) * density for density in DENSITIES)


def best_rule(basis: Basis, screen: Callable[[Sparsity], float], rules: Sequence[str] = RULES) -> str:
    """The rule that the screening ranks best over the densities that all of them reach (the least sum of ranks)."""
    ranks = dict.fromkeys(rules, 0)
    for density in densities(basis):
        order = [rule for rule, _ in ranked(basis, density, screen, rules)]
        for rule in rules:
            ranks[rule] += order.index(rule) if rule in order else len(rules)
    return min(ranks, key=ranks.__getitem__)


def seed_path(basis: Basis, rule: str) -> tuple[tuple[float, Sparsity], ...]:
    """A rule's allocations at rising densities: see `Space.path`. Densities that it cannot reach are left out."""
    path = []
    for density in densities(basis):
        try:
            path.append((density, ALLOCATORS[rule](basis, density)))
        except InputError:
            continue
    return tuple(path)


def propose(
    tried: Sequence[tuple[Point, Sequence[bool]]], space: Space, others: Callable[[float], Sequence[Sparsity]]
) -> Point | None:
    """The next point that a search should begin with, or None when it has begun.

    First the path, at the densities that bring both sides of each floor together (`next_density`); then, at the
    smallest density of the path that met a floor, other rules' allocations, which show the sampler how much the offsets
    can give.

    Args:
        tried: where earlier trials were, and which floors each met.
        space: that is searched.
        others: density → allocations of other rules worth a trial.
    """
    floors = len(tried[0][1]) if tried else 1
    for i in range(floors):
        on_path = {point.density: met[i] for point, met in tried if not any(point.offsets.values())}
        density = next_density(on_path, space.least, space.most)
        if density is not None:
            return Point(density=density, offsets=dict.fromkeys(space.sizes, 0.0))
        met_at = min((d for d, met in on_path.items() if met), default=None)
        for other in others(met_at) if met_at is not None else ():
            where = space.locate(other)
            if not any(_same(where, point) for point, _ in tried):
                return where
    return None


def _same(one: Point, other: Point) -> bool:
    near = math.isclose(one.density, other.density, rel_tol=1e-6)
    return near and all(math.isclose(value, other.offsets[n], abs_tol=1e-6) for n, value in one.offsets.items())


def next_density(meets: Mapping[float, bool], least: float, most: float, close: float = CLOSE) -> float | None:
    """The next density to try on the way to the floor, or None when its two sides are close.

    Steps of a factor until one density meets the floor and a smaller one does not, then geometric bisection. A density
    that misses the floor above one that meets it is noise, and does not count.

    Args:
        meets: density → whether the network met the floor.
        least: smallest density to propose.
        most: largest.
        close: factor between the two sides at which they are close enough.

    >>> next_density({}, 0.004, 0.6), next_density({0.1: True}, 0.004, 0.6)
    (0.1, 0.04)
    >>> round(next_density({0.1: True, 0.04: False}, 0.004, 0.6), 4)
    0.0632
    >>> next_density({0.1: True, 0.08: False}, 0.004, 0.6) is None
    True
    """
    high = min((density for density, met in meets.items() if met), default=None)
    low = max((d for d, met in meets.items() if not met and (high is None or d < high)), default=None)
    if high is None and low is None:
        return min(most, max(least, FIRST))
    if high is None or low is None:
        edge, proposed = (most, (low or 0.0) * STEP) if high is None else (least, high / STEP)
        known = low if high is None else high
        return None if known == edge else min(most, max(least, proposed))
    return None if high / low <= close else math.sqrt(high * low)
