"""A recipe in the number format and layout that suit a device: by measurement, or as asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from torch import nn

from netprune.compute import (
    FEW_IMAGES,
    LONGEST_SECONDS,
    PROBE_IMAGES,
    Format,
    choose_format,
    compiled_if_faster,
    training_seconds,
    trains_in,
)
from netprune.data import Dataset
from netprune.errors import InputError
from netprune.loader import normalise
from netprune.recipes import TrainConfig

Precision = Literal["auto", "fp32", "bf16", "winograd"]
PRECISIONS = get_args(Precision)
LONG = 30 * 60
"""Seconds of a training for which the choice may take a minute."""
LONG_MEASUREMENT = 8 * LONGEST_SECONDS


def fit_to_device(
    model: nn.Module, dataset: Dataset, config: TrainConfig, precision: Precision = "auto"
) -> tuple[TrainConfig, float]:
    """The recipe in a format of that precision, and about how long an epoch will take.

    `auto` measures for a few seconds which format is fastest for this network on its device; where the training takes
    over half an hour, it measures on more images and tries compilation as well, which takes a minute each. What it
    chooses may hang on what else the machine does. `fp32`, `bf16` and `winograd` (fp32 with wide 3×3 convolutions by
    Winograd's algorithm, on a CPU) are channels_last, or contiguous and without Winograd's algorithm for a network that
    cannot be trained in that layout (`compute.trains_in`), and nothing is timed to choose them: the same seed gives the
    same bits on the same machine, if that is a CPU.

    Args:
        model: left alone.
        dataset: a batch of its training images is taken.
        config: the recipe; its own format is not heeded.
        precision: see above.

    Returns:
        The recipe, and seconds an epoch.

    Raises:
        InputError: for an unknown precision, winograd on another device than a CPU, or bf16 for a network that does
            not train in it.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; it must be {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}.")
    device = next(model.parameters()).device.type
    if precision == "winograd" and device != "cpu":
        raise InputError(f"precision winograd is for a CPU, and this is {device}: choose another one.")
    split = dataset.train.first(config.batch_size)
    images = normalise(split.images, dataset)
    if precision != "auto":
        found = Format(bf16=precision == "bf16", winograd=precision == "winograd", channels_last=True)
        if not trains_in(model, images[:FEW_IMAGES], split.labels[:FEW_IMAGES], found):
            found = Format(bf16=found.bf16)
        few = images[:FEW_IMAGES], split.labels[:FEW_IMAGES]
        if found.bf16 and not trains_in(model, *few, found) and trains_in(model, *few, Format()):
            raise InputError("this network fails when it is trained in bf16, as its code stands: choose fp32 or auto.")
        seconds = training_seconds(model, images[:PROBE_IMAGES], split.labels[:PROBE_IMAGES], found)
        return replace(config, format=found), seconds * len(dataset.train)
    found, seconds = choose_format(model, images, split.labels)
    if seconds * len(dataset.train) * config.epochs > LONG:
        found, seconds = choose_format(model, images, split.labels, LONG_MEASUREMENT)
        found = compiled_if_faster(model, images[:PROBE_IMAGES], split.labels[:PROBE_IMAGES], found)
    return replace(config, format=found), seconds * len(dataset.train)
