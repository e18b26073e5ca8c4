"""The study: trials that prune and finetune, each in its own run, under the study's run."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field

from netprune.allocation import Basis, document, find_allocator, shapes_of
from netprune.errors import InputError
from netprune.evaluation import Evaluation, evaluate
from netprune.masks import Sparsity
from netprune.models import prunable_weights
from netprune.packing import pack
from netprune.precision import fit_to_device
from netprune.pruning import PruneConfig, PruneResult, finetune_config, prune_candidate
from netprune.quantise import Values
from netprune.sensitivity import Sensitivity
from netprune.training import Callbacks
from sweeps import registry, tracking
from sweeps.progress import Progress, duration, report
from sweeps.stages.scanning import ScanRequest, run_scan
from sweeps.stages.source import Source
from sweeps.study import OBJECTIVES, Score, SparsityStudy
from sweeps.table import count, percent

SEEDS = (
    (0.3, "kept_norm"),
    (0.2, "kept_norm"),
    (0.14, "kept_norm"),
    (0.1, "kept_norm"),
    (0.07, "kept_norm"),
    (0.05, "kept_norm"),
    (0.2, "knapsack"),
)
DENSE_FILE = f"dense/{registry.MODEL_FILE}"
PACKED_FILE = f"packed/{registry.MODEL_FILE}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRequest:
    """What the study may spend, and what it must keep.

    Raises:
        InputError: naming the option and its range.
    """

    max_drop: float = 0.5
    """Points of validation accuracy below the dense network; not used where `accuracy_floor` is given."""
    accuracy_floor: float | None = None
    """Least validation accuracy, in percent."""
    trials: int = 12
    """Of the whole study, those of earlier sessions included."""
    finetune_epochs: int = 1
    """0 for pruning alone."""
    batch_size: int = 256
    values: str = "fp32"
    """How the packed file stores weights: see `quantise.Values`."""
    objective: str = OBJECTIVES[0]
    """What is minimised: one of `study.OBJECTIVES`."""
    timeout: float | None = None
    """Seconds after which no new trial starts."""
    seed: int = 0
    study_name: str = ""
    """Empty: made from the network and the floor, so that the same command continues the same study."""
    scan: ScanRequest = field(default_factory=ScanRequest)

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < 100:
            raise InputError(f"max_drop is {self.max_drop}; it is in points of accuracy, from 0 to below 100.")
        if self.accuracy_floor is not None and not 1 < self.accuracy_floor <= 100:
            raise InputError(f"accuracy_floor is {self.accuracy_floor}; it is in percent, such as 90, up to 100.")
        if self.trials < 1:
            raise InputError(f"trials is {self.trials}; a study needs at least 1.")
        if self.finetune_epochs < 0:
            raise InputError(f"finetune_epochs is {self.finetune_epochs}; it must be at least 0.")
        Values.parse(self.values)
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective is {self.objective!r}; it must be {' or '.join(OBJECTIVES)}.")
        if self.timeout is not None and not self.timeout > 0:
            raise InputError(f"timeout is {self.timeout}; it is in seconds, above 0.")


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """A study after a session."""

    study_name: str
    run_id: str
    done: int
    """Trials with a result, in all sessions."""
    floor: float
    """In [0, 1]."""
    best: Score | None
    """The smallest trial that meets the floor, if any does."""


def run_search(source: Source, request: SearchRequest) -> SearchOutcome:
    """Run the study, or go on with it, in its own MLflow run.

    Raises:
        InputError: for a floor above the dense network's accuracy, or a study of that name with other constants.
    """
    dense = evaluate(source.model, source.dataset.val, source.dataset)
    floor = accuracy_floor(request, dense)
    constants = {
        "weights_digest": source.header.dense_digest,
        "val_digest": source.dataset.val_digest(),
        "accuracy_floor": floor,
        "finetune_epochs": request.finetune_epochs,
        "batch_size": request.batch_size,
        "saliency": request.scan.saliency,
        "values": request.values,
        "objective": request.objective,
    }
    name = request.study_name or _study_name(source, request, floor)
    study = SparsityStudy(name, list(prunable_weights(source.model)), floor, seed=request.seed, constants=constants)
    options = {k: v for k, v in asdict(request).items() if k != "scan"} | request.scan.record()
    config = {**source.record(), **options, "study_name": name, "accuracy_floor": 100 * floor}
    known = study.run_id
    tags = {tracking.STUDY: name}
    with tracking.tracked_run("search", f"study {name}", config, tags=tags, reopen=known) as run_id:
        study.run_id = run_id
        if known is None:
            _log_dense(source, dense, floor)
        if study.done < request.trials:
            study.seed(seed_sparsities(source, run_scan(source, request.scan).sensitivity))
        session = _Session(source, study, request)
        study.run(session.evaluate, request.trials, request.timeout, session.report)
        outcome = SearchOutcome(name, run_id, study.done, floor, study.best)
        tracking.set_tags({tracking.FEASIBLE: _flag(outcome.best is not None)})
    return outcome


def _study_name(source: Source, request: SearchRequest, floor: float) -> str:
    """By what makes a study another one; the defaults of values and objective go without saying."""
    values = "" if request.values == "fp32" else f"-{request.values.replace(':', '')}"
    objective = "" if request.objective == OBJECTIVES[0] else f"-{request.objective.removesuffix('_bytes')}"
    return f"{source.label}-floor{100 * floor:.2f}-ft{request.finetune_epochs}{values}{objective}"


def accuracy_floor(request: SearchRequest, dense: Evaluation) -> float:
    """The least validation accuracy, in [0, 1].

    Raises:
        InputError: if the dense network itself does not reach it.
    """
    if request.accuracy_floor is None:
        return max(0.0, dense.accuracy - request.max_drop / 100)
    if request.accuracy_floor / 100 > dense.accuracy:
        raise InputError(
            f"the floor is {request.accuracy_floor:.2f} % and the dense network reaches {percent(dense.accuracy)} on "
            f"validation: lower accuracy_floor, or train a better network."
        )
    return request.accuracy_floor / 100


def seed_sparsities(source: Source, sensitivity: Sensitivity) -> list[Sparsity]:
    """The allocations that a study tries first: the best rules at falling densities, and the document's own numbers."""
    basis = Basis(model=source.model, sensitivity=sensitivity)
    return [
        *(find_allocator(rule)(basis, density) for density, rule in SEEDS),
        document(shapes_of(source.model)),
    ]


def _log_dense(source: Source, dense: Evaluation, floor: float) -> None:
    packed = pack(source.model, source.header)
    tracking.log_bytes(packed, DENSE_FILE)  # the study stays complete when the user's own file is gone
    tracking.log_metrics(
        {
            "dense_val_accuracy": dense.accuracy,
            "dense_val_accuracy_se": dense.accuracy_se,
            "dense_val_loss": dense.loss,
            "dense_packed_bytes": len(packed),
            "accuracy_floor": floor,
        }
    )


def _flag(value: bool) -> str:
    return "true" if value else "false"


class _Session:
    """One sitting of a study: its trials' runs, and the line after each."""

    def __init__(self, source: Source, study: SparsityStudy, request: SearchRequest) -> None:
        self.source, self.study, self.request = source, study, request
        finetune = finetune_config(request.finetune_epochs, batch_size=request.batch_size, seed=request.seed)
        if finetune:
            finetune, _ = fit_to_device(source.model, source.dataset, finetune, request.scan.config.precision)
        self.config = PruneConfig(
            saliency=request.scan.saliency, finetune=finetune, values=Values.parse(request.values)
        )
        self.start, self.results = time.monotonic(), 0

    def evaluate(self, number: int, sparsity: Sparsity) -> Score:
        name = f"{self.study.name} trial {number:03d}"
        config = {f"sparsity/{layer}": value for layer, value in sparsity.items()}
        tags = {tracking.STUDY: self.study.name, "netprune.trial": str(number)}
        with tracking.tracked_run("trial", name, config, tags=tags) as run_id:
            with Progress(f"trial {number}") as progress:
                result, data = prune_candidate(
                    self.source.model,
                    self.source.dataset,
                    self.source.header,
                    sparsity,
                    self.config,
                    callbacks=Callbacks(on_step=progress),
                )
            score = Score(getattr(result, self.request.objective), result.val.accuracy, run_id)
            self._log(result, data, self.study.is_feasible(score))
        return score

    def _log(self, result: PruneResult, data: bytes, feasible: bool) -> None:
        tracking.log_bytes(data, PACKED_FILE)
        tracking.log_json(asdict(result), "result.json")
        tracking.log_metrics(
            {
                "val_accuracy": result.val.accuracy,
                "val_accuracy_se": result.val.accuracy_se,
                "val_loss": result.val.loss,
                "points_above_floor": 100 * (result.val.accuracy - self.study.floor),
                "one_shot_val_accuracy": result.one_shot.accuracy,
                "packed_bytes": result.packed_bytes,
                "nonzero_bytes": result.nonzero_bytes,
                "dense_bytes": result.dense_bytes,
                "sparsity": result.sparsity,
                "feasible": float(feasible),
                **{f"seconds/{stage}": value for stage, value in result.seconds.items()},
            }
        )
        tracking.set_tags({tracking.FEASIBLE: _flag(feasible)})

    def report(self, done: int, score: Score) -> None:
        self.results += 1
        # `best` knows earlier trials only: Optuna has not heard of this one yet
        best = min((s for s in (self.study.best, score) if s and self.study.is_feasible(s)), key=_size, default=None)
        if best is not None:
            size = {f"best_{self.request.objective}": best.size_bytes}
            tracking.log_metrics({**size, "best_val_accuracy": best.accuracy}, step=done)
        left = (time.monotonic() - self.start) / self.results * (self.request.trials - done)
        report(
            f"trial {done}/{self.request.trials}  val {percent(score.accuracy)}  {count(score.size_bytes)} bytes  "
            f"{'meets' if self.study.is_feasible(score) else 'below'} the floor  "
            f"best {count(best.size_bytes) if best else 'none yet'}  about {duration(left)} left"
        )


def _size(score: Score) -> int:
    return score.size_bytes
