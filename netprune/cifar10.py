"""CIFAR-10 (Krizhevsky 2009), downloaded at first use."""

from __future__ import annotations

import http.client
import threading
import urllib.request
from pathlib import Path

import torch
from torch import Tensor

from netprune.errors import InputError

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Per channel, of pixels in [0, 1], over the training images."""
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PROBE_SECONDS = 4.0


def read_cifar10(data_dir: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The 50,000 training and the 10,000 test images, each uint8 `(N, 3, 32, 32)`, with their classes, int64 `(N,)`.

    Args:
        data_dir: holds `cifar-10-batches-py`, or will after the download.

    Raises:
        InputError: if they are absent and cannot be downloaded.
    """
    import torchvision

    def read(train: bool) -> tuple[Tensor, Tensor]:
        part = torchvision.datasets.CIFAR10(data_dir, train=train)
        return torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)

    try:
        return read(True), read(False)
    except RuntimeError:  # torchvision: "Dataset not found or corrupted"
        _download(data_dir)
        return read(True), read(False)


def _download(data_dir: Path) -> None:
    import torchvision

    mend = "take dataset=digits, which is built in, or name the folder that holds cifar-10-batches-py with data_dir"
    reason = _unreachable(torchvision.datasets.CIFAR10.url)
    try:
        if not reason:
            data_dir.mkdir(parents=True, exist_ok=True)
            torchvision.datasets.CIFAR10(data_dir, train=True, download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error)
    if reason:
        raise InputError(f"CIFAR-10 is not in {data_dir} and cannot be downloaded ({reason}): {mend}.")


def _unreachable(url: str) -> str:
    """Why `url` does not answer within `PROBE_SECONDS`; empty if it does.

    torchvision waits without limit for a host that does not answer, and a name look-up heeds no socket timeout: hence
    the thread, which is left behind if it hangs.
    """
    reasons: list[str] = []

    def probe() -> None:
        try:
            urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
            reasons.append("")
        except (OSError, http.client.HTTPException) as error:
            reasons.append(str(error) or type(error).__name__)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return reasons[0] if reasons else f"no answer within {PROBE_SECONDS:g} s"
