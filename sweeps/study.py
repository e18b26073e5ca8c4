"""The Optuna study: its storage and its trials."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from netprune.errors import DivergedError, InputError
from netprune.masks import Sparsity
from netprune.search_space import Point, Space
from sweeps.proposing import FLOOR, SAMPLERS, ask, parameters, point_of, whole
from sweeps.scores import ROUNDING, Score, Tried

JOURNAL = "optuna.journal"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """When no new trial starts. A running one is finished."""

    trials: int
    """Results of the whole study, those of earlier sessions included."""
    timeout: float | None = None
    """Seconds of this session."""
    epochs: float | None = None
    """Finetune epochs of the whole study's trials; no trial starts that could pass it."""
    epochs_a_trial: float = 0.0


Evaluate = Callable[[int, Sparsity], Score]
"""Trial number and sparsity → score; raises DivergedError for a trial that has none."""
Propose = Callable[[Sequence[Tried]], Point | None]
"""What has been tried → a point to try before the sampler is asked, or None when it is the sampler's turn."""


class SparsityStudy:
    """Minimise bytes subject to accuracy floors, over a `Space`.

    The study lives in `optuna.journal` in the working directory, beside MLflow's own store; opening it again continues
    it. Several floors share the trials: the sampler looks for each of them in turn, told of all trials as that floor
    sees them.
    """

    def __init__(
        self,
        name: str,
        layers: Mapping[str, int],
        floors: Sequence[float],
        *,
        sampler: str = "tpe",
        seed: int = 0,
        constants: Mapping[str, Any],
    ) -> None:
        """Open the study `name`, or make it.

        Args:
            name: of the study.
            layers: weight name → number of weights.
            floors: least validation accuracies, each in [0, 1].
            sampler: a name in `SAMPLERS`.
            seed: of the sampler.
            constants: what must be equal whenever the study is continued, as JSON types.

        Raises:
            InputError: if the study exists and was made with other constants, or its file cannot be used.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.name, self.layers, self.floors = name, dict(layers), tuple(sorted(floors, reverse=True))
        self._sampler, self._seed = SAMPLERS[sampler], seed
        try:
            storage = JournalStorage(JournalFileBackend(JOURNAL))
            self._study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
            self._check(constants)
        except OSError as error:
            raise InputError(f"the study's file {JOURNAL} cannot be used: {error.strerror}.") from None

    def _check(self, constants: Mapping[str, Any]) -> None:
        known = self._study.user_attrs.get("constants")
        if known is None:
            self._study.set_user_attr("constants", dict(constants))
        elif known != dict(constants):
            name = next(n for n in {**known, **constants} if known.get(n) != constants.get(n))
            raise InputError(
                f"study {self.name} was made with {name}={known.get(name)}, not {constants.get(name)}: "
                f"take another study_name."
            )

    @property
    def run_id(self) -> str | None:
        """The study's run in MLflow, once it has one."""
        found: str | None = self._study.user_attrs.get("run_id")
        return found

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self._study.set_user_attr("run_id", run_id)

    @property
    def path(self) -> tuple[tuple[float, Sparsity], ...]:
        """The space's path; empty until it is set. Kept with the study: what a screening finds differs by machine."""
        kept = self._study.user_attrs.get("path", [])
        return tuple((float(density), sparsity) for density, sparsity in kept)

    @path.setter
    def path(self, path: Sequence[tuple[float, Sparsity]]) -> None:
        self._study.set_user_attr("path", [[density, dict(sparsity)] for density, sparsity in path])

    @functools.cached_property
    def space(self) -> Space:
        """What is searched."""
        return Space(sizes=self.layers, path=self.path)

    @property
    def tried(self) -> list[Tried]:
        """Trials that came to a result, stopped ones included. Failed and killed ones do not count."""
        return [_tried(trial) for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]

    @property
    def done(self) -> int:
        """How many trials came to a result."""
        return len(self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

    def feasible(self, floor: float) -> list[Tried]:
        """Trials that meet a floor, the smallest first, the more accurate one of equals first."""
        found = [tried for tried in self.tried if tried.score.meets(floor)]
        return sorted(found, key=lambda tried: (tried.score.size_bytes, -tried.score.accuracy))

    def best(self, floor: float) -> Tried | None:
        """The smallest trial that meets a floor."""
        return next(iter(self.feasible(floor)), None)

    def run(self, evaluate: Evaluate, limits: Limits, propose: Propose, on_trial: Callable[[int, Score], None]) -> None:
        """Try what `propose` and then the sampler proposes, within limits.

        One that diverges is tried and has no result, so there may be fewer results than trials allowed.

        Args:
            evaluate: see `Evaluate`.
            limits: see `Limits`.
            propose: see `Propose`.
            on_trial: called after each result with the results so far and the score.
        """

        def objective(trial: optuna.Trial) -> float:
            params = {
                name: trial.suggest_float(name, d.low, d.high, log=d.log) for name, d in whole(self.space).items()
            }
            point = point_of(params)
            score = evaluate(trial.number, self.space.at(point))
            for name, value in _attributes(score).items():
                trial.set_user_attr(name, value)
            trial.set_constraint(FLOOR, score.shortfall(self.floors[-1]))
            on_trial(self.done + 1, score)
            return score.size_bytes

        start, left = time.monotonic(), limits.trials - self.done
        for _ in range(left):
            tried = self.tried
            if limits.timeout is not None and time.monotonic() - start >= limits.timeout:
                return
            spent = sum(one.score.epochs for one in tried)
            if limits.epochs is not None and spent + limits.epochs_a_trial > limits.epochs + ROUNDING:
                return
            self._study.enqueue_trial(parameters(self._next(tried, propose)))
            self._study.optimize(objective, n_trials=1, catch=(DivergedError,))

    def _next(self, tried: Sequence[Tried], propose: Propose) -> Point:
        proposed = propose(tried)
        if proposed is not None:
            return proposed
        trials = self._study.get_trials(deepcopy=False)
        wanted = whole(self.space).keys()
        running = [
            point_of(trial.params)
            for trial in trials
            if trial.state == TrialState.RUNNING and trial.params.keys() == wanted
        ]
        number = len(trials)
        floor = self.floors[number % len(self.floors)]
        return ask(self._sampler(self._seed + number), self.space, floor, tried, running)


def _attributes(score: Score) -> dict[str, Any]:
    return {
        "accuracy": score.accuracy,
        "run_id": score.run_id,
        "checks": {str(share): accuracy for share, accuracy in score.checks.items()},
        "stopped": score.stopped,
        "overruled": score.overruled,
        "epochs": score.epochs,
    }


def _tried(trial: FrozenTrial) -> Tried:
    attributes = dict(trial.user_attrs)
    checks = {float(share): accuracy for share, accuracy in attributes.pop("checks").items()}
    score = Score(size_bytes=int(trial.values[0]), checks=checks, **attributes)
    return Tried(trial.number, point_of(trial.params), score)
