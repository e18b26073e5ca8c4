"""A study's trials one after another: how each ended, what stopping early saved, where the time went."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from sweeps import tracking
from sweeps.findings import LostTrial, StageSeconds, Stopping, TrialRow
from sweeps.scores import ROUNDING
from sweeps.stages.standing import val_accuracy
from sweeps.stages.studies import FoundStudy
from sweeps.stages.trials import PASSES, SECONDS, START, STOPPED
from sweeps.table import trial_name

EARLY, CONTROL, NOT = "stopped_early", "control", "no"


def trial_rows(study: FoundStudy) -> tuple[TrialRow, ...]:
    """Every trial, in the order they ran."""
    return tuple(_row(study, trial) for trial in study.trials)


def lost_trials(study: FoundStudy) -> tuple[LostTrial, ...]:
    """Trials without a result, and why they have none."""
    return tuple(LostTrial(name=_name(trial), why=_loss(trial)) for trial in study.lost())


def stopped_early(trial: tracking.FoundRun) -> bool:
    """Whether a trial was stopped, rather than run to its end."""
    return trial.tags.get(EARLY, NOT) != NOT


def stopping(study: FoundStudy) -> Stopping:
    """What early stopping came to, against trials that take the study's finetune epochs in full."""
    full = float(study.run.params["search.finetune_epochs"])
    stopped = [trial for trial in study.trials if stopped_early(trial)]
    controls = [trial for trial in study.finished if CONTROL in trial.tags]
    return Stopping(
        trials=len(study.trials),
        stopped=len(stopped),
        spent_epochs=sum(_epochs(trial) for trial in study.trials),
        saved_epochs=sum(full - _epochs(trial) for trial in stopped),
        looks=dict(sorted(Counter(round(_epochs(trial) / full, 2) if full else 0.0 for trial in stopped).items())),
        seconds=sum(trial.metrics.get(f"{SECONDS}{STOPPED}", 0.0) for trial in stopped),
        controls=len(controls),
        wrong=sum(trial.metrics["val_accuracy"] >= study.floors[-1] - ROUNDING for trial in controls),
    )


def stage_seconds(study: FoundStudy) -> tuple[StageSeconds, ...]:
    """Seconds by stage over all trials that ran to their end and all confirmations, the longest first."""
    trials, confirmations = _seconds(study.finished), _seconds(study.confirmations())
    rows = (
        StageSeconds(name=name, trials=trials[name], confirmations=confirmations[name], passes=name in PASSES)
        for name in {**trials, **confirmations}
    )
    return tuple(sorted(rows, key=lambda row: -(row.trials + row.confirmations)))


def _seconds(runs: Iterable[tracking.FoundRun]) -> defaultdict[str, float]:
    totals = defaultdict[str, float](float)
    for run in runs:
        for name, value in run.metrics.items():
            if name.startswith(SECONDS):
                totals[name.removeprefix(SECONDS)] += value
    return totals


def _row(study: FoundStudy, trial: tracking.FoundRun) -> TrialRow:
    metrics, finished = trial.metrics, "val_accuracy" in trial.metrics
    return TrialRow(
        name=_name(trial),
        val=val_accuracy(study, metrics) if finished else None,
        sparsity=metrics.get("sparsity"),
        size_bytes=int(metrics[study.objective]),
        feasible=trial.tags.get(tracking.FEASIBLE) == "true",
        epochs=_epochs(trial),
        start=trial.tags[START],
        ending=_ending(trial),
    )


def _ending(trial: tracking.FoundRun) -> str:
    if stopped_early(trial):
        return f"stopped early: {trial.tags[EARLY]}"
    return f"in full, as a control: {trial.tags[CONTROL]}" if CONTROL in trial.tags else "in full"


def _loss(trial: tracking.FoundRun) -> str:
    error = trial.tags.get("error", "")
    if error.startswith(KeyboardInterrupt.__name__):
        return "it was interrupted"
    return error or "its worker died"


def _name(trial: tracking.FoundRun) -> str:
    return trial_name(int(trial.tags[tracking.TRIAL]))


def _epochs(trial: tracking.FoundRun) -> float:
    return trial.metrics.get("finetune_epochs", 0.0)
