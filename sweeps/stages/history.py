"""A study's trials one after another: how each ended, what stopping early saved, where the time went."""

from __future__ import annotations

from sweeps import tracking
from sweeps.page import StageSeconds, Stopping, TrialRow
from sweeps.scores import ROUNDING
from sweeps.stages.standing import val_accuracy
from sweeps.stages.studies import FoundStudy
from sweeps.stages.trials import PASSES

SECONDS, STOPPED, CONTROL, NOT = "seconds/", "stopped_early", "control", "no"


def trial_rows(study: FoundStudy) -> tuple[TrialRow, ...]:
    """Every trial, in the order they ran."""
    return tuple(_row(study, trial) for trial in study.trials)


def stopped_early(trial: tracking.FoundRun) -> bool:
    """Whether a trial was stopped, rather than run to its end."""
    return trial.tags.get(STOPPED, NOT) != NOT


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
        controls=len(controls),
        wrong=sum(trial.metrics["val_accuracy"] >= study.floors[-1] - ROUNDING for trial in controls),
    )


def stage_seconds(study: FoundStudy) -> tuple[StageSeconds, ...]:
    """Seconds by stage over all trials that logged them, the longest first."""
    totals: dict[str, float] = {}
    for trial in study.finished:
        for name, value in trial.metrics.items():
            if name.startswith(SECONDS):
                stage = name.removeprefix(SECONDS)
                totals[stage] = totals.get(stage, 0.0) + value
    ordered = sorted(totals.items(), key=lambda item: -item[1])
    return tuple(StageSeconds(name=name, seconds=value, passes=name in PASSES) for name, value in ordered)


def _row(study: FoundStudy, trial: tracking.FoundRun) -> TrialRow:
    metrics, finished = trial.metrics, "val_accuracy" in trial.metrics
    return TrialRow(
        name=trial.name.removeprefix(study.name).strip(),
        val=val_accuracy(study, metrics) if finished else None,
        sparsity=metrics.get("sparsity"),
        size_bytes=int(metrics[study.objective]),
        feasible=trial.tags.get(tracking.FEASIBLE) == "true",
        epochs=_epochs(trial),
        ending=_ending(trial),
    )


def _ending(trial: tracking.FoundRun) -> str:
    if stopped_early(trial):
        return f"stopped early: {trial.tags[STOPPED]}"
    return f"in full, as a control: {trial.tags[CONTROL]}" if CONTROL in trial.tags else "in full"


def _epochs(trial: tracking.FoundRun) -> float:
    return trial.metrics.get("finetune_epochs", 0.0)
