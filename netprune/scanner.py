"""The scan: prune one layer alone, by more and more, and measure what it does to the loss."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netprune.compute import Compute, choose_compute
from netprune.data import Dataset
from netprune.errors import InputError
from netprune.evaluation import EVAL_BATCH, image_losses, standard_error, summarise
from netprune.gradients import gradients_for
from netprune.grid import density_grid, density_of, distinct, midpoints
from netprune.loader import batch_for, normalise
from netprune.masks import check_sparsity, keep_mask, prune_order, pruned_count
from netprune.saliency import Saliency, magnitude, score
from netprune.scan_record import Point, ScanRecord
from netprune.sensitivity import LayerCurve, Sensitivity
from netprune.tracing import PrefixReuse, Rest, WholePasses, reuse_prefix
from netprune.weights import prunable_weights, weights_digest

REFINEMENTS = 2
RELATIVE_SE = 0.05
ROUND_IMAGES = 256
"""That each point is measured on at least; and that are measured in one go, of 32×32 pixels (`batch_for`)."""
TRIAL_IMAGES = 4
PROBE_POOL = 512
"""To choose a batch size from, of 32×32 pixels; larger images are fewer."""
CHECK_IMAGES = 256
DENSE: Point = ("", 0.0)
OnPoint = Callable[[int, int], None]
"""Called after each measurement with the points that are done and the points known so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanConfig:
    """What to measure, and how sharply.

    Raises:
        InputError: naming the option and its range.
    """

    sparsities: tuple[float, ...] = ()
    """The same for every layer, rising, in (0, 1]; empty: log-spaced in density down to 0.1 % of what the layer has
    now, refined where the curve bends, and 1."""
    max_se: float = 0.02
    """Each point takes as many images as bring the paired standard error of its damage below this, in nats, or below
    5 % of the damage where that is more; 0 takes them all."""
    precision: Literal["auto", "fp32"] = "auto"
    """`auto`: what a short measurement finds fastest. `fp32`: the bits of a whole pass."""
    layers: tuple[str, ...] = ()
    """Names of the weights that are measured; empty: all that can be pruned."""

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in itertools.pairwise(self.sparsities))
        if not (rising and all(0 < s <= 1 for s in self.sparsities)):
            raise InputError(f"the scan's sparsities are {self.sparsities}; they must rise, above 0 and up to 1.")
        if not 0 <= self.max_se < math.inf:
            raise InputError(f"max_se is {self.max_se}; it is in nats, at least 0.")
        if self.precision not in ("auto", "fp32"):
            raise InputError(f"precision is {self.precision!r}; choose auto or fp32.")


def scan(
    model: nn.Module,
    dataset: Dataset,
    config: ScanConfig | None = None,
    *,
    saliency: Saliency = magnitude,
    record: ScanRecord | None = None,
    on_point: OnPoint | None = None,
) -> Sensitivity:
    """Prune each weight tensor alone, by more and more, and evaluate on the validation split.

    What comes before the layer is computed once for a batch of images (`tracing.PrefixReuse`). Everything happens on a
    copy, and torch's random state is put back: `model` is untouched whatever comes in between.

    A network that is pruned already is scanned from where it is: the grid's densities are fractions of the nonzero
    weights that a layer still has, and damage is against the network as given.

    Args:
        model: on the device that holds `dataset`.
        dataset: its validation split is used.
        config: see `ScanConfig`.
        saliency: which weights of the layer go first.
        record: what an interrupted scan of the same network, data, criterion and `config` left; it is filled further.
        on_point: see `OnPoint`.
    """
    devices = [t.device for t in model.parameters() if t.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        scanner = _Scanner(model, dataset, config or ScanConfig(), saliency, record or ScanRecord(), on_point)
        scanner.run()
        return scanner.result(weights_digest(model), dataset.val_digest())


class _Scanner:
    """The moving parts of one scan."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        config: ScanConfig,
        saliency: Saliency,
        record: ScanRecord,
        on_point: OnPoint | None,
    ) -> None:
        self.dataset, self.config, self.record, self.on_point = dataset, config, record, on_point
        self.runner: PrefixReuse | WholePasses = reuse_prefix(model, self._images(0, TRIAL_IMAGES))
        self.record.compute = self.compute = record.compute or self._choose_compute()
        self.runner.model.to(memory_format=self.compute.memory_format)
        check_sparsity(dict.fromkeys(config.layers, 0.0), model)
        every = prunable_weights(self.runner.model)
        self.weights = {name: every[name] for name in every if name in config.layers or not config.layers}
        self.dense = {name: weight.clone() for name, weight in self.weights.items()}
        scores = score(saliency, self.weights, gradients_for(saliency, model, dataset))
        self.order = {name: prune_order(scored) for name, scored in scores.items()}
        asked = [float(s) for s in config.sparsities]
        self.points = {name: asked or density_grid(weight) for name, weight in self.weights.items()}
        self.finished = {point for point in self.record.losses if point != DENSE and self._is_done(point)}

    def run(self) -> None:
        """Measure the grid, then twice what its bends ask for."""
        self._measure_all()
        for _ in range(0 if self.config.sparsities else REFINEMENTS):
            self._refine()
            self._measure_all()

    def result(self, digest: str, val_digest: str) -> Sensitivity:
        """The curves of all that was measured."""
        curves = tuple(self._curve(layer) for layer in self.weights)
        most = max(int(curve.count.max()) for curve in curves)
        points = [(layer, s) for layer, known in self.points.items() for s in known]
        return Sensitivity(
            curves=curves,
            baseline=summarise(self.record.losses[DENSE][:most], self.record.right[DENSE][:most]),
            split="val",
            val_digest=val_digest,
            digest=digest,
            max_se=self.config.max_se,
            missed=sum(not self._sharp(point) for point in points) if self.config.max_se else 0,
            compute=str(self.compute),
            whole_passes=self.runner.reason,
        )

    def _measure_all(self) -> None:
        while waiting := self._waiting():
            self._round(min(map(self.record.count, waiting)), waiting)

    def _waiting(self) -> list[Point]:
        return [(layer, s) for layer, known in self.points.items() for s in known if (layer, s) not in self.finished]

    def _is_done(self, point: Point) -> bool:
        return self.record.count(point) == len(self.dataset.val) or self._sharp(point)

    def _sharp(self, point: Point) -> bool:
        """Whether enough images have been seen; no number of them makes a damage finite that is not."""
        count = self.record.count(point)
        if count < min(ROUND_IMAGES, len(self.dataset.val)) or not self.config.max_se:
            return False
        damage = self._differences(point)
        mean = damage.double().mean().item()
        return not math.isfinite(mean) or standard_error(damage) <= max(self.config.max_se, RELATIVE_SE * mean)

    def _differences(self, point: Point) -> Tensor:
        losses = self.record.losses[point]
        return losses - self.record.losses[DENSE][: len(losses)]

    def _round(self, start: int, waiting: Iterable[Point]) -> None:
        """Measure the points that have come as far as image `start` on the next images."""
        size = self.compute.batch_size
        batches_a_round = max(1, batch_for(self.dataset.image_size, ROUND_IMAGES) // size)
        stop = min(len(self.dataset.val), start + batches_a_round * size)
        labels = torch.split(self.dataset.val.labels[start:stop], size)
        batches = [self.compute.layout(batch) for batch in torch.split(self._images(start, stop), size)]
        here = {layer: [s for name, s in waiting if name == layer] for layer in self.weights}
        here = {k: [s for s in v if self.record.count((k, s)) == start] for k, v in here.items()}
        with self.compute.active(batches[0].device):
            for layer, rest in self.runner.stages(batches):
                if self.record.count(DENSE) == start:  # the first layer's rest, while nothing is pruned
                    self._measure(DENSE, rest, labels)
                if layer not in self.weights:
                    continue
                for sparsity in here[layer]:
                    self._prune(layer, sparsity)
                    self._measure((layer, sparsity), rest, labels)
                self.weights[layer].copy_(self.dense[layer])

    def _prune(self, layer: str, sparsity: float) -> None:
        gone = self.order[layer] < pruned_count(self.dense[layer].numel(), sparsity)
        self.weights[layer].copy_(self.dense[layer]).masked_fill_(gone, 0.0)

    def _measure(self, point: Point, rest: Rest, labels: Sequence[Tensor]) -> None:
        losses, right = [], []
        for i, wanted in enumerate(labels):
            logits = rest(i).float()
            losses.append(F.cross_entropy(logits, wanted, reduction="none"))
            right.append(logits.argmax(1) == wanted)
        self.record.add(point, torch.cat(losses), torch.cat(right))
        if point != DENSE and self._is_done(point):
            self.finished.add(point)
        if self.on_point is not None:
            known = {(layer, s) for layer, sparsities in self.points.items() for s in sparsities}
            self.on_point(len(self.finished & known), len(known))

    def _curve(self, layer: str) -> LayerCurve:
        known = sorted(self.points[layer])
        losses = [self.record.losses[layer, s] for s in known]
        differences = [self._differences((layer, s)) for s in known]
        means = [summarise(loss, self.record.right[layer, s]) for loss, s in zip(losses, known, strict=True)]
        return LayerCurve(
            layer=layer,
            size=self.dense[layer].numel(),
            start=1 - density_of(self.dense[layer]),
            sparsities=np.array(known),
            loss=np.array([e.loss for e in means]),
            damage=np.array([d.double().mean().item() for d in differences]),
            damage_se=np.array([standard_error(d) for d in differences]),
            accuracy=np.array([e.accuracy for e in means]),
            accuracy_se=np.array([e.accuracy_se for e in means]),
            count=np.array([len(loss) for loss in losses]),
            changed=np.array([bool(d.any()) for d in differences]),
        )

    def _refine(self) -> None:
        """Add points on both sides of each bend."""
        classes = len(self.dataset.classes)
        added = {k: midpoints(self._curve(k), density_of(self.dense[k]), classes) for k in self.weights}
        for layer, new in added.items():
            self.points[layer] = distinct([*self.points[layer], *new], self.dense[layer])

    def _images(self, start: int, stop: int) -> Tensor:
        return normalise(self.dataset.val.between(start, stop), self.dataset)

    def _choose_compute(self) -> Compute:
        if self.config.precision == "fp32":
            return Compute(batch_size=batch_for(self.dataset.image_size, EVAL_BATCH))
        images = self._images(0, batch_for(self.dataset.image_size, PROBE_POOL))
        way = choose_compute(self.runner.model, images)
        return choose_compute(self.runner.model, images, bf16=False) if way.bf16 and not self._agrees(way) else way

    def _agrees(self, way: Compute) -> bool:
        """Whether the number format leaves accuracy within its standard error: dense, and with every layer halved."""
        halved = copy.deepcopy(self.runner.model)
        for weight in prunable_weights(halved).values():
            weight.masked_fill_(~keep_mask(magnitude(weight), 0.5), 0.0)
        split = self.dataset.val.first(CHECK_IMAGES)
        for model in (self.runner.model, halved):
            plain = summarise(*image_losses(model, split, self.dataset))
            with way.active(split.labels.device):
                other = summarise(*image_losses(model, split, self.dataset))
            if abs(plain.accuracy - other.accuracy) > plain.accuracy_se:
                return False
        return True
