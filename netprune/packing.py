"""The file a user ships: kept values, their positions, and all it takes to build the network again.

**The format, version 2.** Numbers are little-endian. The file is

1. the eight bytes `NETPRUNE`, the version as one byte, and the length of the first frame as four;
2. two zstd frames, both with content size and checksum: the first holds the container up to the coded stream, the
   second the coded stream. Decompressed and put together they are one safetensors container with two entries of bytes,
   `0.tables` and `1.coded`, and in its metadata, under `netprune`, the header as JSON:

   | key | |
   |---|---|
   | `architecture` | `{"name", "num_classes", "width"}`, or null for a network of the user's own class |
   | `classes` | names of the outputs, in order |
   | `image_size` | side of the images that it takes, in pixels; 32 where it is left out |
   | `mean`, `std` | per channel, of pixels in [0, 1] |
   | `dense_digest` | SHA-256 of the dense network that was pruned |
   | `digest` | SHA-256 of the tensors here (`weights.state_digest`): what a reader decodes is held against it |
   | `tensors` | `[name, type, shape]` in the order of the state dict; types as safetensors names them |
   | `aliases` | tensor that shares its memory with another → that other |

3. `1.coded` is one stream of a range coder (`constriction`'s queue: 32-bit words, 24 bits of probability), and
   `0.tables` what its models are made of. Both are read from the front to the end, once:

   - Weights (tensors of two axes or more, of 2- or 4-byte values) come one by one, in order; then all other tensors,
     grouped by type and the last part of their name, each group as one array of words. A word is the 32 (or fewer)
     bits of a value; 8-byte values are two words, the lower first.
   - A weight is a byte, 1 if it has zeros, 0 if it has none; with zeros, positions; then a byte, and its values that
     are not all zero bits, row after row: 0 for words, 1 for multiples (words: multiple + 128) and steps (words: fp32,
     one for each row of the first axis), whose fp32 products are the values.
   - Words: a byte L, a byte S, the number D of symbols, D increasing symbols as differences, D frequencies; then
     every word's upper 32 - S bits as a symbol's index, then every word's bits L … S - 1 as uniform numbers. Lower bits
     are zero. For no words at all nothing is written.
   - Positions: the tensor is rows (first axis) by columns by cells (`positions.cell_shape`). A byte for the model; a
     word for each row and one for each column: 0 means empty, and the sum of a row's and a column's word is the class
     of the cells where they meet. For each class from the least that occurs on: its table (model 0: a frequency for
     every count of kept weights from 0 to the cell's size; model 1: one byte o, and the count is binomial with odds
     2^((o - 128) / 8)), then the counts of its cells, in order. Last, for every count from 1 to the cell's size - 1,
     which of the patterns with so many kept weights each such cell has, as uniform numbers; patterns are bit masks in
     rising order, the cell's first weight the lowest bit.
   - A frequency is a byte f: 255 for a symbol that does not occur, else 2^(-f / 12) relative to the others. Numbers in
     the tables are seven bits a byte, the lowest first, the highest bit set where more follows.

Nothing in the file is executed, and no name in it is imported: the architecture is looked up in `models.MODELS`, and a
network of the user's own class is built by the reader (`factory` says on whose word).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from netprune.container import damaged, seal, unseal
from netprune.entropy import DamagedStreamError, Decoder, Encoder
from netprune.errors import InputError
from netprune.header import PackedHeader, describe_header, parse_aliases, parse_header, parse_specs
from netprune.models import build_model
from netprune.tensors import DTYPE_NAMES, DTYPES, Spec, decode_tensors, encode_tensors, spec
from netprune.weights import WITHOUT_VALUES, differing_head, require_tied, state_digest, tied

MAX_BYTES = 2**30
"""Of a network's tensors, unless the caller allows more: what a hostile file can make a reader take."""
Builder = Callable[[PackedHeader], nn.Module]
"""Builds the network of a file that names no architecture."""


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A network out of its file."""

    model: nn.Module
    """In train mode, on the CPU (a module that the caller gave: as it was); its weights equal bit for bit what was
    packed."""
    header: PackedHeader


def pack(model: nn.Module, header: PackedHeader) -> bytes:
    """Encode `model`, whose architecture is `header.architecture`, as a packed file.

    Raises:
        InputError: for a state that is not plain tensors (another layout or type, or a module's extra state), or not
            that of `header.architecture`: no reader would take the file.
    """
    state, aliases = plain_state(model)
    specs = _specs_of(state)
    if header.architecture is not None and not _is_of(_skeleton(header), header, specs, aliases):
        raise InputError(
            f"the network is not the {header.architecture.name} that its header names (the names, types or shapes of "
            f"its tensors, or its classes): name the architecture as it was built, with float32 weights, or None."
        )
    encoder = Encoder()
    encode_tensors(encoder, state)
    described = {
        **describe_header(header),
        "digest": state_digest(state),
        "tensors": [dataclasses.astuple(each) for each in specs],
        "aliases": aliases,
    }
    return seal(described, *encoder.finish())


def unpack(data: bytes, into: nn.Module | Builder | None = None, *, max_bytes: int = MAX_BYTES) -> PackedModel:
    """Decode a packed file.

    Args:
        data: the file's bytes.
        into: a module to load the weights into, all or nothing; needed for a network of the user's own class. Or a
            function that builds such a module, called for a file of the user's own class only.
        max_bytes: of the tensors of a network that is built here, in memory.

    Raises:
        InputError: if `data` is not a packed file of this version, is damaged, declares a network larger than
            `max_bytes`, or does not fit `into`.
    """
    described, tables, coded = unseal(data)
    try:
        header = parse_header(described)
        specs = parse_specs(described["tensors"])
        aliases = parse_aliases(described["aliases"], specs)
        digest = described["digest"]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise damaged(error) from None
    given, total = _given(header, into), sum(each.bytes for each in specs)
    if given is not None:  # before anything is decoded: what fits takes memory as the network does, a few times over
        named = {each.name: each for each in specs}
        named |= {name: named[other] for name, other in aliases.items()}
        if differing_head(given, {name: each.shape for name, each in named.items()}):
            raise InputError(
                f"the network given has another number of classes than the file's {len(header.classes)}: build it for "
                f"as many."
            )
        _require_types(given, named)
    elif total > max_bytes:
        raise InputError(
            f"the netprune file declares {total:,} bytes of weights, above the limit of {max_bytes:,}: if you trust "
            f"it, load it with a larger max_bytes."
        )
    target = given if given is not None else _target(header, specs, aliases)
    try:
        decoder = Decoder(tables, coded)
        state = decode_tensors(decoder, specs)
        decoder.finish()
        if state_digest(state) != digest:
            raise DamagedStreamError("its weights are not those that were packed")
    except (DamagedStreamError, ValueError, MemoryError) as error:
        raise damaged(error) from None
    state |= {name: state[other] for name, other in aliases.items()}
    if given is not None:
        require_tied(given, state)
        given.load_state_dict(state)
    else:
        target.load_state_dict(state, assign=True)
    return PackedModel(target, header)


def _given(header: PackedHeader, into: nn.Module | Builder | None) -> nn.Module | None:
    if into is None or isinstance(into, nn.Module):
        return into
    return into(header) if header.architecture is None else None


def read_packed(
    path: str | Path, into: nn.Module | Builder | None = None, *, max_bytes: int = MAX_BYTES
) -> PackedModel:
    """Read a packed file.

    Raises:
        InputError: if it is absent, and as `unpack` does.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None
    try:
        return unpack(data, into, max_bytes=max_bytes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def load(path: str | Path, into: nn.Module | Builder | None = None, *, max_bytes: int = MAX_BYTES) -> nn.Module:
    """The network in a packed file, ready to train. See `unpack` for the arguments and what is raised."""
    return read_packed(path, into, max_bytes=max_bytes).model


def plain_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict on the CPU with every memory once, and name → name of those that share one."""
    found = model.state_dict()
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype not in DTYPE_NAMES:
            what = f"{tensor.layout}, {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError(f"{name} cannot be packed ({what}): a packed file holds plain dense tensors.")
        if tensor.is_meta or is_lazy(tensor):
            raise InputError(f"{name} cannot be packed: it has no values. Mend: {WITHOUT_VALUES}")
    aliases = tied(found)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items() if name not in aliases}, aliases


def _require_types(model: nn.Module, named: Mapping[str, Spec]) -> None:
    """Refuse a module that would round what it is given, or give it another number format."""
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise InputError(f"{name} of the network given has no values to be replaced: {WITHOUT_VALUES}")
        if tensor.dtype != DTYPES[named[name].dtype]:
            raise InputError(
                f"the weights do not fit: {name} is {DTYPES[named[name].dtype]} in the file and {tensor.dtype} in the "
                f"network; build the network with the file's number format, and convert it once it is loaded."
            )


def _target(header: PackedHeader, specs: Sequence[Spec], aliases: Mapping[str, str]) -> nn.Module:
    """The network that the header describes, without values or memory; refused unless its tensors are `specs`."""
    if header.architecture is None:
        raise InputError(
            "this file holds a network of the user's own class, which it does not name: build the network, and give it "
            "as netprune.load(path, into=network)."
        )
    try:
        model = _skeleton(header)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise damaged(error) from None
    if not _is_of(model, header, specs, aliases):
        raise damaged(ValueError("its tensors are not those of its architecture"))
    return model


def _skeleton(header: PackedHeader) -> nn.Module:
    """The network of the header's architecture, without values or memory."""
    assert header.architecture is not None
    with torch.device("meta"):
        return build_model(header.architecture, image_size=header.image_size)


def _is_of(skeleton: nn.Module, header: PackedHeader, specs: Sequence[Spec], aliases: Mapping[str, str]) -> bool:
    """Whether tensors and classes are those of an architecture's skeleton."""
    assert header.architecture is not None
    same = not aliases and _specs_of(skeleton.state_dict()) == list(specs)
    return same and len(header.classes) == header.architecture.num_classes


def _specs_of(state: Mapping[str, Tensor]) -> list[Spec]:
    return [spec(name, tensor) for name, tensor in state.items()]
