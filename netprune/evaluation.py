"""How good a network is: loss and accuracy, each with its standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netprune.data import Dataset, Split
from netprune.loader import eval_batches

EVAL_BATCH = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Means over a split, with the standard errors that its size leaves."""

    loss: float
    """Mean cross-entropy, in nats."""
    loss_se: float
    accuracy: float
    """Fraction of images classified right, in [0, 1]."""
    accuracy_se: float
    """Binomial: √(p(1 − p)/n)."""
    count: int
    """Images evaluated."""


@contextmanager
def own_modes(model: nn.Module) -> Iterator[None]:
    """Put every module back into its own mode after the body, whatever that does: some may be frozen in eval mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode, and every module back into its own mode afterwards."""
    with own_modes(model):
        model.eval()
        yield


@torch.no_grad()
def image_losses(model: nn.Module, split: Split, dataset: Dataset, *, mirrored: bool = False) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each image, float32 `(N,)`, and whether it is classified right, bool `(N,)`.

    Batches are of a fixed size, so the same network and split give the same bits every time on one device.

    Args:
        model: evaluated in eval mode; its own mode is kept.
        split: of `dataset`.
        dataset: normalises the images.
        mirrored: show each image mirrored too, and go by the mean of the two outputs.
    """
    losses, right = [], []
    with eval_mode(model):
        for images, labels in eval_batches(split, dataset, EVAL_BATCH):
            logits = model(images)
            if mirrored:
                logits = (logits + model(images.flip(3))) / 2
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
            right.append(logits.argmax(1) == labels)
    return torch.cat(losses), torch.cat(right)


def evaluate(model: nn.Module, split: Split, dataset: Dataset, *, mirrored: bool = False) -> Evaluation:
    """Loss and accuracy of `model` on one split of `dataset`. See `image_losses` for the arguments."""
    return summarise(*image_losses(model, split, dataset, mirrored=mirrored))


@torch.no_grad()
def predict(model: nn.Module, split: Split, dataset: Dataset) -> Tensor:
    """The class that `model` takes each image for, int64 `(N,)`; batches and mode as in `image_losses`."""
    with eval_mode(model):
        return torch.cat([model(images).argmax(1) for images, _ in eval_batches(split, dataset, EVAL_BATCH)])


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """How often each class is taken for each, int64 `(classes, classes)`: true by row, predicted by column.

    >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    return (classes * labels + predicted).bincount(minlength=classes**2).view(classes, classes)


def summarise(losses: Tensor, right: Tensor) -> Evaluation:
    """Per-image losses and hits, both `(N,)` → means and standard errors."""
    count = len(losses)
    accuracy = int(right.sum()) / count  # a GPU's mean may be off in the last bit, and floors follow from it
    return Evaluation(
        loss=losses.double().mean().item(),
        loss_se=standard_error(losses),
        accuracy=accuracy,
        accuracy_se=(accuracy * (1 - accuracy) / count) ** 0.5,
        count=count,
    )


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of `values` `(N,)`; 0 for a single value."""
    return values.double().std(correction=1).item() / len(values) ** 0.5 if len(values) > 1 else 0.0
