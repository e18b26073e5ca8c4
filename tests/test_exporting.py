"""`sweeps.export`: files for other tools, and what it refuses."""

from pathlib import Path

import mlflow
import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from netprune.models import Architecture, build_model
from netprune.packing import pack
from netprune.weights import load_weights, read_state_dict, weights_digest
from sweeps import export, registry, tracking

ARCHITECTURE = Architecture(name="net10", num_classes=3, width=2)


@pytest.fixture
def registered(store, tiny_net, tiny_header):
    """`tiny_net`, registered as a study's winner; another model that is none of ours is registered after it."""
    with tracking.tracked_run("register", "r", {}) as run_id:
        uri = registry.log_model(pack(tiny_net, tiny_header), tiny_header)
        registry.register_model(uri, "small", run_id=run_id, tags={registry.TRIAL: run_id}, description="")
    client = mlflow.MlflowClient()
    client.create_registered_model("other")
    client.create_model_version("other", "file:///nowhere", run_id=run_id)
    return tiny_net


def run(*arguments):
    return CliRunner().invoke(export.main, list(arguments))


@pytest.mark.parametrize("uri", [[], ["--model-uri", "models:/small@champion"], ["--model-uri", "models:/small/1"]])
def test_export_gives_the_plain_state_dict_bit_for_bit(registered, uri):
    result = run(*uri)
    assert result.exit_code == 0, result.output
    state = torch.load("model.pt", weights_only=True)
    assert state.keys() == registered.state_dict().keys()
    again = build_model(ARCHITECTURE)
    load_weights(again, read_state_dict("model.pt"))
    assert weights_digest(again) == weights_digest(registered)
    assert "model.pt" in result.output


def test_export_of_a_packed_file_needs_no_registered_model(store, tiny_net, tiny_header):
    Path("net.netprune").write_bytes(pack(tiny_net, tiny_header))
    assert run("--model-uri", "net.netprune", "--out", "plain.pt").exit_code == 0
    assert torch.load("plain.pt", weights_only=True).keys() == tiny_net.state_dict().keys()


@pytest.fixture
def floors(registered, store, tiny_header):
    """A second version of `small` that is no champion: what a study with two floors registers last."""
    lower = build_model(ARCHITECTURE, seed=1)
    with tracking.tracked_run("register", "r", {}) as run_id:
        uri = registry.log_model(pack(lower, tiny_header), tiny_header)
        tags = {registry.TRIAL: run_id}
        registry.register_model(uri, "small", run_id=run_id, tags=tags, description="", aliases=("floor-80-00",))
    return registered, lower


@pytest.mark.parametrize("champion", [True, False])
def test_export_by_default_is_of_the_champion_and_of_the_newest_version_where_there_is_none(floors, champion):
    if not champion:
        mlflow.MlflowClient().delete_registered_model_alias("small", registry.CHAMPION)
    result = run()
    assert result.exit_code == 0, result.output
    again = build_model(ARCHITECTURE)
    load_weights(again, read_state_dict("model.pt"))
    assert weights_digest(again) == weights_digest(floors[0] if champion else floors[1])
    assert result.output.startswith("models:/small@champion" if champion else "models:/small/2")


def test_export_to_onnx_predicts_as_the_registered_model_does(registered):
    result = run("--out", "net.onnx")
    assert result.exit_code == 0, result.output
    images = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)
    (logits,) = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"]).run(
        None, {"images": images}
    )
    expected = mlflow.pyfunc.load_model("models:/small@champion").predict(images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    return result.stderr


def test_export_with_nothing_registered_names_the_mend(store):
    assert "run `python -m sweeps.register` first" in refused()


def test_export_of_an_unknown_model_names_the_forms(store):
    assert "models:/<name>@<alias>" in refused("--model-uri", "models:/none/1")


def test_export_never_replaces_a_file(registered):
    Path("model.pt").write_bytes(b"mine")
    assert "model.pt is there already" in refused()
    assert Path("model.pt").read_bytes() == b"mine"


@pytest.mark.parametrize("out", ["model", "model.pth", "model.onnx.zip", ""])
def test_export_to_another_ending_names_the_two(registered, out):
    assert "must end in .pt (a plain state dict) or .onnx" in refused("--out", out)


def test_export_into_no_folder_says_so(registered):
    assert "cannot write none/model.pt" in refused("--out", "none/model.pt")


def test_export_of_a_damaged_packed_file_writes_nothing(store, tiny_net, tiny_header):
    data = bytearray(pack(tiny_net, tiny_header))
    data[len(data) // 2] ^= 1
    Path("net.netprune").write_bytes(data)
    assert "net.netprune" in refused("--model-uri", "net.netprune")
    assert not Path("model.pt").exists()
