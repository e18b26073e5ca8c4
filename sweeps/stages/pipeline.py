"""The whole way in one run: train, scan, search, register, report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from netprune.errors import InputError
from sweeps import tracking
from sweeps.progress import report
from sweeps.stages.data import AUTO, DataRequest
from sweeps.stages.registering import RegisterOutcome, run_register
from sweeps.stages.reporting import Report, run_report
from sweeps.stages.request import SearchRequest
from sweeps.stages.searching import run_search
from sweeps.stages.source import open_source
from sweeps.stages.training import TrainRequest, run_training


@dataclass(frozen=True, slots=True)
class PipelineOutcome:
    """What the pipeline ended in."""

    registered: RegisterOutcome
    report: Report


def run_pipeline(training: TrainRequest, search: SearchRequest) -> PipelineOutcome:
    """Each stage in a run of its own under one parent; the study is new each time.

    Raises:
        InputError: as the stages do; with no trial that meets the floor nothing is registered.
    """
    config = {f"{part}.{k}": v for part, r in (("train", training), ("search", search)) for k, v in asdict(r).items()}
    del config["search.storage"]  # an address may hold a password
    with tracking.tracked_run("main", f"pipeline on {Path(training.data.dataset).name}", config) as run_id:
        report("1/4 train")
        trained = run_training(training)
        dense = replace(training.source, model_uri=trained.run_id)
        source = open_source(dense, replace(training.data, dataset=AUTO))
        report("2/4 scan and search")
        found = run_search(source, replace(search, study_name=search.study_name or f"main-{run_id[:8]}"))
        report("3/4 register")
        data = DataRequest(dataset=AUTO, data_dir=training.data.data_dir, device=training.data.device)
        try:
            registered = run_register(found.study_name, "", data, source.own)
        except InputError:  # the page says why nothing is registered, and what may help
            run_report(found.study_name, model=source.own)
            raise
        report("4/4 report")
        return PipelineOutcome(registered, run_report(found.study_name, model=source.own))
