"""How a device is used best: number format, memory layout and batch size, chosen by a short measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

BATCH_SIZES = (32, 64, 128, 256, 512)
PROBE_IMAGES = 64
PROBE_SECONDS = 0.05
LONGEST_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """A way of running forward passes."""

    bf16: bool = False
    """Autocast to bfloat16: weights and sums stay fp32."""
    channels_last: bool = False
    batch_size: int = 500

    def __str__(self) -> str:
        number, layout = "bf16" if self.bf16 else "fp32", "channels_last" if self.channels_last else "contiguous"
        return f"{number}, {layout}, batches of {self.batch_size}"

    def layout(self, value: Tensor) -> Tensor:
        """`(N, C, H, W)` in the memory format of this way."""
        return value.contiguous(memory_format=self.memory_format)

    @property
    def memory_format(self) -> torch.memory_format:
        """As torch calls it."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """Run what is inside in this number format.

        Autocast's cache of cast weights is off: it would go on with the old ones after a weight has changed.
        """
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            yield


def choose_compute(model: nn.Module, images: Tensor, *, bf16: bool = True) -> Compute:
    """The fastest way of running `model` in eval mode on this device; the choice takes a second or two at most.

    First number format and layout, on a batch of 64 or of what a slow network does in half a second, then the batch
    size, as far as one batch is as quick as that.

    Args:
        model: its memory format is changed, its values are not; used in eval mode without gradients.
        images: normalised, `(N, C, H, W)`, on the model's device; 512 are enough.
        bf16: whether bfloat16 may be chosen.
    """
    rough = seconds_per_image(model, images, Compute(batch_size=4))
    probe = max(4, min(PROBE_IMAGES, int(LONGEST_SECONDS / rough)))
    forms = [Compute(bf16=b, channels_last=c, batch_size=probe) for b in (False, bf16) for c in (False, True)]
    seconds = {way: seconds_per_image(model, images, way) for way in forms}
    found = min(seconds, key=seconds.__getitem__)
    for size in BATCH_SIZES:
        if size <= len(images) and size * seconds[found] < LONGEST_SECONDS:
            way = replace(found, batch_size=size)
            seconds[way] = seconds_per_image(model, images, way)
    return min(seconds, key=seconds.__getitem__)


@torch.no_grad()
def seconds_per_image(model: nn.Module, images: Tensor, way: Compute) -> float:
    """Least of a few forward passes of one batch; a network that takes longer than 0.05 s is timed once or twice."""
    batch = way.layout(images[: way.batch_size])
    model.to(memory_format=way.memory_format)
    with way.active(batch.device):
        run = _timer(lambda: model(batch), batch.device)
        first = run()
        times = [run()]
        while first + sum(times) < PROBE_SECONDS and len(times) < 5:
            times.append(run())
    return min(times) / len(batch)


def _timer(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return run
