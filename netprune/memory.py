"""How much memory is free on a device."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")
MEMORY_SHARE = 0.5
"""Of what is free, that images may take."""


def fits(size_bytes: int, device: torch.device) -> bool:
    """Whether so many more bytes on `device` leave half of its free memory free."""
    return size_bytes <= MEMORY_SHARE * free_memory(device)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device: of the GPU, or of the machine or the container on it.

    Of the latter the processes that torchrun starts on a machine have equal parts: they look at the same time.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(min(psutil.virtual_memory().available, _left_to_container()) / processes)


def _left_to_container() -> float:
    """Bytes up to the limit of this process's control group, which psutil does not know; infinite without one.

    Of what is used, files' pages that nobody has looked at lately are free (Linux, cgroup v2).
    """
    try:
        most, used = ((CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        lines = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return math.inf
    return math.inf if most == "max" else max(0, int(most) - int(used) + int(lines["inactive_file"]))
