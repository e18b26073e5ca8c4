"""What a study's run and a registered version say of themselves, as Markdown: MLflow shows it above all else."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from sweeps import tracking
from sweeps.stages.studies import DENSE, FoundStudy, Winner, file_uri, logged_change, version_uri
from sweeps.table import count, percent, points

WHAT = {"packed_bytes": "file", "nonzero_bytes": "number of nonzero values"}
HEADER = ("network", "val accuracy", "test accuracy", "beside dense", "bytes", "of dense")


def study_note(study: FoundStudy) -> str:
    """Floors, networks with accuracy and size, data, seeds, and how to load what there is; test where it was read."""
    params, metrics, tested = study.run.params, study.run.metrics, study.registered()
    won = [one for one in study.confirmed().values() if one is not None]
    rows = [_row("dense", metrics, DENSE, next(iter(tested.values()), None))]
    for one in won:
        beside = {**one.run.metrics, f"{DENSE}packed_bytes": metrics[f"{DENSE}packed_bytes"]}
        rows.append(_row(f"floor {percent(one.floor)}", beside, "", tested.get(one.run.run_id)))
    data = params["search.dataset"]
    parts = [
        f"The smallest {WHAT[study.objective]} of {params['search.model']} on {Path(data).name} with a validation "
        f"accuracy of at least {' or '.join(map(percent, study.floors))}, after {len(study.trials)} trials.",
        _table(HEADER, rows),
        *(f"{_sure(one)}\n\n{_load(study, one.run, tested.get(one.run.run_id))}" for one in won),
        *([] if won else [_unsure(study)]),
        f"Data: {data}{_images(metrics, 'train', 'val')}. Seed {params['search.seed']} for sampler and trials.",
        f"All of it on one page: the artifact `report.html`, which `python -m sweeps.report --study-name "
        f"{shlex.quote(study.name)}{f' --model {study.own}' if study.own else ''}` makes.",
    ]
    return "\n\n".join(parts)[: tracking.NOTE_LETTERS]


def version_note(study: FoundStudy, won: Winner, metrics: Mapping[str, float], load: Sequence[str]) -> str:
    """Of a registered network: floor, bound, seeds, accuracy and size beside the dense one's, data, how to load it.

    Args:
        study: that it comes from.
        won: the network.
        metrics: of the run that registers it.
        load: what `mlflow.pyfunc.load_model` takes for it: its own URI, then aliases that may move on.
    """
    rows = [
        (
            name,
            *(percent(metrics[f"{prefix}{split}_accuracy"]) for split in ("val", "test")),
            _beside(metrics, prefix),
            *_size(metrics, prefix),
        )
        for name, prefix in (("dense", DENSE), ("pruned", ""))
    ]
    data, images = study.run.params["search.dataset"], _images({**study.run.metrics, **metrics}, "train", "val", "test")
    own, *aliases = (f'`mlflow.pyfunc.load_model("{uri}")`' for uri in load)
    parts = [
        f"The confirmed network of study {study.name} for a floor of {percent(won.floor)}. {_sure(won)}",
        _table(HEADER, rows),
        f"Data: {data}{images}.",
        f"Load it with {own}" + "".join(f", or {alias} while that alias is this version's" for alias in aliases) + ".",
        f"Study: run {study.run.run_id}. Finetuned in run {won.run.run_id}.",
    ]
    return "\n\n".join(parts)


def _sure(won: Winner) -> str:
    seeded = zip(won.seeds, won.accuracies, strict=True)
    seeds = ", ".join(f"{percent(accuracy)} (seed {seed})" for seed, accuracy in seeded)
    if won.average is not None:
        seeds += f", and with the mean of their weights {percent(won.average)}"
    return (
        f"Floor {percent(won.floor)}: at least {percent(won.lower)} on validation with 95 % confidence. Finetuned "
        f"again with fresh seeds it had {seeds}; {'that mean' if won.averaged else 'the most accurate'} ships."
    )


def _unsure(study: FoundStudy) -> str:
    text = "Nothing is confirmed" + (": " + study.shortfall() if tracking.CONFIRMED in study.run.tags else ".")
    best = study.best
    if best is None:
        return text
    size = count(int(best.metrics[study.objective]))
    return f"{text}\n\nThe smallest trial at the floor has {size} bytes, chosen by luck too. {_load(study, best, None)}"


def _load(study: FoundStudy, run: tracking.FoundRun, registered: tracking.FoundRun | None) -> str:
    uri = version_uri(registered) if registered else None
    if uri:
        return f'Load it: `mlflow.pyfunc.load_model("{uri}")`.'
    into = ", into=network(classes)" if study.own else ""
    return f'Load its file: `netprune.load(mlflow.artifacts.download_artifacts("{file_uri(run)}"){into})`.'


def _row(name: str, metrics: Mapping[str, float], prefix: str, tested: tracking.FoundRun | None) -> tuple[str, ...]:
    val = percent(metrics[f"{prefix}val_accuracy"], metrics[f"{prefix}val_accuracy_se"])
    test = percent(tested.metrics[f"{prefix}test_accuracy"]) if tested else "not read"
    return (name, val, test, _beside(tested.metrics, prefix) if tested else "", *_size(metrics, prefix))


def _beside(metrics: Mapping[str, float], prefix: str) -> str:
    """What the network has on test more than the dense one; nothing for the dense one itself."""
    if prefix == DENSE:
        return ""
    change = logged_change(metrics)
    return points(change.accuracy, change.se)


def _size(metrics: Mapping[str, float], prefix: str) -> tuple[str, str]:
    size, dense = metrics[f"{prefix}packed_bytes"], metrics[f"{DENSE}packed_bytes"]
    return count(int(size)), percent(size / dense)


def _images(metrics: Mapping[str, float], *parts: str) -> str:
    words = {"train": "training", "val": "validation", "test": "test"}
    known = [f"{count(int(metrics[f'{part}_images']))} {words[part]}" for part in parts if f"{part}_images" in metrics]
    return f" ({', '.join(known)} images)" if known else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
