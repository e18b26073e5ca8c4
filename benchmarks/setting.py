"""What every benchmark starts from: its options, a dense network, its data; and how it ends: a table and a figure."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from netprune.data import Dataset, load_dataset
from netprune.errors import InputError
from netprune.files import write_whole
from netprune.models import Architecture, build_model
from netprune.recipes import TrainConfig
from netprune.training import train
from netprune.weights import load_weights, read_state_dict

CHOOSING = ("kept", "json", "data_dir", "quick", "seeds", "first_seed", "methods", "only", "workers")
"""Options that say which results there are to be, and not how each is measured."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A dense network and its data, on the device."""

    model: nn.Module
    dataset: Dataset
    options: argparse.Namespace


def parser(description: str, *, weights: bool = True) -> argparse.ArgumentParser:
    """The options that every benchmark has, and those of a dense network if it takes one."""
    made = argparse.ArgumentParser(description=description)
    if weights:
        made.add_argument("--weights", help="plain state dict of a Net10; default: one trained on the spot")
        made.add_argument("--width", type=int, default=16, help="channels of its first layer (default 16)")
    made.add_argument("--dataset", default="digits", help="digits, cifar10 or an image folder (default digits)")
    made.add_argument("--data-dir", default="~/.cache/netprune", help="where decoded data is kept")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--json", help="file for the figures")
    made.add_argument("--quick", action="store_true", help="a smaller run, in minutes")
    return made


class Kept(dict[str, Any]):
    """Single results by name, in the JSON file `--kept` if there is one, so that an interrupted run goes on.

    The file says how they were measured: the benchmark's options, but for those that choose which results.

    Raises:
        InputError: if the file is of other options, or of something else.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self._path = Path(options.kept).resolve() if options.kept else None
        self._how = {name: value for name, value in vars(options).items() if name not in CHOOSING}
        if self._path is None or not self._path.exists():
            return
        try:
            known = json.loads(self._path.read_text())
            how, results = known["options"], known["results"]
        except (ValueError, LookupError, TypeError):
            raise InputError(f"{options.kept} is not a file of results: give --kept another name.") from None
        other = [name for name in self._how if how.get(name) != self._how[name]]
        if other:
            raise InputError(
                f"{options.kept} has results of {other[0]}={how.get(other[0])}, not {self._how[other[0]]}: "
                f"give --kept another name."
            )
        self.update(results)

    def __setitem__(self, name: str, result: Any) -> None:
        super().__setitem__(name, result)
        if self._path:
            write_whole(self._path, json.dumps({"options": self._how, "results": self}, indent=1).encode())


def open_setting(options: argparse.Namespace) -> Setting:
    """Load or train the dense network."""
    dataset = load_dataset(options.dataset, options.data_dir).to(torch.device(options.device))
    model = build_model(Architecture(name="net10", num_classes=len(dataset.classes), width=options.width))
    model.to(options.device)
    if options.weights:
        load_weights(model, read_state_dict(options.weights))
    else:
        train(model, dataset, TrainConfig(epochs=5, batch_size=64))
    return Setting(model, dataset, options)


def require_counts(options: argparse.Namespace, *names: str) -> None:
    """Refuse options of which there must be at least one.

    Raises:
        InputError: naming the option.
    """
    for name in names:
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least 1.")


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; what its user did that cannot be done ends it in one sentence."""
    try:
        main()
    except InputError as error:
        raise SystemExit(f"Error: {error}") from None


def hardware(device: str) -> str:
    """The processor in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, torch {torch.__version__}"


def finish(options: argparse.Namespace, results: dict[str, Any], number: float | None, what: str) -> None:
    """Write the JSON file if one is asked for, and the last lines; no figure where there is nothing to compare."""
    results = {**results, "hardware": hardware(options.device), "options": vars(options), "figure": number, "of": what}
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))
    print(f"on {results['hardware']}")
    if number is not None:
        print(f"figure: {number:.3g} {what}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
