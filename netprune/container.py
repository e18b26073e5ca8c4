"""The packed file's outside: magic, version, and a safetensors container in two zstd frames with checksums.

A reader trusts nothing: what is read is bounded by the file's own length, and whatever is wrong ends in one error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
import zstandard
from safetensors import SafetensorError

from netprune.errors import InputError

MAGIC, VERSION = b"NETPRUNE", 2
TABLES, CODED = "0.tables", "1.coded"
"""Entries of the container, in its order: safetensors sorts equal types by name."""
METADATA = "netprune"
LENGTH_BYTES = 4
MAX_RATIO, MIN_LIMIT = 64, 1 << 24
"""What is not coded compresses by less than that; a file that claims more is not ours."""
MIN_HEADER_LIMIT = 1 << 20
"""Bytes of a header's text that any file may have, enough for some twenty thousand tensors. JSON takes up to fifty
times its length when it is read, so that a header beyond it has to be no longer than its file."""


def seal(header: Mapping[str, Any], tables: bytes, coded: bytes) -> bytes:
    """Make a file of its parts."""
    text = json.dumps(header, separators=(",", ":"))
    arrays = {name: np.frombuffer(part, dtype=np.uint8) for name, part in ((TABLES, tables), (CODED, coded))}
    container = safetensors.numpy.save(arrays, metadata={METADATA: text})
    cut = len(container) - len(coded)
    # the coder's words do not compress, and beside them the rest would compress less
    frames = [
        zstandard.ZstdCompressor(level=level, write_checksum=True).compress(part)
        for level, part in ((19, container[:cut]), (1, container[cut:]))
    ]
    return MAGIC + bytes([VERSION]) + len(frames[0]).to_bytes(LENGTH_BYTES, "little") + b"".join(frames)


def unseal(data: bytes) -> tuple[dict[str, Any], bytes, bytes]:
    """Header, tables and coded stream of a file.

    Memory is bounded by the file's length: a few times what it decompresses to, which is at most 64 times its length or
    16 MiB, and fifty times its header's text, which is at most its length or 1 MiB.

    Raises:
        InputError: if `data` is no such file, is of another version, or is damaged.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise InputError("this is not a netprune file: it does not begin with NETPRUNE.")
    if data[len(MAGIC) : len(MAGIC) + 1] != bytes([VERSION]):
        raise InputError(f"this netprune file is of another version: this netprune reads version {VERSION}.")
    try:
        container = _decompress(data[len(MAGIC) + 1 :])
        length = int.from_bytes(container[:8], "little")
        if length > max(len(data), MIN_HEADER_LIMIT):
            raise ValueError("its header is longer than it can be")
        arrays = safetensors.numpy.load(container)
        # it gives tensors only
        header = json.loads(json.loads(container[8 : 8 + length])["__metadata__"][METADATA])
        if not isinstance(header, dict) or arrays.keys() != {TABLES, CODED}:
            raise ValueError("its container holds something else")
        return header, arrays[TABLES].tobytes(), arrays[CODED].tobytes()
    except (zstandard.ZstdError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(error) from None


def first_frame(data: bytes) -> tuple[int, int]:
    """Length of a sound file's first frame, and of what it holds: header, container and tables."""
    frames = data[len(MAGIC) + 1 :]
    length = int.from_bytes(frames[:LENGTH_BYTES], "little")
    return length, zstandard.frame_content_size(frames[LENGTH_BYTES : LENGTH_BYTES + length])


def damaged(error: Exception) -> InputError:
    """What is said of a damaged file."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(f"the netprune file is damaged: {reason}")


def _decompress(frames: bytes) -> bytes:
    first = int.from_bytes(frames[:LENGTH_BYTES], "little")
    parts = frames[LENGTH_BYTES : LENGTH_BYTES + first], frames[LENGTH_BYTES + first :]
    # one call a frame: zstd then writes no more than the frame declares, and wants all of it
    if sum(zstandard.frame_content_size(part) for part in parts) > max(MAX_RATIO * len(frames), MIN_LIMIT):
        raise ValueError("it declares more than it can hold")
    return b"".join(zstandard.ZstdDecompressor().decompress(part, allow_extra_data=False) for part in parts)
