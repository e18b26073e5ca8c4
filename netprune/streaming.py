"""Training images that do not fit on their device: through torchvision's transforms and worker processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from netprune.data import Dataset

WORKERS = min(8, os.cpu_count() or 1)


class _Images(TorchDataset[tuple[Tensor, Tensor]]):
    """The training split image by image, altered as in training."""

    def __init__(self, dataset: Dataset, flips: Tensor, padding: int) -> None:
        self.images, self.rows = dataset.train.images, dataset.train.rows
        self.labels, self.flips = dataset.train.labels.cpu(), flips
        self.alter = v2.Compose(
            [
                v2.RandomCrop(self.images.shape[-2:], padding=padding, padding_mode="reflect"),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(dataset.mean, dataset.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index if self.rows is None else int(self.rows[index])]
        if self.flips[index]:
            image = v2.functional.horizontal_flip(image)
        return self.alter(image), self.labels[index]


def streamed_batches(
    dataset: Dataset, batches: Sequence[Tensor], flips: Tensor, padding: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """The given batches of the training split, each image cropped at random, on the device of its labels.

    Args:
        dataset: its training images are on the CPU, in memory or in a file.
        batches: int64 indices into the split, one tensor a batch.
        flips: bool `(N,)`, which images are mirrored.
        padding: pixels, by reflection, on each side before the crop.
        generator: seeds the workers, whose number is fixed by the machine: a seed repeats itself there.

    Yields:
        float32 images `(B, 3, H, W)`, normalised, and int64 labels `(B,)`.
    """
    device = dataset.train.labels.device
    loader = DataLoader(
        _Images(dataset, flips, padding),
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=WORKERS,
        generator=generator,
        pin_memory=device.type == "cuda",
        # workers that are no copies of this process would be sent the images, which do not fit: Python 3.14 starts such
        multiprocessing_context="fork" if sys.platform == "linux" else None,
    )
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
