"""The study's winner: evaluated once on test, logged as a model, registered as champion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from netprune.data import Dataset
from netprune.evaluation import Evaluation, evaluate
from netprune.packing import PackedModel, pack
from netprune.size import measure_size
from sweeps import registry, tracking
from sweeps.stages.searching import PACKED_FILE
from sweeps.stages.source import DataRequest, short_name
from sweeps.stages.studies import find_study, open_study_data
from sweeps.table import count, percent, table


@dataclass(frozen=True, slots=True)
class Measured:
    """One network as the closing table shows it."""

    val: Evaluation
    test: Evaluation
    packed_bytes: int
    nonzero_bytes: int


@dataclass(frozen=True, slots=True)
class RegisterOutcome:
    """A registered model, and what stands beside it."""

    name: str
    version: int
    already: bool
    """Whether this trial was the champion before."""
    dense: Measured
    pruned: Measured

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.name}@{registry.CHAMPION}"


def run_register(study_name: str, model_name: str, request: DataRequest) -> RegisterOutcome:
    """Register the smallest trial that meets the floor; run twice, it stays one version.

    Args:
        study_name: empty for the newest study.
        model_name: of the registered model; empty for `<network>-<data set>`.
        request: device, and where the data is if it has moved.

    Raises:
        InputError: if there is no study, or no trial of it meets the floor: nothing is registered then.
    """
    study = find_study(study_name)
    best = study.require_best()
    dataset, data = open_study_data(study, request)
    dense, pruned = study.dense(), study.pruned(best)
    dense_measured = _measure(dense, dataset)
    pruned_measured = _measure(pruned, dataset)
    name = model_name or f"{short_name(pruned.header.architecture)}-{Path(data.dataset).name}"
    key = {registry.TRIAL: best.run_id}
    known = registry.champion_version(name, key)
    if known is not None:
        return RegisterOutcome(name, known, True, dense_measured, pruned_measured)
    config = {"study_name": study.name, "model_name": name, "dataset": data.dataset, "data_dir": data.data_dir, **key}
    with tracking.tracked_run("register", f"register {name}", config, tags={tracking.STUDY: study.name}) as run_id:
        metrics = _metrics(dense_measured, "dense_") | _metrics(pruned_measured, "")
        tracking.log_metrics(metrics)
        file = tracking.read_artifact(best.run_id, PACKED_FILE)
        uri = registry.log_model(file, pruned.header, metadata={"study": study.name})
        version = registry.register_model(
            uri,
            name,
            run_id=run_id,
            tags=key | {"study": study.name} | {k: f"{v:.6g}" for k, v in metrics.items()},
            description=_describe(study.name, study.floor, dense_measured, pruned_measured),
        )
    return RegisterOutcome(name, version, False, dense_measured, pruned_measured)


def summary_table(outcome: RegisterOutcome) -> str:
    """Dense beside pruned: accuracies with their standard errors, and bytes."""
    rows = [
        [
            label,
            percent(m.val.accuracy, m.val.accuracy_se),
            percent(m.test.accuracy, m.test.accuracy_se),
            count(m.nonzero_bytes),
            count(m.packed_bytes),
            f"{100 * m.packed_bytes / outcome.dense.packed_bytes:.2f} %",
        ]
        for label, m in (("dense", outcome.dense), ("pruned", outcome.pruned))
    ]
    return table(["network", "val accuracy", "test accuracy", "nonzero bytes", "packed bytes", "of dense"], rows)


def _measure(packed: PackedModel, dataset: Dataset) -> Measured:
    model = packed.model.to(dataset.test.labels.device)
    return Measured(
        val=evaluate(model, dataset.val, dataset),
        test=evaluate(model, dataset.test, dataset),
        packed_bytes=len(pack(model, packed.header)),
        nonzero_bytes=measure_size(model).nonzero_bytes,
    )


def _metrics(measured: Measured, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}val_accuracy": measured.val.accuracy,
        f"{prefix}test_accuracy": measured.test.accuracy,
        f"{prefix}test_accuracy_se": measured.test.accuracy_se,
        f"{prefix}test_loss": measured.test.loss,
        f"{prefix}packed_bytes": measured.packed_bytes,
        f"{prefix}nonzero_bytes": measured.nonzero_bytes,
    }


def _describe(study: str, floor: float, dense: Measured, pruned: Measured) -> str:
    return (
        f"Winner of study {study} (floor {percent(floor)} on validation): "
        f"test accuracy {percent(pruned.test.accuracy)} (dense {percent(dense.test.accuracy)}), "
        f"{count(pruned.packed_bytes)} bytes (dense {count(dense.packed_bytes)})."
    )
