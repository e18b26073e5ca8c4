"""Which finetune recipe recovers most, at 90, 95 and 98 % sparsity, after one epoch: accuracy and seconds.

Every recipe finetunes the same pruned network (kept norm, magnitude) with the same seeds. `recalibrated` is the first
recipe's network with batch normalisation's statistics taken again afterwards; `no finetuning` is what pruning leaves,
and `recalibrated alone` that with new statistics, in a second and without an epoch.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from typing import Any

import numpy as np

from benchmarks.setting import Kept, Setting, finish, open_setting, parser, print_table, run
from netprune.evaluation import evaluate
from netprune.precision import PRECISIONS, fit_to_device
from netprune.pruning import PruneConfig, prune_and_finetune, pruned_copy
from netprune.recalibration import recalibrate
from netprune.recipes import FINETUNE, TrainConfig, recipe
from netprune.rules import kept_norm

DENSITIES = (0.1, 0.05, 0.02)
QUICK_DENSITIES = (0.05,)
REFERENCE = "document"
AT = 0.05
SGD: dict[str, Any] = {"optimizer": "sgd", "schedule": "linear", "grad_clip": math.inf, "weight_decay": 5e-4}
MUON: dict[str, Any] = {"optimizer": "muon", "schedule": "linear", "grad_clip": math.inf, "weight_decay": 0.05}
VARIANTS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "peak 0.003": {"max_lr": 0.003},
    "peak 0.02": {"max_lr": 0.02},
    "linear": {"schedule": "linear", "warm_up": 0.1},
    "no clipping": {"grad_clip": math.inf},
    "sgd 0.02": {**SGD, "max_lr": 0.02},
    "sgd 0.05": {**SGD, "max_lr": 0.05},
    "sgd 0.1": {**SGD, "max_lr": 0.1},
    "muon 0.003": {**MUON, "max_lr": 0.003},
    "muon 0.01": {**MUON, "max_lr": 0.01},
    "distillation 0.5": {"distillation": 0.5},
    "distillation 0.9": {"distillation": 0.9},
    "gradual 0.3": {"gradual": 0.3},
    "gradual 0.5": {"gradual": 0.5},
    "ema 0.98": {"ema": 0.98},
    "the search's": {name: value for name, value in FINETUNE.items() if name != "batch_size"},
    "the search's, batches of 64": FINETUNE,
    "batches of 128": {"batch_size": 128},
    "batches of 64": {"batch_size": 64},
    "no dropout": {"dropout": 0.0},
    "crops by 2": {"crop_padding": 2},
}
"""Name → what differs from the document's recipe of the training."""
UNTRAINED = ("no finetuning", "recalibrated alone")
RECALIBRATED = "recalibrated"


def finetuned(setting: Setting, density: float, config: TrainConfig, share: float, precision: Any) -> dict[str, float]:
    """Accuracy in percent after finetuning, and after new statistics on top; seconds of the finetuning."""
    fitted, _ = fit_to_device(setting.model, setting.dataset, config, precision)
    start = time.perf_counter()
    how = PruneConfig(finetune=fitted, share=share)
    model = prune_and_finetune(setting.model, setting.dataset, kept_norm(setting.model, density), how)
    seconds = time.perf_counter() - start
    return {"accuracy": _accuracy(setting, model), RECALIBRATED: _recalibrated(setting, model), "seconds": seconds}


def untrained(setting: Setting, density: float) -> dict[str, float]:
    """The same without an epoch."""
    model = pruned_copy(setting.model, setting.dataset, kept_norm(setting.model, density)).model
    return {UNTRAINED[0]: _accuracy(setting, model), UNTRAINED[1]: _recalibrated(setting, model)}


def main() -> None:
    options = _options()
    known = Kept(options)
    setting = open_setting(options)
    densities = QUICK_DENSITIES if options.quick else DENSITIES
    for name in options.only or VARIANTS:
        for density in densities:
            for seed in range(options.seeds):
                key = f"{name}|{density}|{seed}"
                if key not in known:
                    known[key] = finetuned(setting, density, *_config(options, name, seed), options.precision)
    print_table(
        ["recipe", *(f"{100 * (1 - density):g} %" for density in densities), "seconds, of the document's"],
        _rows(setting, known, densities, options),
    )
    print(f"validation accuracy in percent after {options.epochs:g} epochs, mean ± std over {options.seeds} seeds")
    best = max(VARIANTS, key=lambda name: _mean(known, name, AT, options.seeds))
    gain = _mean(known, best, AT, options.seeds) - _mean(known, REFERENCE, AT, options.seeds)
    finish(options, {"results": known}, gain, f"points of {best!r} above {REFERENCE!r} at {100 * (1 - AT):g} %")


def _rows(setting: Setting, known: dict[str, Any], densities: Any, options: argparse.Namespace) -> list[list[str]]:
    alone = [untrained(setting, density) for density in densities]
    rows = [[name, *(f"{found[name]:.2f}" for found in alone), "0"] for name in UNTRAINED]
    shown = [(name, "accuracy") for name in options.only or VARIANTS]
    seconds = np.mean([_values(known, REFERENCE, d, options.seeds, "seconds") for d in densities])
    for name, what in [*shown, (REFERENCE, RECALIBRATED)]:
        cells = [_values(known, name, density, options.seeds, what) for density in densities]
        ratio = np.mean([_values(known, name, d, options.seeds, "seconds") for d in densities]) / seconds
        label = name if what == "accuracy" else f"{name}, {RECALIBRATED}"
        rows.append([label, *(f"{np.mean(c):.2f} ± {np.std(c, ddof=1):.2f}" for c in cells), f"{ratio:.2f}"])
    return rows


def _values(known: dict[str, Any], name: str, density: float, seeds: int, what: str = "accuracy") -> list[float]:
    return [known[f"{name}|{density}|{seed}"][what] for seed in range(seeds) if f"{name}|{density}|{seed}" in known]


def _mean(known: dict[str, Any], name: str, density: float, seeds: int) -> float:
    return float(np.mean(_values(known, name, density, seeds) or [-math.inf]))


def _config(options: argparse.Namespace, name: str, seed: int) -> tuple[TrainConfig, float]:
    """The recipe, and the share of the images that it goes over: part of an epoch is one over as large a part."""
    whole = math.ceil(options.epochs)
    common = {"epochs": whole, "batch_size": options.batch_size, "seed": seed}
    return recipe("document", **common | VARIANTS[name]), options.epochs / whole


def _accuracy(setting: Setting, model: Any) -> float:
    return 100 * evaluate(model, setting.dataset.val, setting.dataset).accuracy


def _recalibrated(setting: Setting, model: Any) -> float:
    again = copy.deepcopy(model)
    recalibrate(again, setting.dataset)
    return _accuracy(setting, again)


def _options() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--seeds", type=int, default=3, help="of the finetuning (default 3)")
    made.add_argument("--epochs", type=float, default=1.0, help="of finetuning, or part of one (default 1)")
    made.add_argument("--batch-size", type=int, default=256, help="images a step (default 256)")
    made.add_argument("--precision", choices=PRECISIONS, default="auto")
    made.add_argument("--only", nargs="+", choices=VARIANTS, help="these recipes (default all)")
    made.add_argument("--kept", help="JSON file of single results, so that an interrupted run goes on")
    return made.parse_args()


if __name__ == "__main__":
    run(main)
