"""A finished study as the store knows it: what `register` and `report` start from."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from netprune.data import Dataset
from netprune.errors import InputError
from netprune.packing import PackedModel, read_packed
from sweeps import tracking
from sweeps.stages.searching import DENSE_FILE, PACKED_FILE
from sweeps.stages.source import AUTO, DataRequest, open_data
from sweeps.table import count, percent


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """A study's run and those of its trials."""

    name: str
    run: tracking.FoundRun
    trials: tuple[tracking.FoundRun, ...]
    """Finished ones, in the order they ran."""

    @property
    def floor(self) -> float:
        """Least validation accuracy, in [0, 1]."""
        return self.run.metrics["accuracy_floor"]

    @property
    def objective(self) -> str:
        """The metric that the study minimises."""
        return self.run.params["search.objective"]

    @property
    def best(self) -> tracking.FoundRun | None:
        """The smallest trial that meets the floor; the more accurate one of equals."""
        feasible = [trial for trial in self.trials if trial.tags.get(tracking.FEASIBLE) == "true"]
        return min(feasible, key=lambda t: (t.metrics[self.objective], -t.metrics["val_accuracy"]), default=None)

    def require_best(self) -> tracking.FoundRun:
        """`best`.

        Raises:
            InputError: if no trial meets the floor; it says how far the nearest one was.
        """
        if self.best is not None:
            return self.best
        if not self.trials:
            raise InputError(f"study {self.name} has no finished trial: run `python -m sweeps.search_sparsity` first.")
        near = max(self.trials, key=lambda trial: trial.metrics["val_accuracy"])
        accuracy = near.metrics["val_accuracy"]
        raise InputError(
            f"no trial of study {self.name} meets its floor of {percent(self.floor)}, so nothing is registered: the "
            f"nearest, {near.name.removeprefix(self.name).strip()} ({count(int(near.metrics[self.objective]))} bytes), "
            f"reached {percent(accuracy)}, {100 * (self.floor - accuracy):.2f} points short. Add trials or "
            f"finetune_epochs, or allow a larger max_drop."
        )

    def dense(self) -> PackedModel:
        """The dense network that the study pruned."""
        return _fetch(self.run.run_id, DENSE_FILE)

    def pruned(self, trial: tracking.FoundRun) -> PackedModel:
        """The network of one trial, as its file loads."""
        return _fetch(trial.run_id, PACKED_FILE)

    def data(self, request: DataRequest) -> DataRequest:
        """`request`, with the data set `auto` replaced by the study's own."""
        if request.dataset != AUTO:
            return request.resolved()
        params = self.run.params
        return DataRequest(dataset=params["search.dataset"], data_dir=params["search.data_dir"], device=request.device)


def find_study(name: str) -> FoundStudy:
    """The study `name`, or the newest one for an empty name.

    Raises:
        InputError: if the store has none.
    """
    tags = {tracking.STAGE: "search"} | ({tracking.STUDY: name} if name else {})
    # a study that was interrupted has trials too
    runs = tracking.find_runs(tags, statuses=("FINISHED", "KILLED", "FAILED", "RUNNING"), limit=1)
    runs = [run for run in runs if tracking.STUDY in run.tags and "accuracy_floor" in run.metrics]
    if not runs:
        which = f"no study {name}" if name else "no study"
        raise InputError(f"there is {which} in the store: run `python -m sweeps.search_sparsity` first.")
    found = runs[0].tags[tracking.STUDY]
    trials = tracking.find_runs({tracking.STAGE: "trial", tracking.STUDY: found}, order_by="attributes.start_time ASC")
    return FoundStudy(found, runs[0], tuple(trials))


def open_study_data(study: FoundStudy, request: DataRequest) -> tuple[Dataset, DataRequest]:
    """The data that the study worked on, on its device."""
    data = study.data(request)
    dataset, _ = open_data(data)
    return dataset, data


def _fetch(run_id: str, name: str) -> PackedModel:
    with tempfile.TemporaryDirectory() as scratch:
        return read_packed(tracking.fetch_artifact(run_id, name, Path(scratch)))
