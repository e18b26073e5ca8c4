"""What a search is asked for: its figures, its floors, its name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

from netprune.errors import InputError
from netprune.evaluation import Evaluation
from netprune.precision import fit_to_device
from netprune.pruning import PruneConfig, finetuning
from netprune.quantise import Values
from sweeps.proposing import SAMPLERS
from sweeps.scores import OBJECTIVES, ROUNDING
from sweeps.stages.scanning import ScanRequest
from sweeps.stages.source import Source
from sweeps.table import percent

LONGER = 3
"""How many times a trial's epochs a confirmation takes, unless it is told."""
SEEDS = 2**31
"""Those that may be given: samplers and confirmations add to it, and none takes more than 32 bits."""
NO_DROP = "none"
"""What the run of a study says of `max_drop` whose floor is an accuracy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRequest:
    """What the study may spend, and what it must keep.

    Raises:
        InputError: naming the option and its range.
    """

    max_drop: tuple[float, ...] = (0.5,)
    """Points of validation accuracy below the dense network, a floor each; not used where `accuracy_floor` is given."""
    accuracy_floor: float | None = None
    """Least validation accuracy, in percent."""
    trials: int = 24
    """Of the whole study, those of earlier sessions included."""
    finetune_epochs: float = 1.0
    """0 for pruning alone; part of one takes as large a part of the training images."""
    batch_size: int = 64
    values: str = "fp32"
    """How the packed file stores weights: see `quantise.Values`."""
    objective: str = OBJECTIVES[0]
    """What is minimised: one of `scores.OBJECTIVES`."""
    sampler: str = "tpe"
    """One of `proposing.SAMPLERS`."""
    timeout: float | None = None
    """Seconds after which no new trial starts."""
    epochs: float | None = None
    """Finetune epochs that all trials of the study together may take."""
    confirm_epochs: float | None = None
    """Of finetuning a candidate again; None for three times a trial's."""
    confirm_seeds: int = 2
    """Fresh seeds for each candidate; 0 leaves the study unconfirmed."""
    confirm_most: int = 6
    """Finetunings of each floor's candidates after which no still smaller one is looked for, once one has been
    accepted."""
    seed: int = 0
    study_name: str = ""
    """Empty: made from the network and the floor, so that the same command continues the same study."""
    storage: str = ""
    """Of the study: see `storage.open_storage`."""
    workers: int = 1
    """Processes on this machine; 1 for this one alone."""
    scan: ScanRequest = field(default_factory=ScanRequest)

    @property
    def longer_epochs(self) -> float:
        """Finetune epochs of a confirmation, with each seed."""
        return LONGER * self.finetune_epochs if self.confirm_epochs is None else self.confirm_epochs

    def __post_init__(self) -> None:
        for drop in self.max_drop:
            if not 0 <= drop < 100:
                raise InputError(f"max_drop is {drop}; it is in points of accuracy, from 0 to below 100.")
        if self.accuracy_floor is not None and not 1 < self.accuracy_floor <= 100:
            raise InputError(f"accuracy_floor is {self.accuracy_floor}; it is in percent, such as 90, up to 100.")
        if self.trials < 1:
            raise InputError(f"trials is {self.trials}; a study needs at least 1.")
        Values.parse(self.values)
        rules = {
            "finetune_epochs": (0 <= self.finetune_epochs < 1e6, "at least 0"),
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "objective": (self.objective in OBJECTIVES, " or ".join(OBJECTIVES)),
            "sampler": (self.sampler in SAMPLERS, ", ".join(SAMPLERS)),
            "timeout": (self.timeout is None or self.timeout > 0, "in seconds, above 0"),
            "epochs": (
                self.epochs is None or (self.epochs > 0 and self.epochs >= self.finetune_epochs),
                f"in finetune epochs, above 0 and enough for one trial of {self.finetune_epochs:g}",
            ),
            "confirm_epochs": (self.confirm_epochs is None or 0 <= self.confirm_epochs < 1e6, "at least 0"),
            "seed": (0 <= self.seed < SEEDS, f"from 0 to {SEEDS - 1}"),
            "confirm_seeds": (self.confirm_seeds == 0 or self.confirm_seeds >= 2, "0, or at least 2"),
            "confirm_most": (self.confirm_most >= 1, "at least 1"),
            "workers": (self.workers >= 1, "at least 1"),
            "study_name": ('"' not in self.study_name, "without double quotes"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be {rule}.")


def as_percent(floor: float) -> str:
    """A floor as params and files have it, in percent: with all of its digits, or trials at it would seem below.

    >>> as_percent(352 / 360), as_percent(0.8188)
    ('97.7777777778', '81.88')
    """
    return f"{100 * floor:.12g}"


def asked_floors(request: SearchRequest) -> dict[str, Any]:
    """What a study's constants say of its floors: as they were asked for, because the dense network's accuracy may be
    another by an image on another machine."""
    if request.accuracy_floor is not None:
        return {"accuracy_floor": request.accuracy_floor}
    return {"max_drop": sorted(set(request.max_drop))}


def study_name(source: Source, request: SearchRequest) -> str:
    """By what makes a study another one; the defaults of values and objective go without saying."""
    values = "" if request.values == "fp32" else f"-{request.values.replace(':', '')}"
    objective = "" if request.objective == OBJECTIVES[0] else f"-{request.objective.removesuffix('_bytes')}"
    bounds = bounds_record(source)
    within = f"-within{hashlib.sha256(json.dumps(bounds).encode()).hexdigest()[:6]}" if bounds else ""
    drops = "-".join(f"{drop:g}" for drop in sorted(set(request.max_drop)))
    at = f"drop{drops}" if request.accuracy_floor is None else f"floor{request.accuracy_floor:g}"
    return f"{source.label}-{at}-ft{request.finetune_epochs:g}{values}{objective}{within}"


def bounds_record(source: Source) -> dict[str, Any]:
    """What a study's constants say of layers that are kept or have a limit; nothing, if there are none."""
    found = {"kept": list(source.kept), "limits": dict(source.bounds.limits) if source.bounds else {}}
    return {name: value for name, value in found.items() if value}


def accuracy_floors(request: SearchRequest, dense: Evaluation) -> tuple[float, ...]:
    """The least validation accuracies, each in [0, 1], the highest first.

    Raises:
        InputError: if the dense network itself does not reach one.
    """
    if request.accuracy_floor is None:
        return tuple(sorted({max(0.0, dense.accuracy - drop / 100) for drop in request.max_drop}, reverse=True))
    if request.accuracy_floor / 100 > dense.accuracy + ROUNDING:
        raise InputError(
            f"the floor is {request.accuracy_floor:.2f} % and the dense network reaches {percent(dense.accuracy)} on "
            f"validation: lower accuracy_floor, or train a better network."
        )
    return (request.accuracy_floor / 100,)


def finetuning_for(source: Source, request: SearchRequest, epochs: float) -> PruneConfig:
    """How candidates of a study are finetuned, in the format that suits the device."""
    config = finetuning(
        epochs,
        saliency=request.scan.saliency,
        values=Values.parse(request.values),
        batch_size=request.batch_size,
        seed=request.seed,
    )
    limits = source.bounds.limits if source.bounds else {}
    config = replace(config, spared=(*source.kept, *limits))
    if config.finetune is None:
        return config
    fitted, _ = fit_to_device(source.model, source.dataset, config.finetune, request.scan.config.precision)
    return replace(config, finetune=fitted)
