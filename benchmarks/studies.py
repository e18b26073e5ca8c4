"""Made-up studies: where a search goes, and what it confirms, without training anything.

The search's own proposals and its own choice of what to confirm, over a made-up accuracy: a bent line over the
logarithm of density, more for longer training, less for offsets that are not the best, and noise. Its figures are as in
studies of `net10_w16.pt` on CIFAR-10 (README, results log): trials of half an epoch, confirmations of one and a half,
floors of 83.38 and 81.88 %. What a change of the search is worth shows in minutes; whether it holds, only real studies
say.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import optuna
import torch

from benchmarks.setting import finish, print_table, require_counts, run
from netprune.allocation import Basis
from netprune.confidence import lower_bound
from netprune.confirmation import Candidate, image_margin
from netprune.models import Architecture, build_model
from netprune.pruning import finetuning
from netprune.search_space import Point, Space
from netprune.seeding import seed_path
from netprune.starts import nearest
from netprune.weights import prunable_weights
from sweeps.progress import Voice, speaking
from sweeps.proposing import SAMPLERS, Aims, Proposer, Turn, expected
from sweeps.scores import ROUNDING, Attempt, Score, Tried, lineage
from sweeps.stages import confirming
from sweeps.stages.contest import FRESH, Confirmation, Confirmed, Contest
from sweeps.stages.deciding import confirmation_shares
from sweeps.stages.longer import hopeless
from sweeps.stages.starting import DENSE

FLOORS = (0.8338, 0.8188)
IMAGES = 5_000
TRIAL, CONFIRM = 0.5, 1.5
"""Finetune epochs."""
DENSITY, EPOCHS = 0.2, 3.0
"""Where a world's level is."""
LEVEL, LEVEL_SPREAD = 0.842, 0.002
SLOPE, SLOPE_SPREAD = 0.012, 0.0015
"""Accuracy that an e-fold of density brings."""
BENT, BEND = 0.7, 0.01
"""E-folds below `DENSITY` from which accuracy falls faster, and by how much, by their square."""
GAIN, GAIN_SPREAD = 0.0045, 0.001
"""What an e-fold of finetune epochs brings."""
AVERAGED, AVERAGED_SPREAD, AVERAGED_NOISE = 0.0035, 0.0007, 0.0012
"""What the average of two networks has beside their mean."""
NOISE = 0.0028
"""Of one finetuning."""
OFFSETS, MISSED = 0.15, 0.02
"""Spread of the best offsets, and the accuracy that a square of a distance from them costs."""
UNTRAINED, LONG = 0.05, 10.0
"""Finetune epochs: of a network that has had none, as it counts; and of the one with the least bytes possible."""
DENSE_BYTES = 1_402_347
BYTES = 1.5e6
"""Of a file, by density."""


@dataclass(frozen=True)
class World:
    """An accuracy for every network."""

    space: Space
    level: float
    slope: float
    gain: float
    averaged: float
    best: Mapping[str, float]
    """The offsets."""
    rng: np.random.Generator = field(repr=False)

    @classmethod
    def made(cls, space: Space, seed: int) -> World:
        """One of many."""
        rng = np.random.default_rng(seed)
        return cls(
            space=space,
            level=rng.normal(LEVEL, LEVEL_SPREAD),
            slope=rng.normal(SLOPE, SLOPE_SPREAD),
            gain=rng.normal(GAIN, GAIN_SPREAD),
            averaged=rng.normal(AVERAGED, AVERAGED_SPREAD),
            best={name: rng.normal(0, OFFSETS) for name in space.sizes},
            rng=rng,
        )

    def accuracy(self, point: Point, epochs: float) -> float:
        """Of a network that has been finetuned so long in all, without noise."""
        away = math.log(point.density / DENSITY)
        sizes, total = self.space.sizes, sum(self.space.sizes.values())
        missed = sum(size / total * (point.offsets[name] - self.best[name]) ** 2 for name, size in sizes.items())
        bent = BEND * min(0.0, away + BENT) ** 2
        trained = self.gain * math.log(max(epochs, UNTRAINED) / EPOCHS)
        return self.level + self.slope * away - bent + trained - MISSED * missed

    def measured(self, accuracy: float, noise: float = NOISE) -> float:
        """As validation has it."""
        return round((accuracy + self.rng.normal(0, noise)) * IMAGES) / IMAGES

    def least_bytes(self, floor: float, epochs: float) -> float:
        """Of a network with the best offsets that comes to what a confirmation needs after so many epochs."""
        low, high = 0.001, 1.0
        for _ in range(50):
            middle = math.sqrt(low * high)
            point = Point(density=middle, offsets=self.best)
            enough = self.accuracy(point, epochs) + self.averaged >= floor + image_margin(floor, IMAGES)
            low, high = (low, middle) if enough else (middle, high)
        return file_bytes(high)


def file_bytes(density: float) -> int:
    """Of a packed file."""
    return round(BYTES * density)


@dataclass
class _Finetuned:
    """A candidate, finetuned longer."""

    epochs: float
    """That it has had in all."""
    accuracies: list[float] = field(default_factory=list)
    average: float | None = None


class Study:
    """One study in a world: as `sweeps.stages.searching` goes about it, by the same choices."""

    def __init__(self, world: World, seed: int, options: argparse.Namespace) -> None:
        self.world, self.options = world, options
        self.tried: list[Tried] = []
        self.attempts: list[Attempt] = []
        self.confirm_epochs = 0.0
        self.finetuned = dict[tuple[int, int], _Finetuned]()
        """By candidate, and how often it had been finetuned so before."""
        aims = Aims(images=IMAGES, epochs=TRIAL, confirm_epochs=CONFIRM)
        self.propose = Proposer(world.space, FLOORS, aims, lambda _: [], sampler=options.sampler, seed=seed)

    def __call__(self) -> dict[float, Confirmed | None]:
        """Each floor's winner."""
        due = confirmation_shares(FLOORS, self.options.confirm_most)
        source: Any = SimpleNamespace(dataset=SimpleNamespace(val=range(IMAGES)))
        seeds = (FRESH, FRESH + 1)
        how = Confirmation(config=finetuning(CONFIRM), seeds=seeds, most=self.options.confirm_most)
        with speaking(Voice.QUIET), mock.patch.object(confirming, "measure", self._measure):
            for done in range(1, self.options.trials + 1):
                self._try((done - 1) / self.options.trials)
                late = [floor for share, floor in due if share <= done / self.options.trials + ROUNDING]
                due = due[len(late) :]
                for floor in dict.fromkeys(late):
                    confirming.probe(source, self._contest(), how, floor)
            return confirming.confirm(source, self._contest(), how)

    def _try(self, spent: float) -> None:
        number = len(self.tried)
        turn = Turn(number=number, tried=self.tried, running=[], pending=0, spent=spent, attempts=self.attempts)
        point = self.propose(turn)
        had = self._had(point)
        accuracy = self.world.measured(self.world.accuracy(point, had + TRIAL))
        size = file_bytes(point.density)
        score = Score(size_bytes=size, accuracy=accuracy, run_id="", epochs=TRIAL, had=had)
        self.tried.append(Tried(number, point, score))

    def _had(self, point: Point) -> float:
        """Finetune epochs of the network that a finetuning of this point begins with: of the near ones the longest."""
        at = {one.number: self.world.space.at(one.point) for one in self.tried}
        had = lineage(self.tried) | {one.trial: one.trained for one in self.attempts}
        return max((had[n] for n in nearest(self.world.space.sizes, self.world.space.at(point), at)), default=0.0)

    def _contest(self) -> Contest:
        comes_to = expected(self.tried, CONFIRM)
        return Contest(
            name="",
            run_id="",
            floors=FLOORS,
            objective="packed_bytes",
            candidates=tuple(
                Candidate(one.number, one.score.size_bytes, one.score.accuracy, comes_to[one.number])
                for one in self.tried
            ),
            sparsities={},
            start=lambda _: DENSE,
            attempts=tuple(self.attempts),
            note=self.attempts.append,
        )

    def _measure(
        self, _: Any, __: Contest, number: int, how: Confirmation, floor: float, earlier: Sequence[Confirmed]
    ) -> Confirmed:
        """What `longer.measure` would come to, which takes what was made before from the store."""
        point, key = self.tried[number].point, (number, len(earlier))
        if key not in self.finetuned:
            had = earlier[-1].trained if earlier else self._had(point)
            self.finetuned[key] = _Finetuned(had + CONFIRM)
        made = self.finetuned[key]
        has, accuracies = made.epochs, made.accuracies
        comes_to = self.world.accuracy(point, has)
        while not accuracies or (len(accuracies) < len(how.seeds) and not hopeless(accuracies, floor)):
            accuracies.append(self.world.measured(comes_to))
            self.confirm_epochs += CONFIRM
        mean = sum(accuracies) / len(accuracies)
        lower = mean - image_margin(floor, IMAGES)
        if len(accuracies) > 1 and made.average is None:
            # the two networks' noise is in it by half, as it is in their mean
            made.average = self.world.measured((mean + comes_to) / 2 + self.world.averaged, AVERAGED_NOISE)
        average = made.average
        if average is not None:
            lower = lower_bound(accuracies, IMAGES, average=average if average >= mean else None).lower
        return Confirmed(
            trial=number,
            run_ids=("",) * len(accuracies),
            accuracies=tuple(accuracies),
            average=average,
            run_id="average" if average is not None and average >= mean else "",
            trained=has,
            images_had=has,
            size_bytes=file_bytes(point.density),
            lower=lower,
        )


def measure(seed: int, options: argparse.Namespace, space: Space) -> dict[str, Any]:
    """One study: by floor the logarithm of the confirmed bytes over the least possible, and whether there were any."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = Study(World.made(space, seed), seed, options)
    winners = study()
    bytes_ = {floor: won.size_bytes if won else DENSE_BYTES for floor, won in winners.items()}
    return {
        "over": [math.log(size / study.world.least_bytes(floor, LONG)) for floor, size in bytes_.items()],
        "none": [won is None for won in winners.values()],
        "confirm epochs": study.confirm_epochs,
    }


def net10_space() -> Space:
    """Of the layers of Net10 of width 16, on the path of a rule that goes by their shapes."""
    model = build_model(Architecture(name="net10", num_classes=10, width=16))
    sizes = {name: weight.numel() for name, weight in prunable_weights(model).items()}
    return Space(sizes=sizes, path=seed_path(Basis(model=model), "erk"))


def main() -> None:
    options = _options()
    work = partial(measure, options=options, space=net10_space())
    seeds = range(options.first_seed, options.first_seed + options.studies)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(work, seeds))
    rows = []
    for i, floor in enumerate(FLOORS):
        over = np.array([one["over"][i] for one in found])
        error = over.std(ddof=1) / len(over) ** 0.5 if len(over) > 1 else 0.0
        none = np.mean([one["none"][i] for one in found])
        rows.append([f"{100 * floor:.2f} %", f"{over.mean():.3f} ± {error:.3f}", f"{100 * none:.1f} %"])
    print_table(["floor", "log of bytes over the least possible", "none"], rows)
    print(
        f"{len(found)} made-up studies of {options.trials} trials, at most {options.confirm_most} finetunings of a "
        f"floor's candidates: {np.mean([one['confirm epochs'] for one in found]):.1f} epochs of confirmations"
    )
    figure = float(np.mean([one["over"] for one in found]))
    finish(options, {"results": found}, figure, "log of the confirmed bytes over the least possible, mean over floors")


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--studies", type=int, help="how many (default 100, quick 4)")
    made.add_argument("--first-seed", type=int, default=0, help="of a study and its world; the others follow it")
    made.add_argument("--trials", type=int, default=12, help="of each study (default 12)")
    made.add_argument("--confirm-most", type=int, default=5, help="finetunings of candidates a floor (default 5)")
    made.add_argument("--sampler", default="tpe", choices=SAMPLERS, help="of the offsets (default tpe)")
    made.add_argument("--workers", type=int, default=torch.get_num_threads(), help="processes (default one a core)")
    made.add_argument("--json", help="file for the figures")
    made.add_argument("--quick", action="store_true", help="a smaller run, in seconds")
    options = made.parse_args()
    options.device = "cpu"
    if options.studies is None:
        options.studies = 4 if options.quick else 100
    require_counts(options, "studies", "trials", "confirm_most", "workers")
    return options


if __name__ == "__main__":
    run(main)
