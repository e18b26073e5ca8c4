"""Several workers for one study, for real: nothing lost when they are killed, nothing counted twice."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from netprune.errors import InputError
from sweeps.workers import _environment, _without, run_workers

pytestmark = pytest.mark.end_to_end
ROOT = Path(__file__).parent.parent


def run(folder, *words):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    kept |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=kept, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--workers", "4", "--trials", "3"], ["--trials", "3"]),
        (["--workers=4", "--study-name=a", "--seed", "1"], ["--seed", "1"]),
        (["--study_name", "a", "--confirm_seeds", "2"], ["--confirm_seeds", "2"]),
        (["--timeout", "60", "--device", "cpu"], ["--device", "cpu"]),
        ([], []),
    ],
)
def test_worker_command_line_is_the_commands_without_what_it_is_told_anew(words, kept):
    assert _without(words) == kept


@pytest.mark.parametrize(("left", "told"), [(None, []), (12.0, ["--timeout", "12.000"]), (0.0, ["--timeout", "0.001"])])
def test_run_workers_gives_them_the_time_that_is_left(monkeypatch, left, told):
    started = []
    ended = SimpleNamespace(wait=lambda **_: 0, poll=lambda: 0)
    monkeypatch.setattr("subprocess.Popen", lambda words, **_: started.append(words) or ended)
    monkeypatch.setattr("sys.argv", ["search", "--timeout", "99", "--trials", "5"])
    run_workers(2, "small", model_uri="", device="cpu", timeout=left, meanwhile=lambda: None)
    common = ["--trials", "5", "--study-name", "small", "--workers", "1"]
    assert [words[3:] for words in started] == [common + told] * 2


def test_run_workers_are_told_which_model_the_newest_was(monkeypatch):
    started = []
    ended = SimpleNamespace(wait=lambda **_: 0, poll=lambda: 0)
    monkeypatch.setattr("subprocess.Popen", lambda words, **_: started.append(words) or ended)
    monkeypatch.setattr("sys.argv", ["search"])
    run_workers(1, "small", model_uri="models:/m-1", device="cpu", timeout=None, meanwhile=lambda: None)
    assert started[0][-2:] == ["--model-uri", "models:/m-1"]


@pytest.mark.parametrize(("codes", "fails"), [((1, 2), True), ((1, 0), False)])
def test_run_workers_fails_if_none_of_them_ends_well(monkeypatch, codes, fails):
    left = iter(codes)

    def start(*_, **options):
        code = next(left)
        assert options["stdout"] == subprocess.DEVNULL, "results are said once"
        return SimpleNamespace(wait=lambda **_: code, poll=lambda: code)

    monkeypatch.setattr("subprocess.Popen", start)
    with pytest.raises(InputError, match=r"all 2 workers failed \(exit codes 1, 2\)") if fails else nullcontext():
        run_workers(2, "small", model_uri="", device="cpu", timeout=None, meanwhile=lambda: None)


def test_run_workers_does_something_else_while_they_work(monkeypatch):
    polls = iter([subprocess.TimeoutExpired("search", 1), subprocess.TimeoutExpired("search", 1), 0])
    done = []

    def wait(**_):
        poll = next(polls, 0)
        if isinstance(poll, Exception):
            raise poll
        return poll

    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: SimpleNamespace(wait=wait, poll=lambda: 0))
    run_workers(1, "small", model_uri="", device="cpu", timeout=None, meanwhile=lambda: done.append(True))
    assert len(done) == 3


def test_worker_environment_shares_cores_and_gpus_and_leaves_the_run_behind(monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = [_environment(i, 3, "auto") for i in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["3", "5", "3"]
    assert _environment(0, 3, "cuda:1")["CUDA_VISIBLE_DEVICES"] == "3,5", "cuda:1 is the second that this process sees"
    assert {one["OMP_NUM_THREADS"] for one in found} == {"2"}
    assert not any("MLFLOW_RUN_ID" in one for one in found)


@pytest.mark.parametrize(("asked", "threads"), [("6", "3"), ("1", "1"), ("99", "4"), ("", "4"), ("0", "4"), ("x", "4")])
def test_worker_environment_keeps_to_the_threads_that_the_user_allows(monkeypatch, asked, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert _environment(0, 2, "cpu")["OMP_NUM_THREADS"] == threads


@pytest.mark.slow
def test_search_with_two_workers_shares_the_budget_and_confirms_once(tmp_path):
    trained = run(
        tmp_path, "sweeps.train", "--dataset", "digits", "--width", "2", "--epochs", "2", "--batch-size", "64"
    )
    assert trained.returncode == 0, trained.stderr
    options = ["--max-drop", "60", "--trials", "5", "--batch-size", "64", "--study-name", "two", "--sampler", "random"]
    options += ["--confirm-epochs", "1", "--sparsities", "0.5,0.9,1", "--precision", "fp32"]
    done = run(tmp_path, "sweeps.search_sparsity", *options, "--workers", "2")
    assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(everywhere)
    by_stage = {}
    for one in runs:
        by_stage.setdefault(one.data.tags.get("netprune.stage"), []).append(one)
    assert {one.info.status for one in runs} == {"FINISHED"}
    (study,) = by_stage["search"]
    assert len(by_stage["trial"]) == 5
    assert len({one.data.tags["netprune.session"] for one in by_stage["trial"]}) == 2
    assert {one.data.tags["mlflow.parentRunId"] for one in by_stage["trial"]} == {study.info.run_id}
    numbers = [one.data.tags["netprune.trial"] for one in by_stage["trial"]]
    assert len(set(numbers)) == 5
    tags = [one.data.tags for one in by_stage["confirm"]]
    networks = [(one["netprune.trial"], one.get("netprune.seed"), one.get("netprune.average")) for one in tags]
    assert len(set(networks)) == len(networks) >= 3, "two seeds and their average, and none of them twice"


@pytest.mark.slow
def test_faults_benchmark_quick_loses_and_doubles_nothing(tmp_path):
    figures = tmp_path / "out.json"
    done = run(
        tmp_path, "benchmarks.faults", "--kills", "6", "--trials", "16", "--workers", "2", "--json", str(figures)
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert found["killed"] == 6
    assert found["figure"] == 0
    results = found["results"]
    assert results["complete in Optuna"] == results["finished in MLflow"] == 16
    assert results["with other values"] == results["runs left RUNNING"] == results["trials left RUNNING"] == 0
    assert results["studies' runs"] == 1
    assert results["study's run"] == "FINISHED"
    assert results["best is the best"]
