"""A study's winners: evaluated once on test, logged as models, registered under aliases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from netprune.confidence import Change, paired_change
from netprune.data import Dataset
from netprune.evaluation import evaluate, image_losses, summarise
from netprune.packing import PackedModel, pack
from netprune.size import measure_size
from sweeps import artifacts, registry, tracking
from sweeps.inputs import log_data
from sweeps.stages.data import DataRequest
from sweeps.stages.describing import study_note, version_note
from sweeps.stages.starting import PACKED_FILE
from sweeps.stages.studies import (
    CHANGE,
    CHANGE_SE,
    DENSE,
    FoundStudy,
    Winner,
    find_study,
    logged_change,
    open_study_data,
)
from sweeps.table import count, percent, points, table


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One network as the closing table shows it. Accuracies are in [0, 1], with their standard errors."""

    val_accuracy: float
    val_accuracy_se: float
    test_accuracy: float
    test_accuracy_se: float
    test_loss: float
    packed_bytes: int
    nonzero_bytes: int

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """As a run keeps it."""
        return {f"{prefix}{name}": float(getattr(self, name)) for name in self.__slots__}

    @classmethod
    def of(cls, metrics: Mapping[str, float], prefix: str = "") -> Measured:
        """Back from a run's metrics."""
        found = {name: metrics[f"{prefix}{name}"] for name in cls.__slots__}
        sizes = {name: int(value) for name, value in found.items() if name.endswith("_bytes")}
        return cls(**{**found, **sizes})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Version:
    """One registered network."""

    floor: float
    """In [0, 1]."""
    number: int
    aliases: tuple[str, ...]
    already: bool
    """Whether this network was registered before."""
    measured: Measured
    change: Change
    """Of accuracy on test, from the dense network to this one."""


@dataclass(frozen=True, slots=True)
class RegisterOutcome:
    """A study's registered networks, and what stands beside them."""

    name: str
    dense: Measured
    versions: tuple[Version, ...]
    """The one of the highest floor first: it is the champion."""

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.name}@{registry.CHAMPION}"


def run_register(study_name: str, model_name: str, request: DataRequest, model: str = "") -> RegisterOutcome:
    """Register the confirmed network of each floor; run twice, they stay one version each, and test stays read once.

    Args:
        study_name: empty for the newest study.
        model_name: of the registered model; empty for `<network>-<data set>`.
        request: device, and where the data is if it has moved.
        model: `module:function` that builds the networks, if they are of the user's own class.

    Raises:
        InputError: for a name that cannot be one, and if there is no study, it has no confirmed network, its networks
            cannot be built, or the data is not the study's: nothing is registered then, and test is not read.
    """
    if model_name:
        registry.require_name(model_name)
    study = find_study(study_name, model)
    winners = study.winners()
    data = study.data(request)
    network = study.run.params["search.model"].rpartition(":")[2]
    name = model_name or registry.default_name(network, Path(data.dataset).name)
    desk = _Desk(study, name, request)
    versions = tuple(desk.version(won, desk.aliases(won, first=won is winners[0])) for won in winners)
    tracking.set_tags({tracking.NOTE: study_note(study)}, study.run.run_id)
    return RegisterOutcome(name, desk.dense, versions)


class _Desk:
    """Where one study's networks are registered. Data is opened, and test read, only for a network that is new."""

    def __init__(self, study: FoundStudy, name: str, request: DataRequest) -> None:
        self.study, self.name, self.request = study, name, request
        self._known: Measured | None = None

    @property
    def dense(self) -> Measured:
        """Of the dense network."""
        return self._dense[0] if self._known is None else self._known

    @cached_property
    def _dense(self) -> tuple[Measured, Tensor]:
        return _measure(self.study.dense(), self.dataset)

    @cached_property
    def dataset(self) -> Dataset:
        """The study's."""
        return open_study_data(self.study, self.request)[0]

    def aliases(self, won: Winner, *, first: bool) -> tuple[str, ...]:
        """`champion` for the highest floor's; `floor-90-50` as well where a study has several."""
        several = (f"floor-{100 * won.floor:.2f}".replace(".", "-"),) if len(self.study.floors) > 1 else ()
        return (*((registry.CHAMPION,) if first else ()), *several)

    def version(self, won: Winner, aliases: tuple[str, ...]) -> Version:
        """The version that holds a winner, registered now or before."""
        key = {registry.TRIAL: won.run.run_id}
        known = registry.find_version(self.name, key)
        if known is not None:
            number, run_id = known
            metrics = tracking.find_run(run_id).metrics
            self._known = Measured.of(metrics, DENSE)
            registry.give_aliases(self.name, number, aliases)
            return Version(won.floor, number, aliases, True, Measured.of(metrics), logged_change(metrics))
        return self._register(won, aliases, key)

    def _register(self, won: Winner, aliases: tuple[str, ...], key: Mapping[str, str]) -> Version:
        pruned = self.study.pruned(won.run)
        (measured, right), (dense, dense_right) = _measure(pruned, self.dataset), self._dense
        gained, lost = (int((one & ~other).sum()) for one, other in ((right, dense_right), (dense_right, right)))
        change = paired_change(gained, lost, len(right))
        images = {"val_images": float(len(self.dataset.val)), "test_images": float(len(self.dataset.test))}
        metrics = dense.metrics(DENSE) | measured.metrics() | images | {"val_accuracy_lower": won.lower}
        metrics |= {CHANGE: change.accuracy, CHANGE_SE: change.se}
        data = self.study.data(self.request)
        config = {
            "study_name": self.study.name,
            "model_name": self.name,
            "dataset": data.dataset,
            "image_size": data.image_size,
            "data_dir": data.data_dir,
            "accuracy_floor": 100 * won.floor,
            **key,
        }
        tags = {tracking.STUDY: self.study.name, tracking.STUDY_RUN: self.study.run.run_id}
        with tracking.tracked_run("register", f"register {self.name}", config, tags=tags) as run_id:
            log_data(self.dataset, data.data_dir, ("val", "test"))
            tracking.log(metrics)
            file = artifacts.read_artifact(won.run.run_id, PACKED_FILE)
            own = self.study.model if self.study.own else ""
            uri = registry.log_model(file, pruned.header, own=own, metadata={"study": self.study.name})
            load = (uri, *(f"models:/{self.name}@{alias}" for alias in aliases))
            number = registry.register_model(
                uri,
                self.name,
                run_id=run_id,
                tags={**key, "study": self.study.name} | {k: tracking.number(v) for k, v in metrics.items()},
                description=version_note(self.study, won, metrics, load),
                aliases=aliases,
            )
        return Version(won.floor, number, aliases, False, measured, change)


def summary_table(outcome: RegisterOutcome) -> str:
    """Dense beside pruned: accuracies with their standard errors, on test also image by image, and bytes."""
    several = len(outcome.versions) > 1
    named = [
        (f"floor {percent(v.floor)}" if several else "pruned", points(v.change.accuracy, v.change.se), v.measured)
        for v in outcome.versions
    ]
    rows = [
        [
            label,
            percent(m.val_accuracy, m.val_accuracy_se),
            percent(m.test_accuracy, m.test_accuracy_se),
            beside,
            count(m.nonzero_bytes),
            count(m.packed_bytes),
            f"{100 * m.packed_bytes / outcome.dense.packed_bytes:.2f} %",
        ]
        for label, beside, m in (("dense", "", outcome.dense), *named)
    ]
    header = ["network", "val accuracy", "test accuracy", "beside dense", "nonzero bytes", "packed bytes", "of dense"]
    return table(header, rows)


def registered_lines(outcome: RegisterOutcome) -> str:
    """A line for each version: its number, its aliases, what to load it by."""
    return "\n".join(
        f"{'already registered' if version.already else 'registered'}: {outcome.name} version {version.number}, "
        f"alias {alias} (models:/{outcome.name}@{alias})"
        for version in outcome.versions
        for alias in version.aliases
    )


def _measure(packed: PackedModel, dataset: Dataset) -> tuple[Measured, Tensor]:
    """And which test images it has right."""
    model = packed.model.to(dataset.test.labels.device)
    val, (losses, right) = evaluate(model, dataset.val, dataset), image_losses(model, dataset.test, dataset)
    test = summarise(losses, right)
    measured = Measured(
        val_accuracy=val.accuracy,
        val_accuracy_se=val.accuracy_se,
        test_accuracy=test.accuracy,
        test_accuracy_se=test.accuracy_se,
        test_loss=test.loss,
        packed_bytes=len(pack(model, packed.header)),
        nonzero_bytes=measure_size(model).nonzero_bytes,
    )
    return measured, right
