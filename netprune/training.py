"""The training loop, for a dense network and for finetuning a pruned one."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim.swa_utils import AveragedModel

from netprune import distributed
from netprune.averaging import moving_average
from netprune.callbacks import CHECK_IMAGES, NOBODY, Callbacks, EpochResult, Snapshot
from netprune.data import Dataset, Split
from netprune.distillation import distillation_loss
from netprune.errors import DivergedError, InputError
from netprune.evaluation import Evaluation, evaluate
from netprune.loader import batch_sizes, normalise, train_batches
from netprune.masks import Masks, apply_masks
from netprune.optimizers import MuonAdamW, make_optimizer, make_schedule
from netprune.quantise import Labels, share_gradients
from netprune.recipes import TrainConfig
from netprune.recording import Recorded, recordable
from netprune.shares import seed_generators

RISES = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """What a finetuning holds on to."""

    masks: Masks = field(default_factory=dict)
    """Weights outside them are held at zero after every step, so the sparsity stays exact."""
    labels: Labels = field(default_factory=dict)
    """Of codebooks: weights that share an entry go on sharing it."""
    teacher: nn.Module | None = None
    """The network whose outputs a recipe with distillation goes by; left alone."""
    rising: Callable[[float], Masks] | None = None
    """For a recipe with gradual sparsity, in place of `masks`: how much of the sparsity is due, in (0, 1] → masks of
    the network as it is then. What is pruned already has to stay so."""


NOTHING = Held()


def train(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    *,
    held: Held = NOTHING,
    callbacks: Callbacks = NOBODY,
    resume: Mapping[str, Any] | None = None,
) -> list[EpochResult]:
    """Train `model` in place, on the device that holds it and `dataset`.

    In a process group (`distributed.joined`) every process calls this with the same arguments (`on_epoch` and `on_step`
    may differ), takes its share of each batch and ends with the same weights; the first evaluates for all.

    Args:
        model: left in the state of the last epoch (the averaged one, if the recipe averages), in train mode.
        dataset: its training split is learned, its validation split evaluated after each epoch.
        config: the recipe.
        held: see `Held`.
        callbacks: see `callbacks.Callbacks`.
        resume: a snapshot of an earlier `train` with the same arguments; the result equals the uninterrupted one's.

    Returns:
        One result an epoch, those before the snapshot not included.

    Raises:
        DivergedError: if the loss becomes infinite or not a number.
        InputError: if there are fewer than two training images, they are no larger than the recipe's padding, a teacher
            or rising masks are missing, or batches are too small to be shared.
    """
    if len(dataset.train) < 2:
        raise InputError(f"{dataset.name} has {len(dataset.train)} training images; training needs at least 2.")
    if config.crop_padding >= dataset.image_size:
        side = dataset.image_size
        raise InputError(f"crop_padding is {config.crop_padding}; for images of {side}×{side} it must be below {side}.")
    if config.distillation and held.teacher is None:
        raise InputError(f"distillation is {config.distillation}, and there is no teacher to learn from.")
    if config.gradual and held.rising is None:
        raise InputError(f"gradual is {config.gradual}, and there are no rising masks to go by.")
    distributed.team().check_batch(config.batch_size)
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _dropout(model, config.dropout):
        seed_generators(config.seed, device)
        loop = _Loop(model, dataset, config, held)
        if resume is not None:
            loop.restore(resume)
        results = []
        try:
            while loop.epochs_done < config.epochs:
                results.append(loop.epoch(callbacks))
                if callbacks.on_epoch is not None:
                    callbacks.on_epoch(results[-1], loop.snapshot)
        finally:
            loop.recorded = None  # the two hold each other, and a GPU's memory would wait for the garbage collector
        if loop.average is not None:
            model.load_state_dict(loop.average.module.state_dict())
    return results


@contextmanager
def _dropout(model: nn.Module, probability: float | None) -> Iterator[None]:
    """The network's dropout layers have this probability inside, and their own again after it."""
    own = {layer: layer.p for layer in model.modules() if isinstance(layer, _DropoutNd)}
    for layer in own:
        layer.p = layer.p if probability is None else probability
    try:
        yield
    finally:
        for layer, before in own.items():
            layer.p = before


class _Loop:
    """The moving parts of one training."""

    def __init__(self, model: nn.Module, dataset: Dataset, config: TrainConfig, held: Held) -> None:
        self.model, self.dataset, self.config, self.held = model, dataset, config, held
        self.team = distributed.team()
        self.epochs_done, self.steps_done, self.learning_rate = 0, 0, 0.0
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimizer = make_optimizer(model, config)
        self.sizes = batch_sizes(len(dataset.train), config.batch_size)
        self.steps = len(self.sizes)
        self.scheduler = make_schedule(self.optimizer, config, config.epochs * self.steps)
        self.rising_steps = config.gradual * config.epochs * self.steps
        self.masks: Masks = held.masks
        self._rise()
        # the first epoch's mirrored images where flips alternate: a draw of its own, so that resuming needs no state
        own = torch.Generator().manual_seed(config.seed)
        self.mirrored = torch.rand(len(dataset.train), generator=own) < 0.5
        self.average = None
        if config.ema:
            self.average = AveragedModel(model, multi_avg_fn=moving_average(config.ema), use_buffers=True)
        self.teacher = copy.deepcopy(held.teacher).eval() if held.teacher is not None and config.distillation else None
        run = self.team.wrapped(model, config.format.memory_format, normalise(dataset.train.first(2).images, dataset))
        self.run = torch.compile(run) if config.format.compiled else run
        networks = [model] if self.teacher is None else [model, self.teacher]
        # codebooks' shared gradients wait for the GPU, which a recording cannot
        replays = self.team.alone and not (config.format.compiled or held.labels) and recordable(*networks)
        self.recorded = Recorded(self._passes, self._clear) if replays else None

    @property
    def validated(self) -> nn.Module:
        """The network that counts: the average, if there is one."""
        return self.model if self.average is None else self.average.module

    def epoch(self, callbacks: Callbacks) -> EpochResult:
        """One pass over the training images, and validation."""
        start, config = time.perf_counter(), self.config
        device = next(self.model.parameters()).device
        self.team.reseed(config.seed, self.epochs_done, device)
        self._lay_out(config.format.memory_format)
        if self.recorded is not None:
            self.recorded.forget()  # the layout has moved the weights
        self.model.train()
        flips = self.mirrored ^ bool(self.epochs_done % 2) if config.alternating_flip else None
        batches = train_batches(
            self.dataset, config.batch_size, self.generator, padding=config.crop_padding, flips=flips, place=self.team
        )
        total = torch.zeros((), device=device)
        for (images, labels), size in zip(batches, self.sizes, strict=True):
            total += self._step(images, labels, self.team.weight(size))
            if callbacks.on_step is not None:
                callbacks.on_step(self.steps_done, config.epochs * self.steps)
            self._check(callbacks)
        train_loss, seconds = self.team.mean(total).item() / self.steps, time.perf_counter() - start
        self._lay_out(torch.contiguous_format)
        val = self._evaluate(self.dataset.val)
        self.epochs_done += 1
        if not (math.isfinite(train_loss) and math.isfinite(val.loss)):
            raise DivergedError(
                f"training diverged in epoch {self.epochs_done} (train loss {train_loss}, validation loss {val.loss}): "
                f"lower max_lr, which is {config.max_lr}."
            )
        return EpochResult(
            epoch=self.epochs_done,
            train_loss=train_loss,
            val=val,
            learning_rate=self.learning_rate,
            seconds=seconds,
            images_per_second=min(self.steps * config.batch_size, len(self.dataset.train)) / seconds,
        )

    def _check(self, callbacks: Callbacks) -> None:
        if callbacks.on_check is None:
            return
        for share in callbacks.checks:
            if self.steps_done == math.ceil(share * self.config.epochs * self.steps):
                split = self.dataset.val.first(CHECK_IMAGES)
                callbacks.on_check(share, self._evaluate(split))

    def _evaluate(self, split: Split) -> Evaluation:
        for network in dict.fromkeys((self.model, self.validated)):
            self.team.equalise(network)
        return self.team.from_first(lambda: evaluate(self.validated, split, self.dataset))

    def _lay_out(self, memory_format: torch.memory_format) -> None:
        for network in (self.model, self.teacher):
            if network is not None:
                network.to(memory_format=memory_format)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with self.config.format.active(images.device):
            logits = self.run(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
            if self.teacher is None:
                return loss
            with torch.no_grad():
                wanted = self.teacher(images)
            return torch.lerp(loss, distillation_loss(logits, wanted), self.config.distillation)

    def _passes(self, images: Tensor, labels: Tensor, weight: float = 1.0) -> Tensor:
        """The loss; leaves the gradients, and what the optimiser makes of them whatever its rate, for `_step`."""
        loss = self._loss(self.config.format.layout(images), labels) * weight
        loss.backward()  # type: ignore[no-untyped-call]
        share_gradients(self.model, self.held.labels)
        if math.isfinite(self.config.grad_clip):
            nn.utils.clip_grad_value_(self.model.parameters(), self.config.grad_clip)
        if isinstance(self.optimizer, MuonAdamW):
            self.optimizer.prepare()
        return loss.detach()

    def _clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def _step(self, images: Tensor, labels: Tensor, weight: float) -> Tensor:
        """Train on one batch, and give its loss."""
        if self.recorded is not None:
            loss = self.recorded(images, labels)
        else:
            self._clear()
            loss = self._passes(images, labels, weight)
        self.optimizer.step()
        self.steps_done += 1
        self._rise()
        apply_masks(self.model, self.masks)
        self.learning_rate = float(self.scheduler.get_last_lr()[0])
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
            apply_masks(self.average.module, self.masks)  # what was pruned on the way is in the average still
        return loss

    def _rise(self) -> None:
        """New masks where they are due, twenty times in all: s (1 − (1 − t)³) at a share t of the way.

        Zhu & Gupta 2017 (arXiv:1710.01878).
        """
        if not self.rising_steps or self.held.rising is None:
            return
        before, now = (min(RISES, int(RISES * n / self.rising_steps)) for n in (self.steps_done - 1, self.steps_done))
        if now > before or not self.masks:
            self.masks = self.held.rising(1 - (1 - max(now, 1) / RISES) ** 3)

    def snapshot(self) -> Snapshot:
        """See `Snapshot`."""
        device = next(self.model.parameters()).device
        # copies: the next step changes the tensors themselves
        return {
            "model": copy.deepcopy(self.validated.state_dict()),
            "live": copy.deepcopy(self.model.state_dict()) if self.average is not None else None,
            "averaged": int(self.average.n_averaged) if self.average is not None else 0,
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict(),
            "epochs_done": self.epochs_done,
            "order_state": self.generator.get_state(),
            "torch_state": torch.get_rng_state(),
            "cuda_state": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.model.load_state_dict(snapshot["model"] if snapshot["live"] is None else snapshot["live"])
        if self.average is not None:
            self.average.module.load_state_dict(snapshot["model"])
            self.average.n_averaged.fill_(snapshot["averaged"])
        self.optimizer.load_state_dict(snapshot["optimizer"])
        self.scheduler.load_state_dict(snapshot["scheduler"])
        self.epochs_done = snapshot["epochs_done"]
        self.steps_done = self.epochs_done * self.steps
        self.masks = self.held.masks
        self._rise()  # zeros go first again: the same masks
        self.generator.set_state(snapshot["order_state"])
        torch.set_rng_state(snapshot["torch_state"])
        if snapshot["cuda_state"] is not None:
            torch.cuda.set_rng_state(snapshot["cuda_state"], next(self.model.parameters()).device)
