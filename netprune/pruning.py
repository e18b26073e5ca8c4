"""A network pruned in one shot, and finetuned with the pruned weights held at zero."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from netprune.callbacks import NOBODY, Callbacks
from netprune.data import Dataset
from netprune.errors import InputError
from netprune.gradients import gradients_for
from netprune.masks import Masks, Sparsity, apply_masks, make_masks, measured_sparsity
from netprune.quantise import Values
from netprune.recipes import FINETUNE, TrainConfig
from netprune.saliency import find_saliency
from netprune.training import Held, train

HAD_STEPS = 10**6
"""To so many parts of an epoch earlier finetunings are told apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneConfig:
    """How a candidate is pruned, and how it recovers."""

    saliency: str = "magnitude"
    """Which weights of a layer go first: a name in `saliency.SALIENCIES`."""
    finetune: TrainConfig | None = None
    """The recipe; None for one-shot pruning. A codebook is trained after it: a tenth of an epoch more."""
    share: float = 1.0
    """Of the training images, in (0, 1], that the finetuning goes over."""
    order: int = 0
    """Seed of the order in which the images have their turn, where only a share of them has: one for all finetunings
    that go on from each other."""
    had: float = 0.0
    """Finetune epochs, at least 0, that are over, of the start or of others that began there: this one goes on with the
    images that come next, and its seed gives it batches and crops of its own."""
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

    @property
    def epochs(self) -> float:
        """Passes over all training images that the finetuning takes, at least 0; less than 1 for a share of them."""
        return self.finetune.epochs * self.share if self.finetune else 0.0

    def part(self, dataset: Dataset) -> Dataset:
        """The data set that the finetuning goes over."""
        if not self.finetune or self.share == 1:
            return dataset
        return dataset.part(self.share, seed=self.order, after=self.had / self.finetune.epochs)

    @property
    def recipe(self) -> TrainConfig | None:
        """The finetuning's, with a seed of its own for what follows an earlier one."""
        if not self.finetune or not self.had:
            return self.finetune
        entropy = [self.finetune.seed, round(self.had * HAD_STEPS)]
        return replace(self.finetune, seed=int(np.random.SeedSequence(entropy).generate_state(1)[0]))


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
        seed: of the finetuning, and of the order of images.
    """
    whole = math.ceil(epochs)
    return PruneConfig(
        saliency=saliency,
        values=values or Values(),
        finetune=TrainConfig(**FINETUNE | {"epochs": whole, "batch_size": batch_size, "seed": seed}) if whole else None,
        share=epochs / whole if whole else 1.0,
        order=seed,
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
    return finetuned(dense, pruned, dataset, config, callbacks)


def finetuned(
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
