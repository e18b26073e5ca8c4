"""Images a second of training: the plain loop beside ours, and beside ours on random tensors that are there already.

The plain loop is the source document's: PIL images, torchvision's transforms, a DataLoader with a worker a core, fp32,
Adam as it comes. Ours is `netprune.training.train` with the same recipe, batch size and augmentation, in the format
that it finds fastest on this device. Random tensors on the device, in that format, are the limit: there is no data
to prepare. The three take turns, `--rounds` times, and each has its median.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from benchmarks.setting import finish, parser, print_table, run
from netprune.compute import training_passes
from netprune.data import Dataset, Split, load_dataset
from netprune.models import Architecture, build_model
from netprune.optimizers import make_schedule
from netprune.precision import fit_to_device
from netprune.recipes import TrainConfig, recipe
from netprune.recording import RECORDED_AFTER, Passes, Recorded
from netprune.training import train

WIDTHS, QUICK_WIDTHS = (16, 64, 128), (16,)
FIGURE_WIDTH = 128
LEAST_STEPS = 3
Batches = Iterator[tuple[Tensor, Tensor]]


class _PlainImages(TorchDataset[tuple[Tensor, int]]):
    """The training split as torchvision's CIFAR10 gives it: an array that becomes a PIL image, and transforms."""

    def __init__(self, dataset: Dataset) -> None:
        self.images = dataset.train.images.permute(0, 2, 3, 1).cpu().numpy()
        self.labels = dataset.train.labels.tolist()
        size = self.images.shape[1]
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(size, padding=4, padding_mode="reflect"),
                transforms.RandomHorizontalFlip(p=0.5 if dataset.flip else 0.0),
                transforms.ToTensor(),
                transforms.Normalize(dataset.mean, dataset.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def plain_batches(dataset: Dataset, batch_size: int, device: torch.device) -> Batches:
    """Batches for ever."""
    pinned = device.type == "cuda"
    images = _PlainImages(dataset)
    size = min(batch_size, len(images))
    loader = DataLoader(
        images, batch_size=size, shuffle=True, drop_last=True, num_workers=os.cpu_count() or 1, pin_memory=pinned
    )
    while True:
        for batch, labels in loader:
            yield batch.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def random_batches(dataset: Dataset, batch_size: int, device: torch.device) -> Batches:
    """One batch of noise, for ever."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, *dataset.train.images.shape[1:], generator=generator).to(device)
    labels = torch.randint(0, len(dataset.classes), (batch_size,), generator=generator).to(device)
    return itertools.repeat((images, labels))


def stepped(model: nn.Module, batches: Batches, config: TrainConfig, steps: int, *, plain: bool) -> float:
    """Images a second of a loop that does nothing but train.

    Its first steps, which wait for workers or are recorded, do not count.

    Args:
        model: a copy is trained.
        batches: on the model's device.
        config: an Adam recipe.
        steps: how many are timed.
        plain: passes are launched, and Adam is as it comes; else they are recorded where they can be, and it is fused.
    """
    form = config.format
    model = copy.deepcopy(model).train().to(memory_format=form.memory_format)
    passes = _plain_passes(model) if plain else training_passes(model, form)
    warm = RECORDED_AFTER if isinstance(passes, Recorded) else 1
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config.max_lr, weight_decay=config.weight_decay, fused=not plain
    )
    schedule = make_schedule(optimizer, config, steps + warm)
    count, start = 0, 0.0
    for step, (images, labels) in enumerate(itertools.islice(batches, steps + warm)):
        passes(images, labels)
        nn.utils.clip_grad_value_(model.parameters(), config.grad_clip)
        optimizer.step()
        schedule.step()
        if step >= warm:
            count += len(labels)
        else:
            _wait(device)
            start = time.perf_counter()
    _wait(device)
    return count / (time.perf_counter() - start)


def _plain_passes(model: nn.Module) -> Passes:
    def passes(images: Tensor, labels: Tensor) -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return passes


def ours(model: nn.Module, dataset: Dataset, config: TrainConfig, steps: int) -> float:
    """Images a second of `train`, on an epoch of about as many steps; the epoch before it does not count."""
    share = min(1.0, steps * config.batch_size / len(dataset.train))
    part = dataset.part(share, seed=0)
    few = Split(part.val.images[:2], part.val.labels[:2])  # validation is not timed, and need not be waited for
    part = dataclasses.replace(part, val=few)
    epochs = max(1, round(steps * config.batch_size / len(part.train)))
    results = train(copy.deepcopy(model), part, dataclasses.replace(config, epochs=epochs + 1))
    return statistics.median(result.images_per_second for result in results[1:])


@dataclass(frozen=True, slots=True)
class Speeds:
    """Images a second of each round, at one width."""

    plain: list[float]
    ours: list[float]
    limit: list[float]
    format: str
    """Of ours and of the limit."""

    def row(self, width: int) -> list[str]:
        """Of the table: medians and ratios."""
        speeds = [f"{statistics.median(values):,.0f}" for values in (self.plain, self.ours, self.limit)]
        return [str(width), *speeds, f"{self.gain:.2f}", f"{100 * self.share_of_limit:.1f} %", self.format]

    @property
    def gain(self) -> float:
        """Ours over the plain loop."""
        return statistics.median(self.ours) / statistics.median(self.plain)

    @property
    def share_of_limit(self) -> float:
        """Ours over random tensors."""
        return statistics.median(self.ours) / statistics.median(self.limit)


def measure(dataset: Dataset, width: int, options: argparse.Namespace) -> Speeds:
    """The three in turn."""
    device = torch.device(options.device)
    model = build_model(Architecture(name="net10", num_classes=len(dataset.classes), width=width)).to(device)
    plain = recipe("document", batch_size=min(options.batch_size, len(dataset.train)))
    fitted, epoch_seconds = fit_to_device(model, dataset, plain, options.precision)
    steps = max(LEAST_STEPS, round(options.seconds / epoch_seconds * len(dataset.train) / plain.batch_size))
    found = Speeds([], [], [], str(fitted.format))
    for _ in range(options.rounds):
        found.plain.append(stepped(model, plain_batches(dataset, plain.batch_size, device), plain, steps, plain=True))
        found.ours.append(ours(model, dataset, fitted, steps))
        noise = random_batches(dataset, plain.batch_size, device)
        found.limit.append(stepped(model, noise, fitted, steps, plain=False))
    return found


def main() -> None:
    options = _options()
    dataset = load_dataset(options.dataset, options.data_dir).to(torch.device(options.device))
    widths = QUICK_WIDTHS if options.quick else options.widths
    results = {}
    for width in widths:
        results[width] = measure(dataset, width, options)
        print(f"width {width}: {results[width]}", file=sys.stderr, flush=True)  # the wide ones take minutes
    header = ["width", "plain loop", "ours", "random tensors", "ours / plain", "of the limit", "format"]
    print_table(header, [found.row(width) for width, found in results.items()])
    at = FIGURE_WIDTH if FIGURE_WIDTH in results else max(results)
    record = {str(width): dataclasses.asdict(found) for width, found in results.items()}
    finish(options, {"results": record}, results[at].gain, f"times the plain loop's images a second, width {at}")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _options() -> argparse.Namespace:
    made = parser(__doc__ or "", weights=False)
    made.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="of Net10 (default 16 64 128)")
    made.add_argument("--batch-size", type=int, default=256, help="images a step (default 256)")
    made.add_argument("--precision", default="auto", help="as of sweeps.train (default auto)")
    made.add_argument("--rounds", type=int, default=3, help="measurements of each (default 3)")
    made.add_argument("--seconds", type=float, default=20.0, help="of one measurement of ours, about (default 20)")
    return made.parse_args()


if __name__ == "__main__":
    run(main)
