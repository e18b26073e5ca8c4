"""Chromium without a screen, and MLflow's UI on loopback, for tests and for the README's pictures."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

WIDTH, HEIGHT = 1600, 1000
FLAGS = (
    "--no-sandbox",  # containers run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
CALM = """
try {
  localStorage["mlflow.assistant.panelOpen_v1"] = "false";
  localStorage["mlflow.assistant.fab.autoOpenedOnFirstLoad_v1"] = "true";
} catch { /* the frame in which an artifact is shown has no storage */ }
"""
"""MLflow's assistant opens by itself at a first visit, over a third of the page."""
SECONDS = 60


def chromium():
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def missing():
    """Why no page can be opened here; empty if one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return "" if chromium() else "Chromium is not installed"


@contextmanager
def browser():
    """A Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        found = tool.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield found
        found.close()


@contextmanager
def opened(found, **options):
    """A fresh page, and what went wrong on it: scripts that failed, and what the page itself complained of."""
    context = found.new_context(**{"viewport": {"width": WIDTH, "height": HEIGHT}, **options})
    context.add_init_script(CALM)
    page, wrong = context.new_page(), []
    page.set_default_timeout(SECONDS * 1000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    yield page, wrong
    context.close()


@contextmanager
def mlflow_ui(database, folder):
    """MLflow's UI for a store, on loopback; gives its address.

    Args:
        database: file of the store.
        folder: for the server's log; what it is started in.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log = folder / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            words, cwd=folder, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(address, process, log):
    open_directly = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    for _ in range(4 * SECONDS):
        try:
            open_directly(f"{address}/health", timeout=5).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert process.poll() is None, log.read_text()
            time.sleep(0.25)
        else:
            return
    raise AssertionError(log.read_text())


def visit(page, address, path):
    """Go to a page of the UI, as it looks for those who train networks."""
    page.goto(f"{address}/#/{path}{'&' if '?' in path else '?'}workflowType=machine_learning")
    page.get_by_text("Model registry").first.wait_for()


def expand(page, name):
    """Show the runs nested in the one whose name contains `name`."""
    row = page.locator(".ag-row", has_text=name).first
    row.locator("button").first.click()
