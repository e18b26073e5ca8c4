"""Files that other tools write of a network without loss, and how they are read again."""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.torch
import scipy.sparse
import torch
import zstandard
from torch import Tensor

State = Mapping[str, Tensor]
Write = Callable[[State], bytes]
Read = Callable[[bytes], State]


def torch_save(state: Any) -> bytes:
    """A state dict as `torch.save` writes it."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def torch_load(data: bytes) -> dict[str, Tensor]:
    """What `torch_save` wrote."""
    return dict(torch.load(io.BytesIO(data)))


def save_csr(state: State) -> bytes:
    """Weights as compressed sparse rows with 32-bit indices, a row an output channel."""
    stored: dict[str, Any] = dict(state)
    for name, tensor in state.items():
        if tensor.ndim > 1:
            rows = tensor.flatten(1).to_sparse_csr()
            parts = rows.crow_indices().int(), rows.col_indices().int(), rows.values()
            stored[name] = torch.sparse_csr_tensor(*parts, rows.shape), tensor.shape
    return torch_save(stored)


def load_csr(data: bytes) -> State:
    """What `save_csr` wrote."""
    stored = torch_load(data)
    return {k: v if isinstance(v, Tensor) else v[0].to_dense().view(v[1]) for k, v in stored.items()}


def save_scipy(state: State) -> bytes:
    """One compressed `.npz` by scipy for every weight, one by numpy for the rest."""
    parts = []
    for name, tensor in state.items():
        if tensor.ndim > 1:
            file = io.BytesIO()
            scipy.sparse.save_npz(file, scipy.sparse.csr_array(tensor.flatten(1).numpy()), compressed=True)
            parts.append((name, file.getvalue(), tuple(tensor.shape)))
    rest = io.BytesIO()
    others: dict[str, Any] = {name: tensor.numpy() for name, tensor in state.items() if tensor.ndim < 2}
    np.savez_compressed(rest, **others)
    return torch_save((parts, rest.getvalue()))


def load_scipy(data: bytes) -> State:
    """What `save_scipy` wrote."""
    parts, rest = torch.load(io.BytesIO(data))
    state = {name: torch.from_numpy(array) for name, array in np.load(io.BytesIO(rest)).items()}
    for name, file, shape in parts:
        state[name] = torch.from_numpy(scipy.sparse.load_npz(io.BytesIO(file)).toarray()).view(shape)
    return state


LOSSLESS: dict[str, tuple[Write, Read]] = {
    "torch.save, dense": (torch_save, torch_load),
    "safetensors": (lambda state: safetensors.torch.save(dict(state)), safetensors.torch.load),
    "torch sparse CSR": (save_csr, load_csr),
    "scipy .npz": (save_scipy, load_scipy),
    "zstd -19 of dense": (
        lambda state: zstandard.ZstdCompressor(level=19).compress(safetensors.torch.save(dict(state))),
        lambda data: safetensors.torch.load(zstandard.ZstdDecompressor().decompress(data)),
    ),
    "xz -9 of dense": (
        lambda state: lzma.compress(safetensors.torch.save(dict(state)), preset=9),
        lambda data: safetensors.torch.load(lzma.decompress(data)),
    ),
}
