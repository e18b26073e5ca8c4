"""How big a network is: parameters, zeros, bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from netprune.weights import prunable_weights

BYTES_PER_VALUE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSize:
    """One tensor's share of the network."""

    name: str
    parameters: int
    nonzero: int
    prunable: bool
    """Whether pruning may touch it (the weight of a `Conv2d` or `Linear` layer)."""

    @property
    def sparsity(self) -> float:
        """Fraction of the tensor's values that are zero, in [0, 1]."""
        return 1 - self.nonzero / self.parameters


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Every parameter tensor's size, in the model's order (buffers such as running statistics are not counted)."""

    layers: tuple[LayerSize, ...]

    @property
    def parameters(self) -> int:
        """Number of trainable values."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def nonzero(self) -> int:
        """Number of trainable values that are not zero."""
        return sum(layer.nonzero for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable weights that are zero, in [0, 1]."""
        weights = [layer for layer in self.layers if layer.prunable]
        return 1 - sum(w.nonzero for w in weights) / sum(w.parameters for w in weights)

    @property
    def dense_bytes(self) -> int:
        """All parameters as fp32."""
        return self.parameters * BYTES_PER_VALUE

    @property
    def nonzero_bytes(self) -> int:
        """Nonzero parameters as fp32 and no positions: the source document's count."""
        return self.nonzero * BYTES_PER_VALUE


@torch.no_grad()
def measure_size(model: nn.Module) -> ModelSize:
    """Count every parameter tensor of `model`."""
    # a weight that is tied to another module's has that one's name here
    prunable = {id(weight) for weight in prunable_weights(model).values()}
    return ModelSize(
        tuple(
            LayerSize(name=n, parameters=p.numel(), nonzero=int(p.count_nonzero()), prunable=id(p) in prunable)
            for n, p in model.named_parameters()
        )
    )
