"""What a training tells on the way, and to whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from netprune.evaluation import Evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochResult:
    """What one epoch gave."""

    epoch: int
    """From 1."""
    train_loss: float
    """Mean over the epoch's steps, augmented images, in nats."""
    val: Evaluation
    learning_rate: float
    """Of the epoch's last step."""
    seconds: float
    """Training alone, without validation."""

    images_per_second: float
    """Training alone."""


Snapshot = dict[str, Any]
"""All that `train` needs to go on: tensors, numbers and lists only, so `torch.load(weights_only=True)` reads it. Under
`model` is the state dict of the network that was validated."""
OnEpoch = Callable[[EpochResult, Callable[[], Snapshot]], None]
"""Called after each epoch's validation; the second argument makes a snapshot when it is asked to."""
OnStep = Callable[[int, int], None]
"""Called after each step with the steps done and the steps in all."""
OnCheck = Callable[[float, Evaluation], None]
"""Called at a check with the share of all steps that is done and the evaluation on the first validation images. What it
raises ends the training there."""
CHECK_IMAGES = 1000
"""Validation images of a check: the first ones, always the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Callbacks:
    """Who is told how far a training is."""

    on_epoch: OnEpoch | None = None
    on_step: OnStep | None = None
    on_check: OnCheck | None = None
    checks: tuple[float, ...] = ()
    """Shares of all steps, each in (0, 1), after which `on_check` is called."""
    on_finetuned: Callable[[nn.Module], None] | None = None
    """Called by `candidate.prune_candidate` with the finetuned network, and by `candidate.average_candidate` with the
    average, before values are rounded."""


NOBODY = Callbacks()
