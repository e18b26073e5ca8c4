"""Train a dense network, keep its checkpoints, log it as a model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from netprune.compute import Format
from netprune.data import Dataset
from netprune.errors import InputError
from netprune.evaluation import evaluate
from netprune.models import Architecture, build_model, load_weights, read_state_dict
from netprune.packing import pack
from netprune.precision import Precision, fit_to_device
from netprune.recipes import TrainConfig
from netprune.training import Callbacks, EpochResult, Snapshot, train
from sweeps import artifacts, interrupts, registry, tracking
from sweeps.progress import Progress, duration, report
from sweeps.stages.source import DataRequest, SourceRequest, header_for, open_data, short_name
from sweeps.table import percent

LAST, BEST = "last.pt", "best.pt"
CHECKPOINTS = "checkpoints"
NEWEST = "newest"
LONG_SECONDS = 30 * 60
SHORTEN = "Shorter: width=16, fewer epochs, dataset=digits, or device=cuda where there is a GPU."


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


def run_training(request: TrainRequest) -> TrainOutcome:
    """Train in a run of its own; the network of the best validation accuracy becomes the run's model.

    Raises:
        InputError: for data, weights or a resume that cannot be used; DivergedError among them.
    """
    data = request.data.resolved()
    state = read_state_dict(request.source.weights) if request.source.weights else None
    Architecture(name=request.source.model, num_classes=2, width=request.source.width)
    dataset, device = open_data(data)
    architecture = Architecture(name=request.source.model, num_classes=len(dataset.classes), width=request.source.width)
    model = build_model(architecture, seed=request.config.seed)
    if state is not None:
        load_weights(model, state, adapt_head=request.source.adapt_head)
    config = {
        **{name: value for name, value in asdict(request.config).items() if name != "format"},
        "precision": request.precision,
        "model": architecture.name,
        "width": architecture.width,
        "weights": request.source.weights,
        "dataset": data.dataset,
        "data_dir": data.data_dir,
        "device": str(device),
    }
    earlier = _interrupted(request.resume, config) if request.resume else None
    name = f"train {short_name(architecture)} on {Path(data.dataset).name}"
    tags = {"resumed_from": earlier.run_id} if earlier else {}
    run = tracking.tracked_run("train", name, config, tags=tags, system_metrics=True)
    with run as run_id, tempfile.TemporaryDirectory() as scratch:
        recipe, seconds = fit_to_device(model.to(device), dataset, request.config, request.precision)
        if earlier:  # as it was begun: another machine, or a noisy measurement, may choose otherwise
            recipe = replace(recipe, format=Format(**earlier.content["format"]))
        tracking.set_tags({"netprune.format": str(recipe.format)})
        report(_announcement(model, dataset, architecture, recipe, seconds))
        keeper = _Keeper(Path(scratch), config, recipe, earlier)
        with Progress(name, unit="image", each=recipe.batch_size) as progress:
            told = Callbacks(on_epoch=keeper, on_step=progress)
            train(model, dataset, recipe, callbacks=told, resume=earlier.content["snapshot"] if earlier else None)
        model.load_state_dict(keeper.best_state())
        mirrored = evaluate(model, dataset.val, dataset, mirrored=True) if dataset.flip else None
        if mirrored is not None:
            tracking.log_metrics({"mirrored_val_accuracy": mirrored.accuracy})
        model.cpu()
        header = header_for(architecture, dataset, model)
        uri = registry.log_model(pack(model, header), header, metadata={"weights_digest": header.dense_digest})
        return TrainOutcome(
            run_id, uri, keeper.best["epoch"], keeper.best["val_accuracy"], mirrored.accuracy if mirrored else None
        )


def _announcement(
    model: nn.Module, dataset: Dataset, architecture: Architecture, recipe: TrainConfig, epoch_seconds: float
) -> str:
    """What is going to be trained, and how to make it short where it would take over half an hour."""
    parameters = sum(p.numel() for p in model.parameters())
    device = next(model.parameters()).device
    line = (
        f"training {short_name(architecture)} ({parameters:,} parameters) on {len(dataset.train):,} images of "
        f"{dataset.name}, {recipe.epochs} epochs on {device} ({recipe.format})"
    )
    seconds = recipe.epochs * epoch_seconds
    return f"{line}\nthis will take about {duration(seconds)}. {SHORTEN}" if seconds > LONG_SECONDS else line


@dataclass(frozen=True, slots=True)
class _Interrupted:
    run_id: str
    content: dict[str, Any]


class _Keeper:
    """After each epoch: log its figures, and keep the last and the best checkpoint in the run."""

    def __init__(
        self, scratch: Path, config: dict[str, Any], recipe: TrainConfig, earlier: _Interrupted | None
    ) -> None:
        self.scratch, self.config, self.recipe = scratch, config, recipe
        self.best: dict[str, Any] = {"epoch": 0, "val_accuracy": -1.0}
        self.history: list[dict[str, float]] = []
        if earlier:
            self.best, self.history = earlier.content["best"], earlier.content["history"]
            for metrics in self.history:
                tracking.log_metrics(metrics, step=int(metrics["epoch"]))
            artifacts.fetch_artifact(earlier.run_id, f"{CHECKPOINTS}/{BEST}", scratch)
            artifacts.log_file(scratch / BEST, CHECKPOINTS)

    def __call__(self, result: EpochResult, snapshot: Callable[[], Snapshot]) -> None:
        metrics = {
            "epoch": float(result.epoch),
            "train_loss": result.train_loss,
            "val_loss": result.val.loss,
            "val_accuracy": result.val.accuracy,
            "val_accuracy_se": result.val.accuracy_se,
            "learning_rate": result.learning_rate,
            "epoch_seconds": result.seconds,
            "images_per_second": result.images_per_second,
        }
        self.history.append(metrics)
        state = snapshot()
        improved = result.val.accuracy > self.best["val_accuracy"]
        with interrupts.deferred():  # a checkpoint cut in half would be worse than a late stop
            if improved:
                self.best = {"epoch": result.epoch, "val_accuracy": result.val.accuracy}
                self._keep(state["model"], BEST)
            content = {
                "snapshot": state,
                "config": self.config,
                "format": asdict(self.recipe.format),
                "best": self.best,
                "history": self.history,
            }
            self._keep(content, LAST)
            tracking.log_metrics(metrics, step=result.epoch)
        left = result.seconds * (self.recipe.epochs - result.epoch)
        report(
            f"epoch {result.epoch}/{self.recipe.epochs}  train loss {result.train_loss:.4f}  "
            f"val loss {result.val.loss:.4f}  val {percent(result.val.accuracy)}  {duration(result.seconds)}  "
            f"{result.images_per_second:,.0f} images/s  about {duration(left)} left"
        )

    def best_state(self) -> dict[str, torch.Tensor]:
        return read_state_dict(self.scratch / BEST)

    def _keep(self, content: Any, name: str) -> None:
        torch.save(content, self.scratch / name)
        artifacts.log_file(self.scratch / name, CHECKPOINTS)


def _interrupted(run: str, config: dict[str, Any]) -> _Interrupted:
    """Find the interrupted training and check that it is the same one."""
    if run == NEWEST:
        found = tracking.find_runs({tracking.STAGE: "train"}, statuses=("KILLED", "FAILED", "RUNNING"))
        found = [f for f in found if "epoch" in f.metrics]
        if not found:
            raise InputError(
                "there is no interrupted training with a checkpoint in the store: start one without resume."
            )
        run = found[0].run_id
    with tempfile.TemporaryDirectory() as scratch:
        path = artifacts.fetch_artifact(run, f"{CHECKPOINTS}/{LAST}", Path(scratch))
        content = torch.load(path, map_location="cpu", weights_only=True)
    differing = [name for name, value in config.items() if content["config"].get(name) != value and name != "data_dir"]
    if differing:
        then, now = ({n: c.get(n) for n in differing} for c in (content["config"], config))
        raise InputError(f"run {run} was trained with {_pairs(then)}, not {_pairs(now)}: give it the same options.")
    if content["snapshot"]["epochs_done"] >= config["epochs"]:
        raise InputError(f"run {run} has done all its {config['epochs']} epochs: there is nothing to resume.")
    return _Interrupted(run, content)


def _pairs(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())
