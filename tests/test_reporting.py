"""A study's page from its runs: what it says is what the runs say, and the run keeps it."""

import json
import shlex
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from studies import DATA, REQUEST, SCAN

from netprune.errors import InputError
from netprune.evaluation import evaluate
from netprune.packing import unpack
from netprune.recipes import recipe
from netprune.stopping import LearningCurve
from sweeps import artifacts, report, search_sparsity, tracking
from sweeps import train as train_command
from sweeps.page import render
from sweeps.stages import comparing, drawing, pipeline, searching, trials
from sweeps.stages import reporting as stage
from sweeps.stages.candidates import OPEN
from sweeps.stages.contest import Confirmed
from sweeps.stages.data import DataRequest
from sweeps.stages.longer import SEED
from sweeps.stages.registering import run_register
from sweeps.stages.repeating import first_search_command, register_command, repeat, search_command
from sweeps.stages.reporting import PAGE, run_report
from sweeps.stages.request import SearchRequest
from sweeps.stages.scanning import SCANNED, run_scan
from sweeps.stages.searching import run_search
from sweeps.stages.source import SourceRequest
from sweeps.stages.starting import PACKED_FILE
from sweeps.stages.studies import FoundStudy, _winner, find_study
from sweeps.stages.training import RECIPE_OPTIONS, TrainRequest
from sweeps.table import count, percent

DRAWN = {
    "size_against_accuracy",
    "trials",
    "parameters_per_layer",
    "sensitivity",
    "confusion",
    "weights_before",
    "weights_before_nonzero",
    "weights_after",
    "weights_after_nonzero",
}


@pytest.fixture
def pages(monkeypatch):
    """The pages that were rendered, as data."""
    found = []
    monkeypatch.setattr(stage, "render", lambda page: found.append(page) or render(page))
    return found


@pytest.fixture
def rendered(pages, monkeypatch):
    """The same without figures, which take most of the time."""
    monkeypatch.setattr(stage, "draw", lambda *_: {})
    return pages


@pytest.fixture
def blank(monkeypatch):
    """Figures are made, and none is drawn."""
    png = drawing._png(Figure(figsize=(1, 1)))
    monkeypatch.setattr(drawing, "_png", lambda _: png)


def figures_of(run_id):
    return {file.path.removeprefix("figures/") for file in mlflow.MlflowClient().list_artifacts(run_id, "figures")}


def test_report_of_a_registered_study_keeps_page_and_figures_in_its_run(searched, pages):
    won = searched().floors[0].confirmed
    registered = run_register("small", "", DATA)
    made = run_report("small")
    kept = artifacts.read_artifact(made.run_id, PAGE).decode()
    (page,) = pages
    assert kept == render(page)
    assert f"{count(won.size_bytes)} bytes" in kept
    assert f"at least {percent(won.lower)}" in kept
    assert set(made.figures) - {"disagreements"} == DRAWN
    assert figures_of(made.run_id) == {f"{name}.png" for name in made.figures}
    for name, plot in page.plots.items():
        assert artifacts.read_artifact(made.run_id, f"figures/{name}.png") == plot.png
    (floor,) = page.floors
    assert floor.network.packed_bytes == won.size_bytes
    seeds = tuple(int(tracking.find_run(run_id).tags[SEED]) for run_id in won.run_ids)
    assert (floor.seeds, floor.accuracies) == (seeds, won.accuracies)
    assert (floor.average, floor.averaged) == (won.average, won.averaged)
    (candidate,) = (one for one in page.candidates if one.verdict == "confirmed")
    assert (candidate.size_bytes, candidate.accuracies) == (won.size_bytes, won.accuracies)
    assert candidate.average == won.average
    assert candidate.lower == pytest.approx(won.lower)
    assert next(one for one in page.stages if one.name == "finetune").confirmations > 0
    assert "--model-name net10-w2-tiny" in page.repeat.commands[-2].command
    assert floor.network.test.value == registered.versions[0].measured.test_accuracy
    assert page.dense.test.value == registered.dense.test_accuracy
    assert (floor.network.change, page.dense.change) == (registered.versions[0].change, None)
    assert {floor.network.val.images, floor.network.test.images, page.dense.val.images} == {24}
    assert page.file_bytes == pytest.approx(won.size_bytes)
    assert "models:/net10-w2-tiny/1" in page.steps[0].command


def test_report_counts_what_dense_and_pruned_take_images_for(searched, source, rendered):
    searched()
    run_report("small")
    (page,) = rendered
    shown = unpack(artifacts.read_artifact(find_study("small").winners()[0].run.run_id, PACKED_FILE)).model
    found, val = page.comparison, source.dataset.val
    of_dense, of_pruned = (evaluate(net, val, source.dataset).accuracy for net in (source.model, shown))
    assert found.images == 24
    assert (found.only_dense - found.only_pruned) / 24 == pytest.approx(of_dense - of_pruned)
    assert len(found.examples) == found.differ <= 24
    assert all(one.dense != one.pruned and one.png[1:4] == b"PNG" for one in found.examples)


def test_report_never_reads_test(searched, rendered, source, monkeypatch):
    searched()
    blind = replace(source.dataset, test=None)
    monkeypatch.setattr("sweeps.stages.studies.open_data", lambda _: (blind, None))
    made = run_report("small")
    assert "test is not read until the network is registered" in artifacts.read_artifact(made.run_id, PAGE).decode()


@pytest.mark.slow
def test_report_twice_replaces_page_and_figures(searched):
    searched()
    first = run_report("small")
    page, before = artifacts.read_artifact(first.run_id, PAGE), len(mlflow.search_runs(search_all_experiments=True))
    assert run_report("small") == first
    assert artifacts.read_artifact(first.run_id, PAGE) == page
    assert len(mlflow.search_runs(search_all_experiments=True)) == before


def test_report_of_an_unconfirmed_study_shows_the_best_trial_and_says_so(searched, rendered):
    outcome = searched(replace(REQUEST, confirm_seeds=0))
    run_report("small")
    (page,) = rendered
    assert page.confirmed == ()
    assert "which is not confirmed" in page.shown
    assert page.shown_network.packed_bytes == outcome.floors[0].best.score.size_bytes
    assert "confirm-seeds 2" in page.steps[0].command
    assert "is no promise" in render(page)


def test_report_of_a_study_that_was_interrupted_before_its_end_leaves_its_candidates_open(
    source, rendered, monkeypatch
):
    def interrupt(*_):
        raise KeyboardInterrupt

    request = replace(REQUEST, confirm_seeds=3, trials=3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(searching, "confirm_study", interrupt)  # some are finetuned again among the trials
        run_search(source, request)
    run_report("small")
    (page,) = rendered
    assert page.candidates
    assert {one.verdict for one in page.candidates} == {OPEN}
    assert (page.tried, page.confirmed) == (False, ())
    assert "the study is not over. So far" in render(page)
    again = options(page.steps[0].command)
    assert (again["confirm_seeds"], again["trials"]) == (3, request.trials)


def test_report_of_a_floor_that_no_bound_meets_says_what_may_help(searched, rendered):
    searched(replace(REQUEST, max_drop=(0.0,), trials=2, finetune_epochs=0.0, confirm_epochs=0.0))
    run_report("small")
    (page,) = rendered
    assert page.tried
    assert page.confirmed == ()
    assert "with 95 % confidence, so nothing is registered" in page.steps[0].text
    assert "no candidate was at the floor" in render(page)


def test_report_of_several_floors_has_each_floors_network(searched, rendered):
    outcome = searched(replace(REQUEST, max_drop=(30.0, 60.0)))
    run_report("small")
    (page,) = rendered
    assert [one.floor for one in page.floors] == pytest.approx([one.floor for one in outcome.floors], abs=1e-6)
    sizes = [one.network and one.network.packed_bytes for one in page.floors]
    assert sizes == [one.confirmed and one.confirmed.size_bytes for one in outcome.floors]


@pytest.fixture
def judged(monkeypatch):
    """Let every trial look like one that ended far below the floor, and be a control or not."""

    def arrange(*, control):
        monkeypatch.setattr(trials, "is_control", lambda *_: control)
        curves = [LearningCurve(checks={0.5: 1.1}, final=0.01)]
        monkeypatch.setattr(trials.Trials, "curves", lambda *_: curves)

    return arrange


def test_report_of_trials_that_all_stopped_early_shows_the_dense_network_and_why(source, pages, blank, judged):
    judged(control=False)
    run_search(source, replace(REQUEST, trials=2))
    made = run_report("small")
    (page,) = pages
    assert (page.shown, page.layers, page.comparison) == ("", (), None)
    assert set(made.figures) == DRAWN - {"confusion", "weights_after", "weights_after_nonzero"}
    assert (page.stopping.stopped, page.stopping.saved_epochs, page.stopping.spent_epochs) == (2, 1.0, 1.0)
    assert all("at 50 % of its finetuning" in one.ending and one.val is None for one in page.trials)
    assert page.stages == ()
    assert page.stopping.looks == {0.5: 2}
    assert page.seconds == page.stopping.seconds > 0


def test_report_counts_a_control_that_ended_at_the_floor_as_a_wrong_verdict(source, rendered, judged):
    judged(control=True)
    run_search(source, replace(REQUEST, trials=2, confirm_seeds=0))
    run_report("small")
    (page,) = rendered
    feasible = sum(one.feasible for one in page.trials)
    assert (page.stopping.controls, page.stopping.wrong, page.stopping.stopped) == (2, feasible, 0)
    assert all("as a control: at 50 %" in one.ending for one in page.trials)


def test_report_seconds_are_the_sums_of_the_trials(searched, rendered):
    searched(replace(REQUEST, confirm_seeds=0))
    run_report("small")
    logged = [trial.metrics["seconds/finetune"] for trial in find_study("small").finished]
    stages = {one.name: one for one in rendered[0].stages}
    assert stages["finetune"].trials == pytest.approx(sum(logged))
    assert stages["finetune"].confirmations == 0
    assert {name for name, one in stages.items() if one.passes} <= {"rank", "start", "finetune", "evaluate", "quantise"}


def test_report_names_trials_that_came_to_nothing(searched, rendered):
    study = searched(replace(REQUEST, confirm_seeds=0, trials=1)).run_id

    def tags(number):
        return {tracking.STUDY: "small", tracking.TRIAL: str(number), tracking.PARENT: study}

    for number, error in enumerate((KeyboardInterrupt, ValueError), start=1):
        with pytest.raises(error), tracking.tracked_run("trial", "a trial", {}, tags=tags(number)):
            raise error("boom")
    with tracking.tracked_run("trial", "a trial", {}, tags=tags(9)) as run_id:
        pass
    mlflow.MlflowClient().set_terminated(run_id, "KILLED")
    run_report("small")
    (page,) = rendered
    assert [(one.name, one.why) for one in page.lost] == [
        ("trial 001", "it was interrupted"),
        ("trial 002", "ValueError: boom"),
        ("trial 009", "its worker died"),
    ]
    assert len(page.trials) == 1


def test_report_without_the_data_says_so_and_has_all_else(searched, pages, blank, monkeypatch):
    searched()

    def absent(_):
        raise InputError("CIFAR-10 is not in /there.")

    monkeypatch.setattr("sweeps.stages.studies.open_data", absent)
    made = run_report("small")
    assert set(made.figures) == DRAWN - {"confusion"}
    assert "cannot be opened here" in pages[0].no_comparison
    assert "CIFAR-10 is not in /there." in pages[0].no_comparison


def test_report_with_other_data_compares_nothing(searched, rendered, source, monkeypatch):
    searched()
    val = source.dataset.val
    wrong = replace(source.dataset, val=replace(val, labels=(val.labels + 1) % 3))
    monkeypatch.setattr("sweeps.stages.studies.open_data", lambda _: (wrong, None))
    run_report("small")
    assert "tiny is not the data of study small: its validation images are others" in rendered[0].no_comparison
    other = replace(source.dataset, classes=("a", "b", "c"))
    monkeypatch.setattr("sweeps.stages.studies.open_data", lambda _: (other, None))
    run_report("small")
    assert "other classes" in rendered[1].no_comparison


@pytest.mark.parametrize(("averaged", "accuracy"), [(True, 0.95), (False, 0.9)])
def test_drawn_confirmed_network_stands_at_the_accuracy_that_its_bound_is_of(monkeypatch, averaged, accuracy):
    run = tracking.FoundRun("r", "", "", {SEED: "1000"}, {}, {"packed_bytes": 5000.0})
    monkeypatch.setattr(tracking, "find_run", lambda _: run)
    lower = accuracy - 0.02  # of an average that ships it may lie above the seeds' mean
    kept = Confirmed(
        trial=1,
        run_ids=("a", "b"),
        accuracies=(0.92, 0.88),
        average=0.95 if averaged else 0.89,
        run_id="c" if averaged else "a",
        trained=1.0,
        images_had=0.0,
        size_bytes=5000,
        lower=lower,
    )
    won = _winner(0.85, json.loads(json.dumps(asdict(kept))))
    dense = {"dense_packed_bytes": 90_000.0, "dense_val_accuracy": 0.96}
    study = SimpleNamespace(finished=(), floors=(0.85,), run=SimpleNamespace(metrics=dense))
    (axes,) = drawing._sizes(SimpleNamespace(study=study, winners=(won,))).axes
    (container,) = axes.containers
    assert container.lines[0].get_ydata() == pytest.approx([100 * accuracy])
    assert container.lines[2][0].get_segments()[0][:, 1] == pytest.approx([100 * lower, 100 * accuracy])


def test_study_of_a_name_that_another_has_too_knows_its_own_registrations_only(searched):
    searched()
    first = find_study("small")
    run_register("small", "mine", DATA)
    with tracking.tracked_run("search", "study small", {}, tags={tracking.STUDY: "small"}) as run_id:
        tracking.log({"accuracy_floor": 0.5})
    second = find_study("small")
    assert second.run.run_id == run_id
    assert second.registered() == {}
    assert "model-name" not in register_command(second)
    assert set(first.registered()) == {first.winners()[0].run.run_id}
    assert "--model-name mine" in register_command(first)


def test_comparison_counts_apart_what_only_the_dense_and_only_the_pruned_network_gets_right():
    labels, dense = np.array([0, 1, 2, 0, 1]), np.array([0, 1, 1, 0, 2])
    pruned = np.array([1, 2, 2, 0, 0])  # two lost, one won, one as before, one wrong in another way
    shown = comparing.choose_images(labels, dense, pruned)
    images = np.zeros((len(shown), 4, 4, 3), dtype=np.uint8)
    found = comparing.Compared(("a", "b", "c"), labels, dense, pruned, shown, images)
    made = found.summary()
    assert (made.images, made.differ, made.only_dense, made.only_pruned) == (5, 4, 2, 1)
    named = [(one.truth, one.dense, one.pruned) for one in made.examples]
    assert named == [("a", "a", "b"), ("b", "b", "c"), ("c", "b", "c"), ("b", "c", "a")]
    assert found.confusion.tolist() == [[1, 1, 0], [1, 0, 1], [0, 0, 1]]


def test_comparison_shows_first_what_pruning_has_lost():
    labels, dense = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 2])
    pruned = np.array([0, 0, 2, 1, 0])
    assert comparing.choose_images(labels, dense, pruned).tolist() == [2, 4, 1]
    assert len(comparing.choose_images(np.zeros(99, int), np.zeros(99, int), np.ones(99, int))) == comparing.MOST_SHOWN


def options(command):
    """Click's reading of a command line of ours."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "sweeps.search_sparsity"]
    return search_sparsity.main.make_context("search", words[3:]).params


@pytest.mark.parametrize("changes", [{"max_drop": (30.0, 200 / 3)}, {"accuracy_floor": 40.0}], ids=["drops", "floor"])
def test_search_command_of_a_study_is_one_that_asks_for_it_again(searched, source, changes):
    request = replace(REQUEST, **changes, trials=2, confirm_seeds=0, epochs=50.0, values="fp16")
    searched(request)
    again = options(search_command(find_study("small")))
    assert (again["model_uri"], again["weights"]) == ("here", "")
    assert again["sparsities"] == "0.5,0.9,1.0"
    if "accuracy_floor" in changes:
        assert again["accuracy_floor"] == 40
    else:
        assert again["max_drop"] == "30,66.66666666666667"
        assert again["accuracy_floor"] == 0
    plain = {each.name for each in fields(SearchRequest)} - {"max_drop", "accuracy_floor", "timeout", "scan"}
    assert {name: again[name] for name in plain} == {name: getattr(request, name) for name in plain}
    run_search(source, replace(request, trials=3))
    assert options(search_command(find_study("small")))["trials"] == 3
    more = options(search_command(find_study("small"), trials=9))
    assert (more["trials"], more["epochs"]) == (9, 0), "a budget that is spent would leave nothing to them"


def test_study_of_another_normalisation_keeps_it_for_the_commands_after_it(source):
    run_search(
        replace(source, data=replace(DATA, mean=(0.485, 0.456, 0.406), std=(1.0, 1.0, 1.0))),
        replace(REQUEST, trials=1, confirm_seeds=0),
    )
    study = find_study("small")
    found = study.data(DataRequest(dataset="auto", data_dir="auto"))
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (1.0, 1.0, 1.0))
    again = options(search_command(study))
    assert (again["mean"], again["std"]) == ("0.485,0.456,0.406", "1.0,1.0,1.0")


def test_search_command_of_weights_names_the_file_and_its_architecture(source):
    asked = SourceRequest(weights="my net.pt", width=2, adapt_head=True)
    weights = replace(source, origin="/there/my net.pt", asked=asked)
    run_search(weights, replace(REQUEST, trials=1, confirm_seeds=0))
    for again in (options(search_command(find_study("small"))), options(first_search_command(weights))):
        assert (again["weights"], again["model"], again["width"]) == ("/there/my net.pt", "net10", 2)
        assert (again["model_uri"], again["adapt_head"], again["dataset"]) == ("", True, "tiny")


@pytest.mark.parametrize(("named", "dataset"), [(True, "tiny"), (False, "auto")])
def test_first_search_command_names_the_data_where_the_user_did(source, named, dataset):
    assert options(first_search_command(replace(source, data_named=named)))["dataset"] == dataset


def test_next_command_of_a_study_with_an_odd_name_is_one_word_in_a_shell():
    won = Confirmed(
        trial=1,
        run_ids=("a", "b"),
        accuracies=(0.9, 0.9),
        average=None,
        run_id="a",
        trained=1.0,
        images_had=2.0,
        size_bytes=5000,
        lower=0.88,
    )
    floors = (searching.FloorOutcome(0.87, None, won),)
    outcome = searching.SearchOutcome("my <b>study</b> & co", "r", 1, floors, confirmed=True)
    last = search_sparsity.closing(outcome).splitlines()[-1]
    assert shlex.split(last)[-2:] == ["--study-name", "my <b>study</b> & co"]


def test_report_shows_the_scan_that_the_study_went_by(source, blank, monkeypatch):
    drawn = []
    monkeypatch.setattr("sweeps.figures.sensitivity_curves", lambda found: drawn.append(found.to_json()) or Figure())
    run_search(source, replace(REQUEST, trials=1, confirm_seeds=0))
    run_scan(source, replace(SCAN, saliency="random"))
    run_report("small")
    own, later, shown = drawn
    assert shown == own != later


@pytest.mark.parametrize("left", ["the id of a run that is gone", "nothing"])
def test_report_of_a_study_whose_scan_is_gone_has_all_else(searched, blank, left):
    run_id = searched(replace(REQUEST, trials=1, confirm_seeds=0)).run_id
    if left == "nothing":
        mlflow.MlflowClient().delete_tag(run_id, SCANNED)
    else:
        mlflow.MlflowClient().set_tag(run_id, SCANNED, "0" * 32)
    assert DRAWN - set(run_report("small").figures) == {"sensitivity"}


def run(*arguments):
    return CliRunner().invoke(report.main, list(arguments))


def test_report_command_prints_the_table_and_writes_the_page(searched, rendered, store):
    searched(replace(REQUEST, confirm_seeds=0))
    result = run("--study-name", "small", "--out", "page.html")
    assert result.exit_code == 0, result.output
    assert "val accuracy" in result.output
    assert "report.html" in result.output
    written = (store / "page.html").read_bytes()
    assert written == artifacts.read_artifact(find_study("small").run.run_id, PAGE)
    assert not [path for path in store.iterdir() if path.name.startswith(".page")]


def test_report_command_never_replaces_a_file(searched, store):
    searched(replace(REQUEST, confirm_seeds=0, trials=1))
    (store / "page.html").write_bytes(b"mine")
    result = run("--out", "page.html")
    assert result.exit_code == 1
    assert result.stderr.strip() == "Error: page.html is there already: name another file with out, or remove it."
    assert (store / "page.html").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        (DataRequest(dataset="auto", data_dir="auto"), ("digits", "/there")),
        (DataRequest(dataset="auto", data_dir="/moved"), ("digits", "/moved")),
        (DataRequest(dataset="cifar10", data_dir="/moved"), ("cifar10", "/moved")),
    ],
)
def test_study_data_is_where_it_was_unless_it_is_said_to_have_moved(asked, where):
    params = {"search.dataset": "digits", "search.data_dir": "/there", "search.image_size": "32"}
    found = FoundStudy("s", tracking.FoundRun("r", "s", "FINISHED", {}, params, {}), ()).data(asked)
    assert (found.dataset, found.data_dir, found.image_size) == (*where, 32)


@pytest.mark.parametrize(("accuracy", "distance"), [(0.75, "5.00 points short"), (0.82, "2.00 points above")])
def test_study_shortfall_says_how_far_the_most_accurate_trial_was(accuracy, distance):
    params = {"search.accuracy_floor": "80", "search.objective": "packed_bytes"}
    tried = [
        tracking.FoundRun("", "", "", {tracking.TRIAL: str(i)}, {}, {"val_accuracy": value, "packed_bytes": 1000.0 + i})
        for i, value in enumerate((0.6, accuracy))
    ]
    found = FoundStudy("small", tracking.FoundRun("r", "s", "FINISHED", {}, params, {}), tuple(tried))
    text = found.shortfall()
    assert f"The most accurate trial, trial 001 (1,001 bytes), reached {100 * accuracy:.2f} %, {distance}." in text
    assert "floor of 80.00 % with 95 % confidence, so nothing is registered" in text


@pytest.mark.parametrize("name", ["document", "fast"])
def test_repeat_names_the_training_by_its_recipe(store, name):
    wanted = recipe(name, epochs=3, max_lr=0.02, seed=5)
    config = {key: value for key, value in asdict(wanted).items() if key != "format"}
    described = {"precision": "fp32", "model": "net10", "width": 2, "weights": "w.pt", "dataset": "digits"}
    described |= {"data_dir": "d", "adapt_head": name == "fast"}
    with tracking.tracked_run("train", "t", {**config, **described, "device": "cpu"}) as run_id:
        pass
    params = {"origin": run_id, "model": "net10-w2", "max_drop": "1", "accuracy_floor": "90", "trials": "3"}
    run = tracking.FoundRun(
        "r",
        "study",
        "FINISHED",
        {"version.torch": "2.0", "mlflow.source.git.commit": "abc"},
        {f"search.{key}": value for key, value in params.items()},
        {"dense_val_accuracy": 0.91},
    )
    found = repeat(FoundStudy("small", run, ()))
    words = shlex.split(found.commands[0].command)
    again = train_command.main.make_context("train", words[3:]).params
    figures = {key: again[key] for key in RECIPE_OPTIONS}
    assert recipe(again["recipe"], **figures) == wanted
    assert {key: again[key] for key in described} == described
    assert (found.versions, found.commit) == ({"torch": "2.0"}, "abc")
    assert "--max-drop 1 " in found.commands[1].command


def test_pipeline_with_nothing_confirmed_still_makes_the_page(store, monkeypatch):
    made = []
    training = TrainRequest(
        data=DataRequest(dataset="digits", data_dir="."), source=SourceRequest(), config=recipe("fast")
    )

    def refuse(*_):
        raise InputError("none")

    monkeypatch.setattr(pipeline, "run_training", lambda _: SimpleNamespace(run_id="r"))
    monkeypatch.setattr(pipeline, "open_source", lambda *_: SimpleNamespace(own="mynet:network"))
    monkeypatch.setattr(pipeline, "run_search", lambda *_: SimpleNamespace(study_name="small"))
    monkeypatch.setattr(pipeline, "run_register", refuse)
    monkeypatch.setattr(pipeline, "run_report", lambda name, model: made.append((name, model)))
    with pytest.raises(InputError, match="none"):
        pipeline.run_pipeline(training, replace(REQUEST, storage="grpc://me:secret@host"))
    assert made == [("small", "mynet:network")]
    (run,) = tracking.find_runs({tracking.STAGE: "main"}, statuses=("FAILED",))
    assert "secret" not in str(run)
