"""One candidate from start to end: prune, finetune, pack, and score the file."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from netprune.averaging import average
from netprune.callbacks import CHECK_IMAGES, NOBODY, Callbacks
from netprune.data import Dataset
from netprune.evaluation import Evaluation, evaluate
from netprune.header import PackedHeader
from netprune.masks import Sparsity, measured_sparsity
from netprune.packing import pack, unpack
from netprune.pruning import PruneConfig, finetuned, pruned_copy
from netprune.recalibration import recalibrate
from netprune.rounding import quantise_and_train
from netprune.size import measure_size

RECALIBRATED = 512
"""Training images that batch statistics are taken on again before a finetuning."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is pruned."""

    dense: nn.Module
    """Left as it is; on the device that holds `dataset`."""
    dataset: Dataset
    """Training and validation splits are used, never test."""
    header: PackedHeader
    """Of the packed file."""


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


def prune_candidate(
    subject: Subject,
    sparsity: Sparsity,
    config: PruneConfig,
    *,
    start: nn.Module | None = None,
    callbacks: Callbacks = NOBODY,
) -> tuple[PruneResult, bytes]:
    """Prune a copy of the dense network, finetune it with its masks held, quantise, pack, and score the loaded file.

    Args:
        subject: the dense network and its images.
        sparsity: layers that it does not name stay dense.
        config: see `PruneConfig`.
        start: a network to go on from in place of the dense one: see `pruned_copy`.
        callbacks: of the finetuning, if there is any; `on_check` is called before its first step too, with a share of
            0.

    Returns:
        The result and the packed file's bytes.

    Raises:
        InputError: for an unknown layer or a sparsity outside [0, 1].
        DivergedError: if finetuning diverges.
    """
    dense, dataset = subject.dense, subject.dataset
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
            model = finetuned(dense, pruned, dataset, config, callbacks)
    if callbacks.on_finetuned is not None:
        callbacks.on_finetuned(model)
    return _shipped(_Recovered(model, one_shot, seconds), subject, sparsity, config)


def average_candidate(
    subject: Subject,
    sparsity: Sparsity,
    networks: Sequence[nn.Module],
    config: PruneConfig,
    *,
    callbacks: Callbacks = NOBODY,
) -> tuple[PruneResult, bytes]:
    """Average a candidate's networks, take batch statistics again, quantise, pack, and evaluate the file as it loads.

    Args:
        subject: the dense network and its images.
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
        recalibrate(model, subject.dataset)
        before = evaluate(model, subject.dataset.val.first(CHECK_IMAGES), subject.dataset)
    if callbacks.on_finetuned is not None:
        callbacks.on_finetuned(model)
    return _shipped(_Recovered(model, before, seconds), subject, sparsity, config)


@dataclass(frozen=True, slots=True)
class _Recovered:
    """A candidate's network before rounding, how good it was before that, and what it took so far."""

    model: nn.Module
    before: Evaluation
    seconds: dict[str, float]


def _shipped(
    recovered: _Recovered, subject: Subject, sparsity: Sparsity, config: PruneConfig
) -> tuple[PruneResult, bytes]:
    """Round, pack and score the file."""
    dense, dataset, model, seconds = subject.dense, subject.dataset, recovered.model, recovered.seconds
    with _timed(seconds, "quantise"):
        quantise_and_train(model, dataset, config.values, finetune=config.finetune, teacher=dense, spared=config.spared)
    with _timed(seconds, "pack"):
        data = pack(model, subject.header)
        # a file does not say how to build a network of the user's own class: it is loaded into one that is there; and
        # this one is from here, however large
        shipped = unpack(data, lambda _: copy.deepcopy(dense), max_bytes=sys.maxsize).model
        shipped.to(next(dense.parameters()).device)
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
