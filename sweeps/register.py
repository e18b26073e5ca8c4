"""Register a study's winner: `mlflow run . -e register` or `python -m sweeps.register`."""

from __future__ import annotations

from typing import Any

import click

from sweeps.command import command
from sweeps.options import OF_A_STUDY, data_options, own_option, study_option
from sweeps.stages.data import DataRequest
from sweeps.stages.registering import registered_lines, run_register, summary_table
from sweeps.store import where_to_look


@command("python -m sweeps.register --study-name mine --model-name net10-photos")
@study_option
@click.option("--model-name", default="", help="Registered model; default: <network>-<data set>.")
@own_option
@data_options("auto", OF_A_STUDY)
def main(study_name: str, model_name: str, model: str, **options: Any) -> None:
    """Evaluate a study's confirmed network on test, once, and register it with the alias champion.

    Of several floors each confirmed network is registered, with an alias such as floor-83-38; the champion is that of
    the highest floor that has one. With nothing confirmed nothing is registered, and the exit code is 1.
    """
    outcome = run_register(study_name, model_name, DataRequest.of(options), model)
    click.echo(summary_table(outcome))
    click.echo(f"{registered_lines(outcome)}\nlook: {where_to_look()}")


if __name__ == "__main__":
    main()
