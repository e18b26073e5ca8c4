"""The Optuna study over a space of allocations: its storage, its samplers, its trials. The only room that talks to
Optuna."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from netprune.errors import DivergedError, InputError
from netprune.masks import Sparsity
from netprune.search_space import REACH, Point, Space

JOURNAL = "optuna.journal"
FLOOR, DENSITY, OFFSET = "accuracy_floor", "density", "offset/"
# accuracies are counts over images: a floor of 0.809 must not be missed by the last bit of 0.8388 - 0.03
ROUNDING = 1e-9
WORST = 0.1
"""The largest shortfall that a sampler is told of: a network that guesses is no worse than one ten points short, and
would only flatten the model of what lies near the floor."""
REGION, BELOW, ABOVE = 0.5, 1.6, 1.15
"""How far around the smallest feasible trial a sampler looks: offsets either way, and factors of density."""
OBJECTIVES = ("packed_bytes", "nonzero_bytes")
"""The file's length; or the source document's count, nonzero parameters as fp32 without positions."""
SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {
    "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=1),
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=1, constant_liar=True),
    "random": lambda seed: RandomSampler(seed=seed),
}
"""Those that heed a constraint, and the control."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What one trial came to."""

    size_bytes: int
    """The objective: one of `OBJECTIVES`; an estimate for a trial that stopped early."""
    accuracy: float
    """Validation, in [0, 1]; for a trial that stopped early, what it would hardly have passed."""
    run_id: str
    """Of the trial in MLflow."""
    checks: Mapping[float, float] = field(default_factory=dict)
    """Share of the finetuning → accuracy on the first validation images."""
    stopped: str = ""
    """Why it stopped early; empty if it did not."""
    overruled: str = ""
    """Why it would have stopped early, had it not been a control."""
    epochs: float = 0.0
    """Finetune epochs that it took."""

    def meets(self, floor: float) -> bool:
        """Whether it ran to its end and its accuracy is at the floor."""
        return not self.stopped and self.accuracy >= floor - ROUNDING


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial with a result."""

    number: int
    point: Point
    score: Score


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
                name: trial.suggest_float(name, d.low, d.high, log=d.log) for name, d in self._distributions().items()
            }
            point = _point(params)
            score = evaluate(trial.number, self.space.at(point))
            for name, value in _attributes(score).items():
                trial.set_user_attr(name, value)
            trial.set_constraint(FLOOR, _shortfall(score, self.floors[-1]))
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
            self._study.enqueue_trial(self._next(tried, propose))
            self._study.optimize(objective, n_trials=1, catch=(DivergedError,))

    def _distributions(self) -> dict[str, FloatDistribution]:
        offsets = {f"{OFFSET}{name}": FloatDistribution(-REACH, REACH) for name in self.space.sizes}
        return {DENSITY: FloatDistribution(self.space.least, self.space.most, log=True), **offsets}

    def _next(self, tried: Sequence[Tried], propose: Propose) -> dict[str, float]:
        proposed = propose(tried)
        if proposed is not None:
            return _parameters(proposed)
        number = len(self._study.get_trials(deepcopy=False))
        return self.ask(tried, self.floors[number % len(self.floors)], self._seed + number)

    def ask(self, tried: Sequence[Tried], floor: float, seed: int) -> dict[str, float]:
        """What the sampler proposes next for one floor: parameter → value.

        It is asked in memory, with each trial's constraint as that floor has it (a stored constraint is of one floor),
        the logarithm of bytes for bytes, and, once a trial meets the floor, within a region around the smallest one
        that does: a model of a few dozen noisy trials holds near by at most, and over the whole space most proposals
        would be its corners (after SCBO, Eriksson & Poloczek 2021, arXiv:2002.08526). Trials that are running elsewhere
        are told too, so that workers do not ask for the same.
        """
        memory = optuna.create_study(sampler=self._sampler(seed))
        region = self._region(tried, floor)
        distributions: dict[str, BaseDistribution] = {**region}
        for one in tried:
            if _inside(one.point, region):
                memory.add_trial(
                    optuna.trial.create_trial(
                        params=_parameters(one.point),
                        distributions=distributions,
                        value=math.log(max(1, one.score.size_bytes)),
                        constraints={FLOOR: min(WORST, _shortfall(one.score, floor))},
                    )
                )
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            params = dict(trial.params)
            if params.keys() == region.keys() and _inside(_point(params), region):
                running = optuna.trial.create_trial(
                    state=TrialState.RUNNING, params=params, distributions=distributions
                )
                memory.add_trial(running)
        with np.errstate(invalid="ignore"):  # the GP divides zero by zero once it is sure of its answer, and heeds it
            return dict(memory.ask(distributions).params)

    def _region(self, tried: Sequence[Tried], floor: float) -> dict[str, FloatDistribution]:
        feasible = [one for one in tried if one.score.meets(floor)]
        if not feasible:
            return self._distributions()
        centre = min(feasible, key=lambda one: (one.score.size_bytes, -one.score.accuracy)).point
        around = {
            f"{OFFSET}{name}": FloatDistribution(max(-REACH, value - REGION), min(REACH, value + REGION))
            for name, value in centre.offsets.items()
        }
        least = max(self.space.least, centre.density / BELOW)
        return {DENSITY: FloatDistribution(least, min(self.space.most, centre.density * ABOVE), log=True), **around}


def _inside(point: Point, region: Mapping[str, FloatDistribution]) -> bool:
    return all(region[name].low <= value <= region[name].high for name, value in _parameters(point).items())


def _shortfall(score: Score, floor: float) -> float:
    """At most 0 where the floor is met; a trial that stopped early never meets one."""
    return max(floor - score.accuracy - ROUNDING, ROUNDING if score.stopped else -1.0)


def _parameters(point: Point) -> dict[str, float]:
    return {DENSITY: point.density, **{f"{OFFSET}{name}": value for name, value in point.offsets.items()}}


def _point(params: Mapping[str, float]) -> Point:
    offsets = {name.removeprefix(OFFSET): value for name, value in params.items() if name.startswith(OFFSET)}
    return Point(density=params[DENSITY], offsets=offsets)


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
    return Tried(trial.number, _point(trial.params), score)
