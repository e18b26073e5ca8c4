"""Train a dense network and log it to MLflow: `mlflow run . -e train` or `python -m sweeps.train`."""

from __future__ import annotations

from typing import Any

import click

from netprune import distributed, recipes
from netprune.precision import Precision
from netprune.recipes import RECIPES
from sweeps.command import team_command
from sweeps.options import AutoOr, data_options, model_options, model_words
from sweeps.stages.checkpoints import NEWEST
from sweeps.stages.data import AUTO, DataRequest
from sweeps.stages.source import SourceRequest
from sweeps.stages.training import RECIPE_OPTIONS, TrainRequest, assist_training, run_training
from sweeps.table import percent


def auto(figure: str) -> str:
    """What the recipes have for a figure, in words.

    >>> auto("grad_clip")
    '; auto: document 0.1, fast inf.'
    """
    return f"; auto: {', '.join(f'{name} {getattr(recipes.recipe(name), figure):g}' for name in RECIPES)}."


@team_command("python -m sweeps.train --dataset photos --image-size 64 --recipe fast --epochs 10")
@data_options("cifar10")
@model_options
@click.option("--recipe", default="document", help=f"{' or '.join(RECIPES)}: what the figures left at auto come from.")
@click.option("--epochs", type=AutoOr(int), default=AUTO, help=f"Passes over the training images{auto('epochs')}")
@click.option("--batch-size", type=AutoOr(int), default=AUTO, help=f"Images a step{auto('batch_size')}")
@click.option("--max-lr", type=AutoOr(float), default=AUTO, help=f"Peak of the learning rate{auto('max_lr')}")
@click.option(
    "--weight-decay",
    type=AutoOr(float),
    default=AUTO,
    help=f"Decay of the weights: an L2 term of the gradient, decoupled from it for Muon{auto('weight_decay')}",
)
@click.option(
    "--grad-clip",
    type=AutoOr(float),
    default=AUTO,
    help=f"Gradient values are clipped to ± this, with inf not at all{auto('grad_clip')}",
)
@click.option(
    "--precision",
    default="auto",
    help="auto: what is fastest here; fp32, bf16, or winograd (fp32, wide layers faster; on a CPU only), which repeat "
    "themselves bit by bit on a CPU.",
)
@click.option("--seed", default=0, help="Initial weights, order, crops, flips and dropout.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value=NEWEST,
    default="",
    help="Go on with an interrupted training: newest, which is also --resume alone, or a run id.",
)
def main(recipe: str, precision: Precision, resume: str, **options: Any) -> None:
    """Train Net10, VGG16 or a network of your own.

    Each epoch's figures, the last and best checkpoint and the best network go to MLflow.
    """
    figures = {name: options.pop(name) for name in RECIPE_OPTIONS}
    request = TrainRequest(
        data=DataRequest.of(options),
        source=SourceRequest(**options),
        config=recipes.recipe(recipe, **{name: value for name, value in figures.items() if value != AUTO}),
        precision=precision,
        resume=resume,
    )
    team = distributed.team()
    if not team.first:
        assist_training(request, team)
        return
    outcome = run_training(request, team)
    mirrored = outcome.mirrored_val_accuracy
    beside = "" if mirrored is None else f" ({percent(mirrored)} with each image's mirror image averaged in)"
    click.echo(
        f"best epoch {outcome.best_epoch}: validation accuracy {percent(outcome.val_accuracy)}{beside}\n"
        f"run {outcome.run_id}, model {outcome.model_uri}\n"
        f"next: python -m sweeps.search_sparsity --model-uri {outcome.run_id}{model_words(request.source.own)}"
    )


if __name__ == "__main__":
    main()
