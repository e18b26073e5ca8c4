"""Workers that die: nothing is lost but the trial they were at, nothing is counted twice, nobody waits."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import optuna
import psutil
import pytest
from optuna.trial import TrialState
from test_study import ZERO, Listed, another, ignore, make_study, run, score, trials

from netprune.search_space import Point
from sweeps import sessions, tracking
from sweeps.limits import Limits
from sweeps.points import parameters, whole
from sweeps.processes import ProcessId, this_machine
from sweeps.scores import Score
from sweeps.sessions import GRACE_SECONDS, Crew, Session
from sweeps.stages.trials import Trials
from sweeps.storage import JOURNAL, KernelLock, open_storage
from sweeps.study import RETRIES, LostTrialError, _is_surplus

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def dead(**changes):
    """A session of this machine whose process is gone."""
    process = {"machine": this_machine(), "pid": 2**22 - 3, "born": 1.0}
    process |= {name: changes.pop(name) for name in list(changes) if name in process}
    return Session(**{"key": "gone", "turn": 0, "process": str(ProcessId(**process)), "beat": time.time()} | changes)


def leave(study, session="gone", *, recorded=None):
    """What a worker leaves that is killed in the middle of a trial."""
    study._study.enqueue_trial(parameters(Point(density=0.5 * 0.97 ** len(study._study.trials), offsets=ZERO)))
    trial = study._study.ask()
    trial.set_user_attr("session", session)
    for name, d in whole(study.space).items():
        trial.suggest_float(name, d.low, d.high, log=d.log)
    if recorded is not None:
        trial.set_user_attr("score", {**recorded, "checks": {}})
    return trial.number


def introduce(study, session):
    study.crew._keep(session)


def test_trial_of_a_dead_worker_is_given_up_and_its_point_tried_again():
    study, settled = make_study(), []
    introduce(study, dead())
    lost = leave(study)
    calls = Listed((500, 0.9))
    with study.crew.at_work():
        study.recover(lambda number: settled.append(number) or False)
        run(study, calls, 1)
    assert settled == [lost]
    first, second = trials()
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert second.params == first.params
    assert second.user_attrs["retry_of"] == lost
    assert study.look().done == 1


def test_queued_point_whose_worker_died_before_it_took_it_up_is_tried_again():
    study, point = make_study(), Point(density=0.3, offsets=ZERO)
    introduce(study, dead())
    study._study.enqueue_trial(parameters(point))
    study._study.ask().set_user_attr("session", "gone")
    run(study, Listed((500, 0.9)), 1)
    assert [one.point for one in study.look().tried] == [point]
    assert [trial.state for trial in trials()] == [TrialState.FAIL, TrialState.COMPLETE]


def test_trial_whose_run_had_finished_is_kept_and_not_tried_again():
    study = make_study()
    introduce(study, dead())
    kept = {"size_bytes": 321, "accuracy": 0.9, "run_id": "r", "stopped": "", "overruled": "", "epochs": 1.0}
    leave(study, recorded=kept)
    study.recover(lambda _: True)
    assert study.look().done == 1
    assert study.look().tried[0].score == Score(**kept)
    assert len(trials()) == 1


@pytest.mark.parametrize(("finished", "recorded"), [(False, True), (True, False)])
def test_trial_that_is_not_both_recorded_and_finished_is_given_up(finished, recorded):
    study = make_study()
    introduce(study, dead())
    kept = {"size_bytes": 321, "accuracy": 0.9, "run_id": "r", "stopped": "", "overruled": "", "epochs": 1.0}
    leave(study, recorded=kept if recorded else None)
    study.recover(lambda _: finished)
    assert [trial.state for trial in trials()] == [TrialState.FAIL, TrialState.WAITING]


def test_trial_of_a_live_worker_is_left_alone():
    study = make_study()
    with make_study().crew.at_work():  # another session of this very process
        (key,) = study.crew.sessions
        leave(study, key)
        study.recover(lambda _: pytest.fail("it lives"))
        assert [trial.state for trial in trials()] == [TrialState.RUNNING]
        assert len(study.look().running) == 1


def test_point_whose_workers_keep_dying_is_dropped():
    study = make_study()
    introduce(study, dead())
    leave(study)
    for _ in range(RETRIES + 3):
        study.recover(lambda _: False)
        waiting = [trial for trial in trials() if trial.state == TrialState.WAITING]
        if not waiting:
            break
        study._study.ask().set_user_attr("session", "gone")
        taken = study._study.trials[-1]
        for name, d in whole(study.space).items():
            optuna.Trial(study._study, taken._trial_id).suggest_float(name, d.low, d.high, log=d.log)
    assert [trial.state for trial in trials()] == [TrialState.FAIL] * (RETRIES + 1)


def test_worker_taken_for_dead_that_comes_back_does_not_count_its_trial():
    study, seen = make_study(), []

    def evaluate(number, _, record, _seen):
        other = make_study()._study
        other.tell(number, state=TrialState.FAIL)  # another worker, after a long silence of this one
        with pytest.raises(LostTrialError):
            record(score(100, 0.9))
        seen.append(number)
        raise LostTrialError

    with pytest.raises(StopIteration):
        iterations = iter(range(1))
        run(study, lambda *given: (next(iterations), evaluate(*given))[1], 1)
    assert seen == [0]
    assert study.look().done == 0


@pytest.mark.parametrize("when", ["while it chooses its point", "between its score and its end"])
def test_worker_taken_for_dead_goes_on_with_another_trial(when):
    study, first = make_study(), iter([True])

    def taken(number):
        if next(first, False):
            make_study()._study.tell(number, state=TrialState.FAIL)  # another worker, after a long silence of this one

    def propose(turn):
        if when == "while it chooses its point":
            taken(turn.number)
        return another(turn)

    def evaluate(number, _, record, _seen):
        found = score(100, 0.9)
        record(found)
        taken(number)
        return found

    assert study.run(evaluate, Limits(trials=2), propose, ignore)
    assert [trial.state for trial in trials()] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]


def test_budget_is_the_studys_and_counts_what_runs_elsewhere():
    study = make_study()
    with make_study().crew.at_work():
        (key,) = study.crew.sessions
        leave(study, key)
        calls = Listed(*[(500, 0.9)] * 5)
        run(study, calls, 3)
    assert len(calls.asked) == 2


def test_last_trial_that_two_workers_began_is_given_back_by_the_later_one():
    study = make_study()
    with make_study().crew.at_work():
        (key,) = study.crew.sessions
        numbers = [leave(study, key), leave(study, key)]
        assert [_is_surplus(study.look(), number, Limits(trials=1)) for number in numbers] == [False, True]


def test_session_is_dead_when_its_process_is_gone_or_another_has_its_number():
    mine = Session.mine(turn=0)
    assert mine.alive
    assert not dead().alive
    assert dead(pid=os.getpid(), born=ProcessId.mine().born).alive
    assert not dead(pid=os.getpid(), born=ProcessId.mine().born - 5).alive
    assert not dead(pid=os.getpid(), born=ProcessId.mine().born, ended=True).alive


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere psutil's time is taken")
def test_session_outlives_a_clock_that_is_set_and_a_name_like_the_end_of_one(monkeypatch):
    mine, name = Session.mine(turn=0), Path("/proc/self/comm")
    before, born = name.read_text(), psutil.Process().create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: born + 1)
    name.write_text("a) 1 2 (b")
    try:
        assert mine.alive
    finally:
        name.write_text(before)


def test_process_where_there_is_no_proc_is_told_by_psutils_time(monkeypatch):
    def missing(_):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_bytes", missing)
    assert ProcessId.mine().born == psutil.Process().create_time()
    assert not ProcessId.mine().is_gone


def test_session_of_another_machine_is_dead_after_a_long_silence():
    assert dead(machine="elsewhere", beat=time.time() - GRACE_SECONDS / 2).alive
    assert not dead(machine="elsewhere", beat=time.time() - GRACE_SECONDS - 1).alive


def test_crew_leader_is_the_live_session_that_began_first():
    kept = {}
    first, second = (Crew(lambda: kept, kept.__setitem__) for _ in range(2))
    first._keep(dead())
    with first.at_work():
        assert first.leads
        with second.at_work():
            assert (first.leads, second.leads) == (True, False)
            assert first.has_others
        assert not first.has_others
        assert "gone" in first.dead
        assert first.key not in first.dead
    assert not first.leads


def test_session_gives_signs_of_life_and_takes_its_leave(monkeypatch):
    monkeypatch.setattr(sessions, "BEAT_SECONDS", 0.02)
    kept, crew = {}, None
    crew = Crew(lambda: kept, kept.__setitem__)
    with crew.at_work():
        (before,) = (one.beat for one in crew.sessions.values())
        end = time.monotonic() + 5
        while next(iter(crew.sessions.values())).beat == before and time.monotonic() < end:
            time.sleep(0.02)
        assert next(iter(crew.sessions.values())).beat > before
    assert next(iter(crew.sessions.values())).ended


def test_kernel_lock_of_a_killed_holder_is_free_at_once():
    open_storage("")
    script = (
        "import sys, time; from sweeps.storage import JOURNAL, KernelLock; lock = KernelLock(JOURNAL); lock.acquire();"
        "print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    start = time.monotonic()
    lock = KernelLock(JOURNAL)
    lock.acquire()
    lock.release()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("torn", [b'{"op_code": 4, "wor', b"\x00" * 10], ids=["half a line", "zeros"])
def test_journal_with_a_torn_last_line_goes_on(torn):
    study = make_study()
    run(study, Listed((500, 0.9)), 1)
    with open(JOURNAL, "ab") as file:
        file.write(torn)
    again = make_study()
    run(again, Listed((400, 0.9)), 2)
    assert [trial.value for trial in trials()] == [500, 400]


def test_trial_whose_worker_died_before_it_said_who_it_was_is_given_up_after_a_silence(monkeypatch):
    study = make_study()
    study._study.ask()  # and the worker is gone
    assert (len(study.look().running), bool(study.look().abandoned)) == (1, False)
    monkeypatch.setattr("sweeps.snapshot.GRACE_SECONDS", -1.0)
    assert (len(study.look().running), bool(study.look().abandoned)) == (0, True)
    run(study, Listed((500, 0.9)), 1)
    assert [trial.state for trial in trials()] == [TrialState.FAIL, TrialState.COMPLETE]


def test_abandoned_trial_of_a_study_that_has_its_trials_is_closed_all_the_same():
    study = make_study()
    run(study, Listed((500, 0.9)), 1)
    introduce(study, dead())
    leave(study)
    assert bool(study.look().abandoned)
    run(study, Listed(), 1)
    assert TrialState.RUNNING not in {trial.state for trial in trials()}


def test_kernel_lock_waited_for_by_a_second_thread_is_released_by_the_first():
    open_storage("")
    lock, order = KernelLock(JOURNAL), []

    def second():
        lock.acquire()
        order.append("second")
        lock.release()

    lock.acquire()
    waiting = threading.Thread(target=second)
    waiting.start()
    time.sleep(0.2)
    order.append("first")
    lock.release()
    waiting.join(timeout=10)
    assert order == ["first", "second"]
    assert not waiting.is_alive()


def test_settle_goes_by_the_runs_of_its_own_study_and_not_of_another_of_its_name(store):
    def left_by(finished):
        """The study's run, in which trial 0 came to an end or failed."""
        with tracking.tracked_run("search", "small", {}, tags={tracking.STUDY: "small"}) as study:
            tags = {tracking.STUDY: "small", tracking.TRIAL: "0"}
            with suppress(ValueError), tracking.tracked_run("trial", "trial 000", {}, tags=tags):
                if not finished:
                    raise ValueError
        return study

    def settled(run_id):
        study = SimpleNamespace(run_id=run_id, name="small", crew=SimpleNamespace(dead=set()))
        return Trials.settle(SimpleNamespace(study=study), 0)

    assert [settled(left_by(finished)) for finished in (True, False)] == [True, False]
