"""What our search is held against: bisections of one rule's budget, and plain Optuna over raw sparsities."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import optuna
from torch import nn

from netprune.allocation import Basis, find_allocator
from netprune.confirmation import aim
from netprune.errors import InputError
from netprune.masks import Sparsity
from netprune.pruning import PruneConfig
from netprune.recovery import GAIN
from netprune.seeding import DENSITIES

RULES = ("uniform", "document", "global_magnitude", "erk", "lamp", "knapsack")
FIRST, STEP, CLOSE, ABOVE = 0.1, 2.5, 1.1, 1.12
"""A bisection's first density, its factor to the next while only one side is known, the factor between the two sides at
which it ends, and that between the densities above, on which it spends the rest of its trials."""
MOST_SPARSITY = 0.999
"""Of plain Optuna's layers."""


@dataclass(frozen=True, slots=True)
class Found:
    """One trial of a method."""

    sparsity: Sparsity
    size_bytes: int
    accuracy: float
    """Validation, in [0, 1]."""
    network: nn.Module
    """Finetuned: confirmations go on from it."""


Trial = Callable[[Sparsity], Found]
"""Sparsities → what they come to."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is equal for all methods."""

    floors: tuple[float, ...]
    """Each in [0, 1], the highest first."""
    trials: int
    finetune: PruneConfig
    confirmation: PruneConfig
    most: int
    """Candidates a floor that are confirmed; see `Confirmation`."""
    seed: int
    images: int
    """Validation images."""

    @property
    def gain(self) -> float:
        """Accuracy that a confirmation is expected to add, as ours expects it before anything is measured."""
        had = self.finetune.epochs
        return GAIN * math.log((had + self.confirmation.epochs) / had)

    def aim(self, floor: float) -> float:
        """What a trial should have for its confirmation to meet a floor, as in ours."""
        return aim(floor, self.images, self.gain)

    @property
    def epochs(self) -> float:
        """Finetune epochs of all trials."""
        return self.trials * self.finetune.epochs

    def until(self, part: int) -> int:
        """Trials at the end of a floor's part, from 1: floors share them equally."""
        return round(self.trials * part / len(self.floors))


def bisect(rule: str, basis: Basis, terms: Terms, trial: Trial) -> list[Found]:
    """The trials of one rule's bisection, for each floor in turn."""
    found: dict[float, Found] = {}
    for part, floor in enumerate(terms.floors, start=1):
        while len(found) < terms.until(part):
            meets = {density: one.accuracy >= terms.aim(floor) for density, one in found.items()}
            density = next_density(meets, DENSITIES[0], DENSITIES[-1])
            if density is None:
                break
            try:
                sparsity = find_allocator(rule)(basis, density)
            except InputError:  # below what the scan reached
                break
            found[density] = trial(sparsity)
    return list(found.values())


def next_density(meets: Mapping[float, bool], least: float, most: float) -> float | None:
    """The next density of a bisection: density → whether it met the aim. None when even the largest has been tried.

    >>> next_density({}, 0.004, 0.6), next_density({0.1: True}, 0.004, 0.6)
    (0.1, 0.04)
    >>> round(next_density({0.1: True, 0.04: False}, 0.004, 0.6), 4)
    0.0632
    >>> round(next_density({0.1: True, 0.095: False}, 0.004, 0.6), 4)
    0.112
    """
    high = min((density for density, met in meets.items() if met), default=None)
    low = max((d for d, met in meets.items() if not met and (high is None or d < high)), default=None)
    if high is None and low is None:
        return min(most, max(least, FIRST))
    if high is None:
        assert low is not None
        return None if low == most else min(most, low * STEP)
    if low is None and high > least:
        return max(least, high / STEP)
    if low is not None and high / low > CLOSE:
        return math.sqrt(high * low)
    above = high * ABOVE
    while above <= most and any(abs(math.log(above / density)) < math.log(ABOVE) / 2 for density in meets):
        above *= ABOVE
    return above if above <= most else None


def plain(layers: Collection[str], terms: Terms, trial: Trial) -> list[Found]:
    """The trials of TPE over the layers' raw sparsities, a study for each floor, which knows the trials of those
    before."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found: list[Found] = []
    for part, floor in enumerate(terms.floors, start=1):
        # a seed for each: of one they would draw the same sparsities again
        seed = terms.seed * len(terms.floors) + part
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        for one in found:
            study.enqueue_trial(dict(one.sparsity))

        def objective(asked: optuna.Trial, floor: float = floor) -> float:
            sparsity = {name: asked.suggest_float(name, 0.0, MOST_SPARSITY) for name in layers}
            if asked.number == len(found):
                found.append(trial(sparsity))
            asked.set_constraint("floor", terms.aim(floor) - found[asked.number].accuracy)
            return found[asked.number].size_bytes

        study.optimize(objective, n_trials=terms.until(part))
    return found
