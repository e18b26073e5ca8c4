"""Stopping: signals become one kind of interrupt, and what must not be cut in half is not."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sweeps import interrupts
from sweeps.progress import Progress


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_heard_signal_becomes_keyboard_interrupt(number):
    with pytest.raises(KeyboardInterrupt), interrupts.heard():
        os.kill(os.getpid(), number)
        time.sleep(5)


def test_heard_second_signal_does_not_cut_the_closing_short():
    closed = False
    with pytest.raises(KeyboardInterrupt), interrupts.heard():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            closed = True
    assert closed


def test_heard_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interrupts.heard():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_deferred_signal_waits_for_the_body():
    finished = False
    with pytest.raises(KeyboardInterrupt), interrupts.heard(), interrupts.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        finished = True
    assert finished


def test_postponed_signal_cuts_nothing_short_and_is_raised_at_the_next_check():
    with interrupts.heard():
        with pytest.raises(ValueError, match="boom"), interrupts.postponed():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            raise ValueError("boom")
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    with interrupts.heard():
        interrupts.check()


def test_handlers_in_a_thread_are_left_alone():
    errors = []

    def work():
        try:
            with interrupts.heard(), interrupts.postponed(), interrupts.deferred():
                pass
        except ValueError as error:  # signal only works in main thread
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []


def test_heard_signal_that_was_swallowed_is_raised_at_the_next_step():
    def swallow(number):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(5)

    with interrupts.heard(), Progress("work") as progress:
        progress(1, 3)
        swallow(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            progress(2, 3)
    with interrupts.heard(), Progress("other work") as progress:
        progress(1, 3)
        assert progress.started


def test_heard_signal_within_an_exec_leaves_the_exit_code_to_who_catches_it(tmp_path, monkeypatch):
    script = """
import sys
from sweeps import interrupts
try:
    with interrupts.heard():
        exec("import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)")
except KeyboardInterrupt:
    sys.exit(130)
"""
    (tmp_path / "stopped.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    assert subprocess.run([sys.executable, "-m", "stopped"], check=False).returncode == 130
