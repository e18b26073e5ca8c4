"""The scan's stage: one run a scan, found again, and gone on with after an interrupt."""

import json
import math
from dataclasses import replace

import mlflow
import pytest

from netprune.bounds import find_bounds
from netprune.errors import InputError
from netprune.evaluation import evaluate
from netprune.masks import apply_masks, make_masks
from netprune.scan_record import ScanRecord
from netprune.scanner import ScanConfig
from netprune.sensitivity import Sensitivity
from netprune.weights import prunable_weights, weights_digest
from sweeps.scan_sensitivity import damage_table
from sweeps.stages import scanning
from sweeps.stages.data import DataRequest
from sweeps.stages.scanning import ScanRequest, part_way, run_scan
from sweeps.stages.source import Source

FEW = ScanRequest(config=ScanConfig(sparsities=(0.5, 0.9, 1.0), max_se=0, precision="fp32"))


@pytest.fixture
def source(tiny_net, tiny_header, tiny_dataset):
    return Source(tiny_net, tiny_header, tiny_dataset, DataRequest(dataset="tiny", data_dir="."), "here")


def runs():
    return mlflow.search_runs(search_all_experiments=True, order_by=["start_time ASC"], output_format="list")


class StopsAfter:
    """A progress bar that is interrupted."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, *_args, **_options):
        return self

    def __enter__(self):
        return lambda *_: self.count()

    def __exit__(self, *_):
        pass

    def count(self):
        self.calls -= 1
        if self.calls == 0:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("store")
def test_scan_run_holds_the_curves_and_is_found_again(source):
    first = run_scan(source, FEW)
    assert not first.reused
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["netprune.compute"] == first.sensitivity.compute
    assert run.data.params["scan.sparsities"] == "0.5,0.9,1.0"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "damage/conv3.0.weight")
    assert {p.step: p.value for p in history} == dict(
        zip((5000, 9000, 10000), first.sensitivity["conv3.0.weight"].damage.tolist(), strict=True)
    )
    second = run_scan(source, FEW)
    assert second.reused
    assert second.run_id == first.run_id
    assert second.sensitivity.to_json() == first.sensitivity.to_json()


@pytest.mark.usefixtures("store")
def test_scan_of_other_images_is_another_scan(source, tiny_dataset):
    run_scan(source, FEW)
    labels = tiny_dataset.val.labels.clone()
    labels[0] = (labels[0] + 1) % len(tiny_dataset.classes)
    other = replace(tiny_dataset, val=replace(tiny_dataset.val, labels=labels))
    assert not run_scan(replace(source, dataset=other), FEW).reused


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("other", ["saliency", "sparsities"])
def test_scan_of_other_options_is_another_scan(source, other):
    run_scan(source, FEW)
    config = ScanConfig(sparsities=(0.5,), max_se=0, precision="fp32") if other == "sparsities" else FEW.config
    outcome = run_scan(source, ScanRequest(config=config, saliency="random" if other == "saliency" else "magnitude"))
    assert not outcome.reused
    assert len(runs()) == 2


@pytest.mark.usefixtures("store")
def test_scan_interrupted_is_killed_and_gone_on_with(source, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(scanning, "Progress", StopsAfter(12))
        with pytest.raises(KeyboardInterrupt):
            run_scan(source, FEW)
    (killed,) = runs()
    assert killed.info.status == "KILLED"
    kept = ScanRecord.from_bytes(scanning.artifacts.read_artifact(killed.info.run_id, scanning.RECORD))
    assert len(kept.losses) == 12  # the dense network and eleven points
    measured = []
    monkeypatch.setattr(scanning, "_Keeper", lambda *_: lambda done, total: measured.append((done, total)))
    outcome = run_scan(source, FEW)
    assert len(measured) == 30 - 11, "what the interrupted scan measured is not measured again"
    assert runs()[-1].data.tags["resumed_from"] == killed.info.run_id
    whole = scanning.scan(source.model, source.dataset, FEW.config)
    assert outcome.sensitivity.to_json() == whole.to_json()


@pytest.mark.usefixtures("store")
def test_scan_interrupted_before_its_first_point_starts_anew(source, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(scanning, "scan", lambda *_args, **_options: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_scan(source, FEW)
    assert not run_scan(source, FEW).reused


@pytest.mark.usefixtures("store")
def test_scan_with_layers_kept_measures_the_others_and_is_another_scan_whatever_the_limits(source):
    kept = replace(source, bounds=find_bounds(source.model, "conv1,classifier"))
    first = run_scan(kept, FEW)
    assert set(first.sensitivity.layers) == kept.bounds.sizes.keys()
    assert "conv1.0.weight" not in first.sensitivity.layers
    limited = replace(source, bounds=find_bounds(source.model, "conv1,classifier", "res2.*=0.5"))
    assert run_scan(limited, FEW).run_id == first.run_id
    whole = run_scan(source, FEW)
    assert not whole.reused
    assert len(whole.sensitivity.layers) == 10
    assert run_scan(replace(source, bounds=find_bounds(source.model)), FEW).run_id == whole.run_id


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("epochs", [0, 1])
def test_scan_around_a_pruned_network_starts_where_that_is_and_is_another_scan(source, epochs):
    dense_digest = weights_digest(source.model)
    left = part_way(source, "uniform:0.5", epochs)
    assert weights_digest(source.model) == dense_digest
    assert left.header.dense_digest == weights_digest(left.model) != dense_digest
    request = ScanRequest(config=ScanConfig(max_se=0, precision="fp32"))
    around = run_scan(left, request).sensitivity
    for curve in around.curves:
        assert curve.start == round(0.5 * curve.size) / curve.size
        assert curve.sparsities[0] > curve.start
    assert around.baseline == evaluate(left.model, source.dataset.val, source.dataset)
    assert not run_scan(source, request).reused


@pytest.mark.usefixtures("store", "undrawn")
@pytest.mark.parametrize(("left", "shown"), [(0.5, 0.05), (0.03, 0.015), (0.0, None)])
def test_scan_of_a_pruned_network_shows_allocations_at_a_density_that_it_can_have(source, monkeypatch, left, shown):
    apply_masks(source.model, make_masks(source.model, dict.fromkeys(prunable_weights(source.model), 1 - left)))
    drawn = []
    monkeypatch.setattr(scanning.figures, "allocations", lambda _, found, density: drawn.append((found, density)))
    run_scan(source, FEW)
    assert [density for _, density in drawn] == pytest.approx([] if shown is None else [shown], rel=0.02)
    assert all(found.keys() == set(scanning.SHOWN_RULES) for found, _ in drawn)
    assert runs()[-1].info.status == "FINISHED"


@pytest.mark.parametrize("around", ["knapsack:0.1", "uniform", "magic:0.1", "uniform:2"])
def test_scan_around_what_cannot_be_made_is_refused(source, around):
    with pytest.raises(InputError):
        part_way(source, around, 0)


def test_scan_request_of_command_line_text_is_read():
    request = ScanRequest.of({"sparsities": "0.4,1", "max_se": 0.1, "precision": "fp32", "saliency": "lamp"})
    assert request.config == ScanConfig(sparsities=(0.4, 1.0), max_se=0.1, precision="fp32")
    assert request.record()["sparsities"] == "0.4,1.0"
    assert ScanRequest.of({**request.record(), "sparsities": "auto", "max_se": 0.1}).config.sparsities == ()
    with pytest.raises(InputError, match="sparsities is 'a lot'"):
        ScanRequest.of({**request.record(), "sparsities": "a lot"})


@pytest.mark.parametrize(("last", "cell"), [(1.0, "100.00 %"), (0.9, "> 90.00 %")])
def test_damage_table_of_a_layer_that_does_little_damage_says_more_unless_all_of_it_is_gone(source, last, cell):
    config = ScanConfig(sparsities=(0.4, last), max_se=0, precision="fp32")
    fields = json.loads(scanning.scan(source.model, source.dataset, config).to_json())
    fields["curves"][0]["damage"] = [0.0, 0.0]
    line = damage_table(Sensitivity.from_json(json.dumps(fields))).splitlines()[2]
    assert line.startswith("conv1.0.weight")
    assert line.count(cell) == 3
    assert ("> " in line) == (last < 1)


@pytest.mark.usefixtures("store", "undrawn")
def test_scan_of_a_damage_that_is_not_finite_is_kept_as_json_and_tabled(source, monkeypatch):
    measured = scanning.scan(source.model, source.dataset, FEW.config)
    measured.curves[0].damage[-1] = math.nan
    monkeypatch.setattr(scanning, "scan", lambda *_args, **_options: measured)
    run_id = run_scan(source, FEW).run_id
    assert runs()[-1].info.status == "FINISHED"
    text = scanning.artifacts.read_artifact(run_id, scanning.SENSITIVITY).decode()
    json.loads(text, parse_constant=pytest.fail)
    again = run_scan(source, FEW)
    assert again.reused
    line = damage_table(again.sensitivity).splitlines()[2]
    assert line.startswith("conv1.0.weight")
    assert "not finite" in line
    assert "100.00 %" not in line


def test_damage_table_names_dead_layers_whole_passes_and_missed_points(source):
    fields = json.loads(scanning.scan(source.model, source.dataset, FEW.config).to_json())
    fields |= {"whole_passes": "the network cannot be traced (why)", "missed": 3}
    fields["curves"][0]["changed"] = [False] * 3
    text = damage_table(Sensitivity.from_json(json.dumps(fields)))
    assert "conv1.0.weight has no effect: it is dead, not robust" in text
    assert text.count("has no effect") == 1
    assert "whole passes, the prefix was not reused: the network cannot be traced (why)" in text
    assert "3 points are less sharp" in text
