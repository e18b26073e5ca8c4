"""A study's page, figures and table; page and figures are kept in the study's own run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from netprune.errors import InputError
from netprune.files import user_path, write_whole
from netprune.packing import PackedModel
from sweeps import artifacts, tracking
from sweeps.findings import Plot
from sweeps.page import StudyPage, render
from sweeps.stages.candidates import candidate_rows
from sweeps.stages.comparing import Compared, compare
from sweeps.stages.drawing import SIZES, draw, plots
from sweeps.stages.history import lost_trials, stage_seconds, stopping, trial_rows
from sweeps.stages.repeating import repeat
from sweeps.stages.standing import (
    Shown,
    Standing,
    choose,
    dense_network,
    floor_results,
    layer_rows,
    next_steps,
    shown_network,
)
from sweeps.stages.studies import FoundStudy, find_study
from sweeps.table import count, percent, table, trial_name

PAGE = "report.html"


@dataclass(frozen=True, slots=True)
class Report:
    """What was made of a study."""

    study_name: str
    run_id: str
    figures: tuple[str, ...]
    """Names, as artifacts `figures/<name>.png` of the run."""
    trials: str
    """The trials as a table, smallest feasible first."""
    path: Path | None
    """The file that holds the page besides the run, if one was asked for."""


def run_report(study_name: str, out: str = "", model: str = "") -> Report:
    """Make a study's page and figures and keep them in its run; running it again replaces them.

    Args:
        study_name: empty for the newest study.
        out: a file for the page, besides the run's `report.html`; one that is there already is never replaced.
        model: `module:function` that builds the networks, if they are of the user's own class.

    Raises:
        InputError: if there is no study, none of its trials has finished, or the file is there already or cannot be
            written.
    """
    path = user_path(out) if out else None
    if path is not None and path.exists():
        raise InputError(f"{path} is there already: name another file with out, or remove it.")
    study = find_study(study_name, model)
    if not study.trials:
        study.winners()  # says what is missing
    standing, dense = Standing.of(study), study.dense()
    shown = choose(standing)
    compared = (
        compare(study, dense, shown.packed) if shown else "There is no pruned network to compare with the dense one."
    )
    drawn = plots(draw(standing, dense, shown, compared if isinstance(compared, Compared) else None))
    page = render(_page(standing, dense, shown, compared, drawn)).encode()
    if path is not None:
        write_whole(path, page)
    for name, plot in drawn.items():
        artifacts.log_bytes(plot.png, f"figures/{name}.png", study.run.run_id)
    artifacts.log_bytes(page, PAGE, study.run.run_id)
    return Report(study.name, study.run.run_id, tuple(drawn), trials_table(study), path)


def trials_table(study: FoundStudy, most: int = 10) -> str:
    """The trials, feasible ones first and by size, at most `most` of them."""
    ordered = sorted(study.finished, key=lambda t: (t.tags[tracking.FEASIBLE] != "true", t.metrics[study.objective]))
    rows = [
        [
            trial_name(int(trial.tags[tracking.TRIAL])),
            percent(trial.metrics["val_accuracy"], trial.metrics["val_accuracy_se"]),
            percent(trial.metrics["sparsity"]),
            count(int(trial.metrics["packed_bytes"])),
            "yes" if trial.tags[tracking.FEASIBLE] == "true" else "no",
        ]
        for trial in ordered[:most]
    ]
    title = f"study {study.name}, floor {percent(study.floor)}, {len(study.trials)} trials"
    return f"{title}\n{table(['trial', 'val accuracy', 'sparsity', 'packed bytes', 'feasible'], rows)}"


def _page(
    standing: Standing,
    dense: PackedModel,
    shown: Shown | None,
    compared: Compared | str,
    drawn: Mapping[str, Plot],
) -> StudyPage:
    study = standing.study
    params = study.run.params
    return StudyPage(
        name=study.name,
        run_id=study.run.run_id,
        about=f"{params['search.model']} on {Path(params['search.dataset']).name}",
        objective=SIZES[study.objective],
        dense=dense_network(standing, dense),
        floors=floor_results(standing),
        tried=standing.decided,
        candidates=candidate_rows(standing),
        shown=shown.label if shown else "",
        shown_network=shown_network(standing, shown) if shown else None,
        layers=layer_rows(shown) if shown else (),
        trials=trial_rows(study),
        lost=lost_trials(study),
        stopping=stopping(study),
        stages=stage_seconds(study),
        comparison=compared.summary() if isinstance(compared, Compared) else None,
        no_comparison="" if isinstance(compared, Compared) else compared,
        plots=drawn,
        steps=next_steps(standing),
        storage=study.run.tags.get(tracking.STORAGE, ""),
        repeat=repeat(study),
    )
