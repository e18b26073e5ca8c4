"""How much goes from which layer: a budget → a sparsity for each layer.

Budgets are densities: the fraction of all prunable weights that is kept, in (0, 1].
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from netprune.errors import InputError
from netprune.masks import Sparsity, keep_mask
from netprune.models import prunable_weights
from netprune.sensitivity import Sensitivity


def uniform(layers: Sequence[str], density: float) -> Sparsity:
    """The same sparsity for every layer.

    >>> uniform(["a", "b"], 0.25)
    {'a': 0.75, 'b': 0.75}
    """
    _check_density(density)
    return dict.fromkeys(layers, 1 - density)


def document(layers: Sequence[str]) -> Sparsity:
    """The source document's dictionary, typed by hand: 0.6 for the first layer, 0.9 for the rest.

    >>> document(["a", "b", "c"])
    {'a': 0.6, 'b': 0.9, 'c': 0.9}
    """
    return {name: 0.6 if index == 0 else 0.9 for index, name in enumerate(layers)}


@torch.no_grad()
def global_magnitude(model: nn.Module, density: float) -> Sparsity:
    """Prune the smallest weights of the whole network, whichever layer they are in (Han et al. 2015, one threshold).

    At least one weight of every layer is kept: an empty layer cuts the network in two.
    """
    _check_density(density)
    weights = prunable_weights(model)
    scores = torch.cat([weight.abs().flatten() for weight in weights.values()])
    kept = torch.split(keep_mask(scores, 1 - density), [weight.numel() for weight in weights.values()])
    return {
        name: min(1 - part.count_nonzero().item() / part.numel(), 1 - 1 / part.numel())
        for name, part in zip(weights, kept, strict=True)
    }


def equal_slope(sensitivity: Sensitivity, density: float) -> Sparsity:
    """Minimise the summed damage for a number of kept weights: every layer stops at the same slope.

    With damage ΔL_l(s) and n_l weights, the minimum of Σ ΔL_l(s_l) at a fixed Σ n_l (1 − s_l) has
    ΔL′_l(s_l) / n_l = λ in every layer: the Lagrangian condition (Everett 1963; Shoham & Gersho 1988). The curves are
    taken as the lower convex hull of their points, from sparsity 0, so that the slope rises and the walk below meets
    the condition at every step: always prune further where the next weight costs least.

    No curve is read past its last scanned point, so there is a least density that the scan can reach.

    Args:
        sensitivity: the scan.
        density: the fraction of all weights to keep, in (0, 1].

    Returns:
        Sparsities that keep `density` of the weights, or the whole scanned range if even that prunes less.

    Raises:
        InputError: for a density outside (0, 1].
    """
    _check_density(density)
    to_prune = (1 - density) * sum(sensitivity.sizes)
    pieces = [
        (slope / size, layer, right - left)
        for layer, size, damage in zip(sensitivity.layers, sensitivity.sizes, sensitivity.damage, strict=True)
        for left, right, slope in _hull_pieces(sensitivity.sparsities, damage)
    ]
    sizes = dict(zip(sensitivity.layers, sensitivity.sizes, strict=True))
    sparsity = dict.fromkeys(sensitivity.layers, 0.0)
    # within a layer the hull's slopes rise, so the sort keeps its pieces in order
    for _, layer, length in sorted(pieces, key=lambda piece: piece[0]):
        taken = min(length, max(0.0, to_prune) / sizes[layer])  # rounding may leave less than nothing to prune
        sparsity[layer] += taken
        to_prune -= taken * sizes[layer]
    return sparsity


def _hull_pieces(sparsities: Sequence[float], damage: np.ndarray) -> list[tuple[float, float, float]]:
    """Lower convex hull of (0, 0) and the scanned points → (left, right, slope) pieces of rising slope."""
    points = [(0.0, 0.0), *((float(s), float(d)) for s, d in zip(sparsities, damage, strict=True) if s > 0)]
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    return [(a[0], b[0], _slope(a, b)) for a, b in itertools.pairwise(hull)]


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise InputError(f"the density is {density}; it must be above 0 and at most 1.")
