"""Scan a dense network's layers, go on with an interrupted scan, or take the one that is in the store already."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from netprune.allocation import Basis, allocation_from, find_allocator
from netprune.callbacks import Callbacks
from netprune.errors import InputError
from netprune.masks import Sparsity
from netprune.precision import fit_to_device
from netprune.pruning import finetuning, prune_and_finetune
from netprune.saliency import find_saliency
from netprune.scan_record import ScanRecord
from netprune.scanner import ScanConfig, scan
from netprune.sensitivity import Sensitivity
from netprune.weights import weights_digest
from sweeps import artifacts, figures, interrupts, tracking
from sweeps.inputs import log_data
from sweeps.progress import Progress, report
from sweeps.stages.source import Source

SENSITIVITY, RECORD = "sensitivity.json", "scan.safetensors"
DIGEST, DATA_DIGEST, CONFIG = "netprune.weights_digest", "netprune.val_digest", "netprune.scan"
SCANNED = "netprune.scan_run"
"""Tag of a study: the scan that it goes by."""
SCAN_OPTIONS = ("sparsities", "max_se", "precision", "saliency")
AUTO = "auto"
KEEP_SECONDS = 5.0
SHOWN_RULES = ("uniform", "global_magnitude", "erk", "lamp", "kept_norm", "knapsack")
SHOWN_DENSITY = 0.05
"""Of the allocations in the figure; half of what is left, where that is less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanRequest:
    """What to measure, and which weights go first."""

    config: ScanConfig = field(default_factory=ScanConfig)
    saliency: str = "magnitude"

    def __post_init__(self) -> None:
        find_saliency(self.saliency)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> ScanRequest:
        """From the command line's options.

        Raises:
            InputError: naming the option and its range.
        """
        text = options["sparsities"]
        try:
            sparsities = () if text == AUTO else tuple(float(part) for part in text.split(","))
        except ValueError:
            raise InputError(f"sparsities is {text!r}; it is auto, or numbers such as 0.4,0.6,0.9.") from None
        config = ScanConfig(sparsities=sparsities, max_se=options["max_se"], precision=options["precision"])
        return cls(config=config, saliency=options["saliency"])

    def record(self) -> dict[str, str]:
        """Params that say what was asked for."""
        sparsities = ",".join(map(str, self.config.sparsities)) or AUTO
        return {
            "sparsities": sparsities,
            "max_se": str(self.config.max_se),
            "precision": self.config.precision,
            "saliency": self.saliency,
        }


@dataclass(frozen=True, slots=True)
class ScanOutcome:
    """A scan in the store."""

    run_id: str
    sensitivity: Sensitivity
    reused: bool
    """Whether it had been measured before, in the same way for the same weights and images."""


def part_way(source: Source, around: str, finetune_epochs: int) -> Source:
    """The source's network pruned by `around` (`RULE:DENSITY`) and finetuned: for the sensitivity of what is left.

    Raises:
        InputError: for an unknown rule, or one that goes by damage.
    """
    sparsity = allocation_from(around, Basis(model=source.model, bounds=source.bounds))
    config = finetuning(finetune_epochs)
    if config.finetune:  # in a fixed format: the same command has to find the same network's scan
        finetune, _ = fit_to_device(source.model, source.dataset, config.finetune, "fp32")
        config = replace(config, finetune=finetune)
    with Progress(f"prune to {around}") as progress:
        model = prune_and_finetune(
            source.model, source.dataset, sparsity, config, callbacks=Callbacks(on_step=progress)
        )
    header = replace(source.header, dense_digest=weights_digest(model))
    return replace(source, model=model, header=header, origin=f"{source.origin} pruned by {around}")


def run_scan(source: Source, request: ScanRequest) -> ScanOutcome:
    """Measure the scan in a run of its own, or find it. What an interrupted one measured is not measured again.

    Layers that are kept are not measured. Limits change nothing: a scan with other limits is the same one.
    """
    kept = {"kept": ",".join(source.kept)} if source.kept else {}
    key = {
        DIGEST: source.header.dense_digest,
        DATA_DIGEST: source.dataset.val_digest(),
        CONFIG: " ".join(f"{k}={v}" for k, v in (request.record() | kept).items()),
    }
    known = tracking.find_runs({tracking.STAGE: "scan", **key}, limit=1)
    if known:
        text = artifacts.read_artifact(known[0].run_id, SENSITIVITY).decode()
        report(f"scan of run {known[0].run_id} is of the same weights and images: reused")
        return ScanOutcome(known[0].run_id, Sensitivity.from_json(text), True)
    name = f"scan {source.label} on {Path(source.data.dataset).name}"
    earlier, record = _interrupted(key)
    tags = key | ({"resumed_from": earlier} if earlier else {})
    with tracking.tracked_run("scan", name, {**source.record(), **request.record()}, tags=tags) as run_id:
        log_data(source.dataset, source.data.data_dir, ("val",))
        with Progress(name, unit="point") as progress:
            keeper = _Keeper(record, progress)
            try:
                sensitivity = scan(
                    source.model,
                    source.dataset,
                    replace(request.config, layers=tuple(source.bounds.sizes)) if source.bounds else request.config,
                    saliency=find_saliency(request.saliency),
                    record=record,
                    on_point=keeper,
                )
            except BaseException:
                keeper.keep()
                raise
        if sensitivity.whole_passes:
            report(f"every point took a whole pass: {sensitivity.whole_passes}")
        _log(source, sensitivity, run_id)
    return ScanOutcome(run_id, sensitivity, False)


def _interrupted(key: Mapping[str, str]) -> tuple[str, ScanRecord]:
    """The newest unfinished scan of the same key and what it measured; an empty record if there is none."""
    for run in tracking.find_runs({tracking.STAGE: "scan", **key}, statuses=("KILLED", "FAILED", "RUNNING")):
        try:
            data = artifacts.read_artifact(run.run_id, RECORD)
        except InputError:  # stopped before anything was measured
            continue
        report(f"going on with the interrupted scan of run {run.run_id}")
        return run.run_id, ScanRecord.from_bytes(data)
    return "", ScanRecord()


class _Keeper:
    """Every few seconds: all that was measured goes into the run."""

    def __init__(self, record: ScanRecord, progress: Progress) -> None:
        self.record, self.progress, self.kept_at = record, progress, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self.kept_at > KEEP_SECONDS:
            self.keep()
            self.kept_at = time.monotonic()
        self.progress(done, total)

    def keep(self) -> None:
        if self.record.losses:
            with interrupts.deferred():
                artifacts.log_bytes(self.record.to_bytes(), RECORD)


def _log(source: Source, sensitivity: Sensitivity, run_id: str) -> None:
    curves = {}
    for curve in sensitivity.curves:
        steps = [round(10_000 * s) for s in curve.sparsities]  # a metric's step is whole: hundredths of a percent
        curves[f"val_accuracy/{curve.layer}"] = dict(zip(steps, curve.accuracy.tolist(), strict=True))
        curves[f"damage/{curve.layer}"] = dict(zip(steps, curve.damage.tolist(), strict=True))
    tracking.log(
        {
            "dense_val_accuracy": sensitivity.baseline.accuracy,
            "dense_val_loss": sensitivity.baseline.loss,
            "points": sum(len(curve.count) for curve in sensitivity.curves),
            "images": sensitivity.baseline.count,
        },
        curves=curves,
        tags={"netprune.compute": sensitivity.compute},
    )
    artifacts.log_bytes(sensitivity.to_json().encode(), SENSITIVITY)
    drawn = {"sensitivity": figures.sensitivity_curves(sensitivity)}
    basis = Basis(model=source.model, sensitivity=sensitivity, bounds=source.bounds)
    density = _shown_density(sensitivity)
    found = _allocations(basis, density)
    if found:
        drawn["allocations"] = figures.allocations(sensitivity, found, density)
    artifacts.log_figures(drawn, run_id)


def _shown_density(sensitivity: Sensitivity) -> float:
    left = sum(curve.size * (1 - curve.start) for curve in sensitivity.curves)
    return min(SHOWN_DENSITY, left / sum(curve.size for curve in sensitivity.curves) / 2)


def _allocations(basis: Basis, density: float) -> dict[str, Sparsity]:
    """Of each rule that is shown; none where the density lies past the curves' last points, or the limits."""
    try:
        return {rule: find_allocator(rule)(basis, density) for rule in SHOWN_RULES}
    except InputError:
        return {}
