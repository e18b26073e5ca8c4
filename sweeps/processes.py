"""Which process something belongs to, and whether that is still there."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import psutil


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessId:
    """One process, of any machine."""

    machine: str
    """Name, boot and process namespace: where a process id means something."""
    pid: int
    born: float
    """When the process started, as its machine counts (`_born`): process ids are used again."""

    @classmethod
    def mine(cls) -> ProcessId:
        """Of this process."""
        return cls(machine=this_machine(), pid=os.getpid(), born=_born(os.getpid()))

    @classmethod
    def from_text(cls, text: str) -> ProcessId:
        """Back from `str`."""
        return cls(**json.loads(text))

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, of this machine since it was started."""
        return self.machine == this_machine()

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, as far as can be seen from here: of another machine's processes nothing can."""
        if not self.is_here:
            return False
        try:
            return _born(self.pid) != self.born
        except psutil.NoSuchProcess:
            return True


@cache
def this_machine() -> str:
    """The same for all processes that can see one another."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # Linux has both
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _born(pid: int) -> float:
    """In clock ticks since the boot on Linux, which stay as they are when the clock is set; elsewhere as psutil has it.

    Raises:
        psutil.NoSuchProcess: if it has ended.
    """
    process = psutil.Process(pid)
    if process.status() == psutil.STATUS_ZOMBIE:  # killed, and its parent has not looked yet
        raise psutil.NoSuchProcess(pid)
    with suppress(OSError):
        # the 22nd field; the second, a name in brackets, may hold blanks and brackets
        return float(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    return float(process.create_time())
