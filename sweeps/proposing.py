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

from netprune.confirmation import aim, image_margin, surprise
from netprune.masks import Sparsity
from netprune.recovery import Recovery
from netprune.search_space import REACH, Point, Space
from netprune.seeding import SHORT, Seen, boundary, propose
from netprune.starts import nearest
from sweeps.points import DENSITY, OFFSET, offsets_of, point_of
from sweeps.scores import ROUNDING, Attempt, Tried, judged_after, lineage

REGION = 0.2
"""How far around the best trial's offsets a sampler looks, either way."""
FAR = math.log(2.0)
"""How far a trial's logarithm of density may be from the next one's for a sampler to be told of it: accuracy over that
is bent, and what it would come to at the aim would be a guess."""
MOST = 128
"""Trials that a sampler is told of, those at the nearest densities: telling it takes longer than a proposal."""
SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {
    "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=1),
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=1, constant_liar=True),
    "random": lambda seed: RandomSampler(seed=seed),
}
"""Optuna's, and the control."""
DOUBT = 1.0
"""See `surprise`: one confirmation that fails by an image of few must not send the trials up where accuracy is flat."""
LESS = 1.2
"""By what factor a trial's density has to be below that of a candidate which is accepted already."""
DOWN, STEPS = 1.03, 30
"""Factor and number of the steps in which a smaller point is looked for that a trained network can go on to."""
UNTRAINED = 0.05
"""Finetune epochs that a network counts as having had that has had none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What is known when a trial begins that has no point yet."""

    number: int
    """Of the trial, which no other has."""
    tried: Sequence[Tried]
    running: Sequence[Point]
    """What workers are trying now, and what has diverged."""
    pending: int
    """Trials that began before this one and have no point yet either."""
    spent: float
    """The share of the budget that is gone."""
    attempts: Sequence[Attempt] = ()
    """Candidates that have been confirmed, or not, so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Aims:
    """The accuracies that trials should have, so that confirmations meet the floors."""

    images: int
    """Validation images."""
    epochs: float
    """Finetune epochs of a trial."""
    confirm_epochs: float | None
    """Of a confirmation; None if nothing is confirmed, and a trial has to meet the floor itself and no more."""

    def will(self, tried: Sequence[Tried]) -> float:
        """Finetune epochs that the next trial's network will have had in all: as many as any trial's, and its own."""
        return max(_trained(lineage(tried)).values(), default=UNTRAINED) + self.epochs

    def of(self, floor: float, tried: Sequence[Tried], attempts: Sequence[Attempt] = ()) -> float:
        """For the next trial; confirmations so far say by how much what is expected of them is off."""
        if self.confirm_epochs is None:
            return floor
        if all(one.score.stopped for one in tried):
            return aim(floor, self.images, 0.0)
        will = self.will(tried)
        gain = _Outlook(tried, floor, will).plane.more(will, will + self.confirm_epochs)
        comes_to = expected(tried, self.confirm_epochs)
        alike = [one for one in attempts if not one.turn and math.isclose(one.epochs, self.confirm_epochs)]
        last = {one.trial: one.accuracy for one in alike}
        needed = floor + image_margin(floor, self.images)
        made = [(comes_to[number], accuracy) for number, accuracy in last.items()]
        off = surprise(made, needed, DOUBT)
        return aim(floor, self.images, gain + off)


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

    def __call__(self, turn: Turn) -> Point:
        """The point to try next."""
        tried, running = turn.tried, list(turn.running)
        floor = self.floors[min(len(self.floors) - 1, int(turn.spent * len(self.floors)))]
        goal, will = self.aims.of(floor, tried, turn.attempts), self.aims.will(tried)
        most = self._most(floor, tried, turn.attempts)
        where = boundary(self._seen(tried), goal, will=will, least=self.space.least, most=most)
        known = [*(one.point for one in tried), *running]

        def others(density: float) -> Sequence[Sparsity]:
            found = self.others(min(density, most))
            return [one for one in found if self._can_go_on(one, tried, turn.attempts)]

        def first() -> Point | None:
            return propose(where, self.space, running, known, others)

        for _ in range(turn.pending):  # what those will try: they know no more than this one
            theirs = first()
            if theirs is None:
                break
            running.append(theirs)
            known.append(theirs)
        point = first()
        if point is None and all(one.score.stopped for one in tried):  # more workers than steps down the path
            return self._near(where.wanted or most, turn.number)
        sampler = self.sampler(self.seed + turn.number)
        point = point or ask(sampler, self.space, goal, will, tried, running, most)
        return self._within_reach(point, tried, turn.attempts)

    def _most(self, floor: float, tried: Sequence[Tried], attempts: Sequence[Attempt]) -> float:
        """The largest density that is worth a trial: clearly below that of a candidate which is accepted already."""
        accepted = {one.trial for one in attempts if one.lower >= floor - ROUNDING}
        smallest = min((one.point.density for one in tried if one.number in accepted), default=math.inf)
        return max(self.space.least, min(self.space.most, smallest / LESS))

    def _can_go_on(self, sparsity: Sparsity, tried: Sequence[Tried], attempts: Sequence[Attempt]) -> bool:
        """Whether a trial could begin with a network trained about as long as the longest: those that begin with the
        dense one are not heard once others have been trained far longer (see `boundary`)."""
        if not self.aims.epochs:  # then each is a part of the dense one
            return True
        ended = {one.number: one for one in tried if not one.score.stopped}
        near = nearest(self.space.sizes, sparsity, {number: self.space.at(one.point) for number, one in ended.items()})
        had = lineage(tried) | {one.trial: one.trained for one in attempts}
        has = max((had[number] for number in near), default=0.0) + self.aims.epochs
        return has * SHORT >= max(had.values(), default=0.0)

    def _within_reach(self, point: Point, tried: Sequence[Tried], attempts: Sequence[Attempt]) -> Point:
        """The same point, or one as much smaller as it takes for a trial to go on from a well-trained network; the same
        if none is near.

        A larger network lacks weights in the trained ones, so that its trial would begin with the dense one, fall short
        of what the others had come to, and send the next trial further up.
        """
        for steps in range(STEPS):
            nearer = replace(point, density=point.density / DOWN**steps)
            if nearer.density < self.space.least:
                break
            if self._can_go_on(self.space.at(nearer), tried, attempts):
                return nearer
        return point

    def _near(self, density: float, number: int) -> Point:
        """A point beside the path, by chance."""
        drawn = np.random.default_rng((self.seed, number)).uniform(-REGION, REGION, len(self.space.sizes)).tolist()
        return Point(density=density, offsets=dict(zip(self.space.sizes, drawn, strict=True)))

    def _seen(self, tried: Sequence[Tried]) -> list[Seen]:
        had = _trained(judged_after(tried))
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

    return {one.number: min(1.0, one.score.accuracy + more(one)) for one in ended}


def _trained(had: Mapping[int, float]) -> dict[int, float]:
    return {number: epochs or UNTRAINED for number, epochs in had.items()}


def _plane(tried: Sequence[Tried], had: Mapping[int, float], near: float) -> Recovery:
    return Recovery.fit(
        [one.point.density for one in tried],
        [had[one.number] for one in tried],
        [one.score.accuracy for one in tried],
        near=near,
    )


def ask(
    sampler: BaseSampler,
    space: Space,
    goal: float,
    will: float,
    tried: Sequence[Tried],
    running: Sequence[Point],
    most: float = math.inf,
) -> Point:
    """The density at which a trial should just come to an accuracy, with the offsets that the sampler proposes.

    The density is no question for a sampler: `Recovery` knows it from all trials, and a trial far from the floor says
    little about it. So the sampler has the offsets alone, and one value without a constraint: the logarithm of the
    bytes at which a trial with these offsets would come to the goal. That is its own, moved along the plane by what its
    accuracy, brought to the finetune epochs that the next network will have had, is above the goal. Offsets are looked
    for around those of the best trial: a model of a few dozen noisy ones holds near by at most (after TuRBO, Eriksson
    et al. 2019, arXiv:1910.01739).

    Args:
        sampler: fresh, with a seed of its own.
        space: that is searched.
        goal: the accuracy to come to, in [0, 1].
        will: finetune epochs that the next trial's network will have had in all.
        tried: trials with a result; at least one ran to its end.
        running: points that workers are trying now, so that no two ask for the same; or that have diverged.
        most: the largest density to propose, beside the space's own.
    """
    outlook = _Outlook(tried, goal, will)
    density = min(space.most, most, max(space.least, outlook.plane.density_at(goal, outlook.epochs)))

    def value(one: Tried) -> float:
        return math.log(max(1, one.score.size_bytes)) + (goal - outlook.accuracy(one)) / outlook.plane.slope

    def distance(one: Tried) -> float:
        return abs(math.log(one.point.density / density))

    nearest = sorted((one for one in tried if distance(one) <= FAR), key=distance)[:MOST]
    close = sorted(nearest, key=lambda one: one.number) or [outlook.near]
    # what stopped early has not shown how good it is
    centre = min([one for one in close if not one.score.stopped] or [outlook.near], key=value).point
    region = {
        f"{OFFSET}{name}": FloatDistribution(max(-REACH, middle - REGION), min(REACH, middle + REGION))
        for name, middle in centre.offsets.items()
    }
    memory, distributions = optuna.create_study(sampler=sampler), dict[str, BaseDistribution](region)
    for one in close:
        if _inside(one.point, region):
            params = offsets_of(one.point)
            memory.add_trial(create_trial(params=params, distributions=distributions, value=value(one)))
    for point in running:
        if _inside(point, region):
            known = create_trial(state=TrialState.RUNNING, params=offsets_of(point), distributions=distributions)
            memory.add_trial(known)
    with np.errstate(invalid="ignore"):  # the GP divides zero by zero once it is sure of its answer, and heeds it
        found = memory.ask(distributions).params
    if any(offsets_of(point) == found for point in (*running, *(one.point for one in tried))):
        # sure of its answer, it gives it again, and at much the same density that would teach nothing
        memory.sampler = RandomSampler(seed=len(tried) + len(running))
        found = memory.ask(distributions).params
    return point_of({DENSITY: density, **found})


class _Outlook:
    """What the next trial's network may be expected to come to, near an accuracy."""

    def __init__(self, tried: Sequence[Tried], accuracy: float, will: float) -> None:
        ended = [one for one in tried if not one.score.stopped]
        self.had = _trained(judged_after(tried))
        self.near = min(ended, key=lambda one: abs(one.score.accuracy - accuracy))
        self.plane = _plane(ended, self.had, self.near.point.density)
        self.epochs = will
        """Finetune epochs that it will have had in all."""

    def accuracy(self, one: Tried) -> float:
        """What a trial would have come to, had its network had as many; of one that stopped, at most."""
        return one.score.accuracy + max(0.0, self.plane.more(self.had[one.number], self.epochs))


def _inside(point: Point, region: Mapping[str, FloatDistribution]) -> bool:
    return all(region[name].low <= value <= region[name].high for name, value in offsets_of(point).items())
