"""The study: seeds, trials and confirmations, each in its own run, under the study's run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

from netprune.allocation import Basis
from netprune.errors import InputError
from netprune.evaluation import Evaluation, evaluate
from netprune.masks import Sparsity
from netprune.models import prunable_weights
from netprune.packing import pack
from netprune.precision import fit_to_device
from netprune.pruning import PruneConfig, finetuning
from netprune.quantise import Values
from netprune.screening import Screen
from netprune.search_space import Point
from netprune.seeding import best_rule, propose, ranked, seed_path
from sweeps import registry, tracking
from sweeps.progress import report
from sweeps.proposing import SAMPLERS
from sweeps.scores import OBJECTIVES, Tried
from sweeps.stages.confirming import CONFIRMED_FILE, FRESH, Confirmation, Confirmed, Contest, confirm, record
from sweeps.stages.scanning import ScanRequest, run_scan
from sweeps.stages.source import Source
from sweeps.stages.trials import Trials
from sweeps.study import Limits, SparsityStudy
from sweeps.table import percent

DENSE_FILE = f"dense/{registry.MODEL_FILE}"
OTHERS = 2
"""Rules besides the path's that get a trial at the floor."""
LONGER = 3
"""How many times a trial's epochs a confirmation takes, unless it is told."""


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
    batch_size: int = 256
    values: str = "fp32"
    """How the packed file stores weights: see `quantise.Values`."""
    objective: str = OBJECTIVES[0]
    """What is minimised: one of `scores.OBJECTIVES`."""
    sampler: str = "gp"
    """One of `proposing.SAMPLERS`."""
    timeout: float | None = None
    """Seconds after which no new trial starts."""
    epochs: float | None = None
    """Finetune epochs that all trials of the study together may take."""
    confirm_epochs: float | None = None
    """Of finetuning a candidate again; None for three times a trial's."""
    confirm_seeds: int = 2
    """Fresh seeds for each candidate; 0 leaves the study unconfirmed."""
    confirm_most: int = 4
    """Candidates after which no still smaller one is looked for, once one has been accepted."""
    seed: int = 0
    study_name: str = ""
    """Empty: made from the network and the floor, so that the same command continues the same study."""
    scan: ScanRequest = field(default_factory=ScanRequest)

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
            "objective": (self.objective in OBJECTIVES, " or ".join(OBJECTIVES)),
            "sampler": (self.sampler in SAMPLERS, ", ".join(SAMPLERS)),
            "timeout": (self.timeout is None or self.timeout > 0, "in seconds, above 0"),
            "epochs": (self.epochs is None or self.epochs > 0, "in finetune epochs, above 0"),
            "confirm_epochs": (self.confirm_epochs is None or self.confirm_epochs >= 0, "at least 0"),
            "confirm_seeds": (self.confirm_seeds == 0 or self.confirm_seeds >= 2, "0, or at least 2"),
            "confirm_most": (self.confirm_most >= 1, "at least 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be {rule}.")


@dataclass(frozen=True, slots=True)
class FloorOutcome:
    """What a study has for one floor."""

    floor: float
    """In [0, 1]."""
    best: Tried | None
    """The smallest trial that meets it; one short finetuning, so chosen by luck too."""
    confirmed: Confirmed | None
    """The smallest allocation whose accuracy is at least the floor with 95 % confidence."""


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """A study after a session."""

    study_name: str
    run_id: str
    done: int
    """Trials with a result, in all sessions."""
    floors: tuple[FloorOutcome, ...]
    """The highest first."""
    confirmed: bool
    """Whether candidates were confirmed."""


def run_search(source: Source, request: SearchRequest) -> SearchOutcome:
    """Run the study, or go on with it, in its own MLflow run.

    Raises:
        InputError: for a floor above the dense network's accuracy, or a study of that name with other constants.
    """
    dense = evaluate(source.model, source.dataset.val, source.dataset)
    floors = accuracy_floors(request, dense)
    constants = {
        "weights_digest": source.header.dense_digest,
        "val_digest": source.dataset.val_digest(),
        "accuracy_floor": list(floors),
        "finetune_epochs": request.finetune_epochs,
        "batch_size": request.batch_size,
        "saliency": request.scan.saliency,
        "values": request.values,
        "objective": request.objective,
    }
    name = request.study_name or _study_name(source, request, floors)
    layers = {layer: weight.numel() for layer, weight in prunable_weights(source.model).items()}
    study = SparsityStudy(name, layers, floors, sampler=request.sampler, seed=request.seed, constants=constants)
    options = {k: v for k, v in asdict(request).items() if k != "scan"} | request.scan.record()
    config = {**source.record(), **options, "study_name": name, "accuracy_floor": _join(floors)}
    known = study.run_id
    with tracking.tracked_run("search", f"study {name}", config, tags={tracking.STUDY: name}, reopen=known) as run_id:
        study.run_id = run_id
        if known is None:
            _log_dense(source, dense, floors)
        finetune = _finetuning(source, request, request.finetune_epochs)
        if study.done < request.trials:
            _try(source, study, request, finetune)
        winners = _confirm(source, study, request) if request.confirm_seeds and study.done else {}
        outcome = SearchOutcome(
            name,
            run_id,
            study.done,
            tuple(FloorOutcome(floor, study.best(floor), winners.get(floor)) for floor in study.floors),
            bool(winners),
        )
        tags = {tracking.FEASIBLE: tracking.flag(outcome.floors[0].best is not None)}
        if winners:
            tags["confirmed"] = tracking.flag(outcome.floors[0].confirmed is not None)
        tracking.set_tags(tags)
    return outcome


def _try(source: Source, study: SparsityStudy, request: SearchRequest, finetune: PruneConfig) -> None:
    basis = Basis(model=source.model, sensitivity=run_scan(source, request.scan).sensitivity)
    screen = Screen(source.model, source.dataset, request.scan.saliency)
    if not study.path:
        rule = best_rule(basis, screen)
        study.path = seed_path(basis, rule)
        tracking.set_tags({"seed_rule": rule})
        report(f"seeds by {rule}: the best of the rules before any training")
    trials = Trials(source, study, finetune, request.objective, request.seed)
    limits = Limits(
        trials=request.trials,
        timeout=request.timeout,
        epochs=request.epochs,
        epochs_a_trial=trials.epochs_a_trial,
    )
    study.run(trials.evaluate, limits, _proposer(study, basis, screen), trials.reporter(limits))


def _proposer(
    study: SparsityStudy, basis: Basis, screen: Callable[[Sparsity], float]
) -> Callable[[Sequence[Tried]], Point | None]:
    @functools.cache
    def others(density: float) -> list[Sparsity]:
        return [sparsity for _, sparsity in ranked(basis, density, screen)[: OTHERS + 1]]

    def proposer(tried: Sequence[Tried]) -> Point | None:
        points = [(one.point, [one.score.meets(floor) for floor in study.floors]) for one in tried]
        return propose(points, study.space, others)

    return proposer


def _confirm(source: Source, study: SparsityStudy, request: SearchRequest) -> dict[float, Confirmed | None]:
    epochs = LONGER * request.finetune_epochs if request.confirm_epochs is None else request.confirm_epochs
    how = Confirmation(
        config=_finetuning(source, request, epochs),
        seeds=tuple(request.seed + FRESH + i for i in range(request.confirm_seeds)),
        most=request.confirm_most,
    )
    winners = confirm(source, Contest.of(study, request.objective), how)
    tracking.log_json(record(winners), CONFIRMED_FILE)
    strictest = winners[study.floors[0]]
    if strictest is not None:
        tracking.log_metrics(
            {
                f"confirmed_{request.objective}": strictest.size_bytes,
                "confirmed_val_accuracy": strictest.bound.mean,
                "confirmed_val_accuracy_lower": strictest.lower,
            }
        )
    return winners


def _finetuning(source: Source, request: SearchRequest, epochs: float) -> PruneConfig:
    config = finetuning(
        epochs,
        saliency=request.scan.saliency,
        values=Values.parse(request.values),
        batch_size=request.batch_size,
        seed=request.seed,
    )
    if config.finetune is None:
        return config
    fitted, _ = fit_to_device(source.model, source.dataset, config.finetune, request.scan.config.precision)
    return replace(config, finetune=fitted)


def _study_name(source: Source, request: SearchRequest, floors: Sequence[float]) -> str:
    """By what makes a study another one; the defaults of values and objective go without saying."""
    values = "" if request.values == "fp32" else f"-{request.values.replace(':', '')}"
    objective = "" if request.objective == OBJECTIVES[0] else f"-{request.objective.removesuffix('_bytes')}"
    at = "-".join(f"{100 * floor:.2f}" for floor in floors)
    return f"{source.label}-floor{at}-ft{request.finetune_epochs:g}{values}{objective}"


def accuracy_floors(request: SearchRequest, dense: Evaluation) -> tuple[float, ...]:
    """The least validation accuracies, each in [0, 1], the highest first.

    Raises:
        InputError: if the dense network itself does not reach one.
    """
    if request.accuracy_floor is None:
        return tuple(sorted({max(0.0, dense.accuracy - drop / 100) for drop in request.max_drop}, reverse=True))
    if request.accuracy_floor / 100 > dense.accuracy:
        raise InputError(
            f"the floor is {request.accuracy_floor:.2f} % and the dense network reaches {percent(dense.accuracy)} on "
            f"validation: lower accuracy_floor, or train a better network."
        )
    return (request.accuracy_floor / 100,)


def _log_dense(source: Source, dense: Evaluation, floors: Sequence[float]) -> None:
    packed = pack(source.model, source.header)
    tracking.log_bytes(packed, DENSE_FILE)  # the study stays complete when the user's own file is gone
    tracking.log_metrics(
        {
            "dense_val_accuracy": dense.accuracy,
            "dense_val_accuracy_se": dense.accuracy_se,
            "dense_val_loss": dense.loss,
            "dense_packed_bytes": len(packed),
            "accuracy_floor": floors[0],
        }
    )


def _join(floors: Sequence[float]) -> str:
    return ",".join(f"{100 * floor:.4f}" for floor in floors)
