"""What moves the weights: optimisers and their schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from netprune.recipes import TrainConfig

MOMENTUM = 0.9
MUON_BETAS = (0.9, 0.99)
LARGEST_MATRIX = 2048


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon for weights, each as a matrix with a row an output channel; its AdamW for all other parameters.

    Muon's step is the momentum with all its singular values brought near one (Jordan 2024,
    kellerjordan.github.io/posts/muon), scaled so that its size is that of a step of AdamW (arXiv:2502.16982): one
    learning rate serves both. Matrices whose shorter side is above 2,048 (VGG16's first linear layers) go by AdamW: the
    products that bring out singular values would cost more than all passes. Decay is decoupled, and of weights alone.
    """

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float) -> None:
        parameters = list(model.parameters())
        large = [p for p in parameters if p.ndim > 1 and _shorter_side(p) > LARGEST_MATRIX]
        others = [p for p in parameters if p.ndim <= 1]
        self.weights = [p for p in parameters if p.ndim > 1 and _shorter_side(p) <= LARGEST_MATRIX]
        # a weight may change its memory format between steps, so that no view of it lasts: `step` makes them
        self.matrices = [nn.Parameter(weight.detach().flatten(1)) for weight in self.weights]
        self.muon = torch.optim.Muon(
            [{"params": self.matrices}], lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        groups = [{"params": others, "weight_decay": 0.0}, {"params": large, "weight_decay": weight_decay}]
        self.adamw = torch.optim.AdamW(groups, lr=lr, betas=MUON_BETAS, fused=_fusible(model))
        super().__init__([{"params": self.weights}, {"params": others}, {"params": large}], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient.

        Raises:
            ValueError: if given a closure, which nothing here needs.
        """
        if closure is not None:
            raise ValueError("this optimiser takes no closure")
        inner = (*self.muon.param_groups, *self.adamw.param_groups)
        for theirs, group in zip(inner, self.param_groups, strict=True):
            theirs["lr"] = group["lr"]
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.data = weight.detach().flatten(1)
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        self.muon.step()  # type: ignore[no-untyped-call]
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            weight.copy_(matrix.view(weight.shape))
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """Of both."""
        rates = [group["lr"] for group in self.param_groups]
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict(), "rates": rates}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        for group, rate in zip(self.param_groups, state_dict["rates"], strict=True):
            group["lr"] = rate


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The recipe's optimiser over all of a network's parameters."""
    fused = _fusible(model)
    if config.optimizer == "muon":
        return MuonAdamW(model, lr=config.max_lr, weight_decay=config.weight_decay)
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.max_lr, weight_decay=config.weight_decay, fused=fused)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.max_lr, momentum=MOMENTUM, nesterov=True, fused=fused)


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> LRScheduler:
    """The learning rate over `steps` steps in all."""
    if config.schedule == "one_cycle":
        turned = config.optimizer != "muon"  # its momentum stays
        return OneCycleLR(optimizer, max_lr=config.max_lr, total_steps=steps, cycle_momentum=turned)
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


def _fusible(model: nn.Module) -> bool:
    return next(model.parameters()).device.type in ("cpu", "cuda")


def _shorter_side(weight: Tensor) -> int:
    return min(weight.shape[0], math.prod(weight.shape[1:]))
