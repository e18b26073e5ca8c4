"""The real commands, in processes of their own, in a copy of the project with a store of its own."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parent.parent
SMALL = ["-P", "dataset=digits", "-P", "width=2", "-P", "batch_size=64", "-P", "max_lr=0.02"]
PYTHON_DIR = str(Path(sys.executable).parent)


def environment(**more):
    """The active environment and nothing else: no pyenv on the PATH, no MLflow setting of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYENV"))}
    return kept | {"PATH": f"{PYTHON_DIR}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"} | more


def run(folder, *words, **more):
    return subprocess.run(
        words, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=300, check=False
    )


def copy_project(folder):
    for name in ("MLproject", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("netprune", "sweeps"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


class Store:
    """Reads the store of a project folder from outside, with no state of MLflow's in this process."""

    def __init__(self, folder):
        self.client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")

    def runs(self, where=""):
        """Newest first."""
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        return self.client.search_runs(experiments, where, order_by=["start_time DESC"])

    def stage(self, name, study=None):
        and_study = f" and tags.`netprune.study` = '{study}'" if study else ""
        return self.runs(f"tags.`netprune.stage` = '{name}'{and_study}")

    def artifacts(self, run, folder):
        return {Path(file.path).name for file in self.client.list_artifacts(run.info.run_id, folder)}

    def steps(self, run, metric):
        return sorted(point.step for point in self.client.get_metric_history(run.info.run_id, metric))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A project folder in which plain `mlflow run .` did its whole job with a small Net10, and what that printed.

    A pyenv is on the PATH, which notes that it was called; the other tests have none on it.
    """
    folder = copy_project(tmp_path_factory.mktemp("project"))
    fake = tmp_path_factory.mktemp("pyenv") / "pyenv"
    fake.write_text(f"#!/bin/sh\ntouch {folder}/pyenv-was-called\nexit 1\n")
    fake.chmod(0o755)
    path = {"PATH": f"{PYTHON_DIR}:{fake.parent}:/usr/bin:/bin", "PYENV_ROOT": str(fake.parent)}
    options = ["-P", "width=2", "-P", "epochs=3", "-P", "trials=1", "-P", "finetune_epochs=1", "-P", "max_drop=90"]
    done = run(folder, "mlflow", "run", ".", *options, **path)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def project(whole):
    """That folder."""
    return whole[0]


@pytest.fixture
def store(project):
    """The store of `project`."""
    return Store(project)


def test_mlflow_run_lands_in_the_projects_experiment_with_what_was_typed_and_what_was_resolved(store):
    (main,), (trained,) = store.stage("main"), store.stage("train")
    assert trained.info.status == "FINISHED"
    assert store.client.get_experiment(main.info.experiment_id).name == "netprune"
    assert main.data.params["width"] == "2"  # as `mlflow run` recorded it
    assert trained.data.params["train.max_lr"] == "0.01"  # as the command resolved it
    assert store.steps(trained, "val_accuracy") == [1, 2, 3]
    assert store.artifacts(trained, "checkpoints") == {"last.pt", "best.pt"}


def test_mlflow_run_with_pyenv_on_the_path_does_not_call_it(project):
    assert not (project / "pyenv-was-called").exists()


def test_mlflow_run_main_ends_with_table_model_and_the_command_for_the_ui(whole, store):
    table = [line.split()[0] for line in whole[1].splitlines() if line.strip()]
    assert {"dense", "pruned"} <= set(table)
    assert "net10-w2-digits version 1, alias champion" in whole[1]
    assert whole[1].strip().endswith("mlflow ui")
    assert {found.info.status for found in store.runs()} == {"FINISHED"}
    (study,) = store.stage("search")
    drawn = {"size_against_accuracy.png", "sensitivity.png", "weights_after_nonzero.png"}
    assert drawn <= store.artifacts(study, "figures")
    version = store.client.get_model_version_by_alias("net10-w2-digits", "champion")
    assert int(version.version) == 1


LOAD = """
import mlflow
from netprune import load_dataset
test = load_dataset('digits', '.').test
model = mlflow.pyfunc.load_model('models:/net10-w2-digits@champion')
hits = model.predict((test.images.float() / 255).numpy()).argmax(1) == test.labels.numpy()
print(repr(float(hits.mean())))
"""


def loaded_accuracy(project, elsewhere):
    """Test accuracy of the champion as a user's script in another folder finds it."""
    done = run(elsewhere, sys.executable, "-c", LOAD, MLFLOW_TRACKING_URI=f"sqlite:///{project / 'mlflow.db'}")
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def test_champion_loaded_from_another_folder_has_the_logged_test_accuracy(project, store, tmp_path):
    (entry,) = store.stage("register")
    assert loaded_accuracy(project, tmp_path) == entry.data.metrics["test_accuracy"]


@pytest.mark.slow
def test_search_register_and_load_from_another_folder_gives_the_logged_test_accuracy(project, store, tmp_path):
    options = ["--max-drop", "60", "--trials", "2", "--batch-size", "64", "--study-name", "small"]
    options += ["--values", "codebook:4", "--objective", "nonzero_bytes", "--confirm-epochs", "1"]
    options += ["--sparsities", "0.5,0.9,1", "--precision", "fp32"]
    done = run(project, sys.executable, "-m", "sweeps.search_sparsity", *options)
    assert done.returncode == 0, done.stderr
    (study,) = store.stage("search", "small")
    trials = store.stage("trial", "small")
    assert {trial.data.tags["mlflow.parentRunId"] for trial in trials} == {study.info.run_id}
    assert len(trials) == 2
    for trial in trials:
        assert {"val_accuracy", "packed_bytes", "sparsity", "feasible"} <= set(trial.data.metrics)
        assert "trial.sparsity/res1.0.0.weight" in trial.data.params

    registered = run(project, "mlflow", "run", ".", "-e", "register", "-P", "study_name=small")
    assert registered.returncode == 0, registered.stderr
    assert "registered: net10-w2-digits version 2, alias champion" in registered.stdout
    entry = store.stage("register")[0]
    confirmed = [
        run for run in store.stage("confirm", "small") if run.info.run_id == entry.data.params["register.trial_run_id"]
    ]
    assert len(confirmed) == 1
    assert loaded_accuracy(project, tmp_path) == entry.data.metrics["test_accuracy"]
    assert not store.runs("attributes.status = 'RUNNING'")


def test_mlflow_run_uses_the_code_of_its_own_folder(tmp_path, fresh_database):
    copy_project(tmp_path)
    shutil.copy(fresh_database, tmp_path)
    for path in (tmp_path / "sweeps" / "__init__.py", tmp_path / "netprune" / "errors.py"):
        path.write_text(path.read_text() + f"\nimport sys; print('copy of {path.parent.name}', file=sys.stderr)\n")
    done = run(tmp_path, "mlflow", "run", ".", "-e", "report")
    assert "copy of sweeps" in done.stderr
    assert "copy of netprune" in done.stderr
    assert "no study" in done.stderr
    assert done.returncode != 0
    assert {found.info.status for found in Store(tmp_path).runs()} == {"FAILED"}


@pytest.fixture
def start(project):
    """Start a command in the project; what is still running when the test ends is killed."""
    started = []

    def starter(*words):
        # a group of its own, so that `mlflow run` and its child can be killed together
        started.append(
            subprocess.Popen(
                words,
                cwd=project,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                # what a shell started in the background ignores SIGINT, and hands that on
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        )
        return started[-1]

    yield starter
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def first_epoch(process):
    """Wait until the first epoch of a training is over."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch 1/"):
            return
    raise AssertionError("".join(lines))


def until(condition, seconds=60):
    """Whether `condition` came true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.3)
    return bool(condition())


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_train_interrupted_is_killed_with_its_checkpoint_and_resumes(project, store, start, number):
    seed = str(int(number))
    options = ["--dataset", "digits", "--width", "2", "--batch-size", "64", "--epochs", "20", "--seed", seed]
    command = [sys.executable, "-m", "sweeps.train", *options]
    process = start(*command)
    first_epoch(process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    (killed,) = store.runs(f"attributes.status = 'KILLED' and params.`train.seed` = '{seed}'")
    assert "last.pt" in store.artifacts(killed, "checkpoints")
    if number == signal.SIGTERM:
        resumed = run(project, *command, "--resume")
        assert resumed.returncode == 0, resumed.stderr
        (found,) = store.runs(f"tags.resumed_from = '{killed.info.run_id}'")
        assert store.steps(found, "val_accuracy") == list(range(1, 21))
        assert "epoch 1/20" not in resumed.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_mlflow_run_stopped_leaves_no_run_running(store, start, number):
    process = start("mlflow", "run", ".", "-e", "train", *SMALL, "-P", "epochs=800")
    first_epoch(process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert until(lambda: not store.runs("attributes.status = 'RUNNING'"))
    assert store.runs()[0].info.status in ("KILLED", "FAILED")


def test_search_interrupted_closes_study_and_trial(store, start):
    options = ["--max-drop", "60", "--trials", "2", "--study-name", "cut", "--finetune-epochs", "400"]
    process = start(sys.executable, "-m", "sweeps.search_sparsity", *options)
    assert until(lambda: store.stage("trial", "cut"))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    found = {run.data.tags["netprune.stage"]: run.info.status for run in store.runs("tags.`netprune.study` = 'cut'")}
    assert found == {"search": "KILLED", "trial": "KILLED"}


@pytest.mark.slow
def test_mlflow_run_scan_then_analyse_by_damage_uses_that_scan(project, store):
    options = ["-P", "sparsities=0.5,0.9,1", "-P", "max_se=0", "-P", "precision=fp32"]
    scanned = run(project, "mlflow", "run", ".", "-e", "scan", *options)
    assert scanned.returncode == 0, scanned.stderr
    found = store.stage("scan")[0]
    assert found.info.status == "FINISHED"
    assert store.artifacts(found, "figures") == {"sensitivity.png", "allocations.png"}
    assert store.steps(found, "damage/conv1.0.weight") == [5000, 9000, 10000]
    assert "all gone" in scanned.stdout
    by_damage = [sys.executable, "-m", "sweeps.analyse", "--allocation", "knapsack:0.3"]
    analysed = run(project, *by_damage)
    assert analysed.returncode == 0, analysed.stderr
    assert store.stage("analyse")[0].data.metrics["pruned_sparsity"] == pytest.approx(0.7, abs=0.01)


def benchmark(name, *options):
    """What a benchmark, run from the repository, ends with."""
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_benchmark_scan_quick_ends_with_its_figure(tmp_path):
    options = ["--width", "2", "--quick", "--json", str(tmp_path / "out.json"), "--data-dir", str(tmp_path)]
    done = benchmark("scan", *options)
    assert done.returncode == 0, done.stderr
    assert "exact mode has the straightforward scan's numbers, bit for bit: yes" in done.stdout
    last = done.stdout.strip().splitlines()[-1]
    figure = json.loads((tmp_path / "out.json").read_text())["figure"]
    assert last == f"figure: {figure:.3g} times less time than the straightforward scan, default mode"


@pytest.mark.slow
def test_benchmark_search_by_two_processes_ends_with_its_figure_and_keeps_single_results(tmp_path):
    size = ["--quick", "--width", "2", "--trials", "3"]
    budget = ["--max-drop", "40", "--finetune-epochs", "0.5", "--confirm-epochs", "0.5", "--values", "int8"]
    files = {name: tmp_path / f"{name}.json" for name in ("json", "kept")}
    where = ["--data-dir", str(tmp_path), *(f"--{name}={path}" for name, path in files.items())]
    methods = ["ours", "bisected erk", "plain optuna"]
    command = ("search", *size, *budget, *where, "--workers", "2", "--methods", *methods)
    done, again = benchmark(*command), benchmark(*command)
    assert done.returncode == 0, done.stderr
    assert again.stderr == ""
    assert done.stdout.endswith(again.stdout)
    results = json.loads(files["kept"].read_text())["results"]
    assert results.keys() == {f"{method}|0" for method in methods}
    for one in results.values():
        assert one["trial epochs"] == pytest.approx(1.5, abs=0.5)
        assert one["confirm epochs"] > 0
    dense = int(done.stdout.split("; dense ")[1].split(" bytes")[0].replace(",", ""))
    assert all((one["bytes"][0] < dense) == one["confirmed"][0] for one in results.values())
    assert all((one["test"][0] is not None) == one["confirmed"][0] for one in results.values())
    assert f"{100 * results['ours|0']['val'][0]:.2f} %, {100 * results['ours|0']['test'][0]:.2f} %" in done.stdout
    assert results["ours|0"]["confirmed"] == [True]
    (ours, *others) = (results[f"{method}|0"]["bytes"][0] for method in methods)
    figure = json.loads(files["json"].read_text())["figure"]
    assert figure == pytest.approx(min(others) / ours)
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith(f"figure: {figure:.3g} times the confirmed bytes of ours in the best baseline")
