"""One threshold over the scores of many layers, from each layer's scores in order."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from netprune.masks import Sparsity, pruned_count
from netprune.saliency import Saliency

SortedScores = dict[tuple[Saliency, str], Tensor]
"""Criterion and weight name → that layer's scores, one axis, rising."""


def global_threshold(scores: Mapping[str, Tensor], density: float) -> Sparsity:
    """The sparsities at which the lowest scores of all layers together go.

    Layers in order: of equal scores, those of the first layers go first, as in `masks.keep_mask` of all in one. Of a
    layer that would lose all, one weight stays.

    Args:
        scores: weight name → its scores, one axis, rising, at least one of them and no NaN.
        density: fraction of all of them to keep, in (0, 1].

    >>> global_threshold({"a": torch.tensor([1.0, 2.0, 2.0, 5.0]), "b": torch.tensor([2.0, 3.0])}, 0.5)
    {'a': 0.75, 'b': 0.0}
    """
    wanted = pruned_count(sum(each.numel() for each in scores.values()), 1 - density)
    kind = functools.reduce(torch.promote_types, (each.dtype for each in scores.values()))
    below, up_to = _split([each.to(kind) for each in scores.values()], wanted)
    gone, ties = {}, wanted - sum(below)
    for name, low, high in zip(scores, below, up_to, strict=True):
        taken = min(ties, high - low)
        gone[name], ties = low + taken, ties - taken
    return {
        name: min(gone[name] / each.numel(), 1 - 1 / each.numel())  # an empty layer cuts a network in two
        for name, each in scores.items()
    }


def _split(rising: list[Tensor], wanted: int) -> tuple[list[int], list[int]]:
    """For each layer, how many scores are below the threshold, and how many up to it.

    Every layer has a range of indices in which its share of the `wanted` lowest ends. The middle of the widest range
    is tried as the threshold; too low or too high, it halves that range and narrows the others.
    """
    low, high = [0] * len(rising), [each.numel() for each in rising]
    if not wanted:
        return low, low
    while True:
        widest = max(range(len(rising)), key=lambda i: high[i] - low[i])
        pivot = rising[widest][(low[widest] + high[widest]) // 2]
        below = [int(torch.searchsorted(each, pivot)) for each in rising]
        up_to = [int(torch.searchsorted(each, pivot, right=True)) for each in rising]
        if sum(below) >= wanted:
            high = [min(h, b) for h, b in zip(high, below, strict=True)]
        elif sum(up_to) < wanted:
            low = [max(lo, u) for lo, u in zip(low, up_to, strict=True)]
        else:
            return below, up_to
