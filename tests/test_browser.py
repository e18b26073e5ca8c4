"""The study's page and MLflow's UI, as a browser shows them."""

import os
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import studies
from browsing import browser, expand, missing, mlflow_ui, opened, visit
from studies import DATA
from test_page import large_page

from netprune.header import PackedHeader
from netprune.models import Architecture, build_model
from netprune.recipes import TrainConfig
from netprune.training import train
from netprune.weights import weights_digest
from sweeps.page import render
from sweeps.stages.registering import run_register
from sweeps.stages.reporting import PAGE, run_report
from sweeps.stages.searching import run_search
from sweeps.stages.source import Source
from sweeps.store import open_store

pytestmark = [pytest.mark.end_to_end, pytest.mark.skipif(bool(missing()), reason=missing())]

TRIALS = 30
PICTURES = Path(__file__).parents[1] / "build" / "screenshots"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "device_scale_factor": 2}
REQUEST = replace(studies.REQUEST, trials=TRIALS, confirm_epochs=1.0)


@pytest.fixture(scope="module")
def studied(tmp_path_factory, tiny_dataset, fresh_database):
    """The folder of a store with a study of 30 trials, registered and reported; its run's id."""
    folder, architecture = tmp_path_factory.mktemp("studied"), Architecture(name="net10", num_classes=3, width=2)
    (folder / "mlflow.db").write_bytes(fresh_database.read_bytes())
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)  # MLflow keeps the experiment of an earlier test there
        patch.chdir(folder)
        patch.setattr("sweeps.stages.studies.open_data", lambda _: (tiny_dataset, None))
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        open_store()
        net = build_model(architecture, seed=0)
        train(net, tiny_dataset, TrainConfig(epochs=12, batch_size=16))
        header = PackedHeader(
            architecture=architecture,
            classes=tiny_dataset.classes,
            mean=tiny_dataset.mean,
            std=tiny_dataset.std,
            dense_digest=weights_digest(net),
        )
        outcome = run_search(Source(net, header, tiny_dataset, DATA, "here"), REQUEST)
        run_register("small", "", DATA)
        run_report("small")
        page = Path(mlflow.artifacts.download_artifacts(f"runs:/{outcome.run_id}/{PAGE}", dst_path=str(folder)))
    mlflow.set_tracking_uri(before)
    return folder, outcome.run_id, page


@pytest.fixture(scope="module")
def chromium():
    PICTURES.mkdir(parents=True, exist_ok=True)
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def ui(studied, tmp_path_factory):
    with mlflow_ui(studied[0] / "mlflow.db", tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.mark.parametrize("options", [{}, PHONE], ids=["desk", "phone"])
def test_page_of_a_study_opens_whole_and_fits_the_screen(studied, chromium, options, request):
    with opened(chromium, **options) as (page, wrong):
        page.goto(studied[2].as_uri())
        pictures = page.locator("img")
        assert pictures.count() >= 9
        assert pictures.evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")
        # wide tables and figures scroll by themselves; the page does not
        assert page.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth")
        for summary in page.locator("summary").all():
            summary.click()
        assert page.get_by_role("row", name="trial 029").first.is_visible()
        page.screenshot(path=PICTURES / f"report-{request.node.callspec.id}.png", full_page=True)
        assert wrong == []


def test_page_of_a_large_network_shows_its_whole_headline_in_a_small_window(chromium, tmp_path):
    study = large_page()
    large = {"nonzero_bytes": 26_816_552, "packed_bytes": 22_488_979}
    path = tmp_path / "wide.html"
    path.write_text(render(replace(study, dense=replace(study.dense, **large))))
    with opened(chromium, viewport={"width": 1000, "height": 800}) as (page, wrong):
        page.goto(path.as_uri())
        headline = page.locator(".scroll", has_text="beside dense").first
        assert headline.evaluate("one => one.scrollWidth <= one.clientWidth")
        assert wrong == []


def test_page_of_a_study_prints_what_is_folded(studied, chromium):
    with opened(chromium) as (page, wrong):
        page.goto(studied[2].as_uri())
        page.emulate_media(media="print")
        last = page.get_by_role("row", name="trial 029").last
        assert last.is_visible()
        page.pdf(path=PICTURES / "report.pdf")
        assert wrong == []


def test_page_of_200_trials_and_16_layers_is_drawn_in_under_2_seconds(chromium, tmp_path):
    """The best of three: other tests run beside this one."""
    path = tmp_path / "large.html"
    path.write_text(render(large_page()))
    seconds = []
    for _ in range(3):
        with opened(chromium) as (page, wrong):
            page.goto(path.as_uri())
            page.evaluate("Promise.all([...document.images].map(one => one.decode()))")
            seconds.append(page.evaluate("performance.now()") / 1000)
            assert wrong == []
    assert min(seconds) < 2


def test_ui_shows_the_study_and_tells_its_trials_apart_without_a_click_on_a_column(studied, ui, chromium):
    with opened(chromium) as (page, wrong):
        visit(page, ui, "experiments/1/runs")
        expand(page, "study small")
        page.locator(".ag-row", has_text="trial 028").wait_for()
        names = page.locator(".ag-row", has_text=" · trial ").all_inner_texts()
        assert len(names) > 10
        assert all(any(mark in name for mark in "✓✗") for name in names)
        page.screenshot(path=PICTURES / "runs.png")
        assert [error for error in wrong if not _is_mlflows_own(error)] == []


def test_ui_draws_charts_of_the_trials(studied, ui, chromium):
    with opened(chromium) as (page, wrong):
        visit(page, ui, "experiments/1/runs?compareRunsMode=CHART")
        expand(page, "study small")
        page.get_by_placeholder("Search metric charts").fill("packed_bytes")
        page.get_by_text("packed_bytes", exact=True).first.wait_for()
        page.locator("svg.main-svg").first.wait_for()
        page.get_by_text(" · trial 0").first.wait_for()
        page.screenshot(path=PICTURES / "charts.png")
        assert [error for error in wrong if not _is_mlflows_own(error)] == []


def test_ui_study_has_its_description_its_children_and_its_page(studied, ui, chromium):
    with opened(chromium) as (page, wrong):
        visit(page, ui, f"experiments/1/runs/{studied[1]}")
        page.get_by_text("The smallest file of net10-w2 on tiny").wait_for()
        page.get_by_text("Child runs", exact=True).wait_for()
        page.screenshot(path=PICTURES / "study.png")
        visit(page, ui, f"experiments/1/runs/{studied[1]}/artifacts/{PAGE}")
        inside = page.frame_locator("iframe").get_by_role("heading", name="Study small")
        inside.wait_for()
        page.screenshot(path=PICTURES / "artifact.png")
        assert [error for error in wrong if not _is_mlflows_own(error)] == []


def test_ui_champion_has_its_alias_and_says_what_it_is(studied, ui, chromium):
    with opened(chromium) as (page, wrong):
        visit(page, ui, "models/net10-w2-tiny/versions/1")
        page.get_by_text("@ champion").first.wait_for()
        page.get_by_text("The confirmed network of study small for a floor of 50.00 %").wait_for()
        page.get_by_text("register net10-w2-tiny").first.wait_for()
        page.screenshot(path=PICTURES / "champion.png")
        assert [error for error in wrong if not _is_mlflows_own(error)] == []


def _is_mlflows_own(error):
    """Of MLflow 3.17: it asks who is logged in where nobody can be, and its tables outgrow an observer."""
    return "404 (Not Found)" in error or "ResizeObserver" in error
