"""Scan each layer's sensitivity: `mlflow run . -e scan` or `python -m sweeps.scan_sensitivity`."""

from __future__ import annotations

import math
from typing import Any

import click

from netprune.allocation import BY_DAMAGE
from netprune.curves import fit
from netprune.sensitivity import LayerCurve, Sensitivity
from sweeps.command import command
from sweeps.options import data_options, scan_options, source_options
from sweeps.stages.data import DataRequest
from sweeps.stages.repeating import first_search_command
from sweeps.stages.scanning import SCAN_OPTIONS, ScanRequest, part_way, run_scan
from sweeps.stages.source import SourceRequest, open_source
from sweeps.table import count, percent, table

DAMAGES = (0.02, 0.1, 0.5)


@command("python -m sweeps.scan_sensitivity --weights net10.pt --dataset digits --keep conv1 --max-se 0.01")
@source_options
@data_options("auto")
@scan_options("auto: what a short measurement finds fastest; fp32: the bits of whole passes.")
@click.option(
    "--around",
    default="none",
    help="Scan what pruning by magnitude to RULE:DENSITY leaves, such as kept_norm:0.1; no rule by damage "
    f"({', '.join(BY_DAMAGE)}).",
)
@click.option(
    "--finetune-epochs", default=1, help="With --around: epochs of finetuning before the scan, in fp32; 0 for none."
)
def main(around: str, finetune_epochs: int, **options: Any) -> None:
    """Prune each weight tensor alone, by more and more, and evaluate: curves and figures go to MLflow.

    Layers of --keep are left out; --limit changes nothing that is measured.
    """
    request = ScanRequest.of({name: options.pop(name) for name in SCAN_OPTIONS})
    data = DataRequest.of(options)
    asked = source = open_source(SourceRequest(**options), data)
    if around != "none":
        source = part_way(source, around, finetune_epochs)
    outcome = run_scan(source, request)
    click.echo(damage_table(outcome.sensitivity))
    click.echo(f"run {outcome.run_id}\nnext: {first_search_command(asked)}")


def damage_table(sensitivity: Sensitivity) -> str:
    """How far each layer can be pruned alone for a given damage, and what was measured."""
    header = ["layer", "weights", *(f"{d:g} nats at" for d in DAMAGES), "all gone", "points", "images"]
    rows = [_row(curve) for curve in sensitivity.curves]
    dense = sensitivity.baseline
    error = f"paired error below {sensitivity.max_se:g} nats or 5 %" if sensitivity.max_se else "all images"
    lines = [
        table(header, rows),
        f"dense {percent(dense.accuracy, dense.accuracy_se)} on {dense.count:,} images; {error}; {sensitivity.compute}",
    ]
    if sensitivity.missed:
        lines.append(f"{sensitivity.missed} points are less sharp than that on all the images that there are")
    if sensitivity.whole_passes:
        lines.append(f"whole passes, the prefix was not reused: {sensitivity.whole_passes}")
    lines += [f"{c.layer} has no effect: it is dead, not robust" for c in sensitivity.curves if not c.has_effect]
    return "\n".join(lines)


def _row(curve: LayerCurve) -> list[str]:
    damage = fit(curve)
    gone = _nats(curve.damage[-1]) if curve.sparsities[-1] == 1 else ""
    past = "" if damage.last == 1 else "> "  # there is nothing beyond the whole layer
    reached = [
        percent(damage.most_at(level)) if damage.values[-1] > level else f"{past}{percent(damage.last)}"
        for level in DAMAGES
    ]
    images = f"{curve.count.min():,}-{curve.count.max():,}"
    return [curve.layer, count(curve.size), *reached, gone, str(len(curve.sparsities)), images]


def _nats(damage: float) -> str:
    return f"{damage:.2f} nats" if math.isfinite(damage) else "not finite"


if __name__ == "__main__":
    main()
