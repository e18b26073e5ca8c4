"""Where a study's state lives: a file beside the store, a database, or Optuna's proxy in front of one."""

from __future__ import annotations

import fcntl
import os
import sys
import time
import warnings
from pathlib import Path
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.exc import SQLAlchemyError

from netprune.errors import InputError
from sweeps.secrets import masked

JOURNAL = "optuna.journal"
GRPC = "grpc"
ATTEMPTS, PAUSE_SECONDS = 6, 0.5


def storage_errors() -> tuple[type[Exception], ...]:
    """What a storage raises that goes away while a study runs."""
    proxy = sys.modules.get(GRPC)  # only who has a proxy has needed to import it
    return (StorageInternalError, proxy.RpcError) if proxy else (StorageInternalError,)


def storage_message(error: Exception) -> str:
    """What a storage that went away answered, in one line without a password."""
    details = getattr(error, "details", None)  # a proxy's error has its sentence there
    text = details() if callable(details) else str(error)
    return masked(_first_line(text or type(error).__name__))


class KernelLock(JournalFileOpenLock):
    """A lock that the kernel lets go of when its holder dies, which Optuna's own is for half a minute.

    What a holder that was killed while it wrote left of its last line is cut off by the next one: without that nobody
    could read the file again.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path, self._held = path, -1

    def acquire(self) -> bool:
        """Wait for the lock, then mend the file's end."""
        # another thread may hold the lock by a descriptor of its own: `_held` is the holder's
        wanted = os.open(f"{self._path}.lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(wanted, fcntl.LOCK_EX)
            _cut_torn_line(Path(self._path))
        except BaseException:
            os.close(wanted)
            raise
        self._held = wanted
        return True

    def release(self) -> None:
        """Let go."""
        os.close(self._held)


def open_storage(url: str) -> BaseStorage:
    """The storage of that address.

    Args:
        url: empty for `optuna.journal` in the working directory; a database as SQLAlchemy writes it
            (`postgresql+psycopg://user:password@host/name`, `sqlite:///file.db`); or `grpc://host:port`.

    Raises:
        InputError: if it cannot be opened; the message has no password.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            if not url:
                return JournalStorage(JournalFileBackend(JOURNAL, lock_obj=KernelLock(JOURNAL)))
            if url.startswith(f"{GRPC}://"):
                return _proxy(url)
            return _database(url)
    except OSError as error:
        raise InputError(f"the study's file {JOURNAL} cannot be used: {error.strerror}.") from None


def _proxy(url: str) -> BaseStorage:
    try:
        address = urlsplit(url)
        host, port = address.hostname, address.port
    except ValueError:  # a port that is none, or half of an IPv6 address
        host, port = None, None
    if not host or not port:
        raise InputError(f"storage is {masked(url)}; a proxy's address is grpc://host:port.")
    try:
        storage = GrpcStorageProxy(host=host, port=port)
        storage.wait_server_ready(timeout=10)
    except ImportError:
        raise InputError("Optuna's proxy needs grpcio: pip install 'netprune[cluster]'.") from None
    except Exception as error:
        raise InputError(f"no Optuna storage proxy answers at {masked(url)}: {masked(_first_line(error))}.") from None
    return storage


def _database(url: str) -> BaseStorage:
    """Of processes that open a fresh database at once all but one fail to make its tables: they try again."""
    for attempt in range(ATTEMPTS):
        try:
            return RDBStorage(url)
        except RuntimeError:  # a version of tables that Optuna does not know
            raise InputError(
                f"storage {masked(url)} has another program's tables, or another Optuna's: give the study a database "
                f"of its own (MLflow's cannot be shared)."
            ) from None
        except (ImportError, ValueError) as error:
            raise InputError(f"storage {masked(url)} cannot be used: {masked(_first_line(error))}.") from None
        except SQLAlchemyError as error:
            if attempt == ATTEMPTS - 1:
                raise InputError(f"storage {masked(url)} cannot be used: {masked(_first_line(error))}.") from None
            time.sleep(PAUSE_SECONDS * (attempt + 1))
    raise AssertionError("unreachable")


def _first_line(error: Exception | str) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        if end == 0:
            return
        file.seek(end - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
