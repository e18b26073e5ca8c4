"""What is confirmed, how, and what it came to."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netprune.confirmation import Bound, Candidate
from netprune.masks import Sparsity
from netprune.pruning import PruneConfig
from netprune.screening import Screen
from sweeps import tracking
from sweeps.proposing import expected
from sweeps.scores import Attempt
from sweeps.stages.source import Source
from sweeps.stages.starting import Start, Starts
from sweeps.study import SparsityStudy

FRESH = 1000
"""Seeds of confirmations begin this far above the study's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmed:
    """A trial's allocation, finetuned longer, with fresh seeds."""

    trial: int
    run_ids: tuple[str, ...]
    """One a seed."""
    accuracies: tuple[float, ...]
    """Validation, one a seed; a single one where that was hopeless already."""
    average: float | None
    """The same of the network with the mean of their weights; None where there is none."""
    run_id: str
    """Of the network that ships: the average, or where that is worse than the seeds' mean the most accurate."""
    trained: float
    """Finetune epochs that it has had in all."""
    images_had: float
    """Epochs of training images that it has learned from, with one seed after the other."""
    size_bytes: int
    """Of the network that ships, the objective."""
    lower: float
    """Lower end of the one-sided 95 % confidence interval of the accuracy."""

    @classmethod
    def of_json(cls, kept: Mapping[str, Any]) -> Confirmed:
        """From what `asdict` gave, once it has been JSON."""
        return cls(**{**kept, "run_ids": tuple(kept["run_ids"]), "accuracies": tuple(kept["accuracies"])})

    @property
    def averaged(self) -> bool:
        """Whether the average ships."""
        return self.run_id not in self.run_ids

    @property
    def accuracy(self) -> float:
        """What its bound is of: the average's, or the mean over the seeds."""
        if self.averaged and self.average is not None:
            return self.average
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def bound(self) -> Bound:
        """As the choice of the next candidate takes it."""
        return Bound(self.size_bytes, self.accuracy, self.lower)


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """How candidates are confirmed."""

    config: PruneConfig
    """The longer finetuning; its seed is replaced by fresh ones."""
    seeds: tuple[int, ...]
    """At least 2."""
    most: int
    """Finetunings for each floor, of new candidates and once more, after which no still smaller one is looked for, once
    one has been accepted; and how many once more there are while none is."""
    since: int = 0
    """The first of the study's attempts that counts for that."""

    @property
    def epochs(self) -> float:
        """Finetune epochs with each seed."""
        return self.config.epochs

    def seeds_of(self, turn: int) -> tuple[int, ...]:
        """Fresh ones for each turn: see `Attempt`."""
        return tuple(seed + turn * len(self.seeds) for seed in self.seeds)

    def made(self, attempt: Attempt) -> bool:
        """Whether an attempt was made in this way."""
        return attempt.seeds == self.seeds_of(attempt.turn) and math.isclose(attempt.epochs, self.epochs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """What is confirmed: the candidates of one study, for its floors."""

    name: str
    """Of the study."""
    run_id: str
    """Its run, which is open: confirmations are nested under it."""
    floors: tuple[float, ...]
    """Each in [0, 1], the highest first."""
    objective: str
    """The metric that is minimised."""
    candidates: tuple[Candidate, ...]
    sparsities: Mapping[int, Sparsity]
    """By candidate number."""
    start: Callable[[int], Start]
    """Where the longer finetunings of a candidate begin, by its number."""
    session: str = ""
    """Of the worker that confirms."""
    attempts: Sequence[Attempt] = ()
    """That were made before."""
    note: Callable[[Attempt], None] = lambda _: None
    """Is told of each new one."""

    @classmethod
    def of(cls, study: SparsityStudy, objective: str, source: Source, config: PruneConfig) -> Contest:
        """A study's trials that ran to their end, and what has been confirmed of them."""
        seen = study.look()
        tried = [one for one in seen.tried if not one.score.stopped]
        comes_to = expected(seen.tried, config.epochs)
        sparsities = {one.number: study.space.at(one.point) for one in tried}

        @functools.cache
        def starts() -> Starts:
            return Starts(source, study, config, Screen(source.model, source.dataset, config.saliency))

        def start(number: int) -> Start:
            """What has least left to recover; where nothing is finetuned any more, what the trial came to."""
            if config.finetune:
                return starts().find(sparsities[number], tried)[0]
            return next(starts().of(one) for one in tried if one.number == number)

        return cls(
            name=study.name,
            run_id=tracking.active_run_id(),
            floors=study.floors,
            objective=objective,
            candidates=tuple(
                Candidate(one.number, one.score.size_bytes, one.score.accuracy, comes_to[one.number]) for one in tried
            ),
            sparsities=sparsities,
            start=start,
            session=study.crew.key,
            attempts=study.attempts,
            note=study.note_attempt,
        )
