"""Training, scanning and a tracking server that are killed with no warning: the same command goes on."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch

from netprune.header import header_for
from netprune.models import Architecture, build_model
from netprune.recipes import TrainConfig
from netprune.scanner import ScanConfig
from netprune.weights import weights_digest
from sweeps import registry, tracking
from sweeps.command import command
from sweeps.stages import checkpoints, scanning, trials
from sweeps.stages.checkpoints import NEWEST
from sweeps.stages.data import DataRequest, open_data
from sweeps.stages.request import SearchRequest
from sweeps.stages.scanning import ScanRequest, run_scan
from sweeps.stages.searching import run_search
from sweeps.stages.source import Source, SourceRequest
from sweeps.stages.training import TrainRequest, run_training
from sweeps.store import open_store

pytestmark = pytest.mark.end_to_end
HERE = Path(__file__).parent
DATA = DataRequest(dataset="digits", data_dir=".", device="cpu")
TRAIN = TrainRequest(
    data=DATA,
    source=SourceRequest(model="net10", width=2),
    config=TrainConfig(epochs=3, batch_size=128),
    precision="fp32",
)
SCAN = ScanRequest(config=ScanConfig(sparsities=(0.5, 0.9, 1.0), max_se=0, precision="fp32"))
SEARCH = SearchRequest(max_drop=(90.0,), trials=4, finetune_epochs=0, confirm_seeds=0, study_name="away", scan=SCAN)


def elsewhere(folder, function, **environment):
    """Run a function of this file in a process of its own, in that folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    kept |= {"PYTHONPATH": f"{HERE}:{HERE.parent}", "OMP_NUM_THREADS": "1"} | environment
    words = [sys.executable, "-c", f"import test_killed; test_killed.{function.__name__}()"]
    return subprocess.run(words, cwd=folder, env=kept, capture_output=True, text=True, timeout=120, check=False)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def source():
    architecture = Architecture(name="net10", num_classes=10, width=2)
    model, (dataset, _) = build_model(architecture, seed=0), open_data(DATA)
    header = header_for(model, dataset, architecture)
    return Source(model, header, dataset, DATA, "here")


def train_until_killed():
    torch.set_num_threads(1)
    open_store()
    told = checkpoints.report

    def report(line):
        told(line)
        if line.startswith("epoch 2/"):
            die()

    checkpoints.report = report
    run_training(TRAIN)


def test_train_killed_goes_on_after_its_last_checkpoint_with_the_result_of_the_uninterrupted_one(store):
    assert elsewhere(store, train_until_killed).returncode == -signal.SIGKILL
    open_store()  # as every command does
    (killed,) = tracking.find_runs({tracking.STAGE: "train"}, statuses=("KILLED",))
    resumed = run_training(replace(TRAIN, resume=NEWEST))
    assert tracking.find_run(resumed.run_id).tags["resumed_from"] == killed.run_id
    whole = run_training(TRAIN)
    digests = {weights_digest(registry.fetch_model(uri)[0].model) for uri in (resumed.model_uri, whole.model_uri)}
    assert len(digests) == 1
    assert tracking.find_runs({tracking.STAGE: "train"}, statuses=("RUNNING",)) == []


def scan_until_killed():
    torch.set_num_threads(1)
    open_store()
    scanning.KEEP_SECONDS = 0.0
    keep, calls = scanning._Keeper.__call__, []

    def kept(self, done, total):
        keep(self, done, total)
        calls.append(done)
        if len(calls) == 12:
            die()

    scanning._Keeper.__call__ = kept
    run_scan(source(), SCAN)


def test_scan_killed_goes_on_at_the_next_point_with_the_result_of_the_uninterrupted_one(store, undrawn):
    assert elsewhere(store, scan_until_killed).returncode == -signal.SIGKILL
    open_store()
    (killed,) = tracking.find_runs({tracking.STAGE: "scan"}, statuses=("KILLED",))
    had = scanning._interrupted(
        {name: value for name, value in killed.tags.items() if name in (scanning.DIGEST, scanning.CONFIG)}
    )[1]
    assert len(had.losses) >= 12
    resumed = run_scan(source(), SCAN)
    assert tracking.find_run(resumed.run_id).tags["resumed_from"] == killed.run_id
    mlflow.MlflowClient().delete_run(resumed.run_id)
    mlflow.MlflowClient().delete_run(killed.run_id)
    whole = run_scan(source(), SCAN)
    assert not whole.reused
    assert whole.sensitivity.to_json() == resumed.sensitivity.to_json()


@pytest.fixture
def server(tmp_path):
    """Starts an MLflow server on loopback, as often as it is told; its store stays."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, started = f"http://127.0.0.1:{port}", []
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/files"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    kept |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def start():
        with (tmp_path / "server.log").open("a") as log:
            started.append(subprocess.Popen(words, env=kept, stdout=log, stderr=log, start_new_session=True))
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1).close()
                return url
            except OSError:
                time.sleep(0.2)
        raise RuntimeError((tmp_path / "server.log").read_text())

    yield start, started
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def search_until_the_server_goes_away():
    """The server is killed, from outside the store, in the middle of the third trial."""
    torch.set_num_threads(1)
    whole, calls = trials.prune_candidate, []

    def prune(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            os.killpg(int(os.environ["SERVER"]), signal.SIGKILL)
        return whole(*arguments, **options)

    trials.prune_candidate = prune
    sys.argv = ["search"]
    command("")(lambda: run_search(source(), SEARCH))()


def search_again():
    torch.set_num_threads(1)
    sys.argv = ["search"]
    command("")(lambda: run_search(source(), SEARCH))()


@pytest.mark.slow
def test_search_whose_tracking_server_goes_away_stops_with_a_sentence_and_goes_on_when_it_is_back(server, tmp_path):
    start, started = server
    url = start()
    gone = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3", "MLFLOW_TRACKING_URI": url}
    done = elsewhere(tmp_path, search_until_the_server_goes_away, SERVER=str(started[0].pid), **gone)
    assert done.returncode == 1, done.stderr
    assert f"the MLflow store {url} answered: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    start()
    again = elsewhere(tmp_path, search_again, **gone)
    assert again.returncode == 0, again.stderr
    client = mlflow.MlflowClient(tracking_uri=url)
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(everywhere)
    assert {run.info.status for run in runs if run.data.tags[tracking.STAGE] == "search"} == {"FINISHED"}
    attempts = [run for run in runs if run.data.tags[tracking.STAGE] == "trial"]
    assert sorted(run.info.status for run in attempts) == ["FINISHED"] * 4 + ["KILLED"]
