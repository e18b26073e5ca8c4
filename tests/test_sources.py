"""Which data go with a dense network of the store: its training's, unless the user says otherwise."""

from dataclasses import replace

import pytest
import torch

from netprune.errors import InputError
from netprune.packing import pack
from sweeps import registry, tracking
from sweeps.stages import source as stage
from sweeps.stages.data import AUTO, DEFAULT_DATA_DIR, DataRequest
from sweeps.stages.source import SourceRequest, open_source

TRAINED_ON = {"dataset": "tiny", "data_dir": "/then"}


@pytest.fixture
def trained(store, tiny_net, tiny_header):
    """Logs the tiny network as the model of a training with these params; gives its run's id."""

    def log(config=TRAINED_ON):
        with tracking.tracked_run("train", "t", config) as run_id:
            registry.log_model(pack(tiny_net, tiny_header), tiny_header)
        return run_id

    return log


@pytest.fixture
def opened(tiny_dataset, monkeypatch):
    """What data were asked for; they are the tiny ones whatever it was."""
    asked = []
    monkeypatch.setattr(stage, "open_data", lambda data: asked.append(data) or (tiny_dataset, torch.device("cpu")))
    return asked


@pytest.mark.parametrize(
    ("dataset", "data_dir", "wanted"),
    [
        (AUTO, AUTO, ("tiny", "/then")),
        (AUTO, "/moved", ("tiny", "/moved")),
        ("digits", "/moved", ("digits", "/moved")),
        ("digits", AUTO, ("digits", DEFAULT_DATA_DIR)),
    ],
)
def test_open_source_of_the_store_takes_its_trainings_data_but_for_what_the_user_names(
    trained, opened, dataset, data_dir, wanted
):
    found = open_source(SourceRequest(model_uri=trained()), DataRequest(dataset=dataset, data_dir=data_dir))
    expected = DataRequest(dataset=wanted[0], data_dir=wanted[1]).resolved()
    assert opened == [expected]
    assert found.data == expected


def test_open_source_whose_run_does_not_say_its_data_asks_for_them(trained, opened):
    run_id = trained({})
    with pytest.raises(InputError, match=f"{run_id} does not say which data it was trained on: name it with dataset"):
        open_source(SourceRequest(model_uri=run_id), DataRequest(dataset=AUTO, data_dir=AUTO))
    assert opened == []
    open_source(SourceRequest(model_uri=run_id), DataRequest(dataset="tiny", data_dir=AUTO))


def test_open_source_with_data_of_another_number_of_classes_is_refused(trained, tiny_dataset, monkeypatch):
    other = replace(tiny_dataset, classes=("red", "green"))
    monkeypatch.setattr(stage, "open_data", lambda _: (other, torch.device("cpu")))
    with pytest.raises(InputError, match="has 3 classes and tiny has 2: name the data it was trained on with dataset"):
        open_source(SourceRequest(model_uri=trained()), DataRequest(dataset="tiny", data_dir="."))


def test_open_source_with_another_image_size_is_refused_before_the_data_are_opened(trained, opened):
    with pytest.raises(InputError, match="takes images of 32×32, not 64: leave image_size at auto"):
        open_source(SourceRequest(model_uri=trained()), DataRequest(dataset=AUTO, data_dir=AUTO, image_size=64))
    assert opened == []
