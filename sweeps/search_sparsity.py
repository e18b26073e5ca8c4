"""Search per-layer sparsities: `mlflow run . -e search` or `python -m sweeps.search_sparsity`."""

from __future__ import annotations

import shlex
from typing import Any

import click

from sweeps.command import command
from sweeps.options import (
    data_options,
    model_words,
    numbers,
    scan_options,
    search_options,
    source_options,
    storage_option,
)
from sweeps.stages.confirming import seeded
from sweeps.stages.data import AUTO, DataRequest
from sweeps.stages.request import SearchRequest
from sweeps.stages.scanning import SCAN_OPTIONS, ScanRequest
from sweeps.stages.searching import SearchOutcome, run_search
from sweeps.stages.source import SourceRequest, open_source
from sweeps.table import count, percent

NAMES = (
    "trials",
    "finetune_epochs",
    "batch_size",
    "seed",
    "study_name",
    "values",
    "objective",
    "sampler",
    "confirm_seeds",
    "confirm_most",
    "workers",
    "storage",
)
"""Options that a request takes as they are."""


@command("python -m sweeps.search_sparsity --max-drop 0.5,2 --trials 40 --keep conv1 --limit 'res2.*=0.99'")
@source_options
@data_options("auto")
@search_options
@scan_options(
    "Of scan and finetunings; auto: what a short measurement finds fastest, so that a seed need not repeat itself; "
    "fp32: on a CPU it does, bit by bit."
)
@storage_option
@click.option(
    "--study-name",
    default="",
    help="Running it again continues it; default: by network, floors, finetune epochs, values, objective, keep "
    "and limit.",
)
def main(
    *,
    max_drop: str,
    timeout: float,
    epochs: float,
    confirm_epochs: str,
    accuracy_floor: float,
    **options: Any,
) -> None:
    """Find the smallest packed file that meets the floor. Each trial prunes, finetunes, packs and scores the file.

    Where nothing is confirmed it says so, and the exit code is 0: register's is 1 then.
    """
    request = SearchRequest(
        scan=ScanRequest.of({name: options.pop(name) for name in SCAN_OPTIONS}),
        max_drop=numbers("max_drop", max_drop),
        timeout=timeout or None,
        epochs=epochs or None,
        confirm_epochs=None if confirm_epochs == AUTO else float(confirm_epochs),
        accuracy_floor=accuracy_floor or None,
        **{name: options.pop(name) for name in NAMES},
    )
    data = DataRequest.of(options)
    source = open_source(SourceRequest(**options), data)
    click.echo(closing(run_search(source, request)))


def closing(outcome: SearchOutcome) -> str:
    """What a session ends with: for each floor the best trial and the confirmed one, and the next command."""
    lines = [f"study {outcome.study_name}: {outcome.done} trials"]
    for one in outcome.floors:
        lines.append(f"floor {percent(one.floor)}")
        if one.best is None:
            lines.append("  no trial meets it yet: add trials, epochs or finetune_epochs, or allow a larger max_drop")
        else:
            score = one.best.score
            lines.append(f"  best trial {count(score.size_bytes)} bytes, val {percent(score.accuracy)}")
        if one.confirmed is not None:
            won = one.confirmed
            lines.append(
                f"  confirmed  {count(won.size_bytes)} bytes, val {seeded(won)}: at least {percent(won.lower)}"
            )
        elif outcome.confirmed:
            lines.append("  confirmed  none")
    if any(one.confirmed for one in outcome.floors):
        study = shlex.quote(outcome.study_name)
        lines.append(f"next: python -m sweeps.register --study-name {study}{model_words(outcome.own)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
