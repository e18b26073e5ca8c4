"""What a packed file says of its network: as it is written, and checked as it is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from netprune.data import Dataset
from netprune.errors import InputError
from netprune.image_folder import IMAGE_SIZE, LARGEST_SIZE
from netprune.models import Architecture
from netprune.tensors import DTYPES, Spec
from netprune.weights import weights_digest

MAX_AXES, MAX_LENGTH = 64, 2**40
"""Of a tensor, and of one of its axes. No tensor has more, and a shape beyond them takes seconds to multiply out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedHeader:
    """What a packed file says of its network."""

    architecture: Architecture | None
    """None for a network of the user's own class: it is loaded into a module that the caller gives."""
    classes: tuple[str, ...]
    """Names of the outputs, in order."""
    mean: tuple[float, float, float]
    """Per channel, of pixels in [0, 1]: inputs are normalised with it."""
    std: tuple[float, float, float]
    """Per channel, of pixels in [0, 1]."""
    dense_digest: str
    """`weights_digest()` of the dense network it was pruned from (its own, if it is dense)."""
    image_size: int = IMAGE_SIZE
    """Side of the images that it takes, in pixels."""


def header_for(dense: nn.Module, dataset: Dataset, architecture: Architecture | None = None) -> PackedHeader:
    """The header of what a dense network, trained on a data set, is pruned to.

    Args:
        dense: before pruning.
        dataset: that it was trained on.
        architecture: how to build it; None for a network of the user's own class.
    """
    return PackedHeader(
        architecture=architecture,
        classes=dataset.classes,
        mean=dataset.mean,
        std=dataset.std,
        dense_digest=weights_digest(dense),
        image_size=dataset.image_size,
    )


def describe_header(header: PackedHeader) -> dict[str, Any]:
    """The header as it is written: of plain numbers, and as a reader will take it.

    Raises:
        InputError: for one that no reader would take.
    """
    described = dataclasses.asdict(header)
    described |= {"mean": list(map(float, header.mean)), "std": list(map(float, header.std))}
    try:
        parse_header(described)
    except (TypeError, ValueError) as error:
        raise InputError(f"the header cannot be packed ({error}): mend it.") from None
    if header.image_size == IMAGE_SIZE:
        del described["image_size"]
    return described


def parse_header(described: Mapping[str, Any]) -> PackedHeader:
    """The header of what was read.

    Raises:
        KeyError, TypeError, ValueError: for one that cannot be; InputError for an architecture that there is not.
    """
    mean, std = tuple(map(float, described["mean"])), tuple(map(float, described["std"]))
    if len(mean) != 3 or len(std) != 3:
        raise ValueError("mean and std need three values each")
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise ValueError("its images cannot be normalised by its mean and std")
    architecture = described["architecture"]
    image_size = described.get("image_size", IMAGE_SIZE)
    if type(image_size) is not int or not 1 <= image_size <= LARGEST_SIZE:
        raise ValueError("its images have a size that cannot be")
    if architecture is not None and not all(type(architecture[name]) is int for name in ("num_classes", "width")):
        raise ValueError("its architecture has numbers that are none")
    return PackedHeader(
        architecture=None if architecture is None else Architecture(**architecture),
        classes=tuple(map(str, described["classes"])),
        mean=mean,
        std=std,
        dense_digest=str(described["dense_digest"]),
        image_size=image_size,
    )


def parse_specs(listed: Sequence[tuple[str, str, Sequence[int]]]) -> list[Spec]:
    """The tensors of what was read: names, types and shapes.

    Raises:
        TypeError, ValueError: for a tensor that cannot be, or two of one name.
    """
    specs = [Spec(str(name), dtype, tuple(shape)) for name, dtype, shape in listed]
    for each in specs:
        possible = len(each.shape) <= MAX_AXES and all(type(n) is int and 0 <= n < MAX_LENGTH for n in each.shape)
        if each.dtype not in DTYPES or not possible:
            raise ValueError(f"{each.name} is a tensor of no known kind")
    if len({each.name for each in specs}) < len(specs):
        raise ValueError("two tensors have one name")
    return specs


def parse_aliases(listed: Mapping[str, str], specs: Sequence[Spec]) -> dict[str, str]:
    """Which tensors share the memory of which others, of what was read.

    Raises:
        TypeError, ValueError: for an alias of no tensor, or one that is a tensor itself.
    """
    names = {each.name for each in specs}
    if not names.isdisjoint(listed) or not names.issuperset(listed.values()):
        raise ValueError("an alias of no tensor")
    return dict(listed)
