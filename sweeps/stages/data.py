"""The data that a stage works on, and the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from netprune.cifar10 import CIFAR10_MEAN, CIFAR10_STD
from netprune.data import DATASETS, Dataset, load_dataset
from netprune.distributed import ALONE, Team
from netprune.errors import InputError
from netprune.files import user_path
from netprune.image_folder import IMAGE_SIZE
from sweeps.progress import detail

AUTO, DEFAULT_DATA_DIR = "auto", "~/.cache/netprune"
NORMALISATION = ("mean", "std")
DATA_OPTIONS = ("dataset", "image_size", "data_dir", "device", *NORMALISATION)
Channels = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRequest:
    """Which data, and on which device."""

    dataset: str
    data_dir: str
    """Where CIFAR-10 and decoded image folders are kept; `auto` for what the network was trained on, or the usual."""
    device: str = AUTO
    image_size: int | None = None
    """Side of an image folder's images, in pixels; None for what the network was trained on, or 32."""
    mean: Channels | None = None
    """Of pixels in [0, 1], one a channel: images are given to the network less this, divided by `std`. None for what
    the network was trained with, or CIFAR-10's."""
    std: Channels | None = None

    @classmethod
    def of(cls, options: MutableMapping[str, Any]) -> DataRequest:
        """From the command line's options, which are taken out; those of a study have no normalisation but its own.

        Raises:
            InputError: for a mean or deviation that is none.
        """
        taken = {name: options.pop(name, AUTO) for name in DATA_OPTIONS}
        taken |= {"image_size": None} if taken["image_size"] == AUTO else {}
        return cls(**taken | normalisation(taken))

    def resolved(self) -> DataRequest:
        """With paths made absolute, so that a run's record means the same everywhere here, and the size of the
        images."""
        folder = user_path(self.dataset)
        named = self.dataset in DATASETS or not folder.is_dir()
        dataset = self.dataset if named else str(folder.resolve())
        data_dir = DEFAULT_DATA_DIR if self.data_dir == AUTO else self.data_dir
        data_dir = str(user_path(data_dir).resolve())
        return replace(self, dataset=dataset, data_dir=data_dir, image_size=self.side)

    @property
    def normalised(self) -> dict[str, str]:
        """How images are normalised, as options, where that is not as CIFAR-10's are: see `normalisation`."""
        usual = {"mean": CIFAR10_MEAN, "std": CIFAR10_STD}
        named = {name: getattr(self, name) for name in NORMALISATION if getattr(self, name) not in (None, usual[name])}
        return {name: ",".join(map(str, values)) for name, values in named.items()}

    @property
    def side(self) -> int:
        """`image_size`, or 32 where it is None."""
        return IMAGE_SIZE if self.image_size is None else self.image_size


def normalisation(options: Mapping[str, Any]) -> dict[str, Channels | None]:
    """`mean` and `std` of options or of a run's params, as numbers; None where they are `auto` or not there.

    Raises:
        InputError: for one that is not three numbers in its range.

    >>> normalisation({"mean": "0.485,0.456,0.406", "std": "auto"})
    {'mean': (0.485, 0.456, 0.406), 'std': None}
    """
    return {name: _channels(name, str(options.get(name, AUTO))) for name in NORMALISATION}


def _channels(name: str, text: str) -> Channels | None:
    if text == AUTO:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        red = green = blue = math.nan
    if not all(0 <= each <= 1 and (each or name == "mean") for each in (red, green, blue)):
        within = "from 0 to 1" if name == "mean" else "above 0 and at most 1"
        raise InputError(
            f"{name} is {text!r}; it is three numbers, for red, green and blue, of pixels in [0, 1], {within}: "
            f"{'0.485,0.456,0.406' if name == 'mean' else '0.229,0.224,0.225'} is ImageNet's."
        )
    return red, green, blue


def find_device(name: str) -> torch.device:
    """`auto` → the first CUDA GPU if there is one, else the CPU; `cpu`, `cuda`, `cuda:1` and so on as torch knows them.

    A GPU that is named by its number becomes the current one: only on that are passes recorded.

    Raises:
        InputError: for an unknown device, or one that is not here.
    """
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"device {name!r} is not available here: take auto or cpu.") from None
    if device.type not in ("cpu", "cuda"):  # sums are taken in float64, which Apple's GPUs, say, do not have
        raise InputError(f"device {name!r} is none that netprune runs on: take auto, cpu or cuda.")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def open_data(request: DataRequest, team: Team = ALONE) -> tuple[Dataset, torch.device]:
    """Load the data and put it on the device; of several processes each on its own.

    Raises:
        InputError: if the data or the device is not there, or several processes find different ones.
    """
    with team.together():
        device = find_device(team.own_device(request.device))
    for loads_first in (True, False):  # what is downloaded or decoded is so by one process of a machine
        with team.together():
            if (team.local_rank == 0) == loads_first:
                dataset = load_dataset(request.dataset, request.data_dir, request.side)
    dataset = replace(dataset, mean=request.mean or dataset.mean, std=request.std or dataset.std)
    if not team.alone:
        dataset = agreed(dataset, device, team)
    counts = (len(split) for split in (dataset.train, dataset.val, dataset.test))
    detail("{}: {:,} training, {:,} validation, {:,} test images".format(dataset.name, *counts) + f" on {device}")
    return dataset.to(device), device


def agreed(dataset: Dataset, device: torch.device, team: Team) -> Dataset:
    """The data, streamed if any process has to stream it: streaming draws other random numbers.

    Raises:
        InputError: if the processes have different data or kinds of device.
    """
    streamed = not dataset.train.fits(device)
    found = team.gathered((device.type, len(dataset.train), dataset.val_digest(), streamed))
    if len({device_type for device_type, *_ in found}) > 1:
        raise InputError(
            "some processes have a GPU and some have none: take cpu as device, or start them on GPUs only."
        )
    if len({(count, digest) for _, count, digest, _ in found}) > 1:
        raise InputError(f"the processes find different images under {dataset.name}: give every machine the same data.")
    if any(streams for *_, streams in found):
        return replace(dataset, train=replace(dataset.train, streamed=True))
    return dataset
