"""A study's figures and table, kept in the study's own run."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from netprune.sensitivity import Sensitivity
from netprune.size import measure_size
from sweeps import artifacts, figures, tracking
from sweeps.stages.analysis import histograms
from sweeps.stages.scanning import DIGEST, SENSITIVITY
from sweeps.stages.studies import FoundStudy, find_study
from sweeps.table import count, percent, table


@dataclass(frozen=True, slots=True)
class Report:
    """What was made of a study."""

    study_name: str
    run_id: str
    figures: tuple[str, ...]
    """Names, as artifacts `figures/<name>.png` of the run."""
    trials: str
    """The trials as a table, smallest feasible first."""


def run_report(study_name: str) -> Report:
    """Draw a study and keep the figures in its run; running it again replaces them.

    Raises:
        InputError: if there is no study, or none of its trials has finished.
    """
    study = find_study(study_name)
    if not study.trials:
        study.winners()  # says what is missing
    made = _figures(study)
    artifacts.log_figures(made, study.run.run_id)
    return Report(study.name, study.run.run_id, tuple(made), trials_table(study))


def trials_table(study: FoundStudy, most: int = 10) -> str:
    """The trials, feasible ones first and by size, at most `most` of them."""
    ordered = sorted(study.finished, key=lambda t: (t.tags[tracking.FEASIBLE] != "true", t.metrics[study.objective]))
    rows = [
        [
            trial.name.removeprefix(study.name).strip(),
            percent(trial.metrics["val_accuracy"], trial.metrics["val_accuracy_se"]),
            percent(trial.metrics["sparsity"]),
            count(int(trial.metrics["packed_bytes"])),
            "yes" if trial.tags[tracking.FEASIBLE] == "true" else "no",
        ]
        for trial in ordered[:most]
    ]
    title = f"study {study.name}, floor {percent(study.floor)}, {len(study.trials)} trials"
    return f"{title}\n{table(['trial', 'val accuracy', 'sparsity', 'packed bytes', 'feasible'], rows)}"


def _figures(study: FoundStudy) -> dict[str, Figure]:
    sizes = [trial.metrics["packed_bytes"] for trial in study.finished]
    accuracies = [trial.metrics["val_accuracy"] for trial in study.finished]
    dense_point = (study.run.metrics["dense_packed_bytes"], study.run.metrics["dense_val_accuracy"])
    dense = study.dense().model
    made = {
        "size_against_accuracy": figures.size_against_accuracy(sizes, accuracies, study.floor, dense_point),
        "trials": figures.trial_history(sizes, [trial.tags[tracking.FEASIBLE] == "true" for trial in study.finished]),
        **histograms(dense, "before"),
    }
    after = None
    if study.best is not None:
        pruned = study.pruned(study.best).model
        after = measure_size(pruned)
        made |= histograms(pruned, "after")
    made["parameters_per_layer"] = figures.parameters_per_layer(measure_size(dense), after)
    scans = tracking.find_runs({tracking.STAGE: "scan", DIGEST: study.run.params["search.weights_digest"]}, limit=1)
    if scans:
        text = artifacts.read_artifact(scans[0].run_id, SENSITIVITY).decode()
        made["sensitivity"] = figures.sensitivity_curves(Sensitivity.from_json(text))
    return made
