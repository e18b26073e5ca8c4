"""How MLflow loads a packed file: named as the model's `loader_module`, so it needs no MLflow itself.

A network of the user's own class is built by the function that the model's description names, beside `loader_module`,
out of the user's code that travels with the model. That is MLflow's own rule: who loads a model through it runs the
code that came with it. Who does not trust where a model came from takes the packed file out of it, which runs nothing:
`netprune.load(path, into=network(classes))`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from netprune.errors import InputError
from netprune.evaluation import EVAL_BATCH, eval_mode
from netprune.factory import builder
from netprune.loader import batch_for
from netprune.packing import PackedModel, read_packed

NETWORK = "network"
"""Entry of the model's configuration: the function that builds a network of the user's own class."""


class PackedPredictor:
    """A packed network behind MLflow's `predict`."""

    def __init__(self, packed: PackedModel) -> None:
        self.packed = packed
        self.lock = threading.Lock()  # MLflow's server answers in threads, and a mode is the network's, not a call's
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (packed.header.mean, packed.header.std))

    @torch.no_grad()
    def predict(self, model_input: NDArray[np.float32], params: dict[str, Any] | None = None) -> NDArray[np.float32]:  # noqa: ARG002
        """Images → logits.

        Args:
            model_input: float32 `(N, 3, S, S)`, RGB, pixels in [0, 1], S the header's `image_size`; normalised here.
            params: none are known; MLflow's interface wants the argument.

        Returns:
            float32 `(N, classes)`: the module's own outputs. `argmax(1)` indexes the header's `classes`.

        Raises:
            InputError: for images of another shape.
        """
        images, side = torch.from_numpy(np.array(model_input, dtype=np.float32)), self.packed.header.image_size
        if images.shape[1:] != (3, side, side):
            raise InputError(
                f"the images are {tuple(images.shape)}; this network takes (N, 3, {side}, {side}), pixels in [0, 1]."
            )
        parts = torch.split(images, batch_for(side, EVAL_BATCH))
        with self.lock, eval_mode(self.packed.model):
            logits = [self.packed.model((part - self.mean) / self.std) for part in parts]
        return torch.cat(logits).numpy()

    def get_raw_model(self) -> nn.Module:
        """The module itself, ready to train."""
        return self.packed.model


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> PackedPredictor:
    build = builder(str((model_config or {}).get(NETWORK, "")))
    # whose code is run is trusted with the memory too
    return PackedPredictor(read_packed(path, build, max_bytes=sys.maxsize))
