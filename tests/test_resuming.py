"""Which interrupted training a new one goes on with, and what is in the run of one that was interrupted again."""

import sys
from dataclasses import replace

import pytest
import torch

from netprune.callbacks import EpochResult
from netprune.compute import Format
from netprune.errors import InputError
from netprune.evaluation import Evaluation
from netprune.recipes import TrainConfig
from netprune.training import train
from netprune.weights import weights_digest
from sweeps import registry, tracking
from sweeps.stages import training
from sweeps.stages.checkpoints import NEWEST
from sweeps.stages.data import DataRequest
from sweeps.stages.source import SourceRequest
from sweeps.stages.training import TrainRequest, run_training

REQUEST = TrainRequest(
    data=DataRequest(dataset="digits", data_dir=".", device="cpu"),
    source=SourceRequest(model="net10", width=2),
    config=TrainConfig(epochs=3, batch_size=24),
    precision="fp32",
)
AGAIN = replace(REQUEST, resume=NEWEST)


@pytest.fixture(autouse=True)
def tiny(tiny_dataset, monkeypatch):
    """Trainings are of the tiny data set, and in one format: none is measured."""
    monkeypatch.setattr(training, "fit_to_device", lambda _, __, config, ___: (config, 0.1))
    monkeypatch.setattr(training, "open_data", lambda *_: (tiny_dataset, torch.device("cpu")))


@pytest.fixture
def stopped(store, monkeypatch):
    """Trains until an epoch's checkpoint is kept, or, for 0, until the first epoch would begin; gives the run's id."""

    def until(epoch, request=REQUEST):
        def stopping(*given, callbacks, **more):
            def on_epoch(result, snapshot):
                callbacks.on_epoch(result, snapshot)
                if result.epoch == epoch:
                    raise RuntimeError("stopped")

            if not epoch:
                raise RuntimeError("stopped")
            return train(*given, callbacks=replace(callbacks, on_epoch=on_epoch), **more)

        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
            patch.setattr(training, "train", stopping)
            run_training(request)
        return tracking.find_runs({tracking.STAGE: "train"}, statuses=("FAILED",), limit=1)[0].run_id

    return until


def digest(outcome):
    return weights_digest(registry.fetch_model(outcome.model_uri)[0].model)


def resumed_from(run_id):
    return tracking.find_run(run_id).tags["resumed_from"]


def test_train_resumed_and_stopped_before_an_epoch_is_over_can_be_resumed(stopped):
    stopped(1)
    again = stopped(0, AGAIN)
    third = run_training(replace(REQUEST, resume=again))
    assert resumed_from(third.run_id) == again
    assert tracking.find_run(third.run_id).metrics["epoch"] == 3


OWN = """
from torch import nn
def network(classes):
    return nn.Sequential(nn.Conv2d(3, {0}, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear({0}, classes))
"""


def test_train_of_code_that_was_changed_is_not_resumed_and_opens_no_run(stopped, own_module, store):
    request = replace(REQUEST, source=SourceRequest(model=f"{own_module(OWN.format(6))}:network"))
    run_id = stopped(1, request)
    del sys.modules["mynet"]
    own_module(OWN.format(8))
    with pytest.raises(InputError, match=f"run {run_id} trained a network of other layers .*: put the code back"):
        run_training(replace(request, resume=NEWEST))
    assert len(tracking.find_runs({tracking.STAGE: "train"}, statuses=("FAILED", "RUNNING", "FINISHED"))) == 1


def test_train_that_fails_after_its_last_epoch_is_resumed_to_its_model(stopped):
    failed = stopped(3)
    resumed = run_training(AGAIN)
    assert resumed_from(resumed.run_id) == failed
    whole = run_training(REQUEST)
    assert digest(resumed) == digest(whole)
    assert resumed.val_accuracy == whole.val_accuracy


def test_train_with_other_images_is_not_resumed(stopped, tiny_dataset, monkeypatch):
    begun = stopped(1)
    other = replace(tiny_dataset, train=tiny_dataset.val)
    monkeypatch.setattr(training, "open_data", lambda *_: (other, torch.device("cpu")))
    with pytest.raises(InputError, match=f"tiny is not the data of run {begun}: its training images are others"):
        run_training(AGAIN)
    assert len(tracking.find_runs({tracking.STAGE: "train"}, statuses=("FAILED", "FINISHED"))) == 1


@pytest.fixture
def scripted(monkeypatch):
    """Makes of a training one whose epochs have these validation accuracies: after each, every weight is its number."""

    def script(accuracies):
        def training_of(model, dataset, recipe, *, callbacks, resume):
            for epoch, accuracy in enumerate(accuracies, start=1):
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.fill_(epoch)
                val = Evaluation(loss=1.0, loss_se=0.1, accuracy=accuracy, accuracy_se=0.1, count=24)
                result = EpochResult(
                    epoch=epoch, train_loss=1.0, val=val, learning_rate=0.1, seconds=1.0, images_per_second=72.0
                )
                state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
                callbacks.on_epoch(result, lambda state=state: {"model": state})

        monkeypatch.setattr(training, "train", training_of)

    return script


@pytest.mark.parametrize(("accuracies", "best"), [((0.5, 0.9, 0.7), 2), ((0.9, 0.9, 0.5), 1), ((0.1, 0.2, 0.3), 3)])
def test_train_ships_the_first_epoch_of_the_best_validation_accuracy(store, scripted, accuracies, best):
    scripted(accuracies)
    outcome = run_training(REQUEST)
    assert (outcome.best_epoch, outcome.val_accuracy) == (best, accuracies[best - 1])
    shipped = registry.fetch_model(outcome.model_uri)[0].model
    assert {float(weight.detach().unique()) for weight in shipped.parameters()} == {float(best)}
    assert registry.fetch_model(outcome.run_id)[1] == outcome.run_id


def test_train_resumed_goes_on_in_the_format_that_it_was_begun_in(stopped, monkeypatch):
    stopped(1)
    other = Format(channels_last=True)
    monkeypatch.setattr(training, "fit_to_device", lambda _, __, config, ___: (replace(config, format=other), 0.1))
    resumed = run_training(AGAIN)
    assert tracking.find_run(resumed.run_id).tags["netprune.format"] == str(REQUEST.config.format) != str(other)


def test_train_that_has_finished_is_not_resumed(store):
    finished = run_training(REQUEST).run_id
    with pytest.raises(InputError, match=f"run {finished} has finished: there is nothing to resume"):
        run_training(replace(REQUEST, resume=finished))


def test_train_resumes_the_newest_that_none_has_gone_on_with(stopped):
    older, first = stopped(1), stopped(1)
    second = stopped(2, AGAIN)
    assert [resumed_from(second), resumed_from(run_training(AGAIN).run_id)] == [first, second]
    assert resumed_from(run_training(AGAIN).run_id) == older
    with pytest.raises(InputError, match="no interrupted training"):
        run_training(AGAIN)


def test_train_resumes_none_that_is_running(stopped):
    interrupted, running = stopped(1), stopped(1)
    tracking.still_running(running)
    assert resumed_from(run_training(AGAIN).run_id) == interrupted


def test_train_resumes_the_newest_of_its_own_configuration_and_names_how_another_differs(stopped):
    wanted = stopped(1)
    other = stopped(1, replace(REQUEST, config=replace(REQUEST.config, seed=1)))
    assert resumed_from(run_training(AGAIN).run_id) == wanted
    with pytest.raises(InputError, match=f"run {other} was trained with seed=1, not seed=0: give it the same options"):
        run_training(AGAIN)
