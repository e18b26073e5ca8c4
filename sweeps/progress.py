"""How far the work is and how long it will take: on stderr, a bar where that is a terminal.

Nothing here or in any command is coloured, whether NO_COLOR is set or not.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NoReturn, Self

from tqdm import tqdm

from sweeps import interrupts


class Voice(enum.IntEnum):
    """How much a command says on stderr. Results on stdout and errors are not touched."""

    QUIET = 0
    """No news and no bars."""
    NORMAL = 1
    VERBOSE = 2
    """Also the store, the data and each run, and the traceback of an error."""


_voice = ContextVar("voice", default=Voice.NORMAL)  # of the command that runs: not an argument of every function


@contextmanager
def speaking(voice: Voice) -> Iterator[None]:
    """Within the body so much is said."""
    before = _voice.set(voice)
    try:
        yield
    finally:
        _voice.reset(before)


class Progress:
    """A progress bar with the time left, called with the steps done and the steps in all.

    Where stderr is no terminal, or the command is quiet, nothing is drawn. `each` is how many of its unit a step counts
    for.
    """

    def __init__(self, label: str, unit: str = "step", each: int = 1) -> None:
        self.each = each
        silent = True if _voice.get() is Voice.QUIET else None  # tqdm's word for: unless stderr is a terminal
        self.bar: tqdm[NoReturn] = tqdm(desc=label, unit=unit, disable=silent, leave=False, dynamic_ncols=True)
        self.started = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` steps are done; KeyboardInterrupt if the command was told to stop."""
        interrupts.check()
        done, total = done * self.each, total * self.each
        if not self.started:  # a resumed training does not begin at step 0
            self.started = True
            self.bar.reset(total)
            self.bar.initial = self.bar.n = max(0, done - self.each)
        self.bar.total = total  # a scan that refines its curves learns of more points on the way
        self.bar.update(done - self.bar.n)


def duration(seconds: float) -> str:
    """Seconds → a length of time as people say it.

    >>> duration(42), duration(200), duration(9000)
    ('42 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def report(line: str) -> None:
    """One line of news on stderr, above a bar that may be drawn there; a quiet command has none."""
    if _voice.get() >= Voice.NORMAL:
        tqdm.write(line, file=sys.stderr)


def detail(line: str) -> None:
    """The same for a verbose command only."""
    if _voice.get() >= Voice.VERBOSE:
        tqdm.write(line, file=sys.stderr)
