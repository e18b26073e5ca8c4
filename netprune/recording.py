"""Passes of a training step recorded once and replayed, where launching them takes longer than computing them.

A GPU is done with a small network's layer before Python has asked for the next. A CUDA graph is a recording of what was
launched: replaying it takes microseconds, and computes the same. What is not launched is not in it: whatever a network
decides on the host (a layer left out by a Python random number, say) would stay as it was decided in the one step that
was recorded. So only networks are recorded that are made of layers known to decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

KNOWN = ("torch.nn.", "torchvision.models.vgg", "netprune.")
"""Where layers come from that decide nothing on the host."""
RECORDED_AFTER = 2
"""Calls after which `Recorded` replays."""

Passes = Callable[[Tensor, Tensor], Tensor]
"""Images `(N, C, H, W)` and labels `(N,)` → the loss, detached; gradients are left in the parameters."""


def recordable(*networks: nn.Module) -> bool:
    """Whether passes through networks can be replayed: on the current GPU, of known layers, nobody listening.

    What is launched on another GPU than the current one is not recorded: replaying would compute nothing.
    """
    return all(_is_current(parameter.device) for network in networks for parameter in network.parameters()) and not any(
        _decides(module) for network in networks for module in network.modules()
    )


def _is_current(device: torch.device) -> bool:
    return device.type == "cuda" and device.index == torch.cuda.current_device()


def _decides(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    # without a momentum a normalisation reads on the host how many batches it has seen
    counts = isinstance(module, _BatchNorm) and module.momentum is None
    return counts or not type(module).__module__.startswith(KNOWN) or any(hooks)


class Recorded:
    """Passes on a GPU: as they are in the first call, recorded in the second, replayed in those that follow.

    Recording computes nothing, and the first call, which warms up what a recording must not contain, is a step like any
    other; so as many steps are taken as there are calls. A batch of another size is not replayed, and begins anew.
    """

    def __init__(self, passes: Passes, clear: Callable[[], None]) -> None:
        """Take hold of what is to be recorded.

        Args:
            passes: must do the same on every call but for the values of tensors, and wait for none of them.
            clear: lets go of the gradients, so that passes make new ones.
        """
        self.passes, self.clear = passes, clear
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.shape: torch.Size | None = None

    def forget(self) -> None:
        """Begin anew: for when a parameter has moved to another place in memory."""
        self.graph = self.shape = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss, which the next call may overwrite."""
        if self.graph is None or images.shape != self.shape:
            return self._not_replayed(images, labels)
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.loss

    def _not_replayed(self, images: Tensor, labels: Tensor) -> Tensor:
        self.clear()
        self.graph, before, self.shape = None, self.shape, images.shape
        if before != images.shape:
            # in the recording's own stream: what autograd keeps between passes belongs to the stream it was made in
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                loss = self.passes(images, labels)
            torch.cuda.current_stream().wait_stream(self.stream)
            return loss
        self.images, self.labels = images.clone(), labels.clone()
        graph = torch.cuda.CUDAGraph()
        # other threads, such as a loader's that pins memory, may go on
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self.loss = self.passes(self.images, self.labels)
        self.graph = graph
        graph.replay()
        return self.loss
