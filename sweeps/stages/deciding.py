"""A study's confirmations: one among each floor's trials, the others at the end."""

from __future__ import annotations

from collections.abc import Collection

from sweeps import artifacts, tracking
from sweeps.limits import Limits
from sweeps.scores import ROUNDING
from sweeps.stages.confirming import CONFIRMED_FILE, confirm, probe, record
from sweeps.stages.contest import FRESH, Confirmation, Confirmed, Contest
from sweeps.stages.request import SearchRequest, finetuning_for
from sweeps.stages.source import Source
from sweeps.study import SparsityStudy

PROBED = 1 / 3
"""Share of a floor's trials after which a candidate of it is confirmed, so that the others know what that brings."""


def _confirmation(source: Source, request: SearchRequest) -> Confirmation:
    return Confirmation(
        config=finetuning_for(source, request, request.longer_epochs),
        seeds=tuple(request.seed + FRESH + i for i in range(request.confirm_seeds)),
        most=request.confirm_most,
    )


class Probes:
    """One confirmation for each floor among its trials, by the leader; it counts as one of the most allowed."""

    def __init__(self, source: Source, study: SparsityStudy, request: SearchRequest, limits: Limits) -> None:
        self.source, self.study, self.request, self.limits = source, study, request, limits
        count = len(study.floors)
        due = {(i + PROBED) / count: floor for i, floor in enumerate(study.floors)}
        # where only one is to be confirmed, it is the smallest promising of all trials
        self.due = due if request.confirm_seeds and request.confirm_most > 1 and study.crew.leads else {}

    @property
    def shares(self) -> list[float]:
        """Of the study's limits, after which one is due."""
        return sorted(self.due)

    def __call__(self) -> None:
        """Make those that are due now."""
        seen = self.study.look()
        spent = self.limits.spent(seen.done, seen.epochs)
        for share in [share for share in self.shares if share <= spent + ROUNDING and seen.done]:
            floor = self.due.pop(share)
            if any(attempt.floor == floor for attempt in self.study.attempts):  # in an earlier session
                continue
            how = _confirmation(self.source, self.request)
            probe(self.source, Contest.of(self.study, self.request.objective, self.source, how.config), how, floor)


def confirm_study(source: Source, study: SparsityStudy, request: SearchRequest) -> dict[float, Confirmed | None]:
    """Every floor's answer, once its trials are over; kept in the study's run, which is open."""
    how = _confirmation(source, request)
    terms = {"trials": study.look().done, "most": how.most, "epochs": how.epochs, "seeds": list(how.seeds)}
    contest = Contest.of(study, request.objective, source, how.config)
    winners = confirm(source, contest, how, more=study.settled != terms)
    study.settle(terms)
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
