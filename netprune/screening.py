"""How good an allocation is before any training: prune, take the batch statistics again, look at some images.

A pruned network without finetuning guesses, and its raw loss says nothing about how it will recover (rank correlation
with the accuracy after one finetune epoch between −0.3 and 0.8 with the wrong sign, README). Most of the damage is that
the batch statistics are those of another network: with new ones the accuracy ranks allocations of few weights as a
finetuning would (Li et al. 2020, EagleEye, arXiv:2007.02491). Of many weights, or where it finds two about as good, it
does not tell which is better (README, results log).
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netprune.compute import FEW_IMAGES, Format, runs_in
from netprune.data import Dataset
from netprune.evaluation import eval_mode
from netprune.gradients import gradients_for
from netprune.loader import batch_for, normalise
from netprune.masks import Sparsity, apply_masks, prune_order, pruned_count
from netprune.recalibration import recalibrate
from netprune.saliency import find_saliency, score
from netprune.weights import prunable_weights

IMAGES, RECALIBRATED, BATCH = 1024, 512, 512
SHARPNESSES = (0.05, 0.1, 0.2, 0.35, 0.6, 1.0)


class Screen:
    """Ranks allocations of one network; nothing is trained, and no validation image is looked at."""

    def __init__(self, dense: nn.Module, dataset: Dataset, saliency: str = "magnitude") -> None:
        """Rank the weights once, so that each allocation costs forward passes only.

        Args:
            dense: left as it is; on the device that holds `dataset`.
            dataset: the first of its training images are used.
            saliency: which weights of a layer go first.

        Raises:
            InputError: for an unknown criterion.
        """
        self.dense, self.dataset = dense, dataset
        criterion = find_saliency(saliency)
        scores = score(criterion, prunable_weights(dense), gradients_for(criterion, dense, dataset))
        # int32 is half of int64, for networks of up to two thousand million weights a layer
        self.orders = {name: prune_order(scored).to(torch.int32) for name, scored in scores.items()}
        split, fastest = dataset.train.first(IMAGES), Format(channels_last=True)
        few = normalise(split.images[:FEW_IMAGES], dataset)
        self.format = fastest if runs_in(copy.deepcopy(dense).eval(), few, fastest) else Format()
        self.images, self.labels = split.images, split.labels  # as bytes: large ones would be gigabytes of numbers

    @torch.no_grad()
    def __call__(self, sparsity: Sparsity) -> float:
        """The loss, in nats, that is left after recalibration; lower is better.

        Of outputs scaled by the best of a few factors: what counts is the order of the classes, and pruning changes how
        sure a network sounds.
        """
        model = copy.deepcopy(self.dense)
        masks = {n: self.orders[n] >= pruned_count(self.orders[n].numel(), value) for n, value in sparsity.items()}
        apply_masks(model, masks)
        return self.left(model)

    @torch.no_grad()
    def left(self, model: nn.Module) -> float:
        """The same for a network that has been pruned already, and may have been finetuned; recalibrated in place."""
        model.to(memory_format=self.format.memory_format)
        recalibrate(model, self.dataset, RECALIBRATED)
        size = batch_for(self.dataset.image_size, BATCH)
        with eval_mode(model):
            batches = (normalise(part, self.dataset) for part in torch.split(self.images, size))
            logits = torch.cat([model(self.format.layout(batch)) for batch in batches])
        least = min(self._loss(logits * sharpness) for sharpness in SHARPNESSES)
        return least if math.isfinite(least) else math.inf  # a network that divides by nothing: NaN compares as no less

    def _loss(self, logits: Tensor) -> float:
        return F.cross_entropy(logits, self.labels).item()
