"""What a sampler proposes next: Optuna's own, asked in memory about one floor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from netprune.search_space import REACH, Point, Space
from netprune.starts import gain_of_training
from sweeps.scores import Tried, lineage

FLOOR, DENSITY, OFFSET = "accuracy_floor", "density", "offset/"
WORST = 0.1
"""The largest shortfall that a sampler is told of: a network that guesses is no worse than one ten points short, and
would only flatten the model of what lies near the floor."""
REGION, BELOW, ABOVE = 0.5, 1.6, 1.15
"""How far around the smallest feasible trial a sampler looks: offsets either way, and factors of density."""
SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {
    "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=1),
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=1, constant_liar=True),
    "random": lambda seed: RandomSampler(seed=seed),
}
"""Those that heed a constraint, and the control."""


def ask(sampler: BaseSampler, space: Space, floor: float, tried: Sequence[Tried], running: Sequence[Point]) -> Point:
    """What the sampler proposes next for one floor.

    It is asked in memory, with each trial's constraint as that floor has it (a stored constraint is of one floor), each
    accuracy as it would be had the trial's network been trained as long as the next one's will have been, the logarithm
    of bytes for bytes, and, once a trial meets the floor, within a region around the smallest one that does:
    a model of a few dozen noisy trials holds near by at most, and over the whole space most proposals would be its
    corners (after SCBO, Eriksson & Poloczek 2021, arXiv:2002.08526).

    Args:
        sampler: fresh, with a seed of its own.
        space: that is searched.
        floor: in [0, 1].
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
    had = lineage(tried)
    trained = [one for one in tried if had[one.number] and not one.score.stopped]
    if not trained:
        return list(tried)
    best = _best(trained, floor) or max(trained, key=lambda one: one.score.accuracy)
    most = had[best.number] + best.score.epochs
    gain = gain_of_training(
        [one.point.density for one in trained],
        [had[one.number] for one in trained],
        [one.score.accuracy for one in trained],
    )

    def grown(one: Tried) -> Tried:
        more = gain * max(0.0, math.log(most / had[one.number]))
        return replace(one, score=replace(one.score, accuracy=one.score.accuracy + more))

    return [grown(one) if one in trained else one for one in tried]


def _best(tried: Sequence[Tried], floor: float) -> Tried | None:
    """The smallest that meets the floor."""
    feasible = [one for one in tried if one.score.meets(floor)]
    return min(feasible, key=lambda one: (one.score.size_bytes, -one.score.accuracy), default=None)


def _region(space: Space, tried: Sequence[Tried], floor: float) -> dict[str, FloatDistribution]:
    best = _best(tried, floor)
    if best is None:
        return whole(space)
    centre = best.point
    around = {
        f"{OFFSET}{name}": FloatDistribution(max(-REACH, value - REGION), min(REACH, value + REGION))
        for name, value in centre.offsets.items()
    }
    least = max(space.least, centre.density / BELOW)
    return {DENSITY: FloatDistribution(least, min(space.most, centre.density * ABOVE), log=True), **around}


def _inside(point: Point, region: Mapping[str, FloatDistribution]) -> bool:
    return all(region[name].low <= value <= region[name].high for name, value in parameters(point).items())
