"""Which weights go first: a criterion scores every weight, and the least salient go.

A criterion is one function from a weight tensor (and the loss's gradient there) to scores of the same shape. Within a
layer only the order of the scores counts; `allocation.global_saliency` compares them across layers too, and there
their scale counts as well.
"""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from netprune.errors import InputError

Saliency = Callable[..., Tensor]
"""`(weight)` or `(weight, gradient)`, of one shape → scores of that shape, no NaN, higher = kept longer. Zeros
have none that counts: see `score`."""
Gradients = Mapping[str, Tensor]
"""Weight name → mean gradient of the loss, of the weight's shape."""


def magnitude(weight: Tensor) -> Tensor:
    """The weight's absolute value (LeCun's oldest rule; Han et al. 2015, arXiv:1506.02626).

    >>> magnitude(torch.tensor([3.0, -1.0]))
    tensor([3., 1.])
    """
    return weight.detach().abs()


def lamp(weight: Tensor) -> Tensor:
    """Layer-adaptive magnitude (Lee et al. 2021, arXiv:2010.07611): w² over the sum of all squares not below it.

    Each layer's largest weight scores 1, so a global threshold never empties a layer. Within a layer it orders as
    magnitude does. Double precision: the sum runs over millions of small squares.

    >>> lamp(torch.tensor([3.0, -1.0, 2.0])).tolist() == [1.0, 1 / 14, 4 / 13]
    True
    """
    squares, energy, index = _energy(weight)
    # an all-zero tensor is all ties at 0, not 0/0
    return _unsorted(torch.where(energy > 0, squares / energy, 0.0), index, weight)


def norm_loss(weight: Tensor) -> Tensor:
    """How much shorter the layer's weight vector gets when this weight goes, all smaller ones being gone.

    √E − √(E − w²), E the sum of all squares not below w². Within a layer it orders as magnitude does; a global
    threshold on it keeps the largest sum of the layers' Frobenius norms (`allocation.kept_norm`).

    >>> norm_loss(torch.tensor([3.0, -4.0])).tolist()
    [1.0, 4.0]
    """
    squares, energy, index = _energy(weight)
    # w² / (√E + √(E − w²)): the plain difference of two nearly equal roots would lose the small weights' digits
    roots = energy.sqrt() + (energy - squares).clamp(min=0).sqrt()
    return _unsorted(torch.where(roots > 0, squares / roots, 0.0), index, weight)


def _energy(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squares, rising; for each the sum of those not below it; and where they stood."""
    squares, index = torch.sort(weight.detach().flatten().double().square(), stable=True)
    return squares, squares.flip(0).cumsum(0).flip(0), index


def _unsorted(scores: Tensor, index: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(scores).scatter_(0, index, scores).view(like.shape)


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """First-order change of the loss when the weight is set to zero, |w · ∂L/∂w| (Molchanov et al. 2017).

    Source: arXiv:1611.06440; for single weights, Molchanov et al. 2019, arXiv:1906.10771.

    >>> taylor(torch.tensor([3.0, -1.0]), torch.tensor([0.5, 2.0]))
    tensor([1.5000, 2.0000])
    """
    return (weight.detach() * gradient).abs()


def random(weight: Tensor) -> Tensor:
    """Uniform noise: the control that every other criterion has to beat.

    The same for the same weights, whatever else drew random numbers; another for each layer.
    """
    values = weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()  # numpy has no bfloat16
    generator = torch.Generator().manual_seed(zlib.crc32(values.tobytes()))
    return torch.rand(weight.shape, generator=generator).to(weight.device)


SALIENCIES: Mapping[str, Saliency] = {
    "magnitude": magnitude,
    "lamp": lamp,
    "norm_loss": norm_loss,
    "taylor": taylor,
    "random": random,
}


def needs_gradient(saliency: Saliency) -> bool:
    """Whether the criterion takes a gradient.

    >>> needs_gradient(taylor), needs_gradient(magnitude)
    (True, False)
    """
    return "gradient" in inspect.signature(saliency).parameters


def score(saliency: Saliency, weights: Mapping[str, Tensor], gradients: Gradients | None = None) -> dict[str, Tensor]:
    """Weight name → scores; −∞ for weights that are zero, so that what is pruned already goes before anything else.

    Raises:
        InputError: for a criterion that needs gradients, without them.
    """
    if not needs_gradient(saliency):
        found = {name: saliency(weight) for name, weight in weights.items()}
    elif gradients is None:
        raise InputError("this criterion needs gradients: make them with `gradients.loss_gradients`.")
    else:
        found = {name: saliency(weight, gradients[name]) for name, weight in weights.items()}
    return {name: scores.masked_fill(weights[name] == 0, -math.inf) for name, scores in found.items()}


def find_saliency(name: str) -> Saliency:
    """The criterion of that name.

    Raises:
        InputError: for an unknown name.
    """
    if name not in SALIENCIES:
        raise InputError(f"unknown saliency {name!r}: choose one of {', '.join(SALIENCIES)}.")
    return SALIENCIES[name]
