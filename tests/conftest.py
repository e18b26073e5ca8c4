"""What several test files share: data and a network small enough to train in a second."""

import copy
import os
import shutil
import sqlite3
import sys
from dataclasses import replace

import mlflow
import pytest
import torch
import torch.nn.functional as F
from sqlalchemy import event
from sqlalchemy.engine import Engine
from studies import DATA, Searched
from torch import nn

from netprune.data import Dataset, Split
from netprune.evaluation import evaluate
from netprune.header import PackedHeader
from netprune.models import Architecture, build_model
from netprune.recipes import TrainConfig
from netprune.training import train
from netprune.weights import weights_digest
from sweeps import artifacts
from sweeps.stages.source import Source
from sweeps.store import open_store

torch.set_num_threads(1)


@event.listens_for(Engine, "connect")
def _without_waiting_for_the_disk(connection, _):
    """SQLite waits at every commit until a power failure would lose nothing: a tenth of a small study's time."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture(scope="session")
def tiny_dataset():
    """Three classes that a network of width 2 can tell apart: 72, 24 and 24 noisy images, one colour a class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    noise = torch.randint(0, 120, (120, 3, 32, 32), generator=generator)
    images = (noise + 110 * torch.eye(3, dtype=torch.int64)[labels][:, :, None, None]).to(torch.uint8)
    parts = (Split(i, n) for i, n in zip(images.split([72, 24, 24]), labels.split([72, 24, 24]), strict=True))
    return Dataset(
        name="tiny",
        **dict(zip(("train", "val", "test"), parts, strict=True)),
        classes=("red", "green", "blue"),
        mean=(0.38, 0.38, 0.38),
        std=(0.25, 0.25, 0.25),
    )


@pytest.fixture
def tiny_net():
    """A fresh Net10 of width 2 for three classes, in train mode."""
    return build_model(Architecture(name="net10", num_classes=3, width=2), seed=0)


class Flattening(nn.Module):
    """The tutorial's way of flattening: `view`, which takes contiguous values only."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.BatchNorm2d(4), nn.Linear(256, 3)

    def forward(self, images):
        x = F.relu(self.norm(self.conv(images)))
        return self.fc(x.view(x.size(0), -1))


class OfFiveAxes(Flattening):
    """A weight of five axes, which has no channels_last layout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, (1, 3, 3), stride=(1, 4, 4), padding=(0, 1, 1))

    def forward(self, images):
        return self.fc(self.norm(self.conv(images[:, :, None])[:, :, 0]).flatten(1))


@pytest.fixture(params=[Flattening, OfFiveAxes], ids=["view", "five axes"])
def contiguous_net(request):
    """A network for three classes that runs contiguous only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return request.param()


@pytest.fixture
def tiny_header(tiny_dataset, tiny_net):
    """The packed file's header for `tiny_net` on `tiny_dataset`."""
    return PackedHeader(
        architecture=Architecture(name="net10", num_classes=3, width=2),
        classes=tiny_dataset.classes,
        mean=tiny_dataset.mean,
        std=tiny_dataset.std,
        dense_digest=weights_digest(tiny_net),
    )


OWN_NETWORK = """
from torch import nn


class Own(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
        self.fc = nn.Linear(6, classes)

    def forward(self, images):
        return self.fc(self.features(images).mean((2, 3)))


def network(classes):
    return Own(classes)
"""
"""A module of a user's: `network(classes)` takes images of any size."""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Writes modules of a user's into the working directory, which is a folder of the test's own; returns its name.

    What is imported from there is forgotten after the test.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(source=OWN_NETWORK, name="mynet"):
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        return name

    yield write
    modules = {name: sys.modules[name] for name in set(sys.modules) - before}
    places = {  # a namespace has no file, and its path asks for the one above it
        name: (getattr(module, "__file__", None), *getattr(module, "__path__", ())) for name, module in modules.items()
    }
    for name, found in places.items():
        if any(str(place).startswith(str(tmp_path)) for place in found):
            del sys.modules[name]


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory):
    """An MLflow database with its tables and nothing in them: making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path, monkeypatch, fresh_database):
    """The working directory for one test, with an MLflow store of its own in it."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    open_store()
    yield tmp_path
    while mlflow.active_run():
        mlflow.end_run("FAILED")
    mlflow.set_tracking_uri(before)


@pytest.fixture
def undrawn(monkeypatch):
    """Runs keep files of figures with nothing in them, where no test looks: drawing takes up to two seconds each."""
    monkeypatch.setattr(artifacts, "log_figures", _keep_empty)


def _keep_empty(figures, run_id):
    for name in figures:
        artifacts.log_bytes(b"", f"figures/{name}.png", run_id)


@pytest.fixture(scope="session")
def trained_net(tiny_dataset):
    """Net10 of width 2 that tells the three colours apart."""
    net = build_model(Architecture(name="net10", num_classes=3, width=2), seed=0)
    train(net, tiny_dataset, TrainConfig(epochs=12, batch_size=16))
    return net


@pytest.fixture(scope="session")
def mislabelled(tiny_dataset, trained_net):
    """The tiny data set with the wrong class for 2 of 24 validation and 3 of 24 test images.

    Nothing that is measured on it is a perfect score, and no figure of one split is that of another by chance.
    """
    made = replace(
        tiny_dataset,
        val=_with_wrong_labels(tiny_dataset.val, [4, 15]),
        test=_with_wrong_labels(tiny_dataset.test, [2, 9, 19]),
    )
    val, test = (evaluate(trained_net, split, made).accuracy for split in (made.val, made.test))
    assert len({val, test, 1.0}) == 3
    return made


def _with_wrong_labels(split, which):
    labels = split.labels.clone()
    labels[which] = (labels[which] + 1) % 3
    return replace(split, labels=labels)


@pytest.fixture
def source(trained_net, tiny_header, mislabelled, store, undrawn, monkeypatch):
    """That network, for a study; `report` and `register` find its data too."""
    net = copy.deepcopy(trained_net)
    header = replace(tiny_header, dense_digest=weights_digest(net))
    monkeypatch.setattr("sweeps.stages.studies.open_data", lambda _: (mislabelled, None))
    return Source(net, header, mislabelled, DATA, "here")


@pytest.fixture(scope="session")
def kept_studies():
    """Request → the study that a test has made of it."""
    return {}


@pytest.fixture
def searched(source, store, kept_studies, tmp_path_factory):
    """Makes a study in the test's store, or a copy of the one that an earlier test has made: see `studies`."""
    return Searched(source, store, kept_studies, tmp_path_factory.mktemp)
