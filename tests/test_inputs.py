"""Data as inputs of runs: named, counted, told apart by what is in them, and never copied."""

import json
from contextlib import nullcontext
from dataclasses import replace

import mlflow
import pytest
from mlflow.data import get_source

from netprune.data import load_dataset
from netprune.errors import InputError
from sweeps import tracking
from sweeps.inputs import check_data, log_data


def inputs(run_id):
    """Context → the data set as MLflow has it."""
    found = mlflow.get_run(run_id).inputs.dataset_inputs
    return {each.tags[0].value: each.dataset for each in found}


def logged(dataset, parts=("train", "val", "test"), data_dir="/data"):
    with tracking.tracked_run("train", "t", {}) as run_id:
        log_data(dataset, data_dir, parts)
    return inputs(run_id)


def test_log_data_names_each_split_with_its_digest_and_length(store, tiny_dataset):
    found = logged(tiny_dataset)
    assert {context: data.name for context, data in found.items()} == {
        "training": "tiny train",
        "validation": "tiny val",
        "testing": "tiny test",
    }
    assert json.loads(found["training"].profile) == {"num_rows": 72, "num_classes": 3}
    assert found["validation"].digest == tiny_dataset.val.digest()[:32]
    assert len({data.digest for data in found.values()}) == 3


@pytest.mark.parametrize(
    ("part", "which"), [("train", "its training images"), ("val", "its validation images"), ("test", None)]
)
def test_check_data_that_is_not_what_a_run_worked_on_is_refused_but_for_test(store, tiny_dataset, part, which):
    with tracking.tracked_run("train", "t", {}) as run_id:
        log_data(tiny_dataset, "/data", ("train", "val"))
    check_data(tiny_dataset, run_id, "run r")
    split = getattr(tiny_dataset, part)
    changed = replace(tiny_dataset, **{part: replace(split, images=split.images.flip(0))})
    with pytest.raises(InputError, match=f"tiny is not the data of run r: {which} are") if which else nullcontext():
        check_data(changed, run_id, "run r")


def test_log_data_of_changed_labels_is_another_input(store, tiny_dataset):
    before = logged(tiny_dataset, ("val",))["validation"]
    changed = replace(tiny_dataset.val, labels=(tiny_dataset.val.labels + 1) % 3)
    after = logged(replace(tiny_dataset, val=changed), ("val",))["validation"]
    assert before.name == after.name
    assert before.digest != after.digest


def test_log_data_twice_is_one_input(store, tiny_dataset):
    with tracking.tracked_run("train", "t", {}) as run_id:
        log_data(tiny_dataset, "/data", ("val",))
        log_data(tiny_dataset, "/data", ("val",))
    assert len(mlflow.get_run(run_id).inputs.dataset_inputs) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [("cifar10", {"uri": "/data"}), ("/there/my images", {"uri": "/there/my images"})],
)
def test_log_data_source_is_one_that_mlflow_finds_again(store, tiny_dataset, name, source):
    found = logged(replace(tiny_dataset, name=name), ("val",))["validation"]
    assert get_source(found).to_dict() == source
    assert "/" not in found.name


def test_log_data_of_the_digits_names_scikit_learn(store):
    found = logged(load_dataset("digits", "."), ("val",))["validation"]
    assert (found.name, found.source_type) == ("digits val", "code")
    assert "load_digits" in found.source
