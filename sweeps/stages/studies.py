"""A finished study as the store knows it: what `register` and `report` start from."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from netprune.confidence import Change
from netprune.data import Dataset
from netprune.errors import InputError
from netprune.factory import builder
from netprune.packing import PackedModel, unpack
from sweeps import artifacts, registry, tracking
from sweeps.inputs import check_data
from sweeps.stages.confirming import CONFIRMED_FILE
from sweeps.stages.contest import Confirmed
from sweeps.stages.data import AUTO, NORMALISATION, DataRequest, normalisation, open_data
from sweeps.stages.longer import SEED
from sweeps.stages.starting import PACKED_FILE
from sweeps.stages.trials import DENSE_FILE
from sweeps.table import count, percent, trial_name

DENSE = "dense_"
"""What a run's metrics of the dense network begin with, beside those of another."""
CHANGE, CHANGE_SE = "test_accuracy_change", "test_accuracy_change_se"
"""Metrics: by how much a network is more accurate on test than the dense one, image by image."""
EVERY = 100_000
"""More trials than any study has."""


@dataclass(frozen=True, slots=True)
class Winner:
    """The confirmed network of one floor."""

    floor: float
    """In [0, 1]."""
    run: tracking.FoundRun
    """The confirmation whose network ships."""
    seeds: tuple[int, ...]
    """Fresh ones, with which it was finetuned again."""
    accuracies: tuple[float, ...]
    """Validation, one a seed."""
    average: float | None
    """The same of the network with the mean of their weights, if there is one."""
    averaged: bool
    """Whether that one ships; else the most accurate does."""
    accuracy: float
    """What its bound is of: the average's, or the mean over the seeds."""
    lower: float
    """Lower end of the one-sided 95 % confidence interval of the accuracy."""


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """A study's run and those of its trials."""

    name: str
    run: tracking.FoundRun
    trials: tuple[tracking.FoundRun, ...]
    """Finished ones, in the order they ran."""
    model: str = ""
    """As the user gave it: `module:function`, for networks of the user's own class."""

    @property
    def floors(self) -> tuple[float, ...]:
        """Least validation accuracies, each in [0, 1], the highest first."""
        return tuple(float(floor) / 100 for floor in self.run.params["search.accuracy_floor"].split(","))

    @property
    def floor(self) -> float:
        """The highest of the floors."""
        return self.floors[0]

    @property
    def objective(self) -> str:
        """The metric that the study minimises."""
        return self.run.params["search.objective"]

    @property
    def finished(self) -> tuple[tracking.FoundRun, ...]:
        """Trials that did not stop early."""
        return tuple(trial for trial in self.trials if "val_accuracy" in trial.metrics)

    @property
    def best(self) -> tracking.FoundRun | None:
        """The smallest trial that meets the highest floor; the more accurate one of equals."""
        feasible = [trial for trial in self.trials if trial.tags.get(tracking.FEASIBLE) == "true"]
        return min(feasible, key=lambda t: (t.metrics[self.objective], -t.metrics["val_accuracy"]), default=None)

    def winners(self) -> tuple[Winner, ...]:
        """The confirmed network of each floor that has one, that of the highest floor first.

        Raises:
            InputError: if there is none; it says how far the search has come.
        """
        if not self.trials:
            raise InputError(f"study {self.name} has no finished trial: run `python -m sweeps.search_sparsity` first.")
        if tracking.CONFIRMED not in self.run.tags:
            raise InputError(
                f"study {self.name} is not confirmed: run `python -m sweeps.search_sparsity` again with the same "
                f"options (and confirm_seeds of at least 2)."
            )
        found = tuple(won for won in self.confirmed().values() if won is not None)
        if not found:
            raise InputError(self.shortfall())
        return found

    def confirmed(self) -> dict[float, Winner | None]:
        """Floor → its confirmed network, or None where no candidate was accepted; empty before any was confirmed."""
        if tracking.CONFIRMED not in self.run.tags:
            return {}
        kept = json.loads(artifacts.read_artifact(self.run.run_id, CONFIRMED_FILE))
        return {floor: won and _winner(floor, won) for floor, won in zip(self.floors, kept.values(), strict=True)}

    def shortfall(self) -> str:
        """That nothing is confirmed, how far the most accurate trial was from the lowest floor, and what may help."""
        floor = self.floors[-1]
        near = max(self.finished, key=lambda trial: trial.metrics["val_accuracy"], default=None)
        nearest = ""
        if near is not None:
            accuracy = near.metrics["val_accuracy"]
            nearest = (
                f" The most accurate trial, {trial_name(int(near.tags[tracking.TRIAL]))} "
                f"({count(int(near.metrics[self.objective]))} bytes), reached {percent(accuracy)}, "
                f"{100 * abs(accuracy - floor):.2f} points {'short' if accuracy < floor else 'above'}."
            )
        return (
            f"no network of study {self.name} is at its floor of {percent(floor)} with 95 % confidence, so "
            f"nothing is registered.{nearest} Add trials or finetune_epochs, or allow a larger max_drop."
        )

    @property
    def own(self) -> str:
        """`module:function`, as its run has it, for networks of the user's own class; else empty."""
        network = self.run.params.get("search.model", "")
        return network if ":" in network else ""

    def dense(self) -> PackedModel:
        """The dense network that the study pruned."""
        return self.read(artifacts.read_artifact(self.run.run_id, DENSE_FILE))

    def pruned(self, run: tracking.FoundRun) -> PackedModel:
        """The network of a trial or a confirmation, as its file loads."""
        return self.read(artifacts.read_artifact(run.run_id, PACKED_FILE))

    def read(self, file: bytes) -> PackedModel:
        """The network in a packed file of the study's.

        Raises:
            InputError: for a network of the user's own class, if the user does not name what builds it.
        """
        return unpack(file, builder(self.model, self.own), max_bytes=sys.maxsize)  # our own, however large

    def registered(self) -> dict[str, tracking.FoundRun]:
        """Run id of a network → the newest run that registered it: what that read of test is there."""
        runs = tracking.find_runs({tracking.STAGE: "register", tracking.STUDY_RUN: self.run.run_id})
        return {run.params[f"register.{registry.TRIAL}"]: run for run in reversed(runs)}

    def confirmations(self) -> tuple[tracking.FoundRun, ...]:
        """The finetunings of candidates with fresh seeds, in the order they ran."""
        tags = {tracking.STAGE: "confirm", tracking.PARENT: self.run.run_id}
        return tuple(tracking.find_runs(tags, order_by="attributes.start_time ASC"))

    def lost(self) -> tuple[tracking.FoundRun, ...]:
        """Trials that came to no result: they diverged, failed, or their worker died."""
        tags, ended = {tracking.STAGE: "trial", tracking.PARENT: self.run.run_id}, ("FAILED", "KILLED")
        return tuple(tracking.find_runs(tags, order_by="attributes.start_time ASC", statuses=ended))

    @property
    def image_size(self) -> int:
        """Side of its images, in pixels."""
        return int(self.run.params["search.image_size"])

    def data(self, request: DataRequest) -> DataRequest:
        """`request`, with what is `auto` in it, and the size of the images, replaced by the study's own."""
        params = self.run.params
        size = self.image_size if request.image_size is None else request.image_size
        own = request.dataset == AUTO
        dataset = params["search.dataset"] if own else request.dataset
        data_dir = params["search.data_dir"] if own and request.data_dir == AUTO else request.data_dir
        mean, std = normalisation({name: params.get(f"search.{name}", AUTO) for name in NORMALISATION}).values()
        return replace(request, dataset=dataset, data_dir=data_dir, image_size=size, mean=mean, std=std).resolved()


def find_study(name: str, model: str = "") -> FoundStudy:
    """The study `name`, or the newest one for an empty name.

    Args:
        name: of the study.
        model: `module:function` that builds its networks, if they are of the user's own class.

    Raises:
        InputError: if the store has none.
    """
    if '"' in name:
        raise InputError(f"study_name is {name!r}, and no study has a name with double quotes: leave them out.")
    tags = {tracking.STAGE: "search"} | ({tracking.STUDY: name} if name else {})
    # a study that was interrupted has trials too
    runs = tracking.find_runs(tags, statuses=("FINISHED", "KILLED", "FAILED", "RUNNING"), limit=EVERY)
    runs = [run for run in runs if tracking.STUDY in run.tags and "accuracy_floor" in run.metrics]
    if not runs:
        which = f"no study {name}" if name else "no study"
        raise InputError(f"there is {which} in the store: run `python -m sweeps.search_sparsity` first.")
    return study_of(runs[0], model)


def study_of(run: tracking.FoundRun, model: str = "") -> FoundStudy:
    """The study that a search's run is of; `model` as in `find_study`."""
    tags = {tracking.STAGE: "trial", tracking.PARENT: run.run_id}
    trials = tracking.find_runs(tags, order_by="attributes.start_time ASC", limit=EVERY)
    return FoundStudy(run.tags[tracking.STUDY], run, tuple(trials), model)


def version_uri(registered: tracking.FoundRun) -> str | None:
    """`models:/<name>/<version>` of what a run registered, or None if that version is no more."""
    name, key = registered.params["register.model_name"], registered.params[f"register.{registry.TRIAL}"]
    known = registry.find_version(name, {registry.TRIAL: key})
    return f"models:/{name}/{known[0]}" if known else None


def file_uri(run: tracking.FoundRun) -> str:
    """Where the packed file of a trial or a confirmation is, for `mlflow.artifacts.download_artifacts`."""
    return f"runs:/{run.run_id}/{PACKED_FILE}"


def open_study_data(study: FoundStudy, request: DataRequest) -> tuple[Dataset, DataRequest]:
    """The data that the study worked on, on its device.

    Raises:
        InputError: if it cannot be opened, or is not the study's: images of another size, or others.
    """
    data = study.data(request)
    if data.image_size != study.image_size:
        side = study.image_size
        raise InputError(
            f"study {study.name} is of images of {side}×{side}, not {data.image_size}: leave image_size at auto."
        )
    dataset, _ = open_data(data)
    check_data(dataset, study.run.run_id, f"study {study.name}")
    return dataset, data


def _winner(floor: float, kept: Mapping[str, Any]) -> Winner:
    won = Confirmed.of_json(kept)
    return Winner(
        floor=floor,
        run=tracking.find_run(won.run_id),
        seeds=tuple(int(tracking.find_run(run_id).tags[SEED]) for run_id in won.run_ids),
        accuracies=won.accuracies,
        average=won.average,
        averaged=won.averaged,
        accuracy=won.accuracy,
        lower=won.lower,
    )


def logged_change(metrics: Mapping[str, float]) -> Change:
    """From the metrics of the run that registered a network.

    Raises:
        InputError: if that was by a netprune that did not compare the two.
    """
    if CHANGE not in metrics:
        raise InputError(
            "a network of this study was registered without its comparison with the dense one on test, by an earlier "
            "netprune: delete its registered model and the run that registered it, and run register again."
        )
    return Change(accuracy=metrics[CHANGE], se=metrics[CHANGE_SE])
