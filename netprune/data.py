"""Data sets as tensors, and their split into train, validation and test."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from netprune.cifar10 import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, read_cifar10
from netprune.errors import InputError
from netprune.files import user_path
from netprune.image_folder import (
    IMAGE_SIZE,
    LabelledImages,
    check_image_size,
    check_links,
    read_image_folder,
    readable,
)
from netprune.memory import fits

SPLIT_SEED = 0
DIGEST_IMAGES = 4096


@dataclass(frozen=True, slots=True)
class Split:
    """Images and their classes."""

    images: Tensor
    """uint8, `(N, 3, H, W)`, RGB; of a streamed split, what `rows` points into."""
    labels: Tensor
    """int64, `(N,)`, in `[0, classes)`."""
    rows: Tensor | None = None
    """int64 `(N,)`: which of `images` these are; None for all, in order. Only a streamed split has them."""
    streamed: bool = False
    """The images do not fit on the labels' device: they are on the CPU, maybe in a file, and are read in batches."""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        """The same split on another device, the images too unless they are streamed."""
        images = self.images if self.streamed else self.images.to(device)
        return dataclasses.replace(self, images=images, labels=self.labels.to(device))

    def fits(self, device: torch.device) -> bool:
        """Whether its images are on `device`, or can be moved there with half of the free memory left."""
        return not self.streamed and (self.images.device == device or fits(self.images.nbytes, device))

    def take(self, index: Tensor) -> Split:
        """The images at `index`, int64 `(M,)`; streamed if this split is."""
        if self.streamed:
            rows = index.cpu() if self.rows is None else self.rows[index.cpu()]
            return dataclasses.replace(self, labels=self.labels[index], rows=rows)
        return Split(self.images[index], self.labels[index])

    def digest(self) -> str:
        """SHA-256 (hex) of all labels and of 4,096 images spread evenly over the split, or all if it has no more.

        Not of every image: a streamed split would be read from end to end for it.
        """
        chosen = torch.linspace(0, len(self) - 1, min(len(self), DIGEST_IMAGES), dtype=torch.float64).round().long()
        images = self.images[chosen if self.rows is None else self.rows[chosen]]
        sha = hashlib.sha256()
        for tensor in (self.labels, images):
            sha.update(tensor.cpu().numpy().tobytes())
        return sha.hexdigest()

    def first(self, count: int) -> Split:
        """The first `count` images, on the device of the labels."""
        count = min(count, len(self))
        return Split(self.between(0, count), self.labels[:count])

    def between(self, start: int, stop: int) -> Tensor:
        """The images from `start` up to `stop`, uint8 `(M, 3, H, W)`, on the device of the labels."""
        images = self.images[start:stop] if self.rows is None else self.images[self.rows[start:stop]]
        return images.to(self.labels.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Three disjoint splits and what a network needs to know about their pixels."""

    name: str
    """As the user gave it: `cifar10`, `digits` or a path."""
    train: Split
    val: Split
    test: Split
    """Read once, at the end, for the report."""
    classes: tuple[str, ...]
    mean: tuple[float, float, float] = CIFAR10_MEAN
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, float, float] = CIFAR10_STD
    """Per channel, of pixels in [0, 1]."""
    flip: bool = True
    """Whether a mirrored image is still of its class (a mirrored digit is not)."""

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        return int(self.val.images.shape[-1])

    def to(self, device: torch.device) -> Dataset:
        """The same data set with every split on `device`; one that does not fit there is streamed.

        The training split comes first: whether it fits must not depend on what else has been moved, for of several
        processes all or none stream it.
        """
        train, val, test = (_moved(split, device) for split in (self.train, self.val, self.test))
        return dataclasses.replace(self, train=train, val=val, test=test)

    def part(self, share: float, *, seed: int, after: float = 0.0) -> Dataset:
        """The same data set with `share` of the training images, in (0, 1], chosen at random by `seed`.

        Args:
            share: see above.
            seed: of the order in which images have their turn.
            after: how often that order is over: the part is of the images that come next, so that parts which follow
                each other go over all images before any comes again.
        """
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        order = order.roll(-round(after % 1 * len(order)))
        chosen = order[: max(round(share * len(order)), 1)].to(self.train.labels.device)
        return dataclasses.replace(self, train=self.train.take(chosen))

    def val_digest(self) -> str:
        """SHA-256 (hex) of the validation images and labels: what a scan was measured on."""
        sha = hashlib.sha256(repr((self.mean, self.std)).encode())
        for start in range(0, len(self.val), DIGEST_IMAGES):
            sha.update(self.val.between(start, start + DIGEST_IMAGES).cpu().numpy().tobytes())
        sha.update(self.val.labels.cpu().numpy().tobytes())
        return sha.hexdigest()


def _moved(split: Split, device: torch.device) -> Split:
    return dataclasses.replace(split, streamed=not split.fits(device)).to(device)


def split_indices(count: int, *fractions: float) -> list[Tensor]:
    """Disjoint random index sets, the same on every machine.

    The permutation is `torch.randperm(count)` from a generator seeded with 0; each fraction takes its share from
    the front in turn, and what is left comes last. `split_indices(50_000, 0.1)` is the validation and training
    split of every checkpoint of this project.

    Args:
        count: how many images there are.
        fractions: shares of `count`, in [0, 1), together below 1.

    Returns:
        One int64 tensor a fraction, then the rest.

    >>> [len(part) for part in split_indices(50_000, 0.1)]
    [5000, 45000]
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))
    sizes = [int(count * fraction) for fraction in fractions]
    return list(torch.split(order, [*sizes, count - sum(sizes)]))


def load_dataset(name: str, data_dir: str | Path, image_size: int = IMAGE_SIZE) -> Dataset:
    """Load a data set by name, or an image folder by its path.

    Args:
        name: `digits` (scikit-learn's 1,797 handwritten digits, embedded, as 32×32 RGB), `cifar10` (downloaded into
            `data_dir` at first use), or a folder with `train/<class>/…` images and optional `val/<class>/…` and
            `test/<class>/…`. Without `val/`, a tenth of `train/` is held out for it; without `test/`, half of `val/`,
            or another tenth of `train/` where there is neither.
        data_dir: where CIFAR-10 and the decoded tensors of image folders are kept.
        image_size: side, in pixels from 8 to 1024, that the images of a folder are brought to; the others have 32.

    Raises:
        InputError: for an unknown name, a data set that is absent and cannot be downloaded, a folder that is
            empty, of one class, or holds a corrupt image, or a size that cannot be.
    """
    check_image_size(image_size)
    if name in DATASETS:
        if image_size != IMAGE_SIZE:
            raise InputError(f"the images of {name} are {IMAGE_SIZE}×{IMAGE_SIZE}: image_size is for image folders.")
        return DATASETS[name](user_path(data_dir))
    folder = user_path(name)
    if folder.is_dir():
        dataset = _image_folder(folder, user_path(data_dir), image_size)
        if not all(map(len, (dataset.train, dataset.val, dataset.test))):
            raise InputError(f"{name} has too few images to be split into train, validation and test: add some.")
        return dataset
    raise InputError(
        f"unknown data set {name!r}: choose one of {', '.join(sorted(DATASETS))}, or the path of a folder with "
        f"train/<class>/… images."
    )


def _held_out(
    name: str, pool: Split, val: float, test: float, *, classes: tuple[str, ...], flip: bool = True
) -> Dataset:
    parts = [pool.take(index) for index in split_indices(len(pool), val, test)]
    held = [_in_memory(part) for part in parts[:2]]
    return Dataset(name=name, val=held[0], test=held[1], train=parts[2], classes=classes, flip=flip)


def _digits(_: Path) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 8×8 in 0…16 → 32×32 in 0…255: each pixel becomes a 4×4 square, so that Net10 sees the size it was drawn for
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images = torch.from_numpy(grey).unsqueeze(1).expand(-1, 3, -1, -1).contiguous()
    pool = Split(images, torch.from_numpy(bunch.target).long())
    # a fifth each: with a tenth, one digit more or less would already be 0.6 points
    return _held_out("digits", pool, 0.2, 0.2, classes=tuple(str(digit) for digit in range(10)), flip=False)


def _cifar10(data_dir: Path) -> Dataset:
    pool, held = (Split(*part) for part in read_cifar10(data_dir))
    val, rest = split_indices(len(pool), 0.1)
    return Dataset(
        name="cifar10",
        train=pool.take(rest),
        val=pool.take(val),
        test=held,
        classes=CIFAR10_CLASSES,
    )


def _image_folder(folder: Path, data_dir: Path, image_size: int) -> Dataset:
    name = os.fspath(folder.resolve())
    with readable():
        parts = _parts(folder)
    classes: tuple[str, ...] = ()

    def read(part: str) -> Split:
        nonlocal classes
        found = read_image_folder(parts[part], data_dir, image_size)
        classes = classes or found.classes
        if found.classes != classes:
            only = ", ".join(sorted(set(found.classes) ^ set(classes)))
            raise InputError(f"{parts['train']} and {parts[part]} hold different classes: {only} is in one only.")
        return _as_split(found)

    pool = read("train")
    if len(parts) == 1:
        return _held_out(name, pool, 0.1, 0.1, classes=classes)
    # one after the other: what is free once the one is in memory decides for the next
    if "val" not in parts:
        val, train = (pool.take(index) for index in split_indices(len(pool), 0.1))
    else:
        train, val = _whole(pool), _whole(read("val"))
        if "test" not in parts:  # not of the training images, which a network of the user's own may have learned from
            test, val = (val.take(index) for index in split_indices(len(val), 0.5))
    val = _in_memory(val)
    if "test" in parts:
        test = _whole(read("test"))
    return Dataset(name=name, train=train, val=val, test=_in_memory(test), classes=classes)


def _parts(folder: Path) -> dict[str, Path]:
    """The folders of images that there are, `train` first."""
    places = {part: folder / part for part in ("train", "val", "test")}
    check_links(folder, list(places.values()))
    found = {part: place for part, place in places.items() if place.is_dir()}
    if "train" not in found:
        raise InputError(f"{folder} has no train/ folder: put the images under {folder}/train/<class>/.")
    for one, other in itertools.combinations(found.values(), 2):
        if other.samefile(one):
            raise InputError(f"{other} is the same folder as {one}: put other images there, or remove it.")
    return found


def _whole(split: Split) -> Split:
    return split.take(torch.arange(len(split)))


def _in_memory(split: Split) -> Split:
    """A streamed split read into memory, if it leaves half of that free."""
    taken = len(split) * split.images.shape[1:].numel()
    return split.first(len(split)) if split.streamed and fits(taken, torch.device("cpu")) else split


def _as_split(found: LabelledImages) -> Split:
    return Split(found.images, found.labels, streamed=found.on_disk)


DATASETS: dict[str, Callable[[Path], Dataset]] = {"cifar10": _cifar10, "digits": _digits}
