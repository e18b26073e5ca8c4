"""How a network is trained: one recipe's figures, and the recipes that have names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from netprune.compute import Format
from netprune.errors import InputError

SEEDS = 2**63
"""How many seeds there are: torch takes twice as many, which leaves room for what epochs and processes add."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One recipe. The defaults are the source document's: Adam, one cycle, clipped gradients.

    Raises:
        InputError: naming the option and its range.
    """

    epochs: int = 20
    """Passes over the training split, at least 1."""
    batch_size: int = 256
    """Images a step, at least 2 (batch normalisation needs two)."""
    optimizer: Literal["adam", "sgd", "muon"] = "adam"
    """`sgd`: Nesterov momentum of 0.9, and no decay of biases and normalisation. `muon`: see `MuonAdamW`."""
    max_lr: float = 0.01
    """Peak of the learning rate, above 0."""
    schedule: Literal["one_cycle", "linear"] = "one_cycle"
    """`one_cycle`: torch's, which turns momentum the other way. `linear`: up for `warm_up` of the steps, down to 0."""
    warm_up: float = 0.2
    """Share of the steps before the peak of a linear schedule, in [0, 1)."""
    weight_decay: float = 1e-4
    """At least 0. Added to the gradient as a multiple of the weight (the L2 form); Muon's is decoupled from it."""
    grad_clip: float = 0.1
    """Each gradient value is clipped to ± this, above 0; infinite for no clipping."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, in [0, 1)."""
    alternating_flip: bool = False
    """Mirror each image in every second epoch, from a random start, instead of at random."""
    crop_padding: int = 4
    """Pixels, by reflection, around an image before its size is cut out of that at random, from 0 to 31; `train` needs
    fewer than an image's side has."""
    dropout: float | None = None
    """Probability, in [0, 1), of the network's dropout layers while it is trained; None for what they have."""
    ema: float = 0.0
    """Decay a step, in [0, 1), of the average of the weights that is validated and given back; 0 for none."""
    distillation: float = 0.0
    """Share of the loss that is the divergence from a teacher's outputs, in [0, 1]; above 0 it needs a teacher."""
    gradual: float = 0.0
    """Share of the steps, in [0, 1), over which a finetuning's sparsity rises; 0 prunes in one shot before it."""
    seed: int = 0
    """Order, crops, flips and dropout; from 0 to 2⁶³ − 1."""
    format: Format = field(default_factory=Format)
    """Of training passes; weights, optimiser and validation stay fp32."""

    def __post_init__(self) -> None:
        rules = {
            "epochs": (isinstance(self.epochs, int) and self.epochs >= 1, "a whole number, at least 1"),
            "batch_size": (isinstance(self.batch_size, int) and self.batch_size >= 2, "a whole number, at least 2"),
            "optimizer": (self.optimizer in ("adam", "sgd", "muon"), "adam, sgd or muon"),
            "max_lr": (0 < self.max_lr < math.inf, "above 0"),
            "schedule": (self.schedule in ("one_cycle", "linear"), "one_cycle or linear"),
            "warm_up": (0 <= self.warm_up < 1, "from 0 to below 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "grad_clip": (self.grad_clip > 0, "above 0"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "from 0 to below 1"),
            "crop_padding": (0 <= self.crop_padding < 32, "from 0 to 31"),
            "dropout": (self.dropout is None or 0 <= self.dropout < 1, "from 0 to below 1"),
            "ema": (0 <= self.ema < 1, "from 0 to below 1"),
            "distillation": (0 <= self.distillation <= 1, "from 0 to 1"),
            "gradual": (0 <= self.gradual < 1, "from 0 to below 1"),
            "seed": (isinstance(self.seed, int) and 0 <= self.seed < SEEDS, f"a whole number from 0 to {SEEDS - 1}"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {rule}.")


RECIPES: dict[str, dict[str, Any]] = {
    "document": {},
    "fast": {
        "epochs": 10,
        "batch_size": 128,
        "optimizer": "muon",
        "schedule": "linear",
        "weight_decay": 0.05,
        "grad_clip": math.inf,
        "label_smoothing": 0.1,
        "alternating_flip": True,
        "crop_padding": 2,
        "dropout": 0.0,
    },
}
"""Name → what differs from `TrainConfig`'s defaults."""

FINETUNE: dict[str, Any] = {
    "batch_size": 64,
    "optimizer": "muon",
    "max_lr": 0.005,
    "schedule": "linear",
    "weight_decay": 0.05,
    "grad_clip": math.inf,
    "crop_padding": 2,
    "dropout": 0.0,
    "distillation": 0.5,
}
"""The same for a pruned network, with the dense one as its teacher. A low peak, because finetunings follow each other:
one of 0.01 throws away what the one before has brought (README, results log)."""


def recipe(name: str, **changes: Any) -> TrainConfig:
    """A named recipe, with some of its figures changed.

    Raises:
        InputError: for an unknown name, or a figure out of its range.

    >>> recipe("document") == TrainConfig()
    True
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}: choose one of {', '.join(RECIPES)}.")
    return TrainConfig(**RECIPES[name] | changes)
