"""Which process something belongs to, and whether that is still there."""

from __future__ import annotations

import json
import os
import socket
import time
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
    host: str = ""
    """What stays of the machine when it is started again: its name and its own number."""
    boot: str = ""
    """What does not."""
    seen: float = 0.0
    """When it said this, in seconds since 1970."""

    @classmethod
    def mine(cls) -> ProcessId:
        """Of this process."""
        pid = os.getpid()
        return cls(
            machine=this_machine(), pid=pid, born=_born(pid), host=this_host(), boot=this_boot(), seen=time.time()
        )

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
        """Whether it has ended, as far as can be seen from here: of another machine's processes nothing can, but that
        this machine has been started again since."""
        if not self.is_here:
            same_host = bool(self.host and self.boot) and self.host == this_host()
            return same_host and self.boot != this_boot() and self.seen < psutil.boot_time()
        try:
            return _born(self.pid) != self.born
        except psutil.NoSuchProcess:
            return True


@cache
def this_machine() -> str:
    """The same for all processes that can see one another."""
    parts = [socket.gethostname(), this_boot()]
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(filter(None, parts))


@cache
def this_host() -> str:
    """The same after the machine has been started again; empty where it has no number of its own, as a name alone may
    be that of others."""
    with suppress(OSError):
        number = Path("/etc/machine-id").read_text().strip()
        return f"{socket.gethostname()} {number}" if number else ""
    return ""


@cache
def this_boot() -> str:
    """Another each time the machine is started; empty where it does not say (Linux does)."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def processors_taken(seconds: float) -> float:
    """How many of this machine's processors others use, on average over so many seconds; this process rests in them."""
    return psutil.cpu_percent(interval=seconds) / 100 * (os.cpu_count() or 1)


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
