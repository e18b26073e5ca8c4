"""Net10 and VGG16: building them by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netprune.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """How to build a network from nothing.

    Raises:
        InputError: for an unknown name, a width below 1, or fewer than two classes.
    """

    name: str
    """`net10` or `vgg16`."""
    num_classes: int
    """Outputs of the last layer, at least 2."""
    width: int = 128
    """Channels of Net10's first convolution; the others scale with it. VGG16 has no width and ignores it."""

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise InputError(f"unknown model {self.name!r}: choose one of {', '.join(sorted(MODELS))}.")
        if self.width < 1:
            raise InputError(f"width is {self.width}; it must be at least 1.")
        if self.num_classes < 2:
            raise InputError(f"a classifier needs at least 2 classes, got {self.num_classes}.")


def _block(in_channels: int, out_channels: int, *, pool: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Net10(nn.Module):
    """The source document's residual network of eight convolutions and two linear layers.

    Input `(N, 3, S, S)`, normalised; output `(N, num_classes)` logits. S is `image_size`, at least 8; the document's is
    32. At width 128 and 10 classes it has 26,793,994 parameters, whatever S is. Parameter names are the document's
    (`res1.0.0.weight`, `classifier.3.weight`).
    """

    def __init__(self, num_classes: int = 10, width: int = 128, image_size: int = 32) -> None:
        super().__init__()
        w = width
        self.conv1 = _block(3, w)
        self.conv2 = _block(w, 2 * w, pool=True)
        self.res1 = nn.Sequential(_block(2 * w, 2 * w), _block(2 * w, 2 * w))
        self.conv3 = _block(2 * w, 4 * w, pool=True)
        self.conv4 = _block(4 * w, 8 * w, pool=True)
        self.res2 = nn.Sequential(_block(8 * w, 8 * w), _block(8 * w, 8 * w))
        self.classifier = nn.Sequential(
            nn.MaxPool2d(image_size // 8),  # after three halvings: all that is left of the image
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(8 * w, 4 * w),
            nn.Linear(4 * w, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, `(N, 3, S, S)` → logits, `(N, classes)`."""
        x = self.conv2(self.conv1(images))
        x = self.res1(x) + x
        x = self.conv4(self.conv3(x))
        x = self.res2(x) + x
        logits: Tensor = self.classifier(x)
        return logits


def _net10(architecture: Architecture, image_size: int) -> nn.Module:
    if image_size < 8:
        raise InputError(f"net10 halves its images three times: it takes 8×8 pixels or more, not {image_size}.")
    return Net10(architecture.num_classes, architecture.width, image_size)


def _vgg16(architecture: Architecture, image_size: int) -> nn.Module:
    # imported here: loading a packed Net10 should not need torchvision
    from torchvision.models import vgg16

    if image_size < 32:
        raise InputError(f"vgg16 halves its images five times: it takes 32×32 pixels or more, not {image_size}.")
    model: nn.Module = vgg16(weights=None, num_classes=architecture.num_classes)
    return model


MODELS = {"net10": _net10, "vgg16": _vgg16}


def build_model(architecture: Architecture, seed: int = 0, image_size: int = 32) -> nn.Module:
    """A freshly initialised network in train mode, on the CPU; the same for the same seed.

    Torch's global generator is left as it was.

    Args:
        architecture: see there.
        seed: of the first weights.
        image_size: side of the images that it will see, in pixels. No tensor's shape depends on it.

    Raises:
        InputError: for images that are too small for the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all GPUs too
        return MODELS[architecture.name](architecture, image_size)
