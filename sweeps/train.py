"""Train a dense network and log it to MLflow: `mlflow run . -e train` or `python -m sweeps.train`."""

from __future__ import annotations

from typing import Any

import click

from netprune.training import TrainConfig
from sweeps.command import command, data_options, model_options
from sweeps.stages.source import DataRequest, SourceRequest
from sweeps.stages.training import NEWEST, TrainRequest, run_training
from sweeps.table import percent


@command
@data_options("cifar10")
@model_options
@click.option("--epochs", default=20, help="Passes over the training images.")
@click.option("--batch-size", default=256, help="Images a step.")
@click.option("--max-lr", default=0.01, help="Peak of the one-cycle learning rate.")
@click.option("--weight-decay", default=1e-4, help="L2 term of Adam.")
@click.option("--grad-clip", default=0.1, help="Gradient values are clipped to ± this.")
@click.option("--seed", default=0, help="Initial weights, order, crops, flips and dropout.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value=NEWEST,
    default="",
    help="Go on with an interrupted training: newest or a run id.",
)
def main(dataset: str, data_dir: str, device: str, resume: str, **options: Any) -> None:
    """Train Net10 or VGG16; each epoch's figures, the last and best checkpoint and the best network go to MLflow."""
    config_names = ("epochs", "batch_size", "max_lr", "weight_decay", "grad_clip", "seed")
    config = TrainConfig(**{name: options.pop(name) for name in config_names})
    outcome = run_training(
        TrainRequest(
            data=DataRequest(dataset=dataset, data_dir=data_dir, device=device),
            source=SourceRequest(**options),
            config=config,
            resume=resume,
        )
    )
    click.echo(
        f"best epoch {outcome.best_epoch}: validation accuracy {percent(outcome.val_accuracy)}\n"
        f"run {outcome.run_id}, model {outcome.model_uri}\n"
        f"next: python -m sweeps.search_sparsity --model-uri {outcome.run_id}"
    )


if __name__ == "__main__":
    main()
