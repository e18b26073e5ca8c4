"""Densities in a given ratio to one another, for a given number of weights."""

from __future__ import annotations

from collections.abc import Mapping

from netprune.masks import Sparsity


def proportional(sizes: Mapping[str, int], ratio: Mapping[str, float], density: float) -> Sparsity:
    """Densities in the given ratio that keep `density` of all weights; a layer that would pass 1 is kept whole.

    Args:
        sizes: weight name → number of weights.
        ratio: weight name → its density's share, above 0.
        density: fraction of all weights to keep.

    >>> proportional({"a": 10, "b": 90}, {"a": 4.0, "b": 1.0}, 0.13)
    {'a': 0.6, 'b': 0.9}
    """
    whole: set[str] = set()
    while True:
        left = density * sum(sizes.values()) - sum(sizes[name] for name in whole)
        rest = [name for name in sizes if name not in whole]
        scale = left / sum(ratio[name] * sizes[name] for name in rest) if rest else 0.0
        over = {name for name in rest if scale * ratio[name] > 1}
        if not over:
            return {name: 0.0 if name in whole else 1 - scale * ratio[name] for name in sizes}
        whole |= over
