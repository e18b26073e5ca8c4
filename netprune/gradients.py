"""The loss's gradient at the weights as they are: what some saliency criteria go by."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from netprune.data import Dataset
from netprune.loader import eval_batches
from netprune.saliency import Gradients, Saliency, needs_gradient
from netprune.weights import prunable_weights

IMAGES = 2000
BATCH = 250


def loss_gradients(model: nn.Module, dataset: Dataset, images: int = IMAGES) -> Gradients:
    """Gradient of the mean cross-entropy over the first training images, in eval mode, unaltered images.

    Args:
        model: left as it is, its gradients too: a copy is differentiated.
        dataset: its training split is used.
        images: how many.
    """
    probe = copy.deepcopy(model).eval()
    weights = prunable_weights(probe)
    probe.requires_grad_(True).zero_grad(set_to_none=True)
    split = dataset.train.first(images)
    with torch.enable_grad():
        for batch, wanted in eval_batches(split, dataset, BATCH):
            loss = F.cross_entropy(probe(batch), wanted, reduction="sum") / len(split)
            loss.backward()  # type: ignore[no-untyped-call]
    return {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in weights.items()}


def gradients_for(saliency: Saliency, model: nn.Module, dataset: Dataset) -> Gradients | None:
    """`loss_gradients`, if the criterion needs them."""
    return loss_gradients(model, dataset) if needs_gradient(saliency) else None
