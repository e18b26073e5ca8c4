"""The training's stage: what it says of its length, and what is noted of its best network."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from netprune.distributed import Team
from netprune.evaluation import evaluate
from netprune.recipes import TrainConfig
from sweeps import processes, registry, tracking
from sweeps.stages import training
from sweeps.stages.data import DataRequest
from sweeps.stages.source import SourceRequest
from sweeps.stages.training import TrainRequest, run_training

REQUEST = TrainRequest(
    data=DataRequest(dataset="digits", data_dir=".", device="cpu"),
    source=SourceRequest(model="net10", width=2),
    config=TrainConfig(epochs=1, batch_size=24),
    precision="fp32",
)


class Gathered(Team):
    """The first of several processes, with nobody to wait for."""

    def from_first(self, made):
        return made()


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("flip", [True, False])
def test_training_notes_the_mirrored_accuracy_only_of_data_that_may_be_mirrored(tiny_dataset, monkeypatch, flip):
    dataset = replace(tiny_dataset, flip=flip)
    monkeypatch.setattr(training, "open_data", lambda *_: (dataset, torch.device("cpu")))
    outcome = run_training(REQUEST)
    noted = tracking.find_run(outcome.run_id).metrics
    if not flip:
        assert outcome.mirrored_val_accuracy is None
        assert "mirrored_val_accuracy" not in noted
        return
    model = registry.fetch_model(outcome.model_uri)[0].model
    expected = evaluate(model, dataset.val, dataset, mirrored=True).accuracy
    assert outcome.mirrored_val_accuracy == noted["mirrored_val_accuracy"] == expected


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("seconds", "taken", "team", "expected"),
    [
        (1000, 2.0, Team(), False),
        (2000, 2.0, Team(), True),
        (2000, 0.2, Team(), False),
        (4000, 2.0, Gathered(size=2), False),
    ],
    ids=["short", "long, beside others", "long, alone", "long, beside its own"],
)
def test_training_that_takes_long_says_so_and_whether_other_processes_slow_it(
    tiny_dataset, monkeypatch, capsys, seconds, taken, team, expected
):
    monkeypatch.setattr(training, "open_data", lambda *_: (tiny_dataset, torch.device("cpu")))
    monkeypatch.setattr(training, "fit_to_device", lambda _, __, recipe, ___: (recipe, seconds))
    monkeypatch.setattr(processes, "processors_taken", lambda _: taken)
    monkeypatch.setattr(training.os, "cpu_count", torch.get_num_threads)
    run_training(REQUEST, team)
    said = capsys.readouterr().err
    assert ("this will take about 33 min. Shorter: " in said) == (seconds > 1800)
    assert (f"other processes use 2.0 of the {torch.get_num_threads()} processors" in said) == expected


def test_processors_taken_counts_what_other_processes_do():
    spin = "import time; end = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as busy:
        taken = max(processes.processors_taken(0.2) for _ in range(5))
        busy.kill()
    assert 0.5 <= taken <= os.cpu_count()
