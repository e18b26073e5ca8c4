"""How big a network is, layer by layer, before and after pruning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from netprune.allocation import ALLOCATORS, BY_DAMAGE, Basis, allocation_from
from netprune.masks import apply_masks, make_masks
from netprune.models import prunable_weights
from netprune.size import ModelSize, measure_size
from sweeps import figures, tracking
from sweeps.stages.scanning import ScanRequest, run_scan
from sweeps.stages.source import Source
from sweeps.table import count, percent, table

RULES = ", ".join(ALLOCATORS)
ALLOCATIONS = f"none, document for its own numbers, or RULE:DENSITY such as lamp:0.1, RULE one of {RULES}"


@dataclass(frozen=True, slots=True)
class Analysis:
    """Sizes before pruning, and after it where an allocation was asked for."""

    run_id: str
    before: ModelSize
    after: ModelSize | None


def run_analysis(source: Source, allocation: str) -> Analysis:
    """Measure the network, prune it in one shot if asked to, and log table and figures to a run of its own.

    Args:
        source: its network is pruned in place if `allocation` asks for it.
        allocation: `none`, or a rule and a density, such as `global_magnitude:0.1`; a rule that goes by damage takes
            the network's scan from the store, or makes it.

    Raises:
        InputError: for an unknown allocation.
    """
    sparsity = None
    if allocation != "none":
        scanned = run_scan(source, ScanRequest()).sensitivity if allocation.startswith(BY_DAMAGE) else None
        sparsity = allocation_from(allocation, Basis(model=source.model, sensitivity=scanned))
    config = {**source.record(), "allocation": allocation}
    with tracking.tracked_run("analyse", f"analyse {source.label}", config) as run_id:
        before, plots = measure_size(source.model), histograms(source.model, "before")
        after = None
        if sparsity is not None:
            apply_masks(source.model, make_masks(source.model, sparsity))
            after = measure_size(source.model)
            plots |= histograms(source.model, "after")
        plots["parameters_per_layer"] = figures.parameters_per_layer(before, after)
        tracking.log_figures(plots, run_id)
        tracking.log_metrics(_metrics(before, "") | (_metrics(after, "pruned_") if after else {}))
        tracking.log_bytes(size_table(after or before).encode(), "size.txt")
    return Analysis(run_id, before, after)


def histograms(model: nn.Module, when: str) -> dict[str, Figure]:
    """Weight histograms with zeros and nonzero only, named `weights_<when>…`."""
    weights = weight_arrays(model)
    return {
        f"weights_{when}": figures.weight_histograms(weights, nonzero_only=False),
        f"weights_{when}_nonzero": figures.weight_histograms(weights, nonzero_only=True),
    }


def weight_arrays(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Prunable weights as arrays."""
    return {name: weight.detach().cpu().numpy() for name, weight in prunable_weights(model).items()}


def size_table(size: ModelSize) -> str:
    """Every prunable layer's parameters and sparsity, then the whole network's size in bits and MiB."""
    rows = [
        [layer.name, count(layer.parameters), count(layer.nonzero), percent(layer.sparsity)]
        for layer in size.layers
        if layer.prunable
    ]
    rest = [layer for layer in size.layers if not layer.prunable]
    rows.append(
        ["biases, normalisation", count(sum(t.parameters for t in rest)), count(sum(t.nonzero for t in rest)), ""]
    )
    rows.append(["all", count(size.parameters), count(size.nonzero), percent(1 - size.nonzero / size.parameters)])
    return (
        table(["tensor", "parameters", "nonzero", "sparsity"], rows)
        + f"\nsparsity of the prunable weights {percent(size.sparsity)}"
        + f"\nall     {count(8 * size.dense_bytes)} bits, {size.dense_bytes / 2**20:.2f} MiB"
        + f"\nnonzero {count(8 * size.nonzero_bytes)} bits, {size.nonzero_bytes / 2**20:.2f} MiB (values only)"
    )


def _metrics(size: ModelSize, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}parameters": size.parameters,
        f"{prefix}nonzero_parameters": size.nonzero,
        f"{prefix}sparsity": size.sparsity,
        f"{prefix}dense_bytes": size.dense_bytes,
        f"{prefix}nonzero_bytes": size.nonzero_bytes,
        **{f"{prefix}sparsity/{layer.name}": layer.sparsity for layer in size.layers if layer.prunable},
    }
