"""Batch normalisation's statistics, taken again: a pruned network's activations are not those they were kept for."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from netprune.data import Dataset
from netprune.evaluation import own_modes
from netprune.loader import batch_for, normalise

BATCH, LEAST = 256, 32
"""Images a batch at most: of 32×32 pixels, and of any size (`batch_for`); statistics of a few would be poor ones."""


def recalibrate(model: nn.Module, dataset: Dataset, images: int = 2048) -> None:
    """Replace running means and variances, in place, by the plain averages over unaltered training images.

    No weight changes and nothing is learned. torch's `update_bn` does the work; networks without batch normalisation
    are left alone.

    Args:
        model: on the data set's device; its modules' modes stay.
        dataset: the first of its training images are used.
        images: how many, at least 2.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return
    split = dataset.train.first(max(2, images))
    # nearly equal ones, for each counts the same: the few images that are left over would have a full batch's weight
    count = math.ceil(len(split) / max(LEAST, batch_for(dataset.image_size, BATCH)))
    parts = torch.tensor_split(split.images, count)
    batches = (normalise(part, dataset) for part in parts if len(part) > 1)
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with own_modes(model), torch.random.fork_rng(devices=devices):  # dropout draws
        update_bn(batches, model)
