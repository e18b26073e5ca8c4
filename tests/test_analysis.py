"""The analysis stage: what an allocation leaves, by density and by bytes of the file."""

from dataclasses import replace

import mlflow
import pytest
from torch import nn

from netprune.bounds import find_bounds
from netprune.errors import InputError
from netprune.packing import PackedModel, pack
from netprune.size import measure_size
from sweeps import artifacts
from sweeps.stages.analysis import run_analysis, size_table
from sweeps.stages.data import DataRequest
from sweeps.stages.source import Source
from sweeps.stages.standing import Shown, layer_rows


@pytest.fixture
def source(tiny_net, tiny_header, tiny_dataset):
    return Source(tiny_net, tiny_header, tiny_dataset, DataRequest(dataset="tiny", data_dir="."), "here")


def metrics(analysis):
    return mlflow.get_run(analysis.run_id).data.metrics


@pytest.mark.usefixtures("store", "undrawn")
@pytest.mark.parametrize("rule", ["kept_norm", "uniform", "knapsack"])
def test_analysis_by_bytes_fits_the_packed_file_into_them(source, rule):
    analysis = run_analysis(source, f"{rule}:16000B")
    assert 15_900 <= metrics(analysis)["pruned_packed_bytes"] <= 16_000


@pytest.mark.usefixtures("store")
def test_analysis_by_density_keeps_it_and_draws_layers_before_and_after(source):
    analysis = run_analysis(source, "lamp:0.25")
    drawn = {file.path for file in mlflow.MlflowClient().list_artifacts(analysis.run_id, "figures")}
    of_weights = {f"weights_{when}{zeros}" for when in ("before", "after") for zeros in ("", "_nonzero")}
    assert drawn == {f"figures/{name}.png" for name in {"parameters_per_layer", *of_weights}}
    assert artifacts.read_artifact(analysis.run_id, "figures/weights_after.png").startswith(b"\x89PNG")
    assert metrics(analysis)["pruned_sparsity"] == pytest.approx(0.75, abs=0.001)
    assert analysis.after.nonzero < analysis.before.nonzero


@pytest.mark.usefixtures("store", "undrawn")
@pytest.mark.parametrize("amount", ["", ":10%", ":xB", ":B", ":-1B", ":2", ":0", ":nan"])
def test_analysis_of_a_malformed_budget_is_refused_before_the_scan(source, monkeypatch, amount):
    monkeypatch.setattr("sweeps.stages.analysis.run_scan", lambda *_: pytest.fail("scanned"))
    with pytest.raises(InputError, match=r"density|number of bytes"):
        run_analysis(source, f"knapsack{amount}")


@pytest.mark.usefixtures("store", "undrawn")
def test_analysis_by_the_documents_own_numbers(source):
    analysis = run_analysis(source, "document")
    by_name = {layer.name: layer.sparsity for layer in analysis.after.layers}
    assert by_name["conv1.0.weight"] == pytest.approx(0.6, abs=0.01)
    assert by_name["conv4.0.weight"] == pytest.approx(0.9, abs=0.01)


@pytest.mark.usefixtures("store", "undrawn")
@pytest.mark.parametrize("rule", ["document", "kept_norm:0.3", "knapsack:0.3", "uniform:16000B"])
def test_analysis_heeds_kept_layers_and_limits(source, rule):
    bounds = find_bounds(source.model, "conv1", "res2.0.*=0.5")
    analysis = run_analysis(replace(source, bounds=bounds), rule)
    by_name = {layer.name: layer.sparsity for layer in analysis.after.layers}
    assert by_name["conv1.0.weight"] == 0
    assert by_name["res2.0.0.weight"] <= 0.5


def test_size_table_calls_weights_that_are_never_pruned_other_tensors():
    model = nn.Sequential(nn.Conv1d(2, 5, 3, bias=False), nn.Linear(4, 2))
    rows = [line.split() for line in size_table(measure_size(model)).splitlines()]
    assert ["1.weight", "8", "8", "0.00", "%"] in rows
    assert ["other", "tensors", "32", "32"] in rows


def test_layer_rows_of_weights_that_are_never_pruned_are_other_tensors(tiny_header):
    model = nn.Sequential(nn.Conv1d(2, 5, 3, bias=False), nn.Linear(4, 2))
    header = replace(tiny_header, architecture=None)
    file = pack(model, header)
    rows = layer_rows(Shown("", None, PackedModel(model, header), file))
    assert [row.name.partition(",")[0] for row in rows] == ["1.weight", "other tensors", "header and checksums"]
    assert rows[1].parameters == 32
    assert sum(row.bytes for row in rows) == pytest.approx(len(file))


@pytest.mark.usefixtures("store", "undrawn")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lamp:100B", "no allocation fits into 100 bytes"),
        ("lamp:manyB", "not a number of bytes"),
        ("lamp", "lacks a density"),
        ("magic:0.1", "unknown allocation 'magic'"),
        ("magic:1000B", "unknown allocation 'magic'"),
    ],
)
def test_analysis_of_a_budget_that_cannot_be_is_refused(source, text, message):
    with pytest.raises(InputError, match=message):
        run_analysis(source, text)
