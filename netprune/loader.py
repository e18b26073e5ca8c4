"""Batches straight from a tensor: normalised, cropped and flipped on the device that holds it."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from netprune.data import Dataset, Split
from netprune.shares import ALONE, Place


def normalise(images: Tensor, dataset: Dataset) -> Tensor:
    """uint8 `(N, 3, H, W)` → float32 of zero mean and unit deviation by the data set's own figures."""
    mean, std = (_channels(values, images.device) for values in (dataset.mean, dataset.std))
    return (images.float() / 255 - mean) / std


@functools.lru_cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`(1, C, 1, 1)`; made once, because a GPU is waited for when it is given a tensor."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def train_batches(
    dataset: Dataset,
    batch_size: int,
    generator: torch.Generator,
    *,
    padding: int = 4,
    flips: Tensor | None = None,
    place: Place = ALONE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch over the training split in random order, each image cropped and maybe flipped in its own way.

    There are `steps_per_epoch` batches; the last may be smaller. A split that is too large for its device is streamed
    (`streaming.streamed_batches`); its crops differ from these for the same generator.

    Args:
        dataset: on any device.
        batch_size: images a batch; the last batch holds what is left.
        generator: a CPU generator; the order, crops and flips come from it alone.
        padding: pixels, by reflection, on each side before the crop; less than the images' size.
        flips: bool `(N,)`, which images are mirrored; by default each with probability one half. Heeded only where the
            data set may be mirrored.
        place: of several processes each gets its share of every batch; all have to pass generators of equal state.

    Yields:
        float32 images `(B, 3, H, W)`, normalised, and int64 labels `(B,)`.
    """
    split, count = dataset.train, len(dataset.train)
    order = torch.randperm(count, generator=generator)
    if flips is None:
        flips = torch.rand(count, generator=generator) < 0.5
    flips = flips if dataset.flip else torch.zeros(count, dtype=torch.bool)
    if split.streamed:
        from netprune.streaming import streamed_batches  # torchvision takes seconds to import

        yield from streamed_batches(dataset, _shares(order, batch_size, place), flips, padding, place.own(generator))
        return
    # drawn for the whole epoch, so that a GPU is not waited for in every step
    device = split.images.device
    offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=generator).to(device)
    flips, order = flips.to(device), order.to(device)
    for index in _shares(order, batch_size, place):
        images = crop(split.images[index], padding, *offsets[:, index])
        images = torch.where(flips[index][:, None, None, None], images.flip(3), images)
        yield normalise(images, dataset), split.labels[index]


def _shares(order: Tensor, batch_size: int, place: Place) -> list[Tensor]:
    steps = steps_per_epoch(len(order), batch_size)
    return [place.share(batch) for batch in torch.split(order, batch_size)[:steps]]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches in one epoch over `count` images.

    A last batch of a single image is left out: batch normalisation cannot take the variance of one value.

    >>> steps_per_epoch(10, 5), steps_per_epoch(11, 5), steps_per_epoch(12, 5)
    (2, 2, 3)
    """
    whole, rest = divmod(count, batch_size)
    return whole + (rest > 1)


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """Images in each batch of one epoch over `count` images, in all processes together.

    >>> batch_sizes(12, 5)
    [5, 5, 2]
    """
    steps = steps_per_epoch(count, batch_size)
    return [min(batch_size, count - start) for start in range(0, steps * batch_size, batch_size)]


def batch_for(image_size: int, batch_size: int) -> int:
    """How many images a batch has that would be of `batch_size` images of 32×32: larger images take no more memory.

    >>> batch_for(32, 500), batch_for(64, 500), batch_for(224, 500)
    (500, 125, 10)
    """
    return max(1, min(batch_size, batch_size * 32**2 // image_size**2))


def eval_batches(split: Split, dataset: Dataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The split in its own order, normalised, unaltered otherwise; `batch_size` is of images of 32×32 (`batch_for`)."""
    batch_size = batch_for(split.images.shape[-1], batch_size)
    for start in range(0, len(split), batch_size):
        stop = start + batch_size
        yield normalise(split.between(start, stop), dataset), split.labels[start:stop]


def crop(images: Tensor, padding: int, tops: Tensor, lefts: Tensor) -> Tensor:
    """Pad by reflection, then cut each image out at its own offset. Shape and type stay.

    Args:
        images: `(N, C, H, W)`.
        padding: pixels on each side.
        tops: int64 `(N,)`, in `[0, 2 * padding]`; `padding` is where the image was.
        lefts: the same, from the left.
    """
    _, _, height, width = images.shape
    windows = F.pad(images, (padding,) * 4, mode="reflect").unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, tops, lefts]
