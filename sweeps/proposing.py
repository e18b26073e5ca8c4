"""What is tried next: the path down to where a floor lies, and then what Optuna's own samplers propose there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from netprune.confirmation import aim
from netprune.masks import Sparsity
from netprune.recovery import Recovery
from netprune.search_space import REACH, Point, Space
from netprune.seeding import Seen, boundary, propose
from sweeps.scores import Tried, lineage

FLOOR, DENSITY, OFFSET = "accuracy_floor", "density", "offset/"
WORST = 0.1
"""The largest shortfall that a sampler is told of: a network that guesses is no worse than one ten points short, and
would only flatten the model of what lies near the floor."""
REGION, BELOW, ABOVE = 0.2, 1.6, 1.15
"""How far around the smallest feasible trial a sampler looks: offsets either way, and factors of density."""
SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {
    "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=1),
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=1, constant_liar=True),
    "random": lambda seed: RandomSampler(seed=seed),
}
"""Those that heed a constraint, and the control."""
UNTRAINED = 0.05
"""Finetune epochs that a network counts as having had that has had none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Aims:
    """The accuracies that trials should have, so that confirmations meet the floors."""

    images: int
    """Validation images."""
    epochs: float
    """Finetune epochs of a trial."""
    confirm_epochs: float | None
    """Of a confirmation; None if nothing is confirmed, and a trial has to meet the floor itself and no more."""

    def of(self, floor: float, tried: Sequence[Tried]) -> float:
        """For the next trial's network, which will have been trained as long as any, and then some."""
        if self.confirm_epochs is None:
            return floor
        had = _trained(lineage(tried))
        will = max(had.values(), default=0.0) + (self.epochs or UNTRAINED)
        ended = [one for one in tried if not one.score.stopped]
        if not ended:
            return aim(floor, self.images, 0.0)
        near = min(ended, key=lambda one: abs(one.score.accuracy - floor))
        plane = _plane(ended, had, near.point.density)
        return aim(floor, self.images, plane.more(will, will + self.confirm_epochs))


class Proposer:
    """What a study's trials try: for one floor after the other, so that the lower go on from networks of the higher."""

    def __init__(
        self,
        space: Space,
        floors: Sequence[float],
        aims: Aims,
        others: Callable[[float], Sequence[Sparsity]],
        *,
        sampler: str,
        seed: int,
    ) -> None:
        """For one study.

        Args:
            space: that is searched.
            floors: each in [0, 1], the highest first.
            aims: how far above a floor to look.
            others: see `seeding.propose`.
            sampler: a name in `SAMPLERS`.
            seed: of the sampler.
        """
        self.space, self.floors, self.aims, self.others = space, floors, aims, others
        self.sampler, self.seed = SAMPLERS[sampler], seed

    def __call__(self, tried: Sequence[Tried], running: Sequence[Point], number: int, spent: float) -> Point:
        """See `study.Propose`."""
        floor = self.floors[min(len(self.floors) - 1, int(spent * len(self.floors)))]
        goal = self.aims.of(floor, tried)
        where = boundary(self._seen(tried), goal, more=self.aims.epochs, least=self.space.least, most=self.space.most)
        known = [*(one.point for one in tried), *running]
        point = propose(where, self.space, running, known, self.others)
        if point is not None:
            return point
        met = any(one.score.meets(goal) for one in tried)
        return ask(self.sampler(self.seed + number), self.space, goal if met else floor, tried, running)

    def _seen(self, tried: Sequence[Tried]) -> list[Seen]:
        had = _trained(lineage(tried))
        return [
            Seen(density=one.point.density, accuracy=one.score.accuracy, epochs=had[one.number])
            for one in tried
            if not any(one.point.offsets.values())
        ]


def expected(tried: Sequence[Tried], epochs: float) -> dict[int, float]:
    """Number → accuracy that a network is expected to have after so many finetune epochs more, of trials that ran to
    their end."""
    had, ended = _trained(lineage(tried)), [one for one in tried if not one.score.stopped]

    def more(one: Tried) -> float:
        return _plane(ended, had, one.point.density).more(had[one.number], had[one.number] + epochs)

    return {one.number: one.score.accuracy + more(one) for one in ended}


def _trained(had: Mapping[int, float]) -> dict[int, float]:
    return {number: epochs or UNTRAINED for number, epochs in had.items()}


def _plane(tried: Sequence[Tried], had: Mapping[int, float], near: float) -> Recovery:
    return Recovery.fit(
        [one.point.density for one in tried],
        [had[one.number] for one in tried],
        [one.score.accuracy for one in tried],
        near=near,
    )


def ask(sampler: BaseSampler, space: Space, floor: float, tried: Sequence[Tried], running: Sequence[Point]) -> Point:
    """What the sampler proposes next for one floor.

    It is asked in memory, with each trial's constraint as that floor has it (a stored constraint is of one floor), each
    accuracy as it would be had the trial's network been trained as long as the next one's will have been, the logarithm
    of bytes for bytes, and within a region around the smallest trial that meets the floor (the most accurate one while
    none does): a model of a few dozen noisy trials holds near by at most, and over the whole space most proposals would
    be its corners (after SCBO, Eriksson & Poloczek 2021, arXiv:2002.08526).

    Args:
        sampler: fresh, with a seed of its own.
        space: that is searched.
        floor: the accuracy to be met, in [0, 1].
        tried: trials with a result.
        running: points that workers are trying now, so that no two ask for the same.
    """
    memory = optuna.create_study(sampler=sampler)
    region = _region(space, tried, floor)
    distributions: dict[str, BaseDistribution] = {**region}
    for one in _grown(tried, floor):
        if _inside(one.point, region):
            memory.add_trial(
                create_trial(
                    params=parameters(one.point),
                    distributions=distributions,
                    value=math.log(max(1, one.score.size_bytes)),
                    constraints={FLOOR: min(WORST, one.score.shortfall(floor))},
                )
            )
    for point in running:
        if _inside(point, region):
            known = create_trial(state=TrialState.RUNNING, params=parameters(point), distributions=distributions)
            memory.add_trial(known)
    with np.errstate(invalid="ignore"):  # the GP divides zero by zero once it is sure of its answer, and heeds it
        return point_of(memory.ask(distributions).params)


def whole(space: Space) -> dict[str, FloatDistribution]:
    """The space as Optuna has it: parameter → its range."""
    offsets = {f"{OFFSET}{name}": FloatDistribution(-REACH, REACH) for name in space.sizes}
    return {DENSITY: FloatDistribution(space.least, space.most, log=True), **offsets}


def parameters(point: Point) -> dict[str, float]:
    """A point as Optuna has it: parameter → value."""
    return {DENSITY: point.density, **{f"{OFFSET}{name}": value for name, value in point.offsets.items()}}


def point_of(params: Mapping[str, float]) -> Point:
    """And back."""
    offsets = {name.removeprefix(OFFSET): value for name, value in params.items() if name.startswith(OFFSET)}
    return Point(density=params[DENSITY], offsets=offsets)


def _grown(tried: Sequence[Tried], floor: float) -> list[Tried]:
    """With each accuracy brought to the finetune epochs of a network that goes on from the best one."""
    trained = [one for one in tried if not one.score.stopped]
    if not trained:
        return list(tried)
    had, best = _trained(lineage(tried)), _best(trained, floor)
    plane, most = _plane(trained, had, best.point.density), had[best.number] + best.score.epochs

    def grown(one: Tried) -> Tried:
        more = max(0.0, plane.more(had[one.number], most))
        return replace(one, score=replace(one.score, accuracy=one.score.accuracy + more))

    return [one if one.score.stopped else grown(one) for one in tried]


def _best(tried: Sequence[Tried], floor: float) -> Tried:
    """The smallest that meets the floor; the most accurate, if none does."""
    feasible = [one for one in tried if one.score.meets(floor)]
    if feasible:
        return min(feasible, key=lambda one: (one.score.size_bytes, -one.score.accuracy))
    return max(tried, key=lambda one: (not one.score.stopped, one.score.accuracy))


def _region(space: Space, tried: Sequence[Tried], floor: float) -> dict[str, FloatDistribution]:
    if not tried:
        return whole(space)
    centre = _best(tried, floor).point
    around = {
        f"{OFFSET}{name}": FloatDistribution(max(-REACH, value - REGION), min(REACH, value + REGION))
        for name, value in centre.offsets.items()
    }
    least = max(space.least, centre.density / BELOW)
    return {DENSITY: FloatDistribution(least, min(space.most, centre.density * ABOVE), log=True), **around}


def _inside(point: Point, region: Mapping[str, FloatDistribution]) -> bool:
    return all(region[name].low <= value <= region[name].high for name, value in parameters(point).items())
