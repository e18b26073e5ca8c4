"""Files that belong to runs, in MLflow's artifact store."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path

from netprune.errors import InputError
from netprune.files import copy_whole
from sweeps.secrets import masked


def log_file(path: Path, folder: str | None = None, run_id: str | None = None) -> None:
    """Keep a file as an artifact of the active run, or of another, which need not be open; one of that name survives a
    failed write where the store is local."""
    root = _local_artifacts(run_id)
    if root is None:
        mlflow.log_artifact(str(path), folder, run_id=run_id)
        return
    target = root / (folder or "") / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    copy_whole(path, target)


def log_bytes(data: bytes, name: str, run_id: str | None = None) -> None:
    """Keep bytes as the artifact `name` (with `/` for folders) of a run: see `log_file`."""
    folder, _, file = name.rpartition("/")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / file).write_bytes(data)
        log_file(Path(scratch) / file, folder or None, run_id)


def _local_artifacts(run_id: str | None) -> Path | None:
    """A run's folder of artifacts, if it is one of this machine: MLflow itself overwrites files in place."""
    run = mlflow.active_run() if run_id is None else mlflow.get_run(run_id)  # the open one is known without asking
    assert run is not None, "no run is open"
    uri = run.info.artifact_uri
    if urlsplit(uri).scheme not in ("", "file"):
        return None
    # a plain path may hold # and ?, which end the path of an address
    return Path(local_file_uri_to_path(uri))  # type: ignore[no-untyped-call]


def log_json(content: Mapping[str, Any], name: str) -> None:
    """Keep a mapping as a JSON artifact of the active run."""
    log_bytes(json.dumps(content, indent=1).encode(), name)


def log_figures(figures: Mapping[str, Figure], run_id: str) -> None:
    """Keep figures, name → figure, as `figures/<name>.png` of a run, which need not be open."""
    for name, figure in figures.items():
        mlflow.MlflowClient().log_figure(run_id, figure, f"figures/{name}.png")


def fetch_artifact(run_id: str, name: str, folder: Path) -> Path:
    """Copy an artifact of a run into `folder`.

    Raises:
        InputError: if the run or the artifact is not in the store.
    """
    try:
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(folder)))
    except (MlflowException, OSError):
        raise InputError(f"run {run_id} has no artifact {name} in {masked(mlflow.get_tracking_uri())}.") from None


def read_artifact(run_id: str, name: str) -> bytes:
    """The bytes of an artifact. See `fetch_artifact` for what is raised."""
    with tempfile.TemporaryDirectory() as scratch:
        return fetch_artifact(run_id, name, Path(scratch)).read_bytes()
