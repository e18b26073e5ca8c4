"""How big a network is, layer by layer: `mlflow run . -e analyse` or `python -m sweeps.analyse`."""

from __future__ import annotations

from typing import Any

import click

from sweeps.command import command, data_options, source_options
from sweeps.stages.analysis import ALLOCATIONS, run_analysis, size_table
from sweeps.stages.source import DataRequest, SourceRequest, open_source


@command
@source_options
@data_options("auto")
@click.option("--allocation", default="none", help=f"Prune in one shot and compare: {ALLOCATIONS}.")
def main(dataset: str, data_dir: str, device: str, allocation: str, **options: Any) -> None:
    """Count parameters, zeros, bits and MiB; draw weight histograms and parameters per layer."""
    source = open_source(SourceRequest(**options), DataRequest(dataset=dataset, data_dir=data_dir, device=device))
    analysis = run_analysis(source, allocation)
    click.echo(size_table(analysis.before))
    if analysis.after is not None:
        click.echo(f"\nafter pruning by {allocation}:\n{size_table(analysis.after)}")
    click.echo(f"run {analysis.run_id}\nlook: mlflow ui")


if __name__ == "__main__":
    main()
