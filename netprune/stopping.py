"""When a trial may stop early: when earlier trials' learning curves say that it cannot reach the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CHECKS = (0.0, 0.25, 0.5, 0.75)
"""Shares of a finetuning after which a network is looked at; 0 is after recalibration, before the first step."""
MARGIN = 0.01
"""How much better at a look another trial must have been to speak against this one, and how much worse to be like
it."""
SHORT = 0.005
"""How far below the floor a trial must have ended to speak against another; noise of a finetuning's seed."""
CONTROLS = 8
"""One verdict of as many is not acted upon: what the trial comes to says how often verdicts are wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningCurve:
    """Accuracies of one trial on the way."""

    checks: Mapping[float, float]
    """Share of the finetuning → accuracy on the first validation images, in [0, 1]."""
    final: float
    """Of the file, on all validation images."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """That a trial cannot reach the floor."""

    reason: str
    """In words, with the figures of the trial that speaks against it."""
    bound: float
    """What that trial ended at, in [0, 1]: this one would hardly have passed it."""


def hopeless(share: float, accuracy: float, earlier: Sequence[LearningCurve], floor: float) -> Verdict | None:
    """Whether and why a trial cannot reach the floor any more; None if it may.

    It cannot when an earlier trial that was clearly better at this look ended clearly below the floor, and none that
    was as bad ended near it or above. Curves of sparser networks rise later, but a sparser one that is behind here is
    not ahead at the end. Nothing is extrapolated: without such an earlier trial there is no verdict.

    Optuna's own pruners rank values and ignore constraints: with small infeasible trials about, a median of sizes stops
    the feasible ones.

    Args:
        share: of the finetuning that is done, one of the earlier curves' checks.
        accuracy: of this trial at this look.
        earlier: curves of trials that ran to their end.
        floor: least final accuracy.

    >>> earlier = [LearningCurve(checks={0.5: 0.60}, final=0.75), LearningCurve(checks={0.5: 0.72}, final=0.82)]
    >>> hopeless(0.5, 0.55, earlier, floor=0.8).reason
    'at 50 % of its finetuning it had 55.00 %; a trial with 60.00 % there ended at 75.00 %'
    >>> hopeless(0.5, 0.65, earlier, floor=0.8) is None
    True
    """
    seen = [curve for curve in earlier if share in curve.checks]
    better = [c for c in seen if c.checks[share] >= accuracy + MARGIN and c.final < floor - SHORT]
    as_bad = [c for c in seen if c.checks[share] <= accuracy + MARGIN and c.final >= floor - SHORT]
    if not better or as_bad:
        return None
    nearest = min(better, key=lambda curve: curve.checks[share])
    return Verdict(
        f"at {100 * share:.0f} % of its finetuning it had {100 * accuracy:.2f} %; "
        f"a trial with {100 * nearest.checks[share]:.2f} % there ended at {100 * nearest.final:.2f} %",
        nearest.final,
    )


def is_control(number: int, seed: int) -> bool:
    """Whether a verdict on trial `number` is noted and not acted upon: one in eight, by a draw of its own."""
    return bool(np.random.default_rng([seed, number]).random() < 1 / CONTROLS)
