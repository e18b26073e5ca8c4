"""Train a dense network, keep its checkpoints, log it as a model."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from netprune.bounds import find_bounds
from netprune.callbacks import Callbacks, Snapshot
from netprune.compute import Format
from netprune.data import Dataset
from netprune.distributed import ALONE, Team
from netprune.evaluation import evaluate
from netprune.header import header_for
from netprune.models import Architecture
from netprune.packing import pack
from netprune.precision import Precision, fit_to_device
from netprune.recipes import TrainConfig
from netprune.training import train
from netprune.weights import load_weights, read_state_dict
from sweeps import interrupts, processes, registry, tracking
from sweeps.inputs import check_data, log_data
from sweeps.progress import Progress, duration, report
from sweeps.stages.checkpoints import RESUMED_FROM, Interrupted, Keeper, check_network, interrupted_training
from sweeps.stages.data import NORMALISATION, DataRequest, open_data
from sweeps.stages.source import SourceRequest, check_model, new_network, short_name

RECIPE_OPTIONS = ("epochs", "batch_size", "max_lr", "weight_decay", "grad_clip", "seed")
"""Figures of a recipe that the command has options for."""
LONG_SECONDS = 30 * 60
SHORTEN = "Shorter: width=16, fewer epochs, dataset=digits, or device=cuda where there is a GPU."
REST_SECONDS = 1.0
NOISE = 0.3
"""Processors that a machine may have in use without anybody's doing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRequest:
    """What to train, on what, and how."""

    data: DataRequest
    source: SourceRequest
    """Architecture, and the weights to start from if there are any."""
    config: TrainConfig
    """The recipe; its format is chosen on the device."""
    precision: Precision = "auto"
    resume: str = ""
    """Run id of an interrupted training, `newest`, or empty."""


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """A trained network in the store."""

    run_id: str
    model_uri: str
    best_epoch: int
    val_accuracy: float
    """Of the best epoch, in [0, 1]."""
    mirrored_val_accuracy: float | None
    """The same with the outputs for each image and its mirror image averaged; None for data that is not mirrored."""


def run_training(request: TrainRequest, team: Team = ALONE) -> TrainOutcome:
    """Train in a run of its own; the network of the best validation accuracy becomes the run's model.

    Of several processes it is the first that calls this, and the others that call `assist_training`.

    Raises:
        InputError: for data, weights or a resume that cannot be used; DivergedError among them.
    """
    data = request.data.resolved()
    ready = _prepare(request, team)
    model, dataset = ready.model, ready.dataset
    config = {
        **{name: value for name, value in asdict(request.config).items() if name != "format"},
        "precision": request.precision,
        "model": request.source.model,
        "width": request.source.width,
        "weights": request.source.weights,
        "adapt_head": request.source.adapt_head,
        "dataset": data.dataset,
        "image_size": data.image_size,
        "data_dir": data.data_dir,
        **{name: data.normalised.get(name, "") for name in NORMALISATION},
        "device": str(ready.device),
        "processes": team.size,
    }
    earlier = interrupted_training(request.resume, config) if request.resume else None
    if earlier:
        check_data(dataset, earlier.run_id, f"run {earlier.run_id}")
        check_network(model, earlier)
    name = f"train {ready.short_name} on {Path(data.dataset).name}"
    tags = {RESUMED_FROM: earlier.run_id} if earlier else {}
    run = tracking.tracked_run("train", name, config, tags=tags, system_metrics=True)
    with run as run_id, team.united(), tempfile.TemporaryDirectory() as scratch:
        log_data(ready.dataset, data.data_dir, ("train", "val"))
        recipe, seconds, snapshot = team.from_first(lambda: _plan(ready, request, team, earlier))
        tracking.set_tags({"netprune.format": str(recipe.format)})
        report(_announcement(ready, recipe, seconds, team))
        keeper = Keeper(Path(scratch), config, recipe, earlier)
        with Progress(name, unit="image", each=recipe.batch_size) as progress:
            told = Callbacks(on_epoch=keeper, on_step=progress)
            train(model, dataset, recipe, callbacks=told, resume=snapshot)
        model.load_state_dict(keeper.best_state())
        mirrored = evaluate(model, dataset.val, dataset, mirrored=True) if dataset.flip else None
        if mirrored is not None:
            tracking.log({"mirrored_val_accuracy": mirrored.accuracy})
        model.cpu()
        header = header_for(model, dataset, ready.architecture)
        told_apart = {"weights_digest": header.dense_digest}
        uri = registry.log_model(pack(model, header), header, own=request.source.own, metadata=told_apart)
        return TrainOutcome(
            run_id, uri, keeper.best["epoch"], keeper.best["val_accuracy"], mirrored.accuracy if mirrored else None
        )


def assist_training(request: TrainRequest, team: Team) -> None:
    """Be any process of a training but the first: train with the others, and touch neither store nor terminal.

    Raises:
        InputError: what ends the first process, ElsewhereError among them.
    """
    ready = _prepare(request, team)
    recipe, _, snapshot = team.from_first(lambda: _plan(ready, request, team, None))  # which is the first's own
    told = Callbacks(on_step=lambda *_: interrupts.check())
    train(ready.model, ready.dataset, recipe, callbacks=told, resume=snapshot)


@dataclass(frozen=True, slots=True)
class _Ready:
    """What a process trains, on what."""

    model: nn.Module
    """With its first weights, on the device; as is the data."""
    dataset: Dataset
    architecture: Architecture | None
    """None for a network of the user's own class."""
    short_name: str
    device: torch.device


def _prepare(request: TrainRequest, team: Team) -> _Ready:
    team.check_batch(request.config.batch_size)
    source = request.source
    state = team.from_first(lambda: read_state_dict(source.weights) if source.weights else None)
    check_model(source)
    dataset, device = open_data(request.data.resolved(), team)
    model, architecture = new_network(source, dataset, request.config.seed)
    find_bounds(model, source.keep, source.limit)  # of a pipeline: refused now, and not after the training
    if state is not None:
        load_weights(model, state, adapt_head=source.adapt_head)
    return _Ready(model.to(device), dataset, architecture, short_name(architecture, source.own), device)


def _plan(
    ready: _Ready, request: TrainRequest, team: Team, earlier: Interrupted | None
) -> tuple[TrainConfig, float, Snapshot | None]:
    """What the first process finds out for all: the recipe in its format, seconds an epoch, and where to go on."""
    share = replace(request.config, batch_size=math.ceil(request.config.batch_size / team.size))
    fitted, seconds = fit_to_device(ready.model, ready.dataset, share, request.precision)
    # a training goes on as it was begun: another machine, or a noisy measurement, may choose otherwise
    form = Format(**earlier.content["format"]) if earlier else fitted.format
    snapshot = earlier.content["snapshot"] if earlier else None
    return replace(request.config, format=form), seconds / team.size, snapshot


def _announcement(ready: _Ready, recipe: TrainConfig, epoch_seconds: float, team: Team) -> str:
    """What is going to be trained; where it would take over half an hour, how to make it short, and what slows it."""
    parameters = sum(p.numel() for p in ready.model.parameters())
    device = f"{next(ready.model.parameters()).device}{'' if team.alone else f' in {team.size} processes'}"
    line = (
        f"training {ready.short_name} ({parameters:,} parameters) on {len(ready.dataset.train):,} images "
        f"of {ready.dataset.name}, {recipe.epochs} epochs on {device} ({recipe.format})"
    )
    seconds = recipe.epochs * epoch_seconds
    if seconds <= LONG_SECONDS:
        return line
    return f"{line}\nthis will take about {duration(seconds)}. {SHORTEN}{_others(ready.device) if team.alone else ''}"


def _others(device: torch.device) -> str:
    """What to say of others that a training in one process on a CPU shares its processors with."""
    if device.type != "cpu":
        return ""
    count, taken = os.cpu_count() or 1, processes.processors_taken(REST_SECONDS)
    if taken + torch.get_num_threads() <= count + NOISE:
        return ""
    return (
        f"\nother processes use {taken:.1f} of the {count} processors: without them it is faster, and --precision auto "
        f"may choose another format"
    )
