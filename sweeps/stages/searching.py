"""The study: seeds, trials and confirmations, each in its own run, under the study's run."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from netprune.allocation import Basis
from netprune.bounds import find_bounds
from netprune.evaluation import Evaluation, evaluate
from netprune.masks import Sparsity
from netprune.packing import pack
from netprune.screening import Screen
from netprune.seeding import best_rule, ranked, seed_path
from sweeps import artifacts, interrupts, tracking
from sweeps.inputs import log_data
from sweeps.limits import Limits, Spent
from sweeps.progress import Progress, report
from sweeps.proposing import Aims, Proposer
from sweeps.scores import Tried
from sweeps.secrets import masked
from sweeps.stages.confirming import asks_for_more
from sweeps.stages.contest import Confirmed
from sweeps.stages.deciding import Probes, confirm_study
from sweeps.stages.describing import study_note
from sweeps.stages.request import (
    NO_DROP,
    SearchRequest,
    accuracy_floors,
    as_percent,
    asked_floors,
    bounds_record,
    finetuning_for,
    study_name,
)
from sweeps.stages.scanning import SCANNED, run_scan
from sweeps.stages.source import Source
from sweeps.stages.starting import Starts
from sweeps.stages.studies import study_of
from sweeps.stages.trials import DENSE_FILE, Trials
from sweeps.study import SparsityStudy
from sweeps.table import percent, short
from sweeps.workers import run_workers

OTHERS = 1
"""Rules besides the path's that get a trial where a floor lies."""
WAIT_SECONDS = 0.5
GUESSING = 0.1
"""Share of the way from chance to perfection, below which a dense network is asked about."""


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
    own: str = ""
    """`module:function` that builds the network, if it is of the user's own class."""


def run_search(source: Source, request: SearchRequest) -> SearchOutcome:
    """Run the study, or go on with it, in its own MLflow run.

    Raises:
        InputError: for a floor above the dense network's accuracy, or a study of that name with other constants.
    """
    until = None if request.timeout is None else time.monotonic() + request.timeout
    dense = evaluate(source.model, source.dataset.val, source.dataset)
    floors = accuracy_floors(request, dense)
    constants = {
        "weights_digest": source.header.dense_digest,
        "val_digest": source.dataset.val_digest(),
        **asked_floors(request),
        "finetune_epochs": request.finetune_epochs,
        "batch_size": request.batch_size,
        "saliency": request.scan.saliency,
        "values": request.values,
        "objective": request.objective,
        **bounds_record(source),
    }
    name = request.study_name or study_name(source, request)
    bounds = source.bounds or find_bounds(source.model)
    study = SparsityStudy(
        name,
        bounds.sizes,
        floors,
        limits=bounds.limits,
        storage=request.storage,
        constants=constants,
    )
    with study.crew.at_work():
        return _at_work(source, study, request, dense, until)


def _at_work(
    source: Source, study: SparsityStudy, request: SearchRequest, dense: Evaluation, until: float | None
) -> SearchOutcome:
    """One session: whoever leads makes the run, the seeds and the confirmations; trials are everybody's."""
    own = ("scan", "storage", "workers")  # an address may hold a password
    options = {k: v for k, v in asdict(request).items() if k not in own} | request.scan.record()
    # with all digits: the floors follow from them
    drops = ",".join(repr(drop).removesuffix(".0") for drop in request.max_drop)
    options["max_drop"] = drops if request.accuracy_floor is None else NO_DROP
    options["accuracy_floor"] = ",".join(map(as_percent, study.floors))
    config = {**source.record(), **options, "study_name": study.name}
    _wait_for_run(study, shared=bool(request.storage))
    known = study.run_id
    if known is not None:
        tracking.require_run(known, f"study {study.name}")
    tags = {tracking.STUDY: study.name}
    if request.storage:
        tags[tracking.STORAGE] = masked(request.storage)
    with tracking.tracked_run("search", f"study {study.name}", config, tags=tags, reopen=known) as run_id:
        study.run_id = run_id
        if known is not None and study.crew.leads:  # those that join it have limits of their own
            tracking.log_newest("search", config)
        # a leader may have died between opening the run and this
        if known is None or (study.crew.leads and "accuracy_floor" not in tracking.find_run(run_id).metrics):
            _log_dense(source, dense, study.floors)
        tracking.close_dead(study.name, study.crew.dead)
        classes = len(source.dataset.classes)
        if study.crew.leads and dense.accuracy < (1 + GUESSING * (classes - 1)) / classes:
            report(
                f"the dense network has {percent(dense.accuracy)} right of {classes} classes, hardly more than by "
                f"guessing: does it take images of this mean, std and image_size, and the classes in the order of "
                f"their sorted names?"
            )
        before = study.look()
        if before.done < request.trials or before.abandoned:
            if request.confirm_seeds and study.crew.leads:
                for warning in filter(None, (asks_for_more(floor, dense) for floor in study.floors)):
                    report(warning)
            _try(source, study, request, until)
        winners = confirm_study(source, study, request) if _is_to_confirm(study, request) else {}
        seen = study.look()
        outcome = SearchOutcome(
            study.name,
            run_id,
            seen.done,
            tuple(FloorOutcome(floor, seen.best(floor), winners.get(floor)) for floor in study.floors),
            bool(winners),
            source.own,
        )
        tags = {tracking.FEASIBLE: tracking.flag(outcome.floors[0].best is not None)}
        if winners:
            tags[tracking.CONFIRMED] = tracking.flag(outcome.floors[0].confirmed is not None)
        tracking.set_tags(tags)
        if study.crew.leads:
            tracking.rename(f"{_found(outcome)}study {study.name}")
            tracking.set_tags({tracking.NOTE: study_note(study_of(tracking.find_run(run_id)))})
    if study.crew.has_others:
        tracking.still_running(run_id)
    return outcome


def _wait_for_run(study: SparsityStudy, *, shared: bool) -> None:
    """Until the study has a run, or this session is the one to open it."""

    def is_clear() -> bool:
        return study.run_id is not None or study.crew.leads

    _wait(is_clear)
    if shared and study.run_id is None:
        time.sleep(WAIT_SECONDS)  # one that began at the same moment on another machine may not have shown itself yet
        _wait(is_clear)


def _wait(until: Callable[[], bool]) -> None:
    while not until():
        interrupts.check()
        time.sleep(WAIT_SECONDS)


def _is_to_confirm(study: SparsityStudy, request: SearchRequest) -> bool:
    """The leader confirms; the others' trials are over then."""
    return bool(request.confirm_seeds and study.crew.leads and study.look().done)


def _try(source: Source, study: SparsityStudy, request: SearchRequest, until: float | None) -> None:
    def left() -> float | None:
        return None if until is None else max(0.0, until - time.monotonic())

    if not study.path:
        _wait(lambda: bool(study.path) or study.crew.leads)
    scan = run_scan(source, request.scan)
    tracking.set_tags({SCANNED: scan.run_id})
    basis = Basis(model=source.model, sensitivity=scan.sensitivity, bounds=source.bounds)
    screen = Screen(source.model, source.dataset, request.scan.saliency)
    if not study.path:
        with Progress("seeds", unit="allocation") as progress:
            rule = best_rule(basis, screen, on_look=progress)
        study.path = seed_path(basis, rule)
        tracking.set_tags({"seed_rule": rule})
        report(f"seeds by {rule}: before any training no other rule leaves clearly less to recover")
    finetune = finetuning_for(source, request, request.finetune_epochs)
    starts = Starts(source, study, finetune, screen)
    trials = Trials(starts, request.objective, request.seed)
    proposer = _proposer(study, request, basis, screen, trials)
    limits = Limits(
        trials=request.trials,
        timeout=left(),
        epochs=request.epochs,
        epochs_a_trial=trials.epochs_a_trial,
        before=study.before,
    )
    probes = Probes(source, study, request, limits)
    if request.workers > 1:
        run_workers(
            request.workers,
            study.name,
            model_uri="" if source.asked.weights else source.origin,
            device=source.data.device,
            timeout=left(),
            meanwhile=probes,
        )

    def goes_on(part: Limits) -> bool:
        trials.resume()
        if study.run(trials.evaluate, part, proposer, trials.reporter(limits), trials.settle):
            return True
        _wait(lambda: not (study.crew.leads and study.crew.has_others))  # whose trials are to be confirmed as well
        return False

    for share in probes.shares:
        if not goes_on(replace(limits, share=share)):
            return
        probes()
    while True:
        if not goes_on(limits) or not study.crew.leads:
            return
        seen = study.look()
        if not seen.running:
            study.before = Spent(trials=seen.done, epochs=seen.epochs)
            return
        _wait(lambda: not study.look().running)  # and then do what a worker may have left by dying


def _proposer(study: SparsityStudy, request: SearchRequest, basis: Basis, screen: Screen, trials: Trials) -> Proposer:
    @functools.cache
    def others(density: float) -> list[Sparsity]:
        with trials.ranks():
            return [sparsity for _, sparsity in ranked(basis, density, screen)[: OTHERS + 1]]

    aims = Aims(
        images=len(trials.source.dataset.val),
        epochs=trials.epochs_a_trial,
        confirm_epochs=request.longer_epochs if request.confirm_seeds else None,
    )
    return Proposer(study.space, study.floors, aims, others, sampler=request.sampler, seed=request.seed)


def _log_dense(source: Source, dense: Evaluation, floors: Sequence[float]) -> None:
    log_data(source.dataset, source.data.data_dir, ("train", "val"))
    packed = pack(source.model, source.header)
    artifacts.log_bytes(packed, DENSE_FILE)  # the study stays complete when the user's own file is gone
    tracking.log(
        {
            "dense_val_accuracy": dense.accuracy,
            "dense_val_accuracy_se": dense.accuracy_se,
            "dense_val_loss": dense.loss,
            "dense_packed_bytes": len(packed),
            "train_images": len(source.dataset.train),
            "val_images": dense.count,
            "accuracy_floor": floors[0],
        }
    )


def _found(outcome: SearchOutcome) -> str:
    """For a list of runs: what is confirmed."""
    won = [one.confirmed for one in outcome.floors if one.confirmed is not None]
    return "".join(f"{short(one.size_bytes, one.lower)} · " for one in won)
