"""A study's trials: size against accuracy, and one after another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
from numpy.typing import NDArray

from sweeps.scores import ROUNDING

MET, PART, MISSED, STOPPED = "o", "s", "x", "|"
"""Markers: told apart without colour."""
LINES = ("--", ":", "-.")
"""One floor after the other."""


def size_against_accuracy(
    sizes_bytes: Sequence[float],
    accuracies: Sequence[float],
    floors: Sequence[float],
    dense: tuple[float, float],
    confirmed: Sequence[tuple[float, float, float]] = (),
) -> Figure:
    """Every trial that ran to its end as a point, with their front, the floors, the dense and the confirmed networks.

    Args:
        sizes_bytes: packed bytes of each trial.
        accuracies: validation, in [0, 1].
        floors: each in [0, 1], the highest first.
        dense: the dense network's bytes and validation accuracy.
        confirmed: of each confirmed network, bytes, validation accuracy and the lower bound of that.
    """
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    sizes, values = np.array(sizes_bytes, dtype=float) / 1000, 100 * np.array(accuracies, dtype=float)
    _front(axes, sizes, values)
    _parted(axes, sizes, values, floors)
    axes.scatter([dense[0] / 1000], [100 * dense[1]], marker="*", s=140, color="black", label="dense")
    _confirmed(axes, confirmed)
    for floor, line in zip(floors, itertools.cycle(LINES), strict=False):
        axes.axhline(100 * floor, color="black", linestyle=line, label=f"floor {100 * floor:.2f} %")
    axes.set(xscale="log", xlabel="packed size (kB)", ylabel="validation accuracy (%)", title="Size against accuracy")
    _plain_log(axes.xaxis, [*sizes, dense[0] / 1000])
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure


def trial_history(
    sizes_bytes: Sequence[float],
    feasible: Sequence[bool],
    stopped: Sequence[bool] = (),
    what: str = "packed size",
) -> Figure:
    """Size by trial, and the smallest one so far that meets the floor.

    Args:
        sizes_bytes: in the order of the trials; those that stopped early have an estimate.
        feasible: whether each meets the floor.
        stopped: whether each stopped early; none by default.
        what: the size, in words.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    numbers, sizes = np.arange(1, len(sizes_bytes) + 1), np.array(sizes_bytes, dtype=float) / 1000
    met = np.array(feasible, dtype=bool)
    early = np.array(stopped, dtype=bool) if len(stopped) else np.zeros(len(met), dtype=bool)
    axes.plot(numbers[met], sizes[met], MET, color="tab:blue", label="meets the floor")
    axes.plot(numbers[~met & ~early], sizes[~met & ~early], MISSED, color="tab:red", label="below the floor")
    if early.any():
        style: dict[str, Any] = {"color": "tab:gray", "markersize": 9, "markeredgewidth": 1.5}
        axes.plot(numbers[early], sizes[early], STOPPED, label="stopped early (size estimated)", **style)
    best = np.minimum.accumulate(np.where(met, sizes, np.inf))
    axes.step(numbers, np.where(np.isfinite(best), best, np.nan), where="post", color="black", label="best so far")
    axes.set(yscale="log", xlabel="trial", ylabel=f"{what} (kB)", title="The study's trials")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain_log(axes.yaxis, sizes)
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _front(axes: Axes, sizes: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    """The most accurate network of at most each size, as steps."""
    order = np.lexsort((-values, sizes))
    front = [i for i, best in zip(order, np.maximum.accumulate(values[order]), strict=True) if values[i] == best]
    axes.step(sizes[front], values[front], where="post", color="black", linewidth=1, zorder=3, label="front")


def _parted(axes: Axes, sizes: NDArray[np.float64], values: NDArray[np.float64], floors: Sequence[float]) -> None:
    """The trials, by how many of the floors they meet."""
    most, least = (100 * (floor - ROUNDING) for floor in (floors[0], floors[-1]))
    several = len(floors) > 1
    groups = [(values >= most, MET, "tab:blue", "meets every floor" if several else "meets the floor")]
    if several:
        groups.append(((values >= least) & (values < most), PART, "tab:green", "meets a lower floor"))
    groups.append((values < least, MISSED, "tab:red", "below the floor"))
    for which, marker, color, label in groups:
        axes.scatter(sizes[which], values[which], marker=marker, s=22, color=color, label=label)


def _confirmed(axes: Axes, confirmed: Sequence[tuple[float, float, float]]) -> None:
    if not confirmed:
        return
    sizes, accuracies, lower = np.array(confirmed, dtype=float).T
    bars = [100 * (accuracies - lower), np.zeros(len(accuracies))]
    style: dict[str, Any] = {"marker": "D", "markersize": 9, "markerfacecolor": "none", "color": "black", "capsize": 4}
    label = "confirmed, down to its 95 % lower bound"
    axes.errorbar(sizes / 1000, 100 * accuracies, yerr=bars, linestyle="none", label=label, **style)


def _plain_log(axis: Any, values: Sequence[float] | NDArray[np.float64]) -> None:
    """Plain numbers on a logarithmic axis, few enough not to overlap and at least two, however little it spans."""
    wide = len(values) > 0 and max(values) > 10 * min(values)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if wide else MaxNLocator(6))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())
