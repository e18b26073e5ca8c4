"""A study's candidates: trials whose allocation was finetuned again with fresh seeds, and what became of each."""

from __future__ import annotations

from collections.abc import Sequence

from netprune.confidence import lower_bound
from sweeps import tracking
from sweeps.findings import CandidateRow
from sweeps.scores import ROUNDING
from sweeps.stages.confirming import AGAIN
from sweeps.stages.longer import AVERAGE, EPOCHS, SEED, SEEDS, TURN
from sweeps.stages.standing import Standing
from sweeps.stages.trials import START
from sweeps.table import percent, trial_name

OPEN = "open: the study is not over"


def candidate_rows(standing: Standing) -> tuple[CandidateRow, ...]:
    """Every candidate with its accuracies, bound and verdict, the smallest first."""
    groups: dict[tuple[str, str, int, str], list[tracking.FoundRun]] = {}
    for run in standing.study.confirmations():
        # sessions may have had other seeds
        key = (run.tags[tracking.TRIAL], run.tags[EPOCHS], int(run.tags[TURN]), run.tags[SEEDS])
        groups.setdefault(key, []).append(run)
    rows = (_row(standing, key, runs) for key, runs in groups.items())
    return tuple(sorted(rows, key=lambda row: row.size_bytes))


def _row(standing: Standing, key: tuple[str, str, int, str], runs: Sequence[tracking.FoundRun]) -> CandidateRow:
    (trial, epochs, turn, _), study = key, standing.study
    of_seeds = [run for run in runs if SEED in run.tags]
    accuracies = tuple(run.metrics["val_accuracy"] for run in of_seeds)
    average = next((run.metrics["val_accuracy"] for run in runs if AVERAGE in run.tags), None)
    ships_average = average is not None and average >= sum(accuracies) / len(accuracies)
    lower = None
    if len(accuracies) > 1:
        images = int(study.run.metrics["val_images"])
        lower = lower_bound(accuracies, images, average=average if ships_average else None).lower
    ships = max(of_seeds, key=lambda run: run.metrics["val_accuracy"])
    if ships_average:
        ships = next(run for run in runs if AVERAGE in run.tags)
    return CandidateRow(
        name=f"{trial_name(int(trial))}{AGAIN if turn else ''}",
        size_bytes=int(ships.metrics[study.objective]),
        start=of_seeds[0].tags[START],
        epochs=epochs,
        seeds=tuple(int(run.tags[SEED]) for run in of_seeds),
        accuracies=accuracies,
        average=average,
        lower=lower,
        verdict=_verdict(standing, runs, lower),
    )


def _verdict(standing: Standing, runs: Sequence[tracking.FoundRun], lower: float | None) -> str:
    ids, floors = {run.run_id for run in runs}, standing.study.floors
    won = [floor for floor, winner in standing.confirmed.items() if winner is not None and winner.run.run_id in ids]
    if not standing.decided:
        return OPEN
    if won:
        return "confirmed" if len(floors) == 1 else f"confirmed for {', '.join(map(percent, won))}"
    if lower is None:
        return "given up after one seed" if len(runs) == 1 else ""
    if lower < floors[-1] - ROUNDING:
        return "not accepted"
    return "accepted, but not the smallest that is"
