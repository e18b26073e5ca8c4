"""Our scan against the straightforward one, in the same run.

The straightforward scan: every layer × 0.4, 0.5, … 0.9, whole fp32 passes over the validation split. Ours once in exact
mode (the same points, the same numbers bit for bit) and three times in its default mode, which measures to 0.1 %
density.

How good the curves are is told by what is allocated on them: the default scan's knapsack is judged on sharp curves (the
same grid, every validation image, fp32), beside the sharp curves' own knapsack.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.setting import Setting, finish, open_setting, parser, print_table, run
from netprune.curves import fit_all
from netprune.data import Dataset
from netprune.loader import normalise
from netprune.rules import knapsack
from netprune.scan_record import ScanRecord
from netprune.scanner import ScanConfig, scan
from netprune.sensitivity import Sensitivity
from netprune.weights import prunable_weights

SPARSITIES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DENSITIES = (0.2, 0.1, 0.05, 0.03, 0.02)
BATCH = 500


@torch.no_grad()
def straightforward(model: nn.Module, dataset: Dataset) -> dict[tuple[str, float], Tensor]:
    """Loss of every validation image, for every layer and sparsity."""
    model = copy.deepcopy(model).eval()
    found = {}
    for layer, weight in prunable_weights(model).items():
        dense = weight.clone()
        order = dense.abs().flatten().sort(stable=True).indices
        for sparsity in SPARSITIES:
            weight.view(-1)[order[: round(sparsity * weight.numel())]] = 0
            batches = zip(torch.split(dataset.val.images, BATCH), torch.split(dataset.val.labels, BATCH), strict=True)
            found[layer, sparsity] = torch.cat(
                [F.cross_entropy(model(normalise(x, dataset)), y, reduction="none") for x, y in batches]
            )
            weight.copy_(dense)
    return found


@dataclass(frozen=True, slots=True)
class Timed:
    """A scan and how long it took."""

    seconds: float
    sensitivity: Sensitivity


def timed_scan(setting: Setting, config: ScanConfig) -> Timed:
    start = time.perf_counter()
    sensitivity = scan(setting.model, setting.dataset, config)
    return Timed(time.perf_counter() - start, sensitivity)


def same_numbers(plain: dict[tuple[str, float], Tensor], exact: Sensitivity) -> bool:
    """Whether every mean loss is the same double."""
    return all(
        plain[curve.layer, sparsity].double().mean().item() == loss
        for curve in exact.curves
        for sparsity, loss in zip(curve.sparsities.tolist(), curve.loss.tolist(), strict=True)
    )


def excess(sensitivity: Sensitivity, sharp: Sensitivity) -> list[tuple[float, float, float]]:
    """(density, least damage on the sharp curves, damage there of the allocation made on the others), nats."""
    curves = fit_all(sharp)
    rows = []
    for density in DENSITIES:
        best, ours = (
            sum(curves[layer](s) for layer, s in knapsack(of, density).items()) for of in (sharp, sensitivity)
        )
        rows.append((density, best, ours))
    return rows


def accuracy_shift(sensitivity: Sensitivity, sharp: ScanRecord) -> float:
    """Largest |change of accuracy| on the same images, fp32 to the chosen way, over its standard error."""
    shifts = []
    for curve in sensitivity.curves:
        points = zip(curve.sparsities.tolist(), curve.accuracy.tolist(), curve.accuracy_se.tolist(), strict=True)
        for (sparsity, accuracy, error), count in zip(points, curve.count.tolist(), strict=True):
            right = sharp.right.get((curve.layer, sparsity))  # the two scans refine in places of their own
            if right is not None and error > 0:
                shifts.append(abs(accuracy - right[:count].double().mean().item()) / error)
    return float(max(shifts))


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    setting = open_setting(options)
    start = time.perf_counter()
    plain = straightforward(setting.model, setting.dataset)
    plain_seconds = time.perf_counter() - start
    exact = timed_scan(setting, ScanConfig(sparsities=SPARSITIES, max_se=0, precision="fp32"))
    defaults = [timed_scan(setting, ScanConfig()) for _ in range(3)]
    ours = sorted(defaults, key=lambda timed: timed.seconds)[1]
    rows = []
    for name, seconds, sensitivity in (
        ("straightforward", plain_seconds, None),
        ("exact", exact.seconds, exact.sensitivity),
        ("default", ours.seconds, ours.sensitivity),
    ):
        curves = sensitivity.curves if sensitivity else ()
        points = sum(len(c.count) for c in curves) or len(plain)
        images = sum(int(c.count.sum()) for c in curves) or len(plain) * len(setting.dataset.val)
        how = sensitivity.compute if sensitivity else f"fp32, contiguous, batches of {BATCH}"
        less = f"{plain_seconds / seconds:.2f}"
        rows.append([name, f"{seconds:.1f}", less, str(points), f"{images / points:,.0f}", how])
    print_table(["scan", "seconds", "times less", "points", "images a point", "compute"], rows)
    identical = same_numbers(plain, exact.sensitivity)
    print(f"exact mode has the straightforward scan's numbers, bit for bit: {'yes' if identical else 'NO'}")
    print(f"default scans took {', '.join(f'{timed.seconds:.1f}' for timed in defaults)} s")
    judged: list[tuple[float, float, float]] = []
    if not options.quick:
        record = ScanRecord()
        sharp = scan(setting.model, setting.dataset, ScanConfig(max_se=0, precision="fp32"), record=record)
        judged = excess(ours.sensitivity, sharp)
        print_table(
            ["density", "least damage on sharp curves", "of the default scan's knapsack"],
            [[f"{100 * d:g} %", f"{best:.3f} nats", f"{mine:.3f} nats"] for d, best, mine in judged],
        )
        print(f"largest change of an accuracy: {accuracy_shift(ours.sensitivity, record):.1f} of its standard errors")
    ratio = plain_seconds / statistics.median(timed.seconds for timed in defaults)
    results = {
        "straightforward_seconds": plain_seconds,
        "exact_seconds": exact.seconds,
        "exact_identical": identical,
        "default_seconds": [timed.seconds for timed in defaults],
        "default_points": rows[2][3],
        "compute": ours.sensitivity.compute,
        "damage": judged,
    }
    finish(options, results, ratio, "times less time than the straightforward scan, default mode")


if __name__ == "__main__":
    run(main)
