"""How big a network is, layer by layer: `mlflow run . -e analyse` or `python -m sweeps.analyse`."""

from __future__ import annotations

from typing import Any

import click

from sweeps.command import command
from sweeps.options import data_options, source_options
from sweeps.stages.analysis import ALLOCATIONS, run_analysis, size_table
from sweeps.stages.data import DataRequest
from sweeps.stages.source import SourceRequest, open_source
from sweeps.store import where_to_look


@command("python -m sweeps.analyse --weights net10.pt --dataset digits --allocation lamp:0.1 --keep conv1")
@source_options
@data_options("auto")
@click.option("--allocation", default="none", help=f"Prune in one shot and compare: {ALLOCATIONS}.")
def main(allocation: str, **options: Any) -> None:
    """Count parameters, zeros, bits and MiB; draw weight histograms and parameters per layer.

    Makes a run with the figures and the table, size.txt. A rule that goes by damage takes the network's scan from the
    store, or makes it first.
    """
    data = DataRequest.of(options)
    source = open_source(SourceRequest(**options), data)
    analysis = run_analysis(source, allocation)
    click.echo(size_table(analysis.before))
    if analysis.after is not None:
        click.echo(f"\nafter pruning by {allocation}:\n{size_table(analysis.after)}")
    click.echo(f"run {analysis.run_id}\nlook: {where_to_look()}")


if __name__ == "__main__":
    main()
