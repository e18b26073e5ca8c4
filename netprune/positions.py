"""Which weights of a tensor are kept: counts in cells, coded by how full their row and column are.

A cell is what one output channel sees of one input channel: nine weights of a 3 x 3 convolution, one of a linear layer.
Pruned networks keep some channels and lose others, so the number kept in a cell goes by the product of its row's and
its column's density (for a table of counts, independence is the maximum-likelihood model). Cells are put into classes
by that product, each class has its own table of counts, and where in its cell the kept weights lie is coded as uniform:
what is left of structure there was measured, and does not pay for its description.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from netprune.entropy import DamagedStreamError, Decoder, Encoder, Words, entropy_bits
from netprune.words import decode_words, encode_words, words_bits

Bits = NDArray[np.bool_]

MAX_CELL = 12
"""Weights in a cell: all patterns of one are listed."""
MAX_CODE = 127
"""Of a row's or column's fullness, in half octaves: the sum of two fits a byte."""
FREE, BINOMIAL = 0, 1
"""What is said of a class: a frequency for every count, or the odds of being kept."""
ODDS_STEPS = 8
# a power of two times a rounded fraction: the same on every machine
_FRACTIONS = [round(2**30 * 2 ** (step / ODDS_STEPS)) / 2**30 for step in range(ODDS_STEPS)]
_ODDS = [2.0 ** (step // ODDS_STEPS) * _FRACTIONS[step % ODDS_STEPS] for step in range(-128, 128)]


def cell_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Rows, columns and cell size in which a tensor of `shape` (at least two axes) is coded.

    Rows are the first axis; a cell is as many of the last axes, from the third on, as have at most `MAX_CELL` weights
    together (a kernel, or a row of a large one), or a single weight.
    """
    cells = (math.prod(shape[first:]) for first in range(2, len(shape)))
    cell = next((size for size in cells if 0 < size <= MAX_CELL), 1)
    return shape[0], math.prod(shape[1:]) // cell, cell


def encode_positions(encoder: Encoder, kept: Bits) -> None:
    """Write `kept (rows, columns, cell)`."""
    cell = kept.shape[2]
    patterns = _patterns(kept)
    counts = _sizes(cell)[patterns]
    model, *codes = _choose(counts, cell)
    encoder.byte(model)
    for code in codes:
        encode_words(encoder, code)
    for members in _classes(*codes):
        found = counts.reshape(-1)[members]
        table = np.bincount(found, minlength=cell + 1)
        if model == BINOMIAL:
            odds = _odds(table)
            encoder.byte(odds)
            encoder.symbols(found, _binomial(odds, cell))
        else:
            encoder.symbols(found, encoder.frequencies(table))
    flat, sizes = patterns.reshape(-1), counts.reshape(-1)
    for size in range(1, cell):
        encoder.uniform(_ranks(cell)[flat[sizes == size]], math.comb(cell, size))


def decode_positions(decoder: Decoder, rows: int, columns: int, cell: int) -> Bits:
    """Read what `encode_positions` wrote: `(rows, columns, cell)`.

    Raises:
        DamagedStreamError: if the streams hold none.
    """
    model = decoder.byte()
    codes = decode_words(decoder, rows), decode_words(decoder, columns)
    if any(len(code) and code.max() > MAX_CODE for code in codes):
        raise DamagedStreamError("a row or column is fuller than it can be")
    sizes = np.zeros(rows * columns, dtype=np.uint8)
    for members in _classes(*codes):
        table = _binomial(decoder.byte(), cell) if model == BINOMIAL else decoder.frequencies(cell + 1)
        sizes[members] = decoder.symbols(table, len(members))
    patterns = np.where(sizes == cell, (1 << cell) - 1, 0).astype(np.uint16)
    for size in range(1, cell):
        members = np.flatnonzero(sizes == size)
        of_size = np.flatnonzero(_sizes(cell) == size).astype(np.uint16)
        patterns[members] = of_size[decoder.uniform(len(of_size), len(members))]
    bits = (np.arange(1 << cell)[:, None] >> np.arange(cell) & 1).astype(bool)
    return bits[patterns].reshape(rows, columns, cell)


def _patterns(kept: Bits) -> NDArray[np.uint16]:
    """Every cell's weights as the bits of one number, the first the lowest."""
    patterns = np.zeros(kept.shape[:2], dtype=np.uint16)
    for place in range(kept.shape[2]):
        patterns |= kept[:, :, place].astype(np.uint16) << np.uint16(place)
    return patterns


@cache
def _sizes(cell: int) -> NDArray[np.uint8]:
    """Pattern → weights kept."""
    return np.array([pattern.bit_count() for pattern in range(1 << cell)], dtype=np.uint8)


@cache
def _ranks(cell: int) -> NDArray[np.int32]:
    """Pattern → its place among those that keep as many."""
    ranks = np.zeros(1 << cell, dtype=np.int32)
    for size in range(cell + 1):
        of_size = np.flatnonzero(_sizes(cell) == size)
        ranks[of_size] = np.arange(len(of_size))
    return ranks


def _classes(rows: Words, columns: Words) -> Iterator[NDArray[np.int64]]:
    """The cells of each class, in order; cells of a row or column with code 0 are empty and in none."""
    classes = np.where((rows[:, None] > 0) & (columns > 0), rows[:, None] + columns, 0).astype(np.uint8).reshape(-1)
    order = np.argsort(classes, kind="stable")
    ends = np.cumsum(np.bincount(classes))
    for start, end in pairwise(ends):
        if end > start:
            yield order[start:end]


def _choose(counts: NDArray[np.uint8], cell: int) -> tuple[int, Words, Words]:
    """The model, and codes of rows and columns (by fullness in half or whole octaves, or alike), by the least bits."""
    fine = _half_octaves(counts.sum(1, dtype=np.int64)), _half_octaves(counts.sum(0, dtype=np.int64))
    shape = int(fine[0].max()) + 1, int(fine[1].max()) + 1, cell + 1
    places = (fine[0][:, None] * np.uint32(shape[1]) + fine[1]) * np.uint32(shape[2]) + counts
    joint = np.bincount(places.reshape(-1), minlength=math.prod(shape)).reshape(shape)
    coarsers = {by for pair in COARSERS for by in pair}  # each is in several pairs
    coarsened = [{by: (found := by(codes), words_bits(found)) for by in coarsers} for codes in fine]
    options: list[tuple[float, int, Words, Words]] = []
    for rows_by, columns_by in COARSERS:
        levels = [np.arange(n, dtype=np.uint32) for n in shape[:2]]
        coarse = rows_by(levels[0])[:, None], columns_by(levels[1])
        classes = np.where((coarse[0] > 0) & (coarse[1] > 0), coarse[0] + coarse[1], 0)
        tables = np.zeros((int(classes.max()) + 1, cell + 1), dtype=np.int64)
        np.add.at(tables, classes, joint)
        tables = tables[1:][tables[1:].any(1)]
        (row_codes, row_bits), (column_codes, column_bits) = coarsened[0][rows_by], coarsened[1][columns_by]
        side = row_bits + column_bits
        binomial = sum(-(table * np.log2(_shares(_binomial(_odds(table), cell)))).sum() + 8 for table in tables)
        free = float(entropy_bits(tables).sum()) + 8 * tables.size
        options += [
            (side + free, FREE, row_codes, column_codes),
            (side + float(binomial), BINOMIAL, row_codes, column_codes),
        ]
    _, model, row_codes, column_codes = min(options, key=lambda option: option[0])
    return model, row_codes, column_codes


def _odds(table: NDArray[np.integer]) -> int:
    """Of being kept, in eighths of an octave around 128, for a class whose cells have these counts."""
    kept = int((table * np.arange(len(table))).sum())
    lost = int(table.sum()) * (len(table) - 1) - kept
    return round(min(max(ODDS_STEPS * math.log2((kept + 0.01) / (lost + 0.01)), -128), 127)) + 128


def _binomial(odds: int, cell: int) -> NDArray[np.float64]:
    """Relative probabilities of 0 … `cell` kept; multiplications alone, so that every machine finds the same."""
    of_one = _ODDS[odds]
    powers = np.cumprod(np.concatenate([[1.0], np.full(cell, of_one)]))
    return powers * [math.comb(cell, size) for size in range(cell + 1)]


def _shares(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def _half_octaves(sums: NDArray[np.int64]) -> Words:
    """0 for none, then half octaves, from 1."""
    return np.where(sums > 0, np.floor(2 * np.log2(np.maximum(sums, 1))) + 1, 0).astype(np.uint32)


def _same(codes: Words) -> Words:
    return codes


def _octaves(codes: Words) -> Words:
    return (codes + np.uint32(1)) // np.uint32(2)


def _alike(codes: Words) -> Words:
    return np.minimum(codes, np.uint32(1))


COARSERS = (
    (_alike, _alike),
    (_octaves, _octaves),
    (_same, _same),
    (_octaves, _alike),
    (_alike, _octaves),
    (_same, _alike),
    (_alike, _same),
)
