"""Entropy coding of integers: static tables, and a range coder (constriction) that spends what they say.

The range coder is the queue of the `constriction` package (24 bits of probability, 32-bit words). A table is written
before what it codes, so nothing adapts and whole arrays are coded at once. Probabilities are made from integers alone:
a decoder on another machine makes the same ones.
"""

from __future__ import annotations

import constriction
import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
"""Bit patterns of up to 32 bits."""

UNIFORM_BITS = 24
"""The range coder's precision: the widest field that it codes in one step."""
STEPS_PER_OCTAVE = 12
ABSENT = 255
# relative frequencies, 1/12 octave apart: within 3 %, which costs 0.0002 bits a symbol
_FREQUENCIES = np.round(2.0**40 * 2.0 ** (-np.arange(ABSENT) / STEPS_PER_OCTAVE))


class DamagedStreamError(ValueError):
    """What is read cannot have been written by an `Encoder`."""


def entropy_bits(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Bits that symbols with these counts take, over the last axis of `counts (…, symbols)`."""
    total = counts.sum(-1)
    bits: NDArray[np.float64] = _x_log2_x(total) - _x_log2_x(counts).sum(-1)
    return bits


class Encoder:
    """Takes integers in order; `finish` gives the two streams that a `Decoder` reads them back from."""

    def __init__(self) -> None:
        self._side = bytearray()
        self._coder = constriction.stream.queue.RangeEncoder()

    def byte(self, value: int) -> None:
        """A number in 0 … 255, as it is."""
        self._side.append(value)

    def number(self, value: int) -> None:
        """A number of at least 0, seven bits a byte, the lowest first."""
        while value >= 128:
            self._side.append(value & 127 | 128)
            value >>= 7
        self._side.append(value)

    def frequencies(self, counts: NDArray[np.integer]) -> NDArray[np.float64]:
        """The table of symbols 0 … len(counts) - 1; returns the probabilities that a decoder will make of it."""
        most = counts.max()
        scaled = np.round(-STEPS_PER_OCTAVE * np.log2(np.maximum(counts, 1) / most))
        codes = np.where(counts > 0, np.minimum(scaled, ABSENT - 1), ABSENT).astype(np.uint8)
        self._side += codes.tobytes()
        return _probabilities(codes)

    def symbols(self, symbols: NDArray[np.integer], probabilities: NDArray[np.float64]) -> None:
        """Integers in 0 … len(probabilities) - 1, each with a probability above 0."""
        if len(probabilities) > 1 and len(symbols):
            self._coder.encode(np.ascontiguousarray(symbols, dtype=np.int32), _categorical(probabilities))

    def uniform(self, values: NDArray[np.integer], size: int) -> None:
        """Integers in 0 … size - 1, all as likely; `size` at most 2^24."""
        if size > 1 and len(values):
            model = constriction.stream.model.Uniform(size)
            self._coder.encode(np.ascontiguousarray(values, dtype=np.int32), model)

    @property
    def spent(self) -> tuple[int, int]:
        """Bytes of the tables and of the range coder's words so far; what comes next may still finish its last word."""
        return len(self._side), 4 * self._coder.num_words()

    def finish(self) -> tuple[bytes, bytes]:
        """The tables' bytes, and the range coder's words, little-endian."""
        return bytes(self._side), self._coder.get_compressed().astype("<u4").tobytes()


class Decoder:
    """Reads what an `Encoder` wrote, with the same calls in the same order.

    Raises:
        DamagedStreamError: from any method, when the streams end early or say what no encoder says.
    """

    def __init__(self, side: bytes, coded: bytes) -> None:
        if len(coded) % 4:
            raise DamagedStreamError("the coded stream is not whole words")
        self._side, self._at = side, 0
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(coded, dtype="<u4").astype(np.uint32))

    def byte(self) -> int:
        """See `Encoder.byte`."""
        return self._take(1)[0]

    def number(self, most: int) -> int:
        """See `Encoder.number`; refuses one above `most`."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if value > most or shift > 70:
                raise DamagedStreamError(f"a number is above {most}")
            if byte < 128:
                return value

    def frequencies(self, count: int) -> NDArray[np.float64]:
        """See `Encoder.frequencies`."""
        codes = np.frombuffer(self._take(count), dtype=np.uint8)
        if (codes == ABSENT).all():
            raise DamagedStreamError("a table is empty")
        return _probabilities(codes)

    def symbols(self, probabilities: NDArray[np.float64], count: int) -> NDArray[np.int32]:
        """See `Encoder.symbols`."""
        if len(probabilities) == 1 or not count:
            return np.zeros(count, dtype=np.int32)
        return self._decode(_categorical(probabilities), count)

    def uniform(self, size: int, count: int) -> NDArray[np.int32]:
        """See `Encoder.uniform`."""
        if size == 1 or not count:
            return np.zeros(count, dtype=np.int32)
        return self._decode(constriction.stream.model.Uniform(size), count)

    def finish(self) -> None:
        """Nothing may be left over."""
        if self._at != len(self._side) or not self._coder.maybe_exhausted():
            raise DamagedStreamError("the streams are longer than what they hold")

    def _take(self, count: int) -> bytes:
        taken = self._side[self._at : self._at + count]
        if len(taken) < count:
            raise DamagedStreamError("the tables end early")
        self._at += count
        return taken

    def _decode(self, model: object, count: int) -> NDArray[np.int32]:
        try:
            decoded: NDArray[np.int32] = self._coder.decode(model, count)
        except AssertionError:  # constriction's way to say that no encoder wrote this
            raise DamagedStreamError("the coded stream does not fit its tables") from None
        return decoded


def _probabilities(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.where(codes == ABSENT, 0.0, _FREQUENCIES[np.minimum(codes, ABSENT - 1)])


def _categorical(probabilities: NDArray[np.float64]) -> object:
    # perfect=False in words: the default of `constriction` changed between versions, and it decides the bits
    return constriction.stream.model.Categorical(probabilities, perfect=False, lazy=False)


def _x_log2_x(x: NDArray[np.integer]) -> NDArray[np.float64]:
    products: NDArray[np.float64] = x * np.log2(np.maximum(x, 1))
    return products
