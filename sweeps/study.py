"""The Optuna study: its storage and its trials."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from netprune.errors import DivergedError, InputError
from netprune.masks import Sparsity
from netprune.search_space import Point, Space
from sweeps.limits import Limits, Spent
from sweeps.points import Given, parameters, point_of, whole
from sweeps.progress import report
from sweeps.proposing import Turn
from sweeps.scores import Attempt, Score
from sweeps.sessions import Crew
from sweeps.snapshot import SCORE, SESSION, Snapshot
from sweeps.storage import JOURNAL, open_storage

RETRIES, FAILURES = 2, 10
"""How often a point is tried again whose worker died, and how many failures in a row a worker takes before it stops."""
FLOOR = "accuracy_floor"
"""A trial's constraint."""

Record = Callable[[Score], None]
"""Puts a trial's score down in the study; called before the trial's run in MLflow closes."""
Evaluate = Callable[[int, Sparsity, Record, Snapshot], Score]
"""Trial number, sparsity, `Record` and the study as it is when the trial begins → score; raises DivergedError for a
trial that has none."""
Propose = Callable[[Turn], Point]
"""What is known when a trial begins → the point that it tries."""
Settle = Callable[[int], bool]
"""Closes what a dead worker's trial left open in MLflow, and says whether its run had finished."""

QUEUED = "fixed_params"
"""Of a trial in the study: where Optuna keeps the point of one that was queued, to be tried again."""
DIVERGED = "diverged"
"""Of a trial in the study: nobody needs to try its point again."""


class LostTrialError(Exception):
    """A trial that another worker has given up: it took this one for dead."""


class SparsityStudy:
    """Minimise bytes subject to accuracy floors, over a `Space`.

    The study lives in a storage that any number of workers share (`storage.open_storage`); opening it again continues
    it. Several floors share the trials.

    A trial's score is put down in the study before its run in MLflow closes, and the trial is told to be complete after
    that. So a worker that dies leaves a trial that is running for the study, and either a run that had finished, whose
    score is then the trial's, or one that had not: both are given up, and the point is tried again.
    """

    def __init__(
        self,
        name: str,
        layers: Mapping[str, int],
        floors: Sequence[float],
        *,
        limits: Mapping[str, float] | None = None,
        storage: str = "",
        constants: Mapping[str, Any],
    ) -> None:
        """Open the study `name`, or make it.

        Args:
            name: of the study.
            layers: weight name → number of weights, of the layers that may be pruned.
            floors: least validation accuracies, each in [0, 1]. Of a study that exists, its own count: on another
                machine the dense network, and so a floor below it, may be another by an image.
            limits: weight name → largest sparsity, of layers that have one.
            storage: see `storage.open_storage`.
            constants: what must be equal whenever the study is continued, as JSON types.

        Raises:
            InputError: if the study exists and was made with other constants, or its file cannot be used.
        """
        self.name, self.layers = name, dict(layers)
        self.limits = dict(limits or {})
        try:
            self._given = Given()
            self._study = optuna.create_study(
                study_name=name, storage=open_storage(storage), sampler=self._given, load_if_exists=True
            )
            self.crew = Crew(lambda: self._study.user_attrs, self._study.set_user_attr)
            self._check(constants)
            self.floors = self._kept_floors(floors)
            """The highest first."""
        except OSError as error:
            raise InputError(f"the study's file {JOURNAL} cannot be used: {error.strerror}.") from None

    def _check(self, constants: Mapping[str, Any]) -> None:
        known = self._study.user_attrs.get("constants")
        if known is None:
            self._study.set_user_attr("constants", dict(constants))
        elif known != dict(constants):
            name = next(n for n in {**known, **constants} if known.get(n) != constants.get(n))
            was, now = (f"{v:g}" if isinstance(v, float) else v for v in (known.get(name), constants.get(name)))
            raise InputError(f"study {self.name} was made with {name}={was}, not {now}: take another study_name.")

    def _kept_floors(self, floors: Sequence[float]) -> tuple[float, ...]:
        if "floors" not in self._study.user_attrs:
            self._study.set_user_attr("floors", sorted(floors, reverse=True))
        return tuple(self._study.user_attrs["floors"])

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

    @property
    def attempts(self) -> list[Attempt]:
        """Candidates that have been confirmed, or not, in the order in which that was tried."""
        return [Attempt.of_json(one) for one in self._study.user_attrs.get("attempts", [])]

    def note_attempt(self, attempt: Attempt) -> None:
        """Keep one more, so that all workers learn from it. The leader alone confirms."""
        self._study.set_user_attr("attempts", [asdict(one) for one in (*self.attempts, attempt)])

    @property
    def settled(self) -> Any:
        """What was known and asked when every floor had its answer: see `settle`."""
        return self._study.user_attrs.get("settled")

    def settle(self, terms: Mapping[str, Any]) -> None:
        """Every floor has its answer, on these terms: the same ones again ask for no more confirmations."""
        self._study.set_user_attr("settled", dict(terms))

    @property
    def before(self) -> Spent:
        """What trials had taken when the last session ended that came to its limits; what further ones may take is
        shared out among the floors anew."""
        return Spent(**self._study.user_attrs.get("before", {}))

    @before.setter
    def before(self, spent: Spent) -> None:
        self._study.set_user_attr("before", asdict(spent))

    @functools.cached_property
    def space(self) -> Space:
        """What is searched."""
        return Space(sizes=self.layers, path=self.path, limits=self.limits)

    def look(self) -> Snapshot:
        """The study as it is now."""
        dead = self.crew.dead  # before the trials: a worker that ends in between has told what it had
        return Snapshot(self._study.get_trials(deepcopy=False), dead)

    def run(
        self,
        evaluate: Evaluate,
        limits: Limits,
        propose: Propose,
        on_trial: Callable[[Snapshot, Score], None],
        settle: Settle = lambda _: False,
    ) -> bool:
        """Try what `propose` says, within limits, which are the study's and not the worker's.

        One that diverges is tried and has no result; after a few of them in a row this worker stops.

        Args:
            evaluate: see `Evaluate`.
            limits: see `Limits`.
            propose: see `Propose`.
            on_trial: called after each result, with the study, which has it then, and the score.
            settle: see `Settle`.

        Returns:
            Whether this worker may go on; False if it stops.
        """
        failures = 0
        seen = self.recover(settle)
        while failures < FAILURES and limits.allow(seen.done, len(seen.running), seen.epochs):
            trial, score = self._study.ask(), None
            try:
                with _unless_given_up(trial):
                    trial.set_user_attr(SESSION, self.crew.key)
                    seen = self.look()
                    point = self._point(trial, seen, propose, limits)
                    if point is None:
                        self._study.tell(trial, state=TrialState.FAIL)
                    else:
                        record = functools.partial(self._record, trial)
                        score = evaluate(trial.number, self.space.at(point), record, seen)
                        self._study.tell(trial, score.size_bytes)
                        failures = 0
            except (DivergedError, LostTrialError) as error:
                failures += 1
                self._give_up(trial, diverged=isinstance(error, DivergedError))
            except BaseException:
                if score is None:  # else its run has ended well: whoever is next takes it up (see `recover`)
                    self._give_up(trial)
                raise
            seen = self.recover(settle)
            if score is not None:
                on_trial(seen, score)
        if failures == FAILURES:
            report(f"{failures} trials in a row came to no result: this worker stops")
        return failures < FAILURES

    def recover(self, settle: Settle) -> Snapshot:
        """Give up the trials of workers that died, and queue their points again; keep those that had finished. Returns
        the study after that."""
        seen = self.look()
        for trial in seen.abandoned:
            finished, score = settle(trial.number), trial.user_attrs.get(SCORE)
            try:
                if finished and score:
                    self._study.tell(trial.number, score["size_bytes"])
                else:
                    self._study.tell(trial.number, state=TrialState.FAIL)
                    self._again(trial)
            except (ValueError, UpdateFinishedTrialError):  # another worker was quicker
                continue
        return self.look() if seen.abandoned else seen

    def _again(self, trial: FrozenTrial) -> None:
        """Queue a trial's point, if it had one: of its own, or from the queue, which it may not have taken up yet."""
        times, params = trial.user_attrs.get("retries", 0), trial.system_attrs.get(QUEUED, {}) | trial.params
        if times < RETRIES and params.keys() == whole(self.space).keys():
            self._study.enqueue_trial(params, user_attrs={"retries": times + 1, "retry_of": trial.number})

    def _give_up(self, trial: optuna.Trial, *, diverged: bool = False) -> None:
        with suppress(ValueError, UpdateFinishedTrialError):  # it may be told already
            if diverged:
                trial.set_user_attr(DIVERGED, True)
            self._study.tell(trial, state=TrialState.FAIL)

    def _point(self, trial: optuna.Trial, seen: Snapshot, propose: Propose, limits: Limits) -> Point | None:
        """What a trial tries, put down in the study; None if others began the last trials that were due, or are at the
        same point."""
        if _is_surplus(seen, trial.number, limits):
            return None
        wanted, pending = whole(self.space), 0
        if seen.trials[trial.number].system_attrs.get(QUEUED, {}).keys() != wanted.keys():
            earlier = [one for one in seen.running if one.number < trial.number]
            pending = sum(one.params.keys() < wanted.keys() for one in earlier)
            turn = Turn(
                number=trial.number,
                tried=seen.tried,
                running=[
                    point_of(one.params)
                    for one in seen.trials
                    if one.params.keys() == wanted.keys()
                    and (one.state == TrialState.RUNNING or one.user_attrs.get(DIVERGED, False))
                ],
                pending=pending,
                spent=limits.spent(seen.done, seen.epochs),
                attempts=self.attempts,
            )
            self._given.params = parameters(propose(turn))
        params = {name: trial.suggest_float(name, d.low, d.high, log=d.log) for name, d in wanted.items()}
        if pending and any(one.params == params for one in self.look().running if one.number < trial.number):
            return None
        return point_of(params)

    def _record(self, trial: optuna.Trial, score: Score) -> None:
        with _unless_given_up(trial):
            trial.set_user_attr(SCORE, score.as_json())
            trial.set_constraint(FLOOR, score.shortfall(self.floors[-1]))


@contextmanager
def _unless_given_up(trial: optuna.Trial) -> Iterator[None]:
    """Within the body the trial is told something; Optuna's words for one that has ended already become
    `LostTrialError`."""
    try:
        yield
    except (UpdateFinishedTrialError, ValueError) as error:
        if isinstance(error, ValueError) and not str(error).startswith("Cannot tell a"):  # `tell` has no class for it
            raise
        raise LostTrialError(f"trial {trial.number} was given up: another worker took this one for dead") from None


def _is_surplus(seen: Snapshot, number: int, limits: Limits) -> bool:
    """Whether as many trials as are due, or as there are epochs for, have a result or began before this one."""
    earlier = sum(trial.number < number for trial in seen.running)
    return not limits.allow(seen.done, earlier, seen.epochs)
