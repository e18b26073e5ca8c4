"""Who works on a study: one session a process, with a sign of life, so that nobody waits for the dead."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from sweeps.processes import ProcessId

PREFIX = "session/"
BEAT_SECONDS = 20.0
GRACE_SECONDS = 120.0
"""Without a sign of life for so long, a session on another machine counts as dead. Machines' clocks must agree better
than that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One process at work on a study."""

    key: str
    """Of this session alone."""
    turn: int
    """How many sessions the study knew when this one began."""
    process: str
    """A `ProcessId` as text."""
    beat: float
    """Time of the last sign of life, in seconds since 1970."""
    ended: bool = False

    @classmethod
    def mine(cls, turn: int) -> Session:
        """Of this process, now."""
        return cls(key=uuid.uuid4().hex[:12], turn=turn, process=str(ProcessId.mine()), beat=time.time())

    @property
    def alive(self) -> bool:
        """Whether its process is at work: on this machine by looking, on another by its last sign of life."""
        process = ProcessId.from_text(self.process)
        if self.ended or process.is_gone:
            return False
        return process.is_here or time.time() - self.beat < GRACE_SECONDS


class Crew:
    """The sessions of one study, as its attributes have them."""

    def __init__(self, read: Callable[[], Mapping[str, Any]], write: Callable[[str, Any], None]) -> None:
        """Take how attributes are read, all of them as they are now, and how one is set."""
        self._read, self._write = read, write
        self.key = ""
        """Of this process's session; empty outside `at_work`."""

    @property
    def sessions(self) -> dict[str, Session]:
        """All that there ever were, by key."""
        found = {n.removeprefix(PREFIX): value for n, value in self._read().items() if n.startswith(PREFIX)}
        return {key: Session(key=key, **value) for key, value in found.items()}

    @property
    def leads(self) -> bool:
        """Whether this session is the one that does what must be done once: of the live ones, the first that began."""
        alive = [session for session in self.sessions.values() if session.alive]
        return bool(alive) and min(alive, key=lambda one: (one.turn, one.key)).key == self.key

    @property
    def has_others(self) -> bool:
        """Whether others are alive."""
        return any(session.alive for key, session in self.sessions.items() if key != self.key)

    @property
    def dead(self) -> set[str]:
        """Keys of sessions whose process is gone or whose work has ended."""
        return {key for key, session in self.sessions.items() if not session.alive}

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within the body this process is a session of the study, and gives a sign of life every twenty seconds."""
        session = Session.mine(turn=len(self.sessions))
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_SECONDS):
                with suppress(Exception):  # a storage that is away for a moment is told the next time
                    self._keep(replace(session, beat=time.time()))

        self._keep(session)
        self.key = session.key
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.key = ""
            with suppress(Exception):  # what went wrong before is the news; the others see that the process is gone
                self._keep(replace(session, beat=time.time(), ended=True))

    def _keep(self, session: Session) -> None:
        self._write(PREFIX + session.key, {name: v for name, v in asdict(session).items() if name != "key"})
