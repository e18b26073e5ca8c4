"""How big a network is, layer by layer, before and after pruning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from netprune.allocation import ALLOCATORS, BY_DAMAGE, Basis, allocation_from, find_allocator, rule_and_density
from netprune.budget import fit_bytes, packed_bytes
from netprune.errors import InputError
from netprune.masks import Sparsity, apply_masks, make_masks
from netprune.packing import pack
from netprune.size import ModelSize, measure_size
from netprune.weights import prunable_weights
from sweeps import artifacts, figures, tracking
from sweeps.stages.scanning import ScanRequest, run_scan
from sweeps.stages.source import Source
from sweeps.table import count, percent, table

RULES = ", ".join(ALLOCATORS)
ALLOCATIONS = (
    f"none, document for its own numbers, RULE:DENSITY such as lamp:0.1, or RULE:BYTES of the packed file such as "
    f"lamp:200000B; RULE one of {RULES}"
)


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
        allocation: `none`, `document`, a rule and a density, such as `global_magnitude:0.1`, or a rule and the packed
            file's bytes, such as `lamp:200000B`; a rule that goes by damage takes the network's scan from the store, or
            makes it.

    Raises:
        InputError: for an unknown allocation.
    """
    sparsity = None if allocation == "none" else _allocate(source, allocation)
    config = {**source.record(), "allocation": allocation}
    with tracking.tracked_run("analyse", f"analyse {source.label}", config) as run_id:
        before, plots = measure_size(source.model), histograms(source.model, "before")
        after = None
        if sparsity is not None:
            apply_masks(source.model, make_masks(source.model, sparsity))
            after = measure_size(source.model)
            tracking.log({"pruned_packed_bytes": len(pack(source.model, source.header))})
            plots |= histograms(source.model, "after")
        plots["parameters_per_layer"] = figures.parameters_per_layer(before, after)
        artifacts.log_figures(plots, run_id)
        tracking.log(_metrics(before, "") | (_metrics(after, "pruned_") if after else {}))
        artifacts.log_bytes(size_table(after or before).encode(), "size.txt")
    return Analysis(run_id, before, after)


def _allocate(source: Source, text: str) -> Sparsity:
    rule, budget_bytes = _rule_and_bytes(text)  # before a scan, which may take minutes
    scanned = run_scan(source, ScanRequest()).sensitivity if rule in BY_DAMAGE else None
    basis = Basis(model=source.model, sensitivity=scanned, bounds=source.bounds)
    if budget_bytes is None:
        return allocation_from(text, basis)
    allocate = find_allocator(rule)
    sparsity, _ = fit_bytes(
        lambda density: allocate(basis, density),
        lambda found: packed_bytes(source.model, source.header, found),
        budget_bytes,
    )
    return sparsity


def _rule_and_bytes(text: str) -> tuple[str, int | None]:
    """The rule, and the packed file's bytes; None where the text has a density."""
    rule, _, amount = text.partition(":")
    if not amount.endswith("B"):
        return rule_and_density(text)[0], None
    find_allocator(rule)
    if not amount[:-1].isdecimal():
        raise InputError(f"the budget {amount!r} is not a number of bytes such as 200000B.")
    return rule, int(amount[:-1])


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
    rows.append(["other tensors", count(sum(t.parameters for t in rest)), count(sum(t.nonzero for t in rest)), ""])
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
