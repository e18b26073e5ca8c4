"""A finetuned network in the values that its file will hold, and what training those need."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from torch import nn

from netprune.data import Dataset
from netprune.loader import steps_per_epoch
from netprune.quantise import Values, quantise, settle
from netprune.recipes import TrainConfig
from netprune.training import Held, train

CODEBOOK_SHARE, CODEBOOK_STEPS, CODEBOOK_LR = 0.1, 40, 0.002
"""Of an epoch, and at least so many steps. A quarter of an epoch is better by a tenth of a point; what it takes more is
worth more in the finetuning, which later networks go on from (README, results log)."""


def quantise_and_train(
    model: nn.Module,
    dataset: Dataset,
    values: Values,
    *,
    finetune: TrainConfig | None = None,
    teacher: nn.Module | None = None,
    spared: Collection[str] = (),
) -> None:
    """Round `model` in place to what its file will hold; a codebook is then trained, unless nothing is.

    At width 16 that brings a 4-bit codebook back to within about a point of fp32 values (README, The file).

    Args:
        model: finetuned.
        dataset: for what `codebook_training` takes of its training images.
        values: how the file stores weights.
        finetune: the recipe that the network was finetuned by; None to train nothing.
        teacher: for a recipe with distillation.
        spared: names of weights in which this makes no further zeros: see `quantise.quantise`.
    """
    labels = quantise(model, values, spared)
    if not labels or finetune is None:
        return
    part, recipe = codebook_training(dataset, finetune)
    train(model, part, recipe, held=Held(labels=labels, teacher=teacher))
    settle(model, labels)


def codebook_training(dataset: Dataset, finetune: TrainConfig) -> tuple[Dataset, TrainConfig]:
    """How a codebook is trained after a finetuning: a tenth of an epoch at a low peak; 40 steps if that is more.

    By Adam, whose steps are equal where gradients are, so that weights that share an entry go on sharing it; Muon's are
    not.
    """
    steps = steps_per_epoch(len(dataset.train), finetune.batch_size)
    share = max(CODEBOOK_SHARE, CODEBOOK_STEPS / steps)
    part = dataset.part(share, seed=finetune.seed) if share < 1 else dataset
    adam = {name: getattr(TrainConfig(), name) for name in ("optimizer", "schedule", "weight_decay", "grad_clip")}
    return part, replace(finetune, epochs=math.ceil(share), max_lr=CODEBOOK_LR, gradual=0.0, **adam)
