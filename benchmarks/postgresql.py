"""A PostgreSQL server of one's own, on loopback, that goes away: from Debian's package `postgresql` or any other."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_CONNECTIONS = 500
USER = "postgres"


def missing() -> str | None:
    """Why no server can be started here, or None if one can."""
    if find("initdb") is None or find("pg_ctl") is None:
        return "PostgreSQL's initdb and pg_ctl are not installed (Debian: apt-get install postgresql)"
    if os.getuid() == 0 and not _has_user():
        return f"PostgreSQL refuses to run as root, and there is no user {USER}"
    return None


@contextmanager
def server() -> Iterator[str]:
    """A fresh cluster with the databases `study` and `mlflow`; yields its address, up to a database's name.

    Two, because MLflow and Optuna both keep the version of their tables in a table of the same name.
    """
    with tempfile.TemporaryDirectory() as folder:
        if os.getuid() == 0:
            shutil.chown(folder, USER)
        data, port = Path(folder) / "data", _free_port()
        _run("initdb", "-D", str(data), "-U", USER, "-A", "trust", "--no-sync")
        settings = f"-p {port} -h 127.0.0.1 -k {folder} -c max_connections={MOST_CONNECTIONS} -c fsync=off"
        _run("pg_ctl", "-D", str(data), "-w", "-l", f"{folder}/log", "-o", settings, "start")
        try:
            for database in ("study", "mlflow"):
                _run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", USER, database)
            yield f"postgresql+psycopg://{USER}@127.0.0.1:{port}/"
        finally:
            _run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")


def find(program: str) -> str | None:
    """Debian keeps PostgreSQL's programs out of the PATH."""
    places = [os.environ.get("PATH", ""), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
    return shutil.which(program, path=os.pathsep.join(places))


def _run(program: str, *arguments: str) -> None:
    words = [find(program) or program, *arguments]
    if os.getuid() == 0:
        words = ["runuser", "-u", USER, "--", *words]
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{program} failed: {done.stderr.strip()}")


def _has_user() -> bool:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
