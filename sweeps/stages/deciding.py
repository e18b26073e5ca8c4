"""A study's confirmations: among each floor's trials, and at the end."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from sweeps import artifacts, tracking
from sweeps.limits import Limits
from sweeps.scores import ROUNDING
from sweeps.stages.confirming import CONFIRMED_FILE, confirm, probe, record
from sweeps.stages.contest import FRESH, Confirmation, Confirmed, Contest
from sweeps.stages.request import SearchRequest, finetuning_for
from sweeps.stages.source import Source
from sweeps.study import SparsityStudy

BEGUN = 1 / 3
"""Share of a floor's trials before the first confirmation: by then they have gone down to where it lies, mostly."""


def confirmation_shares(floors: Sequence[float], most: int) -> list[tuple[float, float]]:
    """After which shares of a study a candidate is to be confirmed, for which floor, in order: evenly over each floor's
    part from `BEGUN` on, as often as a floor may have finetunings. The trials between them know what that brings, and
    go on from it.

    Where only one is to be confirmed, it is the smallest promising of all trials.

    >>> [(round(share, 2), floor) for share, floor in confirmation_shares([0.9, 0.8], 2)]
    [(0.17, 0.9), (0.33, 0.9), (0.67, 0.8), (0.83, 0.8)]
    """
    if most == 1:
        return []
    parts = [BEGUN + (1 - BEGUN) * k / most for k in range(most)]
    return [((i + part) / len(floors), floor) for i, floor in enumerate(floors) for part in parts]


def _confirmation(source: Source, study: SparsityStudy, request: SearchRequest) -> Confirmation:
    return Confirmation(
        config=finetuning_for(source, request, request.longer_epochs),
        seeds=tuple(request.seed + FRESH + i for i in range(request.confirm_seeds)),
        most=request.confirm_most,
        since=_since(study),
    )


def _since(study: SparsityStudy) -> int:
    """The first attempt that counts among the most allowed: a study that has been given more trials after it had its
    answers may have as many again, or nothing would come of those trials."""
    settled = study.settled or {}
    return int(settled.get("attempts" if study.look().done > settled.get("trials", math.inf) else "since", 0))


class Probes:
    """The confirmations among a study's trials, by the leader; they count as some of the most allowed."""

    def __init__(self, source: Source, study: SparsityStudy, request: SearchRequest, limits: Limits) -> None:
        self.source, self.study, self.request, self.limits = source, study, request, limits
        makes = request.confirm_seeds and study.crew.leads
        self.due = confirmation_shares(study.floors, request.confirm_most) if makes else []

    @property
    def shares(self) -> list[float]:
        """Of the study's limits, after which one is due."""
        return [share for share, _ in self.due]

    def __call__(self) -> None:
        """Make those that are due now, one a floor at most: they are for the trials that come after them, so that what
        comes due meanwhile is left to the end."""
        for floor in dict.fromkeys(self._overdue()):
            how = _confirmation(self.source, self.study, self.request)
            # in a session that was interrupted
            made = sum(attempt.floor == floor for attempt in self.study.attempts[how.since :])
            if made + sum(one == floor for _, one in self.due) >= self.request.confirm_most:
                continue
            probe(self.source, Contest.of(self.study, self.request.objective, self.source, how.config), how, floor)
        self._overdue()

    def _overdue(self) -> list[float]:
        """The floors of those that are due, which are taken off."""
        seen = self.study.look()
        spent = self.limits.spent(seen.done, seen.epochs) + ROUNDING if seen.done else -math.inf
        late = [floor for share, floor in self.due if share <= spent]
        self.due = self.due[len(late) :]
        return late


def confirm_study(source: Source, study: SparsityStudy, request: SearchRequest) -> dict[float, Confirmed | None]:
    """Every floor's answer, once its trials are over; kept in the study's run, which is open."""
    how = _confirmation(source, study, request)
    terms = {"trials": study.look().done, "most": how.most, "epochs": how.epochs, "seeds": list(how.seeds)}
    contest = Contest.of(study, request.objective, source, how.config)
    winners = confirm(source, contest, how, more=not terms.items() <= (study.settled or {}).items())
    study.settle({**terms, "since": how.since, "attempts": len(study.attempts)})
    artifacts.log_json(record(winners), CONFIRMED_FILE)
    _tag_confirmations({won.run_id for won in winners.values() if won is not None})
    strictest = winners[study.floors[0]]
    if strictest is not None:
        tracking.log(
            {
                f"confirmed_{request.objective}": strictest.size_bytes,
                "confirmed_val_accuracy": strictest.bound.mean,
                "confirmed_val_accuracy_lower": strictest.lower,
            }
        )
    return winners


def _tag_confirmations(ships: Collection[str]) -> None:
    """Say of every confirmation whether its network is a floor's confirmed one now: an earlier session's may not be."""
    for run in tracking.find_runs({tracking.STAGE: "confirm", tracking.PARENT: tracking.active_run_id()}):
        tracking.set_tags({tracking.CONFIRMED: tracking.flag(run.run_id in ships)}, run.run_id)
