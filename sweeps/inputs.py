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

from netprune.data import Dataset, Split
from netprune.errors import InputError
from sweeps.tracking import active_run_id

Part = Literal["train", "val", "test"]
CONTEXTS: dict[Part, str] = {"train": "training", "val": "validation", "test": "testing"}
"""MLflow's words for what a split is used for."""
USED: tuple[Part, ...] = ("train", "val")
"""What trainings and studies work on."""
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


def check_data(dataset: Dataset, run_id: str, whose: str) -> None:
    """Refuse other training or validation images than a run has worked on; test is not looked at.

    Where a folder has no test images of its own, one image more or less is enough for another split: images that a
    network was trained on would then be tested on.

    Args:
        dataset: what opens now.
        run_id: of the run, whose inputs are known.
        whose: the run in words.

    Raises:
        InputError: naming which images differ.
    """
    known = _digests(run_id)
    changed = [part for part in USED if split_digest(dataset, part) != known[CONTEXTS[part]]]
    if changed:
        which = " and ".join(CONTEXTS[part] for part in changed)
        raise InputError(
            f"{dataset.name} is not the data of {whose}: its {which} images are others. Put back what was added, "
            f"changed or removed, or name the right data with dataset."
        )


def split_digest(dataset: Dataset, part: Part) -> str:
    """What a split is told apart by, as MLflow keeps it."""
    split: Split = getattr(dataset, part)
    return split.digest()[:DIGEST_LETTERS]


def _digests(run_id: str) -> dict[str, str]:
    """What a split is used for → its digest."""
    inputs = mlflow.get_run(run_id).inputs
    used = inputs.dataset_inputs if inputs else []
    return {tag.value: one.dataset.digest for one in used for tag in one.tags if tag.key == MLFLOW_DATASET_CONTEXT}


def _input(dataset: Dataset, data_dir: str, part: Part) -> DatasetInput:
    split = getattr(dataset, part)
    kind, source = _source(dataset.name, data_dir)
    described = LoggedDataset(
        name=f"{Path(dataset.name).name} {part}",
        digest=split_digest(dataset, part),
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
