"""A network as an ONNX file, which must compute what the network computes before anyone gets it."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from netprune.errors import InputError
from netprune.evaluation import eval_mode
from netprune.packing import PackedModel

INPUT, OUTPUT = "images", "logits"
TRIED_BATCHES = (1, 7)
TOLERANCE = 1e-4
"""Largest difference allowed between the two runtimes' outputs, relative to the largest output if that is above 1."""


class _OnPixels(nn.Module):
    """A network behind its normalisation: the same input as `predict` takes."""

    def __init__(self, packed: PackedModel) -> None:
        super().__init__()
        self.network = packed.model
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(packed.header.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(packed.header.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Pixels in [0, 1], `(N, 3, S, S)` → logits, `(N, classes)`."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def to_onnx(packed: PackedModel) -> bytes:
    """The network as an ONNX model, checked with onnxruntime.

    Its input `images` is float32 `(N, 3, S, S)`, RGB, pixels in [0, 1], any N, S the header's `image_size`; normalising
    is part of the graph. Its output `logits` is float32 `(N, classes)`. Its metadata names the classes and the dense
    network's digest.

    Args:
        packed: left as it is.

    Raises:
        InputError: if the packages that this needs are not installed, torch cannot export the network, it is too large
            for one file (2 GiB), onnxruntime cannot run it, or its outputs differ from torch's.
    """
    try:
        import onnxruntime  # noqa: F401  # what the file is checked with
        import onnxscript  # noqa: F401  # what torch exports with
    except ImportError as error:
        raise InputError(f"ONNX files need {error.name}: pip install 'netprune[onnx]'.") from None
    module = _OnPixels(packed)
    with eval_mode(module):
        data = _export(module, packed)
        generator = torch.Generator().manual_seed(0)
        tried = [torch.rand((batch, *_image(packed)), generator=generator) for batch in TRIED_BATCHES]
        for images, found in zip(tried, _outputs(data, tried), strict=True):
            with torch.no_grad():
                expected = module(images).numpy()
            _require_equal(found, expected)
    return data


def _image(packed: PackedModel) -> tuple[int, int, int]:
    return 3, packed.header.image_size, packed.header.image_size


def _export(module: nn.Module, packed: PackedModel) -> bytes:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                module,
                (torch.zeros(2, *_image(packed)),),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
            proto = program.model_proto  # type: ignore[union-attr]
            for key, value in (
                ("classes", "\n".join(packed.header.classes)),
                ("dense_digest", packed.header.dense_digest),
            ):
                proto.metadata_props.add(key=key, value=value)
            return bytes(proto.SerializeToString())
    except Exception as error:  # the exporter raises whatever it trips over
        raise InputError(f"this network cannot be written as ONNX: {_said(error)}") from None
    finally:
        logger.setLevel(level)


def _outputs(data: bytes, tried: Sequence[Tensor]) -> list[NDArray[np.float32]]:
    """What onnxruntime computes for each batch of images."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        return [session.run([OUTPUT], {INPUT: images.numpy()})[0] for images in tried]
    except Exception as error:  # its errors have no class in common
        raise InputError(
            f"onnxruntime cannot run the ONNX model, so it is not written: {_said(error)}. Another version of torch, "
            f"onnxscript or onnxruntime may do better."
        ) from None


def _said(error: Exception) -> str:
    return " ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _require_equal(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    apart = np.abs(found - expected).max() if found.shape == expected.shape else np.inf
    if not apart <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise InputError(
            f"the ONNX model does not compute what the network does: its outputs are up to {apart:.3g} apart in "
            f"onnxruntime, so it is not written. Another version of torch, onnxscript or onnxruntime may do better."
        )
