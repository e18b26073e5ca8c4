"""How much it hurts to prune one layer alone, by how much of it goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from netprune.data import Dataset
from netprune.errors import InputError
from netprune.evaluation import Evaluation, image_losses, standard_error, summarise
from netprune.masks import keep_mask
from netprune.models import prunable_weights, weights_digest
from netprune.saliency import magnitude

Curves = NDArray[np.float64]
OnPoint = Callable[[int, int], None]
"""Called after each point with the points done and the points in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """Loss and accuracy of the network with one layer pruned and everything else dense."""

    layers: tuple[str, ...]
    """Weight names, `(L,)`, in the model's order."""
    sizes: tuple[int, ...]
    """Weights in each layer, `(L,)`."""
    sparsities: tuple[float, ...]
    """Asked sparsities, `(S,)`, rising, in [0, 1)."""
    loss: Curves
    """`(L, S)`, nats."""
    loss_se: Curves
    """`(L, S)`: standard error of the *change* of loss, paired with the dense network on the same images."""
    accuracy: Curves
    """`(L, S)`, in [0, 1]."""
    accuracy_se: Curves
    """`(L, S)`, binomial."""
    baseline: Evaluation
    """The dense network on the same images."""
    split: str
    """Which split was used."""
    val_digest: str
    """`Dataset.val_digest()` of the data."""
    digest: str
    """`weights_digest()` of the dense network."""

    @property
    def damage(self) -> Curves:
        """`(L, S)`: change of loss against the dense network, nats."""
        return self.loss - self.baseline.loss

    def to_json(self) -> str:
        """All of it as JSON; numbers survive exactly."""
        return json.dumps({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()})

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """The inverse of `to_json`."""
        fields = json.loads(text)
        fields |= {name: np.array(fields[name]) for name in ("loss", "loss_se", "accuracy", "accuracy_se")}
        fields |= {name: tuple(fields[name]) for name in ("layers", "sizes", "sparsities")}
        return cls(**{**fields, "baseline": Evaluation(**fields["baseline"])})


def sparsity_grid(low: float, high: float, step: float) -> tuple[float, ...]:
    """`low, low + step, …` up to `high`, both included where the steps meet it.

    Raises:
        InputError: unless 0 ≤ low ≤ high < 1 and step > 0.

    >>> sparsity_grid(0.4, 0.9, 0.1)
    (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """
    if not 0 <= low <= high < 1:
        raise InputError(f"the scan's range is {low} to {high}; it must lie in [0, 1) and rise.")
    if not step > 0:
        raise InputError(f"the scan's step is {step}; it must be above 0.")
    count = int((high - low) / step + 1e-9) + 1
    return tuple(round(low + step * i, 10) for i in range(count))


def scan(
    model: nn.Module, dataset: Dataset, sparsities: Sequence[float], *, on_point: OnPoint | None = None
) -> Sensitivity:
    """Prune each weight tensor alone to each sparsity, by magnitude, and evaluate on the validation split.

    The model's weights, buffers and modes are as before when it returns, also after an exception.

    Args:
        model: dense, on the device that holds `dataset`.
        dataset: its validation split is used.
        sparsities: in [0, 1), rising.
        on_point: see `OnPoint`.
    """
    weights = prunable_weights(model)
    total = len(weights) * len(sparsities)
    dense_losses, right = image_losses(model, dataset.val, dataset)
    points: list[tuple[Evaluation, float]] = []
    for weight in weights.values():
        for sparsity in sparsities:
            with _pruned(weight, sparsity):
                losses, hits = image_losses(model, dataset.val, dataset)
            points.append((summarise(losses, hits), standard_error(losses - dense_losses)))
            if on_point is not None:
                on_point(len(points), total)
    shape = (len(weights), len(sparsities))
    return Sensitivity(
        layers=tuple(weights),
        sizes=tuple(weight.numel() for weight in weights.values()),
        sparsities=tuple(sparsities),
        loss=np.array([e.loss for e, _ in points]).reshape(shape),
        loss_se=np.array([paired for _, paired in points]).reshape(shape),
        accuracy=np.array([e.accuracy for e, _ in points]).reshape(shape),
        accuracy_se=np.array([e.accuracy_se for e, _ in points]).reshape(shape),
        baseline=summarise(dense_losses, right),
        split="val",
        val_digest=dataset.val_digest(),
        digest=weights_digest(model),
    )


@contextmanager
def _pruned(weight: Tensor, sparsity: float) -> Iterator[None]:
    dense = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.masked_fill_(~keep_mask(magnitude(dense), sparsity), 0.0)
        yield
    finally:
        with torch.no_grad():
            weight.copy_(dense)
