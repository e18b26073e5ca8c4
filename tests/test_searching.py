"""The search's stages: seeds, trials that may stop early, confirmations with fresh seeds, one winner a floor."""

import functools
import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import mlflow
import optuna
import pytest
import torch
from studies import DATA, REQUEST

from netprune.bounds import find_bounds
from netprune.confidence import lower_bound, paired_change
from netprune.confirmation import Candidate
from netprune.errors import DivergedError, InputError
from netprune.evaluation import Evaluation, evaluate
from netprune.masks import measured_sparsity
from netprune.packing import unpack
from netprune.pruning import PruneConfig
from netprune.recipes import TrainConfig
from netprune.search_space import Point
from netprune.size import measure_size
from netprune.stopping import LearningCurve
from netprune.weights import prunable_weights, weights_digest
from sweeps import artifacts, proposing, tracking
from sweeps.limits import Limits, Spent
from sweeps.scores import Attempt, Score, Tried
from sweeps.search_sparsity import closing
from sweeps.sessions import Crew
from sweeps.stages import confirming, contest, deciding, longer, registering, searching, starting, trials
from sweeps.stages.candidates import candidate_rows
from sweeps.stages.confirming import CONFIRMED_FILE, asks_for_more
from sweeps.stages.contest import FRESH
from sweeps.stages.longer import AVERAGE, EPOCHS, HAD, IMAGES_HAD, SEED, START_RUN, TURN
from sweeps.stages.registering import registered_lines, run_register, summary_table
from sweeps.stages.repeating import search_command
from sweeps.stages.request import SearchRequest, accuracy_floors, as_percent, study_name
from sweeps.stages.searching import run_search
from sweeps.stages.source import SourceRequest
from sweeps.stages.standing import Standing
from sweeps.stages.starting import DENSE, FINETUNED_FILE, PACKED_FILE, Start
from sweeps.stages.studies import CHANGE, find_study, logged_change
from sweeps.stages.trials import START
from sweeps.storage import open_storage
from sweeps.store import open_store
from sweeps.study import FAILURES
from sweeps.table import count, percent, trial_name

SEEDS = (FRESH, FRESH + 1)


def begun(run):
    return run.info.start_time


def runs(stage=None):
    found = mlflow.search_runs(search_all_experiments=True, order_by=["start_time ASC"], output_format="list")
    return [run for run in found if stage in (None, run.data.tags[tracking.STAGE])]


def test_search_has_a_run_for_the_study_and_one_for_each_trial_and_confirmation(searched):
    outcome = searched()
    (study,) = runs("search")
    assert {run.info.status for run in runs()} == {"FINISHED"}
    assert outcome.done == len(runs("trial")) == 5
    nested = {run.data.tags["mlflow.parentRunId"] for run in [*runs("trial"), *runs("confirm")]}
    assert nested == {study.info.run_id}
    assert study.data.params["search.max_drop"] == "50"
    assert study.data.tags["seed_rule"] in ("kept_norm", "lamp", "erk", "global_magnitude", "knapsack")
    for run in runs("trial"):
        mark = "✓" if run.data.tags["feasible"] == "true" else "✗"
        assert run.info.run_name.startswith(mark)
        assert run.info.run_name.endswith(f"trial {int(run.data.tags[tracking.TRIAL]):03d}")
        assert run.data.metrics["finetune_epochs"] == 1 or run.data.tags["stopped_early"] != "no"
        assert "trial.sparsity/res1.0.0.weight" in run.data.params


@pytest.mark.parametrize(
    ("accuracy", "stopped", "text"),
    [
        (0.85, "", "✓ 110 kB 85.0 %"),
        (0.75, "", "✓ 110 kB 75.0 %"),
        (0.65, "", "✗ 110 kB 65.0 %"),
        (0.9, "x", "✗ stopped"),
    ],
)
def test_summary_of_a_trial_says_whether_it_meets_a_floor_its_size_and_its_accuracy(accuracy, stopped, text):
    score = Score(size_bytes=110_342, accuracy=accuracy, run_id="", stopped=stopped)
    assert trials.summary(score, (0.8, 0.7)) == text


def test_search_logs_seconds_by_stage_that_add_up_to_the_trial(searched):
    searched()
    whole_trials = [run for run in runs("trial") if run.data.tags["stopped_early"] == "no"]
    assert len(whole_trials) > 1
    for run in whole_trials:
        seconds = {name: value for name, value in run.data.metrics.items() if name.startswith("seconds/")}
        stages = ("start", "fetch", "prune", "finetune", "evaluate", "pack", "track")
        assert {f"seconds/{stage}" for stage in stages} <= set(seconds)
        assert all(value >= 0 for value in seconds.values())
        whole = (run.info.end_time - run.info.start_time) / 1000
        assert sum(seconds.values()) - seconds["seconds/rank"] - seconds["seconds/between"] < whole + 0.05
        assert 0 < run.data.metrics["passes_share"] < 1


def test_search_counts_the_ranking_of_other_rules_among_the_passes_of_the_next_trial(source, monkeypatch):
    propose, ranked = proposing.Proposer.__call__, searching.ranked

    def asking(self, turn):
        if turn.number == 1:
            self.others(0.1)
        return propose(self, turn)

    def slow(*asked):
        time.sleep(2)
        return ranked(*asked)

    monkeypatch.setattr(proposing.Proposer, "__call__", asking)
    monkeypatch.setattr(searching, "ranked", slow)
    run_search(source, replace(REQUEST, trials=3, confirm_seeds=0))
    first, second, third = sorted((run.data.metrics for run in runs("trial")), key=lambda one: one["seconds/rank"])
    assert first["seconds/rank"] == second["seconds/rank"] == 0
    assert third["seconds/rank"] >= 2 > third["seconds/between"]
    assert third["passes_share"] > 2 / sum(value for name, value in third.items() if name.startswith("seconds/"))


def test_search_decodes_an_earlier_trials_network_once(searched, monkeypatch):
    asked, fetch = [], starting.fetch_network

    def counted(run_id, *rest):
        asked.append(run_id)
        return fetch(run_id, *rest)

    monkeypatch.setattr(starting, "fetch_network", counted)
    searched(replace(REQUEST, confirm_seeds=0, trials=5, seed=3))
    assert len(asked) == len(set(asked)) > 1


def test_search_confirmed_network_is_finetuned_longer_with_fresh_seeds(searched, source):
    outcome = searched()
    won = outcome.floors[0].confirmed
    all_of_it = [run for run in runs("confirm") if run.data.tags[tracking.TRIAL] == str(won.trial)]
    turn = max(int(run.data.tags[TURN]) for run in all_of_it)
    confirmations = [run for run in all_of_it if run.data.tags[TURN] == str(turn)]
    (averaged,) = (run for run in confirmations if AVERAGE in run.data.tags)
    seeds = [FRESH + 2 * turn, FRESH + 2 * turn + 1]
    assert averaged.data.tags[AVERAGE] == "2"
    assert averaged.data.tags[longer.SEEDS] == ",".join(map(str, seeds))
    confirmations.remove(averaged)
    assert {int(run.data.tags[SEED]) for run in confirmations} == set(seeds)
    results = [json.loads(artifacts.read_artifact(run.info.run_id, "result.json")) for run in confirmations]
    assert sorted(result["seed"] for result in results) == seeds  # and not the tag alone
    networks = [unpack(artifacts.read_artifact(run.info.run_id, PACKED_FILE)).model for run in confirmations]
    assert len(set(map(weights_digest, networks))) == 2
    mean = unpack(artifacts.read_artifact(averaged.info.run_id, PACKED_FILE)).model
    for name, weight in prunable_weights(mean).items():
        torch.testing.assert_close(weight, sum(prunable_weights(one)[name] for one in networks) / 2)
    assert won.average == averaged.data.metrics["val_accuracy"]
    assert won.averaged == (won.average >= sum(won.accuracies) / 2)
    assert {run.data.tags[EPOCHS] for run in confirmations} == {"2"}
    assert won.lower >= outcome.floors[0].floor
    assert won.lower < won.accuracy
    kept = json.loads(artifacts.read_artifact(outcome.run_id, CONFIRMED_FILE))
    assert [entry["run_id"] for entry in kept.values()] == [won.run_id]
    shipped = unpack(artifacts.read_artifact(won.run_id, PACKED_FILE)).model
    accuracy = evaluate(shipped, source.dataset.val, source.dataset).accuracy
    assert accuracy == (won.average if won.averaged else max(won.accuracies))
    assert runs("search")[0].data.metrics["confirmed_packed_bytes"] == won.size_bytes


def test_search_that_may_confirm_only_one_waits_for_all_trials(searched):
    searched(replace(REQUEST, confirm_most=1))
    ordered = sorted((run for run in runs() if run.data.tags[tracking.STAGE] in ("trial", "confirm")), key=begun)
    stages = [run.data.tags[tracking.STAGE] for run in ordered]
    assert stages.index("confirm") == REQUEST.trials


def test_search_confirms_candidates_among_each_floors_trials(searched):
    searched(replace(REQUEST, max_drop=(30.0, 60.0), trials=8, confirm_most=2))
    ordered = sorted((run for run in runs() if run.data.tags[tracking.STAGE] in ("trial", "confirm")), key=begun)
    stages = [run.data.tags[tracking.STAGE] for run in ordered]
    before = [stages[:i].count("trial") for i, stage in enumerate(stages) if stage == "confirm"]
    assert before[0] == 2, "a third of the first floor's four trials"
    assert any(6 <= count < 8 for count in before), "a third of the second floor's as well"
    kept = optuna.load_study(study_name="small", storage=open_storage("")).user_attrs["attempts"]
    confirmed = [int(run.data.tags[tracking.TRIAL]) for run in ordered if run.data.tags[tracking.STAGE] == "confirm"]
    assert list(dict.fromkeys(attempt["trial"] for attempt in kept)) == list(dict.fromkeys(confirmed))
    assert kept[0]["floor"] == max(attempt["floor"] for attempt in kept)
    assert {tuple(attempt["seeds"]) for attempt in kept if not attempt["turn"]} == {(FRESH, FRESH + 1)}


def probes_of(monkeypatch, floors, most, trials, *, made=(), during=0, settled=None):
    """A study's confirmations: a function that makes those that are due after so many trials of `trials`, and the
    floors of all that were made. `during` is how many trials others end while one is made; `settled` how many trials
    and attempts there had been when the study had its answers."""
    seen = SimpleNamespace(done=0, epochs=0.0)
    study = SimpleNamespace(
        floors=floors,
        crew=SimpleNamespace(leads=True),
        look=lambda: seen,
        settled=settled,
        attempts=[SimpleNamespace(floor=floor) for floor in made],
    )
    asked = []

    def probe(*given):
        asked.append(given[-1])
        study.attempts.append(SimpleNamespace(floor=given[-1]))
        seen.done += during

    monkeypatch.setattr(deciding, "probe", probe)
    monkeypatch.setattr(deciding, "finetuning_for", lambda *_: None)
    monkeypatch.setattr(deciding.Contest, "of", lambda *_: None)
    request = SimpleNamespace(confirm_seeds=2, confirm_most=most, objective="packed_bytes", longer_epochs=1.0, seed=0)
    limits = Limits(trials=trials, before=Spent(trials=settled["trials"] if settled else 0))
    probes = deciding.Probes(None, study, request, limits)

    def after(done):
        seen.done = done
        probes()

    return after, asked


def test_confirmations_among_the_trials_come_evenly_in_each_floors_part(monkeypatch):
    after, asked = probes_of(monkeypatch, (0.9, 0.8), 3, 36)
    when = []
    for done in range(37):
        before = len(asked)
        after(done)
        when += [(done, floor) for floor in asked[before:]]
    assert when == [(6, 0.9), (10, 0.9), (14, 0.9), (24, 0.8), (28, 0.8), (32, 0.8)]


def test_confirmations_that_come_due_while_another_is_made_are_left_to_the_end(monkeypatch):
    after, asked = probes_of(monkeypatch, (0.9,), 5, 15, during=6)
    for done in (4, 5, 11, 12, 13, 14, 15):
        after(done)
    assert asked == [0.9, 0.9], "at five trials; at eleven those up to there have lapsed; at thirteen"


def test_confirmations_that_workers_have_overtaken_are_one_a_floor(monkeypatch):
    after, asked = probes_of(monkeypatch, (0.9, 0.8), 4, 20)
    after(20)
    assert asked == [0.9, 0.8]
    after(20)
    assert asked == [0.9, 0.8]


def test_confirmations_of_an_earlier_session_are_not_made_again(monkeypatch):
    after, asked = probes_of(monkeypatch, (0.9,), 3, 18, made=(0.9, 0.9))
    after(6)
    after(10)
    assert asked == []
    after(14)
    assert asked == [0.9]


def test_confirmations_of_a_study_that_is_given_more_trials_are_as_many_again(monkeypatch):
    settled = {"trials": 16, "attempts": 3, "since": 0}
    after, asked = probes_of(monkeypatch, (0.9,), 3, 34, made=(0.9, 0.9, 0.9), settled=settled)
    for done in (16, 17, 22, 26, 30):
        after(done)
    assert asked == [0.9, 0.9, 0.9], "after six of the new trials, ten, and fourteen"


def test_search_that_is_given_more_trials_may_confirm_as_many_candidates_again(source):
    most = replace(REQUEST, confirm_most=1, trials=1)
    (before,) = run_search(source, most).floors
    (same,) = run_search(source, most).floors
    kept = optuna.load_study(study_name="small", storage=open_storage("")).user_attrs
    assert same == before
    assert len(kept["attempts"]) == 1
    (after,) = run_search(source, replace(most, trials=5)).floors
    kept = optuna.load_study(study_name="small", storage=open_storage("")).user_attrs
    assert len(kept["attempts"]) == 2
    assert after.confirmed.size_bytes < before.confirmed.size_bytes
    run_search(source, replace(most, trials=5, confirm_most=2))
    kept = optuna.load_study(study_name="small", storage=open_storage("")).user_attrs
    assert kept["settled"]["since"] == 1, "of those made since the trials were added"


def finetuned_to(monkeypatch, accuracies, average, floor=0.8):
    """What `longer.measure` makes of finetunings and an average with these accuracies."""

    def run(name, accuracy):
        tags = {START: "dense", START_RUN: "", HAD: "0.5", IMAGES_HAD: "0.75"}
        metrics = {"val_accuracy": accuracy, "packed_bytes": 100.0}
        return tracking.FoundRun(name, name, "FINISHED", tags, {}, metrics)

    made = []

    def finetuned(_, __, ___, ____, i, *_____):
        made.append(i)
        return run(f"seed {i}", accuracies[i])

    monkeypatch.setattr(longer, "_finetuned", finetuned)
    monkeypatch.setattr(longer, "_averaged", lambda *_: run("average", average))
    how = contest.Confirmation(config=PruneConfig(finetune=TrainConfig(epochs=1)), seeds=SEEDS, most=2)
    source = SimpleNamespace(dataset=SimpleNamespace(val=range(5000)))
    return longer.measure(source, SimpleNamespace(objective="packed_bytes"), 0, how, floor), made


@pytest.mark.parametrize(
    ("average", "ships"), [(0.85, "seed 1"), (0.889, "seed 1"), (0.89, "average"), (0.91, "average")]
)
def test_confirmation_ships_the_average_unless_it_is_worse_than_the_seeds_mean(monkeypatch, average, ships):
    found, made = finetuned_to(monkeypatch, (0.88, 0.90), average)
    averaged = ships == "average"
    assert (found.run_id, found.averaged, made) == (ships, averaged, [0, 1])
    assert found.accuracy == pytest.approx(average if averaged else 0.89)
    bound = lower_bound((0.88, 0.90), 5000, average=average if averaged else None)
    assert found.lower == pytest.approx(bound.lower)
    assert found.trained == 1.5
    assert found.images_had == 2.75, "both seeds' images"


@pytest.mark.parametrize(("first", "seeds"), [(0.7949, 1), (0.7951, 2)])
def test_confirmation_whose_first_seed_is_half_a_point_below_the_floor_has_no_second(monkeypatch, first, seeds):
    found, made = finetuned_to(monkeypatch, (first, 0.9), 0.9)
    assert len(made) == len(found.accuracies) == seeds


def test_confirmation_goes_over_the_images_that_its_start_and_its_other_seeds_have_not_had(source, monkeypatch):
    given, whole = [], longer.prune_candidate

    def spy(*arguments, **options):
        given.append(arguments[2])
        return whole(*arguments, **options)

    monkeypatch.setattr(longer, "prune_candidate", spy)
    run_search(source, replace(REQUEST, trials=1, finetune_epochs=0.25, confirm_epochs=0.25, seed=3))
    images = [config.part(source.dataset).train.images for config in given[:2]]
    first = PruneConfig(finetune=given[0].finetune, share=0.25, order=3).part(source.dataset).train.images
    had = [{tuple(image.flatten().tolist()) for image in part} for part in (first, *images)]
    assert given[0].had == 0.25
    assert not had[0] & had[1]
    assert not had[1] & had[2]
    assert not had[0] & had[2]


@pytest.mark.parametrize(("found", "said"), [((0.79,), "given up after one seed"), ((0.86, 0.86), "at least 84.00 %")])
def test_confirm_says_no_bound_of_what_has_had_one_seed(monkeypatch, capsys, found, said):
    confirmed_of(monkeypatch, lambda *_: came_to(0, found, 0.84), (Candidate(0, 100, 0.82, 0.86),), (0.8338,))
    told = capsys.readouterr().err
    assert said in told
    assert ("at least" in told) == (len(found) > 1)


def came_to(number, accuracies, lower):
    return contest.Confirmed(
        trial=number,
        run_ids=("r",) * len(accuracies),
        accuracies=accuracies,
        average=None,
        run_id="r",
        trained=0.0,
        images_had=0.0,
        size_bytes=100 * (number + 1),
        lower=lower,
    )


def confirmed_of(monkeypatch, measure, candidates, floors, *, attempts=(), most=2):
    """The winners where a candidate's longer finetunings come to what `measure` says, and what was noted."""
    monkeypatch.setattr(confirming, "measure", lambda _, __, number, ___, ____, earlier: measure(number, len(earlier)))
    kept = list(attempts)
    given = contest.Contest(
        name="x",
        run_id="r",
        floors=floors,
        objective="packed_bytes",
        candidates=candidates,
        sparsities={},
        start=lambda _: DENSE,
        attempts=kept[:],
        note=kept.append,
    )
    how = contest.Confirmation(config=PruneConfig(finetune=TrainConfig(), share=0.5), seeds=SEEDS, most=most)
    source = SimpleNamespace(dataset=SimpleNamespace(val=range(5000)))
    return list(confirming.confirm(source, given, how).values()), kept


def test_candidate_given_up_after_one_seed_wins_no_floor(monkeypatch):
    floors = (0.8338, 0.8188)
    given_up = Attempt(
        trial=0, floor=floors[0], epochs=10.0, seeds=SEEDS, accuracy=0.828, lower=0.0, run_id="r", trained=0.0
    )
    won, _ = confirmed_of(
        monkeypatch,
        lambda number, _: came_to(number, (0.85, 0.85), 0.84) if number else came_to(number, (0.828,), 0.8193),
        (Candidate(0, 100, 0.75, 0.75), Candidate(1, 200, 0.84, 0.86)),
        floors,
        attempts=[given_up],
        most=1,
    )
    assert [one.trial for one in won] == [1, 1]


def test_confirm_of_one_given_up_after_one_seed_notes_no_bound_that_a_lower_floor_would_take_for_its_own(monkeypatch):
    candidates = (Candidate(0, 100, 0.82, 0.85),)
    given_up, accepted = came_to(0, (0.828,), 0.8193), came_to(0, (0.85, 0.85), 0.8405)
    _, kept = confirmed_of(monkeypatch, lambda *_: given_up, candidates, (0.8338,))
    assert [one.lower for one in kept] == [0.0]
    _, kept = confirmed_of(monkeypatch, lambda *_: accepted, candidates, (0.8338,))
    assert [one.lower for one in kept] == [0.8405]


@pytest.mark.parametrize(
    ("most", "won", "made"), [(2, 1, [(0, 0), (1, 0)]), (3, 0, [(0, 0), (1, 0), (0, 1)])], ids=["none left", "one left"]
)
def test_confirm_once_one_is_accepted_finetunes_a_smaller_near_one_once_more(monkeypatch, most, won, made):
    found = {(1, 0): (0.86, 0.85), (0, 0): (0.841, 0.8325), (0, 1): (0.844, 0.835)}

    def measure(number, turn):
        accuracy, lower = found[number, turn]
        return came_to(number, (accuracy, accuracy), lower)

    candidates = (Candidate(0, 100, 0.84, 0.843), Candidate(1, 200, 0.84, 0.86))
    (winner,), kept = confirmed_of(monkeypatch, measure, candidates, (0.8338,), most=most)
    assert winner.trial == won
    assert [(one.trial, one.turn) for one in kept] == made
    assert [one.seeds for one in kept if one.turn] == [(FRESH + 2, FRESH + 3)] * (most - 2)


def test_confirm_of_one_given_up_by_a_stricter_floor_is_its_first_turn_still(monkeypatch):
    given_up = Attempt(
        trial=0, floor=0.8338, epochs=10.0, seeds=SEEDS, accuracy=0.828, lower=0.0, run_id="r", trained=0.0
    )
    asked = []

    def measure(number, earlier):
        asked.append(earlier)
        return came_to(number, (0.828,) if len(asked) == 1 else (0.828, 0.83), 0.82)

    one = (Candidate(0, 100, 0.82, 0.86),)
    (_, won), kept = confirmed_of(monkeypatch, measure, one, (0.8338, 0.8), attempts=[given_up])
    assert won.accuracies == (0.828, 0.83)
    assert asked == [0, 0]
    assert [attempt.turn for attempt in kept] == [0, 0]


@pytest.mark.parametrize(("floor", "turns"), [(0.8338, [0, 1]), (0.86, [0])], ids=["later", "the first of a floor"])
def test_confirm_among_the_trials_is_once_more_only_if_it_is_not_the_first_of_a_floor(monkeypatch, floor, turns):
    monkeypatch.setattr(confirming, "confirm", lambda *given: confirming.probe(*given, 0.8338) or {})
    attempt = Attempt(
        trial=0, floor=floor, epochs=10.0, seeds=SEEDS, accuracy=0.8415, lower=0.8325, run_id="r", trained=0.0
    )
    one = (Candidate(0, 100, 0.84, 0.86),)
    _, kept = confirmed_of(
        monkeypatch, lambda n, _: came_to(n, (0.8415, 0.8415), 0.8325), one, (0.8338, 0.86), attempts=[attempt]
    )
    assert [one.turn for one in kept] == turns


@pytest.mark.parametrize(("expected", "confirmed"), [(0.85, [0, 1]), (0.82, [0])], ids=["promising", "hopeless"])
def test_confirm_among_the_trials_after_the_first_is_only_of_what_may_win(monkeypatch, expected, confirmed):
    monkeypatch.setattr(confirming, "confirm", lambda *given: confirming.probe(*given, 0.8338) or {})
    attempt = Attempt(
        trial=0, floor=0.8338, epochs=10.0, seeds=SEEDS, accuracy=0.86, lower=0.85, run_id="r", trained=0.0
    )
    two = (Candidate(0, 100, 0.84, 0.86), Candidate(1, 80, 0.82, expected))
    _, kept = confirmed_of(monkeypatch, lambda n, _: came_to(n, (0.86, 0.86), 0.85), two, (0.8338,), attempts=[attempt])
    assert [one.trial for one in kept] == confirmed


def test_confirm_while_none_is_accepted_tries_all_and_the_nearest_once_more_as_often_as_is_allowed(monkeypatch):
    def measure(number, earlier):
        assert earlier < 5, "it would go on for ever"
        return came_to(number, (0.8415, 0.8415), 0.8325)

    candidates = tuple(Candidate(i, 100 * (i + 1), 0.84, 0.86) for i in range(2))
    (none,), kept = confirmed_of(monkeypatch, measure, candidates, (0.8338,))
    assert none is None
    assert [(one.trial, one.turn) for one in kept] == [(0, 0), (1, 0), (0, 1), (0, 2)]


def test_confirm_of_one_that_a_stricter_floor_gave_up_and_that_diverges_for_a_lower_one_ends(monkeypatch):
    asked = []

    def measure(number, _):
        asked.append(number)
        assert len(asked) < 9, "it would go on for ever"
        if number == 0 and len(asked) > 1:
            raise DivergedError("training diverged.")
        return came_to(number, (0.828,), 0.819) if number == 0 else came_to(number, (0.832, 0.832), 0.823)

    candidates = (Candidate(0, 100, 0.84, 0.86), Candidate(1, 200, 0.83, 0.845))
    won, kept = confirmed_of(monkeypatch, measure, candidates, (0.8338, 0.8188), most=1)
    assert [one and one.trial for one in won] == [None, 1]
    assert (0, 0.8338) in [(one.trial, one.floor) for one in kept]


@pytest.mark.parametrize("turn", [0, 1], ids=["at first", "once more"])
def test_confirm_of_one_that_diverges_goes_on_with_the_others(monkeypatch, capsys, turn):
    def measure(number, earlier):
        if number == 0 and earlier == turn:
            raise DivergedError("training diverged.")
        return came_to(number, (0.841, 0.841) if number == 0 else (0.86, 0.86), 0.8325 if number == 0 else 0.85)

    candidates = (Candidate(0, 100, 0.84, 0.86), Candidate(1, 200, 0.84, 0.86))
    (won,), kept = confirmed_of(monkeypatch, measure, candidates, (0.8338,), most=3)
    assert won.trial == 1
    assert [(one.trial, one.turn) for one in kept] == [(0, 0), (1, 0)][1 - turn :]
    said = "confirm trial 000, once more" if turn else "confirm trial 000"
    assert f"{said} came to no result: training diverged." in capsys.readouterr().err


def test_search_among_whose_first_trials_none_is_promising_confirms_the_nearest(source, monkeypatch):
    monkeypatch.setattr(confirming, "next_candidate", lambda *_, **__: None)
    monkeypatch.setattr(
        contest, "expected", lambda tried, _: {one.number: (0.7, 0.9, 0.8, *[0.0] * 9)[one.number] for one in tried}
    )
    run_search(source, replace(REQUEST, trials=12, finetune_epochs=0.25, confirm_epochs=0.5, confirm_most=2))
    ordered = sorted((run for run in runs() if run.data.tags[tracking.STAGE] in ("trial", "confirm")), key=begun)
    assert [run.data.tags[tracking.STAGE] for run in ordered].index("confirm") == 4, "a third of twelve trials"
    (kept,) = optuna.load_study(study_name="small", storage=open_storage("")).user_attrs["attempts"]
    assert kept["trial"] == 1


@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_search_that_accepts_none_goes_on_with_what_the_nearest_has_become(source, monkeypatch, capsys, values):
    begun_with, whole = {}, longer.prune_candidate

    def strict(*arguments):
        found = longer.measure(*arguments)
        return replace(found, lower=float(len(arguments[-1]) > 0))  # at a first turn nothing is accepted

    def spy(*arguments, start, **options):
        begun_with[arguments[2].finetune.seed] = weights_digest(start)
        return whole(*arguments, start=start, **options)

    monkeypatch.setattr(confirming, "measure", strict)
    monkeypatch.setattr(longer, "prune_candidate", spy)
    request = replace(REQUEST, trials=2, values=values, max_drop=(70.0,))
    outcome = run_search(source, request)
    kept = optuna.load_study(study_name="small", storage=open_storage("")).user_attrs["attempts"]
    *failed, repeated = kept
    assert [one["turn"] for one in kept] == [0, 0, 1]
    assert repeated["seeds"] == [FRESH + 2, FRESH + 3]
    first = next(one for one in failed if one["trial"] == repeated["trial"])
    assert first["accuracy"] == max(one["accuracy"] for one in failed)
    file = FINETUNED_FILE if values != "fp32" else PACKED_FILE
    became = weights_digest(unpack(artifacts.read_artifact(first["run_id"], file)).model)
    assert begun_with[FRESH + 2] == begun_with[FRESH + 3] == became != begun_with[FRESH]
    won = outcome.floors[0].confirmed
    assert won.trial == repeated["trial"]
    assert won.lower >= outcome.floors[0].floor
    assert f"confirm {trial_name(won.trial)}, once more  {won.size_bytes:,} bytes" in capsys.readouterr().err
    rows = candidate_rows(Standing.of(find_study("small")))
    assert [row.name for row in rows if row.verdict == "confirmed"] == [f"{trial_name(won.trial)}, once more"]
    assert [len(row.accuracies) for row in rows] == [2, 2, 2]
    repeats = [row.start for row in rows if row.verdict == "confirmed"]
    assert repeats == [f"{trial_name(won.trial)}, finetuned longer"]
    before = {run.info.run_id for run in runs()}
    assert run_search(source, request) == outcome
    assert {run.info.run_id for run in runs()} == before


@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_search_trial_goes_on_with_its_starts_network_and_the_images_after_those_it_has_had(
    source, monkeypatch, values
):
    given, had = {}, {"dense": 0.0}
    whole = trials.prune_candidate

    def spy(*arguments, start, **options):
        given[len(given)] = (start, arguments[2].had)
        return whole(*arguments, start=start, **options)

    monkeypatch.setattr(trials, "prune_candidate", spy)
    outcome = run_search(source, replace(REQUEST, trials=8, values=values, max_drop=(30.0, 60.0)))
    kept = optuna.load_study(study_name="small", storage=open_storage("")).user_attrs["attempts"]
    network_of = {trial_name(int(run.data.tags[tracking.TRIAL])): run.info.run_id for run in runs("trial")}
    longer_ones = {f"{trial_name(one['trial'])}, finetuned longer": one for one in kept if not one["turn"]}
    network_of |= {name: one["run_id"] for name, one in longer_ones.items()}
    had |= {name: one["images_had"] for name, one in longer_ones.items()}
    assert all(one["images_had"] > one["trained"] for one in longer_ones.values() if one["lower"])
    starts = {int(run.data.tags[tracking.TRIAL]): run.data.tags[trials.START] for run in runs("trial")}
    assert any(name.endswith("finetuned longer") for name in starts.values())
    for number, start in sorted(starts.items()):
        network, epochs = given[number]
        assert epochs == had[start]
        had[trial_name(number)] = epochs + REQUEST.finetune_epochs
        if start == "dense":
            assert network is None
            continue
        file = FINETUNED_FILE if values != "fp32" else PACKED_FILE
        assert weights_digest(network) == weights_digest(unpack(artifacts.read_artifact(network_of[start], file)).model)
    assert outcome.done == 8


def test_search_confirmation_goes_on_from_the_network_with_least_left_to_recover(source, monkeypatch):
    begun_with, had, whole = [], [], longer.prune_candidate

    def spy(*arguments, start, **options):
        begun_with.append(weights_digest(start))
        had.append(arguments[2].had)
        return whole(*arguments, start=start, **options)

    monkeypatch.setattr(longer, "prune_candidate", spy)
    monkeypatch.setattr(starting, "nearest", functools.partial(starting.nearest, most=8))
    left = {"dense": 2.0, "a trial's": 1.0, "a confirmation's": 0.0}

    def look(_, start, __):
        kind = "dense" if start.number is None else "a confirmation's" if start.confirmed else "a trial's"
        return left[kind], 0.0

    monkeypatch.setattr(starting.Starts, "_look", look)
    run_search(source, replace(REQUEST, trials=8, max_drop=(30.0, 60.0)))
    tags = [run.data.tags for run in sorted(runs("confirm"), key=begun) if SEED in run.data.tags]
    became = [unpack(artifacts.read_artifact(one[START_RUN], PACKED_FILE)).model for one in tags]
    assert begun_with == list(map(weights_digest, became))
    before = [int(one[SEED]) % 2 * REQUEST.confirm_epochs for one in tags]
    due = [float(one[IMAGES_HAD]) + other for one, other in zip(tags, before, strict=True)]
    assert had == due, "the images, order and crops are not those of the start again, or of the other seed"
    assert any(one[trials.START].endswith("finetuned longer") for one in tags)
    kept = optuna.load_study(study_name="small", storage=open_storage("")).user_attrs["attempts"]
    trained = {(str(one["trial"]), str(one["turn"])): one["trained"] for one in kept}
    assert all(float(one[HAD]) + REQUEST.confirm_epochs == trained[one[tracking.TRIAL], one[TURN]] for one in tags)
    assert any(float(one[IMAGES_HAD]) > float(one[HAD]) for one in tags), "one goes on from an average"


def test_search_with_other_seeds_takes_no_finetuning_that_was_made_among_others(source, monkeypatch):
    made, whole = [], longer.prune_candidate

    def spy(*arguments, **options):
        made.append((arguments[2].finetune.seed, arguments[2].had))
        return whole(*arguments, **options)

    monkeypatch.setattr(longer, "prune_candidate", spy)
    monkeypatch.setattr(confirming, "recall", lambda *_: None)
    request = replace(REQUEST, trials=1, max_drop=(80.0,), confirm_epochs=1.0, confirm_most=1)
    for seed in (0, 1, 0):
        run_search(source, replace(request, seed=seed))
    # the second pair goes on from what the first has become, and after its images
    assert made == [(FRESH, 1.0), (FRESH + 1, 2.0), (FRESH + 1, 3.0), (FRESH + 2, 4.0)]
    assert [len(row.seeds) for row in candidate_rows(Standing.of(find_study("small")))] == [2, 2]


@pytest.mark.parametrize("change", [{"confirm_epochs": 1.0}, {"seed": 7}, {"confirm_seeds": 3}], ids=str)
def test_search_that_confirms_in_another_way_keeps_what_was_accepted_and_tries_smaller_ones_alone(
    source, searched, monkeypatch, change
):
    won = searched().floors[0].confirmed
    before = optuna.load_study(study_name="small", storage=open_storage("")).user_attrs["attempts"]
    monkeypatch.setattr(confirming, "measure", lambda *arguments: replace(longer.measure(*arguments), lower=0.0))
    changed = replace(REQUEST, trials=REQUEST.trials + 2, **change)
    assert run_search(source, changed).floors[0].confirmed == won
    kept = optuna.load_study(study_name="small", storage=open_storage("")).user_attrs["attempts"][len(before) :]
    sizes = {int(one.data.tags[tracking.TRIAL]): one.data.metrics["packed_bytes"] for one in runs("trial")}
    assert all(sizes[one["trial"]] < won.size_bytes for one in kept)
    rows = candidate_rows(Standing.of(find_study("small")))
    assert [row.seeds for row in rows if row.verdict == "confirmed"] == [(FRESH, FRESH + 1)]


def test_search_that_confirms_in_another_way_looks_anew_where_what_was_accepted_is_lost(source, searched):
    won = searched().floors[0].confirmed
    mlflow.delete_run(won.run_id)
    found = run_search(source, replace(REQUEST, confirm_epochs=1.0)).floors[0].confirmed
    assert found is not None
    assert found.run_id != won.run_id


def test_search_interrupted_between_a_candidates_seeds_goes_on_from_the_same_start(source, monkeypatch):
    whole, asked = longer.prune_candidate, []

    def interrupted(*arguments, **options):
        asked.append(arguments[2].finetune.seed)
        if asked[-1] == FRESH + 1:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    monkeypatch.setattr(longer, "prune_candidate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_search(source, REQUEST)
    monkeypatch.setattr(longer, "prune_candidate", whole)
    chosen = next(run.data.tags[START_RUN] for run in runs("confirm") if run.data.tags.get(SEED) == str(FRESH))
    monkeypatch.setattr(
        starting.Starts, "_look", lambda _, start, __: (start.had, 0.0)
    )  # the dense one is the best now
    run_search(source, REQUEST)
    first = [
        run for run in sorted(runs("confirm"), key=begun) if run.info.status == "FINISHED" and SEED in run.data.tags
    ]
    assert [run.data.tags[SEED] for run in first[:2]] == [str(FRESH), str(FRESH + 1)]
    assert [run.data.tags[START_RUN] for run in first[:2]] == [chosen, chosen]
    assert chosen


@pytest.mark.parametrize("values", ["fp32", "codebook:3"])
def test_search_confirmation_goes_on_from_the_trials_network_before_rounding(searched, values):
    outcome = searched(replace(REQUEST, values=values, trials=2, confirm_epochs=0.0, max_drop=(80.0,)))
    won = outcome.floors[0].confirmed
    (trial,) = (run for run in runs("trial") if run.data.tags[tracking.TRIAL] == str(won.trial))
    had, has = (
        unpack(artifacts.read_artifact(run_id, name)).model
        for run_id, name in [
            (trial.info.run_id, FINETUNED_FILE if values != "fp32" else PACKED_FILE),
            (won.run_id, PACKED_FILE),
        ]
    )
    if values == "fp32":  # nothing is trained any more: the same weights
        pairs = zip(prunable_weights(had).values(), prunable_weights(has).values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    else:
        assert max(len(w.unique()) for w in prunable_weights(has).values()) <= 9
        assert max(len(w.unique()) for w in prunable_weights(had).values()) > 9


def test_search_gone_on_with_repeats_no_trial_no_confirmation_and_no_scan(searched, source):
    first = searched()
    before = {run.info.run_id for run in runs()}
    again = run_search(source, REQUEST)
    assert {run.info.run_id for run in runs()} == before
    assert again == first
    run_search(source, replace(REQUEST, trials=6))
    assert len(runs("trial")) == 6
    assert len(runs("scan")) == len(runs("search")) == 1


def test_search_of_a_name_that_the_store_knows_from_another_study_takes_nothing_of_it(searched, source, store):
    searched()
    before = {run.info.run_id for run in runs()}
    (store / "optuna.journal").unlink()
    outcome = run_search(source, replace(REQUEST, seed=1))
    new = {run.info.run_id for run in runs()} - before
    assert {outcome.run_id, *outcome.floors[0].confirmed.run_ids} < new
    found = find_study("small")
    assert found.run.run_id == outcome.run_id
    assert {run.run_id for run in (*found.trials, *found.confirmations())} == new - {outcome.run_id}
    assert len(found.trials) == 5


def test_search_timeout_counts_from_the_beginning_of_the_session(searched):
    outcome = searched(replace(REQUEST, timeout=1e-6))
    assert outcome.done == 0
    assert len(runs("scan")) == 1


def test_search_floors_are_found_again_to_the_last_image(searched):
    outcome = searched(replace(REQUEST, max_drop=(100 / 3, 50.0), trials=1, confirm_seeds=0))
    assert find_study("small").floors == pytest.approx([one.floor for one in outcome.floors], abs=1e-12)


def test_accuracy_floors_of_drops_are_in_points_below_the_dense_network_the_highest_first():
    dense = Evaluation(loss=0.0, loss_se=0.0, accuracy=0.8, accuracy_se=0.0, count=5000)
    assert accuracy_floors(replace(REQUEST, max_drop=(2.0, 0.5)), dense) == pytest.approx((0.795, 0.78))


@pytest.mark.parametrize(
    ("option", "change"),
    [
        ("val_digest", {}),
        ("finetune_epochs", {"finetune_epochs": 0.5}),
        ("batch_size", {"batch_size": 8}),
        ("values", {"values": "fp16"}),
        ("objective", {"objective": "nonzero_bytes"}),
        ("max_drop", {"max_drop": (40.0,)}),
        ("max_drop", {"accuracy_floor": 50.0}),
    ],
)
def test_search_of_a_name_that_is_another_study_is_refused_by_what_differs(searched, source, option, change):
    searched(replace(REQUEST, trials=1, confirm_seeds=0))
    labels = source.dataset.val.labels.clone()
    if option == "val_digest":
        labels[0] = (labels[0] + 1) % len(source.dataset.classes)
    dataset = replace(source.dataset, val=replace(source.dataset.val, labels=labels))
    with pytest.raises(InputError, match=f"was made with {option}="):
        run_search(replace(source, dataset=dataset), replace(REQUEST, trials=1, confirm_seeds=0, **change))


def test_search_of_another_network_under_a_name_that_is_taken_is_refused(searched, source):
    searched(replace(REQUEST, trials=1, confirm_seeds=0))
    header = replace(source.header, dense_digest="0" * 64)
    with pytest.raises(InputError, match="was made with weights_digest="):
        run_search(replace(source, header=header), replace(REQUEST, trials=1, confirm_seeds=0))


def test_search_gone_on_with_is_repeated_as_it_was_asked_for_last(searched, source):
    searched(replace(REQUEST, trials=1, confirm_seeds=0))
    run_search(source, replace(REQUEST, trials=2, confirm_seeds=2, confirm_epochs=1.0))
    command = search_command(find_study("small"))
    assert "--confirm-seeds 2 " in f"{command} "
    assert "--confirm-epochs 1.0 " in f"{command} "
    assert "--trials 2 " in f"{command} "


def test_search_whose_trials_all_diverge_stops_after_some(source, monkeypatch, capsys):
    def diverge(*_, **__):
        raise DivergedError("loss is nan")

    monkeypatch.setattr(trials, "prune_candidate", diverge)
    outcome = run_search(source, REQUEST)
    assert outcome.done == 0
    assert capsys.readouterr().err.count("trials in a row came to no result") == 1


def test_search_whose_leader_gives_up_waits_for_the_others_trials_before_it_confirms(source, monkeypatch):
    def diverge(*_, **__):
        raise DivergedError("loss is nan")

    others, waited = [True], []

    def wait(until):
        if until():
            return
        waited.append(len(runs("trial")))
        others[0] = False
        assert until()

    monkeypatch.setattr(trials, "prune_candidate", diverge)
    monkeypatch.setattr(Crew, "has_others", property(lambda _: others[0]))
    monkeypatch.setattr(searching, "_wait", wait)
    assert run_search(source, REQUEST).done == 0
    assert waited == [FAILURES]


def test_trial_is_judged_by_whole_trials_that_began_as_it_did():
    def of(number, start, final, stopped=""):
        score = Score(size_bytes=1, accuracy=final, run_id="", checks={0.5: 0.1 * number}, start=start, stopped=stopped)
        return Tried(number, Point(density=0.1, offsets={}), score)

    seen = SimpleNamespace(tried=[of(0, None, 0.7), of(1, 0, 0.8), of(2, None, 0.6, "x"), of(3, 2, 0.9)])
    assert [curve.final for curve in trials.Trials.curves(DENSE, seen)] == [0.7]
    assert [curve.final for curve in trials.Trials.curves(Start(3, None), seen)] == [0.8, 0.9]


@pytest.mark.parametrize(("floors", "stops"), [((0.9, 0.7), False), ((0.9,), True)])
def test_trial_that_may_reach_the_lowest_floor_is_not_stopped(monkeypatch, floors, stops):
    monkeypatch.setattr(trials, "is_control", lambda *_: False)
    sitting = SimpleNamespace(
        curves=lambda *_: [LearningCurve(checks={0.5: 0.6}, final=0.8)], study=SimpleNamespace(floors=floors), seed=0
    )
    look = trials._Looks(sitting, 1, DENSE, None)
    half = Evaluation(loss=0.0, loss_se=0.0, accuracy=0.5, accuracy_se=0.0, count=1000)
    with pytest.raises(trials.StoppedEarlyError) if stops else nullcontext():
        look(0.5, half)
    assert bool(look.verdict) == stops


@pytest.mark.parametrize("images", [360, 5000])
def test_accuracy_floors_at_the_dense_networks_own_printed_accuracy_are_met_by_it(images):
    for right in range(images // 2, images):
        dense = Evaluation(loss=0.0, loss_se=0.0, accuracy=right / images, accuracy_se=0.0, count=images)
        given = replace(REQUEST, accuracy_floor=float(as_percent(dense.accuracy)))
        assert accuracy_floors(given, dense) == pytest.approx((dense.accuracy,), abs=1e-11)


def test_find_study_after_one_that_was_interrupted_at_once_is_the_one_before(searched):
    searched()
    tags = {tracking.STUDY: "later"}
    with pytest.raises(KeyboardInterrupt), tracking.tracked_run("search", "study later", {}, tags=tags):
        raise KeyboardInterrupt
    assert find_study("").run.tags[tracking.STUDY] == "small"


def test_candidate_rows_of_sessions_with_other_seeds_are_apart(source):
    run_search(source, replace(REQUEST, trials=1))
    run_search(source, replace(REQUEST, trials=1, confirm_seeds=3))
    rows = candidate_rows(Standing.of(find_study("small")))
    assert sorted(row.seeds for row in rows) == [SEEDS, (*SEEDS, FRESH + 2)]
    assert len({row.size_bytes for row in rows}) == 2, "each has its own average"


class Shy:
    """A study whose session takes itself for the leader until another one shows itself."""

    def __init__(self, seen_late):
        self.run_id, self.crew, self.asked, self.seen_late = None, self, 0, seen_late

    @property
    def leads(self):
        self.asked += 1
        if self.asked > 3:
            self.run_id = "the other's"
        return self.asked == 1 or not self.seen_late


@pytest.mark.parametrize(
    ("shared", "seen_late", "run_id"),
    [(True, True, "the other's"), (True, False, None), (False, True, None)],
    ids=["two began at once", "alone", "on this machine only"],
)
def test_session_of_a_shared_study_looks_again_before_it_opens_the_run(monkeypatch, shared, seen_late, run_id):
    monkeypatch.setattr(searching, "WAIT_SECONDS", 0.0)
    study = Shy(seen_late)
    searching._wait_for_run(study, shared=shared)
    assert study.run_id == run_id


def test_search_time_left_goes_by_the_trials_since_the_last_confirmation(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 20.0, 120.0, 130.0])
    monkeypatch.setattr(trials.time, "monotonic", lambda: next(clock))
    limits = Limits(trials=10, begun=0.0)
    study = SimpleNamespace(floors=(0.5,))
    starts = SimpleNamespace(source=None, study=study, config=None)
    sitting = trials.Trials(starts, "packed_bytes", 0)
    score = Score(size_bytes=100, accuracy=0.4, run_id="r")

    def told(done):
        sitting.reporter(limits)(SimpleNamespace(done=done, best=lambda _: None, epochs=0.0), score)
        return capsys.readouterr().err.split("about ")[1].strip()

    assert told(1) == "90 s of trials left"
    assert told(2) == "80 s of trials left"
    sitting.resume()  # a confirmation has taken 100 s
    assert told(3) == "70 s of trials left"


def test_search_floor_that_no_bound_can_meet_is_told_of_and_ends_in_an_honest_none(source, capsys):
    # made here: a copy of what another test has made says nothing
    outcome = run_search(source, replace(REQUEST, max_drop=(0.0,), trials=2, finetune_epochs=0.0, confirm_epochs=0.0))
    said = capsys.readouterr().err
    dense = find_study("small").run.metrics["dense_val_accuracy"]
    assert said.count(f"floor {percent(dense)}: ") == 1
    assert "; one as good passes with --max-drop " in said
    (floor,) = outcome.floors
    assert floor.confirmed is None
    assert "confirmed  none" in closing(outcome)
    assert "next:" not in closing(outcome)


@pytest.mark.parametrize(
    ("floor", "accuracy", "images", "text"),
    [
        (0.8188, 0.8388, 5000, ""),
        (0.8338, 0.8388, 5000, "floor 83.38 %: 5,000 validation images confirm a network from 84.25 % on"),
        (0.995, 1.0, 359, "floor 99.50 %: 359 validation images confirm no network, not even one without"),
    ],
)
def test_floor_that_the_dense_network_would_not_be_confirmed_at_says_which_drop_it_would(floor, accuracy, images, text):
    dense = Evaluation(loss=0.5, loss_se=0.1, accuracy=accuracy, accuracy_se=0.01, count=images)
    found = asks_for_more(floor, dense)
    assert found.startswith(text)
    assert bool(found) == bool(text)
    if found:
        drop = float(found.rsplit(" ", 1)[1]) / 100
        assert not asks_for_more(accuracy - drop, dense)
        assert asks_for_more(accuracy - drop + 2e-4, dense)


def test_asks_for_more_of_images_that_are_too_few_for_any_drop_names_none():
    dense = Evaluation(loss=0.1, loss_se=0.0, accuracy=1.0, accuracy_se=0.0, count=2)
    assert asks_for_more(0.995, dense).endswith("so few images confirm nothing at all")


def test_search_several_floors_share_trials_and_confirm_one_winner_each(searched):
    outcome = searched(replace(REQUEST, max_drop=(30.0, 60.0)))
    assert [one.floor for one in outcome.floors] == sorted((one.floor for one in outcome.floors), reverse=True)
    assert len(runs("trial")) == 5
    strict, loose = (one.confirmed for one in outcome.floors)
    assert loose.size_bytes <= strict.size_bytes
    assert all(one.confirmed.lower >= one.floor for one in outcome.floors)
    registered = run_register("small", "", DATA)
    aliases = [alias for version in registered.versions for alias in version.aliases]
    assert "champion" in registered.versions[0].aliases
    assert len(aliases) == 3
    for alias in aliases:
        assert f"@{alias})" in registered_lines(registered)
        assert mlflow.MlflowClient().get_model_version_by_alias(registered.name, alias)


def test_search_leaves_kept_layers_whole_and_others_within_their_limits(source):
    bounds = find_bounds(source.model, "conv1,classifier.4", "res2.*=0.6")
    asked = SourceRequest(keep="conv1,classifier.4", limit="res2.*=0.6")
    held = replace(source, bounds=bounds, asked=asked)
    run_search(held, replace(REQUEST, values="codebook:3", trials=4, confirm_seeds=0))
    (study,) = runs("search")
    assert study.data.params["search.keep"] == asked.keep
    assert study.data.params["search.limit"] == asked.limit
    finished = [run for run in runs("trial") if "val_accuracy" in run.data.metrics]
    assert finished
    for run in finished:
        named = {name: float(value) for name, value in run.data.params.items() if "sparsity/" in name}
        found = {name.removeprefix("trial.sparsity/"): value for name, value in named.items()}
        assert found.keys() == bounds.sizes.keys()
        assert all(found[name] <= most for name, most in bounds.limits.items())
        measured = measured_sparsity(unpack(artifacts.read_artifact(run.info.run_id, PACKED_FILE)).model)
        assert measured["conv1.0.weight"] == measured["classifier.4.weight"] == 0
        assert all(measured[name] <= most + 1e-6 for name, most in bounds.limits.items())
    assert "--keep conv1,classifier.4" in search_command(find_study("small"))
    assert "--limit 'res2.*=0.6'" in search_command(find_study("small"))


def test_search_of_one_study_with_other_layers_kept_is_refused(searched, source):
    searched(replace(REQUEST, trials=1, confirm_seeds=0))
    kept = replace(source, bounds=find_bounds(source.model, "conv1"))
    with pytest.raises(InputError, match=r"study small was made with kept=None, not \['conv1\.0\.weight'\]"):
        run_search(kept, replace(REQUEST, trials=2))


def test_study_name_is_another_one_for_other_bounds_and_says_nothing_of_none(source):
    texts = [("", ""), ("conv1", ""), ("", "conv1=0.5"), ("", "conv1=0.25")]
    held = [replace(source, bounds=find_bounds(source.model, *text)) for text in texts]
    names = [study_name(one, REQUEST) for one in held]
    assert len(set(names)) == 4
    assert names[0] == study_name(source, REQUEST)
    assert all("-within" in name for name in names[1:])


def test_search_without_confirmation_is_not_registered(searched):
    searched(replace(REQUEST, confirm_seeds=0, trials=2))
    with pytest.raises(InputError, match="not confirmed"):
        run_register("small", "", DATA)
    assert runs("register") == []


def test_search_budget_in_epochs_ends_the_trials(searched):
    outcome = searched(replace(REQUEST, trials=50, finetune_epochs=0.5, epochs=1.6, confirm_epochs=0.5))
    assert outcome.done == 3
    assert [run.data.metrics["finetune_epochs"] for run in runs("trial")] == [0.5] * 3


def test_search_minimises_the_documents_count_if_it_is_told_to(searched):
    outcome = searched(replace(REQUEST, objective="nonzero_bytes", trials=3))
    sizes = sorted(run.data.metrics["nonzero_bytes"] for run in runs("trial") if run.data.tags["feasible"] == "true")
    assert outcome.floors[0].best.score.size_bytes == sizes[0]


@pytest.fixture
def hopeless_below(monkeypatch):
    """Let every trial after the first look like one that ended far below the floor."""

    def arrange(*, control):
        monkeypatch.setattr(trials, "is_control", lambda *_: control)
        curves = [LearningCurve(checks={0.5: 1.1}, final=0.01)]
        monkeypatch.setattr(trials.Trials, "curves", lambda *_: curves)

    return arrange


def test_search_trial_that_cannot_reach_the_floor_stops_and_says_why(source, hopeless_below):
    hopeless_below(control=False)
    outcome = run_search(source, replace(REQUEST, trials=2))
    for run in runs("trial"):
        assert run.info.status == "FINISHED"
        assert "at 50 % of its finetuning" in run.data.tags["stopped_early"]
        assert run.data.tags["feasible"] == "false"
        assert run.data.metrics["finetune_epochs"] == 0.5
        assert run.data.metrics["packed_bytes"] > 0
        assert "val_accuracy" not in run.data.metrics
    assert outcome.done == 2
    assert outcome.floors[0].best is None
    assert "no trial meets it yet" in closing(outcome)
    assert runs("confirm") == []
    with pytest.raises(InputError, match="with 95 % confidence"):
        run_register("small", "", DATA)


def test_search_stopped_trial_has_the_size_of_a_file_with_the_studys_values(source, hopeless_below):
    hopeless_below(control=False)
    sizes = {}
    for values in ("fp32", "codebook:2"):
        run_search(source, replace(REQUEST, trials=1, values=values, study_name=values.replace(":", "")))
        sizes[values] = runs("trial")[-1].data.metrics["packed_bytes"]
    assert sizes["codebook:2"] < 0.9 * sizes["fp32"]


def test_search_control_is_noted_and_runs_to_its_end(source, hopeless_below):
    hopeless_below(control=True)
    run_search(source, replace(REQUEST, trials=2, confirm_seeds=0))
    for run in runs("trial"):
        assert "at 50 % of its finetuning" in run.data.tags["control"]
        assert run.data.tags["stopped_early"] == "no"
        assert "val_accuracy" in run.data.metrics


def test_register_twice_reads_test_once_and_stays_one_version(searched, monkeypatch):
    searched()
    first = run_register("small", "", DATA)
    assert not first.versions[0].already

    def refuse(*_):
        pytest.fail("the data was opened again")

    monkeypatch.setattr("sweeps.stages.studies.open_data", refuse)
    again = run_register("small", "", DATA)
    assert again.versions[0].already
    assert again.versions[0].number == first.versions[0].number
    assert again.dense == first.dense
    assert summary_table(again) == summary_table(first)
    assert len(mlflow.MlflowClient().search_model_versions(f"name = '{first.name}'")) == 1
    assert len(runs("register")) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "another"}, "tiny is not the data of study small: its training images are others"),
        ({"val": "another", "classes": ("a", "b")}, "its validation images are others. Put back what was added"),
    ],
    ids=["split", "classes"],
)
def test_register_with_other_data_than_the_studys_is_refused_before_test_is_read(
    searched, source, monkeypatch, changes, message
):
    searched()
    changes = {part: value if part == "classes" else source.dataset.test for part, value in changes.items()}
    other = replace(source.dataset, **changes, test=None)
    monkeypatch.setattr("sweeps.stages.studies.open_data", lambda _: (other, None))
    with pytest.raises(InputError, match=message):
        run_register("small", "", DATA)
    assert runs("register") == []


def test_register_with_another_image_size_than_the_studys_is_refused_before_the_data_are_opened(searched, monkeypatch):
    searched()
    monkeypatch.setattr("sweeps.stages.studies.open_data", lambda _: pytest.fail("the data was opened"))
    with pytest.raises(InputError, match="study small is of images of 32×32, not 64: leave image_size at auto"):
        run_register("small", "", replace(DATA, image_size=64))
    assert runs("register") == []


def test_register_measures_dense_and_pruned_network_on_val_and_on_test(searched, source):
    searched()
    outcome, study = run_register("small", "", DATA), find_study("small")
    rows = summary_table(outcome).splitlines()[-2:]
    dense = artifacts.read_artifact(study.run.run_id, trials.DENSE_FILE)
    pruned = artifacts.read_artifact(study.winners()[0].run.run_id, PACKED_FILE)
    measured = (outcome.dense, outcome.versions[0].measured)
    for found, file, row in zip(measured, (dense, pruned), rows, strict=True):
        network = unpack(file).model
        val, test = (evaluate(network, split, source.dataset) for split in (source.dataset.val, source.dataset.test))
        assert val.accuracy != test.accuracy
        assert (found.val_accuracy, found.val_accuracy_se) == (val.accuracy, val.accuracy_se)
        assert (found.test_accuracy, found.test_accuracy_se) == (test.accuracy, test.accuracy_se)
        assert found.test_loss == test.loss
        assert (found.packed_bytes, found.nonzero_bytes) == (len(file), measure_size(network).nonzero_bytes)
        cells = [percent(one.accuracy, one.accuracy_se) for one in (val, test)]
        cells += [count(found.nonzero_bytes), count(len(file))]
        places = [row.index(cell) for cell in cells]
        assert places == sorted(places)


def test_register_of_a_network_that_was_registered_without_a_comparison_says_what_to_do(searched, monkeypatch):
    searched()
    registered = run_register("small", "", DATA)
    find_run = tracking.find_run

    def earlier(run_id):
        run = find_run(run_id)
        return replace(run, metrics={key: value for key, value in run.metrics.items() if key != CHANGE})

    monkeypatch.setattr(tracking, "find_run", earlier)
    with pytest.raises(InputError, match="delete its registered model and the run that registered it"):
        run_register("small", "", DATA)
    monkeypatch.undo()
    assert run_register("small", "", DATA).versions[0].number == registered.versions[0].number


def test_register_compares_dense_and_pruned_network_on_test_image_by_image(searched, monkeypatch):
    searched()

    def losses(model, split, _):
        right = torch.ones(len(split), dtype=torch.bool)
        right[slice(5) if measure_size(model).sparsity > 0.1 else slice(3, 6)] = False
        return torch.ones(len(split)), right

    monkeypatch.setattr(registering, "image_losses", losses)
    outcome = run_register("small", "", DATA)
    change = paired_change(1, 3, 24)  # images 5; and 0, 1 and 2
    assert outcome.versions[0].change == change
    assert logged_change(runs("register")[0].data.metrics) == change
    dense, pruned = summary_table(outcome).splitlines()[-2:]
    assert "-8.33 ± 8.16 points" in pruned
    assert "points" not in dense
    assert run_register("small", "", DATA).versions[0].change == change


def test_register_logs_the_accuracy_of_the_file_that_is_loaded(searched, source):
    searched()
    outcome = run_register("small", "", DATA)
    module = mlflow.pyfunc.load_model(outcome.uri).get_raw_model()
    found = evaluate(module, source.dataset.test, source.dataset)
    assert outcome.versions[0].measured.test_accuracy == found.accuracy
    assert runs("register")[0].data.metrics["test_accuracy"] == found.accuracy
    assert find_study("small").winners()[0].run.run_id == runs("register")[0].data.params["register.trial_run_id"]


@pytest.mark.parametrize("lost", ["store", "run"])
def test_search_whose_study_was_made_in_another_store_or_whose_run_was_deleted_says_so(source, fresh_database, lost):
    run_search(source, replace(REQUEST, trials=1, confirm_seeds=0))
    (study,) = runs("search")
    if lost == "store":
        mlflow.set_tracking_uri("sqlite:///other.db")
        shutil.copy(fresh_database, "other.db")
        open_store()
    else:
        mlflow.delete_run(study.info.run_id)
    with pytest.raises(InputError, match=r"the run of study small is not in the MLflow store .*MLFLOW_TRACKING_URI"):
        run_search(source, replace(REQUEST, trials=2, confirm_seeds=0))


@pytest.mark.parametrize(("accuracy", "asks"), [(0.39, True), (0.41, False)])
def test_search_from_a_dense_network_that_guesses_asks_about_its_images(source, monkeypatch, capsys, accuracy, asks):
    dense = Evaluation(loss=1.0, loss_se=0.0, accuracy=accuracy, accuracy_se=0.0, count=24)
    monkeypatch.setattr(searching, "evaluate", lambda *_: dense)
    run_search(source, replace(REQUEST, trials=1, confirm_seeds=0))
    assert ("hardly more than by guessing: does it take images of this mean" in capsys.readouterr().err) == asks


def test_find_study_with_double_quotes_is_refused_in_a_sentence(store):
    with pytest.raises(InputError, match="no study has a name with double quotes"):
        find_study('a"b')


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_drop": (-1.0,)}, "max_drop is -1"),
        ({"finetune_epochs": -1.0}, "finetune_epochs is -1"),
        ({"sampler": "nsga"}, "gp, tpe, random"),
        ({"epochs": 0.0}, "epochs is 0.0"),
        ({"epochs": 0.5}, "enough for one trial of 1"),
        ({"confirm_epochs": float("inf")}, "confirm_epochs is inf"),
        ({"study_name": 'a "small" one'}, "without double quotes"),
        ({"seed": -1}, "seed is -1; it must be from 0"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"confirm_seeds": 1}, "0, or at least 2"),
        ({"confirm_most": 0}, "confirm_most is 0"),
        ({"batch_size": 1}, "batch_size is 1; it must be at least 2"),
        ({"timeout": -1.0}, "timeout is -1"),
    ],
)
def test_search_request_out_of_range_names_the_option(changes, message):
    with pytest.raises(InputError, match=message):
        SearchRequest(**changes)
