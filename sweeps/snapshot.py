"""What a study has at one moment: its trials with a result, those that run, and those whose workers are gone."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Sequence

from optuna.trial import FrozenTrial, TrialState

from sweeps.points import point_of
from sweeps.scores import Score, Tried
from sweeps.sessions import GRACE_SECONDS

SESSION, SCORE = "session", "score"
"""A trial's attributes in the study: its worker's session, and what it came to."""


class Snapshot:
    """A study as its storage had it when it was asked: what is read of this asks nobody again.

    A study of many workers is asked a lot, and each answer carries all the trials that run.
    """

    def __init__(self, trials: Sequence[FrozenTrial], dead: Collection[str]) -> None:
        """Take all trials, in the order of their numbers, and the sessions that are over."""
        self.trials, self._dead, self._time = trials, frozenset(dead), time.time()

    def of(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in one of these states."""
        return [trial for trial in self.trials if trial.state in states]

    @functools.cached_property
    def tried(self) -> list[Tried]:
        """Trials that came to a result, stopped ones included. Failed and killed ones do not count."""
        return [
            Tried(trial.number, point_of(trial.params), Score.of_json(trial.user_attrs[SCORE]))
            for trial in self.of(TrialState.COMPLETE)
        ]

    @property
    def done(self) -> int:
        """How many trials came to a result."""
        return len(self.tried)

    @functools.cached_property
    def abandoned(self) -> list[FrozenTrial]:
        """Those of dead workers; one that nobody has put a session to is given the time that a silence may last."""

        def is_abandoned(trial: FrozenTrial) -> bool:
            if SESSION in trial.user_attrs:
                return trial.user_attrs[SESSION] in self._dead
            return trial.datetime_start is not None and self._time - trial.datetime_start.timestamp() > GRACE_SECONDS

        return [trial for trial in self.of(TrialState.RUNNING) if is_abandoned(trial)]

    @functools.cached_property
    def running(self) -> list[FrozenTrial]:
        """Those that live workers are at."""
        gone = {trial.number for trial in self.abandoned}
        return [trial for trial in self.of(TrialState.RUNNING) if trial.number not in gone]

    @property
    def epochs(self) -> float:
        """Finetune epochs of all trials that came to a result."""
        return sum(one.score.epochs for one in self.tried)

    def feasible(self, floor: float) -> list[Tried]:
        """Trials that meet a floor, the smallest first, the more accurate one of equals first."""
        found = [one for one in self.tried if one.score.meets(floor)]
        return sorted(found, key=lambda one: (one.score.size_bytes, -one.score.accuracy))

    def best(self, floor: float) -> Tried | None:
        """The smallest trial that meets a floor."""
        return next(iter(self.feasible(floor)), None)
