"""What bad input gets: one or two lines that name the mend, a non-zero exit, nothing left open or half-registered."""

import socket
import sqlite3
import time
import urllib.request
from dataclasses import replace

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from studies import REQUEST

from netprune.models import Architecture, build_model
from sweeps import analyse, export, pipeline, register, report, scan_sensitivity, search_sparsity, tracking, train

SMALL = ["--width", "2", "--weights", "dense.pt", "--dataset", "digits"]


@pytest.fixture
def refused(store):
    """Run a command that must be refused; returns its message."""

    def run(command, *arguments):
        result = CliRunner().invoke(command, list(arguments))
        assert result.exit_code in (1, 2), result.output
        assert 1 <= len(result.stderr.strip().splitlines()) <= 2, result.stderr
        assert "Traceback" not in result.stderr
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.stderr

    yield run
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert [found.info.run_name for found in runs if found.info.status == "RUNNING"] == []
    assert mlflow.MlflowClient().search_registered_models() == []


@pytest.fixture
def dense(store):
    """`dense.pt`: an untrained Net10 of width 2, as a plain state dict."""
    torch.save(build_model(Architecture(name="net10", num_classes=10, width=2)).state_dict(), "dense.pt")


def image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((32, 32, 3), value, dtype=np.uint8)).save(path)


def test_train_unknown_data_set_names_the_known_ones(refused):
    assert "unknown data set 'mnist': choose one of cifar10, digits" in refused(train.main, "--dataset", "mnist")


@pytest.mark.parametrize("path", ["~nosuchuser/there.pt", "a" * 300 + ".pt"], ids=["home", "long"])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        (train.main, "--dataset"),
        (train.main, "--data-dir"),
        (report.main, "--out"),
        (export.main, "--out"),
        (export.main, "--model-uri"),
    ],
)
def test_path_that_cannot_be_looked_up_is_refused(refused, command, option, path):
    words = ["--dataset", "digits", "--width", "0"] if option == "--data-dir" else []
    assert f"cannot look up {path}" in refused(command, *words, option, path)


def test_train_unknown_model_names_the_known_ones(refused):
    message = refused(train.main, "--dataset", "digits", "--model", "resnet")
    assert "unknown model 'resnet': choose one of net10, vgg16" in message


@pytest.mark.parametrize("command", [train.main, scan_sensitivity.main, search_sparsity.main, analyse.main])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere:network", "there is no module nowhere: put nowhere.py into"),
        ("mynet:gone", "mynet has no function gone: it has Own, network"),
        ("mynet:", "module:function, such as mynet:network"),
    ],
)
def test_own_model_that_is_not_there_says_the_mend(refused, dense, own_module, command, model, message):
    own_module()
    assert message in refused(command, *SMALL, "--model", model)


def test_train_own_model_that_does_not_fit_the_images_says_so(refused, own_module):
    own_module("from torch import nn\ndef network(n): return nn.Sequential(nn.Flatten(), nn.Linear(192, n))")
    message = refused(train.main, "--dataset", "digits", "--model", "mynet:network")
    assert "mynet:network fails on images of 32×32 pixels" in message


@pytest.mark.parametrize(("size", "message"), [("64", "image_size is for image folders"), ("0", "from 8 to 1024")])
@pytest.mark.parametrize("command", [train.main, analyse.main])
def test_image_size_that_cannot_be_is_refused(refused, dense, command, size, message):
    assert message in refused(command, *SMALL, "--image-size", size)


@pytest.mark.parametrize(
    ("option", "value", "number"),
    [
        ("--image-size", "large", "a whole number"),
        ("--epochs", "0.5", "a whole number"),
        ("--max-lr", "high", "a number"),
    ],
)
def test_option_that_is_neither_a_number_nor_auto_is_named_with_what_it_must_be(refused, option, value, number):
    command, words = (analyse.main, SMALL) if option == "--image-size" else (train.main, ())
    assert f"{value!r} is neither {number} nor auto" in refused(command, *words, option, value)


@pytest.mark.parametrize("command", [scan_sensitivity.main, search_sparsity.main, analyse.main])
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--keep", "conv9.*", "keep has 'conv9.*', which matches no layer: choose from conv1.0.weight, conv2.0.weight"),
        ("--keep", "*", "leave no layer to prune"),
        ("--limit", "conv9=0.5", "limit has 'conv9', which matches no layer"),
        ("--limit", "res2.*=2", "from 0 to 1: res2.*=0.99"),
        ("--limit", "res2.*", "from 0 to 1: res2.*=0.99"),
    ],
)
def test_layers_that_are_not_there_or_limits_that_are_none_are_refused(refused, dense, command, option, value, message):
    assert message in refused(command, *SMALL, option, value)


def test_analyse_budget_below_the_limits_is_refused_with_both(refused, dense):
    message = refused(analyse.main, *SMALL, "--allocation", "uniform:0.1", "--limit", "*=0.5")
    assert "the density is 0.1 and the limits keep 0.5" in message


def test_train_unknown_option_is_named(refused):
    assert "--colour" in refused(train.main, "--colour", "red")


def test_train_unknown_device_is_named(refused):
    assert "device 'tpu9' is not available here" in refused(train.main, "--dataset", "digits", "--device", "tpu9")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", "0"),
        ("batch-size", "1"),
        ("max-lr", "0"),
        ("max-lr", "nan"),
        ("weight-decay", "-1"),
        ("grad-clip", "0"),
    ],
)
def test_train_option_out_of_range_is_named_with_its_range(refused, option, value):
    message = refused(train.main, "--dataset", "digits", f"--{option}", value)
    assert f"{option.replace('-', '_')} is" in message
    assert "it must be" in message


def test_train_option_that_is_no_number_is_named(refused):
    message = refused(train.main, "--epochs", "many")
    assert "--epochs" in message
    assert "many" in message


def test_train_unknown_recipe_names_the_known_ones(refused):
    message = refused(train.main, "--dataset", "digits", "--recipe", "slow")
    assert "unknown recipe 'slow': choose one of document, fast" in message


def test_train_unknown_precision_names_the_known_ones(refused):
    message = refused(train.main, "--dataset", "digits", "--width", "2", "--precision", "fp8")
    assert "precision is 'fp8'; it must be auto, fp32, bf16 or winograd" in message


def test_train_width_zero_is_refused(refused):
    assert "width is 0; it must be at least 1" in refused(train.main, "--dataset", "digits", "--width", "0")


def test_cifar10_absent_and_refused_names_the_mends(refused, monkeypatch, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    _proxy(monkeypatch, port)
    message = refused(train.main, "--data-dir", str(tmp_path / "none"))
    assert "dataset=digits" in message
    assert "data_dir" in message


def test_cifar10_absent_and_silent_host_is_given_up_within_ten_seconds(refused, monkeypatch, tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        _proxy(monkeypatch, silent.getsockname()[1])
        start = time.monotonic()
        message = refused(train.main, "--data-dir", str(tmp_path / "none"))
    assert time.monotonic() - start < 10
    assert "dataset=digits" in message


def _proxy(monkeypatch, port):
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of its first use


def test_image_folder_empty_is_refused(refused, tmp_path):
    (tmp_path / "photos" / "train").mkdir(parents=True)
    assert "holds no images" in refused(train.main, "--dataset", "photos", "--data-dir", "cache")


def test_image_folder_without_train_is_refused(refused, tmp_path):
    image(tmp_path / "photos" / "cats" / "1.png")
    assert "has no train/ folder" in refused(train.main, "--dataset", "photos", "--data-dir", "cache")


def test_image_folder_of_one_class_is_refused(refused, tmp_path):
    image(tmp_path / "photos" / "train" / "cats" / "1.png")
    assert "one class only (cats)" in refused(train.main, "--dataset", "photos", "--data-dir", "cache")


def test_image_folder_with_a_corrupt_image_names_the_file(refused, tmp_path):
    for name in ("cats", "dogs"):
        for index in range(3):
            image(tmp_path / "photos" / "train" / name / f"{index}.png", index)
    (tmp_path / "photos" / "train" / "dogs" / "bad.png").write_bytes(b"not an image")
    message = refused(train.main, "--dataset", "photos", "--data-dir", "cache")
    assert "dogs/bad.png is not a readable image" in message


def test_weights_of_another_width_name_layer_and_shapes(refused, dense):
    message = refused(search_sparsity.main, *SMALL, "--width", "4")
    assert "conv1.0.weight is (2, 3, 3, 3) in the file and (4, 3, 3, 3) in the network" in message


def test_weights_with_another_head_name_layer_shapes_and_adapt_head(refused, store):
    torch.save(build_model(Architecture(name="net10", num_classes=1000, width=2)).state_dict(), "dense.pt")
    message = refused(train.main, *SMALL)
    assert "classifier.4.weight is (1000, 8) in the file and (10, 8) in the network" in message
    assert "--adapt-head" in message


def test_weights_absent_or_garbled_are_named(refused, tmp_path):
    assert "dense.pt does not exist" in refused(search_sparsity.main, *SMALL)
    (tmp_path / "dense.pt").write_bytes(b"not weights")
    assert "dense.pt is not a readable state dict" in refused(search_sparsity.main, *SMALL)


def test_search_floor_above_the_dense_network_names_both(refused, dense):
    message = refused(search_sparsity.main, *SMALL, "--accuracy-floor", "99.9")
    assert "the floor is 99.90 % and the dense network reaches" in message


def test_search_floor_given_as_a_fraction_is_refused(refused, dense):
    assert "it is in percent" in refused(search_sparsity.main, *SMALL, "--accuracy-floor", "0.9")


def test_search_unknown_values_or_objective_names_the_known_ones(refused):
    assert "fp32, fp16, int8, or codebook:2 to codebook:8" in refused(search_sparsity.main, "--values", "codebook:9")
    assert "it must be packed_bytes or nonzero_bytes" in refused(search_sparsity.main, "--objective", "speed")
    assert "it must be gp, tpe, random" in refused(search_sparsity.main, "--sampler", "cmaes")


def test_search_max_drop_that_is_no_number_is_refused(refused):
    assert "max_drop is '1;2'; it is a number, or several" in refused(search_sparsity.main, "--max-drop", "1;2")


@pytest.mark.parametrize("command", [scan_sensitivity.main, search_sparsity.main])
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--sparsities", "0.4,1.1", "above 0 and up to 1"),
        ("--sparsities", "0,0.9", "above 0 and up to 1"),
        ("--sparsities", "0.9,0.4", "must rise"),
        ("--sparsities", "nan", "above 0 and up to 1"),
        ("--sparsities", "half", "it is auto, or numbers such as"),
        ("--max-se", "-1", "max_se is -1.0"),
        ("--max-se", "nan", "max_se is nan"),
        ("--precision", "fp8", "choose auto or fp32"),
        ("--saliency", "magic", "choose one of magnitude, lamp"),
    ],
)
def test_scan_option_out_of_range_is_refused(refused, command, option, value, message):
    assert message in refused(command, option, value)


def test_analyse_budget_below_the_scans_reach_is_refused_with_the_mend(refused, dense):
    assert "density is 2.0; it must be" in refused(analyse.main, *SMALL, "--allocation", "knapsack:2")


@pytest.mark.parametrize("allocation", ["uniform:0", "uniform:1.5", "global_magnitude:-1"])
def test_analyse_sparsity_outside_zero_to_one_is_refused(refused, dense, allocation):
    assert "must be above 0 and at most 1" in refused(analyse.main, *SMALL, "--allocation", allocation)


def test_analyse_unknown_allocation_names_the_known_ones(refused, dense):
    assert "choose one of uniform, document" in refused(analyse.main, *SMALL, "--allocation", "magic:0.1")


@pytest.mark.parametrize("command", [search_sparsity.main, pipeline.main])
def test_search_zero_trials_is_refused(refused, command):
    assert "trials is 0; a study needs at least 1" in refused(command, "--trials", "0")


@pytest.mark.parametrize("command", [search_sparsity.main, scan_sensitivity.main, analyse.main])
def test_no_dense_model_in_the_store_says_how_to_get_one(refused, command):
    message = refused(command)
    assert "no dense model in the store" in message
    assert "mlflow run . -e train" in message


def test_two_sources_at_once_are_refused(refused, dense):
    assert "name one dense model" in refused(scan_sensitivity.main, *SMALL, "--model-uri", "models:/a@b")


@pytest.mark.parametrize("command", [register.main, report.main])
def test_no_study_in_the_store_says_how_to_get_one(refused, command):
    assert "python -m sweeps.search_sparsity" in refused(command)
    assert "no study nosuch" in refused(command, "--study-name", "nosuch")


def test_register_with_nothing_feasible_says_how_far_and_registers_nothing(refused, searched):
    hopeless = replace(REQUEST, max_drop=(0.0,), trials=2, finetune_epochs=0.0, confirm_epochs=0.0)
    assert "confirmed  none" in search_sparsity.closing(searched(hopeless))
    message = refused(register.main, "--study-name", "small")
    assert "with 95 % confidence, so nothing is registered. The most accurate trial, trial 00" in message


def test_resume_without_an_interrupted_training_is_refused(refused):
    assert "no interrupted training" in refused(train.main, "--dataset", "digits", "--resume")


def test_store_read_only_is_refused_with_the_mend(store):
    with tracking.tracked_run("train", "earlier", {}):
        pass
    mlflow.set_tracking_uri(f"sqlite:///file:{store / 'mlflow.db'}?mode=ro&uri=true")
    result = CliRunner().invoke(train.main, ["--dataset", "digits", "--width", "1", "--epochs", "1"])
    assert result.exit_code == 1
    assert "cannot be written: mend its permissions" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_store_locked_is_refused_with_the_mend(store):
    other = sqlite3.connect(store / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        result = CliRunner().invoke(train.main, ["--dataset", "digits", "--width", "1", "--epochs", "1"])
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert result.exit_code == 1
    assert "is locked by another program" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
