"""Which data go with a dense network of the store: its training's, unless the user says otherwise."""

from dataclasses import replace

import pytest
import torch

from netprune.cifar10 import CIFAR10_MEAN
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
    normalised = {"mean": (0.38,) * 3, "std": (0.25,) * 3}  # the model's own
    expected = DataRequest(dataset=wanted[0], data_dir=wanted[1], **normalised).resolved()
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


def test_open_source_with_another_normalisation_than_the_models_is_refused(trained, opened):
    own = DataRequest(dataset=AUTO, data_dir=AUTO, mean=(0.38,) * 3)
    open_source(SourceRequest(model_uri=trained()), own)
    with pytest.raises(InputError, match=r"images normalised with std 0\.25,0\.25,0\.25: leave std at auto"):
        open_source(SourceRequest(model_uri=trained()), replace(own, std=(0.2,) * 3))
    assert len(opened) == 1


def test_open_data_is_normalised_as_is_asked_and_else_as_cifar10(tmp_path):
    asked = DataRequest(dataset="digits", data_dir=str(tmp_path), device="cpu", std=(0.25, 0.5, 1.0))
    found, _ = stage.open_data(asked)
    assert (found.mean, found.std) == (CIFAR10_MEAN, (0.25, 0.5, 1.0))


@pytest.mark.parametrize(
    "options",
    [
        {"mean": "0.5,0.5"},
        {"mean": "red,green,blue"},
        {"mean": "123.7,116.3,103.5"},
        {"std": "0.2,0,0.2"},
        {"std": "nan,1,1"},
        {"std": "58,57,57"},
    ],
)
def test_normalisation_that_is_none_is_refused_with_an_example(options):
    (name,) = options
    with pytest.raises(InputError, match=rf"{name} is '.*'; it is three numbers.*of pixels in \[0, 1\].*is ImageNet's"):
        DataRequest.of({"dataset": "digits", "data_dir": ".", "image_size": 32, "device": "cpu", **options})


def test_open_source_with_another_image_size_is_refused_before_the_data_are_opened(trained, opened):
    with pytest.raises(InputError, match="takes images of 32×32, not 64: leave image_size at auto"):
        open_source(SourceRequest(model_uri=trained()), DataRequest(dataset=AUTO, data_dir=AUTO, image_size=64))
    assert opened == []
