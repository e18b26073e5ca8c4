"""One network from several that began at the same one: the mean of their weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn


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
