"""What an accuracy over images and seeds can be trusted to be at least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes half a second to import, in every command

CONFIDENCE = 0.95
HALVINGS = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Confidence:
    """An accuracy measured with several seeds on one set of images."""

    mean: float
    """Over the seeds, in [0, 1]; or the average's."""
    seed_std: float
    """Standard deviation over the seeds; 0 for a single one."""
    image_se: float
    """Standard error that the number of images leaves; the same images for every seed, so more seeds do not help."""
    lower: float
    """Lower end of the one-sided 95 % confidence interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """By how much one network is more accurate than another on the same images."""

    accuracy: float
    """Difference of the two accuracies, in [-1, 1]."""
    se: float
    """Its standard error."""


def lower_bound(accuracies: Sequence[float], images: int, *, average: float | None = None) -> Confidence:
    """The one-sided 95 % lower bound of the accuracy that finetuning with any seed would have on any images.

    Two noises add up: of the images, common to all seeds, as Wilson's interval has it (1927; right near 100 % too), and
    of the seeds' mean, s²/k. The two have very different degrees of freedom, which are pooled as Satterthwaite does
    (1946): with two seeds that differ little, the bound is nearly that of the images alone; where they differ much, it
    is the wide one of Student's t with one degree of freedom.

    Args:
        accuracies: one a seed, in [0, 1]; a single one says nothing of the seeds' spread, and is refused.
        images: that each was measured on.
        average: accuracy of the network with the mean of the seeds' weights, if the bound is to be of that one. Other
            seeds would change it no more than they would the mean of the accuracies, so it has the same two noises.

    Raises:
        ValueError: for fewer than two seeds.

    >>> lower_bound([0.84, 0.84], 5000).lower
    0.831...
    """
    if len(accuracies) < 2:
        raise ValueError("a bound over seeds needs at least two of them")
    std = float(np.std(accuracies, ddof=1))
    mean = float(np.mean(accuracies)) if average is None else average
    z = NormalDist().inv_cdf(CONFIDENCE)
    of_images = ((mean - _wilson(mean, images, z)[0]) / z) ** 2
    of_seeds = std**2 / len(accuracies)
    total = of_images + of_seeds
    freedom = total**2 / (of_images**2 / max(1, images - 1) + of_seeds**2 / (len(accuracies) - 1)) if total else 1.0
    return Confidence(
        mean=mean,
        seed_std=std,
        image_se=math.sqrt(of_images),
        lower=max(0.0, mean - float(stdtrit(freedom, CONFIDENCE)) * math.sqrt(total)),
    )


def least_accuracy(floor: float, images: int) -> float:
    """The accuracy from which on a lower bound is at the floor, if seeds agree.

    Args:
        floor: in [0, 1].
        images: that accuracies are measured on.

    Returns:
        It, from `floor` to 1; infinity where not even a network without a mistake would do.

    >>> round(least_accuracy(0.8, 5000), 4), least_accuracy(0.98, 100)
    (0.8093, inf)
    """

    def meets(accuracy: float) -> bool:
        return lower_bound([accuracy, accuracy], images).lower >= floor

    low, high = floor, 1.0
    if not meets(high):
        return math.inf
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def is_reachable(floor: float, images: int) -> bool:
    """Whether so many images could confirm any network for a floor.

    >>> is_reachable(0.98, 1000), is_reachable(0.98, 100)
    (True, False)
    """
    return math.isfinite(least_accuracy(floor, images))


def interval(accuracy: float, images: int) -> tuple[float, float]:
    """The two-sided 95 % confidence interval of one network's accuracy, measured on `images` images (Wilson, 1927).

    >>> interval(1.0, 100)
    (0.963..., 1.0)
    """
    return _wilson(accuracy, images, NormalDist().inv_cdf((1 + CONFIDENCE) / 2))


def paired_change(gained: int, lost: int, images: int) -> Change:
    """From the images that only the one network has right, and those that only the other has: difference of accuracies.

    Its standard error is √(b + c − (b − c)²/N)/N (Agresti, Categorical Data Analysis, 2013, section 11.1; McNemar's
    test, 1947, is of the same two counts). What both have right or wrong says nothing of the difference, which is known
    better than the two accuracies.

    >>> paired_change(30, 10, 1000)
    Change(accuracy=0.02, se=0.0062...)
    """
    accuracy = (gained - lost) / images
    return Change(accuracy=accuracy, se=math.sqrt(gained + lost - images * accuracy**2) / images)


def _wilson(accuracy: float, images: int, z: float) -> tuple[float, float]:
    centre = accuracy + z**2 / (2 * images)
    half = z * math.sqrt(accuracy * (1 - accuracy) / images + z**2 / (4 * images**2))
    whole = 1 + z**2 / images
    return max(0.0, (centre - half) / whole), min(1.0, (centre + half) / whole)
