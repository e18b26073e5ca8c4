"""A network's layers: how sensitive each is, how big, what its weights look like, which keeps what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from netprune.curves import fit_all
from netprune.sensitivity import Sensitivity
from netprune.size import ModelSize
from sweeps.figures.names import drawn

MARKERS = "osD^v<>PX*ph"
LINES = ("-", "--", "-.", ":")
"""Neighbours differ in both; 48 layers are told apart without colour."""
GONE = 3.0
"""How far beyond the sparsest point, as a factor of density, an empty layer is drawn."""
BINS = 101
X_TICKS = 4
"""At most so many steps on the axis of a histogram: labels such as −0.075 would run into each other."""
Weights = Mapping[str, NDArray[np.float32]]


def sensitivity_curves(sensitivity: Sensitivity) -> Figure:
    """Accuracy and damage against density, a line a layer; what is left when the whole tensor is gone stands apart."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    densities = [1 - curve.sparsities for curve in sensitivity.curves]
    least = min(float(d[d > 0].min(initial=1.0)) for d in densities)
    for i, (curve, density) in enumerate(zip(sensitivity.curves, densities, strict=True)):
        style = {**_style(i), "markersize": 4, "capsize": 2, "label": drawn(curve.layer)}
        x = np.where(density > 0, density, least / GONE)  # a log axis has no zero
        left.errorbar(x, 100 * curve.accuracy, 100 * curve.accuracy_se, **style)
        known = len(curve.while_finite().damage)
        right.errorbar(x[:known], curve.damage[:known], curve.damage_se[:known], **style)
    left.axhline(100 * sensitivity.baseline.accuracy, color="black", linestyle="--", label="dense")
    right.axhline(0.0, color="black", linestyle="--", label="dense")
    gone = any((density == 0).any() for density in densities)
    left.set(ylabel="validation accuracy (%)", title="One layer pruned, no finetuning")
    right.set(ylabel="change of the loss (nats)", title="Its damage")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="density of the layer" + (" (rightmost: nothing left)" if gone else ""))
        # as many labels as have room: matplotlib's own overlap where there is hardly more than one power of ten
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if least < 0.01 else (1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda density, _: f"{density:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return figure


def parameters_per_layer(before: ModelSize, after: ModelSize | None = None) -> Figure:
    """Weights of each prunable layer, and how many of them are nonzero after pruning."""
    layers = [layer for layer in before.layers if layer.prunable]
    figure = Figure(figsize=(9, 0.45 * len(layers) + 1.5), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(layers))
    height = 0.8 if after is None else 0.4
    bars = axes.barh(
        rows, [layer.parameters for layer in layers], height, color="lightgrey", edgecolor="black", label="all"
    )
    axes.bar_label(bars, [f"{layer.parameters:,}" for layer in layers], padding=3, fontsize="small")
    if after is not None:
        kept = {layer.name: layer.nonzero for layer in after.layers}
        counts = [kept[layer.name] for layer in layers]
        bars = axes.barh(
            rows + height, counts, height, color="tab:blue", hatch="//", edgecolor="black", label="nonzero"
        )
        axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3, fontsize="small")
    axes.set_yticks(rows + (height / 2 if after is not None else 0), [drawn(layer.name) for layer in layers])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="weights", title="Parameters per layer")
    axes.margins(x=0.15)
    axes.legend(loc="lower right")
    return figure


def weight_histograms(weights: Weights, *, nonzero_only: bool) -> Figure:
    """A histogram of each layer's weights, zeros counted or left out."""
    columns = 4
    rows = -(-len(weights) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    grid: Sequence[Axes] = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axes, (name, values) in zip(grid, weights.items(), strict=False):
        shown = values[values != 0] if nonzero_only else values
        # one patch: a hundred bars a layer take ten times as long to draw
        axes.stairs(*np.histogram(shown, bins=BINS), fill=True, color="tab:blue")
        axes.set_title(f"{drawn(name)}\n{shown.size:,} of {values.size:,}", fontsize="small")
        axes.tick_params(labelsize="x-small", which="both")
        axes.locator_params(axis="x", nbins=X_TICKS)
        if not nonzero_only:
            axes.set_yscale("log")  # a pile of zeros would flatten everything else
    for axes in grid[len(weights) :]:
        axes.remove()
    figure.supxlabel("weight")
    figure.supylabel("count")
    figure.suptitle("Weights that are not zero" if nonzero_only else "All weights")
    return figure


def allocations(sensitivity: Sensitivity, found: Mapping[str, Mapping[str, float]], density: float) -> Figure:
    """Which layer, how much: fitted damage with the points where the last rule stops, and every rule's densities.

    Args:
        sensitivity: the scan.
        found: rule → weight name → sparsity; the last rule goes by damage.
        density: the budget they share.
    """
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    rule, chosen = list(found.items())[-1]
    for i, (layer, curve) in enumerate(fit_all(sensitivity).items()):
        x = curve.size * (1 - curve.sparsities)
        style = {**_style(i), "color": f"C{i % 10}"}
        left.plot(np.maximum(x, 0.5), curve.values, linewidth=1, **{**style, "marker": ""})
        stop = max(curve.size * (1 - chosen[layer]), 0.5)
        left.plot(stop, curve(chosen[layer]), markersize=8, label=drawn(layer), **style)
    left.set(xscale="log", xlabel="weights kept in the layer", ylabel="change of the loss (nats)")
    left.set_title(f"Each layer pruned alone; marks: where {rule} stops at {100 * density:.3g} %", fontsize="medium")
    left.legend(fontsize="small")
    rows = np.arange(len(sensitivity.layers))
    for i, (name, sparsity) in enumerate(found.items()):
        kept = [max(1 - sparsity[layer], 1e-4) for layer in sensitivity.layers]
        right.plot(kept, rows, MARKERS[i % len(MARKERS)] + "-", markersize=6, linewidth=0.8, label=name)
    right.set_yticks(rows, [f"{drawn(curve.layer)} ({curve.size:,})" for curve in sensitivity.curves])
    right.invert_yaxis()
    right.set(xscale="log", xlabel="density of the layer")
    right.set_title(f"Who keeps what at {100 * density:.3g} % of all weights", fontsize="medium")
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
    return figure


def _style(layer: int) -> dict[str, str]:
    line = layer + layer // len(MARKERS)
    return {"marker": MARKERS[layer % len(MARKERS)], "linestyle": LINES[line % len(LINES)]}
