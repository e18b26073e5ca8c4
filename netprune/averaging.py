"""One network from several: the mean of their weights, or one that follows the weights of a training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def average(networks: Sequence[nn.Module]) -> nn.Module:
    """A copy of the first network with the mean of all their weights.

    Networks that were finetuned from one start, in another order and by other crops, lie around a point that is better
    than each of them (model soups: Wortsman et al. 2022, arXiv:2203.05482). Pruned alike they have their zeros in
    common, and so has the mean (Zimmer et al. 2024, arXiv:2306.16788). Batch statistics are not those of the mean:
    `recalibrate` it.

    Args:
        networks: at least one; of one class, with equal names and shapes.
    """
    made, states = copy.deepcopy(networks[0]), [network.state_dict() for network in networks]
    mean = {  # divided first: the sum of large numbers, such as an attention's mask, would be infinite
        name: torch.stack([state[name] / len(states) for state in states]).sum(dim=0)
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }
    made.load_state_dict(mean)
    return made


def moving_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Any], None]:
    """How `AveragedModel` brings its averages nearer to the weights after each step: `decay` of them stays.

    Torch's, but that what is infinite, as an attention's mask is, stays so: a step towards it is no number.

    Args:
        decay: in [0, 1).
    """
    towards = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def move(averages: Sequence[Tensor], values: Sequence[Tensor], count: Any) -> None:
        towards(averages, values, count)
        for average, value in zip(averages, values, strict=True):
            if value.is_floating_point():
                average.copy_(torch.where(value.isfinite(), average, value))

    return move
