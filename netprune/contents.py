"""What the bytes of a packed file are spent on, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from netprune.container import first_frame, unseal
from netprune.entropy import Encoder
from netprune.packing import plain_state
from netprune.tensors import encode_tensors, groups, spec


@dataclass(frozen=True, slots=True)
class Contents:
    """The file's length in parts, in bytes; together they are all of it."""

    tensors: Mapping[str, float]
    """Tensor name → bytes, in the order of coding."""
    rest: float
    """Header, container, frames and checksums."""


def file_contents(data: bytes, model: nn.Module) -> Contents:
    """How a packed file's length is shared by the tensors of `model`, which was loaded from it.

    The coded stream is written tensor after tensor and does not compress: its bytes, to a word of four, are a tensor's
    own. Tables and header are compressed together: that frame is shared in proportion to the lengths before the
    compression. Vectors of one kind (all biases, say) are coded as one array with one table: each has its part by the
    number of its values.

    Raises:
        ValueError: if the file is not that network's.
    """
    _, tables, coded = unseal(data)
    encoder, state = Encoder(), plain_state(model)[0]
    lengths: dict[str, tuple[float, float]] = {}
    for group in groups([spec(name, tensor) for name, tensor in state.items()]):
        before = encoder.spent
        encode_tensors(encoder, {each.name: state[each.name] for each in group})
        taken = [now - then for now, then in zip(encoder.spent, before, strict=True)]
        values = max(1, sum(each.size for each in group))
        lengths |= {each.name: (taken[0] * each.size / values, taken[1] * each.size / values) for each in group}
    if encoder.finish() != (tables, coded):
        raise ValueError("the file is of another network")
    compressed, plain = first_frame(data)
    tensors = {name: table * compressed / plain + words for name, (table, words) in lengths.items()}
    return Contents(tensors, len(data) - sum(tensors.values()))
