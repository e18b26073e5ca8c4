"""Networks of the user's own class and images of any size, through the commands: only the command line is imported."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import studies
import torch
from click.testing import CliRunner
from PIL import Image
from studies import DATA

from netprune.errors import InputError
from netprune.scanner import ScanConfig
from sweeps import analyse, export, pipeline, registry, scan_sensitivity, search_sparsity, tracking
from sweeps import train as train_command
from sweeps.stages.registering import run_register
from sweeps.stages.repeating import search_command
from sweeps.stages.reporting import run_report
from sweeps.stages.request import study_name
from sweeps.stages.scanning import ScanRequest
from sweeps.stages.searching import run_search
from sweeps.stages.source import SourceRequest
from sweeps.stages.studies import find_study

OWN = "mynet:network"
TRAINING = ["--dataset", "photos", "--data-dir", "cache", "--image-size", "16", "--model", OWN]
TRAINING += ["--epochs", "2", "--batch-size", "16", "--precision", "fp32"]
SCAN = ScanRequest(config=ScanConfig(sparsities=(0.5, 1.0), max_se=0, precision="fp32"))
REQUEST = replace(studies.REQUEST, max_drop=(60.0,), trials=3, confirm_epochs=1.0, scan=SCAN)


@pytest.fixture
def photos(store):
    """`photos`: 20×20 images of three colours."""
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (store / "photos" / "train" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 120, (20, 20, 3), dtype=np.uint8)
            pixels[..., channel] += 110
            Image.fromarray(pixels).save(store / "photos" / "train" / name / f"{i}.png")


def run(command, *arguments, code=0):
    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def trained(photos, own_module):
    """The run of an own network, trained on images of 16×16."""
    own_module()
    said = run(train_command.main, *TRAINING).stdout
    (found,) = tracking.find_runs({tracking.STAGE: "train"})
    assert f"--model-uri {found.run_id} --model {OWN}" in said
    return found


def test_train_of_an_own_network_records_what_built_it_and_the_size_of_its_images(trained):
    assert trained.name == "train network on photos"
    assert trained.params["train.model"] == OWN
    assert trained.params["train.image_size"] == "16"
    packed, run_id = registry.fetch_model(trained.run_id, OWN)
    assert run_id == trained.run_id
    assert packed.header.architecture is None
    assert packed.header.image_size == 16
    assert packed.model(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


def test_model_of_an_own_network_is_refused_without_its_name_and_nothing_is_imported(trained, own_module):
    own_module("raise SystemExit('imported')")
    del sys.modules["mynet"]
    for command in (search_sparsity.main, scan_sensitivity.main, analyse.main, export.main):
        named = ["--model-uri", trained.run_id]
        message = run(command, *named, code=1).stderr
        assert "name the function that builds it with model, such as mynet:network (so its run says)" in message
        assert "mynet" not in sys.modules


def test_image_size_other_than_that_of_the_training_is_refused_with_both(trained):
    message = run(analyse.main, "--model", OWN, "--image-size", "24", code=1).stderr
    assert "takes images of 16×16, not 24: leave image_size at auto" in message


def test_pipeline_of_an_own_network_goes_all_the_way_and_leaves_kept_layers_alone(photos, own_module):
    own_module()
    short = ["--epochs", "2", "--finetune-epochs", "1", "--trials", "2", "--max-drop", "90", "--batch-size", "16"]
    data = ["--dataset", "photos", "--data-dir", "cache", "--image-size", "16"]
    said = run(pipeline.main, *data, "--model", OWN, "--keep", "fc", *short).stdout
    assert "registered: network-photos version 1, alias champion" in said
    packed, _ = registry.fetch_model("models:/network-photos@champion", OWN)
    assert packed.model.fc.weight.count_nonzero() == packed.model.fc.weight.numel()
    assert (packed.model.features[0].weight == 0).any()


def test_pipeline_with_a_pattern_that_matches_nothing_is_refused_before_the_training(photos, own_module):
    own_module()
    message = run(pipeline.main, "--dataset", "photos", "--data-dir", "cache", "--model", OWN, "--keep", "head", code=1)
    assert "head" in message.stderr
    assert tracking.find_runs({tracking.STAGE: "train"}) == []


def test_scan_and_analyse_of_an_own_network_leave_kept_layers_alone(trained):
    scanned = run(scan_sensitivity.main, "--model", OWN, "--keep", "fc", "--sparsities", "0.5,1").stdout
    assert "features.0.weight" in scanned
    assert "fc.weight" not in scanned
    assert f"search_sparsity --model-uri {trained.run_id} --model {OWN} --keep fc" in scanned
    sizes = run(analyse.main, "--model", OWN, "--keep", "fc", "--allocation", "uniform:0.25").stdout
    rows = {line.split()[0]: line.split()[-2:] for line in sizes.split("after pruning")[1].splitlines() if "%" in line}
    assert rows["fc.weight"] == ["0.00", "%"]
    assert float(rows["features.0.weight"][0]) == pytest.approx(75, abs=1)
    found = tracking.find_runs({tracking.STAGE: "analyse"})[0]
    assert found.params["analyse.keep"] == "fc"
    assert found.params["analyse.image_size"] == "16"


@pytest.mark.end_to_end
def test_logged_own_network_loads_with_the_code_that_came_with_it(trained, tmp_path_factory):
    images = np.random.default_rng(0).random((4, 3, 16, 16), dtype=np.float32)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    np.save(elsewhere / "images.npy", images)
    code = (
        "import mlflow, numpy as np, sys\n"
        f"model = mlflow.pyfunc.load_model('runs:/{trained.run_id}/model')\n"
        "np.save('logits.npy', model.predict(np.load('images.npy')))\n"
        "print(sys.modules['mynet'].__file__)\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env=kept | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = Path(done.stdout.split()[-1])
    assert loaded != Path.cwd() / "mynet.py"
    assert loaded.read_text() == Path("mynet.py").read_text()
    packed, _ = registry.fetch_model(trained.run_id, OWN)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (packed.header.mean, packed.header.std))
    with torch.no_grad():
        expected = packed.model.eval()((torch.from_numpy(images) - mean) / std).numpy()
    np.testing.assert_allclose(np.load(elsewhere / "logits.npy"), expected, rtol=1e-5, atol=1e-5)


# a study, with Net10 as if it were a user's


@pytest.fixture
def own_source(source):
    """A trained network that its header does not name."""
    header = replace(source.header, architecture=None)
    return replace(source, header=header, asked=SourceRequest(model=OWN))


def test_study_of_an_own_network_needs_no_import_until_its_files_are_read(own_source, own_module):
    outcome = run_search(own_source, REQUEST)
    assert outcome.own == OWN
    study = find_study("small")
    assert study.own == OWN
    assert f"--model {OWN}" in search_command(study)
    for work in (study.dense, lambda: run_register("small", "", DATA), lambda: run_report("small")):
        with pytest.raises(InputError, match=r"such as mynet:network \(so its run says\)"):
            work()
    assert mlflow.MlflowClient().search_registered_models() == []


@pytest.mark.slow
def test_study_of_an_own_network_is_registered_and_reported_with_its_function(own_source, own_module):
    own_module("from netprune.models import Net10\n\ndef network(classes):\n    return Net10(classes, 2)\n")
    run_search(own_source, REQUEST)
    registered = run_register("small", "", DATA, OWN)
    assert registered.name == "network-tiny"
    loaded = mlflow.pyfunc.load_model(registered.uri)
    images = (own_source.dataset.test.images / 255).numpy()
    hits = loaded.predict(images).argmax(1) == own_source.dataset.test.labels.numpy()
    assert hits.mean() == registered.versions[0].measured.test_accuracy
    assert run_report("small", model=OWN).figures
    exported = run(export.main, "--model", OWN, "--model-uri", registered.uri, "--out", "plain.pt")
    assert "plain.pt" in exported.stdout
    state = torch.load("plain.pt", weights_only=True)
    assert state.keys() == own_source.model.state_dict().keys()


def test_study_name_of_an_own_network_has_its_functions_name(own_source):
    assert study_name(own_source, replace(REQUEST, accuracy_floor=90.0)).startswith(
        f"network-{own_source.header.dense_digest[:8]}-floor90-ft"
    )
