"""Search per-layer sparsities: `mlflow run . -e search` or `python -m sweeps.search_sparsity`."""

from __future__ import annotations

from typing import Any

import click

from sweeps.command import command, data_options, scan_options, search_options, source_options
from sweeps.stages.scanning import SCAN_OPTIONS, ScanRequest
from sweeps.stages.searching import SearchRequest, run_search
from sweeps.stages.source import DataRequest, SourceRequest, open_source
from sweeps.table import count, percent


@command
@source_options
@data_options("auto")
@search_options
@scan_options
@click.option("--study-name", default="", help="Running it again continues it; default: by network and floor.")
def main(
    *,
    dataset: str,
    data_dir: str,
    device: str,
    timeout: float,
    accuracy_floor: float,
    **options: Any,
) -> None:
    """Find the smallest packed file that meets the floor. Each trial prunes, finetunes, packs and scores the file."""
    names = ("max_drop", "trials", "finetune_epochs", "batch_size", "seed", "study_name", "values", "objective")
    request = SearchRequest(
        scan=ScanRequest.of({name: options.pop(name) for name in SCAN_OPTIONS}),
        timeout=timeout or None,
        accuracy_floor=accuracy_floor or None,
        **{name: options.pop(name) for name in names},
    )
    source = open_source(SourceRequest(**options), DataRequest(dataset=dataset, data_dir=data_dir, device=device))
    outcome = run_search(source, request)
    click.echo(f"study {outcome.study_name}: {outcome.done} trials, floor {percent(outcome.floor)}")
    if outcome.best is None:
        click.echo("no trial meets the floor yet: add trials or finetune_epochs, or allow a larger max_drop")
    else:
        best = outcome.best
        click.echo(f"best: {count(best.size_bytes)} bytes, val {percent(best.accuracy)}, run {best.run_id}")
        click.echo(f"next: python -m sweeps.register --study-name {outcome.study_name}")


if __name__ == "__main__":
    main()
