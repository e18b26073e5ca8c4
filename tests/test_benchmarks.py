"""A benchmark that is asked for what cannot be done says so in one sentence; and a baseline that is a fair one."""

import json
import math
import runpy
import sys
import time
from argparse import Namespace
from dataclasses import replace

import optuna
import pytest
import torch

from benchmarks import search, studies, training
from benchmarks.baselines import Found, Terms, plain
from benchmarks.setting import Kept, Setting, finish
from netprune.compute import Format
from netprune.errors import InputError
from netprune.evaluation import evaluate
from netprune.packing import unpack
from netprune.pruning import finetuning
from netprune.recipes import TrainConfig
from netprune.search_space import Point
from sweeps import artifacts
from sweeps.stages.starting import PACKED_FILE


def ending(monkeypatch, name, *arguments):
    """What `python -m benchmarks.NAME` ends with."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)  # runpy warns of one that is there
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    return str(ended.value)


@pytest.mark.parametrize("name", ["allocation", "document", "finetuning", "packing", "scan", "search"])
def test_benchmark_of_weights_that_are_not_there_ends_in_one_sentence(name, tmp_path, monkeypatch):
    said = ending(monkeypatch, name, "--weights", tmp_path / "none.pt", "--data-dir", tmp_path)
    assert said.startswith("Error: ")
    assert "none.pt" in said
    assert "\n" not in said


@pytest.mark.parametrize(("name", "size"), [("rival", ["--bytes", 100_000]), ("training", [])])
def test_benchmark_of_a_dataset_that_is_not_there_ends_in_one_sentence(name, size, tmp_path, monkeypatch):
    said = ending(monkeypatch, name, *size, "--dataset", tmp_path / "none", "--data-dir", tmp_path)
    assert said.startswith("Error: ")
    assert str(tmp_path / "none") in said
    assert "\n" not in said


@pytest.mark.parametrize("option", ["--studies", "--trials", "--confirm-most", "--workers"])
def test_studies_of_none_ends_in_one_sentence(option, monkeypatch):
    assert ending(monkeypatch, "studies", option, 0) == f"Error: {option} is 0; it must be at least 1."


@pytest.mark.parametrize("option", ["--seeds", "--trials", "--confirm-most", "--workers"])
def test_search_of_none_ends_in_one_sentence(option, monkeypatch):
    assert ending(monkeypatch, "search", option, 0) == f"Error: {option} is 0; it must be at least 1."


def test_search_of_which_one_measurement_fails_keeps_what_had_begun_and_leaves_the_rest(monkeypatch):
    begun = []

    def apart(options, method, seed):
        begun.append(seed)
        if seed == 0:
            raise InputError("no memory: take fewer workers.")
        time.sleep(0.2)
        return {"seed": seed}

    monkeypatch.setattr(search, "_apart", apart)
    kept = []
    with pytest.raises(InputError, match="fewer workers"):
        kept.extend(search._measured(Namespace(workers=2), [("ours", seed) for seed in range(12)]))
    assert 1 < len(begun) < 12
    assert {name for name, _ in kept} == {f"ours|{seed}" for seed in begun if seed}


def test_search_tests_the_files_it_confirmed_and_nothing_where_none_is(source, monkeypatch):
    budget = {"max_drop": [0.0, 45.0], "trials": 2, "finetune_epochs": 1.0, "confirm_epochs": 1.0, "confirm_most": 1}
    how = {"width": 2, "dataset": "tiny", "data_dir": "", "device": "cpu", "weights": "", "batch_size": 16}
    options = Namespace(**budget, **how, values="int8", precision="fp32")
    bench = search.Bench(Setting(source.model, source.dataset, options), options)
    found = bench.measure("bisected erk", 0)
    assert found["confirmed"] == [False, True]
    runs = search._runs("bisected erk 0", "confirm")
    won = [run.run_id for run in runs if run.metrics["packed_bytes"] == found["bytes"][1]]
    shipped = [unpack(artifacts.read_artifact(run_id, PACKED_FILE)).model for run_id in won]
    accuracies = [evaluate(model, source.dataset.test, source.dataset).accuracy for model in shipped]
    assert found["test"][0] is found["val"][0] is None
    assert [found["test"][1]] == accuracies
    assert found["val"][1] != found["test"][1]


def test_made_up_study_goes_down_to_its_floors_and_confirms_no_more_than_it_may():
    options = Namespace(trials=6, confirm_most=2, sampler="random")
    study = studies.Study(studies.World.made(studies.net10_space(), 3), 3, options)
    winners = study()
    assert [one.number for one in study.tried] == list(range(6))
    assert study.tried[0].score.size_bytes == studies.file_bytes(0.2)
    assert winners.keys() == set(studies.FLOORS)
    strict, lower = (winners[floor] for floor in studies.FLOORS)
    assert lower.size_bytes < strict.size_bytes
    assert all(won.lower >= floor - 1e-9 for floor, won in winners.items())
    assert study.confirm_epochs == studies.CONFIRM * sum(len(one.accuracies) for one in study.finetuned.values())
    assert {(one.trial, one.turn) for one in study.attempts} == study.finetuned.keys()
    assert len(study.attempts) <= 2 * options.confirm_most + 1
    found = studies.measure(3, options, studies.net10_space())
    expected = [
        math.log(won.size_bytes / study.world.least_bytes(floor, studies.LONG)) for floor, won in winners.items()
    ]
    assert (found["over"], found["none"]) == (expected, [False, False])
    assert studies.measure(4, options, studies.net10_space()) != found


def test_made_up_worlds_are_better_with_more_weights_training_and_the_best_offsets():
    world = studies.World.made(studies.net10_space(), 0)
    best, path = (Point(density=0.1, offsets=dict(offsets)) for offsets in (world.best, dict.fromkeys(world.best, 0.0)))
    assert world.accuracy(path, 3) < world.accuracy(best, 3) < world.accuracy(best, 6)
    assert world.accuracy(best, 3) < world.accuracy(replace(best, density=0.2), 3)
    assert world.least_bytes(0.8188, 3) < world.least_bytes(0.8338, 3)
    assert world.least_bytes(0.8188, 6) < world.least_bytes(0.8188, 3)


def test_kept_results_are_there_again_for_the_same_measurement_and_more_seeds(tmp_path):
    given = {"kept": str(tmp_path / "kept.json"), "epochs": 0.5, "max_drop": [0.5, 2.0]}
    Kept(Namespace(**given, seeds=1))["lamp|0"] = {"bytes": [1, 2]}
    assert Kept(Namespace(**given, seeds=3)) == {"lamp|0": {"bytes": [1, 2]}}
    assert Kept(Namespace(**given | {"kept": None}, seeds=3)) == {}


def test_kept_results_of_another_measurement_are_refused_and_left_alone(tmp_path):
    path = tmp_path / "kept.json"
    Kept(Namespace(kept=str(path), epochs=0.5))["lamp|0"] = 1
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"has results of epochs=0.5, not 1.5: give --kept another name"):
        Kept(Namespace(kept=str(path), epochs=1.5))
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", '{"lamp|0": 1}', "\x00"])
def test_kept_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "kept.json"
    path.write_text(content)
    with pytest.raises(InputError, match="is not a file of results"):
        Kept(Namespace(kept=str(path), epochs=0.5))
    assert path.read_text() == content


@pytest.mark.parametrize("plain_loop", [True, False])
def test_training_loop_is_fused_and_recorded_unless_it_is_the_plain_one_whatever_the_format(
    plain_loop, tiny_net, tiny_dataset, monkeypatch
):
    fused, adam = [], torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *p, **how: fused.append(how["fused"]) or adam(*p, **how))
    recorded, passes = [], training.training_passes
    monkeypatch.setattr(training, "training_passes", lambda *given: recorded.append(given[1]) or passes(*given))
    config = TrainConfig(format=Format())  # plain fp32, which may be the fastest
    batches = training.random_batches(tiny_dataset, 4, torch.device("cpu"))
    assert training.stepped(tiny_net, batches, config, 1, plain=plain_loop) > 0
    assert fused == [not plain_loop]
    assert recorded == ([] if plain_loop else [config.format])


@pytest.mark.parametrize("seed", [0, 1])
def test_plain_optuna_with_two_floors_knows_what_it_has_tried_and_tries_nothing_twice(seed, tiny_net, monkeypatch):
    made, studies, create = [], [], optuna.create_study
    monkeypatch.setattr(optuna, "create_study", lambda **how: studies.append(create(**how)) or studies[-1])

    def trial(sparsity):
        made.append(sparsity)
        density = 1 - sum(sparsity.values()) / len(sparsity)
        return Found(sparsity, round(1e6 * density), 0.7 + density / 5, tiny_net)

    finetune = finetuning(0.5)
    found = plain("abc", Terms((0.8, 0.7), 12, finetune, finetune, 2, seed, images=1000), trial)
    assert [one.sparsity for one in found] == made
    assert len({tuple(one.values()) for one in made}) == len(made) == 12
    assert all(one.keys() == set("abc") for one in made)
    first, second = ([trial.params for trial in study.trials] for study in studies)
    assert (first, second) == (made[:6], made)
    assert [trial.value for trial in studies[1].trials] == [one.size_bytes for one in found]


@pytest.mark.parametrize(("number", "lines"), [(1.25, ["figure: 1.25 times"]), (None, [])])
def test_finish_without_anything_to_compare_prints_no_figure(capsys, tmp_path, number, lines):
    options = Namespace(json=str(tmp_path / "found.json"), device="cpu")
    finish(options, {"results": {}}, number, "times")
    assert capsys.readouterr().out.splitlines()[1:] == lines
    assert json.loads((tmp_path / "found.json").read_text())["figure"] == number
