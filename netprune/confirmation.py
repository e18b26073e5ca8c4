"""Which of a search's candidates to finetune longer next, so that the smallest acceptable one is found with few."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from netprune.confidence import is_reachable, least_accuracy
from netprune.recovery import NOISE

ROUNDING = 1e-9
ALIKE = 0.005
"""Of accuracies: see `surprise`."""
WITHIN = 0.005
"""By how much a network's accuracy may lack what a bound needs, for the same finetuning once more to bring it."""
AGAIN, AGAIN_SPREAD = 0.002, 0.003
"""Accuracy that the same finetuning once more, from the average of the first, brings on average, and how far it may be
from that (README, results log)."""
LEAST_CHANCE = 0.1
"""Of passing: candidates with less are not worth their finetunings."""
UNSURE = NOISE * math.sqrt(1.5)
"""By how much a candidate misses what is expected of it: a trial's noise, and that of the mean of two seeds."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trial that ran to its end."""

    number: int
    size_bytes: int
    accuracy: float
    """Validation after the trial's short finetuning, in [0, 1]."""
    expected: float
    """What it is expected to come to when it is finetuned longer."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a candidate came to when it was finetuned longer, with fresh seeds."""

    size_bytes: int
    mean: float
    lower: float
    """End of the one-sided 95 % confidence interval; what is held against the floor."""
    first: float | None = None
    """The mean before the same finetuning once more; None where there was none."""
    again: bool = False
    """Whether it may be finetuned once more."""


def image_margin(floor: float, images: int) -> float:
    """How far above a floor an accuracy must be for its lower bound to meet it, if seeds agree; where none can, how far
    above it the best is."""
    return min(1.0, least_accuracy(floor, images)) - floor


def aim(floor: float, images: int, gain: float) -> float:
    """The accuracy that a trial should have for its confirmation to meet a floor; never below the floor.

    Args:
        floor: in [0, 1].
        images: that accuracies are measured on.
        gain: accuracy that the confirmation's longer finetuning is expected to bring.
    """
    return max(floor, floor + image_margin(floor, images) - gain)


def surprise(made: Sequence[tuple[float, float]], near: float, doubt: float = 0.0) -> float:
    """By how much more than expected a confirmation should come to, from those that were made; 0 where none was.

    What finetuning longer brings grows with what a network lacks, so those that were expected to come to much the same
    count most: by a Gaussian of half a point, in which the nearest counts in full.

    Args:
        made: what was expected of each and what it came to, in [0, 1].
        near: accuracy of the next.
        doubt: so many that had been as expected are supposed beside them.

    >>> surprise([], 0.8), round(surprise([(0.8, 0.83), (0.8, 0.81), (0.9, 0.7)], 0.8), 3)
    (0.0, 0.02)
    >>> round(surprise([(0.9, 0.89)], 0.8), 3)
    -0.01
    >>> round(surprise([(0.9, 0.89)], 0.8, doubt=1), 3)
    -0.005
    """
    away = [abs(expected - near) / ALIKE for expected, _ in made]
    weights = [math.exp(-0.5 * (distance**2 - min(away) ** 2)) for distance in away]
    off = (weight * (came - expected) for weight, (expected, came) in zip(weights, made, strict=True))
    return sum(off) / (sum(weights) + doubt) if made else 0.0


def _came_to(bound: Bound) -> float:
    """What one longer finetuning brought it to, which is what is expected of the others."""
    return bound.mean if bound.first is None else bound.first


def next_candidate(
    candidates: Sequence[Candidate],
    measured: Mapping[int, Bound],
    floor: float,
    *,
    images: int,
    left: int,
    smallest: int | None = None,
) -> int | None:
    """The number of the candidate to finetune longer next, for the first time or once more; None when the search has
    its answer.

    The smallest first, of those that may be expected to pass: what a candidate is expected to come to, plus how far
    those like it were off (`surprise`), less the bound's margin. While none is accepted, larger ones follow if longer
    finetunings give less than was expected; when none is expected to pass, feasible trials larger than all that failed
    have their chance, the most accurate first; and when there is none such, the one that lacks least is finetuned once
    more, from what it has become.

    Once one has been accepted, it is the smaller one with the most to win, of new ones and of those that lack little:
    its chance of passing, squared, times the logarithm of what it would save. Squared, because the one that promises
    most is mostly one of which too much is expected.

    Args:
        candidates: trials that ran to their end.
        measured: by candidate number.
        floor: in [0, 1].
        images: that accuracies are measured on.
        left: finetunings that a still smaller one may have, once one has been accepted.
        smallest: bytes of the smallest that is accepted after whatever finetuning, where `measured` may lack it.
    """
    if not is_reachable(floor, images):
        return None
    least = floor + image_margin(floor, images)
    known = {candidate.number: candidate for candidate in candidates}
    made = [(known[n].expected, _came_to(bound)) for n, bound in measured.items()]
    comes_to = {one.number: one.expected + surprise(made, one.expected) for one in candidates}
    new = [candidate for candidate in candidates if candidate.number not in measured]
    near = {n: bound for n, bound in measured.items() if bound.again and bound.mean >= least - WITHIN}
    accepted = [bound.size_bytes for bound in measured.values() if bound.lower >= floor - ROUNDING]
    accepted += [] if smallest is None else [smallest]
    if accepted:
        smallest, normal = min(accepted), NormalDist()
        sizes = {one.number: one.size_bytes for one in new} | {n: bound.size_bytes for n, bound in near.items()}
        chances = {one.number: normal.cdf((comes_to[one.number] - least) / UNSURE) for one in new}
        chances |= {n: normal.cdf((bound.mean + AGAIN - least) / AGAIN_SPREAD) for n, bound in near.items()}
        worth = {
            n: chance**2 * math.log(smallest / sizes[n])
            for n, chance in chances.items()
            if chance >= LEAST_CHANCE and sizes[n] < smallest
        }
        return max(worth, key=worth.__getitem__) if worth and left > 0 else None
    promising = [one for one in new if comes_to[one.number] >= least - ROUNDING]
    if promising:
        return min(promising, key=lambda one: (one.size_bytes, -one.accuracy)).number
    failed = max((bound.size_bytes for bound in measured.values()), default=0)
    larger = [one for one in new if one.accuracy >= floor - ROUNDING and one.size_bytes > failed]
    if larger:
        return max(larger, key=lambda one: (one.accuracy, one.size_bytes)).number
    return max(near, key=lambda n: (near[n].mean, -near[n].size_bytes), default=None)
