"""The honest rival of a pruned network: a small dense Net10 whose file has as many bytes, trained from scratch.

Its width is the largest whose file, with weights of the same format, is not above `--bytes`: by normally distributed
weights before any training, so that the file of the trained one may be some percent off. A codebook is trained after
the training, as it is after a finetuning.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import torch
from torch import nn

from benchmarks.setting import finish, parser, print_table, run
from netprune.data import Dataset, load_dataset
from netprune.errors import InputError
from netprune.evaluation import evaluate
from netprune.header import header_for
from netprune.models import Architecture, build_model
from netprune.packing import pack, unpack
from netprune.precision import PRECISIONS, fit_to_device
from netprune.quantise import Values, quantise
from netprune.recipes import FINETUNE, RECIPES, TrainConfig, recipe
from netprune.rounding import quantise_and_train
from netprune.training import train
from netprune.weights import prunable_weights


@dataclasses.dataclass(frozen=True, slots=True)
class Rival:
    """One trained network; accuracies in percent."""

    val: float
    test: float
    packed_bytes: int


def _net10(width: int, dataset: Dataset) -> Architecture:
    return Architecture(name="net10", num_classes=len(dataset.classes), width=width)


def file_bytes(width: int, dataset: Dataset, values: Values) -> int:
    """About as long as the file of a trained network."""
    architecture = _net10(width, dataset)
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # the same each time
        torch.manual_seed(0)
        model = build_model(architecture)
        for weight in prunable_weights(model).values():
            nn.init.normal_(weight, std=0.05)
    quantise(model, values)
    return len(pack(model, header_for(model, dataset, architecture)))


def widest(size_bytes: int, dataset: Dataset, values: Values) -> int:
    """The largest width whose file is not above a size."""
    least, above = 0, 1
    while file_bytes(above, dataset, values) <= size_bytes:  # upwards, because wide ones take long to pack
        least, above = above, 2 * above
    if not least:
        raise InputError(f"no Net10 has a file of {size_bytes:,} bytes: ask for more.")
    while above - least > 1:
        middle = (least + above) // 2
        least, above = (middle, above) if file_bytes(middle, dataset, values) <= size_bytes else (least, middle)
    return least


def trained(width: int, dataset: Dataset, config: TrainConfig, values: Values, device: str) -> Rival:
    """Trained, rounded, packed, and measured as it loads. Test is looked at and nothing is chosen by it."""
    architecture = _net10(width, dataset)
    torch.manual_seed(config.seed)
    model = build_model(architecture).to(device)
    train(model, dataset, config)
    finetune = dataclasses.replace(config, batch_size=FINETUNE["batch_size"], epochs=1)
    quantise_and_train(model, dataset, values, finetune=finetune)
    data = pack(model, header_for(model, dataset, architecture))
    shipped = unpack(data).model.to(device)
    val, test = (100 * evaluate(shipped, split, dataset).accuracy for split in (dataset.val, dataset.test))
    return Rival(val, test, len(data))


def main() -> None:
    options = _options()
    dataset = load_dataset(options.dataset, options.data_dir).to(torch.device(options.device))
    values = Values.parse(options.values)
    width = widest(options.bytes, dataset, values)
    found = []
    for seed in range(options.seeds):
        config = recipe(options.recipe, epochs=options.epochs, seed=seed)
        fitted, _ = fit_to_device(
            build_model(_net10(width, dataset)).to(options.device), dataset, config, options.precision
        )
        found.append(trained(width, dataset, fitted, values, options.device))
        print(f"seed {seed}: {found[-1]}", flush=True)
    columns = {name: [getattr(one, name) for one in found] for name in ("val", "test", "packed_bytes")}
    spread = {name: np.std(each, ddof=1) if len(each) > 1 else 0.0 for name, each in columns.items()}
    cells = [f"{np.mean(columns[name]):.2f} ± {spread[name]:.2f}" for name in ("val", "test")]
    row = [str(width), options.values, *cells, f"{np.mean(columns['packed_bytes']):,.0f}"]
    print_table(["width", "values", "val", "test", "packed bytes"], [row])
    print(f"in percent, mean ± std over {options.seeds} seeds; {options.recipe!r} for {options.epochs} epochs")
    record = {"width": width, "results": [dataclasses.asdict(one) for one in found]}
    finish(options, record, float(np.mean(columns["val"])), f"percent of validation at {options.bytes:,} bytes wanted")


def _options() -> argparse.Namespace:
    made = parser(__doc__ or "", weights=False)
    made.add_argument("--bytes", type=int, required=True, help="of the pruned network's file")
    made.add_argument("--values", default="fp32", help="fp32, fp16, int8 or codebook:2 to 8 (default fp32)")
    made.add_argument("--recipe", default="fast", choices=RECIPES, help="of the training (default fast)")
    made.add_argument("--epochs", type=int, help="of training (default 10, quick 2)")
    made.add_argument("--seeds", type=int, default=1, help="of everything (default 1)")
    made.add_argument("--precision", choices=PRECISIONS, default="auto")
    options = made.parse_args()
    if options.epochs is None:
        options.epochs = 2 if options.quick else 10
    return options


if __name__ == "__main__":
    run(main)
