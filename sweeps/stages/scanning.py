"""Scan a dense network's layers, or take the scan that is in the store already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from netprune.sensitivity import Sensitivity, scan, sparsity_grid
from sweeps import figures, tracking
from sweeps.progress import Progress, report
from sweeps.stages.source import Source

SENSITIVITY = "sensitivity.json"
DIGEST, DATA_DIGEST, GRID = "netprune.weights_digest", "netprune.val_digest", "netprune.sparsities"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanRequest:
    """Which sparsities: `low, low + step, … high`, in [0, 1)."""

    low: float = 0.4
    high: float = 0.9
    step: float = 0.1


@dataclass(frozen=True, slots=True)
class ScanOutcome:
    """A scan in the store."""

    run_id: str
    sensitivity: Sensitivity
    reused: bool
    """Whether it had been measured before, for the same weights, images and sparsities."""


def run_scan(source: Source, request: ScanRequest) -> ScanOutcome:
    """Measure the scan in a run of its own, or find it.

    Raises:
        InputError: for a range outside [0, 1) or a step that is not above 0.
    """
    grid = sparsity_grid(request.low, request.high, request.step)
    key = {
        DIGEST: source.header.dense_digest,
        DATA_DIGEST: source.dataset.val_digest(),
        GRID: " ".join(map(str, grid)),
    }
    known = tracking.find_runs({tracking.STAGE: "scan", **key}, limit=1)
    if known:
        text = tracking.read_artifact(known[0].run_id, SENSITIVITY).decode()
        report(f"scan of run {known[0].run_id} is of the same weights and images: reused")
        return ScanOutcome(known[0].run_id, Sensitivity.from_json(text), True)
    config = {**source.record(), "low": request.low, "high": request.high, "step": request.step}
    name = f"scan {source.label} on {Path(source.data.dataset).name}"
    with tracking.tracked_run("scan", name, config, tags=key) as run_id:
        with Progress(name, unit="point") as progress:
            sensitivity = scan(source.model, source.dataset, grid, on_point=progress)
        _log(sensitivity, run_id)
    return ScanOutcome(run_id, sensitivity, False)


def _log(sensitivity: Sensitivity, run_id: str) -> None:
    steps = [round(100 * s) for s in sensitivity.sparsities]  # a metric's step is whole: percent of sparsity
    curves = {}
    for i, layer in enumerate(sensitivity.layers):
        curves[f"val_accuracy/{layer}"] = dict(zip(steps, sensitivity.accuracy[i].tolist(), strict=True))
        curves[f"val_loss/{layer}"] = dict(zip(steps, sensitivity.loss[i].tolist(), strict=True))
    tracking.log_curves(curves)
    tracking.log_metrics(
        {"dense_val_accuracy": sensitivity.baseline.accuracy, "dense_val_loss": sensitivity.baseline.loss}
    )
    tracking.log_bytes(sensitivity.to_json().encode(), SENSITIVITY)
    tracking.log_figures({"sensitivity": figures.sensitivity_curves(sensitivity)}, run_id)
