"""Candidates finetuned on, longer, with fresh seeds, and accepted by a bound instead of a lucky trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

from torch import nn

from netprune.callbacks import Callbacks
from netprune.confidence import least_accuracy, lower_bound
from netprune.confirmation import ROUNDING, Bound, Candidate, image_margin, next_candidate
from netprune.evaluation import Evaluation
from netprune.masks import Sparsity
from netprune.pruning import PruneConfig, prune_candidate
from netprune.stopping import SHORT
from sweeps import tracking
from sweeps.progress import Progress, report
from sweeps.proposing import expected
from sweeps.stages.request import as_percent
from sweeps.stages.source import Source
from sweeps.stages.starting import fetch_network
from sweeps.stages.trials import keep_result, result_metrics, seconds, trial_name
from sweeps.study import SparsityStudy
from sweeps.table import count, percent, short

CONFIRMED_FILE = "confirmed.json"
SEED, EPOCHS = "netprune.seed", "netprune.finetune_epochs"
FRESH = 1000
"""Seeds of confirmations begin this far above the study's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmed:
    """A trial's network, finetuned on, longer, with fresh seeds."""

    trial: int
    run_ids: tuple[str, ...]
    """One a seed."""
    accuracies: tuple[float, ...]
    """Validation, one a seed; a single one where that was hopeless already."""
    sizes: tuple[int, ...]
    """The objective, in bytes, one a seed."""
    lower: float
    """Lower end of the one-sided 95 % confidence interval of the accuracy."""

    @property
    def chosen(self) -> int:
        """Which of the seeds' networks ships: the most accurate."""
        return max(range(len(self.accuracies)), key=self.accuracies.__getitem__)

    @property
    def run_id(self) -> str:
        """Of the network that ships."""
        return self.run_ids[self.chosen]

    @property
    def size_bytes(self) -> int:
        """Of the network that ships."""
        return self.sizes[self.chosen]

    @property
    def bound(self) -> Bound:
        """As the choice of the next candidate takes it."""
        return Bound(self.size_bytes, sum(self.accuracies) / len(self.accuracies), self.lower)


def asks_for_more(floor: float, dense: Evaluation) -> str:
    """What to say beforehand of a floor at which a network as good as the dense one would not be confirmed; or
    nothing."""
    needed, images = least_accuracy(floor, dense.count), count(dense.count)
    if needed <= dense.accuracy:
        return ""
    nobody = math.isinf(needed)
    who = "no network, not even one without a mistake" if nobody else f"a network from {percent(needed)} on"
    drop = dense.accuracy - lower_bound([dense.accuracy, dense.accuracy], dense.count).lower
    return (
        f"floor {percent(floor)}: {images} validation images confirm {who}, and the dense one has "
        f"{percent(dense.accuracy)}; one as good passes with --max-drop {math.ceil(1e4 * drop) / 100:g}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """How candidates are confirmed."""

    config: PruneConfig
    """The longer finetuning; its seed is replaced by fresh ones."""
    seeds: tuple[int, ...]
    """At least 2."""
    most: int
    """Candidates of each floor after which no still smaller one is looked for, once one has been accepted."""


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
    network: Callable[[int], nn.Module]
    """A candidate's finetuned network, by its number."""
    session: str = ""
    """Of the worker that confirms."""

    @classmethod
    def of(cls, study: SparsityStudy, objective: str, source: Source, config: PruneConfig) -> Contest:
        """A study's trials that ran to their end."""
        seen = study.look()
        tried = [one for one in seen.tried if not one.score.stopped]
        epochs = config.finetune.epochs * config.share if config.finetune else 0.0
        comes_to = expected(seen.tried, epochs)
        run_ids = {one.number: one.score.run_id for one in tried}
        return cls(
            name=study.name,
            run_id=tracking.active_run_id(),
            floors=study.floors,
            objective=objective,
            candidates=tuple(
                Candidate(one.number, one.score.size_bytes, one.score.accuracy, comes_to[one.number]) for one in tried
            ),
            sparsities={one.number: study.space.at(one.point) for one in tried},
            network=lambda number: fetch_network(run_ids[number], source, config),
            session=study.crew.key,
        )


def confirm(source: Source, contest: Contest, how: Confirmation) -> dict[float, Confirmed | None]:
    """For each floor the smallest candidate whose bound meets it, or None if no candidate's does.

    Finished finetunings of an earlier session are taken from the store. Floors share them.
    """
    images, measured = len(source.dataset.val), dict[int, Confirmed]()
    winners: dict[float, Confirmed | None] = {}
    for floor in contest.floors:
        # one that a stricter floor gave up after a single seed may do for this one: its other seeds are still due
        measured = {n: one for n, one in measured.items() if len(one.accuracies) > 1 or _hopeless(one, floor)}
        most = len(measured) + how.most
        while True:
            bounds = {number: one.bound for number, one in measured.items()}
            number = next_candidate(contest.candidates, bounds, floor, images=images, most=most)
            if number is None:
                break
            measured[number] = _measure(source, contest, number, how, floor)
            _tell(measured[number], floor)
        passed = [one for one in measured.values() if one.lower >= floor - ROUNDING]
        winners[floor] = min(passed, key=lambda one: one.size_bytes, default=None)
    return winners


def _hopeless(one: Confirmed, floor: float) -> bool:
    return one.accuracies[0] + SHORT < floor


def _measure(source: Source, contest: Contest, number: int, how: Confirmation, floor: float) -> Confirmed:
    images = len(source.dataset.val)
    found: list[tracking.FoundRun] = []
    for seed in how.seeds:
        found.append(_finetuned(source, contest, number, how.config, seed))
        accuracies = [run.metrics["val_accuracy"] for run in found]
        if accuracies[0] + SHORT < floor:  # the mean has to be above the floor by the images' margin
            break
    enough = len(accuracies) > 1
    return Confirmed(
        trial=number,
        run_ids=tuple(run.run_id for run in found),
        accuracies=tuple(accuracies),
        sizes=tuple(int(run.metrics[contest.objective]) for run in found),
        lower=lower_bound(accuracies, images).lower if enough else accuracies[0] - image_margin(floor, images),
    )


def _finetuned(source: Source, contest: Contest, number: int, config: PruneConfig, seed: int) -> tracking.FoundRun:
    """The run of one longer finetuning: an earlier session's, or a new one."""
    finetune = replace(config.finetune, seed=seed) if config.finetune else None
    epochs = finetune.epochs * config.share if finetune else 0.0
    tags = {tracking.TRIAL: str(number), SEED: str(seed), EPOCHS: f"{epochs:g}"}
    known = tracking.find_runs({tracking.STAGE: "confirm", tracking.PARENT: contest.run_id, **tags}, limit=1)
    if known:
        return known[0]
    sparsity = contest.sparsities[number]
    options = {f"sparsity/{layer}": value for layer, value in sparsity.items()}
    name = f"confirm {number:03d} seed {seed}"
    tags |= {tracking.STUDY: contest.name, tracking.SESSION: contest.session}
    with tracking.tracked_run("confirm", name, options, tags=tags) as run_id:
        with Progress(f"confirm {number}, seed {seed}") as progress:
            result, data = prune_candidate(
                source.model,
                source.dataset,
                source.header,
                sparsity,
                replace(config, finetune=finetune),
                start=contest.network(number),
                callbacks=Callbacks(on_step=progress),
            )
        keep_result(result, data)
        tracking.log({**result_metrics(result), **seconds(result.seconds), "finetune_epochs": epochs})
        tracking.rename(f"{short(getattr(result, contest.objective), result.val.accuracy)} · {name}")
    return tracking.find_run(run_id)


def record(winners: Mapping[float, Confirmed | None]) -> dict[str, object]:
    """What the study's run keeps, as JSON: floor in percent → the winner's figures, or null."""
    return {
        as_percent(floor): None if won is None else asdict(won) | {"run_id": won.run_id, "size_bytes": won.size_bytes}
        for floor, won in winners.items()
    }


def _tell(one: Confirmed, floor: float) -> None:
    verdict = "accepted" if one.lower >= floor - ROUNDING else "not accepted"
    seeds = ", ".join(percent(accuracy) for accuracy in one.accuracies)
    report(
        f"confirm {trial_name(one.trial)}  {count(one.size_bytes)} bytes  val {seeds}  at least {percent(one.lower)}  "
        f"{verdict} for a floor of {percent(floor)}"
    )
