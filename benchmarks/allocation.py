"""Every allocator at densities of 20, 10, 5, 3 and 2 %: validation accuracy after one finetune epoch.

Each allocator has the same dense network, the same masks within a layer (magnitude), the same recipe and the same
seeds; it decides only how much goes from which layer. `re-scanned knapsack` has spent one finetune epoch more before
it decides: it scans the network that `kept_norm` left at twice the density (at most whole), finetuned.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from benchmarks.setting import Kept, Setting, finish, open_setting, parser, print_table, run
from netprune.allocation import ALLOCATORS, Basis
from netprune.masks import Sparsity
from netprune.precision import PRECISIONS, fit_to_device
from netprune.pruning import PruneConfig, prune_and_finetune, pruned_copy
from netprune.recipes import TrainConfig, recipe
from netprune.rules import kept_norm, knapsack
from netprune.scanner import scan
from netprune.training import Held, train

DENSITIES = (0.2, 0.1, 0.05, 0.03, 0.02)
QUICK_DENSITIES = (0.1, 0.05)
RESCANNED = "re-scanned knapsack"
REFERENCE, AT = "lamp", 0.05


def finetuned_accuracy(setting: Setting, sparsity: Sparsity, config: TrainConfig) -> float:
    """Validation accuracy, in percent, of a pruned and finetuned copy."""
    pruned = pruned_copy(setting.model, setting.dataset, sparsity)
    return 100 * train(pruned.model, setting.dataset, config, held=Held(masks=pruned.masks))[-1].val.accuracy


def rescanned(setting: Setting, density: float, config: TrainConfig) -> Sparsity:
    """Allocate on the sensitivity of what is left at twice the density."""
    around = kept_norm(setting.model, min(1.0, 2 * density))
    part_way = prune_and_finetune(setting.model, setting.dataset, around, PruneConfig(finetune=config))
    return knapsack(scan(part_way, setting.dataset), density)


def main() -> None:
    options = _options()
    known = Kept(options)
    setting = open_setting(options)
    # the document's recipe, not the search's own: the table in the README was made with it
    configs = [recipe("document", epochs=1, batch_size=options.batch_size, seed=seed) for seed in range(options.seeds)]
    configs = [fit_to_device(setting.model, setting.dataset, c, options.precision)[0] for c in configs]
    start = time.perf_counter()
    basis = Basis(model=setting.model, sensitivity=scan(setting.model, setting.dataset))
    print(f"dense scan: {time.perf_counter() - start:.1f} s, {basis.sensitivity.compute if basis.sensitivity else ''}")
    rules: dict[str, Callable[[float], Sparsity]] = {
        name: lambda density, rule=rule: rule(basis, density)  # type: ignore[misc]
        for name, rule in ALLOCATORS.items()
    }
    rules[RESCANNED] = lambda density: rescanned(setting, density, configs[0])
    densities = QUICK_DENSITIES if options.quick else DENSITIES
    for density in densities:
        for name, rule in rules.items():
            missing = [c for c in configs if f"{name} {density} {c.seed}" not in known]
            sparsity = rule(density) if missing else {}
            for config in missing:
                known[f"{name} {density} {config.seed}"] = finetuned_accuracy(setting, sparsity, config)
    table = {n: {d: [known[f"{n} {d} {c.seed}"] for c in configs] for d in densities} for n in rules}
    best = {d: max((table[n][d] for n in rules), key=np.mean) for d in densities}
    rows = [[n, *(_cell(table[n][d], best[d]) for d in densities)] for n in rules]
    print_table(["allocator", *(f"{100 * d:g} %" for d in densities)], rows)
    print(f"validation accuracy in percent after one finetune epoch, mean ± std over {len(configs)} seeds; * best,")
    print("+ within one standard deviation of the best (the larger of the two)")
    gain = float(np.mean(table["kept_norm"][AT]) - np.mean(table[REFERENCE][AT]))
    finish(options, {"accuracy": table}, gain, f"points of kept_norm above {REFERENCE} at {100 * AT:g} %")


def _cell(values: list[float], best: list[float]) -> str:
    mark = "*" if values is best else " "
    if values is not best and np.mean(values) + max(_spread(values), _spread(best)) >= np.mean(best):
        mark = "+"
    return f"{np.mean(values):.2f} ± {_spread(values):.2f}{mark}"


def _spread(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _options() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--seeds", type=int, default=3, help="finetune seeds (default 3)")
    made.add_argument("--batch-size", type=int, default=256, help="images a step (default 256)")
    made.add_argument("--precision", default="fp32", choices=PRECISIONS, help="of the finetuning (default fp32)")
    made.add_argument("--kept", help="JSON file of single results, so that an interrupted run goes on")
    return made.parse_args()


if __name__ == "__main__":
    run(main)
