"""The whole job: `mlflow run .` or `python -m sweeps.pipeline`; on the embedded digits if nothing else is said."""

from __future__ import annotations

from typing import Any

import click

from netprune.recipes import TrainConfig
from sweeps.command import command
from sweeps.options import bounds_options, data_options, network_option, storage_option
from sweeps.stages.data import DataRequest
from sweeps.stages.pipeline import run_pipeline
from sweeps.stages.registering import registered_lines, summary_table
from sweeps.stages.request import SearchRequest
from sweeps.stages.source import SourceRequest
from sweeps.stages.training import TrainRequest
from sweeps.store import where_to_look


@command("python -m sweeps.pipeline --dataset digits --width 16 --max-drop 2 --trials 14")
@data_options("digits")
@network_option
@click.option("--width", default=16, help="Channels of the first layer; for Net10 only.")
@bounds_options
@click.option("--epochs", default=10, help="Training epochs of the dense network.")
@click.option("--batch-size", default=64, help="Images a step, in training and finetuning.")
@click.option("--max-drop", default=2.0, help="Points of validation accuracy that may be lost, one number.")
@click.option("--trials", default=14, help="Trials of the study.")
@click.option("--finetune-epochs", default=1, help="Finetune epochs a trial, whole ones.")
@click.option("--seed", default=0, help="Of training, sampler and finetuning.")
@storage_option
def main(
    *,
    model: str,
    width: int,
    keep: str,
    limit: str,
    epochs: int,
    batch_size: int,
    max_drop: float,
    trials: int,
    finetune_epochs: int,
    seed: int,
    storage: str,
    **options: Any,
) -> None:
    """Train a network, a small Net10 by default, scan it, search, register the winner and draw the study.

    Every start trains anew and makes a new study.
    """
    training = TrainRequest(
        data=DataRequest.of(options),
        source=SourceRequest(model=model, width=width, keep=keep, limit=limit),
        config=TrainConfig(epochs=epochs, batch_size=batch_size, seed=seed),
    )
    search = SearchRequest(
        max_drop=(max_drop,),
        trials=trials,
        finetune_epochs=finetune_epochs,
        batch_size=batch_size,
        seed=seed,
        storage=storage,
    )
    outcome = run_pipeline(training, search)
    click.echo(outcome.report.trials + "\n")
    click.echo(summary_table(outcome.registered))
    click.echo(
        f"{registered_lines(outcome.registered)}\n"
        f'use:  mlflow.pyfunc.load_model("{outcome.registered.uri}")\nlook: {where_to_look()}'
    )


if __name__ == "__main__":
    main()
