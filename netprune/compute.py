"""How a device is used best: number format, layout, batch size and compilation, chosen by a short measurement."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netprune.recording import RECORDED_AFTER, Passes, Recorded, recordable
from netprune.winograd import WinogradConvolutions

BATCH_SIZES = (32, 64, 128, 256, 512)
FEW_IMAGES = 4
PROBE_IMAGES = 64
PROBE_SECONDS = 0.05
LONGEST_SECONDS = 0.5
WORTH = 1.05
"""How many times faster a way must be than a simpler one to be chosen: a result should not hang on noise."""


HOPELESS = 4
"""How many times slower bf16 on a few images must be not to be timed on a batch: some processors only emulate it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """Number format and layout of passes."""

    bf16: bool = False
    """Autocast to bfloat16: weights and sums stay fp32."""
    channels_last: bool = False
    winograd: bool = False
    """Wide 3×3 convolutions by Winograd's algorithm (`netprune.winograd`): in fp32, on a CPU."""
    compiled: bool = False
    """Through torch.compile; in training only."""

    def __str__(self) -> str:
        number, layout = "bf16" if self.bf16 else "fp32", "channels_last" if self.channels_last else "contiguous"
        return f"{number}, {layout}{', winograd' if self.winograd else ''}{', compiled' if self.compiled else ''}"

    def layout(self, value: Tensor) -> Tensor:
        """`(N, C, H, W)` in this layout."""
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
        convolutions = WinogradConvolutions() if self.winograd else nullcontext()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16, cache_enabled=False), convolutions:
            yield


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute(Format):
    """A way of running forward passes."""

    batch_size: int = 500

    def __str__(self) -> str:
        return f"{Format.__str__(self)}, batches of {self.batch_size}"


def choose_compute(model: nn.Module, images: Tensor, *, bf16: bool = True) -> Compute:
    """The fastest way of running `model` in eval mode on this device; the choice takes a second or two at most.

    First number format, layout and, on a CPU, Winograd's convolutions, on a batch of 64 or of what a slow network does
    in half a second; then the batch size, as far as one batch is as quick as that. A network that does not run in
    channels_last (`runs_in`) stays contiguous, and one that does not run in bfloat16 in fp32.

    Args:
        model: its memory format is changed, its values are not; used in eval mode without gradients.
        images: normalised, `(N, C, H, W)`, on the model's device; 512 are enough. No batch is larger than they are.
        bf16: whether bfloat16 may be chosen.
    """
    rough = seconds_per_image(model, images, Compute(batch_size=FEW_IMAGES))
    probe = min(len(images), max(FEW_IMAGES, min(PROBE_IMAGES, int(LONGEST_SECONDS / rough))))
    layouts = (False, True) if runs_in(model, images[:FEW_IMAGES], Format(channels_last=True)) else (False,)
    numbers = (False, True) if bf16 and runs_in(model, images[:FEW_IMAGES], Format(bf16=True)) else (False,)
    forms = [Compute(bf16=b, channels_last=c, batch_size=probe) for b in numbers for c in layouts]
    if images.device.type == "cpu" and True in layouts:
        forms.append(Compute(channels_last=True, winograd=True, batch_size=probe))
    seconds = {way: seconds_per_image(model, images, way) for way in forms}
    found = min(seconds, key=seconds.__getitem__)
    for size in BATCH_SIZES:
        if size <= len(images) and size * seconds[found] < LONGEST_SECONDS:
            way = replace(found, batch_size=size)
            seconds[way] = seconds_per_image(model, images, way)
    return min(seconds, key=seconds.__getitem__)


@torch.no_grad()
def runs_in(model: nn.Module, images: Tensor, form: Format) -> bool:
    """Whether a forward pass in this format ends without an error; `model`'s memory format is changed.

    A network that flattens by `view` takes no channels_last values, and a weight of five axes has no such layout; one
    that puts what layers compute into tensors of its own making does not run in bfloat16.
    """
    try:
        model.to(memory_format=form.memory_format)
        with form.active(images.device):
            model(form.layout(images))
    except Exception:  # a user's code may raise anything; what raises in a plain pass too will do so there
        return False
    return True


@torch.no_grad()
def seconds_per_image(model: nn.Module, images: Tensor, way: Compute) -> float:
    """Least of a few forward passes of one batch; a network that takes longer than 0.05 s is timed once or twice."""
    batch = way.layout(images[: way.batch_size])
    model.to(memory_format=way.memory_format)
    with way.active(batch.device):
        return _least_seconds(lambda: model(batch), batch.device) / len(batch)


def choose_format(
    model: nn.Module, images: Tensor, labels: Tensor, longest: float = LONGEST_SECONDS
) -> tuple[Format, float]:
    """The fastest format of training `model` on this device, and its seconds an image; takes a few seconds at most.

    Plain fp32 unless another one is 1.05 times as fast. A network that cannot be trained in channels_last
    (`trains_in`) stays contiguous, and one that cannot be in bfloat16 stays fp32. Compilation, which takes a minute to
    try, is left to `compiled_if_faster`.

    Args:
        model: left alone: copies are timed, in train mode, forward and backward.
        images: normalised, `(N, C, H, W)`, on the model's device; a batch as it will be trained on.
        labels: int64 `(N,)`.
        longest: seconds that the passes of one batch may take, about; of a slow network fewer images are taken, and
            what pays on a whole batch (Winograd's convolutions) may not on a few.
    """
    few = images[:FEW_IMAGES], labels[:FEW_IMAGES]
    layouts = (False, True) if trains_in(model, *few, Format(channels_last=True)) else (False,)
    rough = training_seconds(model, *few, Format())
    count = max(FEW_IMAGES, min(len(images), int(longest / rough)))
    bf16 = Format(bf16=True, channels_last=layouts[-1])
    hopeful = trains_in(model, *few, bf16) and training_seconds(model, *few, bf16) < HOPELESS * rough
    numbers = (False, True) if hopeful else (False,)
    forms = [Format(bf16=b, channels_last=c) for b in numbers for c in layouts]
    if images.device.type == "cpu" and True in layouts:
        forms.append(Format(channels_last=True, winograd=True))
    seconds = {form: training_seconds(model, images[:count], labels[:count], form) for form in forms}
    found = min(seconds, key=lambda form: seconds[form] * (1 if form == Format() else WORTH))
    return found, seconds[found]


def compiled_if_faster(model: nn.Module, images: Tensor, labels: Tensor, form: Format) -> Format:
    """`form` through torch.compile if that is 1.05 times as fast, else `form`; a minute, or what compiling takes.

    A device or machine on which nothing can be compiled (no compiler, say) keeps `form`.
    """
    compiled = replace(form, compiled=True, winograd=False)
    try:
        faster = training_seconds(model, images, labels, compiled) * WORTH < training_seconds(
            model, images, labels, form
        )
    except Exception:  # the compiler's own errors are many, and none is the user's
        return form
    return compiled if faster else form


def trains_in(model: nn.Module, images: Tensor, labels: Tensor, form: Format) -> bool:
    """Whether forward and backward passes of a copy of `model` in this format end without an error: see `runs_in`."""
    with _generators_kept(images.device):
        try:
            probe = copy.deepcopy(model).train().to(memory_format=form.memory_format)
            training_passes(probe, form)(images, labels)
        except Exception:  # as in `runs_in`
            return False
    return True


def training_seconds(model: nn.Module, images: Tensor, labels: Tensor, form: Format) -> float:
    """Seconds an image of forward and backward passes of a copy of `model`; the least of a few.

    Replayed, where training replays them (`recording`).
    """
    with _generators_kept(images.device):
        probe = copy.deepcopy(model).train().to(memory_format=form.memory_format)
        step = training_passes(probe, form)
        for _ in range(RECORDED_AFTER if isinstance(step, Recorded) else 0):
            step(images, labels)
        return _least_seconds(lambda: step(images, labels), images.device) / len(images)


def training_passes(model: nn.Module, form: Format) -> Passes:
    """Forward and backward passes as in training by cross-entropy alone: what takes images and labels, gives the loss
    and leaves gradients.

    Args:
        model: in train mode and in the format's layout, in which it has to stay.
        form: see `Format`.
    """
    run = torch.compile(model) if form.compiled else model

    def passes(images: Tensor, labels: Tensor) -> Tensor:
        with form.active(images.device):
            loss = F.cross_entropy(run(form.layout(images)), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def clear() -> None:
        model.zero_grad(set_to_none=True)

    if recordable(model) and not form.compiled:
        return Recorded(passes, clear)

    def cleared(images: Tensor, labels: Tensor) -> Tensor:
        clear()
        return passes(images, labels)

    return cleared


def _generators_kept(device: torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _least_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The first run warms up and does not count, but for the time that all may take."""
    run = _timer(work, device)
    first = run()
    times = [run()]
    while first + sum(times) < PROBE_SECONDS and len(times) < 5:
        times.append(run())
    return min(times)


def _timer(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return run
