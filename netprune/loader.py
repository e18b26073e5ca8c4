"""Batches straight from a tensor: normalised, cropped and flipped on the device that holds it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from netprune.data import Dataset, Split

CROP_PADDING = 4


def normalise(images: Tensor, dataset: Dataset) -> Tensor:
    """uint8 `(N, 3, H, W)` → float32 of zero mean and unit deviation by the data set's own figures."""
    mean = torch.tensor(dataset.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(dataset.std, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std


def train_batches(dataset: Dataset, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch over the training split in random order, each image cropped and maybe flipped in its own way.

    There are `steps_per_epoch` batches; the last may be smaller.

    Args:
        dataset: on any device.
        batch_size: images a batch; the last batch holds what is left.
        generator: a CPU generator; the order, crops and flips come from it alone.

    Yields:
        float32 images `(B, 3, H, W)`, normalised, and int64 labels `(B,)`.
    """
    split = dataset.train
    order = torch.randperm(len(split), generator=generator)
    for batch in torch.split(order, batch_size)[: steps_per_epoch(len(order), batch_size)]:
        index = batch.to(split.images.device)
        images = random_crop(split.images[index], CROP_PADDING, generator)
        if dataset.flip:
            images = random_flip(images, generator)
        yield normalise(images, dataset), split.labels[index]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches in one epoch over `count` images.

    A last batch of a single image is left out: batch normalisation cannot take the variance of one value.

    >>> steps_per_epoch(10, 5), steps_per_epoch(11, 5), steps_per_epoch(12, 5)
    (2, 2, 3)
    """
    whole, rest = divmod(count, batch_size)
    return whole + (rest > 1)


def eval_batches(split: Split, dataset: Dataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The split in its own order, normalised, unaltered otherwise."""
    for images, labels in zip(
        torch.split(split.images, batch_size), torch.split(split.labels, batch_size), strict=True
    ):
        yield normalise(images, dataset), labels


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad by reflection, then cut each image out at an offset of its own. Shape and type stay."""
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4, mode="reflect")
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, count), generator=generator).to(images.device)
    rows = (tops[:, None] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (lefts[:, None] + torch.arange(width, device=images.device))[:, None, None, :]
    channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[torch.arange(count, device=images.device)[:, None, None, None], channels, rows, columns]


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    chosen = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(chosen[:, None, None, None], images.flip(3), images)
