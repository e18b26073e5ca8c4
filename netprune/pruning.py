"""One candidate from start to end: prune, finetune, pack, and score the file."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from netprune.averaging import average
from netprune.callbacks import CHECK_IMAGES, NOBODY, Callbacks
from netprune.data import Dataset
from netprune.errors import InputError
from netprune.evaluation import Evaluation, evaluate
from netprune.gradients import gradients_for
from netprune.masks import Masks, Sparsity, apply_masks, make_masks, measured_sparsity
from netprune.packing import PackedHeader, pack, unpack
from netprune.quantise import Values
from netprune.recalibration import recalibrate
from netprune.recipes import FINETUNE, TrainConfig
from netprune.rounding import quantise_and_train
from netprune.saliency import find_saliency
from netprune.size import measure_size
from netprune.training import Held, train

HAD_STEPS = 10**6
"""To so many parts of an epoch earlier finetunings are told apart."""
RECALIBRATED = 512
"""Training images that batch statistics are taken on again before a finetuning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneConfig:
    """How a candidate is pruned, and how it recovers."""

    saliency: str = "magnitude"
    """Which weights of a layer go first: a name in `saliency.SALIENCIES`."""
    finetune: TrainConfig | None = None
    """The recipe; None for one-shot pruning. A codebook is trained after it: a quarter of an epoch more."""
    share: float = 1.0
    """Of the training images, in (0, 1], that the finetuning goes over; which ones, its seed says."""
    had: float = 0.0
    """Finetune epochs, at least 0, that the start has had with the same seed: the images go on where those ended, and
    order and crops are others."""
    values: Values = field(default_factory=Values)
    """How the packed file stores weights."""
    spared: tuple[str, ...] = ()
    """Names of weights in which storing them makes no further zeros: see `quantise.quantise`."""

    def __post_init__(self) -> None:
        find_saliency(self.saliency)
        if not 0 < self.share <= 1:
            raise InputError(f"share is {self.share}; it is of the training images, above 0 and at most 1.")
        if not 0 <= self.had < math.inf:
            raise InputError(f"had is {self.had}; it is in finetune epochs, at least 0.")

    def part(self, dataset: Dataset) -> Dataset:
        """The data set that the finetuning goes over."""
        if not self.finetune or self.share == 1:
            return dataset
        return dataset.part(self.share, seed=self.finetune.seed, after=self.had)

    @property
    def recipe(self) -> TrainConfig | None:
        """The finetuning's, with a seed of its own for what follows an earlier one."""
        if not self.finetune or not self.had:
            return self.finetune
        entropy = [self.finetune.seed, round(self.had * HAD_STEPS)]
        return replace(self.finetune, seed=int(np.random.SeedSequence(entropy).generate_state(1)[0]))


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneResult:
    """What one sparsity allocation came to."""

    asked: Mapping[str, float]
    """Weight name → sparsity that was asked for."""
    measured: Mapping[str, float]
    """Weight name → fraction of zeros in the packed file."""
    one_shot: Evaluation
    """Pruned, recalibrated and not finetuned, on the first validation images."""
    val: Evaluation
    """Validation of the packed file as loaded."""
    dense_bytes: int
    nonzero_bytes: int
    packed_bytes: int
    sparsity: float
    """Over all prunable weights."""
    seed: int
    """Of the finetuning; 0 where there was none."""
    seconds: Mapping[str, float]
    """Stage → wall-clock seconds."""


def finetuning(
    epochs: float,
    *,
    saliency: str = "magnitude",
    values: Values | None = None,
    batch_size: int = FINETUNE["batch_size"],
    seed: int = 0,
) -> PruneConfig:
    """A candidate's configuration with the finetune recipe, `recipes.FINETUNE`.

    Args:
        epochs: passes over the training images, 0 for pruning alone; part of one is one pass over as large a part of
            the images, 1.5 are two over three quarters of them.
        saliency: see `PruneConfig`.
        values: see `PruneConfig`; fp32 by default.
        batch_size: images a step.
        seed: of the finetuning.
    """
    whole = math.ceil(epochs)
    return PruneConfig(
        saliency=saliency,
        values=values or Values(),
        finetune=TrainConfig(**FINETUNE | {"epochs": whole, "batch_size": batch_size, "seed": seed}) if whole else None,
        share=epochs / whole if whole else 1.0,
    )


@dataclass(frozen=True, slots=True)
class Pruned:
    """A network pruned in one shot, and how."""

    model: nn.Module
    masks: Masks
    sparsity: Sparsity
    start: nn.Module
    """What it was before."""


def pruned_copy(
    dense: nn.Module,
    dataset: Dataset,
    sparsity: Sparsity,
    saliency: str = "magnitude",
    *,
    start: nn.Module | None = None,
) -> Pruned:
    """A copy of `dense` pruned in one shot; or of `start`.

    Args:
        dense: left as it is.
        dataset: for a criterion that goes by gradients.
        sparsity: layers that it does not name stay as they are.
        saliency: which weights of a layer go first.
        start: a network that `dense` was pruned to before, and finetuned: its zeros go first. Where it has fewer
            weights than are to stay, the largest of `dense` come back, as zeros that may learn.

    Raises:
        InputError: for an unknown criterion or layer, or a sparsity outside [0, 1].
    """
    criterion, before = find_saliency(saliency), dense if start is None else start
    model, gradients = copy.deepcopy(before), gradients_for(criterion, before, dataset)
    masks = make_masks(model, sparsity, criterion, gradients, dense=None if start is None else dense)
    apply_masks(model, masks)
    return Pruned(model, masks, sparsity, before)


def prune_and_finetune(
    dense: nn.Module,
    dataset: Dataset,
    sparsity: Sparsity,
    config: PruneConfig,
    *,
    start: nn.Module | None = None,
    callbacks: Callbacks = NOBODY,
) -> nn.Module:
    """A copy of `dense` (or of `start`: see `pruned_copy`), pruned and finetuned: also what to scan for the sensitivity
    of what is left.

    Damages measured on the dense network do not add up at high sparsity, and each saturates: once one layer's loss
    alone has made the network guess, the rest of that layer looks free, and an allocator that goes by damage gives the
    layer up. `scan` around a network that has been pruned part of the way and has recovered has curves that are steep
    again where it counts. They begin at the sparsities it has, so an allocation on them prunes no layer less: go about
    half the way, to twice the density that is wanted in the end.
    """
    pruned = pruned_copy(dense, dataset, sparsity, config.saliency, start=start)
    return _finetuned(dense, pruned, dataset, config, callbacks)


def _finetuned(
    dense: nn.Module, pruned: Pruned, dataset: Dataset, config: PruneConfig, callbacks: Callbacks
) -> nn.Module:
    """The pruned network, finetuned in place; if the recipe prunes by and by, a copy of its start, as sparse in the
    end."""
    recipe = config.recipe
    if recipe is None:
        return pruned.model
    if not recipe.gradual:
        held = Held(masks=pruned.masks, teacher=dense)
        train(pruned.model, config.part(dataset), recipe, held=held, callbacks=callbacks)
        return pruned.model
    model, criterion = copy.deepcopy(pruned.start), find_saliency(config.saliency)
    had = measured_sparsity(model)

    def rising(share: float) -> Masks:
        due = {name: had[name] + share * (value - had[name]) for name, value in pruned.sparsity.items()}
        return make_masks(model, due, criterion, gradients_for(criterion, model, dataset), dense=dense)

    train(model, config.part(dataset), recipe, held=Held(teacher=dense, rising=rising), callbacks=callbacks)
    return model


def prune_candidate(
    dense: nn.Module,
    dataset: Dataset,
    header: PackedHeader,
    sparsity: Sparsity,
    config: PruneConfig,
    *,
    start: nn.Module | None = None,
    callbacks: Callbacks = NOBODY,
) -> tuple[PruneResult, bytes]:
    """Prune a copy of `dense`, finetune it with the masks held, quantise, pack, and evaluate the file as it loads.

    Args:
        dense: left as it is; on the device that holds `dataset`.
        dataset: training and validation splits are used, never test.
        header: of the packed file.
        sparsity: layers that it does not name stay dense.
        config: see `PruneConfig`.
        start: a network to go on from in place of `dense`: see `pruned_copy`.
        callbacks: of the finetuning, if there is any; `on_check` is called before its first step too, with a share of
            0.

    Returns:
        The result and the packed file's bytes.

    Raises:
        InputError: for an unknown layer or a sparsity outside [0, 1].
        DivergedError: if finetuning diverges.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "prune"):
        pruned = pruned_copy(dense, dataset, sparsity, config.saliency, start=start)
    with _timed(seconds, "evaluate"):
        recalibrate(pruned.model, dataset, RECALIBRATED)
        one_shot = evaluate(pruned.model, dataset.val.first(CHECK_IMAGES), dataset)
    model = pruned.model
    if config.finetune is not None:
        if callbacks.on_check is not None:
            callbacks.on_check(0.0, one_shot)
        with _timed(seconds, "finetune"):
            model = _finetuned(dense, pruned, dataset, config, callbacks)
    if callbacks.on_finetuned is not None:
        callbacks.on_finetuned(model)
    return _shipped(_Recovered(model, one_shot, seconds), dense, dataset, header, sparsity, config)


def average_candidate(
    dense: nn.Module,
    dataset: Dataset,
    header: PackedHeader,
    sparsity: Sparsity,
    networks: Sequence[nn.Module],
    config: PruneConfig,
    *,
    callbacks: Callbacks = NOBODY,
) -> tuple[PruneResult, bytes]:
    """Average a candidate's networks, take batch statistics again, quantise, pack, and evaluate the file as it loads.

    Args:
        dense: left as it is; on the device that holds `dataset`.
        dataset: as for `prune_candidate`.
        header: of the packed file.
        sparsity: that the networks were pruned to.
        networks: finetuned from one start with seeds of their own, before rounding; left as they are.
        config: how they were finetuned; a codebook is trained anew.
        callbacks: `on_finetuned` is given the average before rounding.

    Returns:
        The result, whose `one_shot` is of the average before rounding; and the packed file's bytes.
    """
    seconds: dict[str, float] = {}
    model = average(networks)
    with _timed(seconds, "evaluate"):
        recalibrate(model, dataset)
        before = evaluate(model, dataset.val.first(CHECK_IMAGES), dataset)
    if callbacks.on_finetuned is not None:
        callbacks.on_finetuned(model)
    return _shipped(_Recovered(model, before, seconds), dense, dataset, header, sparsity, config)


@dataclass(frozen=True, slots=True)
class _Recovered:
    """A candidate's network before rounding, how good it was before that, and what it took so far."""

    model: nn.Module
    before: Evaluation
    seconds: dict[str, float]


def _shipped(
    recovered: _Recovered,
    dense: nn.Module,
    dataset: Dataset,
    header: PackedHeader,
    sparsity: Sparsity,
    config: PruneConfig,
) -> tuple[PruneResult, bytes]:
    """Round, pack and score the file."""
    model, seconds, device = recovered.model, recovered.seconds, next(dense.parameters()).device
    with _timed(seconds, "quantise"):
        quantise_and_train(model, dataset, config.values, finetune=config.finetune, teacher=dense, spared=config.spared)
    with _timed(seconds, "pack"):
        data = pack(model, header)
        # a file does not say how to build a network of the user's own class: it is loaded into one that is there; and
        # this one is from here, however large
        shipped = unpack(data, lambda _: copy.deepcopy(dense), max_bytes=sys.maxsize).model.to(device)
    with _timed(seconds, "evaluate"):
        val = evaluate(shipped, dataset.val, dataset)
    size = measure_size(shipped)
    result = PruneResult(
        asked=dict(sparsity),
        measured=measured_sparsity(shipped),
        one_shot=recovered.before,
        val=val,
        dense_bytes=size.dense_bytes,
        nonzero_bytes=size.nonzero_bytes,
        packed_bytes=len(data),
        sparsity=size.sparsity,
        seed=config.finetune.seed if config.finetune else 0,
        seconds=seconds,
    )
    return result, data


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
