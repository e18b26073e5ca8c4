"""What moves the weights: optimisers and their schedules."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from netprune.recipes import TrainConfig

MOMENTUM = 0.9


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The recipe's optimiser over all of a network's parameters."""
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.max_lr, weight_decay=config.weight_decay, fused=fused)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.max_lr, momentum=MOMENTUM, nesterov=True, fused=fused)


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> LRScheduler:
    """The learning rate over `steps` steps in all."""
    if config.schedule == "one_cycle":
        return OneCycleLR(optimizer, max_lr=config.max_lr, total_steps=steps)
    return LambdaLR(optimizer, lambda step: linear_schedule(step, steps, config.warm_up))


def linear_schedule(step: int, steps: int, warm_up: float) -> float:
    """Share of the peak at a step (from 0): a straight line up to the end of the warm-up, then one down to 0.

    >>> [round(linear_schedule(step, 10, 0.2), 2) for step in range(11)]
    [0.33, 0.67, 1.0, 0.88, 0.75, 0.62, 0.5, 0.38, 0.25, 0.12, 0.0]
    """
    peak = warm_up * steps
    if step < peak:
        return (step + 1) / (peak + 1)
    return max(steps - step, 0) / (steps - peak)
