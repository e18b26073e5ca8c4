"""The rules that share a budget out among the layers, each on what it goes by: shapes, weights, or measured damage.

Budgets are densities: the fraction of all prunable weights that is kept, in (0, 1]. Every rule meets its budget to half
a weight a layer; those with a global threshold keep one weight more for each layer that they would have emptied.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from netprune.curves import Damage, fit_all
from netprune.errors import InputError
from netprune.knapsack import cheapest
from netprune.masks import Sparsity
from netprune.proportions import proportional
from netprune.saliency import Gradients, Saliency, lamp, magnitude, norm_loss, score
from netprune.sensitivity import Sensitivity
from netprune.thresholds import SortedScores, global_threshold
from netprune.weights import prunable_weights

Shapes = Mapping[str, torch.Size]
"""Weight name → shape, in the model's order."""
BISECTIONS = 100


def shapes_of(model: nn.Module) -> Shapes:
    """The shapes of a network's prunable weights."""
    return {name: weight.shape for name, weight in prunable_weights(model).items()}


def uniform(shapes: Shapes, density: float) -> Sparsity:
    """The same sparsity for every layer: the answer if nothing is known.

    >>> uniform({"a": torch.Size([4]), "b": torch.Size([8])}, 0.25)
    {'a': 0.75, 'b': 0.75}
    """
    check_density(density)
    return dict.fromkeys(shapes, 1 - density)


def document(shapes: Shapes, density: float | None = None, first: str | None = None) -> Sparsity:
    """The source document's rule: 0.6 for the first layer and 0.9 for the rest, typed by hand.

    At another budget the first layer keeps the rule's proportion, four times the others' density, until it is whole.

    Args:
        shapes: weight name → shape.
        density: the budget; None for the document's own numbers.
        first: the layer that is the first, among `shapes` or not; None for the first of `shapes`, which for a network
            with layers that are kept is the first that is not.

    >>> document({"a": torch.Size([100]), "b": torch.Size([900])})
    {'a': 0.6, 'b': 0.9}
    """
    first = next(iter(shapes)) if first is None else first
    if density is None:
        return {name: 0.6 if name == first else 0.9 for name in shapes}
    check_density(density)
    return proportional(_sizes(shapes), {name: 4.0 if name == first else 1.0 for name in shapes}, density)


def erk(shapes: Shapes, density: float) -> Sparsity:
    """Erdős–Rényi-kernel (Evci et al. 2020, RigL, arXiv:1911.11134; after Mocanu et al. 2018).

    A layer's density is proportional to the sum of its dimensions over their product, (c_in + c_out + h + w) /
    (c_in c_out h w): small layers stay denser. A layer that would pass 1 is kept whole, the rest share what is left.
    """
    check_density(density)
    ratio = {name: sum(shape) / shape.numel() for name, shape in shapes.items()}
    return proportional(_sizes(shapes), ratio, density)


def global_saliency(
    model: nn.Module,
    density: float,
    saliency: Saliency,
    gradients: Gradients | None = None,
    layers: Collection[str] | None = None,
    *,
    memo: SortedScores | None = None,
) -> Sparsity:
    """Prune the least salient weights of the whole network, whichever layer they are in.

    At least one weight of every layer is kept: an empty layer cuts a network in two.

    Args:
        model: dense.
        density: fraction of its prunable weights to keep.
        saliency: its scores are compared across layers.
        gradients: weight name → gradient of the loss, for a criterion that needs it.
        layers: names of the weights that may be pruned, which the density is then of; None for all.
        memo: what earlier calls with the same weights and gradients left; it is filled further. Sorting is all of the
            time (a minute for VGG16), so that other densities then cost nothing.
    """
    check_density(density)
    known = {} if memo is None else memo
    every = prunable_weights(model)
    weights = {name: every[name] for name in every if layers is None or name in layers}
    new = {name: weight for name, weight in weights.items() if (saliency, name) not in known}
    with torch.no_grad():
        for name, scored in score(saliency, new, gradients).items():
            known[saliency, name] = scored.flatten().sort().values
    return global_threshold({name: known[saliency, name] for name in weights}, density)


def global_magnitude(
    model: nn.Module, density: float, layers: Collection[str] | None = None, memo: SortedScores | None = None
) -> Sparsity:
    """One magnitude threshold for the whole network (Han et al. 2015, arXiv:1506.02626)."""
    return global_saliency(model, density, magnitude, layers=layers, memo=memo)


def lamp_threshold(
    model: nn.Module, density: float, layers: Collection[str] | None = None, memo: SortedScores | None = None
) -> Sparsity:
    """One LAMP threshold for the whole network (Lee et al. 2021, arXiv:2010.07611).

    Pruning by it in turn takes from the layer that loses the least of the energy it still has: it minimises
    Σ −ln(energy kept in layer l), as if every layer were as sensitive as any other.
    """
    return global_saliency(model, density, lamp, layers=layers, memo=memo)


def kept_norm(
    model: nn.Module, density: float, layers: Collection[str] | None = None, memo: SortedScores | None = None
) -> Sparsity:
    """Keep the largest sum of the layers' Frobenius norms, Σ ‖W_l · M_l‖.

    Written with the energy that layer l keeps, E_l = ‖W_l · M_l‖², global magnitude keeps the largest Σ E_l, LAMP the
    largest Σ ln E_l, and this one the largest Σ √E_l: the member halfway between them of the family that economics
    calls α-fair shares (Mo & Walrand 2000), α = 0, 1 and ½. Global magnitude starves the layers of small weights, LAMP
    pays a layer of 640 weights as much as one of 147,456. The ½ was chosen by measurement, on one network (README,
    "Which layer, how much?"). √E_l is concave in the number of kept weights, so one threshold on what each weight adds
    is the exact maximum.
    """
    return global_saliency(model, density, norm_loss, layers=layers, memo=memo)


def equal_drop(sensitivity: Sensitivity, density: float) -> Sparsity:
    """Every layer is pruned until it alone does the same damage ε; ε by bisection (as NNI, PaddleSlim and others do).

    It does not ask how many weights a layer gives for the damage: a small layer costs as much as a large one.

    Raises:
        InputError: for a density outside (0, 1], or below what the scan reached.
    """
    curves = _reaching(sensitivity, density)
    to_prune = (1 - density) * sum(curve.size for curve in curves.values())
    # from below nothing: curves may be flat at no damage at all
    low, high = -1.0, max(float(curve.values[-1]) for curve in curves.values())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        pruned = sum(curve.size * curve.most_at(middle) for curve in curves.values())
        low, high = (middle, high) if pruned < to_prune else (low, middle)
    below, above = ({name: c.most_at(epsilon) for name, c in curves.items()} for epsilon in (low, high))
    # where curves are flat, the smallest step of ε is a large one of sparsity: take the share of it that is wanted
    at_low, at_high = (sum(curves[n].size * s for n, s in sparsity.items()) for sparsity in (below, above))
    share = min(1.0, max(0.0, (to_prune - at_low) / (at_high - at_low))) if at_high > at_low else 0.0
    return {name: below[name] + share * (above[name] - below[name]) for name in curves}


def equal_slope(sensitivity: Sensitivity, density: float) -> Sparsity:
    """Minimise the summed damage for a number of kept weights: every layer stops at the same slope.

    With damage ΔL_l(s) and n_l weights, the minimum of Σ ΔL_l(s_l) at a fixed Σ n_l (1 − s_l) has
    ΔL′_l(s_l) / n_l = λ in every layer: the Lagrangian condition (Everett 1963; Shoham & Gersho 1988). The curves are
    taken as the lower convex hull of their points, so that the slope rises and the walk below meets the condition at
    every step: always prune further where the next weight costs least. At most one layer stops between two points of
    its hull, so the sum is at the minimum of the hulls.

    No curve is read past its last scanned point, so there is a least density that the scan can reach.

    Raises:
        InputError: for a density outside (0, 1], or below what the scan reached.
    """
    curves = _reaching(sensitivity, density)
    sparsity = {name: float(curve.sparsities[0]) for name, curve in curves.items()}
    to_prune = sum(curve.size * (1 - density - sparsity[name]) for name, curve in curves.items())
    pieces = [
        (slope / curve.size, name, length) for name, curve in curves.items() for slope, length in curve.hull_pieces()
    ]
    # within a layer the hull's slopes rise, so the sort keeps its pieces in order
    for _, name, length in sorted(pieces, key=lambda piece: piece[0]):
        taken = min(length, max(0.0, to_prune) / curves[name].size)  # rounding may leave less than nothing to prune
        sparsity[name] = min(1.0, sparsity[name] + taken)
        to_prune -= taken * curves[name].size
    return sparsity


def knapsack(sensitivity: Sensitivity, density: float) -> Sparsity:
    """The least summed damage on the curves themselves, by dynamic programming: a multiple-choice knapsack.

    Equal slope convexifies each curve and is blind to what lies inside a dent; SPDY (Frantar & Alistarh 2022,
    arXiv:2201.13096) chooses one of many levels for each layer instead, under one budget. The answer of equal slope is
    among the candidates, so this one's damage is never above it.

    Raises:
        InputError: for a density outside (0, 1], or below what the scan reached.
    """
    curves = _reaching(sensitivity, density)
    return cheapest(curves, density, equal_slope(sensitivity, density))


def _sizes(shapes: Shapes) -> dict[str, int]:
    return {name: shape.numel() for name, shape in shapes.items()}


def check_density(density: float) -> None:
    """Refuse a density outside (0, 1].

    Raises:
        InputError: for such a density.
    """
    if not 0 < density <= 1:
        raise InputError(f"the density is {density}; it must be above 0 and at most 1.")


def _reaching(sensitivity: Sensitivity, density: float) -> dict[str, Damage]:
    """The fitted curves, if a density lies between their first and last points."""
    check_density(density)
    curves = fit_all(sensitivity)
    total = sum(curve.size for curve in curves.values())
    least = sum(curve.size * (1 - curve.last) for curve in curves.values()) / total
    if density < least - 1e-9:
        raise InputError(
            f"the density is {density:g} and the scan's last points of finite damage keep {least:g} of the weights: "
            f"scan to higher sparsities or take a larger density, no curve is read past its last point."
        )
    most = sum(curve.size * (1 - curve.sparsities[0]) for curve in curves.values()) / total
    if density > most + 1e-9:
        raise InputError(f"the density is {density:g} and the scanned network has only {most:g} of its weights left.")
    return curves
