"""Bit patterns, coded: the upper bits by a table of those that occur, the lower ones as they are.

One scheme serves all values. Of fp32 weights the sign, the exponent and the first bits of the significand are far from
uniform and the rest is noise; of values rounded to fp16 the lowest bits are all zero and cost nothing; of a codebook
the table is the codebook, and there is no rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from netprune.entropy import UNIFORM_BITS, DamagedStreamError, Decoder, Encoder, Words, entropy_bits

MAX_SYMBOLS = 4096
WORD_BITS = 32
HISTOGRAM_BITS = 20
_SYMBOL_BITS = 16
"""Of a table, for a symbol near the last; its own bits come on top where it is far from it."""


def encode_words(encoder: Encoder, words: Words) -> None:
    """Write `words (N,)`; the reader has to know N."""
    if not len(words):
        return
    low = _zeros_below(words)
    _, table, split = min(_options(words, low), key=lambda option: option[0])
    encoder.byte(low)
    encoder.byte(split)
    encoder.number(len(table))
    for step in np.diff(table.astype(np.int64), prepend=0):
        encoder.number(int(step))
    upper = words >> np.uint32(split)
    indices = np.searchsorted(table, upper).astype(np.int32)
    probabilities = encoder.frequencies(np.bincount(indices, minlength=len(table)))
    encoder.symbols(indices, probabilities)
    if split > low:
        encoder.uniform((words & np.uint32((1 << split) - 1)) >> np.uint32(low), 1 << (split - low))


def decode_words(decoder: Decoder, count: int) -> Words:
    """Read `count` words.

    Raises:
        DamagedStreamError: if the streams hold none.
    """
    if not count:
        return np.zeros(0, dtype=np.uint32)
    low, split = decoder.byte(), decoder.byte()
    if low >= WORD_BITS or split >= WORD_BITS or split - low > UNIFORM_BITS:
        raise DamagedStreamError(f"words of {low} and {split} bits")
    steps = [decoder.number(2**WORD_BITS - 1) for _ in range(decoder.number(MAX_SYMBOLS))]
    table = np.cumsum(np.array(steps, dtype=np.int64))
    if not len(table) or any(step == 0 for step in steps[1:]) or int(table[-1]) << split >= 2**WORD_BITS:
        raise DamagedStreamError("a table of words does not rise")
    symbols = decoder.symbols(decoder.frequencies(len(table)), count)
    words: Words = (table.astype(np.uint32) << np.uint32(split))[symbols]
    if split > low:
        words |= decoder.uniform(1 << (split - low), count).astype(np.uint32) << np.uint32(low)
    return words


def words_bits(words: Words) -> float:
    """About how many bits `encode_words` takes."""
    return min(option[0] for option in _options(words, _zeros_below(words))) if len(words) else 0.0


def _zeros_below(words: Words) -> int:
    """How many of the lowest bits are zero in all words."""
    every = int(np.bitwise_or.reduce(words))
    return (every & -every).bit_length() - 1 if every else 0


def _options(words: Words, low: int) -> list[tuple[float, Words, int]]:
    """What can be done: bits in all, the table's symbols, and the number of bits below them."""
    options: list[tuple[float, Words, int]] = []
    if (few := _distinct(words)) is not None:
        values, counts = few
        steps = np.diff(values.astype(np.float64), prepend=0)
        bits = entropy_bits(counts) + (_SYMBOL_BITS + np.log2(steps + 1)).sum()
        options.append((float(bits), values, 0))
    fine = min(HISTOGRAM_BITS, len(words).bit_length() + 6)
    base = max(int(words.max()).bit_length() - fine, 0)
    histogram = np.bincount(words >> np.uint32(base), minlength=1 << fine)
    for split in range(base, min(low + UNIFORM_BITS, WORD_BITS - 1) + 1):
        upper = np.flatnonzero(histogram)
        if len(upper) <= MAX_SYMBOLS:
            rest = max(split - low, 0) * len(words)
            bits = float(entropy_bits(histogram[upper])) + _SYMBOL_BITS * len(upper) + rest
            options.append((bits, upper.astype(np.uint32), split))
        if len(upper) == 1:  # and fewer are no less to write: all that is above is the same
            break
        histogram = histogram.reshape(-1, 2).sum(1) if len(histogram) > 1 else histogram
    return options


def _distinct(words: Words) -> tuple[Words, NDArray[np.int64]] | None:
    """The words that occur and how often, if they are few."""
    sample = words[:: len(words) // (4 * MAX_SYMBOLS) + 1]
    if len(np.unique(sample)) > MAX_SYMBOLS // 2:
        return None
    values, counts = np.unique(words, return_counts=True)
    return (values, counts) if len(values) <= MAX_SYMBOLS else None
