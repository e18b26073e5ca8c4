"""The data that a run worked on, as MLflow's inputs: it shows them beside the run, and runs can be searched by them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import mlflow
from mlflow.entities import Dataset as LoggedDataset
from mlflow.entities import DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from netprune.data import Dataset
from sweeps.tracking import active_run_id

Part = Literal["train", "val", "test"]
CONTEXTS: dict[Part, str] = {"train": "training", "val": "validation", "test": "testing"}
"""MLflow's words for what a split is used for."""
DIGEST_LETTERS = 32
"""MLflow keeps at most 36."""


def log_data(dataset: Dataset, data_dir: str, parts: Sequence[Part]) -> None:
    """Name the splits that the active run uses as its inputs; the data themselves are not copied.

    Args:
        dataset: where each split is a data set of its own for MLflow: `cifar10 val`, with its digest and length.
        data_dir: where CIFAR-10 is kept.
        parts: which splits.
    """
    inputs = [_input(dataset, data_dir, part) for part in parts]
    mlflow.MlflowClient().log_inputs(active_run_id(), datasets=inputs)


def _input(dataset: Dataset, data_dir: str, part: Part) -> DatasetInput:
    split = getattr(dataset, part)
    kind, source = _source(dataset.name, data_dir)
    described = LoggedDataset(
        name=f"{Path(dataset.name).name} {part}",
        digest=split.digest()[:DIGEST_LETTERS],
        source_type=kind,
        source=json.dumps(source),
        profile=json.dumps({"num_rows": len(split), "num_classes": len(dataset.classes)}),
    )
    return DatasetInput(described, [InputTag(MLFLOW_DATASET_CONTEXT, CONTEXTS[part])])


def _source(name: str, data_dir: str) -> tuple[str, dict[str, Any]]:
    """Type and content of MLflow's description of where data come from."""
    if name == "digits":
        return "code", {"tags": {"mlflow.source.name": "sklearn.datasets.load_digits"}}
    return "local", {"uri": data_dir if name == "cifar10" else name}
