"""From which network a candidate is best pruned: the dense one, or what an earlier candidate of the study has become.

A network that was pruned part of the way and has recovered is a better start than the dense one, and brings its
finetune epochs along: pruning and finetuning in turns recovers more than pruning in one shot (Han et al. 2015,
arXiv:1506.02626; Renda et al. 2020, arXiv:2003.02389). In a study each trial is such a turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from netprune.masks import Sparsity

MOST = 3
"""Earlier networks that are looked at for each candidate."""
BACK = 0.08
"""Share of a candidate's weights that may have to come back, untrained, in a network that it starts from. With a
quarter of them a fifth of an epoch ended a point below what it came to from the dense network (README, results log)."""


def nearest(
    sizes: Mapping[str, int], sparsity: Sparsity, earlier: Mapping[int, Sparsity], most: int = MOST
) -> list[int]:
    """The earlier candidates from which there is least to prune to get to a sparsity, the nearest first.

    One that lacks more than `BACK` of the weights that are to stay is no start: they would begin from zero.

    Args:
        sizes: weight name → number of weights.
        sparsity: of the candidate to come.
        earlier: number → sparsity, of the same layers.
        most: how many to give.

    >>> sizes = {"a": 100}
    >>> nearest(sizes, {"a": 0.9}, {0: {"a": 0.5}, 1: {"a": 0.85}, 2: {"a": 0.95}}, most=2)
    [1, 0]
    """
    wanted = {name: size * (1 - sparsity[name]) for name, size in sizes.items()}
    total = sum(wanted.values())
    found = {}
    for number, other in earlier.items():
        kept = {name: size * (1 - other[name]) for name, size in sizes.items()}
        back = sum(max(0.0, wanted[name] - kept[name]) for name in sizes) / total
        away = sum(max(0.0, kept[name] - wanted[name]) for name in sizes) / total
        if back <= BACK:
            found[number] = math.log1p(away) + back
    return sorted(found, key=lambda number: (found[number], -number))[:most]
