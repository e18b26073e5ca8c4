"""One training in several processes: how they find each other, and what they have to agree on.

`torchrun` starts the processes and tells each by its environment who it is. All draw the same order, crops and flips
and each takes its own share of every batch (`shares.Place`); torch's DistributedDataParallel makes every gradient the
mean of theirs. So there are as many steps as in one process, and a step is the same, but for two things: batch
normalisation goes by the share, and dropout is drawn in each process apart.
"""

from __future__ import annotations

import copy
import importlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from netprune.errors import ElsewhereError, InputError
from netprune.shares import Place

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others: longer than the first needs to decode a folder of images, or to validate.
The end of a process is noticed at once; this is for machines that lose power or the network."""
LAST_WORDS = timedelta(seconds=10)
"""How long a process that has failed stays: torchrun stops all when one is gone, and the first has a run to close."""
FAILURE, FIRST_IS_OUT = "netprune.failure", "netprune.first_is_out"
ENDED = "another process of this training has ended or does not answer: its own output may say why."
T = TypeVar("T")


class Team(Place):
    """The processes of one training, seen from one of them. All of them make the same calls in the same order."""

    __slots__ = ()

    def wrapped(self, network: nn.Module, layout: torch.memory_format, images: Tensor) -> nn.Module:
        """What to call in place of a network, so that its gradients are the mean of all processes'.

        The network is brought into the layout that it will have in training, for its gradients are kept in that. In all
        processes it begins as the first one's.

        Args:
            network: in train mode for a moment, on a copy.
            layout: see above.
            images: some that it takes, to see whether every parameter has a part in what it gives.
        """
        if self.alone:
            return network
        network.to(memory_format=layout)
        # Batch normalisation goes by each process's share, as in nearly all such trainings: SyncBatchNorm is for GPUs
        # only (what is tested on CPUs would not be what GPUs do) and has every layer wait for all twice a step.
        # Running statistics are not broadcast with every step, which would keep only the first process's: they are
        # linear in those of the batches, so that `equalise`, now and then, loses nothing.
        idle = _has_idle_parameters(network, images)
        return DistributedDataParallel(network, forward_sync_buffers=False, find_unused_parameters=idle)

    @torch.no_grad()
    def equalise(self, network: nn.Module) -> None:
        """Give all processes the same network, in place: running statistics averaged, the rest as the first has it.

        Weights are equal already, unless machines of different kinds have rounded in different ways.
        """
        if self.alone:
            return
        for tensor in (*network.parameters(), *network.buffers()):
            value = tensor.contiguous()
            if isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
                dist.broadcast(value, 0)
            else:
                self.mean(value)
            tensor.copy_(value)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes, of any shape; in place."""
        if not self.alone:
            value /= self.size  # first: the sum of a mask's largest numbers would be infinite
            dist.all_reduce(value)
        return value

    def gathered(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, made: Callable[[], T]) -> T:
        """What `made` gives in the first process, in all of them; the others do not call it.

        Raises:
            InputError: in every process, if `made` raises it.
        """
        if self.alone:
            return made()
        box: list[Any] = [None]
        with self.together():
            if self.first:
                box[0] = made()
        dist.broadcast_object_list(box, 0)
        value: T = box[0]
        return value

    @contextmanager
    def together(self) -> Iterator[None]:
        """No process leaves the body before all have, and an InputError of one is raised in all.

        The body itself makes no calls that wait for others.
        """
        error = None
        try:
            yield
        except InputError as found:
            error = found
        for found_there in self.gathered(error):
            if found_there is not None:
                raise found_there

    @contextmanager
    def united(self) -> Iterator[None]:
        """What ends another process ends the body with an `ElsewhereError` that says so.

        It would be a lost connection otherwise, or the SIGTERM that torchrun sends to those that are left.
        """
        try:
            yield
        except (RuntimeError, KeyboardInterrupt) as error:
            if self.alone:
                raise
            failure = _noted_failure() or (ENDED if _is_lost_connection(error) else "")
            if not failure:
                raise
            raise ElsewhereError(failure) from error


ALONE = Team()


def launched(environment: Mapping[str, str] = os.environ) -> Team:
    """Who torchrun's environment says this process is; alone where it says nothing.

    Raises:
        InputError: if it makes no sense.

    >>> launched({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
    Team(rank=1, size=4, local_rank=1)
    """
    if not {"RANK", "WORLD_SIZE"} <= environment.keys():
        return ALONE
    try:
        rank, size, local_rank = (int(environment.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except ValueError:
        rank = size = local_rank = -1
    if not (0 <= rank < size and local_rank >= 0):
        raise InputError("RANK, WORLD_SIZE and LOCAL_RANK are set and make no sense: unset them, or start by torchrun.")
    return Team(rank, size, local_rank)


def team() -> Team:
    """The processes of the process group that is open here; alone if none is."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Team(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def joined(patience: timedelta = PATIENCE) -> Iterator[Team]:
    """Within the body the processes that torchrun started are one process group; a single one stays without.

    Args:
        patience: how long any wait for another process may take before it is an error.

    Raises:
        InputError: if the others do not come.
        ElsewhereError: if another process ends before its time.
    """
    here = launched()
    if here.alone:
        yield here
        return
    _open_group(here, patience)
    store, failed = _store(), True
    try:
        with here.united():
            yield here
        failed = False
    except BaseException as error:
        if not isinstance(error, ElsewhereError | KeyboardInterrupt):
            _note_failure(here, error)
        _let_go(error)
        raise
    finally:
        # cuts the connections, if nothing else has hold of the group: whoever waits for this process hears of its end
        dist.destroy_process_group()
        with suppress(RuntimeError):  # who keeps the store may be gone
            if here.first:
                store.set(FIRST_IS_OUT, "")
            elif failed:
                store.wait([FIRST_IS_OUT], LAST_WORDS)


def _has_idle_parameters(network: nn.Module, images: Tensor) -> bool:
    """Whether some parameter that may learn gets no gradient: torch would wait for it for ever, unless it is told."""
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # dropout draws
        probe = copy.deepcopy(network).train()
        probe.zero_grad(set_to_none=True)
        probe(images).sum().backward()
    return any(p.requires_grad and p.grad is None for p in probe.parameters())


def _open_group(here: Team, patience: timedelta) -> None:
    cuda = torch.cuda.is_available()
    if cuda and here.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(here.local_rank)
    # Its functions have the group that is open when it is imported among their defaults, and DistributedDataParallel
    # imports it: left to that, it would keep the group, with its connections and threads, beyond its end.
    importlib.import_module("torch.distributed.nn")
    # nccl for what is on a GPU; gloo for what is on the CPU, which includes all that is not a tensor
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    try:
        dist.init_process_group(backend, rank=here.rank, world_size=here.size, timeout=patience)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the {here.size} processes cannot be joined ({reason}): start them by torchrun.") from None


def _let_go(error: BaseException | None) -> None:
    """Forget the variables that an error keeps alive, a network wrapped for training among them.

    It holds the group, whose threads would live as long as the error, and can crash a process that ends before them.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _note_failure(here: Team, error: BaseException) -> None:
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    line = str(error).partition("\n")[0]  # torch's own errors go on with the places in its code
    with suppress(RuntimeError):
        _store().set(FAILURE, f"process {here.rank} failed: {kind}{line}")


def _noted_failure() -> str:
    """What another process said before it ended; empty if nothing."""
    with suppress(RuntimeError):
        if _store().check([FAILURE]):
            return str(_store().get(FAILURE).decode())
    return ""


def _store() -> Any:
    """The table that the processes met by: torchrun keeps it, so that it outlives them."""
    group = dist.group.WORLD
    if group is None:
        raise RuntimeError("no process group is open")
    return group.get_group_store()


def _is_lost_connection(error: BaseException) -> bool:
    # gloo raises plain RuntimeErrors, with the place in its own code first
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
