"""The Optuna study over per-layer sparsities: its storage, its space, its seeds. The only room that talks to Optuna."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from netprune.errors import DivergedError, InputError
from netprune.masks import Sparsity

JOURNAL = "optuna.journal"
MIN_DENSITY = 0.002
MARGIN = 2.0
FLOOR = "accuracy_floor"
# accuracies are counts over images: a floor of 0.809 must not be missed by the last bit of 0.8388 - 0.03
ROUNDING = 1e-9
OBJECTIVES = ("packed_bytes", "nonzero_bytes")
"""The file's length; or the source document's count, nonzero parameters as fp32 without positions."""
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True, slots=True)
class Score:
    """What one trial came to."""

    size_bytes: int
    """The objective: one of `OBJECTIVES`."""
    accuracy: float
    """Validation, in [0, 1]."""
    run_id: str
    """Of the trial in MLflow."""


Evaluate = Callable[[int, Sparsity], Score]
"""Trial number and sparsity → score; raises DivergedError for a trial that has none."""


class SparsityStudy:
    """Minimise bytes subject to an accuracy floor, one sparsity a layer.

    A layer's parameter is its density, from 0.002 to 1, searched on a log scale: from 98 % to 99 % sparsity is as far
    as from 0 to 50 %. The study lives in `optuna.journal` in the working directory, beside MLflow's own store; opening
    it again continues it.
    """

    def __init__(
        self, name: str, layers: Sequence[str], floor: float, *, seed: int, constants: Mapping[str, Any]
    ) -> None:
        """Open the study `name`, or make it.

        Args:
            name: of the study.
            layers: weight names.
            floor: least validation accuracy, in [0, 1].
            seed: of the sampler.
            constants: what must be equal whenever the study is continued, as JSON types.

        Raises:
            InputError: if the study exists and was made with other constants, or its file cannot be used.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.name, self.layers, self.floor = name, tuple(layers), floor
        self._bounds = dict.fromkeys(self.layers, (MIN_DENSITY, 1.0))
        try:
            storage = JournalStorage(JournalFileBackend(JOURNAL))
            self._study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
            self._check(constants)
        except OSError as error:
            raise InputError(f"the study's file {JOURNAL} cannot be used: {error.strerror}.") from None
        # trials already there are part of the sampler's knowledge, and must not be proposed again
        self._study.sampler = optuna.samplers.TPESampler(seed=seed + len(self._study.trials), n_startup_trials=1)

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
    def done(self) -> int:
        """Trials that came to a result. Failed and killed ones do not count."""
        return len(self._study.get_trials(deepcopy=False, states=DONE))

    @property
    def best(self) -> Score | None:
        """The smallest feasible trial so far."""
        try:
            trial = self._study.best_trial
        except ValueError:
            return None
        return Score(int(trial.values[0]), trial.user_attrs["accuracy"], trial.user_attrs["run_id"])

    def seed(self, sparsities: Sequence[Sparsity]) -> None:
        """Queue allocations to be tried first, clamped to the space; not again those that came to a result or wait.

        The search then keeps to what they span, and a factor of two beyond it, in each layer: over the whole space
        most of a short study's trials would be networks with one layer all but gone, or not pruned at all.

        Optuna's `skip_if_exists` would count a trial that was interrupted, and its allocation would never be tried.
        """
        trials = self._study.get_trials(deepcopy=False, states=(*DONE, TrialState.WAITING, TrialState.RUNNING))
        known = [trial.system_attrs.get("fixed_params", trial.params) for trial in trials]
        for sparsity in sparsities:
            densities = {_parameter(n): min(1.0, max(MIN_DENSITY, 1 - sparsity[n])) for n in self.layers}
            if densities not in known:
                self._study.enqueue_trial(densities)
                known.append(densities)
        for layer in self.layers:
            tried = [max(MIN_DENSITY, 1 - sparsity[layer]) for sparsity in sparsities]
            self._bounds[layer] = (max(MIN_DENSITY, min(tried) / MARGIN), min(1.0, max(tried) * MARGIN))

    def run(
        self, evaluate: Evaluate, trials: int, timeout: float | None, on_trial: Callable[[int, Score], None]
    ) -> None:
        """Try as many trials as the study lacks to `trials` results, until `timeout` seconds have gone by.

        A running trial is finished. One that diverges is tried and has no result, so there may be fewer.

        Args:
            evaluate: see `Evaluate`.
            trials: of the whole study, those of earlier sessions included.
            timeout: seconds, or None.
            on_trial: called after each result with the results so far and the score.
        """

        def objective(trial: optuna.Trial) -> float:
            densities = {n: trial.suggest_float(_parameter(n), *self._bounds[n], log=True) for n in self.layers}
            sparsity = {layer: 1 - density for layer, density in densities.items()}
            score = evaluate(trial.number, sparsity)
            trial.set_user_attr("accuracy", score.accuracy)
            trial.set_user_attr("run_id", score.run_id)
            trial.set_constraint(FLOOR, self.floor - score.accuracy - ROUNDING)
            on_trial(self.done + 1, score)
            return score.size_bytes

        left = trials - self.done
        if left > 0:
            self._study.optimize(objective, n_trials=left, timeout=timeout, catch=(DivergedError,))

    def is_feasible(self, score: Score) -> bool:
        """Whether the score meets the floor."""
        return score.accuracy >= self.floor - ROUNDING


def _parameter(layer: str) -> str:
    return f"density/{layer}"
