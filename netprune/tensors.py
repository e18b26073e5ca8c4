"""A network's tensors, coded: which weights are kept, then their values; small tensors of a kind together.

What is coded is bit patterns, so every bit comes back, whatever the number format: -0.0 and the payload of a NaN too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netprune.entropy import DamagedStreamError, Decoder, Encoder, Words
from netprune.positions import Bits, cell_shape, decode_positions, encode_positions
from netprune.words import decode_words, encode_words, words_bits

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names as safetensors has them."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
AS_WORDS, AS_STEPS = 0, 1
MAX_MULTIPLE = 127
ZERO_MULTIPLE = 128


@dataclass(frozen=True, slots=True)
class Spec:
    """What is known of a tensor before its values."""

    name: str
    dtype: str
    """A name in `DTYPES`."""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """In memory."""
        return self.size * DTYPES[self.dtype].itemsize


def spec(name: str, tensor: Tensor) -> Spec:
    """The description of a tensor of one of `DTYPES`."""
    return Spec(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))


def encode_tensors(encoder: Encoder, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors on the CPU; the reader has to know their specs, in the same order."""
    words = {name: _words(tensor) for name, tensor in tensors.items()}
    for group in groups([spec(name, tensor) for name, tensor in tensors.items()]):
        if _is_matrix(group[0]):
            _encode_matrix(encoder, words[group[0].name], group[0])
        else:
            encode_words(encoder, np.concatenate([words[member.name] for member in group]))


def decode_tensors(decoder: Decoder, specs: Sequence[Spec]) -> dict[str, Tensor]:
    """Read tensors of these specs.

    Raises:
        DamagedStreamError: if the streams do not hold them.
    """
    found: dict[str, Tensor] = {}
    for group in groups(specs):
        if _is_matrix(group[0]):
            found[group[0].name] = _tensor(_decode_matrix(decoder, group[0]), group[0])
            continue
        lengths = [_word_count(member) for member in group]
        parts = np.split(decode_words(decoder, sum(lengths)), np.cumsum(lengths)[:-1])
        found |= {member.name: _tensor(part, member) for member, part in zip(group, parts, strict=True)}
    return {each.name: found[each.name] for each in specs}


def _is_matrix(each: Spec) -> bool:
    """Whether positions may pay: a weight, not a vector."""
    return len(each.shape) >= 2 and each.size > 0 and DTYPES[each.dtype].itemsize in (2, 4)


def groups(specs: Sequence[Spec]) -> Iterator[list[Spec]]:
    """In the order of coding: matrices alone, then all others by number format and the last part of their name.

    Such vectors (`bias`, `running_var` …) are short, and alike: together they need one table.
    """
    vectors: dict[tuple[str, str], list[Spec]] = {}
    for each in specs:
        if _is_matrix(each):
            yield [each]
        else:
            vectors.setdefault((each.dtype, each.name.rpartition(".")[2]), []).append(each)
    yield from vectors.values()


def _encode_matrix(encoder: Encoder, words: Words, each: Spec) -> None:
    kept = words.reshape(cell_shape(each.shape)) != 0
    sparse = not kept.all()
    encoder.byte(int(sparse))
    if sparse:
        encode_positions(encoder, kept)
    values, lengths = words[kept.reshape(-1)], kept.sum((1, 2))
    steps = _as_steps(values, lengths) if each.dtype == "F32" else None
    if steps is not None and sum(map(words_bits, steps)) < words_bits(values):
        encoder.byte(AS_STEPS)
        for part in steps:
            encode_words(encoder, part)
    else:
        encoder.byte(AS_WORDS)
        encode_words(encoder, values)


def _decode_matrix(decoder: Decoder, each: Spec) -> Words:
    shape = cell_shape(each.shape)
    sparse = decoder.byte()
    kept: Bits = decode_positions(decoder, *shape) if sparse else np.ones(shape, dtype=bool)
    lengths = kept.sum((1, 2))
    count = int(lengths.sum())
    if decoder.byte() == AS_STEPS:
        values = _from_steps(decode_words(decoder, count), decode_words(decoder, len(lengths)), lengths)
    else:
        values = decode_words(decoder, count)
    if not sparse:
        return values
    words = np.zeros(each.size, dtype=np.uint32)
    words[kept.reshape(-1)] = values
    return words


def _as_steps(values: Words, lengths: NDArray[np.int64]) -> tuple[Words, Words] | None:
    """fp32 values as small multiples of a step for each row, where that is exactly what they are.

    Args:
        values: kept values, row after row.
        lengths: how many each row has.

    Returns:
        Multiples + 128, and each row's step as fp32 (0 for an empty row); None for values that are no such multiples.
    """
    used = np.flatnonzero(lengths)
    if not len(used):
        return None
    starts = (np.cumsum(lengths) - lengths)[used]
    row = values[: lengths[used[0]]]
    if _multiples(row, np.zeros(1, dtype=np.int64), lengths[used[:1]]) is None:  # as for nearly every trained network
        return None
    found = _multiples(values, starts, lengths[used])
    if found is None:
        return None
    steps = np.zeros(len(lengths), dtype=np.uint32)
    steps[used] = found[1].view(np.uint32)
    coded = (found[0] + ZERO_MULTIPLE).astype(np.uint32)
    return (coded, steps) if np.array_equal(_from_steps(coded, steps, lengths), values) else None


def _multiples(
    values: Words, starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    """Values as multiples of the greatest common divisor of their row, and that divisor."""
    exponents = np.maximum((values >> np.uint32(23) & np.uint32(255)).astype(np.int64), 1)
    significands = (values & np.uint32(0x7FFFFF)).astype(np.int64) + ((values >> np.uint32(23) & 255) > 0) * 2**23
    least = np.minimum.reduceat(exponents, starts)
    shifts = exponents - np.repeat(least, lengths)
    if shifts.max() > 8 or exponents.max() == 255:  # further apart than multiples up to 127 can be, or not finite
        return None
    whole = significands << shifts
    divisors = np.gcd.reduceat(whole, starts)
    if not divisors.all():  # a row of -0.0 alone
        return None
    multiples = whole // np.repeat(divisors, lengths)
    if multiples.max() > MAX_MULTIPLE:
        return None
    signed = np.where(values >> np.uint32(31), -multiples, multiples)
    return signed, np.ldexp(divisors.astype(np.float64), (least - 150).astype(np.int32)).astype(np.float32)


def _from_steps(coded: Words, steps: Words, lengths: NDArray[np.int64]) -> Words:
    with np.errstate(all="ignore"):
        products = (coded.astype(np.float32) - np.float32(ZERO_MULTIPLE)) * np.repeat(steps.view(np.float32), lengths)
    return products.view(np.uint32)


def _words(tensor: Tensor) -> Words:
    """A tensor's bits: one word a value, two for eight bytes."""
    flat = tensor.detach().contiguous().view(-1)
    if flat.element_size() >= 4:
        return flat.view(torch.int32).numpy().view(np.uint32)
    narrow: dict[int, Callable[[], NDArray[np.generic]]] = {
        2: lambda: flat.view(torch.int16).numpy().view(np.uint16),
        1: lambda: flat.view(torch.uint8).numpy(),
    }
    return narrow[flat.element_size()]().astype(np.uint32)


def _word_count(each: Spec) -> int:
    return each.size * max(DTYPES[each.dtype].itemsize // 4, 1)


def _tensor(words: Words, each: Spec) -> Tensor:
    dtype = DTYPES[each.dtype]
    if not each.size:
        return torch.empty(each.shape, dtype=dtype)
    if dtype.itemsize < 4:
        if int(words.max()) >> 8 * dtype.itemsize or (dtype == torch.bool and (words > 1).any()):
            raise DamagedStreamError(f"{each.name} has values that {each.dtype} has not")
        narrow = words.astype(np.uint16 if dtype.itemsize == 2 else np.uint8)
        flat = torch.from_numpy(narrow.view(np.int16) if dtype.itemsize == 2 else narrow)
    else:
        flat = torch.from_numpy(words.view(np.int32))
    return flat.view(dtype).view(each.shape)
