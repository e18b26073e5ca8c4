"""Fewer bits a value: fp16, int8 by output channel, or a codebook; zeros stay zero.

Quantising changes the network, once, to values that the packed file then holds exactly. A codebook is trained
afterwards: every weight that shares an entry has the entry's gradient (Deep Compression, Han 2016, section 3.3).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from netprune.errors import InputError
from netprune.folding import fold_biases
from netprune.weights import prunable_weights

Labels = Mapping[str, Tensor]
"""Weight name → int64 of the weight's shape: which entry of its codebook a weight has; -1 for a zero."""

KINDS = ("fp32", "fp16", "int8", "codebook")
CODEBOOK_BITS = range(2, 9)
FP16_MAX = 65504.0
INT8_MAX = 127
RATE_WEIGHT, RATE_BITS = 0.01, 4
"""Of a bit in the objective of codebooks of up to 4 bits, in mean squares of the tensor's own kept weights: what a
layer's rounding does is to be held against what the layer does, and wide layers have small weights. Half of it for
every bit more, or a larger codebook would hardly be used."""
DROP_ROUNDS = 4
LLOYD_STEPS = 100
SIGNIFICANT_BITS = 8
"""Of codebook entries, steps and all numbers that are no weights, as bfloat16 has: measured, they cost no accuracy."""


@dataclass(frozen=True, slots=True)
class Values:
    """How weights are stored.

    Raises:
        InputError: for an unknown kind, or a codebook of other than 2 to 8 bits.
    """

    kind: str = "fp32"
    """`fp32` (lossless), `fp16`, `int8` (one step an output channel) or `codebook`."""
    bits: int = 0
    """Of an index into the codebook: 2 to 8, for at most 2^bits entries a tensor; 0 for the other kinds."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or (self.bits in CODEBOOK_BITS) != (self.kind == "codebook"):
            raise InputError(f"values is {str(self)!r}; it must be fp32, fp16, int8, or codebook:2 to codebook:8.")

    @classmethod
    def parse(cls, text: str) -> Values:
        """The values that `str` writes so: `fp32`, `fp16`, `int8`, `codebook:4`.

        >>> Values.parse("codebook:4")
        Values(kind='codebook', bits=4)
        """
        found = re.fullmatch(r"codebook:([2-8])", text)
        if found:
            return cls("codebook", int(found[1]))
        if text not in KINDS[:3]:
            raise InputError(f"values is {text!r}; it must be fp32, fp16, int8, or codebook:2 to codebook:8.")
        return cls(text)

    @property
    def rounds(self) -> bool:
        """Whether weights are stored in fewer bits than they have."""
        return self.kind != "fp32"

    def __str__(self) -> str:
        return f"{self.kind}:{self.bits}" if self.bits else self.kind


@torch.no_grad()
def quantise(model: nn.Module, values: Values, spared: Collection[str] = ()) -> dict[str, Tensor]:
    """Round a network's values in place; zeros stay zero.

    Weights become fp16, or multiples of their output channel's step (-127 … 127), or entries of their codebook; with a
    codebook, weights too small for what their positions and indices cost become zeros as well. Steps, entries and all
    other numbers (biases, normalisation and its statistics, weights that are not prunable) keep 8 significant bits and
    fp32's range; biases that normalisation takes away again are folded first (`fold_biases`). `fp32` changes nothing.

    Args:
        model: rounded in place.
        values: how.
        spared: names of weights in which a codebook makes no zeros, because nothing more may be pruned there. What is
            too small for fp16 or for half a step of int8 is rounded to zero all the same.

    Returns:
        The codebooks' labels, to train the codebooks with; empty for the other kinds.

    Raises:
        InputError: for weights that are not finite, or beyond fp16's range.
    """
    if values.kind == "fp32":
        return {}
    weights = prunable_weights(model)
    for name, weight in weights.items():
        largest = float(weight.abs().max()) if weight.numel() else 0.0
        if not largest <= (FP16_MAX if values.kind == "fp16" else torch.finfo(torch.float32).max):  # NaN too
            raise InputError(f"{name} has a weight of {largest:g}, which {values} cannot hold.")
    if values.kind == "codebook":
        rate_weight = RATE_WEIGHT * 0.5 ** max(values.bits - RATE_BITS, 0)
        labels = {
            name: _labels(weight, 2**values.bits, rate_weight * _mean_square(weight), drop=name not in spared)
            for name, weight in weights.items()
        }
        settle(model, labels)
        return labels
    for weight in weights.values():
        weight.copy_(weight.half().float() if values.kind == "fp16" else _int8(weight))
        weight.masked_fill_(weight == 0, 0.0)  # -0.0, which what rounds to nothing from below leaves, is a kept value
    _round_others(model)
    return {}


@torch.no_grad()
def settle(model: nn.Module, labels: Labels) -> None:
    """Set every weight to the mean of those with its label, to 8 significant bits, in place; and round the rest.

    Trained together, equal weights may still part by a last bit.
    """
    for name, weight in prunable_weights(model).items():
        index = labels[name].view(-1) + 1
        entries = round_significand(_means(weight.reshape(-1), index), SIGNIFICANT_BITS)
        weight.copy_(entries[index].view(weight.shape))
    _round_others(model)


@torch.no_grad()
def share_gradients(model: nn.Module, labels: Labels) -> None:
    """Give every weight the mean gradient of those with its label, in place, and zeros none.

    What shares a value then goes on sharing it, and zeros stay.

    The mean and not Deep Compression's sum: clipping by value then means the same as for a single weight.
    """
    weights = prunable_weights(model)
    for name, label in labels.items():
        gradient = weights[name].grad
        if gradient is not None:
            index = label.view(-1) + 1
            gradient.copy_(_means(gradient.reshape(-1), index)[index].view(gradient.shape))


def _means(values: Tensor, index: Tensor) -> Tensor:
    """The mean of the values of each index, and 0 for index 0, the zeros; in double precision."""
    counts = torch.bincount(index, minlength=1).clamp(min=1)
    means = torch.bincount(index, weights=values.double(), minlength=1) / counts
    means[0] = 0.0
    return means.float()


def _round_others(model: nn.Module) -> None:
    fold_biases(model)
    weights = {weight.data_ptr() for weight in prunable_weights(model).values()}  # one may have a second name
    for tensor in model.state_dict().values():
        if not isinstance(tensor, Tensor):
            raise InputError("the network's state has more than tensors: build it without extra state.")
        if tensor.data_ptr() not in weights and tensor.is_floating_point():
            tensor.copy_(round_significand(tensor, SIGNIFICANT_BITS))


def round_significand(tensor: Tensor, bits: int) -> Tensor:
    """The nearest numbers of the tensor's type of at most `bits` (1 … 24) significant bits.

    Those that would be infinite are rounded towards zero; NaN and infinity stay as they are.
    """
    significand, exponent = torch.frexp(tensor)
    scaled = significand * 2.0**bits
    nearest, below = (torch.ldexp(r, exponent - bits).to(tensor.dtype) for r in (scaled.round(), scaled.trunc()))
    return torch.where(tensor.isfinite(), torch.where(nearest.isfinite(), nearest, below), tensor)


def _int8(weight: Tensor) -> Tensor:
    if not weight.numel():
        return weight
    rows = weight.flatten(1)
    # eight significant bits: products with 127 are exact, and the step takes two bytes
    steps = round_significand(rows.abs().amax(1, keepdim=True) / INT8_MAX, SIGNIFICANT_BITS)
    multiples = torch.where(steps > 0, torch.round(rows / steps), 0).clamp(-INT8_MAX, INT8_MAX)
    return (multiples * steps).view(weight.shape)


def _mean_square(weight: Tensor) -> float:
    """Of the values that are not zero; 0 if there are none."""
    kept = weight.detach()[weight != 0].double()
    return float(kept.square().mean()) if len(kept) else 0.0


def _labels(weight: Tensor, entries: int, rate_weight: float, *, drop: bool) -> Tensor:
    """Which entry of a codebook made for it each value takes; -1 for zeros and, if it may be dropped, for what is not
    worth its bits."""
    flat = weight.detach().reshape(-1).double().cpu().numpy()
    kept = np.flatnonzero(flat)
    kept = kept[np.argsort(flat[kept], kind="stable")]
    labels, index = np.full(len(flat), -1), np.zeros(0, int)
    for _ in range(DROP_ROUNDS):
        if not len(kept):
            break
        book, edges = entropy_constrained_codebook(flat[kept], entries, rate_weight)
        index = np.searchsorted(edges, flat[kept])
        worth = _worth_keeping(flat[kept], book, index, len(flat), rate_weight)
        if worth.all() or not drop:
            break
        kept, index = kept[worth], index[worth]
    labels[kept] = index
    return torch.from_numpy(labels).view(weight.shape).to(weight.device)


def _worth_keeping(
    values: NDArray[np.float64], book: NDArray[np.float64], index: NDArray[np.int64], size: int, rate_weight: float
) -> NDArray[np.bool_]:
    """Which values of a tensor of `size` weights do less harm rounded, bits counted, than as zeros.

    A kept weight costs the bits of its index and of its position, a zero those of a zero's: taken from their shares.
    """
    bits = -np.log2(np.bincount(index, minlength=len(book)).clip(1) / len(values))
    density = min(len(values) / size, 1 - 1 / max(size, 2))
    position = np.log2((1 - density) / density)
    rounded = np.square(values - book[index]) + rate_weight * (bits[index] + position)
    worth: NDArray[np.bool_] = rounded <= np.square(values)
    return worth


def entropy_constrained_codebook(
    values: NDArray[np.float64], entries: int, rate_weight: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lloyd's algorithm on a line, with the bits of each entry's index in the objective (Chou, Lookabaugh & Gray 1989).

    It minimises the mean of (v - c)^2 + `rate_weight` * -log2(share of c). Plain k-means (`rate_weight` 0) spreads its
    entries so that an entropy coder gains little; at equal error this takes fewer bits.

    Args:
        values: `(N,)`, rising, N at least 1.
        entries: at most so many; those that nothing falls to are dropped.
        rate_weight: of one bit, in squares of the values' unit, at least 0.

    Returns:
        The entries `(K,)`, rising, and the edges between them `(K - 1,)`: `searchsorted(edges, v)` is v's entry.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    book = np.linspace(values[0], values[-1], entries) if values[0] < values[-1] else values[:1]
    cost = np.zeros(len(book))
    ends = np.zeros(0)
    for _ in range(LLOYD_STEPS):
        book, cost, edges = _nearest(book, cost)
        before, ends = ends, np.concatenate([[0], np.searchsorted(values, edges), [len(values)]])
        if np.array_equal(before, ends):
            break
        counts = np.diff(ends)
        used = counts > 0
        book, cost = np.diff(sums[ends])[used] / counts[used], -rate_weight * np.log2(counts[used] / len(values))
    book, _, edges = _nearest(book, cost)
    return book, edges


def _nearest(
    book: NDArray[np.float64], cost: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The entries that some value is cheapest with, their costs, and the edges between them.

    (v - c)^2 + cost is a line in v plus v^2: the entries wanted are those on the lines' lower envelope.
    """
    hull: list[int] = []

    def edge(one: int, other: int) -> float:
        return float((book[one] + book[other]) / 2 + (cost[other] - cost[one]) / (2 * (book[other] - book[one])))

    for entry in range(len(book)):
        while len(hull) > 1 and edge(hull[-2], hull[-1]) >= edge(hull[-1], entry):
            hull.pop()
        hull.append(entry)
    edges = np.array([edge(one, other) for one, other in pairwise(hull)])
    return book[hull], cost[hull], edges
