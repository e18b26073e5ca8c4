"""What a study's run and a version say of themselves: whole, true, and loadable as they say."""

import re
from dataclasses import replace

import mlflow
from studies import DATA, REQUEST

import netprune
from netprune.weights import weights_digest
from sweeps import tracking
from sweeps.stages.longer import SEED
from sweeps.stages.registering import run_register
from sweeps.table import count, percent, points


def note(run_id):
    return tracking.find_run(run_id).tags[tracking.NOTE]


def test_study_note_of_a_confirmed_study_has_floor_data_seeds_accuracy_size_and_a_load_that_works(searched):
    outcome = searched()
    (floor,) = outcome.floors
    text, won = note(outcome.run_id), floor.confirmed
    assert f"at least {percent(floor.floor)}" in text
    assert f"at least {percent(won.lower)} on validation with 95 % confidence" in text
    for run_id in won.run_ids:
        assert f"(seed {tracking.find_run(run_id).tags[SEED]})" in text
    assert "Data: tiny (72 training, 24 validation images). Seed 0" in text
    assert f"| {count(won.size_bytes)} |" in text
    assert "not read" in text
    (uri,) = re.findall(r'download_artifacts\("(.*?)"\)', text)
    network = netprune.load(mlflow.artifacts.download_artifacts(uri))
    assert uri == f"runs:/{won.run_id}/packed/model.netprune"
    assert sum(p.numel() for p in network.parameters()) > 0


def test_study_note_after_registering_has_test_and_loads_the_version(searched):
    outcome = searched()
    registered = run_register("small", "", DATA)
    text = note(outcome.run_id)
    assert f"| {percent(registered.versions[0].measured.test_accuracy)} |" in text
    assert f"| {percent(registered.dense.test_accuracy)} |" in text
    change = registered.versions[0].change
    assert f"| {points(change.accuracy, change.se)} |" in text
    assert "not read" not in text
    (uri,) = re.findall(r'load_model\("(.*?)"\)', text)
    assert uri == "models:/net10-w2-tiny/1"
    mlflow.pyfunc.load_model(uri)


def test_study_note_of_an_unconfirmed_study_says_so_and_loads_the_best_trial(searched):
    outcome = searched(replace(REQUEST, confirm_seeds=0, trials=2))
    text = note(outcome.run_id)
    assert "Nothing is confirmed." in text
    assert "chosen by luck too" in text
    assert f"runs:/{outcome.floors[0].best.score.run_id}/packed/model.netprune" in text


def test_study_note_of_a_floor_that_no_bound_meets_says_how_far_it_was(searched):
    request = replace(REQUEST, max_drop=(0.0,), trials=2, finetune_epochs=0.0, confirm_epochs=0.0)
    text = note(searched(request).run_id)
    assert "Nothing is confirmed: no network of study small is at its floor" in text


def test_study_note_of_several_floors_has_a_row_for_each_winner(searched):
    outcome = searched(replace(REQUEST, max_drop=(30.0, 60.0)))
    text = note(outcome.run_id)
    for one in outcome.floors:
        assert (f"| floor {percent(one.floor)} |" in text) == (one.confirmed is not None)


def test_version_description_has_floor_data_seeds_accuracy_size_and_a_load_that_works(searched):
    outcome = searched()
    registered = run_register("small", "", DATA)
    client, measured = mlflow.MlflowClient(), registered.versions[0].measured
    text = client.get_model_version(registered.name, "1").description
    won = outcome.floors[0].confirmed
    assert f"for a floor of {percent(outcome.floors[0].floor)}" in text
    assert f"(seed {tracking.find_run(won.run_ids[0]).tags[SEED]})" in text
    assert "Data: tiny (72 training, 24 validation, 24 test images)." in text
    assert f"| pruned | {percent(measured.val_accuracy)} | {percent(measured.test_accuracy)} | " in text
    change = registered.versions[0].change
    assert f"| {points(change.accuracy, change.se)} | {count(won.size_bytes)} |" in text
    assert count(won.size_bytes) in text
    assert f"run {outcome.run_id}. Finetuned in run {won.run_id}." in text
    own, alias = re.findall(r'load_model\("(.*?)"\)', text)
    assert alias == registered.uri
    digests = {weights_digest(mlflow.pyfunc.load_model(uri).get_raw_model()) for uri in (own, alias)}
    assert len(digests) == 1
    assert len(text) < 5000  # MLflow keeps no more


def test_runs_of_a_study_can_be_filtered_by_stage_feasible_and_confirmed(searched):
    outcome = searched()
    won = outcome.floors[0].confirmed
    confirmed = tracking.find_runs({tracking.STAGE: "confirm", tracking.CONFIRMED: "true"})
    assert [run.run_id for run in confirmed] == [won.run_id]
    others = tracking.find_runs({tracking.STAGE: "confirm", tracking.CONFIRMED: "false"})
    assert len(confirmed) + len(others) == len(tracking.find_runs({tracking.STAGE: "confirm"}))
    (study,) = tracking.find_runs({tracking.STAGE: "search", tracking.CONFIRMED: "true", tracking.FEASIBLE: "true"})
    assert study.run_id == outcome.run_id
    trials = [tracking.find_runs({tracking.STAGE: "trial", tracking.FEASIBLE: flag}) for flag in ("true", "false")]
    assert sum(map(len, trials)) == 5


def test_runs_of_a_study_name_the_data_they_used(searched):
    outcome = searched()
    run_register("small", "", DATA)
    scanned, registered = (tracking.find_runs({tracking.STAGE: stage})[0].run_id for stage in ("scan", "register"))
    used = {
        run_id: {each.dataset.name for each in mlflow.get_run(run_id).inputs.dataset_inputs}
        for run_id in (scanned, outcome.run_id, registered)
    }
    assert used == {
        scanned: {"tiny val"},
        outcome.run_id: {"tiny train", "tiny val"},
        registered: {"tiny val", "tiny test"},
    }
