"""Results → matplotlib figures. Nothing is saved here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray

from netprune.sensitivity import Sensitivity
from netprune.size import ModelSize

MARKERS = "osD^v<>PX*ph"
Weights = Mapping[str, NDArray[np.float32]]


def sensitivity_curves(sensitivity: Sensitivity) -> Figure:
    """Accuracy and loss against sparsity, a line a layer, with the dense network as a dashed line."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, layer in enumerate(sensitivity.layers):
        style = {"marker": MARKERS[i % len(MARKERS)], "markersize": 4, "capsize": 2, "label": layer}
        left.errorbar(sensitivity.sparsities, 100 * sensitivity.accuracy[i], 100 * sensitivity.accuracy_se[i], **style)
        right.errorbar(sensitivity.sparsities, sensitivity.loss[i], sensitivity.loss_se[i], **style)
    left.axhline(100 * sensitivity.baseline.accuracy, color="black", linestyle="--", label="dense")
    right.axhline(sensitivity.baseline.loss, color="black", linestyle="--", label="dense")
    left.set(xlabel="sparsity of the layer", ylabel="validation accuracy (%)", title="One layer pruned, no finetuning")
    right.set(xlabel="sparsity of the layer", ylabel="validation loss (nats)", yscale="log", title="Its loss")
    for which in (right.yaxis.set_major_formatter, right.yaxis.set_minor_formatter):
        which(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
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
    axes.set_yticks(rows + (height / 2 if after is not None else 0), [layer.name for layer in layers])
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
        axes.hist(shown.ravel(), bins=101, color="tab:blue")
        axes.set_title(f"{name}\n{shown.size:,} of {values.size:,}", fontsize="small")
        axes.tick_params(labelsize="x-small")
        if not nonzero_only:
            axes.set_yscale("log")  # a pile of zeros would flatten everything else
    for axes in grid[len(weights) :]:
        axes.remove()
    figure.supxlabel("weight")
    figure.supylabel("count")
    figure.suptitle("Weights that are not zero" if nonzero_only else "All weights")
    return figure


def size_against_accuracy(
    sizes_bytes: Sequence[float], accuracies: Sequence[float], floor: float, dense: tuple[float, float]
) -> Figure:
    """Every trial as a point, with the floor and the dense network.

    Args:
        sizes_bytes: packed bytes of each trial.
        accuracies: validation, in [0, 1].
        floor: in [0, 1].
        dense: the dense network's bytes and validation accuracy.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    sizes, values = np.array(sizes_bytes) / 1000, 100 * np.array(accuracies)
    met = values >= 100 * floor - 1e-7
    axes.scatter(sizes[met], values[met], marker="o", color="tab:blue", label="meets the floor")
    axes.scatter(sizes[~met], values[~met], marker="x", color="tab:red", label="below the floor")
    axes.scatter([dense[0] / 1000], [100 * dense[1]], marker="*", s=120, color="black", label="dense")
    axes.axhline(100 * floor, color="black", linestyle="--", label=f"floor {100 * floor:.2f} %")
    axes.set(xscale="log", xlabel="packed size (kB)", ylabel="validation accuracy (%)", title="Size against accuracy")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def trial_history(sizes_bytes: Sequence[float], feasible: Sequence[bool]) -> Figure:
    """Packed size by trial, and the smallest feasible one so far."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    numbers, sizes, met = (
        np.arange(1, len(sizes_bytes) + 1),
        np.array(sizes_bytes) / 1000,
        np.array(feasible, dtype=bool),
    )
    axes.plot(numbers[met], sizes[met], "o", color="tab:blue", label="meets the floor")
    axes.plot(numbers[~met], sizes[~met], "x", color="tab:red", label="below the floor")
    best = np.minimum.accumulate(np.where(met, sizes, np.inf))
    axes.step(numbers, np.where(np.isfinite(best), best, np.nan), where="post", color="black", label="best so far")
    axes.set(yscale="log", xlabel="trial", ylabel="packed size (kB)", title="The study's trials")
    axes.legend()
    return figure
