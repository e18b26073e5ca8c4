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
ADAMW_BETAS = (0.9, 0.99)
MUON_MOMENTUM = 0.95
ADAMW_SIZE = 0.2
"""The root mean square of a step of AdamW, in learning rates."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
TINY = 1e-7
LARGEST_MATRIX = 2048
WIDE = 2
"""How many times as wide as high a matrix is that is orthogonalised by its gram matrix."""


class MuonAdamW(torch.optim.Optimizer):
    """Muon for weights, each as a matrix with a row an output channel; torch's AdamW for all other parameters.

    Muon's step is the momentum with all its singular values brought near one (Jordan 2024,
    kellerjordan.github.io/posts/muon), scaled so that its size is that of a step of AdamW (arXiv:2502.16982): one
    learning rate serves both. Matrices whose shorter side is above 2,048 (VGG16's first linear layers) go by AdamW: the
    products that bring out singular values would cost more than all passes. Decay is decoupled, and of weights alone.

    torch's own Muon takes no convolutions, and computes in bfloat16 whatever the device, which many processors do many
    times slower than fp32.
    """

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float) -> None:
        parameters = list(model.parameters())
        weights = [p for p in parameters if p.ndim > 1 and _shorter_side(p) <= LARGEST_MATRIX]
        large = [p for p in parameters if p.ndim > 1 and _shorter_side(p) > LARGEST_MATRIX]
        others = [p for p in parameters if p.ndim <= 1]
        by_adamw = [{"params": large, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(by_adamw, lr=lr, betas=ADAMW_BETAS, fused=_fusible(model))
        self.directions: dict[Tensor, Tensor] = {}
        self.prepared = False
        own: dict[str, Any] = {"params": weights, "weight_decay": weight_decay}
        super().__init__([own, {"params": large}, {"params": others}], {"lr": lr})

    def prepare(self) -> None:
        """The part of a step that neither rate nor decay change, so that a recording (`recording`) may hold it.

        Momenta move, and each weight gets its direction. From then on `step` goes by the directions found last; if this
        is never called, it finds them itself.
        """
        self.prepared = True
        self._find_directions()

    @torch.no_grad()
    def _find_directions(self) -> None:
        self.directions = {}
        for weight in self.param_groups[0]["params"]:
            if weight.grad is None:
                continue
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
            momentum = self.state[weight]["momentum"].lerp_(weight.grad, 1 - MUON_MOMENTUM)
            aim = weight.grad.lerp(momentum, MUON_MOMENTUM)
            # columns in the order of memory: singular values do not hang on it, and nothing need be moved
            channels_last = aim.ndim == 4 and not aim.is_contiguous()
            rows = aim.permute(0, 2, 3, 1) if channels_last else aim
            step = orthogonalised(rows.flatten(1))
            step = (step * (ADAMW_SIZE * math.sqrt(max(step.shape)))).view(rows.shape)
            self.directions[weight] = step.permute(0, 3, 1, 2) if channels_last else step

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient.

        Raises:
            ValueError: if given a closure, which nothing here needs.
        """
        if closure is not None:
            raise ValueError("this optimiser takes no closure")
        own, *others = self.param_groups
        if not self.prepared:
            self._find_directions()
        weights, directions = list(self.directions), list(self.directions.values())
        if weights:
            torch._foreach_mul_(weights, 1 - own["lr"] * own["weight_decay"])
            torch._foreach_add_(weights, directions, alpha=-own["lr"])
        for theirs, group in zip(self.adamw.param_groups, others, strict=True):
            theirs["lr"] = group["lr"]
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """Of both."""
        return {**super().state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "adamw"})
        self.adamw.load_state_dict(state_dict["adamw"])


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix with its singular values brought to between about 0.5 and 1.5, by five Newton–Schulz steps.

    In bfloat16 on a GPU, in fp32 elsewhere. Of a matrix of zeros, zeros.

    Args:
        matrix: fp32 `(rows, columns)`.
    """
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=TINY)
    wide = x.dtype == torch.float32 and x.shape[1] >= WIDE * x.shape[0]
    x = _by_gram(x) if wide else _by_steps(x)
    return (x.T if tall else x).float()


def _by_steps(x: Tensor) -> Tensor:
    for _ in range(NEWTON_SCHULZ_STEPS):
        x = _polynomial(x @ x.T) @ x
    return x


def _by_gram(x: Tensor) -> Tensor:
    """The same, by products of the short side alone but for the first and the last.

    Each step multiplies x by a polynomial p of its gram matrix G = x xᵀ, which becomes p G p: all of them commute.
    Wide matrices take less time (a convolution's are four to nine times as wide as they are high: a third to a half of
    it). Half precision would lose the small singular values, which G has squared.
    """
    gram = x @ x.T
    product = polynomial = _polynomial(gram)
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        gram = polynomial @ gram @ polynomial
        polynomial = _polynomial(gram)
        product = polynomial @ product
    return product @ x


def _polynomial(gram: Tensor) -> Tensor:
    a, b, c = NEWTON_SCHULZ
    made = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    made.diagonal().add_(a)
    return made


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
