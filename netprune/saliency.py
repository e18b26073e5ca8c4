"""Which weights go first."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Saliency = Callable[[Tensor], Tensor]
"""A weight tensor → a score of the same shape. The least salient go first."""


def magnitude(weight: Tensor) -> Tensor:
    """The weight's absolute value (LeCun's oldest rule; Han et al. 2015, arXiv:1506.02626)."""
    return weight.detach().abs()
