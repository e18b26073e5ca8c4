"""Batch normalisation's statistics, taken again: a pruned network's activations are not those they were kept for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from netprune.data import Dataset
from netprune.evaluation import own_modes
from netprune.loader import batch_for, normalise

BATCH, LEAST = 256, 32
"""Images a batch at most: of 32×32 pixels, and of any size (`batch_for`); statistics of a few would be poor ones."""


@torch.no_grad()
def recalibrate(model: nn.Module, dataset: Dataset, images: int = 2048) -> None:
    """Replace running means and variances, in place, by the plain averages over unaltered training images.

    No weight changes and nothing is learned. All but the normalisations is in eval mode: torch's `update_bn` has
    dropout draw, which inflates the variances behind it. Networks without batch normalisation are left alone.

    Args:
        model: on the data set's device; its modules' modes stay.
        dataset: the first of its training images are used.
        images: how many, at least 2.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    total = min(max(2, images), len(dataset.train))
    # nearly equal ones, for each counts the same: the few images that are left over would have a full batch's weight
    count = math.ceil(total / max(LEAST, batch_for(dataset.image_size, BATCH)))
    parts = torch.tensor_split(torch.arange(total), count)
    places = [(int(part[0]), int(part[-1]) + 1) for part in parts if len(part) > 1]
    batches = (normalise(dataset.train.between(start, stop), dataset) for start, stop in places)
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    # a network of the user's own may draw random numbers in eval mode too
    with own_modes(model), _plain_averages(norms), torch.random.fork_rng(devices=devices):
        model.eval()
        for norm in norms:
            norm.train()
        for batch in batches:
            model(batch)


@contextmanager
def _plain_averages(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Statistics begin anew, and every batch has the same weight in them; momenta are put back after it."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
