"""What a network takes images for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sweeps.figures.names import short

MOST_COUNTED, MOST_NAMED = 20, 40
"""Classes up to which the cells have their counts, and the axes their names."""


def confusion(counts: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """How often each class is taken for each, by colour within its row, and in figures where there is room.

    Args:
        counts: `(C, C)`, true class by row, predicted class by column.
        classes: their names.
    """
    number = len(classes)
    side = min(max(4.5, 1.5 + 0.55 * number), 14.0)
    figure = Figure(figsize=(side + 0.5, side), layout="constrained")
    axes = figure.subplots()
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Greys", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="share of the true class (%)", shrink=0.8)
    if number <= MOST_COUNTED:
        for (row, column), count in np.ndenumerate(counts):
            shade = "white" if shares[row, column] > 50 else "black"
            axes.text(column, row, f"{count:,}" if count else "·", ha="center", va="center", color=shade, size="small")
    if number <= MOST_NAMED:
        names = [short(name) for name in classes]
        axes.set_xticks(np.arange(number), names, rotation=90)
        axes.set_yticks(np.arange(number), names)
    axes.set(xlabel="predicted class", ylabel="true class", title="Confusion of the pruned network")
    return figure


def disagreements(images: NDArray[np.uint8], named: Sequence[tuple[str, str, str]]) -> Figure:
    """Images side by side, each with its class and what the two networks take it for.

    Args:
        images: `(N, H, W, 3)`, at least one.
        named: true class, the dense network's and the pruned network's, one triple an image.
    """
    columns = 6
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, names in zip(grid, images, named, strict=False):
        truth, dense, pruned = map(short, names)
        axes.imshow(image, interpolation="nearest")
        axes.set_title(f"{truth}\ndense: {dense}\npruned: {pruned}", fontsize="x-small")
    return figure
