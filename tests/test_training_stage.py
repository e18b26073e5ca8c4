"""The training's stage: what is noted of its best network."""

from dataclasses import replace

import pytest
import torch

from netprune.evaluation import evaluate
from netprune.recipes import TrainConfig
from sweeps import registry, tracking
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
