"""A study's figures, by the name that they have in its run."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from contextlib import suppress

from matplotlib.figure import Figure

from netprune.errors import InputError
from netprune.packing import PackedModel
from netprune.sensitivity import Sensitivity
from netprune.size import measure_size
from sweeps import artifacts, figures, tracking
from sweeps.findings import Plot
from sweeps.stages.analysis import histograms
from sweeps.stages.comparing import Compared
from sweeps.stages.history import stopped_early
from sweeps.stages.scanning import SCANNED, SENSITIVITY
from sweeps.stages.standing import Shown, Standing
from sweeps.stages.studies import FoundStudy

DPI = 110
SIZES = {"packed_bytes": "packed size", "nonzero_bytes": "size of nonzero values"}
TITLES = {
    "size_against_accuracy": "Validation accuracy of every trial against the size of its file",
    "trials": "Size of the trials, one after another",
    "weights_before": "Histograms of the dense network's weights, layer by layer",
    "weights_before_nonzero": "Histograms of the dense network's weights that are not zero",
    "weights_after": "Histograms of the pruned network's weights, layer by layer",
    "weights_after_nonzero": "Histograms of the pruned network's weights that are not zero",
    "parameters_per_layer": "Parameters of each layer, before and after pruning",
    "sensitivity": "Accuracy and damage as each layer alone is pruned",
    "confusion": "Confusion matrix of the pruned network on validation",
    "disagreements": "Validation images that dense and pruned network take for different classes",
}
"""What each figure shows, for those who cannot see it."""


def draw(standing: Standing, dense: PackedModel, shown: Shown | None, compared: Compared | None) -> dict[str, Figure]:
    """Every figure that the study has the data for."""
    study = standing.study
    made = {"size_against_accuracy": _sizes(standing), "trials": _trials(study), **histograms(dense.model, "before")}
    after = None
    if shown is not None:
        after = measure_size(shown.packed.model)
        made |= histograms(shown.packed.model, "after")
    made["parameters_per_layer"] = figures.parameters_per_layer(measure_size(dense.model), after)
    with suppress(InputError):  # the scan's run has been deleted, or the study ended before it
        text = artifacts.read_artifact(study.run.tags.get(SCANNED, ""), SENSITIVITY).decode()
        made["sensitivity"] = figures.sensitivity_curves(Sensitivity.from_json(text))
    if compared is not None:
        made["confusion"] = figures.confusion(compared.confusion, compared.classes)
        if len(compared.shown):
            made["disagreements"] = figures.disagreements(compared.images, compared.named())
    return made


def plots(made: Mapping[str, Figure]) -> dict[str, Plot]:
    """Every figure as a PNG with its title."""
    return {name: Plot(png=_png(figure), title=TITLES[name]) for name, figure in made.items()}


def _sizes(standing: Standing) -> Figure:
    study = standing.study
    return figures.size_against_accuracy(
        [trial.metrics["packed_bytes"] for trial in study.finished],
        [trial.metrics["val_accuracy"] for trial in study.finished],
        study.floors,
        (study.run.metrics["dense_packed_bytes"], study.run.metrics["dense_val_accuracy"]),
        [(won.run.metrics["packed_bytes"], won.accuracy, won.lower) for won in standing.winners],
    )


def _trials(study: FoundStudy) -> Figure:
    return figures.trial_history(
        [trial.metrics[study.objective] for trial in study.trials],
        [trial.tags.get(tracking.FEASIBLE) == "true" for trial in study.trials],
        [stopped_early(trial) for trial in study.trials],
        SIZES[study.objective],
    )


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # a class may be named in any script; matplotlib's font then has boxes, and the page the name itself
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()
