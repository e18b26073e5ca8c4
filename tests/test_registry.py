"""Packed files as MLflow models: by run, by version and by alias, whole or not at all."""

import json
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from studies import DATA

from netprune.errors import InputError
from netprune.header import PackedHeader
from netprune.models import Architecture, build_model
from netprune.packing import pack, read_packed, unpack
from netprune.pruning import PruneConfig
from netprune.pyfunc import _load_pyfunc
from netprune.weights import weights_digest
from sweeps import artifacts, registry, tracking
from sweeps.stages.exporting import run_export
from sweeps.stages.registering import run_register
from sweeps.stages.starting import PACKED_FILE, fetch_network
from sweeps.stages.studies import FoundStudy


def packed(seed=0):
    architecture = Architecture(name="net10", num_classes=3, width=1)
    model = build_model(architecture, seed=seed)
    header = PackedHeader(
        architecture=architecture,
        classes=("a", "b", "c"),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        dense_digest=weights_digest(model),
    )
    return model, header, pack(model, header)


def test_model_logged_is_fetched_by_run_and_by_alias_bit_for_bit(store):
    _, header, data = packed()
    with tracking.tracked_run("register", "r", {}) as run_id:
        uri = registry.log_model(data, header)
        version = registry.register_model(uri, "small", run_id=run_id, tags={"k": "v"}, description="d")
    for name in (run_id, f"runs:/{run_id}", "models:/small@champion", f"models:/small/{version}"):
        found, by = registry.fetch_model(name)
        assert weights_digest(found.model) == header.dense_digest
        assert found.header == header
        assert by == run_id
    assert registry.find_version("small", {"k": "v"}) == (version, run_id)
    (model,) = mlflow.search_logged_models(output_format="list")
    assert model.source_run_id == run_id
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "small", "version": str(version)}]
    assert mlflow.MlflowClient().get_model_version("small", str(version)).run_id == run_id
    assert registry.find_version("small", {"k": "w"}) is None
    assert registry.find_version("none", {}) is None


def test_model_logged_predicts_through_pyfunc_as_the_module_does(store):
    model, header, data = packed()
    with tracking.tracked_run("register", "r", {}):
        uri = registry.log_model(data, header)
    images = np.random.default_rng(0).random((5, 3, 32, 32), dtype=np.float32)
    loaded = mlflow.pyfunc.load_model(uri)
    expected = model.eval()(torch.from_numpy((images - 0.5) / 0.25)).detach().numpy()
    np.testing.assert_array_equal(loaded.predict(images), expected)
    assert weights_digest(loaded.get_raw_model()) == header.dense_digest


def test_register_model_that_cannot_get_its_alias_leaves_no_version(store, monkeypatch):
    _, header, data = packed()

    def refuse(*_args, **_kwargs):
        raise RuntimeError("no alias today")

    monkeypatch.setattr(mlflow.MlflowClient, "set_registered_model_alias", refuse)
    with pytest.raises(RuntimeError), tracking.tracked_run("register", "r", {}) as run_id:
        registry.register_model(registry.log_model(data, header), "small", run_id=run_id, tags={}, description="")
    assert mlflow.MlflowClient().search_model_versions("name = 'small'") == []


@pytest.mark.parametrize("failing", ["set_logged_model_tags", "set_registered_model_alias"])
def test_register_model_that_fails_leaves_aliases_where_they_were(store, monkeypatch, failing):
    _, header, data = packed()
    with tracking.tracked_run("register", "r", {}) as run_id:
        uri = registry.log_model(data, header)
    known = {"run_id": run_id, "tags": {}, "description": ""}
    first = registry.register_model(uri, "small", aliases=("champion",), **known)
    whole = getattr(mlflow.MlflowClient, failing)

    def fail_after(client, *arguments):
        whole(client, *arguments)
        if arguments[1] != "champion":
            raise RuntimeError("not today")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, failing, fail_after)
        with pytest.raises(RuntimeError):
            registry.register_model(uri, "small", aliases=("champion", "floor-90-00"), **known)
    assert mlflow.MlflowClient().get_registered_model("small").aliases == {"champion": first}
    assert [int(v.version) for v in mlflow.MlflowClient().search_model_versions("name = 'small'")] == [first]


@pytest.mark.parametrize("name", ["a/b", "a:b", "a@b", "bob's", "why?", "a\nb", "..", " "])
def test_register_under_a_name_that_cannot_be_one_is_refused_before_anything(monkeypatch, name):
    monkeypatch.setattr("sweeps.stages.registering.find_study", lambda *_: pytest.fail("it has looked for the study"))
    with pytest.raises(InputError, match=r"model_name is .* such as net10-photos"):
        run_register("small", name, DATA)


def test_default_name_of_a_folder_with_an_odd_name_is_one_that_can_be_registered_and_found(store):
    _, header, data = packed()
    name = registry.default_name("net10", "why: bob's@home\n?")
    registry.require_name(name)
    with tracking.tracked_run("register", "r", {}) as run_id:
        uri = registry.log_model(data, header)
        version = registry.register_model(uri, name, run_id=run_id, tags={}, description="")
    assert registry.find_version(name, {}) == (version, run_id)
    assert registry.fetch_model(f"models:/{name}@champion")[1] == run_id


def exported(path):
    run_export(str(path), "model.pt")
    model = build_model(Architecture(name="net10", num_classes=3, width=1))
    model.load_state_dict(torch.load("model.pt", weights_only=True))
    return model


@pytest.mark.parametrize(
    "read",
    [
        lambda *_: registry.fetch_model("models:/small@champion")[0].model,
        lambda path, _: FoundStudy("small", SimpleNamespace(params={}), ()).read(path.read_bytes()).model,
        lambda _, run_id: fetch_network(run_id, SimpleNamespace(model=packed()[0]), PruneConfig()),
        lambda path, _: _load_pyfunc(str(path)).get_raw_model(),
        lambda path, _: exported(path),
    ],
    ids=["registered", "study", "run", "pyfunc", "export"],
)
def test_file_of_the_store_is_read_whatever_its_size(store, monkeypatch, read):
    model, header, data = packed()
    with tracking.tracked_run("register", "r", {}) as run_id:
        uri = registry.log_model(data, header)
        registry.register_model(uri, "small", run_id=run_id, tags={}, description="")
        artifacts.log_bytes(data, PACKED_FILE)
    path = store / "net.netprune"
    path.write_bytes(data)
    for reader in (unpack, read_packed):  # as if a network of a kilobyte were a very large one
        monkeypatch.setitem(reader.__kwdefaults__, "max_bytes", 1)
    with pytest.raises(InputError, match="above the limit"):
        read_packed(path)
    assert weights_digest(read(path, run_id)) == weights_digest(model)


@pytest.mark.parametrize(
    "uri",
    [
        "0" * 32,
        "runs:/" + "1" * 32,
        "models:/none@champion",
        "models:/none/1",
        "nonsense",
        "http://localhost:5000/#/experiments/1/runs/abc",
    ],
)
def test_fetch_model_of_an_unknown_uri_names_the_forms(store, uri):
    with pytest.raises(InputError, match=r"models:/<name>@<alias>"):
        registry.fetch_model(uri)
