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
from netprune.models import Architecture, build_model, load_weights, read_state_dict
from netprune.recipes import TrainConfig
from netprune.training import train


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


def finish(options: argparse.Namespace, results: dict[str, Any], number: float, what: str) -> None:
    """Write the JSON file if one is asked for, and the last line."""
    results = {**results, "hardware": hardware(options.device), "options": vars(options), "figure": number, "of": what}
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))
    print(f"on {results['hardware']}")
    print(f"figure: {number:.3g} {what}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
