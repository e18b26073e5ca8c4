"""Runs open before the work and close whatever happens."""

import json
import os
import platform
import signal
import subprocess
import sys
import time

import mlflow
import pytest

from netprune.errors import InputError
from sweeps import artifacts, interrupts, processes, tracking
from sweeps.experiment import NetpruneExperimentProvider
from sweeps.processes import ProcessId, this_boot, this_machine
from sweeps.store import STORE_ERRORS, open_store, where_to_look


def test_tracked_run_that_ends_is_finished_with_config_and_versions(store):
    with tracking.tracked_run("train", "a run", {"epochs": 3}, tags={"colour": "red"}) as run_id:
        assert tracking.find_run(run_id).status == "RUNNING"
    found = tracking.find_run(run_id)
    assert (found.status, found.name) == ("FINISHED", "a run")
    assert found.params == {"train.epochs": "3"}
    assert found.tags["colour"] == "red"
    assert found.tags[tracking.STAGE] == "train"
    assert found.tags["version.torch"]
    assert found.tags["version.python"] == platform.python_version()


def test_set_tags_of_another_run_leaves_the_active_one_alone(store):
    with tracking.tracked_run("search", "study", {}) as ended:
        pass
    with tracking.tracked_run("trial", "trial 0", {}) as active:
        tracking.set_tags({"colour": "red", "size": "small"}, ended)
    assert tracking.find_run(ended).tags.items() >= {"colour": "red", "size": "small"}.items()
    assert "colour" not in tracking.find_run(active).tags
    assert tracking.find_run(ended).status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (KeyboardInterrupt, "KILLED", "KeyboardInterrupt: boom"),
        (interrupts.Interrupted, "KILLED", "KeyboardInterrupt: boom"),
        (ValueError, "FAILED", "ValueError: boom"),
    ],
)
def test_tracked_run_that_raises_is_closed_with_the_error(store, error, status, text):
    ids = []
    with pytest.raises(error), tracking.tracked_run("search", "outer", {}) as outer:
        ids.append(outer)
        with tracking.tracked_run("trial", "inner", {}) as inner:
            ids.append(inner)
            raise error("boom")
    assert [tracking.find_run(run_id).status for run_id in ids] == [status, status]
    assert tracking.find_run(ids[1]).tags["error"] == text
    assert tracking.find_run(ids[1]).tags["mlflow.parentRunId"] == ids[0]


def test_tracked_run_that_fails_is_closed_as_failed_though_a_signal_comes_meanwhile(store, monkeypatch):
    set_tag = mlflow.set_tag

    def interrupted(*given):
        os.kill(os.getpid(), signal.SIGTERM)
        set_tag(*given)

    with interrupts.heard():
        with pytest.raises(ValueError, match="boom"), tracking.tracked_run("train", "a run", {}) as run_id:
            monkeypatch.setattr(mlflow, "set_tag", interrupted)
            raise ValueError("boom")
        with pytest.raises(KeyboardInterrupt):  # whoever goes on hears of it
            interrupts.check()
    with interrupts.heard():  # forgotten, for the tests after this one
        interrupts.check()
    found = tracking.find_run(run_id)
    assert (found.status, found.tags["error"]) == ("FAILED", "ValueError: boom")


def test_tracked_run_interrupted_as_it_opens_is_killed(store, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow, "log_params", interrupted)
    with pytest.raises(KeyboardInterrupt), tracking.tracked_run("train", "a run", {"epochs": 1}):
        pass
    assert [run.name for run in tracking.find_runs({tracking.STAGE: "train"}, statuses=("KILLED",))] == ["a run"]


def test_tracked_run_that_cannot_open_leaves_the_outer_run_open(store):
    with tracking.tracked_run("search", "outer", {}) as outer:
        with pytest.raises(STORE_ERRORS), tracking.tracked_run("trial", "t", {}, reopen="f" * 32):
            pass
        assert tracking.find_run(outer).status == "RUNNING"
    assert tracking.find_run(outer).status == "FINISHED"


def test_tracked_run_reopened_keeps_its_id_and_first_params(store):
    with tracking.tracked_run("search", "study", {"trials": 3}) as first:
        pass
    with tracking.tracked_run("search", "study", {"trials": 5, "more": 1}, reopen=first) as second:
        pass
    assert second == first
    assert tracking.find_run(first).params == {"search.trials": "3", "search.more": "1"}


def test_find_run_of_several_sessions_has_the_newest_ones_options(store):
    with tracking.tracked_run("search", "study", {"trials": 3, "seed": 0}) as run_id:
        pass
    for trials in (5, 7):
        with tracking.tracked_run("search", "study", {}, reopen=run_id):
            tracking.log_newest("search", {"trials": trials, "seed": 0, "more": None})
    assert tracking.find_run(run_id).params == {"search.trials": "7", "search.seed": "0", "search.more": "None"}


def test_tracked_run_that_a_signal_reaches_as_it_closes_is_finished_all_the_same(store, monkeypatch):
    end = mlflow.end_run

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        end(*arguments)

    monkeypatch.setattr(mlflow, "end_run", interrupted)
    with interrupts.heard():
        with tracking.tracked_run("trial", "x", {}) as run_id:
            pass
        assert mlflow.active_run() is None
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    with interrupts.heard():  # forgotten, for the tests after this one
        interrupts.check()
    assert tracking.find_run(run_id).status == "FINISHED"


@pytest.mark.parametrize(("key", "status"), [("gone", "KILLED"), ("alive", "RUNNING"), ("", "RUNNING")])
def test_close_dead_ends_the_runs_of_dead_sessions_of_that_study_alone(store, key, status):
    tags = {tracking.SESSION: key} if key else {}
    with tracking.tracked_run("search", "study", {}) as outer:
        for study in ("small", "other"):
            with tracking.tracked_run("trial", "t", {}, tags={tracking.STUDY: study, **tags}) as run_id:
                tracking.close_dead("small", {"gone"})
                assert tracking.find_run(run_id).status == (status if study == "small" else "RUNNING")
    assert tracking.find_run(outer).status == "FINISHED"


def test_tracked_run_reopened_under_mlflow_run_leaves_the_outer_run_apart(store, monkeypatch):
    with tracking.tracked_run("search", "study", {}) as study:
        pass
    outer = mlflow.MlflowClient().create_run(mlflow.get_experiment_by_name("netprune").experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", outer)
    with (
        tracking.tracked_run("search", "study", {}, reopen=study) as reopened,
        tracking.tracked_run("trial", "trial 0", {}) as trial,
    ):
        pass
    assert reopened == study
    assert tracking.find_run(trial).tags["mlflow.parentRunId"] == study
    assert tracking.find_run(outer).tags["netprune.continues"] == study
    assert tracking.find_run(outer).status == "FINISHED"


def test_find_runs_gives_newest_first_and_only_the_statuses_asked_for(store):
    for name in ("one", "two"):
        with tracking.tracked_run("train", name, {}):
            pass
    with pytest.raises(ValueError, match="x"), tracking.tracked_run("train", "three", {}):
        raise ValueError("x")
    assert [run.name for run in tracking.find_runs({tracking.STAGE: "train"})] == ["two", "one"]
    assert [run.name for run in tracking.find_runs({tracking.STAGE: "train"}, statuses=("FAILED",))] == ["three"]


def test_find_runs_of_a_name_with_an_apostrophe_are_found(store):
    tags = {tracking.STUDY: "bob's, as `it` is"}
    with tracking.tracked_run("search", "study", {}, tags=tags):
        pass
    assert [run.tags[tracking.STUDY] for run in tracking.find_runs(tags)] == ["bob's, as `it` is"]


def test_log_keeps_every_metric_curve_and_tag(store):
    curve = {step: step / 7 for step in range(1500)}
    with tracking.tracked_run("scan", "scan", {}) as run_id:
        tracking.log({"points": 3.0}, curves={"accuracy/conv1": curve}, tags={"seen": "all"}, step=7)
        tracking.log({}, tags={"late": "yes"})
    history = mlflow.MlflowClient().get_metric_history(run_id, "accuracy/conv1")
    assert {point.step: point.value for point in history} == curve
    (point,) = mlflow.MlflowClient().get_metric_history(run_id, "points")
    assert (point.value, point.step) == (3.0, 7)
    assert abs(point.timestamp / 1000 - time.time()) < 60
    tags = tracking.find_run(run_id).tags
    assert (tags["seen"], tags["late"]) == ("all", "yes")


def test_json_artifact_comes_back(store):
    with tracking.tracked_run("scan", "scan", {}) as run_id:
        artifacts.log_json({"a": [1, 2]}, "folder/x.json")
    assert json.loads(artifacts.read_artifact(run_id, "folder/x.json")) == {"a": [1, 2]}
    with pytest.raises(InputError, match="no artifact"):
        artifacts.read_artifact(run_id, "folder/y.json")


def test_experiment_provider_speaks_for_this_project_only(store, monkeypatch, tmp_path):
    provider = NetpruneExperimentProvider()
    assert not provider.in_context()
    (tmp_path / "MLproject").write_text("name: other\n")
    assert not provider.in_context()
    (tmp_path / "MLproject").write_text("name: netprune\n")
    assert provider.in_context()
    assert mlflow.get_experiment(provider.get_experiment_id()).name == "netprune"


def test_open_store_closes_what_a_killed_process_left_open_and_nothing_else(store):
    with tracking.tracked_run("train", "mine", {}) as mine:
        gone = str(ProcessId(machine=this_machine(), pid=2**22 - 3, born=1.0))
        elsewhere = str(ProcessId(machine="another", pid=1, born=1.0))
        client = mlflow.MlflowClient()
        experiment = mlflow.get_run(mine).info.experiment_id
        runs = {
            name: client.create_run(experiment, tags={tracking.PROCESS + "k": process}).info.run_id
            for name, process in (("gone", gone), ("elsewhere", elsewhere))
        }
        shared = client.create_run(experiment, tags={tracking.PROCESS + "a": gone, tracking.PROCESS + "b": elsewhere})
        open_store()
        assert tracking.find_run(mine).status == "RUNNING"
        assert tracking.find_run(runs["gone"]).status == "KILLED"
        assert tracking.find_run(runs["elsewhere"]).status == "RUNNING"
        assert tracking.find_run(shared.info.run_id).status == "RUNNING"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "KILLED"),
        ({"host": "another name and number"}, "RUNNING"),
        ({"host": ""}, "RUNNING"),
        ({"boot": this_boot()}, "RUNNING"),
        ({"seen": 9e9}, "RUNNING"),
    ],
    ids=["started again", "another machine", "no number", "another container", "twins"],
)
def test_open_store_closes_what_was_open_when_this_machine_was_started_again(store, monkeypatch, change, status):
    monkeypatch.setattr(processes, "this_host", lambda: "name and number")
    said = {"machine": "of the last boot", "pid": 1, "born": 1.0, "host": "name and number", "boot": "b", "seen": 9.0}
    with tracking.tracked_run("train", "mine", {}) as mine:
        experiment = mlflow.get_run(mine).info.experiment_id
        opener = {tracking.PROCESS + "k": str(ProcessId(**{**said, **change}))}
        open_run = mlflow.MlflowClient().create_run(experiment, tags=opener).info.run_id
        open_store()
        assert tracking.find_run(open_run).status == status
        assert tracking.find_run(mine).status == "RUNNING"


def test_layers_of_any_name_are_logged_apart_and_found_by_their_names(store):
    letters = ("conv+relu", "f(x)", "a@b", "c,d", "a:b", "a:3a:b", "Größe", "\N{CROSS MARK}", "50 %", "a b", "x\ny")
    layers = [*letters, "a//b", "a/", "/a", "a/./b", "a/../b", ".."]
    sparsities = {f"sparsity/{layer}": 0.5 + i / 100 for i, layer in enumerate(layers)}
    damage = {f"damage/{layer}": {0: 1.0, 5000: 2.0 + i} for i, layer in enumerate(layers)}
    with tracking.tracked_run("trial", "t", sparsities) as run_id:
        tracking.log(sparsities, curves=damage)
    found = tracking.find_run(run_id)
    assert found.params == {f"trial.{name}": str(value) for name, value in sparsities.items()}
    assert found.metrics == sparsities | {name: curve[5000] for name, curve in damage.items()}
    with tracking.tracked_run("trial", "t", sparsities, reopen=run_id):
        pass  # what is logged already is not logged again


def test_tracked_run_records_no_password(store):
    with pytest.raises(ValueError, match="cannot reach"), tracking.tracked_run("train", "a run", {}) as run_id:
        raise ValueError("cannot reach postgresql+psycopg://me:s3cret@host/db")
    assert "s3cret" not in tracking.find_run(run_id).tags["error"]
    assert "me:***@host" in tracking.find_run(run_id).tags["error"]


def test_artifact_that_cannot_be_written_leaves_the_old_one(store, monkeypatch):
    with tracking.tracked_run("train", "a run", {}) as run_id:
        artifacts.log_bytes(b"old", "checkpoints/last.pt")

        def fail(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(InputError, match="No space left"):
            artifacts.log_bytes(b"new", "checkpoints/last.pt")
        monkeypatch.undo()
        assert artifacts.read_artifact(run_id, "checkpoints/last.pt") == b"old"


@pytest.mark.parametrize("name", ["proj #2", "what?", "50%20"])
def test_artifact_in_a_folder_whose_name_would_end_an_address_is_written_where_mlflow_reads_it(store, name):
    place = store / name / "mlruns"
    experiment = mlflow.create_experiment("odd", artifact_location=str(place))
    with mlflow.start_run(experiment_id=experiment) as run:
        artifacts.log_bytes(b"here", "folder/x.bin")
    assert artifacts.read_artifact(run.info.run_id, "folder/x.bin") == b"here"
    assert mlflow.MlflowClient().list_artifacts(run.info.run_id, "folder")[0].path == "folder/x.bin"


def test_artifact_of_an_ended_run_is_written_and_replaced(store):
    with tracking.tracked_run("search", "study", {}) as ended:
        pass
    for data in (b"old", b"new"):
        artifacts.log_bytes(data, "figures/x.png", ended)
        assert artifacts.read_artifact(ended, "figures/x.png") == data
    assert mlflow.active_run() is None
    assert tracking.find_run(ended).status == "FINISHED"


@pytest.mark.end_to_end
def test_open_store_that_is_fresh_by_several_processes_at_once_works(tmp_path):
    script = "from sweeps.store import open_store; open_store()"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    words = [sys.executable, "-c", script]
    started = [subprocess.Popen(words, cwd=tmp_path, env=kept, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=200)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 2, errors
    found = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}").search_experiments()
    assert "netprune" in {experiment.name for experiment in found}
    assert not list(tmp_path.glob(".mlflow.db-*"))


@pytest.mark.parametrize("name", ["my project", "jörg"])
def test_open_store_in_a_folder_whose_name_is_quoted_in_addresses_opens_it_again(store, monkeypatch, name):
    folder = store / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    mlflow.set_tracking_uri(None)  # as in a new process
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for _ in range(2):
        open_store()
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlflow.db.lock"}
    assert mlflow.search_experiments()


@pytest.mark.parametrize(
    ("uri", "look"),
    [
        ("sqlite:///mlflow.db", "mlflow ui"),
        ("sqlite:////else where/mlflow.db", "mlflow ui --backend-store-uri 'sqlite:////else where/mlflow.db'"),
        (
            "postgresql://me:secret@host/db",
            "mlflow ui --backend-store-uri 'postgresql://me:***@host/db'",
        ),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://me:secret@mlflow.example/", "https://me:***@mlflow.example/"),
    ],
)
def test_where_to_look_is_the_server_if_there_is_one_and_shows_no_password(store, uri, look):
    mlflow.set_tracking_uri(uri)
    assert where_to_look() == look
