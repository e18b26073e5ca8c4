"""A packed network as a file for other tools."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from netprune.errors import InputError
from netprune.factory import builder
from netprune.files import user_path, write_whole
from netprune.onnx import to_onnx
from netprune.packing import PackedModel, read_packed
from sweeps import registry


def _state_dict(packed: PackedModel) -> bytes:
    file = io.BytesIO()
    torch.save(packed.model.state_dict(), file)
    return file.getvalue()


FORMATS: dict[str, Callable[[PackedModel], bytes]] = {".pt": _state_dict, ".onnx": to_onnx}
"""File name's ending → the file's bytes."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written."""

    origin: str
    """The URI or packed file it was made from."""
    path: Path
    bytes: int


def run_export(model_uri: str, out: str, model: str = "") -> Exported:
    """Write a network as a plain dense state dict or as ONNX.

    Args:
        model_uri: a packed file, or what `registry.fetch_model` takes; empty for `registry.newest_model`.
        out: the file, ending in `.pt` or `.onnx`; one that is there already is never replaced.
        model: `module:function` that builds the network, if it is of the user's own class.

    Raises:
        InputError: for an unknown model or ending, a file that is there already or cannot be written, and as `to_onnx`
            does; nothing is written then.
    """
    path = user_path(out)
    if path.suffix not in FORMATS:
        raise InputError(f"out is {out!r}; it must end in .pt (a plain state dict) or .onnx.")
    if path.exists():
        raise InputError(f"{path} is there already: name another file with out, or remove it.")
    origin = model_uri or registry.newest_model()
    file = user_path(origin)
    if file.is_file():
        packed = read_packed(file, builder(model), max_bytes=sys.maxsize)  # the user's own, however large
    else:
        packed, _ = registry.fetch_model(origin, model)
    data = FORMATS[path.suffix](packed)
    write_whole(path, data)
    return Exported(origin, path, len(data))
