"""The training loop, for a dense network and for finetuning a pruned one."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from netprune.compute import Compute
from netprune.data import Dataset
from netprune.errors import DivergedError, InputError
from netprune.evaluation import Evaluation, evaluate
from netprune.loader import normalise, steps_per_epoch, train_batches
from netprune.masks import Masks, apply_masks
from netprune.quantise import Labels, share_gradients


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The source document's recipe: Adam, one cycle, clipped gradients. The defaults are its figures.

    Raises:
        InputError: naming the option and its range.
    """

    epochs: int = 20
    """Passes over the training split, at least 1."""
    batch_size: int = 256
    """Images a step, at least 2 (batch normalisation needs two)."""
    max_lr: float = 0.01
    """Peak of the one-cycle learning rate, above 0."""
    weight_decay: float = 1e-4
    """Added to the gradient as a multiple of the weight (Adam's L2 form), at least 0."""
    grad_clip: float = 0.1
    """Each gradient value is clipped to ± this, above 0."""
    seed: int = 0
    """Order, crops, flips and dropout."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: forward passes of training in bfloat16 autocast and channels_last; weights, optimiser and validation stay
    fp32. Much faster where the processor has matrix units for it, much slower where it has not."""

    def __post_init__(self) -> None:
        rules = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "max_lr": (0 < self.max_lr < math.inf, "above 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "grad_clip": (self.grad_clip > 0, "above 0"),
            "precision": (self.precision in ("fp32", "bf16"), "fp32 or bf16"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {rule}.")


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


Snapshot = dict[str, Any]
"""All that `train` needs to go on: tensors, numbers and lists only, so `torch.load(weights_only=True)` reads it."""
OnEpoch = Callable[[EpochResult, Callable[[], Snapshot]], None]
"""Called after each epoch's validation; the second argument makes a snapshot when it is asked to."""
OnStep = Callable[[int, int], None]
"""Called after each step with the steps done and the steps in all."""


def train(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    *,
    masks: Masks | None = None,
    labels: Labels | None = None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    resume: Mapping[str, Any] | None = None,
) -> list[EpochResult]:
    """Train `model` in place, on the device that holds it and `dataset`.

    Args:
        model: left in the state of the last epoch, in train mode.
        dataset: its training split is learned, its validation split evaluated after each epoch.
        config: the recipe.
        masks: weights outside them are held at zero after every step, so the sparsity stays exact.
        labels: of codebooks: weights that share an entry go on sharing it.
        on_epoch: see `OnEpoch`.
        on_step: see `OnStep`.
        resume: a snapshot of an earlier `train` with the same arguments; the result equals the uninterrupted one's.

    Returns:
        One result an epoch, those before the snapshot not included.

    Raises:
        DivergedError: if the loss becomes infinite or not a number.
        InputError: if there are fewer than two training images.
    """
    if len(dataset.train) < 2:
        raise InputError(f"{dataset.name} has {len(dataset.train)} training images; training needs at least 2.")
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        loop = _Loop(model, dataset, config, masks or {}, labels or {})
        if resume is not None:
            loop.restore(resume)
        results = []
        while loop.epochs_done < config.epochs:
            results.append(loop.epoch(on_step))
            if on_epoch is not None:
                on_epoch(results[-1], loop.snapshot)
    return results


def seconds_per_epoch(model: nn.Module, dataset: Dataset) -> float:
    """About how long one epoch will take, from a few forward and backward passes of a copy; seconds of work at most.

    Batches grow from 16 images to 256 until one takes half a second: slow networks are known from the smallest.
    """
    probe = copy.deepcopy(model).train()
    images = normalise(dataset.train.images[:256], dataset)
    with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
        F.cross_entropy(probe(images[:16]), dataset.train.labels[:16]).backward()  # type: ignore[no-untyped-call]
        for count in (16, 64, 256):
            start = time.perf_counter()
            F.cross_entropy(probe(images[:count]), dataset.train.labels[:count]).backward()  # type: ignore[no-untyped-call]
            if images.device.type == "cuda":
                torch.cuda.synchronize(images.device)
            seconds = time.perf_counter() - start
            if seconds > 0.5:
                break
    return seconds / min(count, len(images)) * len(dataset.train)


class _Loop:
    """The moving parts of one training."""

    def __init__(self, model: nn.Module, dataset: Dataset, config: TrainConfig, masks: Masks, labels: Labels) -> None:
        self.model, self.dataset, self.config, self.masks, self.labels = model, dataset, config, masks, labels
        self.epochs_done, self.learning_rate = 0, 0.0
        bf16 = config.precision == "bf16"
        self.compute = Compute(bf16=bf16, channels_last=bf16, batch_size=config.batch_size)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=config.max_lr, weight_decay=config.weight_decay)
        self.steps = steps_per_epoch(len(dataset.train), config.batch_size)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=config.max_lr, epochs=config.epochs, steps_per_epoch=self.steps
        )

    def epoch(self, on_step: OnStep | None) -> EpochResult:
        start = time.perf_counter()
        self.model.train()
        self.model.to(memory_format=self.compute.memory_format)
        total = torch.zeros((), device=next(self.model.parameters()).device)
        batches = train_batches(self.dataset, self.config.batch_size, self.generator)
        for step, (images, labels) in enumerate(batches, start=1):
            with self.compute.active(images.device):
                loss = F.cross_entropy(self.model(self.compute.layout(images)), labels)
            self._step(loss)
            total += loss.detach()
            if on_step is not None:
                on_step(self.epochs_done * self.steps + step, self.config.epochs * self.steps)
        train_loss, seconds = total.item() / self.steps, time.perf_counter() - start
        self.model.to(memory_format=torch.contiguous_format)
        val = evaluate(self.model, self.dataset.val, self.dataset)
        self.epochs_done += 1
        if not (math.isfinite(train_loss) and math.isfinite(val.loss)):
            raise DivergedError(
                f"training diverged in epoch {self.epochs_done} (train loss {train_loss}, validation loss {val.loss}): "
                f"lower max_lr, which is {self.config.max_lr}."
            )
        return EpochResult(
            epoch=self.epochs_done,
            train_loss=train_loss,
            val=val,
            learning_rate=self.learning_rate,
            seconds=seconds,
        )

    def _step(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        share_gradients(self.model, self.labels)
        nn.utils.clip_grad_value_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        apply_masks(self.model, self.masks)
        self.learning_rate = float(self.scheduler.get_last_lr()[0])
        self.scheduler.step()

    def snapshot(self) -> Snapshot:
        device = next(self.model.parameters()).device
        return {
            # copies: the next step changes the tensors themselves
            "model": copy.deepcopy(self.model.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict(),
            "epochs_done": self.epochs_done,
            "order_state": self.generator.get_state(),
            "torch_state": torch.get_rng_state(),
            "cuda_state": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        self.model.load_state_dict(snapshot["model"])
        self.optimizer.load_state_dict(snapshot["optimizer"])
        self.scheduler.load_state_dict(snapshot["scheduler"])
        self.epochs_done = snapshot["epochs_done"]
        self.generator.set_state(snapshot["order_state"])
        torch.set_rng_state(snapshot["torch_state"])
        if snapshot["cuda_state"] is not None:
            torch.cuda.set_rng_state(snapshot["cuda_state"])
