"""A sparsity for each layer → exact masks; and holding a network to them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from netprune.errors import InputError
from netprune.saliency import Gradients, Saliency, magnitude, score
from netprune.weights import prunable_weights

Sparsity = Mapping[str, float]
"""Weight name (`conv1.0.weight`) → fraction pruned, in [0, 1]."""
Masks = Mapping[str, Tensor]
"""Weight name → bool tensor of the weight's shape; True = kept."""


def check_sparsity(sparsity: Sparsity, model: nn.Module) -> None:
    """Refuse a sparsity that names an unknown layer or lies outside [0, 1].

    Raises:
        InputError: naming the layer and the value.
    """
    known = prunable_weights(model)
    for name, value in sparsity.items():
        if name not in known:
            raise InputError(f"no prunable weight is called {name!r}: choose from {', '.join(known)}.")
        if not 0 <= value <= 1:  # NaN fails this too
            raise InputError(f"the sparsity of {name} is {value}; it must be at least 0 and at most 1.")


def pruned_count(size: int, sparsity: float) -> int:
    """How many of `size` weights a sparsity prunes: the nearest whole number."""
    return round(sparsity * size)


def prune_order(scores: Tensor) -> Tensor:
    """When each weight goes: 0 for the least salient, ties broken by index (first goes first).

    Args:
        scores: any shape, no NaN.

    Returns:
        int64, the shape of `scores`, each of 0 … n − 1 once.

    >>> prune_order(torch.tensor([2.0, 0.0, 2.0])).tolist()
    [1, 0, 2]
    """
    order = torch.empty(scores.numel(), dtype=torch.int64, device=scores.device)
    order[torch.sort(scores.flatten(), stable=True).indices] = torch.arange(scores.numel(), device=scores.device)
    return order.view(scores.shape)


def keep_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Keep all but the `round(sparsity · n)` lowest scores: that many exactly, ties broken by index.

    A threshold on the scores would take every tie along.

    Args:
        scores: any shape, no NaN.
        sparsity: fraction to prune, in [0, 1]; 1 prunes everything.

    Returns:
        bool, the shape of `scores`; True = kept.

    >>> keep_mask(torch.zeros(10), 0.3).tolist()
    [False, False, False, True, True, True, True, True, True, True]
    """
    gone = pruned_count(scores.numel(), sparsity)
    if gone == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    # one order statistic, not the whole order: a tenth of the time, which is seconds for a layer of VGG16
    flat = scores.flatten()
    threshold = flat.kthvalue(gone).values
    kept = flat > threshold
    ties = (flat == threshold).nonzero().flatten()
    kept[ties[gone - int((flat < threshold).sum()) :]] = True
    return kept.view(scores.shape)


@torch.no_grad()
def make_masks(
    model: nn.Module,
    sparsity: Sparsity,
    saliency: Saliency = magnitude,
    gradients: Gradients | None = None,
    *,
    dense: nn.Module | None = None,
) -> dict[str, Tensor]:
    """One mask for each layer that `sparsity` names, least salient weights first.

    Args:
        model: left as it is.
        sparsity: layers that it does not name get no mask.
        saliency: the criterion.
        gradients: if the criterion needs them.
        dense: what `model` was pruned from, if it was. Where a layer is to keep more weights than `model` has, those
            come back that were the largest there; without it, those of the highest index.

    Raises:
        InputError: for an unknown layer, a sparsity outside [0, 1], or a criterion that lacks its gradients.
    """
    check_sparsity(sparsity, model)
    weights = {name: weight for name, weight in prunable_weights(model).items() if name in sparsity}
    scores = score(saliency, weights, gradients)
    if dense is not None:
        before = prunable_weights(dense)
        scores = {name: _zeros_last(scores[name], weights[name], before[name]) for name in weights}
    return {name: keep_mask(scores[name], value) for name, value in sparsity.items()}


def _zeros_last(scores: Tensor, weight: Tensor, before: Tensor) -> Tensor:
    """Scores, which are at least 0; those of weights that are zero now become negative, ordered by what they were."""
    size = before.abs().to(scores.dtype)
    return torch.where(weight == 0, size / size.max().clamp(min=torch.finfo(size.dtype).tiny) - 2, scores)


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set every weight that is not kept to zero, in place."""
    weights = prunable_weights(model)
    for name, mask in masks.items():
        # masked_fill, not a product: a product leaves -0.0, and keeps NaN
        weights[name].masked_fill_(~mask, 0.0)


@torch.no_grad()
def measured_sparsity(model: nn.Module) -> dict[str, float]:
    """Weight name → fraction of its values that are zero now."""
    return {name: 1 - int(w.count_nonzero()) / w.numel() for name, w in prunable_weights(model).items()}
