"""Where a search begins: the best allocation at each of some densities, and the density at which the floor lies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from netprune.allocation import ALLOCATORS, Basis
from netprune.errors import InputError
from netprune.masks import Sparsity
from netprune.recovery import NOISE, Recovery
from netprune.search_space import Point, Space

RULES = ("kept_norm", "lamp", "erk", "global_magnitude", "knapsack")
"""Those that were the best, or within a standard deviation of it, somewhere (README, Which layer, how much?); the best
after long finetuning first (results log)."""
WITHIN = 0.1
"""Of two rules' sums of what is left to recover: so close, they do not tell which is better."""
DENSITIES = tuple(float(d) for d in np.geomspace(0.004, 0.6, 9))
FIRST, STEP, CLOSE = 0.2, 2.5, 1.3
"""The first density that is tried, the largest factor to the next, and the factor between densities at which they are
close: on the two sides of an aim close enough."""
SHORT = 3
"""How many times as long as a network another may have been trained, for that network to say where the aim lies."""
ALIKE = 0.15
"""How far apart the offsets of two points may be, at most, if they are to count as one allocation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a trial on the path came to."""

    density: float
    accuracy: float
    """In [0, 1]."""
    epochs: float
    """Finetune epochs that its network has had in all, above 0; any constant where nothing is finetuned."""


def ranked(
    basis: Basis, density: float, screen: Callable[[Sparsity], float], rules: Sequence[str] = RULES
) -> list[tuple[str, Sparsity]]:
    """Each rule's allocation at a density, the best by `screen` first; rules that cannot reach it are left out."""
    found = [(rule, sparsity) for rule in rules if (sparsity := _allocated(basis, rule, density)) is not None]
    return sorted(found, key=lambda one: screen(one[1]))


def _allocated(basis: Basis, rule: str, density: float) -> Sparsity | None:
    try:
        return ALLOCATORS[rule](basis, density)
    except InputError:  # below what the scan reached, or no scan
        return None


def densities(basis: Basis) -> tuple[float, ...]:
    """Those of a path: `DENSITIES`, of what the layers' limits leave to be pruned."""
    return tuple(basis.least + (1 - basis.least) * density for density in DENSITIES)


def best_rule(
    basis: Basis,
    screen: Callable[[Sparsity], float],
    rules: Sequence[str] = RULES,
    on_look: Callable[[int, int], None] = lambda *_: None,
) -> str:
    """The first of the rules after whose allocations about as little is left to recover as after any other's: within a
    tenth, summed over every other density of a path.

    Not the one with the least: without training, small differences say nothing of what finetuning makes of a network
    (README, results log), so that the order of the rules decides then. Large ones do: a rule that goes by weights is
    misled if the layers' scales mean nothing.

    One that cannot reach a density is none to begin with: its path would end above it. Every other, because screenings
    are dear on large networks.

    Args:
        basis: of the allocations.
        screen: sparsities → what is left to recover, at least 0, lower is better.
        rules: to choose from, those preferred first.
        on_look: called after each screening with how many are done and how many there are.
    """
    looks, screened = itertools.count(1), densities(basis)[1::2]
    left = dict.fromkeys(rules, 0.0)
    for density in screened:
        for rule in rules:
            sparsity = _allocated(basis, rule, density)
            left[rule] += math.inf if sparsity is None else screen(sparsity)
            on_look(next(looks), len(rules) * len(screened))
    most = (1 + WITHIN) * min(left.values())
    return next(rule for rule, value in left.items() if value <= most)


def seed_path(basis: Basis, rule: str) -> tuple[tuple[float, Sparsity], ...]:
    """A rule's allocations at rising densities: see `Space.path`. Densities that it cannot reach are left out."""
    path = [(density, _allocated(basis, rule, density)) for density in densities(basis)]
    return tuple((density, sparsity) for density, sparsity in path if sparsity is not None)


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where the path crosses an aim, as far as trials say."""

    wanted: float | None
    """The density to try next; None when there is no need."""
    met: float | None
    """The smallest density that comes to the aim; None while none does."""


def boundary(seen: Sequence[Seen], aim: float, *, will: float, least: float, most: float) -> Boundary:
    """The density at which the next network would just come to an accuracy.

    Networks go on from each other, so that the boundary moves down from trial to trial: each accuracy is taken as it
    would be had its network been trained as long as the next one will have been, and the density is the one at which a
    plane fitted to them (`Recovery`) crosses the aim. What the plane says is held between the densities that are known
    to lie on the two sides, or within a factor of the known one. One that is above the aim by no more than finetunings
    differ by is the boundary. A density that falls short above one that does not is noise, and does not
    count; nor does a network that was trained less than a third as long as another.

    Args:
        seen: trials on the path.
        aim: accuracy, in [0, 1].
        will: finetune epochs that the next trial's network will have had in all.
        least: smallest density to propose.
        most: largest.

    >>> boundary([], 0.8, will=1, least=0.004, most=0.6).wanted
    0.2
    >>> one = Seen(density=0.2, accuracy=0.83, epochs=1)
    >>> round(boundary([one], 0.8, will=2, least=0.004, most=0.6).wanted, 3)
    0.08
    """
    if not seen:
        return Boundary(min(most, max(least, FIRST)), None)
    longest = max(one.epochs for one in seen)
    heard = [one for one in seen if one.epochs * SHORT >= longest]
    near = min(heard, key=lambda one: abs(one.accuracy - aim))
    columns = [[getattr(one, name) for one in seen] for name in ("density", "epochs", "accuracy")]
    plane = Recovery.fit(*columns, near=near.density)
    grown = {
        one.density: one.accuracy + max(0.0, plane.more(one.epochs, will))
        for one in sorted(heard, key=lambda one: one.epochs)  # of one density, what was trained longest counts
    }
    high = min((density for density, accuracy in grown.items() if accuracy >= aim), default=None)
    low = max((d for d, a in grown.items() if a < aim and (high is None or d < high)), default=None)
    if high is None:
        assert low is not None
        bounds = None if low >= most else (low * CLOSE, low * STEP)
    elif high <= least or high <= (low or 0.0) * CLOSE or grown[high] - aim <= NOISE:
        bounds = None
    elif low is None:
        bounds = (high / STEP, high / CLOSE)
    else:
        inner = (high / low) ** (1 / 3)
        bounds = (low * inner, high / inner)
    if bounds is None:
        return Boundary(None, high)
    wanted = min(bounds[1], max(bounds[0], plane.density_at(aim, will)))
    return Boundary(min(most, max(least, wanted)), high)


def propose(
    where: Boundary,
    space: Space,
    running: Sequence[Point],
    known: Collection[Point],
    others: Callable[[float], Sequence[Sparsity]],
) -> Point | None:
    """The next point that a search should begin with, or None when it has begun.

    First the path, to the density that is wanted; then, at the smallest density that comes to the aim, other rules'
    allocations, each once, which show the sampler how much the offsets can give.

    Args:
        where: see `boundary`.
        space: that is searched.
        running: points that other workers are at: what they try is supposed to come to the aim, so that this one
            looks further down. Or that have diverged.
        known: points that were tried, or are running.
        others: density → allocations of other rules worth a trial.
    """
    if where.wanted is not None:
        busy, density = [p.density for p in running if not any(p.offsets.values())], where.wanted
        while any(abs(math.log(density / other)) < 0.99 * math.log(CLOSE) for other in busy):
            density /= CLOSE
        if density >= space.least:
            return Point(density=density, offsets=dict.fromkeys(space.sizes, 0.0))
    for other in others(where.met) if where.met is not None else ():
        point = space.locate(other)
        if not any(_alike(point, one) for one in known):
            return point
    return None


def _alike(one: Point, other: Point) -> bool:
    return all(abs(value - other.offsets[name]) <= ALIKE for name, value in one.offsets.items())
