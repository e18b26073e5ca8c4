"""What a scan has measured so far, and the file that keeps it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

import safetensors.torch
import torch
from torch import Tensor

from netprune.compute import Compute

Point = tuple[str, float]
"""Weight name and sparsity; `("", 0.0)` is the dense network."""


@dataclass(slots=True)
class ScanRecord:
    """All that a scan has measured so far: given back to `scan`, it goes on from there."""

    compute: Compute | None = None
    losses: dict[Point, Tensor] = field(default_factory=dict)
    """float32 `(n,)` for each point: cross-entropy of the split's first n images."""
    right: dict[Point, Tensor] = field(default_factory=dict)
    """bool `(n,)`: whether they were classified right."""

    def add(self, point: Point, losses: Tensor, right: Tensor) -> None:
        """Append what the next images gave."""
        if point in self.losses:
            losses, right = torch.cat([self.losses[point], losses.cpu()]), torch.cat([self.right[point], right.cpu()])
        self.losses[point], self.right[point] = losses.cpu(), right.cpu()

    def count(self, point: Point) -> int:
        """Images that the point was measured on."""
        return len(self.losses.get(point, ()))

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        tensors = {}
        for (layer, sparsity), losses in self.losses.items():
            tensors[f"losses {sparsity!r} {layer}"] = losses
            tensors[f"right {sparsity!r} {layer}"] = self.right[layer, sparsity]
        compute = json.dumps(asdict(self.compute) if self.compute else None)
        data: bytes = safetensors.torch.save(tensors, {"compute": compute})
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> ScanRecord:
        """The inverse of `to_bytes`."""
        length = int.from_bytes(data[:8], "little")
        compute = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["compute"])
        record = cls(compute=Compute(**compute) if compute else None)
        for name, tensor in safetensors.torch.load(data).items():
            kind, sparsity, layer = name.split(" ", 2)
            (record.losses if kind == "losses" else record.right)[layer, float(sparsity)] = tensor
        return record
