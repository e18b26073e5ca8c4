"""The commands that did a study, out of its runs' params."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, fields

from netprune.errors import InputError
from netprune.recipes import RECIPES, recipe
from sweeps import tracking
from sweeps.findings import Repeat, Step
from sweeps.stages.data import DATA_OPTIONS
from sweeps.stages.request import NO_DROP, SearchRequest
from sweeps.stages.scanning import SCAN_OPTIONS
from sweeps.stages.source import Source
from sweeps.stages.studies import FoundStudy
from sweeps.stages.training import RECIPE_OPTIONS

VERSION, COMMIT = "version.", "mlflow.source.git.commit"
ELSEWHERE = ("max_drop", "accuracy_floor", "trials", "scan")
"""Fields of the request that no single param gives."""


def repeat(study: FoundStudy) -> Repeat:
    """Commands, versions and params of a study."""
    tags = study.run.tags
    steps = [Step(text="Search:", command=search_command(study))]
    training = _training(study)
    if training:
        steps.insert(
            0, Step(text="Train the dense network (then name its new run with --model-uri):", command=training)
        )
    steps.append(Step(text="Register:", command=register_command(study)))
    page = {"study_name": study.name, **_own(study)}
    steps.append(Step(text="Make this page:", command=_command("report", page)))
    return Repeat(
        commands=tuple(steps),
        versions={name.removeprefix(VERSION): tags[name] for name in sorted(tags) if name.startswith(VERSION)},
        commit=tags.get(COMMIT, ""),
        params=dict(sorted(study.run.params.items())),
    )


def search_command(study: FoundStudy, **changes: int) -> str:
    """The search of this study; `changes` are options to give another value. With other trials, no further limit."""
    params = _stage_params("search", study.run)
    # a limit that ended the study would leave nothing to more trials
    left_out = {*ELSEWHERE, *(("epochs", "timeout") if "trials" in changes else ())}
    names = [each.name for each in fields(SearchRequest) if each.name not in left_out] + list(SCAN_OPTIONS)
    # a study that was gone on with has more trials than its first session asked for
    trials = max(int(params["trials"]), len(study.trials))
    options = {name: params[name] for name in (*DATA_OPTIONS, *names) if params.get(name, "None") != "None"}
    return _command(
        "search_sparsity",
        {**_source(params), **_floors(study), **options, "trials": str(trials)} | _texts(changes),
    )


def first_search_command(source: Source) -> str:
    """A search of what a stage has worked on."""
    params = source.record()
    data = {name: params[name] for name in ("dataset", "image_size", "data_dir")} if source.data_named else {}
    return _command("search_sparsity", {**_source(params), **data})


def register_command(study: FoundStudy) -> str:
    """The registration of this study, under the name that it has been given if it has."""
    before = list(study.registered().values())
    named = {"model_name": before[-1].params["register.model_name"]} if before else {}
    return _command("register", {"study_name": study.name, **named, **_own(study)})


def _own(study: FoundStudy) -> dict[str, str]:
    return {"model": study.own} if study.own else {}


def _source(params: Mapping[str, str]) -> dict[str, str]:
    """The options that name the dense network, of the store or a file and its architecture, and what is kept of it."""
    origin, network = params["origin"], params["model"]
    bounds = {name: params[name] for name in ("keep", "limit", "adapt_head") if name in params}
    if not origin.startswith("/"):
        return {"model_uri": origin, **({"model": network} if ":" in network else {}), **bounds}
    model, _, width = network.partition("-w")
    return {"weights": origin, "model": model, **({"width": width} if width else {}), **bounds}


def _floors(study: FoundStudy) -> dict[str, str]:
    """`max_drop` or `accuracy_floor`, whichever it was."""
    params = study.run.params
    name = "accuracy_floor" if params["search.max_drop"] == NO_DROP else "max_drop"
    return {name: params[f"search.{name}"]}


def _training(study: FoundStudy) -> str:
    """What trained the dense network; empty if it is of no training that the store knows."""
    origin = study.run.params["search.origin"]
    try:
        run = tracking.find_run(origin.removeprefix("runs:/").split("/")[0])
    except InputError:
        return ""
    params = _stage_params("train", run)
    known = next((name for name in RECIPES if _is_of(name, params)), None)
    if known is None:
        return ""
    names = (*DATA_OPTIONS, "model", "width", "weights", "adapt_head", "precision", *RECIPE_OPTIONS)
    given = {name: params[name] for name in names if params.get(name) not in (None, "", str(False))}
    return _command("train", {"recipe": known, **given})


def _is_of(name: str, params: Mapping[str, str]) -> bool:
    """Whether a run's figures are this recipe's, those apart that the command has options for."""
    own = {key: str(value) for key, value in asdict(recipe(name)).items() if key not in (*RECIPE_OPTIONS, "format")}
    return own.items() <= params.items()


def _stage_params(stage: str, run: tracking.FoundRun) -> dict[str, str]:
    prefix = f"{stage}."
    return {name.removeprefix(prefix): value for name, value in run.params.items() if name.startswith(prefix)}


def _texts(changes: Mapping[str, int]) -> dict[str, str]:
    return {name: str(value) for name, value in changes.items()}


def _command(module: str, options: Mapping[str, str]) -> str:
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    return shlex.join(["python", "-m", f"sweeps.{module}", *words])
