"""Which of several processes this is, and what of the work is its own: no process has to ask another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from netprune.errors import InputError

LEAST_SHARE = 2
"""Images: batch normalisation cannot take the variance of one."""
SEED_STRIDE = 1_000_003


def seed_generators(seed: int, device: torch.device) -> None:
    """Start torch's global generator anew, and that of a device which has its own.

    torch.manual_seed would seed all GPUs, those too on which others draw and whose states nobody brings back.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@dataclass(frozen=True, slots=True)
class Place:
    """One process among those of a training."""

    rank: int = 0
    """Which one this is, from 0."""
    size: int = 1
    """How many there are."""
    local_rank: int = 0
    """Which one of its machine this is, from 0."""

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks for all."""
        return self.rank == 0

    def check_batch(self, batch_size: int) -> None:
        """Refuse batches too small to be shared.

        Raises:
            InputError: naming the least size.
        """
        least = LEAST_SHARE * self.size
        if batch_size < least:
            raise InputError(
                f"batch_size is {batch_size}, and there are {self.size} processes; it must be at least {least}: "
                f"batch normalisation needs two images in each."
            )

    def share(self, batch: Tensor) -> Tensor:
        """The part of a batch `(B,)` that is this process's: `(b,)`, at most one image more than another's.

        An epoch's last batch may hold fewer than two images a process. Each takes it whole then: the gradient is the
        same, no image is lost, and every process takes part in every step.

        >>> [Place(rank, 3).share(torch.arange(7)).tolist() for rank in range(3)]
        [[0, 1, 2], [3, 4], [5, 6]]
        >>> [Place(rank, 3).share(torch.arange(5)).tolist() for rank in range(3)]
        [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
        """
        if len(batch) < LEAST_SHARE * self.size:
            return batch
        return torch.tensor_split(batch, self.size)[self.rank]

    def weight(self, count: int) -> float:
        """What the mean loss of the share of a batch of `count` images has to be multiplied by.

        The mean over the processes, which is what DistributedDataParallel takes, is then the mean over the images.

        >>> [Place(rank, 3).weight(7) for rank in range(3)] == [9 / 7, 6 / 7, 6 / 7]
        True
        """
        if count < LEAST_SHARE * self.size:
            return 1.0
        return (count // self.size + (self.rank < count % self.size)) * self.size / count

    def reseed(self, seed: int, epoch: int, device: torch.device) -> None:
        """Start the generators of `seed_generators` anew for an epoch, in each process apart; one that is alone leaves
        them be.

        Shares should not all lose the same outputs to dropout. What hangs on the epoch needs no state to resume from.
        """
        if not self.alone:
            seed_generators(seed + SEED_STRIDE * (epoch * self.size + self.rank), device)

    def own(self, generator: torch.Generator) -> torch.Generator:
        """A generator for draws that differ between processes, begun by one draw that all have in common."""
        if self.alone:
            return generator
        common = int(torch.randint(2**62, (), generator=generator))
        return torch.Generator().manual_seed(common + self.rank)

    def own_device(self, asked: str) -> str:
        """`auto` and `cuda` → this process's own GPU, where there are any; alone, what was asked for.

        Raises:
            InputError: for a device that all processes would have to share, or where GPUs do not suffice.
        """
        if self.alone or asked == "cpu":
            return asked
        if asked not in ("auto", "cuda"):
            raise InputError(f"device is {asked}, and there are {self.size} processes: take auto, cuda or cpu.")
        if not torch.cuda.is_available():
            return asked
        if self.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"this machine has more processes than its {torch.cuda.device_count()} GPUs: start one for each, or "
                f"take cpu as device."
            )
        return f"cuda:{self.local_rank}"


ALONE = Place()
