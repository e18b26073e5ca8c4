"""Learning from a teacher: how far a network's outputs are from those of another."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 4.0


def distillation_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """How far outputs are from a teacher's, in nats: T² KL(softmax(wanted / T) ‖ softmax(logits / T)), T = 4.

    Hinton, Vinyals & Dean 2015 (arXiv:1503.02531); T² keeps the gradient's size.

    Args:
        logits: `(N, classes)`.
        wanted: the teacher's, of the same shape.
    """
    ours, theirs = (F.log_softmax(value.float() / TEMPERATURE, dim=1) for value in (logits, wanted))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * TEMPERATURE**2
