"""A candidate finetuned on, longer, with fresh seeds, and averaged: each network in a run of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from netprune.callbacks import Callbacks
from netprune.candidate import PruneResult, average_candidate, prune_candidate
from netprune.confidence import lower_bound
from netprune.confirmation import image_margin
from netprune.pruning import PruneConfig
from netprune.stopping import SHORT
from sweeps import tracking
from sweeps.progress import Progress
from sweeps.scores import Attempt
from sweeps.stages.contest import Confirmation, Confirmed, Contest
from sweeps.stages.source import Source
from sweeps.stages.starting import Start, fetch_network, keep_network
from sweeps.stages.trials import START, keep_result, result_metrics, seconds
from sweeps.table import short

SEED, AVERAGE = "netprune.seed", "netprune.average"
"""Tags of a confirmation's runs: of a finetuning its seed, of an average how many networks it is of."""
EPOCHS, TURN, SEEDS = "netprune.finetune_epochs", "netprune.turn", "netprune.seeds"
"""Of both: how long each was finetuned, how often the network had been finetuned so before (see `Attempt`), and with
which seeds in all: among others the same seed goes over other images."""
START_RUN, HAD, IMAGES_HAD = "netprune.start_run", "netprune.start_epochs", "netprune.start_images"
"""Of a finetuning, beside `START`: the run that keeps the network it went on from, the finetune epochs of that, and the
epochs of training images that it had learned from."""


def hopeless(accuracies: Sequence[float], floor: float) -> bool:
    """Whether the first seed says already that no mean will be above a floor by the images' margin."""
    return accuracies[0] + SHORT < floor


def measure(
    source: Source,
    contest: Contest,
    number: int,
    how: Confirmation,
    floor: float,
    earlier: Sequence[Confirmed] = (),
) -> Confirmed:
    """Finetune a candidate with every seed, all from one start, unless the first is hopeless for a floor, and average.

    Args:
        source: the dense network and its data.
        contest: who is confirmed, for what.
        number: of the candidate.
        how: the finetunings.
        floor: in [0, 1].
        earlier: what the candidate has come to before: it goes on from the last of them, with other seeds.
    """
    images, turn = len(source.dataset.val), len(earlier)
    found: list[tracking.FoundRun] = []

    def begin() -> _Beginning:
        if found:  # an earlier session may have chosen it
            return _Beginning.of(found[0])
        if earlier:
            last = earlier[-1]
            start = Start(number, None, last.run_id, last.trained, last.images_had, confirmed=True)
        else:
            start = contest.start(number)
        return _Beginning(str(start), start.run_id, start.had, start.images_had)

    for i in range(len(how.seeds)):
        found.append(_finetuned(source, contest, number, how, i, turn, begin))
        accuracies = [run.metrics["val_accuracy"] for run in found]
        if hopeless(accuracies, floor):
            break
    averaged = None
    if len(found) > 1 and how.config.finetune:  # without finetuning the seeds agree
        averaged = _averaged(source, contest, number, how, turn, found)
    made = _came_to(contest.objective, number, how.epochs, found, averaged, images=images)
    return made if len(found) > 1 else replace(made, lower=accuracies[0] - image_margin(floor, images))


def recall(contest: Contest, attempt: Attempt, images: int) -> Confirmed | None:
    """What an attempt of an earlier session came to; None where it was given up after one seed, or if the store has
    lost one of its runs.

    Args:
        contest: whose attempt it was.
        attempt: in whatever way it was made.
        images: that accuracies are measured on.
    """
    tags = _tags(attempt.trial, attempt.epochs, attempt.turn, attempt.seeds)
    runs = _runs_of(contest, tags)
    found = {run.tags[SEED]: run for run in reversed(runs) if SEED in run.tags}
    averaged = next((run for run in runs if AVERAGE in run.tags), None)
    if len(found) < len(attempt.seeds) or (averaged is None and attempt.epochs):
        return None
    seeded = [found[str(seed)] for seed in attempt.seeds]
    return _came_to(contest.objective, attempt.trial, attempt.epochs, seeded, averaged, images=images)


def _came_to(
    objective: str,
    number: int,
    epochs: float,
    found: Sequence[tracking.FoundRun],
    averaged: tracking.FoundRun | None,
    *,
    images: int,
) -> Confirmed:
    """What a candidate came to: with every seed, and averaged. Of one seed alone there is no bound: 0."""
    accuracies = [run.metrics["val_accuracy"] for run in found]
    mean, average = sum(accuracies) / len(accuracies), None
    ships = max(found, key=lambda run: run.metrics["val_accuracy"])
    if averaged is not None:
        average = averaged.metrics["val_accuracy"]
        if average >= mean:
            ships = averaged
    of = average if ships is averaged else None
    beginning = _Beginning.of(found[0])
    return Confirmed(
        trial=number,
        run_ids=tuple(run.run_id for run in found),
        accuracies=tuple(accuracies),
        average=average,
        run_id=ships.run_id,
        trained=beginning.had + epochs,
        images_had=beginning.images_had + len(found) * epochs,
        size_bytes=int(ships.metrics[objective]),
        lower=lower_bound(accuracies, images, average=of).lower if len(found) > 1 else 0.0,
    )


@dataclass(frozen=True, slots=True)
class _Beginning:
    """The network that a candidate's finetunings began with."""

    name: str
    run_id: str
    """Of the run that keeps it; nothing for the dense one."""
    had: float
    """Finetune epochs that it had had in all."""
    images_had: float
    """Epochs of training images that it had learned from."""

    @classmethod
    def of(cls, run: tracking.FoundRun) -> _Beginning:
        """A finetuning's."""
        return cls(run.tags[START], run.tags[START_RUN], float(run.tags[HAD]), float(run.tags[IMAGES_HAD]))

    @property
    def tags(self) -> dict[str, str]:
        """Of the finetuning."""
        figures = {HAD: repr(self.had), IMAGES_HAD: repr(self.images_had)}
        return {START: self.name, START_RUN: self.run_id, **figures}

    def fetch(self, source: Source, config: PruneConfig) -> nn.Module | None:
        """The network; None for the dense one."""
        return fetch_network(self.run_id, source, config) if self.run_id else None


def _averaged(
    source: Source, contest: Contest, number: int, how: Confirmation, turn: int, found: Sequence[tracking.FoundRun]
) -> tracking.FoundRun:
    """The run of the average of finetunings: an earlier session's, or a new one."""
    tags = {AVERAGE: str(len(found)), **_tags(number, how.epochs, turn, how.seeds_of(turn))}

    def candidate(_: Progress) -> tuple[PruneResult, bytes]:
        networks = [fetch_network(run.run_id, source, how.config) for run in found]
        return average_candidate(
            source.subject,
            contest.sparsities[number],
            networks,
            how.config,
            callbacks=Callbacks(on_finetuned=lambda network: keep_network(network, source, how.config)),
        )

    return _run(contest, number, tags, "average", candidate, epochs=0.0)


def _finetuned(
    source: Source,
    contest: Contest,
    number: int,
    how: Confirmation,
    i: int,
    turn: int,
    begin: Callable[[], _Beginning],
) -> tracking.FoundRun:
    """The run of the longer finetuning with the i-th seed: an earlier session's, or a new one.

    Each goes on with the images after the last one's: the average has learned from all of them.
    """
    seed = how.seeds_of(turn)[i]
    finetune = replace(how.config.finetune, seed=seed) if how.config.finetune else None
    tags = {SEED: str(seed), **_tags(number, how.epochs, turn, how.seeds_of(turn))}

    def candidate(progress: Progress) -> tuple[PruneResult, bytes]:
        beginning = begin()
        tracking.set_tags(beginning.tags)
        return prune_candidate(
            source.subject,
            contest.sparsities[number],
            replace(how.config, finetune=finetune, had=beginning.images_had + i * how.epochs),
            start=beginning.fetch(source, how.config),
            callbacks=Callbacks(
                on_step=progress, on_finetuned=lambda network: keep_network(network, source, how.config)
            ),
        )

    return _run(contest, number, tags, f"seed {seed}", candidate, epochs=how.epochs)


def _tags(number: int, epochs: float, turn: int, seeds: Sequence[int]) -> dict[str, str]:
    said = ",".join(map(str, seeds))
    return {tracking.TRIAL: str(number), EPOCHS: f"{epochs:g}", TURN: str(turn), SEEDS: said}


def _runs_of(contest: Contest, tags: Mapping[str, str]) -> list[tracking.FoundRun]:
    """The newest first."""
    return tracking.find_runs({tracking.STAGE: "confirm", tracking.PARENT: contest.run_id, **tags})


def _run(
    contest: Contest,
    number: int,
    tags: Mapping[str, str],
    what: str,
    candidate: Callable[[Progress], tuple[PruneResult, bytes]],
    *,
    epochs: float,
) -> tracking.FoundRun:
    """One network of a candidate in a run of its own, unless the store has it."""
    known = _runs_of(contest, tags)
    if known:
        return known[0]
    options = {f"sparsity/{layer}": value for layer, value in contest.sparsities[number].items()}
    name = f"confirm {number:03d} {what}"
    tags = {**tags, tracking.STUDY: contest.name, tracking.SESSION: contest.session}
    with tracking.tracked_run("confirm", name, options, tags=tags) as run_id:
        with Progress(f"confirm {number}, {what}") as progress:
            result, data = candidate(progress)
        keep_result(result, data)
        tracking.log({**result_metrics(result), **seconds(result.seconds), "finetune_epochs": epochs})
        tracking.rename(f"{short(getattr(result, contest.objective), result.val.accuracy)} · {name}")
    return tracking.find_run(run_id)
