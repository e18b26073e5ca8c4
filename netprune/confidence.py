"""What an accuracy over images and seeds can be trusted to be at least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes half a second to import, in every command

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Images:
    """What accuracies are measured on, and beside what."""

    count: int
    dense: float | None = None
    """The dense network's accuracy on these images, in [0, 1], where the question is how far another is from it; None
    where the question is the other's accuracy alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confidence:
    """An accuracy measured with several seeds on one set of images."""

    mean: float
    """Over the seeds, in [0, 1]."""
    seed_std: float
    """Standard deviation over the seeds; 0 for a single one."""
    image_se: float
    """Standard error that the number of images leaves; the same images for every seed, so more seeds do not help."""
    lower: float
    """Lower end of the one-sided 95 % confidence interval; beside a dense network, its accuracy and the lower end of
    the difference's interval."""


def lower_bound(accuracies: Sequence[float], images: Images, differing: Sequence[float] = ()) -> Confidence:
    """The one-sided 95 % lower bound of the accuracy that finetuning with any seed would have on any images.

    Two noises add up: of the images, common to all seeds, and of the seeds' mean, s²/k. The images' is as Wilson's
    interval has it (1927; right near 100 % too). Beside a dense network the bound is one of the difference, and both
    are measured on the same images: those that both take rightly, or both wrongly, say nothing of it, and the noise is
    that of paired proportions (Agresti & Min 2005, half an image added to each of the four cells). The two noises have
    very different degrees of freedom, which are pooled as Satterthwaite does (1946): with two seeds that differ little,
    the bound is nearly that of the images alone; where they differ much, it is the wide one of Student's t with one
    degree of freedom.

    Args:
        accuracies: one a seed, in [0, 1]; a single one says nothing of the seeds' spread, and is refused.
        images: that each was measured on.
        differing: beside a dense network, one a seed: the share of images that one of the two takes rightly and the
            other wrongly, in [0, 1].

    Raises:
        ValueError: for fewer than two seeds, or shares that lack.

    >>> lower_bound([0.84, 0.84], Images(5000)).lower
    0.831...
    >>> lower_bound([0.84, 0.84], Images(5000, dense=0.845), [0.06, 0.06]).lower
    0.834...
    """
    if len(accuracies) < 2:
        raise ValueError("a bound over seeds needs at least two of them")
    if images.dense is not None and len(differing) != len(accuracies):
        raise ValueError("a bound beside a dense network needs for each seed how many images the two differ on")
    mean, std = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    of_images = _image_variance(mean, images, float(np.mean(differing)) if images.dense is not None else None)
    of_seeds = std**2 / len(accuracies)
    total = of_images + of_seeds
    freedom = (
        total**2 / (of_images**2 / max(1, images.count - 1) + of_seeds**2 / (len(accuracies) - 1)) if total else 1.0
    )
    return Confidence(
        mean=mean,
        seed_std=std,
        image_se=math.sqrt(of_images),
        lower=max(0.0, mean - float(stdtrit(freedom, CONFIDENCE)) * math.sqrt(total)),
    )


def image_margin(accuracy: float, images: Images, differing: float | None = None) -> float:
    """How far its lower bound is below an accuracy that all seeds agree on.

    Args:
        accuracy: in [0, 1].
        images: that it is measured on.
        differing: see `lower_bound`; None if nobody knows, and the wider margin of the accuracy alone is taken.
    """
    known = images if differing is not None else Images(images.count)
    return accuracy - lower_bound([accuracy] * 2, known, [] if differing is None else [differing] * 2).lower


def _image_variance(accuracy: float, images: Images, differing: float | None) -> float:
    if differing is None or images.dense is None:
        z = NormalDist().inv_cdf(CONFIDENCE)
        return ((accuracy - _wilson(accuracy, images.count, z)[0]) / z) ** 2
    count, gained = images.count + 2, images.count * (accuracy - images.dense)
    differ = images.count * max(differing, abs(accuracy - images.dense)) + 1
    return (differ / count - (gained / count) ** 2) / count


def interval(accuracy: float, images: int) -> tuple[float, float]:
    """The two-sided 95 % confidence interval of one network's accuracy, measured on `images` images (Wilson, 1927).

    >>> interval(1.0, 100)
    (0.963..., 1.0)
    """
    return _wilson(accuracy, images, NormalDist().inv_cdf((1 + CONFIDENCE) / 2))


def _wilson(accuracy: float, images: int, z: float) -> tuple[float, float]:
    centre = accuracy + z**2 / (2 * images)
    half = z * math.sqrt(accuracy * (1 - accuracy) / images + z**2 / (4 * images**2))
    whole = 1 + z**2 / images
    return max(0.0, (centre - half) / whole), min(1.0, (centre + half) / whole)
