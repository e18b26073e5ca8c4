"""What the accuracies of a study's networks are held against."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from netprune.confidence import Images
from netprune.evaluation import Evaluation, image_losses, summarise
from sweeps.stages.source import Source


@dataclass(frozen=True, slots=True)
class Yardstick:
    """The dense network on the validation images."""

    dense: Evaluation
    right: Tensor
    """Which of the images it takes rightly, bool `(N,)`."""
    beside: bool
    """Whether floors are so many points below it, so that a bound is one of the difference."""

    @classmethod
    def of(cls, source: Source, *, beside: bool) -> Yardstick:
        """Measured."""
        losses, right = image_losses(source.model, source.dataset.val, source.dataset)
        return cls(summarise(losses, right), right, beside)

    @property
    def images(self) -> Images:
        """As bounds take them."""
        return Images(self.dense.count, self.dense.accuracy if self.beside else None)

    def differing(self, right: Tensor) -> float | None:
        """The share of images that another network, which takes `right` rightly, and the dense one differ on; None
        where no bound asks for it."""
        return (right != self.right).double().mean().item() if self.beside else None
