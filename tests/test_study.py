"""The study: the smallest that keeps the floor, however often it is stopped and gone on with."""

import optuna
import pytest
from optuna.trial import TrialState

from netprune.errors import DivergedError, InputError
from sweeps.study import JOURNAL, MIN_DENSITY, Score, SparsityStudy

LAYERS = ("a", "b")
CONSTANTS = {"floor": 0.8, "epochs": 1, "digest": "abc"}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_study(floor=0.8, *, name="study", seed=0, constants=CONSTANTS):
    return SparsityStudy(name, LAYERS, floor, seed=seed, constants=constants)


def ignore(*_):
    pass


def cheap(number, sparsity):
    """Bytes fall with sparsity, and so does accuracy."""
    density = sum(1 - value for value in sparsity.values()) / len(sparsity)
    return Score(round(1e6 * density), 0.9 if density > 0.1 else 0.5, f"run{number}")


class Listed:
    """Evaluates to the given (bytes, accuracy) pairs in turn; an exception among them is raised."""

    def __init__(self, *outcomes):
        self.outcomes, self.asked = list(outcomes), []

    def __call__(self, number, sparsity):
        self.asked.append(sparsity)
        outcome = self.outcomes[len(self.asked) - 1]
        if isinstance(outcome, BaseException):
            raise outcome
        return Score(*outcome, f"run{number}")


def trials(name="study"):
    """What the journal holds, read anew."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(JOURNAL))
    return optuna.load_study(study_name=name, storage=storage).trials


def test_study_best_is_the_smallest_feasible_trial():
    study = make_study()
    study.run(Listed((500, 0.9), (100, 0.79), (300, 0.81), (400, 0.95), (1, 0.0)), 5, None, ignore)
    assert study.best == Score(300, 0.81, "run2")


def test_study_without_a_feasible_trial_has_no_best():
    study = make_study()
    assert study.best is None
    study.run(Listed((500, 0.7), (100, 0.79999)), 2, None, ignore)
    assert study.done == 2
    assert study.best is None


@pytest.mark.parametrize(
    ("accuracy", "feasible"), [(0.8388 - 0.03, True), (0.8088, True), (0.80880001, True), (0.80879, False)]
)
def test_study_floor_is_met_to_the_last_bit_and_no_further(accuracy, feasible):
    floor = 0.8088
    study = make_study(floor)
    study.run(Listed((100, accuracy)), 1, None, ignore)
    assert (study.best is not None) == feasible == study.is_feasible(Score(100, accuracy, ""))


def test_study_run_on_a_real_search_finds_a_small_feasible_trial():
    study = make_study()
    seen = []
    study.run(lambda n, s: seen.append(cheap(n, s)) or seen[-1], 25, None, ignore)
    assert len(seen) == 25
    assert study.best == min((s for s in seen if s.accuracy >= 0.8), key=lambda s: s.size_bytes)
    assert study.best.size_bytes < 300_000


def test_study_sparsities_lie_within_the_space():
    study, calls = make_study(), Listed(*[(100, 0.9)] * 12)
    study.run(calls, 12, None, ignore)
    for sparsity in calls.asked:
        assert sparsity.keys() == set(LAYERS)
        assert all(0 <= value <= 1 - MIN_DENSITY for value in sparsity.values())
    assert len({tuple(s.values()) for s in calls.asked}) == 12


def test_study_gone_on_with_keeps_its_trials_and_the_total_budget():
    first = make_study()
    first.run(Listed((500, 0.9), (400, 0.9), (450, 0.9)), 3, None, ignore)
    second, calls = make_study(), Listed(*[(600, 0.9)] * 9)
    assert second.done == 3
    assert second.best == Score(400, 0.9, "run1")
    second.run(calls, 5, None, ignore)
    assert len(calls.asked) == 2
    assert second.done == 5
    assert [trial.number for trial in trials()] == [0, 1, 2, 3, 4]
    second.run(calls, 5, None, ignore)
    make_study().run(calls, 4, None, ignore)
    assert len(calls.asked) == 2


def test_study_gone_on_with_does_not_repeat_its_proposals():
    first, second = Listed(*[(500, 0.9)] * 4), Listed(*[(500, 0.9)] * 4)
    make_study().run(first, 4, None, ignore)
    make_study().run(second, 8, None, ignore)
    assert len({tuple(sorted(s.items())) for s in first.asked + second.asked}) == 8


def test_study_whose_trials_all_failed_does_not_propose_the_same_again():
    asked = []
    for _ in range(3):
        calls = Listed(DivergedError("loss is nan"))
        make_study().run(calls, 1, None, ignore)
        asked += calls.asked
    assert len({tuple(sorted(s.items())) for s in asked}) == 3


def test_study_same_seed_proposes_the_same_and_other_seed_another():
    asked = {}
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        calls = Listed(*[(500, 0.9)] * 4)
        make_study(name=name, seed=seed).run(calls, 4, None, ignore)
        asked[name] = calls.asked
    assert asked["one"] == asked["two"] != asked["three"]


def test_study_of_another_name_is_another_study():
    make_study().run(Listed((500, 0.9)), 1, None, ignore)
    other = make_study(name="other", constants={"floor": 0.1})
    assert other.done == 0
    assert other.best is None


@pytest.mark.parametrize("changed", [{"epochs": 2}, {"digest": "xyz"}, {"floor": 0.81}])
def test_study_gone_on_with_other_constants_is_refused_by_name(changed):
    make_study().run(Listed((500, 0.9)), 1, None, ignore)
    ((name, value),) = changed.items()
    with pytest.raises(InputError, match=rf"{name}={CONSTANTS[name]}, not {value}.*study_name"):
        make_study(constants={**CONSTANTS, **changed})
    assert make_study().done == 1


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
            study.run(calls, 4, None, ignore)
        study = make_study()
    study.run(calls, 3, None, ignore)
    assert [trial.state for trial in trials()[:3]] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert TrialState.RUNNING not in {trial.state for trial in trials()}
    assert study.best.size_bytes == 400
    assert study.done == sum(trial.state == TrialState.COMPLETE for trial in trials())


def test_study_interrupted_while_a_result_is_told_leaves_no_running_trial():
    study = make_study()

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(Listed((500, 0.9)), 1, None, interrupt)
    assert [trial.state for trial in trials()] != [TrialState.RUNNING]


def test_study_other_errors_are_not_hidden():
    study = make_study()
    with pytest.raises(ZeroDivisionError):
        study.run(Listed(ZeroDivisionError()), 2, None, ignore)
    assert [trial.state for trial in trials()] == [TrialState.FAIL]


def test_study_seeds_are_run_first_and_clamped():
    study, calls = make_study(), Listed(*[(500, 0.9)] * 4)
    study.seed([{"a": 0.5, "b": 0.0}, {"a": 1.0, "b": 0.9999}, {"a": -0.1, "b": 0.25}])
    study.run(calls, 4, None, ignore)
    low = 1 - MIN_DENSITY
    expected = [{"a": 0.5, "b": 0.0}, {"a": low, "b": low}, {"a": 0.0, "b": 0.25}]
    for asked, wanted in zip(calls.asked, expected, strict=False):
        assert asked == pytest.approx(wanted)
    assert len(calls.asked) == 4


def test_study_seeds_queued_again_are_run_once_in_the_studys_life():
    seeds = [{"a": 0.5, "b": 0.1}, {"a": 0.6, "b": 0.2}]
    first, second = Listed(*[(500, 0.9)] * 3), Listed(*[(500, 0.9)] * 3)
    for calls, budget in ((first, 3), (second, 6)):
        study = make_study()
        study.seed(seeds)
        study.run(calls, budget, None, ignore)
    assert first.asked[:2] == [pytest.approx(seed) for seed in seeds]
    assert not [asked for asked in second.asked if any(asked == pytest.approx(seed) for seed in seeds)]


def test_study_on_trial_is_told_the_results_so_far():
    told = []
    make_study().run(Listed((500, 0.9), (400, 0.7)), 2, None, lambda *news: told.append(news))
    make_study().run(Listed((300, 0.9)), 3, None, lambda *news: told.append(news))
    assert told == [(1, Score(500, 0.9, "run0")), (2, Score(400, 0.7, "run1")), (3, Score(300, 0.9, "run2"))]


def test_study_timeout_starts_no_new_trial_and_finishes_the_running_one(monkeypatch):
    import time

    calls = []

    def slow(number, _):
        calls.append(number)
        time.sleep(0.3)
        return Score(100, 0.9, "run")

    study = make_study()
    study.run(slow, 50, 0.2, ignore)
    assert calls == [0]
    assert study.done == 1


def test_study_run_id_is_kept():
    assert make_study().run_id is None
    make_study().run_id = "1234"
    assert make_study().run_id == "1234"


def test_study_seeded_searches_what_the_seeds_span_and_a_factor_of_two_beyond():
    study, seen = make_study(), []
    study.seed([dict.fromkeys(LAYERS, 0.8), dict.fromkeys(LAYERS, 0.9)])

    def evaluate(number, sparsity):
        seen.append(sparsity)
        return Score(size_bytes=number, accuracy=0.9, run_id=str(number))

    study.run(evaluate, 30, None, lambda _done, _score: None)
    densities = [1 - value for sparsity in seen for value in sparsity.values()]
    assert 0.05 - 1e-9 <= min(densities) < 0.1
    assert 0.2 < max(densities) <= 0.4 + 1e-9
