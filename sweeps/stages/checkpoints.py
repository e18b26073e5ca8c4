"""A training's checkpoints: kept after each epoch, and found again to go on from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from netprune.callbacks import EpochResult, Snapshot
from netprune.errors import InputError
from netprune.recipes import TrainConfig
from netprune.weights import differing_head, read_state_dict
from sweeps import artifacts, interrupts, tracking
from sweeps.progress import duration, report
from sweeps.table import percent

LAST, BEST = "last.pt", "best.pt"
CHECKPOINTS = "checkpoints"
NEWEST = "newest"
INTERRUPTED, RESUMED_FROM = ("KILLED", "FAILED"), "resumed_from"


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A training that ended before its last epoch."""

    run_id: str
    content: dict[str, Any]
    """Of its last checkpoint: `snapshot` (of `netprune.training`), `config`, `format`, `best` and `history`."""


class Keeper:
    """After each epoch: log its figures, and keep the last and the best checkpoint in the run."""

    def __init__(self, scratch: Path, config: dict[str, Any], recipe: TrainConfig, earlier: Interrupted | None) -> None:
        self.scratch, self.config, self.recipe = scratch, config, recipe
        self.best: dict[str, Any] = {"epoch": 0, "val_accuracy": -1.0}
        self.history: list[dict[str, float]] = []
        if earlier:
            self.best, self.history = earlier.content["best"], earlier.content["history"]
            artifacts.fetch_artifact(earlier.run_id, f"{CHECKPOINTS}/{BEST}", scratch)
            artifacts.log_file(scratch / BEST, CHECKPOINTS)
            self._keep(earlier.content, LAST)
            for metrics in self.history:  # last: what has an epoch's figures has checkpoints
                tracking.log(metrics, step=int(metrics["epoch"]))

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
            tracking.log(metrics, step=result.epoch)
        left = result.seconds * (self.recipe.epochs - result.epoch)
        report(
            f"epoch {result.epoch}/{self.recipe.epochs}  train loss {result.train_loss:.4f}  "
            f"val loss {result.val.loss:.4f}  val {percent(result.val.accuracy)}  {duration(result.seconds)}  "
            f"{result.images_per_second:,.0f} images/s  about {duration(left)} left"
        )

    def best_state(self) -> dict[str, torch.Tensor]:
        """The weights of the epoch with the best validation accuracy."""
        return read_state_dict(self.scratch / BEST)

    def _keep(self, content: Any, name: str) -> None:
        torch.save(content, self.scratch / name)
        artifacts.log_file(self.scratch / name, CHECKPOINTS)


def interrupted_training(run: str, config: dict[str, Any]) -> Interrupted:
    """Find the interrupted training and check that it is the same one.

    Args:
        run: its run id, or `newest`.
        config: the options that it is to go on with.

    Raises:
        InputError: if there is none, it has finished, or it had other options.
    """
    if run == NEWEST:
        run = _newest(config)
    elif tracking.find_run(run).status == "FINISHED":
        raise InputError(f"run {run} has finished: there is nothing to resume.")
    with tempfile.TemporaryDirectory() as scratch:
        path = artifacts.fetch_artifact(run, f"{CHECKPOINTS}/{LAST}", Path(scratch))
        content = torch.load(path, map_location="cpu", weights_only=True)
    begun = content["config"]
    differing = [name for name, value in config.items() if begun.get(name) != value and name != "data_dir"]
    if differing:
        then, now = ({n: c.get(n) for n in differing} for c in (begun, config))
        raise InputError(f"run {run} was trained with {_pairs(then)}, not {_pairs(now)}: give it the same options.")
    return Interrupted(run, content)


def check_network(model: nn.Module, earlier: Interrupted) -> None:
    """Refuse to go on with another network: the user's own code may have been changed since.

    Raises:
        InputError: if its layers are others than the checkpoint's.
    """
    state = earlier.content["snapshot"]["model"]
    try:
        same = not differing_head(model, {name: tensor.shape for name, tensor in state.items()})
    except InputError:
        same = False
    if not same:
        raise InputError(
            f"run {earlier.run_id} trained a network of other layers than its function builds now: put the code back "
            f"as it was, or start without resume."
        )


def _newest(config: dict[str, Any]) -> str:
    """The run id of the newest interrupted training of this configuration; of any, if there is none of this.

    One that another has gone on with is out of it. So is one that is RUNNING: of this machine's dead ones `open_store`
    has closed the runs.
    """
    every = tracking.find_runs({tracking.STAGE: "train"}, statuses=(*INTERRUPTED, "FINISHED", "RUNNING"))
    begun = [run for run in every if "epoch" in run.metrics]
    followed = {run.tags.get(RESUMED_FROM) for run in begun}
    found = [run for run in begun if run.status in INTERRUPTED and run.run_id not in followed]
    if not found:
        raise InputError("there is no interrupted training with a checkpoint in the store: start one without resume.")
    wanted = {f"train.{name}": str(value) for name, value in config.items() if name != "data_dir"}
    same = [run for run in found if wanted.items() <= run.params.items()]
    return (same or found)[0].run_id


def _pairs(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())
