"""Runs: with `store`, `artifacts` and `registry` the rooms that talk to MLflow (and `experiment`, which it loads)."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlflow
from mlflow.entities import Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from netprune.errors import InputError
from sweeps import interrupts
from sweeps.keys import key_of, name_of
from sweeps.processes import ProcessId
from sweeps.progress import detail
from sweeps.secrets import masked

STAGE, FEASIBLE, STUDY, TRIAL = "netprune.stage", "feasible", "netprune.study", "netprune.trial"
PARENT = MLFLOW_PARENT_RUN_ID
"""Tag: the run that one is nested under. Trials and confirmations are found by their study's: a store may hold several
studies of one name."""
STUDY_RUN = "netprune.study_run"
"""Tag: of a registration, the run of the study whose network it registered."""
CONFIRMED = "confirmed"
"""Tag: of a study, whether its highest floor has a confirmed network; of a confirmation, whether its network is one."""
STORAGE = "netprune.storage"
"""Tag: where a study lives, without its password, if that is not the file in the working directory."""
NOTE, NOTE_LETTERS = "mlflow.note.content", 8000
"""Tag: what a run says of itself, as Markdown; MLflow keeps no more letters."""
OPTIONS = "netprune.options"
"""Tag: as JSON, the options of the newest session that are not the params, which those of the first one are."""
SESSION = "netprune.session"
"""Tag: which worker's session a run belongs to."""
PROCESS = "netprune.process/"
"""Tag, with a key of its own: a process that has a run open; empty when it has closed it."""
PACKAGES = ("torch", "torchvision", "mlflow", "optuna", "numpy", "netprune")


def close_dead(study: str, dead: Collection[str]) -> None:
    """Mark the runs that dead workers' sessions of a study left open, on any machine, as KILLED."""
    for stage in ("trial", "confirm"):
        for run in find_runs({STAGE: stage, STUDY: study}, statuses=("RUNNING",)):
            if run.tags.get(SESSION) in dead:
                mlflow.MlflowClient().set_terminated(run.run_id, "KILLED")


def close_abandoned() -> None:
    """Mark the runs that processes of this machine left open as KILLED: SIGKILL and power cuts leave no time for it."""
    runs = mlflow.search_runs(
        search_all_experiments=True, filter_string="attributes.status = 'RUNNING'", output_format="list"
    )
    for run in runs:
        openers = [text for name, text in run.data.tags.items() if name.startswith(PROCESS) and text]
        if openers and all(ProcessId.from_text(text).is_gone for text in openers):
            mlflow.MlflowClient().set_terminated(run.info.run_id, "KILLED")


def still_running(run_id: str) -> None:
    """Mark a run that others go on with as RUNNING."""
    mlflow.MlflowClient().update_run(run_id, status="RUNNING")


@contextmanager
def tracked_run(
    stage: str,
    name: str,
    config: Mapping[str, Any],
    *,
    tags: Mapping[str, str] | None = None,
    reopen: str | None = None,
    system_metrics: bool = False,
) -> Iterator[str]:
    """A run that opens before the work and closes whatever happens.

    Nested under the active run if there is one. Under `mlflow run` the first call takes over the run that MLflow
    opened. A KeyboardInterrupt ends it as KILLED, any other exception as FAILED with the error in the tag `error`.

    Args:
        stage: `train`, `scan`, `search`, `trial`, `confirm`, `register`, `main`: the tag `netprune.stage`.
        name: what a flat list of runs shows.
        config: the resolved options, logged as `<stage>.<option>`: `mlflow run` has logged the plain names already,
            as the user typed them.
        tags: more tags.
        reopen: the id of an ended run to go on with.
        system_metrics: also log the machine's load, memory and GPU every ten seconds, as `system/…`.

    Yields:
        The run's id.
    """
    if reopen and os.environ.get("MLFLOW_RUN_ID"):
        # left alone, the run that `mlflow run` opened would be taken by the first run opened below
        with (
            tracked_run("session", f"session of {name}", {}, tags={"netprune.continues": reopen}),
            tracked_run(stage, name, config, tags=tags, reopen=reopen) as run_id,
        ):
            yield run_id
        return
    versions = {f"version.{package}": importlib.metadata.version(package) for package in PACKAGES}
    versions["version.python"] = platform.python_version()
    opener = PROCESS + uuid.uuid4().hex[:12]
    all_tags = {STAGE: stage, **versions, opener: str(ProcessId.mine()), **(tags or {})}
    outer = mlflow.active_run()
    try:  # from before the run opens: an interrupt just after it would leave it to MLflow, which calls it FINISHED
        run = mlflow.start_run(
            run_id=reopen,
            run_name=name,
            nested=outer is not None,
            tags=all_tags,
            log_system_metrics=system_metrics,
        )
        detail(f"run {run.info.run_id}: {name}")
        params = {key_of(f"{stage}.{name}"): value for name, value in config.items()}
        mlflow.log_params({key: value for key, value in params.items() if key not in run.data.params})
        yield str(run.info.run_id)
    except BaseException as error:
        if mlflow.active_run() is not outer:
            _end_for(error, opener)
        raise
    with interrupts.postponed():  # or the run would stay open, and a trial's result be given up
        mlflow.set_tag(opener, "")
        mlflow.end_run()


def log_newest(stage: str, config: Mapping[str, Any]) -> None:
    """Keep the options of a later session of the active run, as `tracked_run` does those of the first.

    MLflow's params cannot be changed; whoever finds the run has these in their place.
    """
    logged = mlflow.MlflowClient().get_run(active_run_id()).data.params
    told = {f"{stage}.{name}": str(value) for name, value in config.items()}
    mlflow.set_tag(OPTIONS, json.dumps({name: value for name, value in told.items() if logged.get(name) != value}))


def _end_for(error: BaseException, opener: str) -> None:
    interrupted = isinstance(error, KeyboardInterrupt)
    kind = KeyboardInterrupt if interrupted else type(error)
    # torchrun stops the others when a process is gone, just when they fail for want of it
    with interrupts.postponed():
        mlflow.set_tag(opener, "")
        mlflow.set_tag("error", masked(f"{kind.__name__}: {error}")[:500])
        mlflow.end_run("KILLED" if interrupted else "FAILED")


def active_run_id() -> str:
    """The id of the run that is open now.

    Raises:
        RuntimeError: if none is, which is a defect of the caller.
    """
    run = mlflow.active_run()
    if run is None:
        raise RuntimeError("no run is open")
    return str(run.info.run_id)


def flag(value: bool) -> str:
    """A truth as a tag has it."""
    return "true" if value else "false"


def number(value: float) -> str:
    """A number as a tag has it: ten digits, so that bytes are whole.

    >>> number(26816552), number(0.8732)
    ('26816552', '0.8732')
    """
    return f"{value:.10g}"


def log(
    metrics: Mapping[str, float],
    *,
    curves: Mapping[str, Mapping[int, float]] | None = None,
    tags: Mapping[str, str] | None = None,
    step: int = 0,
) -> None:
    """Log to the active run, in one message (MLflow makes several of more than a thousand values).

    Args:
        metrics: name → value, at `step`.
        curves: name → (step → value).
        tags: name → value, but for the run's name (see `rename`).
        step: of the metrics.
    """
    now = time.time_ns() // 1_000_000
    points = [Metric(key_of(name), value, now, step) for name, value in metrics.items()]
    points += [
        Metric(key_of(name), value, now, at) for name, curve in (curves or {}).items() for at, value in curve.items()
    ]
    wanted = [RunTag(name, value) for name, value in (tags or {}).items()]
    mlflow.MlflowClient().log_batch(active_run_id(), metrics=points, tags=wanted)


def set_tags(tags: Mapping[str, str], run_id: str | None = None) -> None:
    """Tag the active run, or another, which need not be open."""
    if run_id is None:
        mlflow.set_tags(dict(tags))
        return
    for name, value in tags.items():
        mlflow.MlflowClient().set_tag(run_id, name, value)


def rename(name: str) -> None:
    """Give the active run another name: the one thing that MLflow's list of runs shows without being asked."""
    mlflow.set_tag(MLFLOW_RUN_NAME, name)


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run as the store knows it."""

    run_id: str
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    """Of several sessions the newest one's (see `log_newest`)."""
    metrics: Mapping[str, float]


def find_runs(
    tags: Mapping[str, str],
    *,
    order_by: str = "attributes.start_time DESC",
    statuses: Sequence[str] = ("FINISHED",),
    limit: int = 1000,
) -> list[FoundRun]:
    """Runs of any experiment whose tags equal `tags`, newest first unless told otherwise.

    Args:
        tags: tag name → value, without double quotes.
        order_by: MLflow's order clause, such as `metrics.packed_bytes ASC`.
        statuses: which of MLflow's statuses count.
        limit: at most this many.
    """
    where = " and ".join(f'tags.`{name}` = "{value}"' for name, value in tags.items())
    found = mlflow.search_runs(
        search_all_experiments=True, filter_string=where, order_by=[order_by], output_format="list"
    )
    return [_found(run) for run in found if run.info.status in statuses][:limit]


def find_run(run_id: str) -> FoundRun:
    """One run by its id.

    Raises:
        InputError: if the store has none.
    """
    try:
        return _found(mlflow.get_run(run_id))
    except MlflowException:
        raise InputError(f"there is no run {run_id} in {masked(mlflow.get_tracking_uri())}.") from None


def require_run(run_id: str, what: str) -> None:
    """Refuse to go on with what the store has no run of, or none that has not been deleted.

    Raises:
        InputError: naming it and the store.
    """
    try:
        if mlflow.get_run(run_id).info.lifecycle_stage == "active":
            return
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    raise InputError(
        f"the run of {what} is not in the MLflow store {masked(mlflow.get_tracking_uri())}: set MLFLOW_TRACKING_URI to "
        f"the store that it was made in, restore the run if it was deleted, or take another study_name."
    )


def _found(run: Run) -> FoundRun:
    data = run.data
    params = {name_of(key): value for key, value in data.params.items()}
    params |= json.loads(data.tags.get(OPTIONS, "{}"))
    metrics = {name_of(key): value for key, value in data.metrics.items()}
    return FoundRun(run.info.run_id, run.info.run_name, run.info.status, data.tags, params, metrics)
