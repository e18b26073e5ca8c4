"""Winograd's convolutions beside torch's own: milliseconds of one layer, and of a training step of Net10.

Forward alone, and forward and backward, on random images on the CPU; each the least of a few, the two in turn. `error`
is of ours against torch's in double precision, the largest of outputs and gradients, relative to their norm.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.setting import finish, print_table, run
from netprune.compute import Format, training_seconds
from netprune.models import Architecture, build_model
from netprune.winograd import winograd_conv2d

LAYERS = (
    (64, 128, 32),
    (128, 128, 16),
    (128, 256, 16),
    (256, 512, 8),
    (512, 512, 4),
    (128, 256, 32),
    (256, 256, 16),
    (512, 1024, 8),
    (1024, 1024, 4),
)
"""Channels of input and output, and side in pixels: Net10's at width 64 and 128."""
QUICK_LAYERS = LAYERS[1:5]
WIDTHS, QUICK_WIDTHS, FIGURE_WIDTH = (16, 32, 64, 128), (16, 64), 64
PLAIN, OURS = Format(channels_last=True), Format(channels_last=True, winograd=True)

Convolution = Callable[[Tensor, Tensor], Tensor]


def direct(images: Tensor, weight: Tensor) -> Tensor:
    """torch's."""
    return F.conv2d(images, weight, padding=1)


def both_ways(convolution: Convolution, images: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Outputs and the two gradients of half the sum of their squares."""
    found = convolution(images, weight)
    return (found.detach(), *torch.autograd.grad(found, (images, weight), found.detach()))


def milliseconds(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least of some rounds, in each of which all take their turn; a first one warms up."""
    least = dict.fromkeys(works, float("inf"))
    for i in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if i:
                least[name] = min(least[name], 1000 * (time.perf_counter() - start))
    return least


def layer(inputs: int, outputs: int, side: int, options: argparse.Namespace) -> list[str]:
    """A row of the table."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((options.batch_size, inputs, side, side), (outputs, inputs, 3, 3))
    images, weight = (
        torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last).requires_grad_()
        for shape in shapes
    )

    @torch.no_grad()
    def forward(convolution: Convolution) -> Tensor:
        return convolution(images, weight)

    ways: dict[str, Convolution] = {"torch": direct, "ours": winograd_conv2d}
    alone = milliseconds({name: partial(forward, way) for name, way in ways.items()}, options.rounds)
    both = milliseconds({name: partial(both_ways, way, images, weight) for name, way in ways.items()}, options.rounds)
    few = images[:4].detach().requires_grad_()
    exact = both_ways(direct, *(value.detach().double().requires_grad_() for value in (few, weight)))
    errors = [
        float((found - right).norm() / right.norm())
        for found, right in zip(both_ways(winograd_conv2d, few, weight), exact, strict=True)
    ]
    times = [f"{found[name]:.0f}" for found in (alone, both) for name in ways]
    return [f"{inputs} → {outputs}, {side}", *times, f"{both['torch'] / both['ours']:.2f}", f"{max(errors):.0e}"]


def step(width: int, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a forward and a backward pass of Net10: the least of some, the two in turn."""
    model = build_model(Architecture(name="net10", num_classes=10, width=width))
    images, labels = torch.randn(options.batch_size, 3, 32, 32), torch.arange(options.batch_size) % 10
    forms = {"torch": PLAIN, "ours": OURS}
    rounds = [
        {name: options.batch_size * training_seconds(model, images, labels, form) for name, form in forms.items()}
        for _ in range(options.rounds)
    ]
    return {name: min(found[name] for found in rounds) for name in forms}


def main() -> None:
    options = _options()
    rows = [layer(*shape, options) for shape in (QUICK_LAYERS if options.quick else LAYERS)]
    print_table(["channels, side", "forward: torch", "ours", "and backward: torch", "ours", "ratio", "error"], rows)
    steps = {width: step(width, options) for width in (QUICK_WIDTHS if options.quick else WIDTHS)}
    print_table(
        ["width", "seconds a step: torch", "ours", "ratio"],
        [[str(w), f"{t['torch']:.2f}", f"{t['ours']:.2f}", f"{t['torch'] / t['ours']:.2f}"] for w, t in steps.items()],
    )
    print(f"batches of {options.batch_size}, fp32, channels_last, least of {options.rounds}")
    at = steps[FIGURE_WIDTH]
    what = f"times as many training steps a second as torch's convolutions, width {FIGURE_WIDTH}"
    finish(options, {"layers": rows, "steps": steps}, at["torch"] / at["ours"], what)


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--batch-size", type=int, default=128, help="images (default 128)")
    made.add_argument("--rounds", type=int, default=3, help="measurements of each (default 3)")
    made.add_argument("--json", help="file for the figures")
    made.add_argument("--quick", action="store_true", help="fewer layers and widths")
    options = made.parse_args()
    options.device = "cpu"
    return options


if __name__ == "__main__":
    run(main)
