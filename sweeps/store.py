"""MLflow's store: opening it, and what its errors mean."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import path_to_local_sqlite_uri
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from netprune.errors import InputError
from netprune.files import alone
from sweeps.experiment import EXPERIMENT
from sweeps.progress import detail
from sweeps.secrets import masked
from sweeps.tracking import close_abandoned

STORE_ERRORS = (MlflowException, SQLAlchemyError)


def open_store() -> None:
    """Make the store ready, and this project's experiment the current one.

    Under `mlflow run` the run is already open in an experiment, which is kept; a user's own choice by
    MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID is kept too.

    Raises:
        InputError: if the store cannot be reached or opened.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # that is for results
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # it prints what it raises, with its SQL: the command says it in one line
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    try:
        with _first_use():
            if any(os.environ.get(f"MLFLOW_{name}") for name in ("RUN_ID", "EXPERIMENT_NAME", "EXPERIMENT_ID")):
                mlflow.MlflowClient().search_experiments(max_results=1)  # makes the tables, if they are not there
            else:
                mlflow.set_experiment(EXPERIMENT)
        close_abandoned()
        detail(f"store {masked(mlflow.get_tracking_uri())}")
    except STORE_ERRORS as error:
        raise InputError(store_message(error)) from None


def where_to_look() -> str:
    """What shows the store's runs: a command, or the address of its server."""
    uri = mlflow.get_tracking_uri()
    if urlsplit(uri).scheme in ("http", "https"):
        return masked(uri)
    # it does not heed MLFLOW_TRACKING_URI, but takes the store of the working directory
    database = _database(uri)
    here = database is not None and database.absolute() == Path.cwd() / "mlflow.db"
    return "mlflow ui" if here else f"mlflow ui --backend-store-uri {shlex.quote(masked(uri))}"


@contextmanager
def _first_use() -> Iterator[None]:
    """One process at a time, and a fresh SQLite store is made whole or not at all.

    MLflow makes the tables in every process that opens a fresh store: of several at once all but one fail, and one that
    is killed meanwhile leaves a store that nobody can open any more.
    """
    path = _database(mlflow.get_tracking_uri())
    if path is None or not os.access(path.parent, os.W_OK):
        yield
        return
    with alone(Path(f"{path}.lock")):
        if not path.exists():
            scratch = path.with_name(f".{path.name}-{os.getpid()}")
            try:
                fresh = path_to_local_sqlite_uri(scratch)  # type: ignore[no-untyped-call]
                mlflow.MlflowClient(tracking_uri=fresh).search_experiments(max_results=1)
                os.replace(scratch, path)
            finally:
                scratch.unlink(missing_ok=True)
        yield


def _database(uri: str) -> Path | None:
    """The file of an SQLite store, its name read as SQLAlchemy reads it; None for any other store.

    MLflow's default address of one is percent-encoded: a working directory may hold spaces and letters of any script.
    """
    if not uri.startswith("sqlite:///"):
        return None
    url = make_url(uri)
    return Path(url.database) if url.database and url.database != ":memory:" and not url.query else None


def store_message(error: Exception) -> str:
    """One line for an error of the store, with the mend where it is known."""
    text = str(error)
    where = masked(mlflow.get_tracking_uri())
    if "readonly" in text or "unable to open" in text:
        return f"the MLflow store {where} cannot be written: mend its permissions, or set MLFLOW_TRACKING_URI."
    if "locked" in text:
        return f"the MLflow store {where} is locked by another program: stop that program, or set MLFLOW_TRACKING_URI."
    first = masked(text.strip().splitlines()[0]) if text.strip() else type(error).__name__
    return f"the MLflow store {where} answered: {first}"
