"""Registered networks as others use them: over HTTP, and out of the registry, with what was logged."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import mlflow
import numpy as np
import pytest
import torch

from netprune.candidate import Subject, prune_candidate
from netprune.data import load_dataset
from netprune.evaluation import evaluate
from netprune.header import PackedHeader
from netprune.loader import normalise
from netprune.models import Architecture, build_model
from netprune.packing import pack
from netprune.pruning import PruneConfig
from netprune.quantise import Values
from netprune.recipes import TrainConfig
from netprune.training import train
from netprune.weights import prunable_weights, weights_digest
from sweeps import registry, tracking

KINDS = ("fp32", "fp16", "int8", "codebook:2", "codebook:4")


def register(data, header, name, metrics):
    with tracking.tracked_run("register", name, {}) as run_id:
        tracking.log(metrics)
        uri = registry.log_model(data, header)
        registry.register_model(uri, name, run_id=run_id, tags={registry.TRIAL: run_id}, description="")
    return run_id


def request(address, content=None):
    """The answer to a GET, or to a POST of `content` as JSON."""
    body = None if content is None else json.dumps(content).encode()
    asked = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=60) as answer:
        return answer.read()


@pytest.fixture
def serve(tmp_path_factory):
    """Start `mlflow models serve` in a folder of its own; returns its address when it answers."""
    started = []

    def starter(uri):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = ["mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
        folder = tmp_path_factory.mktemp("server")
        python = os.path.dirname(sys.executable)
        environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "PATH": f"{python}:/usr/bin:/bin"}
        log = (folder / "log").open("w")
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        started.append((process, log))
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                request(f"{address}/ping")
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
            else:
                return address
        raise AssertionError((folder / "log").read_text())

    yield starter
    for process, log in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


@pytest.mark.end_to_end
def test_served_champion_answers_a_client_with_the_modules_own_predictions(
    store, serve, tiny_net, tiny_header, tiny_dataset
):
    train(tiny_net, tiny_dataset, TrainConfig(epochs=2, batch_size=8))
    register(pack(tiny_net, tiny_header), tiny_header, "small", {})
    address = serve("models:/small@champion")
    pixels = tiny_dataset.val.images[:5]
    answer = json.loads(request(f"{address}/invocations", {"inputs": (pixels / 255).tolist()}))
    with torch.no_grad():
        expected = tiny_net.eval()(normalise(pixels, tiny_dataset)).numpy()
    found = np.array(answer["predictions"], dtype=np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    with pytest.raises(urllib.error.HTTPError) as refused:  # the signature holds: grey images are no input
        request(f"{address}/invocations", {"inputs": (pixels[:, :1] / 255).tolist()})
    with refused.value as error:
        assert error.code == 400


def random_networks(count):
    """Networks of random widths, pruned at random, stored in random ways: name, file, header, validation accuracy."""
    digits = load_dataset("digits", ".")
    rng = np.random.default_rng(0)
    for number in range(count):
        architecture = Architecture(name="net10", num_classes=10, width=int(rng.integers(1, 4)))
        dense = build_model(architecture, seed=number)
        for name, tensor in dense.state_dict().items():
            if "running" in name:
                tensor.copy_(torch.from_numpy(rng.uniform(0.2, 1.0, tensor.shape)))
        header = PackedHeader(
            architecture=architecture,
            classes=digits.classes,
            mean=digits.mean,
            std=digits.std,
            dense_digest=weights_digest(dense),
        )
        sparsity = {layer: float(rng.uniform(0, 0.99)) for layer in prunable_weights(dense)}
        config = PruneConfig(finetune=None, values=Values.parse(str(rng.choice(KINDS))))
        result, data = prune_candidate(Subject(dense, digits, header), sparsity, config)
        yield f"random-{number}", data, header, result.val.accuracy


def check_random_networks(count):
    digits = load_dataset("digits", ".")
    pixels = (digits.val.images / 255).numpy()
    seen = set()
    for name, data, header, accuracy in random_networks(count):
        run_id = register(data, header, name, {"val_accuracy": accuracy})
        logged = mlflow.get_run(run_id).data.metrics["val_accuracy"]
        loaded = mlflow.pyfunc.load_model(f"models:/{name}@champion")
        assert (loaded.predict(pixels).argmax(1) == digits.val.labels.numpy()).mean() == logged
        raw = loaded.get_raw_model()
        assert evaluate(raw, digits.val, digits).accuracy == logged
        assert all(parameter.requires_grad for parameter in raw.parameters())
        seen.add(logged)
    assert len(seen) > count / 4  # accuracies that were all one number would say nothing


def test_registered_networks_loaded_reproduce_their_logged_accuracy(store):
    check_random_networks(8)


@pytest.mark.slow
def test_a_hundred_registered_networks_loaded_reproduce_their_logged_accuracy(store):
    check_random_networks(100)
