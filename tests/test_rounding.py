"""What training a codebook takes: steps enough, of Adam, and no more images than that takes."""

from dataclasses import replace

import pytest
import torch

from netprune.data import Split
from netprune.loader import steps_per_epoch
from netprune.recipes import FINETUNE, TrainConfig
from netprune.rounding import CODEBOOK_LR, codebook_training

ADAM = {name: getattr(TrainConfig(), name) for name in ("optimizer", "schedule", "weight_decay", "grad_clip")}


@pytest.fixture
def of(tiny_dataset):
    """Data sets of so many training images, of one pixel, that their labels number."""
    return lambda count: replace(
        tiny_dataset, train=Split(torch.zeros(count, 3, 1, 1, dtype=torch.uint8), torch.arange(count))
    )


@pytest.mark.parametrize(("batch_size", "epochs"), [(64, 20), (16, 8), (8, 5), (7, 4)])
def test_codebook_training_on_few_images_takes_forty_steps_over_all_of_them(of, batch_size, epochs):
    dataset, finetune = of(72), TrainConfig(**FINETUNE | {"batch_size": batch_size, "gradual": 0.5, "seed": 3})
    part, recipe = codebook_training(dataset, finetune)
    assert part is dataset
    assert recipe == replace(finetune, epochs=epochs, max_lr=CODEBOOK_LR, gradual=0.0, **ADAM)
    assert recipe.optimizer == "adam"  # whose steps are equal where gradients are
    assert epochs * steps_per_epoch(72, batch_size) >= 40 > (epochs - 1) * steps_per_epoch(72, batch_size)


def test_codebook_training_on_many_images_takes_one_epoch_over_a_tenth_of_them(of):
    dataset, finetune = of(50_000), TrainConfig(**FINETUNE | {"epochs": 3, "seed": 3})
    part, recipe = codebook_training(dataset, finetune)
    assert torch.equal(part.train.labels, dataset.part(0.1, seed=3).train.labels)
    assert len(part.train) == 5000
    assert recipe == replace(finetune, epochs=1, max_lr=CODEBOOK_LR, **ADAM)
    assert recipe.optimizer == "adam"


@pytest.mark.parametrize(("steps", "images"), [(1000, 800), (400, 320), (399, 320), (100, 320), (41, 320), (40, 320)])
def test_codebook_training_takes_a_tenth_and_at_least_forty_steps(of, steps, images):
    part, recipe = codebook_training(of(8 * steps), TrainConfig(batch_size=8))
    assert (len(part.train), recipe.epochs) == (images, 1)
