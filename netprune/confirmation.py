"""Which of a search's candidates to finetune longer next, so that the smallest acceptable one is found with few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from netprune.confidence import lower_bound

ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trial that ran to its end."""

    number: int
    size_bytes: int
    accuracy: float
    """Validation after the trial's short finetuning, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a candidate came to when it was finetuned longer, with fresh seeds."""

    size_bytes: int
    mean: float
    lower: float
    """End of the one-sided 95 % confidence interval; what is held against the floor."""


def image_margin(floor: float, images: int) -> float:
    """How far above a floor an accuracy must be for its lower bound to meet it, if seeds agree."""
    return floor - lower_bound([floor, floor], images).lower


def next_candidate(
    candidates: Sequence[Candidate], measured: Mapping[int, Bound], floor: float, *, images: int, most: int
) -> int | None:
    """The number of the next candidate, or None when the search has its answer.

    The smallest first, of those that may be expected to pass: a candidate's accuracy, plus what the longer finetuning
    has given the others on average, less the bound's margin. To begin with the two are taken to be equal, so that the
    smallest feasible trial is the first; if longer finetunings turn out to give more, smaller ones follow that were
    below the floor in their trial, and if less, larger ones. Every feasible trial is tried before there is none.

    Args:
        candidates: trials that ran to their end.
        measured: by candidate number.
        floor: in [0, 1].
        images: that accuracies are measured on.
        most: candidates after which no still smaller one is looked for, once one has been accepted.
    """
    margin = image_margin(floor, images)
    known = {candidate.number: candidate for candidate in candidates}
    gains = [bound.mean - known[number].accuracy for number, bound in measured.items()]
    gain = sum(gains) / len(gains) if gains else margin
    accepted = [bound.size_bytes for bound in measured.values() if bound.lower >= floor - ROUNDING]
    if accepted and len(measured) >= most:
        return None
    left = [
        c for c in candidates if c.number not in measured and c.size_bytes < min(accepted, default=c.size_bytes + 1)
    ]
    promising = [c for c in left if c.accuracy + gain - margin >= floor - ROUNDING]
    if promising:
        return min(promising, key=lambda c: (c.size_bytes, -c.accuracy)).number
    feasible = [c for c in left if c.accuracy >= floor - ROUNDING]
    if feasible and not accepted:
        return max(feasible, key=lambda c: (c.accuracy, -c.size_bytes)).number
    return None
