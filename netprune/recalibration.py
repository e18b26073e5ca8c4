"""Batch normalisation's statistics, taken again: a pruned network's activations are not those they were kept for."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from netprune.data import Dataset
from netprune.loader import normalise

BATCH = 256


def recalibrate(model: nn.Module, dataset: Dataset, images: int = 2048) -> None:
    """Replace running means and variances, in place, by the plain averages over unaltered training images.

    No weight changes and nothing is learned. torch's `update_bn` does the work; networks without batch normalisation
    are left alone.

    Args:
        model: on the data set's device; its mode stays.
        dataset: the first of its training images are used.
        images: how many, at least 2.
    """
    split = dataset.train.first(max(2, images))
    batches = [batch for batch in torch.split(normalise(split.images, dataset), BATCH) if len(batch) > 1]
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # dropout draws
        update_bn(batches, model)
