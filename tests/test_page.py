"""The study's page: whole, closed to the outside, and true to what it is given."""

import html
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from test_figures import sensitivity

from netprune.confidence import Change
from sweeps import figures
from sweeps.findings import (
    Accuracy,
    CandidateRow,
    Comparison,
    Example,
    FloorResult,
    LayerRow,
    LostTrial,
    Network,
    Plot,
    Repeat,
    StageSeconds,
    Step,
    Stopping,
    TrialRow,
)
from sweeps.page import StudyPage, render

VOID = {"meta", "img", "br"}
HOSTILE = "<script>alert('x')</script>\"&"


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return Plot(png=file.getvalue(), title="what it shows")


def network(label, packed_bytes, *, test=True):
    of = {
        "val": Accuracy(value=0.81, se=0.0055, images=5000),
        "test": Accuracy(value=0.8, se=0.0057, images=5000) if test else None,
    }
    of["change"] = Change(accuracy=-0.0123, se=0.0045) if test and label != "dense" else None
    return Network(label=label, nonzero_bytes=4 * packed_bytes, packed_bytes=packed_bytes, **of)


def floor_result(floor, accepted, lower):
    """A floor with a confirmed network."""
    of = {"seeds": (1000, 1001), "accuracies": (0.81, 0.8), "average": 0.815, "averaged": True}
    return FloorResult(floor=floor, network=accepted, lower=lower, **of)


def trial(number, *, stopped=False):
    return TrialRow(
        name=f"trial {number:03d}",
        val=None if stopped else Accuracy(value=0.8, se=0.005, images=5000),
        sparsity=None if stopped else 0.9,
        size_bytes=200_000 - number,
        feasible=number % 2 == 0 and not stopped,
        epochs=0.25 if stopped else 1.0,
        start=f"trial {number - 1:03d}" if number else "dense",
        ending="stopped early: at 25 % of its finetuning it had 55.00 %" if stopped else "in full",
    )


def stopped(number):
    """Three trials, of which so many stopped after a quarter."""
    return Stopping(
        trials=3,
        stopped=number,
        spent_epochs=3 - 0.75 * number,
        saved_epochs=0.75 * number,
        looks={0.25: number} if number else {},
        seconds=10.0 * number,
        controls=4 * number,
        wrong=number,
    )


@pytest.fixture
def page():
    return small_page()


def small_page():
    """A study of one floor with a confirmed and registered network."""
    return StudyPage(
        name="small",
        run_id="0" * 32,
        about="net10-w16 on digits",
        objective="packed size",
        dense=network("dense", 1_568_217),
        floors=(floor_result(0.79, network("pruned", 194_201), 0.795),),
        tried=True,
        candidates=(
            CandidateRow(
                name="trial 014",
                size_bytes=180_000,
                start="trial 014",
                epochs="3",
                seeds=(1000,),
                accuracies=(0.75,),
                average=None,
                lower=None,
                verdict="given up after one seed",
            ),
            CandidateRow(
                name="trial 012",
                size_bytes=194_201,
                start="trial 014, finetuned longer",
                epochs="3",
                seeds=(1000, 1001),
                accuracies=(0.81, 0.8),
                average=0.815,
                lower=0.795,
                verdict="confirmed",
            ),
        ),
        shown="the confirmed network",
        shown_network=network("the confirmed network", 194_201),
        layers=(
            LayerRow(name="conv1.0.weight", parameters=1000, kept=100, bytes=194_000.0),
            LayerRow(name="header and checksums", parameters=None, kept=None, bytes=201.0),
        ),
        trials=(trial(0), trial(1), trial(2, stopped=True)),
        lost=(LostTrial(name="trial 003", why="DivergedError: the loss is no number"),),
        stopping=stopped(1),
        stages=(
            StageSeconds(name="finetune", trials=20.0, confirmations=10.0, passes=True),
            StageSeconds(name="pack", trials=6.0, confirmations=4.0, passes=False),
        ),
        comparison=None,
        no_comparison="The data cannot be opened here.",
        plots={},
        steps=(Step(text="Register it:", command="python -m sweeps.register"),),
        storage="",
        repeat=Repeat(
            commands=(Step(text="Search:", command="python -m x"),), versions={"torch": "2"}, commit="", params={}
        ),
    )


class Reader(HTMLParser):
    """Tags that are balanced, and every attribute."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_page_with_a_confirmed_network_has_its_headline(page):
    text = Reader(render(page)).text
    assert "194,201 bytes" in text
    assert "12.38 % of the dense file's 1,568,217: 8.1 times smaller" in text
    assert "81.00 ± 0.55 % validation" in text
    assert "test 80.00 ± 0.57 %; dense 80.00 ± 0.57 %" in text
    assert "at least 79.50 % with 95 % confidence, over 2 fresh seeds; floor 79.00 %" in text
    assert "conv1.0.weight takes most of the file: 99.90 %" in text
    assert text.count("-1.23 ± 0.45 points") == 1  # beside the dense network, which has none
    assert "79.89 to 82.06 %" in text  # Wilson's interval of 81 % on 5,000 images
    assert "Nothing is confirmed" not in text


def test_page_before_registering_says_that_test_is_not_read(page):
    won = replace(page.floors[0], network=network("pruned", 194_201, test=False))
    text = Reader(render(replace(page, floors=(won,), dense=network("dense", 1_568_217, test=False)))).text
    assert "test is not read until the network is registered" in text
    assert "not read" in text
    assert "test 80" not in text
    assert "points" not in text.partition("How sure")[0]


@pytest.mark.parametrize(("tried", "why"), [(True, "once it had been finetuned again"), (False, "is no promise")])
def test_page_without_a_confirmed_network_says_so(page, tried, why):
    none = FloorResult(floor=0.79, network=None)
    text = Reader(render(replace(page, floors=(none,), tried=tried, candidates=()))).text
    assert "Nothing is confirmed:" in text
    assert why in text
    assert "How small" not in text
    assert "at least" not in text


@pytest.mark.parametrize(("number", "said"), [(1, "1 candidate has"), (2, "2 candidates have")])
def test_page_of_a_study_that_is_not_over_has_its_candidates_so_far_and_no_verdict(page, number, said):
    none, so_far = FloorResult(floor=0.79, network=None), page.candidates[:number]
    text = Reader(render(replace(page, floors=(none,), tried=False, candidates=so_far))).text
    assert f"Nothing is confirmed yet: the study is not over. So far {said} been finetuned again" in text
    assert "no trial has been finetuned again" not in text
    assert "finetuned again so far" in text
    assert f"All {number} candidate" not in text


def test_page_of_several_floors_has_a_row_and_a_line_for_each(page):
    floors = (
        FloorResult(floor=0.8, network=None),
        floor_result(0.79, network("floor 79.00 %", 194_201), 0.795),
        floor_result(0.7, network("floor 70.00 %", 90_000), 0.73),
    )
    text = Reader(render(replace(page, floors=floors))).text
    assert "Floor 80.00 %: no network is confirmed." in text
    assert "Floor 79.00 %: 194,201 bytes, at least 79.50 %" in text
    assert "Floor 70.00 %: 90,000 bytes, at least 73.00 %" in text
    assert "floor 70.00 % 81.00 ± 0.55 %" in text


def test_page_without_a_pruned_network_has_no_layers(page):
    bare = replace(page, floors=(FloorResult(floor=0.79, network=None),), shown="", shown_network=None, layers=())
    assert "there is no pruned network to show" in Reader(render(bare)).text


def test_page_says_what_stopping_saved_and_how_often_it_was_wrong(page):
    text = Reader(render(page)).text
    assert "3 trials took 2.25 finetune epochs. 1 stopped early, which saved 0.75 of them (25.00 %" in text
    assert "1 of 4 such trials ended at the floor all the same, so 25.00 % of verdicts were wrong" in text
    assert "95 % interval 5 to 70 %" in text
    assert "1 at 25 % of the finetuning, each because an earlier trial that was better there" in text
    text = Reader(render(replace(page, stopping=stopped(0)))).text
    assert "None stopped early." in text
    assert "nothing here says how often verdicts are wrong" in text


def test_page_seconds_are_of_trials_confirmations_and_what_stopped(page):
    assert page.seconds == 50
    assert page.passes_share == 0.75
    text = Reader(render(page)).text
    assert "finetune (passes) 20.0 s 10.0 s 60.00 %" in text
    assert "pack 6.0 s 4.0 s 20.00 %" in text
    assert "trials that stopped early, whole 10.0 s 20.00 %" in text
    assert "Of what ran to its end, 75.00 % are passes" in text
    none = replace(page, stages=(), stopping=stopped(0))
    assert none.passes_share is None
    assert "Seconds by stage" not in Reader(render(none)).text


def test_page_lists_every_candidate_with_its_seeds_and_verdict(page):
    text = Reader(render(page)).text
    seeds = "81.00 % (seed 1000), 80.00 % (seed 1001)"
    assert f"it had {seeds}, with the mean of their weights 81.50 %; that mean ships." in text
    worse = replace(page.floors[0], average=0.8, averaged=False)
    other = Reader(render(replace(page, floors=(worse, *page.floors[1:])))).text
    assert f"it had {seeds}, with the mean of their weights 80.00 %; the most accurate ships." in other
    assert "All 2 candidates that were finetuned again" in text
    assert "trial 014 180,000 trial 014 3 75.00 % (seed 1000) given up after one seed" in text
    begun = "trial 012 194,201 trial 014, finetuned longer 3 79.50 %"
    assert f"{begun} {seeds}, with the mean of their weights 81.50 % confirmed" in text
    assert "finetuned again</summary>" not in render(replace(page, candidates=()))


def test_page_names_trials_without_a_result_and_why(page):
    text = Reader(render(page)).text
    assert "1 more came to no result and does not count: trial 003: DivergedError: the loss is no number" in text
    assert "came to no result" not in Reader(render(replace(page, lost=()))).text


def test_page_of_a_study_in_a_database_says_where_it_lives(page):
    assert "NETPRUNE_STORAGE" not in render(page)
    text = Reader(render(replace(page, storage="postgresql://me:***@host/db"))).text
    assert "The study lives in postgresql://me:***@host/db: set NETPRUNE_STORAGE" in text


def test_page_lists_the_smallest_trials_that_meet_the_floor_first(page):
    assert [one.name for one in page.smallest] == ["trial 000", "trial 001"]
    assert Reader(render(page)).text.count("trial 002") == 1


def hostile(page):
    """`page` with a hostile text wherever a name comes from outside."""
    return replace(
        page,
        name=HOSTILE,
        about=HOSTILE,
        layers=(replace(page.layers[0], name=HOSTILE), page.layers[1]),
        shown=HOSTILE,
        trials=(replace(page.trials[0], name=HOSTILE, ending=HOSTILE),),
        lost=(LostTrial(name=HOSTILE, why=HOSTILE),),
        candidates=(replace(page.candidates[0], name=HOSTILE, verdict=HOSTILE),),
        storage=HOSTILE,
        comparison=Comparison(
            images=10,
            differ=1,
            only_dense=1,
            only_pruned=0,
            examples=(Example(png=b"x", truth=HOSTILE, dense=HOSTILE, pruned=HOSTILE),),
        ),
        steps=(Step(text=HOSTILE, command=HOSTILE),),
        repeat=Repeat(
            commands=(Step(text=HOSTILE, command=HOSTILE),),
            versions={HOSTILE: HOSTILE},
            commit=HOSTILE,
            params={HOSTILE: HOSTILE},
        ),
    )


def test_page_of_hostile_names_shows_them_and_runs_none(page):
    text = render(hostile(page))
    read = Reader(text)
    assert "script" not in read.tags
    assert HOSTILE in read.text
    assert not [attribute for attribute in read.attributes if attribute[1].startswith("on")]
    assert text.count(html.escape("<script>")) >= 15


def test_page_fetches_nothing(page):
    drawn = {"trials": png(figures.trial_history([1000, 2000], [True, False]))}
    read = Reader(render(replace(hostile(page), plots=drawn)))
    links = [value for _, name, value in read.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert len(links) == 2
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert not {"link", "script", "iframe", "object", "base"} & set(read.tags)
    assert not re.search(r"url\(|@import|https?://", render(page))
    assert ("meta", "http-equiv", "Content-Security-Policy") in read.attributes


def test_page_is_a_document_for_phone_print_and_dark(page):
    text = render(page)
    assert text.startswith("<!DOCTYPE html>")
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in text
    assert "@media print" in text
    assert "details::details-content { content-visibility: visible" in text  # nothing stays folded on paper
    assert "prefers-color-scheme: dark" in text
    read = Reader(text)
    assert ("html", "lang", "en") in read.attributes
    assert read.tags.count("title") == read.tags.count("h1") == 1


def test_page_of_the_same_study_is_the_same_bytes(page):
    assert render(page) == render(page)


def encoded(image):
    file = io.BytesIO()
    matplotlib.image.imsave(file, image, format="png")
    return file.getvalue()


def large_page():
    """A study of 200 trials on a network of VGG16's 16 layers, with all of its figures."""
    rng = np.random.default_rng(0)
    layers = [f"features.{i}.weight" for i in range(16)]
    weights = {layer: rng.normal(size=20_000).astype(np.float32) for layer in layers}
    sizes, accuracies = rng.uniform(1e5, 3e5, 200), rng.uniform(0.7, 0.9, 200)
    drawn = {
        "size_against_accuracy": figures.size_against_accuracy(sizes, accuracies, (0.8,), (1.5e6, 0.9)),
        "trials": figures.trial_history(sizes, accuracies > 0.8, accuracies < 0.75),
        "confusion": figures.confusion(rng.integers(0, 500, (10, 10)), [f"class {i}" for i in range(10)]),
        "sensitivity": figures.sensitivity_curves(sensitivity(16)),
        "weights_before": figures.weight_histograms(weights, nonzero_only=False),
    }
    plots = {name: png(figure) for name, figure in drawn.items()}
    plots |= {f"weights_{which}": plots["weights_before"] for which in ("before_nonzero", "after", "after_nonzero")}
    noise = rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    examples = tuple(Example(png=encoded(each), truth="cat", dense="cat", pruned="dog") for each in noise)
    return replace(
        small_page(),
        plots=plots,
        layers=tuple(LayerRow(name=name, parameters=9, kept=1, bytes=1.0) for name in layers),
        trials=tuple(trial(number, stopped=number % 3 == 0) for number in range(200)),
        comparison=Comparison(images=5000, differ=24, only_dense=14, only_pruned=10, examples=examples),
    )


def test_page_of_200_trials_and_16_layers_is_under_3_mb():
    text = render(large_page())
    Reader(text)
    assert 1_000_000 < len(text.encode()) < 3_000_000
