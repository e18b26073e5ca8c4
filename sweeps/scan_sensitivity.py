"""Scan each layer's sensitivity: `mlflow run . -e scan` or `python -m sweeps.scan_sensitivity`."""

from __future__ import annotations

from typing import Any

import click

from netprune.sensitivity import Sensitivity, sparsity_grid
from sweeps.command import command, data_options, scan_options, source_options
from sweeps.stages.scanning import ScanRequest, run_scan
from sweeps.stages.source import DataRequest, SourceRequest, open_source
from sweeps.table import percent, table


@command
@source_options
@data_options("auto")
@scan_options
def main(dataset: str, data_dir: str, device: str, low: float, high: float, step: float, **options: Any) -> None:
    """Prune each weight tensor alone, at each sparsity, and evaluate: curves, figure and table go to MLflow."""
    sparsity_grid(low, high, step)  # a wrong range should not wait for the data
    source = open_source(SourceRequest(**options), DataRequest(dataset=dataset, data_dir=data_dir, device=device))
    outcome = run_scan(source, ScanRequest(low=low, high=high, step=step))
    click.echo(accuracy_table(outcome.sensitivity))
    click.echo(f"run {outcome.run_id}\nnext: python -m sweeps.search_sparsity")


def accuracy_table(sensitivity: Sensitivity) -> str:
    """Validation accuracy by layer and sparsity."""
    header = ["validation accuracy", *(f"{s:g}" for s in sensitivity.sparsities)]
    rows = [
        [layer, *(percent(accuracy) for accuracy in curve)]
        for layer, curve in zip(sensitivity.layers, sensitivity.accuracy.tolist(), strict=True)
    ]
    dense = sensitivity.baseline
    return f"{table(header, rows)}\ndense {percent(dense.accuracy, dense.accuracy_se)} on {dense.count:,} images"


if __name__ == "__main__":
    main()
