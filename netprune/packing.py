"""The file a user ships: kept values, their positions, and all it takes to build the network again.

Layout, version 1: the eight bytes `NETPRUNE`, the version as one byte, then one zstd frame, with its checksum, around a
safetensors container. A tensor with enough zeros is stored as `<name>:mask` (one bit a value, numpy's packbits order)
and `<name>:values` (fp32, the values whose bits are not all zero); any other is stored as it is. The container's
metadata holds the header as JSON. Nothing in the file is executed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import zstandard
from safetensors import SafetensorError
from torch import Tensor, nn

from netprune.errors import InputError
from netprune.models import Architecture, build_model

MAGIC, VERSION = b"NETPRUNE", 1
ZSTD_LEVEL = 9
MASK, VALUES = ":mask", ":values"


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedHeader:
    """What a packed file says of its network."""

    architecture: Architecture
    classes: tuple[str, ...]
    """Names of the outputs, in order."""
    mean: tuple[float, float, float]
    """Per channel, of pixels in [0, 1]: inputs are normalised with it."""
    std: tuple[float, float, float]
    """Per channel, of pixels in [0, 1]."""
    dense_digest: str
    """`weights_digest()` of the dense network it was pruned from (its own, if it is dense)."""


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A network out of its file."""

    model: nn.Module
    """In train mode, on the CPU; its weights equal bit for bit what was packed."""
    header: PackedHeader


def pack(model: nn.Module, header: PackedHeader) -> bytes:
    """Encode `model`, whose architecture is `header.architecture`, as a packed file."""
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        # bits, not values: -0.0 is a value of its own, and has to come back
        kept = tensor.view(torch.int32) != 0 if tensor.dtype == torch.float32 and tensor.dim() > 0 else None
        if kept is None or not _sparse_enough(kept):
            stored[name] = tensor
            continue
        stored[name + MASK] = torch.from_numpy(np.packbits(kept.numpy()))
        stored[name + VALUES] = tensor[kept]
        shapes[name] = list(tensor.shape)
    text = json.dumps({**dataclasses.asdict(header), "shapes": shapes})
    container = safetensors.torch.save(stored, metadata={"netprune": text})
    return (
        MAGIC + bytes([VERSION]) + zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compress(container)
    )


def unpack(data: bytes) -> PackedModel:
    """Decode a packed file.

    Raises:
        InputError: if `data` is not a packed file of this version, or is damaged.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise InputError("this is not a netprune file: it does not begin with NETPRUNE.")
    if data[len(MAGIC) : len(MAGIC) + 1] != bytes([VERSION]):
        raise InputError(f"this netprune file is of another version: this netprune reads version {VERSION}.")
    try:
        container = zstandard.ZstdDecompressor().decompress(data[len(MAGIC) + 1 :])
        stored, meta = safetensors.torch.load(container), _metadata(container)
        shapes = meta.pop("shapes")
        header = _header(meta)
        state = {name: tensor for name, tensor in stored.items() if not name.endswith((MASK, VALUES))}
        state |= {name: _unmask(stored[name + MASK], stored[name + VALUES], s) for name, s in shapes.items()}
        model = build_model(header.architecture)
        model.load_state_dict(state)
    except InputError:
        raise
    except (zstandard.ZstdError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise InputError(
            f"the netprune file is damaged: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from None
    return PackedModel(model, header)


def write_packed(path: Path, data: bytes) -> None:
    """Write a packed file whole or not at all: a file that is there already survives a failed write."""
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def read_packed(path: str | Path) -> PackedModel:
    """Read a packed file.

    Raises:
        InputError: if it is absent, is not a packed file, or is damaged.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None
    try:
        return unpack(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def load(path: str | Path) -> nn.Module:
    """The network in a packed file, ready to train. See `read_packed` for what is raised."""
    return read_packed(path).model


def _sparse_enough(kept: Tensor) -> bool:
    # a bit a position pays once one value in 32 is zero
    return int(kept.sum()) * 32 + kept.numel() < kept.numel() * 32


def _unmask(mask: Tensor, values: Tensor, shape: list[int]) -> Tensor:
    kept = np.unpackbits(mask.numpy(), count=math.prod(shape)).astype(bool)
    dense = torch.zeros(math.prod(shape))
    dense[torch.from_numpy(kept)] = values
    return dense.view(shape)


def _metadata(container: bytes) -> dict[str, Any]:
    # safetensors.torch.load gives tensors only; the header's length stands in the first eight bytes (its format page)
    length = int.from_bytes(container[:8], "little")
    loaded: dict[str, Any] = json.loads(json.loads(container[8 : 8 + length])["__metadata__"]["netprune"])
    return loaded


def _header(meta: Mapping[str, Any]) -> PackedHeader:
    mean, std = tuple(map(float, meta["mean"])), tuple(map(float, meta["std"]))
    if len(mean) != 3 or len(std) != 3:
        raise ValueError("mean and std need three values each")
    return PackedHeader(
        architecture=Architecture(**meta["architecture"]),
        classes=tuple(meta["classes"]),
        mean=mean,
        std=std,
        dense_digest=meta["dense_digest"],
    )
