"""How MLflow loads a packed file: named as the model's `loader_module`, so it needs no MLflow itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from netprune.evaluation import EVAL_BATCH, eval_mode
from netprune.packing import PackedModel, read_packed


class PackedPredictor:
    """A packed network behind MLflow's `predict`."""

    def __init__(self, packed: PackedModel) -> None:
        self.packed = packed
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (packed.header.mean, packed.header.std))

    @torch.no_grad()
    def predict(self, model_input: NDArray[np.float32], params: dict[str, Any] | None = None) -> NDArray[np.float32]:  # noqa: ARG002
        """Images → logits.

        Args:
            model_input: float32 `(N, 3, H, W)`, RGB, pixels in [0, 1]; normalised here.
            params: none are known; MLflow's interface wants the argument.

        Returns:
            float32 `(N, classes)`: the module's own outputs. `argmax(1)` indexes the header's `classes`.
        """
        images = torch.from_numpy(np.array(model_input, dtype=np.float32))
        with eval_mode(self.packed.model):
            logits = [self.packed.model((part - self.mean) / self.std) for part in torch.split(images, EVAL_BATCH)]
        return torch.cat(logits).numpy()

    def get_raw_model(self) -> nn.Module:
        """The module itself, ready to train."""
        return self.packed.model


def _load_pyfunc(path: str) -> PackedPredictor:
    return PackedPredictor(read_packed(path))
