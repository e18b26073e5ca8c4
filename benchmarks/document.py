"""The source document's last table again: its own allocation, 0.6 for the first layer and 0.9 for the rest.

Dense, pruned, with batch statistics taken again, and finetuned by the search's recipe: accuracy, the document's count
of bytes (nonzero values, no positions), and the packed file with all that a load needs. The document's network, of
width 128, had 91.62 % in 10.05 % of the bytes after pruning and 92.05 % after finetuning, dense 91.81 %.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses

import numpy as np
from torch import nn

from benchmarks.setting import Setting, finish, open_setting, parser, print_table, run
from netprune.allocation import Basis, allocation_from
from netprune.candidate import Subject, prune_candidate
from netprune.evaluation import evaluate
from netprune.header import PackedHeader, header_for
from netprune.models import Architecture
from netprune.packing import pack, unpack
from netprune.precision import PRECISIONS, fit_to_device
from netprune.pruning import finetuning, pruned_copy
from netprune.recalibration import recalibrate
from netprune.size import measure_size


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One state of the network; accuracies in percent."""

    val: float
    test: float
    nonzero_bytes: int
    packed_bytes: int


def measured(setting: Setting, model: nn.Module) -> Row:
    """Test is looked at and nothing is chosen by it."""
    dataset = setting.dataset
    val, test = (100 * evaluate(model, split, dataset).accuracy for split in (dataset.val, dataset.test))
    packed = pack(model, _header(setting, model))
    return Row(val, test, measure_size(model).nonzero_bytes, len(packed))


def _header(setting: Setting, model: nn.Module) -> PackedHeader:
    classes = len(setting.dataset.classes)
    architecture = Architecture(name="net10", num_classes=classes, width=setting.options.width)
    return header_for(model, setting.dataset, architecture)


def main() -> None:
    options = _options()
    setting = open_setting(options)
    sparsity = allocation_from("document", Basis(model=setting.model, sensitivity=None))
    pruned = pruned_copy(setting.model, setting.dataset, sparsity).model
    recalibrated = copy.deepcopy(pruned)
    recalibrate(recalibrated, setting.dataset)
    states = {"dense": setting.model, "pruned": pruned, "batch statistics again": recalibrated}
    found = {name: [measured(setting, model)] for name, model in states.items()}
    last = f"finetuned for {options.epochs:g} epochs"
    found[last] = []
    subject = Subject(setting.model, setting.dataset, _header(setting, setting.model))
    for seed in range(options.seeds):
        config = finetuning(options.epochs, seed=seed)
        assert config.finetune is not None
        fitted, _ = fit_to_device(setting.model, setting.dataset, config.finetune, options.precision)
        config = dataclasses.replace(config, finetune=fitted)
        _, data = prune_candidate(subject, sparsity, config)
        found[last].append(measured(setting, unpack(data).model.to(options.device)))
        print(f"seed {seed}: {found[last][-1]}", flush=True)
    dense = found["dense"][0]
    print_table(["network", "val", "test", "nonzero bytes", "packed bytes"], _rows(found, dense))
    print(f"accuracies in percent, mean ± std over {options.seeds} seeds of the finetuning; bytes in percent of dense")
    gain = float(np.mean([row.val for row in found[last]])) - dense.val
    record = {name: [dataclasses.asdict(row) for row in rows] for name, rows in found.items()}
    finish(options, {"results": record}, gain, "points of validation accuracy above dense")


def _rows(found: dict[str, list[Row]], dense: Row) -> list[list[str]]:
    def accuracy(values: list[float]) -> str:
        return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")

    def size(values: list[int], whole: int) -> str:
        return f"{np.mean(values):,.0f} ({100 * np.mean(values) / whole:.2f} %)"

    return [
        [
            name,
            accuracy([row.val for row in rows]),
            accuracy([row.test for row in rows]),
            size([row.nonzero_bytes for row in rows], dense.nonzero_bytes),
            size([row.packed_bytes for row in rows], dense.packed_bytes),
        ]
        for name, rows in found.items()
    ]


def _options() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--epochs", type=float, help="of finetuning, or part of one (default 2, quick 0.5)")
    made.add_argument("--seeds", type=int, default=1, help="of the finetuning (default 1)")
    made.add_argument("--precision", choices=PRECISIONS, default="auto")
    options = made.parse_args()
    if options.epochs is None:
        options.epochs = 0.5 if options.quick else 2.0
    return options


if __name__ == "__main__":
    run(main)
