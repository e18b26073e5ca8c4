"""A study in PostgreSQL, directly and through Optuna's proxy, with MLflow's runs in a database beside it."""

import os
import socket
import subprocess
import sys
import time

import mlflow
import optuna
import pytest
from test_study import Listed, make_study, run, score

from benchmarks import postgresql
from benchmarks.faults import SCAN, tiny_source
from sweeps import tracking
from sweeps.stages.request import SearchRequest
from sweeps.stages.searching import run_search
from sweeps.storage import open_storage, storage_errors, storage_message
from sweeps.store import open_store

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(postgresql.missing() is not None, reason=str(postgresql.missing())),
]


@pytest.fixture(scope="module")
def server():
    with postgresql.server() as url:
        yield url


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_study_in_postgresql_goes_on_and_is_recovered_as_in_a_file(server):
    first = make_study(name="goes on", storage=f"{server}study")
    with first.crew.at_work():
        run(first, Listed((500, 0.9), (400, 0.9)), 2)
    second = make_study(name="goes on", storage=f"{server}study")
    assert second.look().best(0.8).score == score(400, 0.9, 1)
    second._study.enqueue_trial(dict.fromkeys(("density",), 0.1))
    lost = second._study.ask()
    lost.set_user_attr("session", next(iter(second.crew.sessions)))  # whose work has ended
    second.recover(lambda _: False)
    assert [trial.state.name for trial in second._study.trials] == ["COMPLETE", "COMPLETE", "FAIL"]


def wait_for(port):
    """Until a server listens: on a busy machine it takes longer to begin than a client waits for an answer."""
    end = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < end, "no server listens"
            time.sleep(0.1)
        else:
            return


def test_study_through_the_proxy_is_the_same_study(server):
    run(make_study(name="proxied", storage=f"{server}study"), Listed((500, 0.9)), 1)
    port = postgresql._free_port()
    script = (
        "import optuna; from sweeps.storage import open_storage\n"
        f"optuna.storages.run_grpc_proxy_server(open_storage({server + 'study'!r}), host='127.0.0.1', port={port})"
    )
    proxy = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        study = make_study(name="proxied", storage=f"grpc://127.0.0.1:{port}")
        with study.crew.at_work():
            run(study, Listed((400, 0.9)), 2)
        assert study.look().done == 2
    finally:
        proxy.kill()
        proxy.wait()
    with pytest.raises(storage_errors()) as gone:
        study.look()
    said = gone.value.details()  # the system's words: that nobody answers, or that the line is broken
    assert storage_message(gone.value) == said.splitlines()[0].rstrip(".")
    assert make_study(name="proxied", storage=f"{server}study").look().done == 2


def test_search_with_runs_and_study_in_postgresql(server, monkeypatch):
    before = mlflow.get_tracking_uri()
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)  # another test's experiment among them
    mlflow.set_tracking_uri(f"{server}mlflow")
    try:
        open_store()
        request = SearchRequest(
            max_drop=(50.0,),
            trials=3,
            finetune_epochs=0,
            sampler="random",
            confirm_seeds=0,
            study_name="both",
            storage=f"{server}study",
            scan=SCAN,
        )
        outcome = run_search(tiny_source(), request)
        found = tracking.find_runs({tracking.STUDY: "both", tracking.STAGE: "trial"})
    finally:
        mlflow.set_tracking_uri(before)
    assert outcome.done == len(found) == 3
    study = optuna.load_study(study_name="both", storage=open_storage(f"{server}study"))
    assert {str(trial.number) for trial in study.trials} == {one.tags[tracking.TRIAL] for one in found}
    assert not any(server.split("@")[1] in value for one in found for value in one.params.values())
