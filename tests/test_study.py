"""The study: the smallest that keeps a floor, however often it is stopped and gone on with."""

import itertools
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from netprune.confirmation import image_margin
from netprune.errors import DivergedError, InputError
from netprune.search_space import REACH, Point, Space
from netprune.starts import nearest
from sweeps.limits import Limits, Spent
from sweeps.points import DENSITY, OFFSET, parameters, whole
from sweeps.proposing import LESS, REGION, SAMPLERS, UNTRAINED, Aims, Proposer, Turn, ask, expected
from sweeps.scores import Attempt, Score, Tried, lineage
from sweeps.storage import JOURNAL
from sweeps.study import FAILURES, SparsityStudy

LAYERS = {"a": 1_000, "b": 9_000}
PATH = ((0.01, {"a": 0.9, "b": 0.999}), (0.1, {"a": 0.5, "b": 0.9444}), (0.6, {"a": 0.1, "b": 0.4333}))
CONSTANTS = {"floor": 0.8, "epochs": 1, "digest": "abc"}
ZERO = dict.fromkeys(LAYERS, 0.0)
STARTS = [Point(density=d, offsets=ZERO) for d in (0.4, 0.3, 0.2, 0.15, 0.12, 0.1)]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_study(*floors, name="study", storage="", constants=CONSTANTS):
    study = SparsityStudy(name, LAYERS, floors or (0.8,), storage=storage, constants=constants)
    if not study.path:
        study.path = PATH
    return study


def ignore(*_):
    pass


def another(turn):
    """Some point, never the same twice."""
    return Point(density=0.5 * 0.97**turn.number, offsets=ZERO)


def sampled(study, sampler="tpe", seed=0, begin=STARTS[:1]):
    """Some points to begin with, and then the sampler, which looks for the study's floors in turn."""

    def propose(turn):
        if turn.number < len(begin):
            return begin[turn.number]
        floor = study.floors[turn.number % len(study.floors)]
        return ask(SAMPLERS[sampler](seed + turn.number), study.space, floor, UNTRAINED, turn.tried, turn.running)

    return propose


def proposer(study, *, confirm_epochs=None, others=lambda _: [], epochs=0.0):
    """What a search proposes."""
    aims = Aims(images=5000, epochs=epochs, confirm_epochs=confirm_epochs)
    return Proposer(study.space, study.floors, aims, others, sampler="tpe", seed=0)


def score(size, accuracy, number=0, **more):
    return Score(size_bytes=size, accuracy=accuracy, run_id=f"run{number}", **more)


def cheap(number, sparsity, record, _seen):
    """Bytes fall with sparsity, and so does accuracy, the faster the further layer a is from half of its weights."""
    kept = sum(n * (1 - sparsity[layer]) for layer, n in LAYERS.items()) / sum(LAYERS.values())
    accuracy = 0.9 - 0.01 / kept - 0.03 * math.log((1 - sparsity["a"]) / 0.5) ** 2
    found = score(round(1e6 * kept), max(0.1, accuracy), number)
    record(found)
    return found


class Listed:
    """Evaluates to the given outcomes in turn: (bytes, accuracy), a score, or an exception, which is raised."""

    def __init__(self, *outcomes):
        self.outcomes, self.asked = list(outcomes), []

    def __call__(self, number, sparsity, record, _seen):
        self.asked.append(sparsity)
        outcome = self.outcomes[len(self.asked) - 1]
        if isinstance(outcome, BaseException):
            raise outcome
        found = outcome if isinstance(outcome, Score) else score(*outcome, number)
        record(found)
        return found


def run(study, evaluate, trials, propose=another, on_trial=ignore, **limits):
    study.run(evaluate, Limits(trials=trials, **limits), propose, on_trial)


def trials(name="study"):
    """What the journal holds, read anew."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(JOURNAL))
    return optuna.load_study(study_name=name, storage=storage).trials


def best(study, floor=0.8):
    found = study.look().best(floor)
    return found and (found.score.size_bytes, found.score.accuracy)


def points(study):
    return {(one.point.density, *one.point.offsets.values()) for one in study.look().tried}


def test_study_best_is_the_smallest_feasible_trial():
    study = make_study()
    run(study, Listed((500, 0.9), (100, 0.79), (300, 0.81), (400, 0.95), (1, 0.0)), 5)
    assert best(study) == (300, 0.81)
    assert [one.score.size_bytes for one in study.look().feasible(0.8)] == [300, 400, 500]
    assert best(study, 0.92) == (400, 0.95)


def test_study_without_a_feasible_trial_has_no_best():
    study = make_study()
    assert study.look().best(0.8) is None
    run(study, Listed((500, 0.7), (100, 0.79999)), 2)
    assert study.look().done == 2
    assert study.look().best(0.8) is None


def test_study_of_equal_sizes_takes_the_more_accurate():
    study = make_study()
    run(study, Listed((300, 0.81), (300, 0.85), (300, 0.83)), 3)
    assert best(study) == (300, 0.85)


@pytest.mark.parametrize(
    ("accuracy", "feasible"), [(0.8388 - 0.03, True), (0.8088, True), (0.80880001, True), (0.80879, False)]
)
def test_study_floor_is_met_to_the_last_bit_and_no_further(accuracy, feasible):
    study = make_study(0.8088)
    run(study, Listed((100, accuracy)), 1)
    assert (study.look().best(0.8088) is not None) == feasible
    (trial,) = trials()
    assert (trial.constraints["accuracy_floor"] <= 0) == feasible


def test_study_trial_that_stopped_early_is_never_feasible():
    study = make_study()
    run(study, Listed((500, 0.9), score(100, 0.95, 1, stopped="why", checks={0.0: 0.2}), (400, 0.85)), 3)
    assert best(study) == (400, 0.85)
    assert study.look().done == 3
    assert [trial.constraints["accuracy_floor"] <= 0 for trial in trials()] == [True, False, True]
    assert study._study.best_trial.value == 400


@pytest.mark.parametrize(("sampler", "count"), [("gp", 18), ("tpe", 40)])
def test_study_sampler_finds_smaller_networks_than_the_path_and_heeds_the_floor(sampler, count):
    study = make_study()
    run(study, cheap, count, sampled(study, sampler, begin=STARTS))
    on_path = [one.score for one in study.look().tried if not any(one.point.offsets.values())]
    assert len(on_path) == len(STARTS)
    least = min(found.size_bytes for found in on_path if found.meets(0.8))
    assert study.look().best(0.8).score.size_bytes < least
    near = [one for one in study.look().tried[len(STARTS) :] if abs(one.score.accuracy - 0.8) < 0.1]
    assert len(near) > (count - len(STARTS)) / 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_study_points_lie_within_the_space_and_differ(sampler):
    study, calls = make_study(), Listed(*[(100, 0.9)] * 8)
    run(study, calls, 8, sampled(study, sampler))
    for one, sparsity in zip(study.look().tried, calls.asked, strict=True):
        assert 0.01 <= one.point.density <= 0.6
        assert all(abs(value) <= REACH for value in one.point.offsets.values())
        assert sparsity == study.space.at(one.point)
    assert len(points(study)) == 8


def test_study_proposals_are_told_what_was_tried_and_what_is_spent():
    wanted = [Point(density=0.1, offsets=ZERO), Point(density=0.05, offsets={"a": 0.5, "b": -0.1})]
    told = []

    def propose(turn):
        told.append(([one.score.size_bytes for one in turn.tried], turn.number, turn.spent, turn.pending))
        return wanted[len(turn.tried)]

    study = make_study()
    run(study, Listed((500, 0.9), (400, 0.9)), 2, propose)
    assert [one.point for one in study.look().tried] == wanted
    assert told == [([], 0, 0.0, 0), ([500], 1, 0.5, 0)]


def test_study_several_floors_share_trials_and_are_looked_for_in_turn():
    study = make_study(0.7, 0.86, 0.8)
    assert study.floors == (0.86, 0.8, 0.7)
    run(study, cheap, 21, sampled(study, "gp", begin=STARTS))
    sizes = [study.look().best(floor).score.size_bytes for floor in study.floors]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    late = study.look().tried[len(STARTS) :]
    near = [min(study.floors, key=lambda floor: abs(one.score.accuracy - floor)) for one in late]
    assert all(near.count(floor) > 1 for floor in study.floors)


def test_study_constraint_in_the_store_is_of_the_lowest_floor():
    study = make_study(0.9, 0.5)
    run(study, Listed((100, 0.7)), 1)
    assert trials()[0].constraints["accuracy_floor"] == pytest.approx(-0.2)


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_ask_knows_of_trials_that_run_elsewhere(sampler):
    study = make_study()
    run(study, Listed(*[(500, 0.9)] * 6), 6)
    running = []
    for seed in range(16):
        running.append(ask(SAMPLERS[sampler](seed), study.space, 0.8, UNTRAINED, study.look().tried, running))
    assert len({tuple(parameters(point).values()) for point in running}) == 16


def test_ask_that_is_given_a_known_point_again_takes_another():
    study = make_study()
    run(study, Listed((500, 0.9)), 1)
    first, again = (ask(SAMPLERS["random"](0), study.space, 0.8, UNTRAINED, study.look().tried, []) for _ in range(2))
    assert first == again
    other = ask(SAMPLERS["random"](0), study.space, 0.8, UNTRAINED, study.look().tried, [first])
    assert other.offsets != first.offsets
    assert other.density == first.density


def test_ask_tells_the_sampler_of_what_runs_near_by(monkeypatch):
    states, add = {}, optuna.Study.add_trial
    monkeypatch.setattr(
        optuna.Study, "add_trial", lambda self, t: (states.update({t.params[f"{OFFSET}a"]: t.state}), add(self, t))
    )
    near, far = (Point(density=0.2, offsets={**ZERO, "a": value}) for value in (0.1, 1.0))
    ask(SAMPLERS["tpe"](0), make_study().space, 0.8, 1.0, [tried(0, 0.2, 0.8)], [near, far])
    assert states == {0.0: TrialState.COMPLETE, 0.1: TrialState.RUNNING}


def test_study_run_tells_of_trials_that_run_elsewhere():
    study, told = make_study(), []
    run(study, Listed((500, 0.9)), 1)
    study._study.enqueue_trial(parameters(Point(density=0.2, offsets=ZERO)))
    other = study._study.ask()
    for name, d in whole(study.space).items():
        other.suggest_float(name, d.low, d.high, log=d.log)

    def spy(turn):
        told.append(list(turn.running))
        return Point(density=0.1, offsets=ZERO)

    run(study, Listed((400, 0.9)), 3, spy)
    assert told == [[Point(density=0.2, offsets=ZERO)]]


def test_study_point_that_another_worker_is_at_is_proposed_anew():
    same, study = Point(density=0.2, offsets=ZERO), make_study()
    study._study.enqueue_trial(parameters(same))
    other, pending = study._study.ask(), []

    def propose(turn):
        pending.append(turn.pending)
        if len(pending) > 1:
            return Point(density=0.1, offsets=ZERO)
        for name, d in whole(study.space).items():  # the other comes to its point in the meantime
            other.suggest_float(name, d.low, d.high, log=d.log)
        return same

    run(study, Listed((400, 0.9)), 2, propose)
    assert pending == [1, 0]
    assert [one.point.density for one in study.look().tried] == [0.1]
    assert [trial.state for trial in trials()] == [TrialState.RUNNING, TrialState.FAIL, TrialState.COMPLETE]


def test_study_gone_on_with_keeps_its_trials_its_path_and_the_total_budget():
    first = make_study()
    run(first, Listed((500, 0.9), (400, 0.9), (450, 0.9)), 3)
    second, calls = make_study(), Listed(*[(600, 0.9)] * 9)
    assert second.look().done == 3
    assert second.path == PATH
    assert best(second) == (400, 0.9)
    run(second, calls, 5)
    assert len(calls.asked) == 2
    assert second.look().done == 5
    assert [trial.number for trial in trials()] == [0, 1, 2, 3, 4]
    run(second, calls, 5)
    run(make_study(), calls, 4)
    assert len(calls.asked) == 2


def test_study_scores_come_back_whole():
    kept = score(500, 0.9, 7, checks={0.0: 0.5, 0.25: 0.75}, stopped="", overruled="it was a control", epochs=0.25)
    run(make_study(), Listed(kept), 1)
    assert make_study().look().tried[0].score == kept


def test_study_gone_on_with_does_not_repeat_its_proposals():
    run(make_study(), Listed(*[(500, 0.9)] * 4), 4)
    run(make_study(), Listed(*[(500, 0.9)] * 4), 8)
    assert len(points(make_study())) == 8


def test_study_whose_trials_all_fail_stops_after_some_and_does_not_propose_the_same_again():
    asked = []
    for _ in range(2):
        calls = Listed(*[DivergedError("loss is nan")] * FAILURES)
        run(make_study(), calls, 30)
        asked += calls.asked
    assert len({tuple(sorted(s.items())) for s in asked}) == 2 * FAILURES


def test_study_same_seed_proposes_the_same_and_other_seed_another():
    asked = {}
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        study, calls = make_study(name=name), Listed(*[(500, 0.9)] * 4)
        run(study, calls, 4, sampled(study, seed=seed))
        asked[name] = calls.asked
    assert asked["one"] == asked["two"] != asked["three"]


def test_study_of_another_name_is_another_study():
    run(make_study(), Listed((500, 0.9)), 1)
    other = make_study(name="other", constants={"floor": 0.1})
    assert other.look().done == 0
    assert other.look().best(0.1) is None


@pytest.mark.parametrize("changed", [{"epochs": 2}, {"digest": "xyz"}, {"floor": 0.81}])
def test_study_gone_on_with_other_constants_is_refused_by_name(changed):
    run(make_study(), Listed((500, 0.9)), 1)
    ((name, value),) = changed.items()
    with pytest.raises(InputError, match=rf"{name}={CONSTANTS[name]}, not {value}.*study_name"):
        make_study(constants={**CONSTANTS, **changed})
    assert make_study().look().done == 1


@pytest.mark.parametrize("constants", [{**CONSTANTS, "new": 1}, {"floor": 0.8, "epochs": 1}], ids=["added", "dropped"])
def test_study_gone_on_with_more_or_fewer_constants_is_refused_by_name(constants):
    make_study()
    with pytest.raises(InputError, match=r"new=|digest="):
        make_study(constants=constants)


def test_study_file_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / JOURNAL).mkdir()
    with pytest.raises(InputError, match=JOURNAL):
        make_study()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DivergedError("loss is nan")])
def test_study_trial_without_a_score_is_failed_and_never_best(error):
    study, calls = make_study(), Listed((500, 0.9), error, (400, 0.9), (450, 0.9))
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            run(study, calls, 4)
        study = make_study()
    run(study, calls, 3)
    states = [trial.state for trial in trials()]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert TrialState.RUNNING not in states
    assert best(study) == (400, 0.9)
    assert study.look().done == states.count(TrialState.COMPLETE)


def test_study_interrupted_while_a_result_is_told_has_it():
    def interrupt(*_):
        raise KeyboardInterrupt

    study = make_study()
    with pytest.raises(KeyboardInterrupt):
        run(study, Listed((500, 0.9)), 1, on_trial=interrupt)
    assert [trial.state for trial in trials()] == [TrialState.COMPLETE]
    assert best(study) == (500, 0.9)


def test_study_interrupted_before_a_result_is_told_leaves_it_to_the_next_session(monkeypatch):
    study = make_study()
    tell, told = study._study.tell, []

    def interrupted_once(*arguments, **options):
        told.append(arguments)
        if len(told) == 1:
            raise KeyboardInterrupt
        tell(*arguments, **options)

    with study.crew.at_work():
        monkeypatch.setattr(study._study, "tell", interrupted_once)
        with pytest.raises(KeyboardInterrupt):
            run(study, Listed((500, 0.9)), 1)
    later = make_study()
    later.run(Listed(), Limits(trials=1), another, ignore, settle=lambda number: number == 0)
    assert [trial.state for trial in trials()] == [TrialState.COMPLETE]
    assert best(later) == (500, 0.9)


def test_study_point_that_diverged_is_not_proposed_again():
    study, calls = make_study(), Listed(DivergedError("loss is nan"), DivergedError("loss is nan"), (500, 0.9))
    run(study, calls, 1, proposer(study))
    assert study.look().done == 1
    assert len({tuple(sparsity.values()) for sparsity in calls.asked}) == 3


def test_study_worker_stops_after_trials_in_a_row_that_diverged_and_says_so(capsys):
    calls = Listed(*[DivergedError("loss is nan")] * FAILURES)
    assert make_study().run(calls, Limits(trials=30), another, ignore) is False
    assert make_study().run(Listed((500, 0.9)), Limits(trials=1), another, ignore) is True
    assert len(calls.asked) == FAILURES
    assert "10 trials in a row came to no result" in capsys.readouterr().err


def test_study_epochs_are_not_exceeded_by_workers_that_look_at_the_same_moment(monkeypatch):
    study, other, calls = make_study(), make_study(), Listed()
    begin = study._study.ask

    def a_moment_later():
        other._study.ask().set_user_attr("session", other.crew.key)
        return begin()

    monkeypatch.setattr(study._study, "ask", a_moment_later)
    with other.crew.at_work():
        run(study, calls, 10, epochs=1.0, epochs_a_trial=1.0)
    assert calls.asked == []
    assert [trial.state for trial in trials()] == [TrialState.RUNNING, TrialState.FAIL]


@pytest.mark.parametrize("workers", [16, 40])
@pytest.mark.parametrize("at_one_moment", [False, True])
def test_proposer_before_any_result_has_a_point_for_each_of_many_workers(workers, at_one_moment):
    study, running = make_study(), []
    for number in range(workers):
        known = {"running": [], "pending": number} if at_one_moment else {"running": running, "pending": 0}
        running.append(proposer(study)(Turn(number=number, tried=[], spent=0.0, **known)))
    assert len({(point.density, *point.offsets.values()) for point in running}) == workers
    assert all(study.space.least <= point.density <= study.space.most for point in running)
    assert all(abs(offset) <= REGION for point in running for offset in point.offsets.values())


def test_study_other_errors_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run(make_study(), Listed(ZeroDivisionError()), 2)
    assert [trial.state for trial in trials()] == [TrialState.FAIL]


def test_study_on_trial_is_told_the_results_so_far():
    told = []

    def note(seen, one):
        told.append((seen.done, one.size_bytes))

    run(make_study(), Listed((500, 0.9), (400, 0.7)), 2, on_trial=note)
    run(make_study(), Listed((300, 0.9)), 3, on_trial=note)
    assert told == [(1, 500), (2, 400), (3, 300)]


def test_study_timeout_starts_no_new_trial_and_finishes_the_running_one(monkeypatch):
    calls, now = [], [10.0]

    def slow(number, _, record, _seen):
        calls.append(number)
        now[0] += 0.3
        record(score(100, 0.9))
        return score(100, 0.9)

    study = make_study()
    monkeypatch.setattr("sweeps.limits.time", SimpleNamespace(monotonic=lambda: now[0]))
    run(study, slow, 50, timeout=0.2, begun=now[0])
    assert calls == [0]
    assert study.look().done == 1


def test_study_budget_in_epochs_is_never_passed_and_counts_what_stopped_trials_took():
    outcomes = [score(100, 0.9, epochs=2.0), score(90, 0.5, epochs=0.5, stopped="why"), score(80, 0.9, epochs=2.0)]
    study = make_study()
    run(study, Listed(*outcomes), 50, epochs=4.6, epochs_a_trial=2.0)
    assert [one.score.epochs for one in study.look().tried] == [2.0, 0.5, 2.0]
    run(make_study(), Listed(score(70, 0.9, epochs=2.0)), 50, epochs=6.5, epochs_a_trial=2.0)
    assert study.look().done == 4


def test_study_run_id_is_kept():
    assert make_study().run_id is None
    make_study().run_id = "1234"
    assert make_study().run_id == "1234"


def test_study_parameters_in_the_store_are_the_spaces_own():
    run(make_study(), Listed((500, 0.9)), 1)
    assert trials()[0].params.keys() == {DENSITY, f"{OFFSET}a", f"{OFFSET}b"}


def tried(number, density, accuracy, *, epochs=1.0, start=None, had=None, stopped="", offset=0.0):
    """Bytes in proportion to density; `offset` is layer a's. Those of a chain that began with 0 had an epoch each."""
    had = had if had is not None else 0.0 if start is None else start + 1.0
    found = score(round(1e6 * density), accuracy, number, epochs=epochs, start=start, had=had, stopped=stopped)
    return Tried(number, Point(density=density, offsets={**ZERO, "a": offset}), found)


def test_lineage_adds_up_the_epochs_of_all_that_a_trial_went_on_from():
    found = [
        tried(0, 0.5, 0.9),
        tried(2, 0.3, 0.9, start=0, epochs=0.5),
        tried(3, 0.4, 0.9),
        tried(5, 0.2, 0.9, start=2, had=1.5),
    ]
    assert lineage(found) == {0: 1.0, 2: 1.5, 3: 1.0, 5: 2.5}


def told(monkeypatch):
    """What a sampler is told from now on: offset of layer a → values."""
    seen, add = {}, optuna.Study.add_trial

    def spy(self, trial):
        assert trial.constraints == {}
        seen.setdefault(trial.params[f"{OFFSET}a"], []).append(trial.value)
        add(self, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", spy)
    return seen


def test_ask_takes_the_density_at_which_the_plane_comes_to_the_goal():
    # an e-fold of density is 5 points, one of epochs 1
    found = [
        tried(i, density, 0.8 + 0.05 * math.log(density / 0.2) + 0.01 * math.log(epochs), epochs=epochs)
        for i, (density, epochs) in enumerate(itertools.product((0.1, 0.15, 0.2, 0.25, 0.3), (1.0, 1.5, 2.0)))
    ]
    for goal in (0.78, 0.8, 0.81):
        point = ask(SAMPLERS["random"](0), make_study().space, goal, 3.0, found, [])
        expected_density = 0.2 * math.exp((goal - 0.8 - 0.01 * math.log(3.0)) / 0.05)
        assert point.density == pytest.approx(expected_density, rel=0.05)


@pytest.mark.parametrize(("goal", "density"), [(0.1, 0.01), (0.999, 0.6)])
def test_ask_stays_within_the_space(goal, density):
    found = [tried(i, d, 0.8 + 0.05 * math.log(d / 0.2)) for i, d in enumerate((0.1, 0.2, 0.3))]
    assert ask(SAMPLERS["random"](0), make_study().space, goal, 1.0, found, []).density == density


def test_ask_weighs_a_trial_by_the_bytes_at_which_it_would_come_to_the_goal(monkeypatch):
    study, seen = make_study(), told(monkeypatch)
    accuracies = {0.15: 0.785, 0.2: 0.801, 0.25: 0.811, 0.3: 0.82}
    found = [tried(i, density, accuracy) for i, (density, accuracy) in enumerate(accuracies.items())]
    found += [tried(8, 0.2, 0.811, offset=0.1), tried(9, 0.25, 0.801, offset=-0.1)]
    ask(SAMPLERS["gp"](0), study.space, 0.8, 1.0, found, [])
    assert seen[0.1] < [min(seen[0.0])]
    assert seen[-0.1] > [max(seen[0.0])]
    values = [*seen[0.0], *seen[0.1], *seen[-0.1]]
    moved = [value - math.log(one.score.size_bytes) for value, one in zip(values, found, strict=True)]
    slopes = [(0.8 - one.score.accuracy) / by for by, one in zip(moved, found, strict=True)]
    assert min(slopes) == pytest.approx(max(slopes))
    assert 0.03 < slopes[0] < 0.06


def test_ask_judges_an_early_trial_as_if_it_had_been_trained_as_long_as_the_next_will_be(monkeypatch):
    study, seen = make_study(), told(monkeypatch)
    chain = [tried(0, 0.30, 0.79)]
    chain += [tried(i, 0.30, 0.79 + 0.01 * math.log(i + 1), start=i - 1) for i in range(1, 8)]
    early, stopped = tried(9, 0.30, 0.79, offset=0.1), tried(10, 0.30, 0.70, offset=-0.1, stopped="x")
    ask(SAMPLERS["gp"](0), study.space, 0.8, 9.0, [*chain, early, stopped], [])
    # about a point an e-fold: what the chain came to in eight epochs, the early one would have too
    assert max(seen[0.0]) - min(seen[0.0]) < 0.1
    assert seen[0.1] == pytest.approx([min(seen[0.0])], abs=0.1)
    assert min(seen[-0.1]) > max(seen[0.0]) + 1


def test_ask_takes_no_stopped_trial_for_better_than_the_one_that_stopped_it(monkeypatch):
    study, seen = make_study(), told(monkeypatch)
    chain = [tried(i, 0.1, 0.80 + 0.002 * i, start=None if not i else i - 1, epochs=0.2, had=0.2 * i) for i in range(7)]
    proof = tried(7, 0.1, 0.76, offset=-0.1, epochs=0.2, had=0.0)
    stopped = tried(8, 0.1, 0.76, offset=0.1, epochs=0.0, had=0.0, stopped="at its first look, on the word of 7")
    ask(SAMPLERS["gp"](0), study.space, 0.8, 1.6, [*chain, proof, stopped], [])
    assert seen[0.1] == pytest.approx(seen[-0.1])


def test_ask_looks_around_no_trial_that_stopped_early():
    path = [tried(i, d, 0.8 + 0.05 * math.log(d / 0.2)) for i, d in enumerate((0.15, 0.2, 0.25, 0.3))]
    stopped = tried(9, 0.2, 0.9, offset=0.7, stopped="x")
    for seed in range(5):
        point = ask(SAMPLERS["random"](seed), make_study().space, 0.8, 1.0, [*path, stopped], [])
        assert abs(point.offsets["a"]) <= REGION


def test_ask_looks_around_the_best_trials_offsets_and_is_not_told_of_densities_far_away(monkeypatch):
    study, seen = make_study(), told(monkeypatch)
    path = [tried(i, d, 0.8 + 0.05 * math.log(d / 0.2)) for i, d in enumerate((0.15, 0.2, 0.25, 0.3))]
    best_one, far = tried(9, 0.2, 0.83, offset=0.7), tried(10, 0.02, 0.5, offset=0.6)
    for seed in range(5):
        point = ask(SAMPLERS["random"](seed), study.space, 0.8, 1.0, [*path, best_one, far], [])
        assert abs(point.offsets["a"] - 0.7) <= REGION
        assert abs(point.offsets["b"]) <= REGION
    assert seen.keys() == {0.7}


def test_ask_tells_of_the_nearest_trials_alone_once_there_are_many(monkeypatch):
    study, seen = make_study(), told(monkeypatch)
    monkeypatch.setattr("sweeps.proposing.MOST", 3)
    path = [tried(i, d, 0.8 + 0.05 * math.log(d / 0.2), offset=0.01 * i) for i, d in enumerate((0.15, 0.2, 0.22, 0.3))]
    ask(SAMPLERS["random"](0), study.space, 0.8, 1.0, path, [])
    assert seen.keys() == {0.0, 0.01, 0.02}


def test_limits_spent_is_of_the_tightest():
    assert Limits(trials=10).spent(4, 1e9) == 0.4
    assert Limits(trials=10, timeout=100, begun=time.monotonic() - 70).spent(4, 0) == pytest.approx(0.7, abs=0.01)
    assert Limits(trials=10, epochs=5).spent(4, 4.5) == 0.9
    assert Limits(trials=10, timeout=0.0).spent(4, 0) == 1.0


def test_limits_spent_is_of_what_earlier_sessions_have_left():
    later = Limits(trials=24, before=Spent(trials=12, epochs=6.0))
    assert [later.spent(done, 0.0) for done in (12, 15, 24)] == [0.0, 0.25, 1.0]
    assert replace(later, epochs=10.0).spent(12, 9.0) == 0.75
    assert replace(later, trials=12).over(12, 6.0)
    assert replace(later, trials=8).over(12, 6.0)


def test_study_of_several_floors_gone_on_with_looks_for_each_again():
    study = make_study(0.86, 0.7)
    run(study, cheap, 8, proposer(study))
    study.before = Spent(trials=8)
    again = make_study(0.86, 0.7)
    run(again, cheap, 16, proposer(again), before=again.before)
    accuracies = [one.score.accuracy for one in again.look().tried[8:]]
    assert min(accuracies[:4]) > 0.84
    assert max(accuracies[5:]) < 0.75


def test_study_opened_where_its_floor_would_be_another_by_an_image_keeps_its_own():
    make_study(0.8338, 0.8188)
    assert make_study(0.8186, 0.8336).floors == (0.8338, 0.8188)


@pytest.mark.parametrize(("share", "done"), [(0.5, 5), (0.25, 3), (1.0, 10)])
def test_study_run_to_a_share_of_its_limits_stops_there_and_goes_on_from_it(share, done):
    study = make_study()
    run(study, cheap, 10, share=share)
    assert study.look().done == done
    run(study, cheap, 10)
    assert study.look().done == 10


def test_study_keeps_attempts_for_all_that_open_it():
    attempts = [
        Attempt(trial=4, floor=0.8, epochs=1.5, seeds=(1000, 1001), accuracy=0.79, lower=0.78, run_id="r", trained=2.5),
        Attempt(trial=2, floor=0.8, epochs=1.5, seeds=(1000, 1001), accuracy=0.81, lower=0.8, run_id="r", trained=2.5),
    ]
    study, terms = make_study(), {"trials": 3, "seeds": [1000, 1001], "epochs": 1.5}
    for attempt in attempts:
        study.note_attempt(attempt)
    assert make_study().attempts == attempts
    assert make_study().settled is None
    study.settle(terms)
    assert make_study().settled == terms


def test_proposer_is_told_of_the_attempts_so_far():
    study, seen = make_study(), []
    attempt = Attempt(trial=0, floor=0.8, epochs=1.0, seeds=(1, 2), accuracy=0.8, lower=0.79, run_id="r", trained=2.0)

    def propose(turn):
        seen.append(list(turn.attempts))
        return another(turn)

    run(study, cheap, 1, propose)
    study.note_attempt(attempt)
    run(study, cheap, 2, propose)
    assert seen == [[], [attempt]]


def test_proposer_takes_the_floors_one_after_the_other_the_strictest_first():
    study = make_study(0.86, 0.7)
    run(study, cheap, 16, proposer(study))
    first, second = study.look().tried[:8], study.look().tried[8:]
    assert min(abs(one.score.accuracy - 0.86) for one in first) < 0.01
    assert all(one.score.accuracy > 0.75 for one in first[2:])
    assert min(abs(one.score.accuracy - 0.7) for one in second) < 0.02
    assert study.look().best(0.7).score.size_bytes < study.look().best(0.86).score.size_bytes


def test_proposer_finds_the_floor_on_the_path_and_leaves_it_then_to_the_sampler():
    study = make_study()
    run(study, cheap, 12, proposer(study))
    on_path = [not any(one.point.offsets.values()) for one in study.look().tried]
    assert on_path[0]
    assert 2 <= sum(on_path) <= 6
    assert min(one.score.accuracy for one in study.look().tried) > 0.6


@pytest.mark.parametrize(
    ("epochs", "accuracy", "tries"), [(1.0, 0.797, True), (5.0, 0.799, False)], ids=["young", "trained"]
)
def test_proposer_tries_another_rule_only_while_networks_are_as_young_as_one_from_the_dense_network(
    epochs, accuracy, tries
):
    study = make_study()
    other = {"a": 0.0, "b": 0.889}  # of a fifth, half of it in layer a: no network of the path could go on to it
    propose = proposer(study, others=lambda _: [other], epochs=1.0)
    seen = [tried(0, 0.2, accuracy, epochs=epochs)]
    point = propose(Turn(number=1, tried=seen, running=[], pending=0, spent=0.1))
    assert (point == study.space.locate(other)) == tries


def test_proposer_tries_another_rule_if_a_long_trained_network_can_go_on_to_it():
    study = make_study()
    path = study.space.at(Point(density=0.2, offsets=ZERO))
    other = {"a": path["a"] + 0.2, "b": path["b"]}
    propose = proposer(study, others=lambda _: [other], epochs=1.0)
    turn = Turn(number=1, tried=[tried(0, 0.2, 0.799, epochs=5.0)], running=[], pending=0, spent=0.1)
    assert propose(turn) == study.space.locate(other)


@pytest.mark.parametrize("lower", [0.8, 0.799], ids=["accepted", "not accepted"])
@pytest.mark.parametrize("accuracy", [0.72, 0.797], ids=["on the path", "beside it"])
def test_proposer_tries_nothing_as_large_as_an_accepted_candidate(lower, accuracy):
    study = make_study()
    found = Attempt(trial=0, floor=0.8, epochs=1.0, seeds=(1, 2), accuracy=0.8, lower=lower, run_id="r", trained=2.0)
    seen = [tried(0, 0.2, accuracy, epochs=1.0), tried(1, 0.15, accuracy - 0.02, epochs=1.0)]
    turn = Turn(number=2, tried=seen, running=[], pending=0, spent=0.1, attempts=[found])
    point = proposer(study, epochs=1.0)(turn)
    assert (point.density <= 0.2 / LESS) == (lower == 0.8)


@pytest.mark.parametrize(("epochs", "reached"), [(1.0, False), (5.0, True)], ids=["young", "trained"])
def test_proposer_goes_up_no_further_than_a_well_trained_network_can_go_on(epochs, reached):
    study = make_study()
    seen = [tried(0, 0.2, 0.78, epochs=epochs)]
    point = proposer(study, epochs=1.0)(Turn(number=1, tried=seen, running=[], pending=0, spent=0.1))
    assert point.density > 0.2
    near = nearest(LAYERS, study.space.at(point), {0: study.space.at(seen[0].point)})
    assert bool(near) == reached


@pytest.mark.parametrize("epochs", [0.0, 0.1])
def test_proposer_where_no_trained_network_is_near_stays_within_the_limits(epochs):
    path = tuple((density, {"a": 1 - density, "b": 1 - density}) for density in (0.1, 0.6))
    space = Space(sizes={"a": 5000, "b": 5000}, path=path, limits={"b": 0.9})
    aims = Aims(images=5000, epochs=epochs, confirm_epochs=1.0)
    found = Attempt(trial=1, floor=0.8, epochs=1.0, seeds=(1, 2), accuracy=0.8, lower=0.79, run_id="r", trained=9.0)
    seen = [tried(0, 0.4, 0.85, epochs=epochs), tried(1, 0.2, 0.7, epochs=epochs, offset=-1.5)]
    propose = Proposer(space, (0.8,), aims, lambda _: [], sampler="tpe", seed=0)
    point = propose(Turn(number=2, tried=seen, running=[], pending=0, spent=0.5, attempts=[found]))
    assert space.least <= point.density < 0.4
    assert space.at(point)["b"] <= 0.9


def test_proposer_for_a_lower_floor_heeds_what_a_higher_one_has_accepted():
    study = make_study(0.86, 0.8)
    found = Attempt(trial=0, floor=0.86, epochs=1.0, seeds=(1, 2), accuracy=0.85, lower=0.84, run_id="r", trained=2.0)
    seen = [tried(0, 0.2, 0.72, epochs=1.0)]
    turns = (Turn(number=1, tried=seen, running=[], pending=0, spent=spent, attempts=[found]) for spent in (0.1, 0.6))
    high, low = map(proposer(study, epochs=1.0), turns)
    assert low.density <= 0.2 / LESS < 0.2 < high.density


def test_aims_are_above_the_floor_by_what_confirmations_do_not_bring():
    chain = [tried(0, 0.3, 0.80)] + [tried(i, 0.3, 0.80 + 0.01 * math.log(i + 1), start=i - 1) for i in range(1, 8)]
    sure = Aims(images=5000, epochs=1.0, confirm_epochs=None)
    assert sure.of(0.8, chain) == 0.8
    at_first, late = (Aims(images=5000, epochs=1.0, confirm_epochs=3.0).of(0.8, one) for one in ([], chain))
    assert at_first == pytest.approx(0.8 + image_margin(0.8, 5000))
    # a point an e-fold, from nine epochs to twelve
    assert late == pytest.approx(at_first - 0.01 * math.log(12 / 9), abs=0.001)
    assert Aims(images=5000, epochs=1.0, confirm_epochs=100.0).of(0.8, chain) == 0.8


def test_aims_rise_and_fall_by_what_confirmations_were_off():
    trials = [tried(0, 0.3, 0.80), tried(1, 0.2, 0.79)]
    aims = Aims(images=5000, epochs=1.0, confirm_epochs=0.5)
    due = expected(trials, 0.5)

    def attempt(number, off, epochs=0.5):
        accuracy = due[number] + off
        return Attempt(
            trial=number,
            floor=0.8,
            epochs=epochs,
            seeds=(1, 2),
            accuracy=accuracy,
            lower=accuracy - 0.009,
            run_id="r",
            trained=1.0 + epochs,
        )

    usual = aims.of(0.81, trials)
    assert aims.of(0.81, trials, [attempt(0, -0.004)]) == pytest.approx(usual + 0.002), (
        "half: a single one is noise too"
    )
    assert aims.of(0.81, trials, [attempt(0, -0.004), attempt(0, -0.002)]) == pytest.approx(usual + 0.001), "the last"
    both = aims.of(0.81, trials, [attempt(0, -0.004), attempt(1, 0.004)])
    assert usual < both < usual + 0.002, "the nearer one counts more"
    assert aims.of(0.81, trials, [attempt(0, -0.004, epochs=6.0)]) == pytest.approx(usual), "of another length"
    once_more = replace(attempt(0, -0.004), turn=1)
    assert aims.of(0.81, trials, [once_more]) == pytest.approx(usual), "had that finetuning before"
    assert aims.of(0.81, trials, [attempt(0, 0.5)]) == 0.81


def test_expected_adds_what_longer_training_brings_and_less_to_what_was_trained_long():
    chain = [tried(0, 0.3, 0.80)] + [tried(i, 0.3, 0.80 + 0.01 * math.log(i + 1), start=i - 1) for i in range(1, 8)]
    found = expected([*chain, tried(9, 0.3, 0.5, stopped="x")], 3.0)
    assert found.keys() == set(range(8))
    assert found[0] == pytest.approx(0.80 + 0.01 * math.log(4), abs=0.002)
    assert found[7] == pytest.approx(chain[7].score.accuracy + 0.01 * math.log(11 / 8), abs=0.002)


def test_expected_is_never_more_than_all_images():
    found = expected([tried(0, 0.3, 0.985), tried(1, 0.2, 0.998)], 3.0)
    assert 0.985 < found[0] < found[1] == 1.0


def test_expected_of_networks_that_were_not_finetuned_is_finite():
    found = expected([tried(0, 0.3, 0.5, epochs=0.0), tried(1, 0.2, 0.4, epochs=0.0)], 0.0)
    assert found == {0: 0.5, 1: 0.4}
