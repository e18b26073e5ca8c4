"""Ctrl-C and SIGTERM: one way to stop, which leaves no run open and no file half-written."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PARENT_POLL_SECONDS = 0.5
_received = threading.Event()  # signals belong to the process, and so does this


class Interrupted(KeyboardInterrupt):
    """A KeyboardInterrupt that leaves the exit code alone.

    Where the plain one passes through `exec` or `eval` of a string (so libraries make classes), CPython notes it as
    unhandled, whoever catches it, and a `python -m` command kills itself by SIGINT at its end: -2 in place of 130.
    """


@contextmanager
def heard() -> Iterator[None]:
    """Within the body SIGTERM is a KeyboardInterrupt as Ctrl-C is, as is the end of `mlflow run` or torchrun above."""
    _received.clear()
    with _handlers(_interrupt):
        if any(os.environ.get(name) for name in ("MLFLOW_RUN_ID", "TORCHELASTIC_RUN_ID")):
            threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
        yield


def check() -> None:
    """Raise KeyboardInterrupt if a signal came and was lost: called with every step of long work.

    Python prints and forgets what is raised while it finalises an object, in the middle of a database call for example,
    and a command that was told to stop would go on for hours.
    """
    if _received.is_set():
        raise Interrupted


@contextmanager
def deferred() -> Iterator[None]:
    """Let the body finish before an interrupt is heard: for writing what must not be cut in half."""
    pending: list[int] = []
    with _handlers(lambda number, _frame: pending.append(number)):
        yield
    if pending:
        raise Interrupted


@contextmanager
def postponed() -> Iterator[None]:
    """Let the body finish; an interrupt meanwhile is raised by the next `check`: for what an error has ended anyway."""
    with _handlers(lambda *_: _received.set()):
        yield


@contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which is the one that signals interrupt
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    _received.set()
    # once is enough: a second signal must not cut the closing of runs short
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Interrupted


def _follow_parent(parent: int) -> None:
    # SIGTERM and SIGKILL end `mlflow run` but not its child, whose run would then stay RUNNING for as long as it works;
    # SIGKILL ends torchrun so
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
