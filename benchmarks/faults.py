"""Workers killed at random moments during a study of cheap trials: nothing may be lost, and nothing counted twice.

Each worker is a process that runs the real search on a tiny network and made-up images (trials without finetuning,
random proposals), on one MLflow store and one study. They are killed with SIGKILL one after the other, each at a random
moment, and replaced. When enough have been killed and the study has its trials, the study is gone on with once more,
undisturbed, and what Optuna and MLflow hold is compared.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import mlflow
import optuna
import torch

from benchmarks.setting import finish, print_table, run
from netprune.data import Dataset, Split
from netprune.header import header_for
from netprune.models import Architecture, build_model
from netprune.scanner import ScanConfig
from sweeps import tracking
from sweeps.stages.data import DataRequest
from sweeps.stages.request import SearchRequest
from sweeps.stages.scanning import ScanRequest
from sweeps.stages.searching import run_search
from sweeps.stages.source import Source
from sweeps.storage import open_storage
from sweeps.store import open_store

STUDY = "faults"
SCAN = ScanRequest(config=ScanConfig(sparsities=(0.5, 0.9, 1.0), max_se=0, precision="fp32"))
LONGEST_LIFE = 4.0
"""Seconds after which a worker is killed at the latest, if it is one to be killed."""


def tiny_source() -> Source:
    """A Net10 of width 1 and 48 images of noise: the same in every process."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (48, 3, 32, 32), generator=generator, dtype=torch.uint8)
    sizes, labels = [24, 16, 8], torch.arange(48) % 3
    parts = zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)
    train, val, test = (Split(some, named) for some, named in parts)
    dataset = Dataset(name="noise", train=train, val=val, test=test, classes=("a", "b", "c"))
    architecture = Architecture(name="net10", num_classes=3, width=1)
    model = build_model(architecture, seed=0)
    header = header_for(model, dataset, architecture)
    return Source(model, header, dataset, DataRequest(dataset="noise", data_dir="."), "made up")


def work(folder: str, trials: int, storage: str, seed: int) -> None:
    """One worker: the search as its command runs it, without an end of its own."""
    os.chdir(folder)
    torch.set_num_threads(1)
    with Path("workers.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    open_store()
    request = SearchRequest(
        max_drop=(50.0,),
        trials=trials,
        finetune_epochs=0,
        sampler="random",
        confirm_seeds=0,
        seed=seed,
        study_name=STUDY,
        storage=storage,
        scan=SCAN,
    )
    run_search(tiny_source(), request)


def torture(folder: str, options: argparse.Namespace) -> int:
    """Kill workers until enough have been, and let the study end; returns how many were killed."""
    context, chance = multiprocessing.get_context("fork"), random.Random(options.seed)
    killed, started, crew = 0, 0, dict[BaseProcess, float]()
    while killed < options.kills:
        while len(crew) < options.workers:
            worker: BaseProcess = context.Process(target=work, args=(folder, options.trials, options.storage, started))
            worker.start()
            started += 1
            crew[worker] = time.monotonic() + chance.uniform(0.02, LONGEST_LIFE)
        time.sleep(0.01)
        for one, end in list(crew.items()):
            if one.is_alive() and time.monotonic() >= end and one.pid is not None:
                os.kill(one.pid, signal.SIGKILL)
                one.join()
                killed += 1
            if not one.is_alive():
                del crew[one]
    for left in crew:
        left.join()
    last = context.Process(target=work, args=(folder, options.trials, options.storage, started))
    last.start()
    last.join()
    if last.exitcode:
        log = (Path(folder) / "workers.log").read_text()
        raise RuntimeError(f"the last worker ended with {last.exitcode}: {log[-2000:]}")
    return killed


def inspect(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """What Optuna and MLflow hold in the end, and where they differ."""
    os.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    study = optuna.load_study(study_name=STUDY, storage=open_storage(options.storage))
    complete = {t.number: t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE}
    runs = mlflow.search_runs(search_all_experiments=True, max_results=50_000, output_format="list")
    trials = [run for run in runs if run.data.tags.get(tracking.STAGE) == "trial" and run.info.status == "FINISHED"]
    numbers = [int(run.data.tags[tracking.TRIAL]) for run in trials]
    equal = {int(r.data.tags[tracking.TRIAL]): r for r in trials}
    differing = [
        number
        for number, trial in complete.items()
        if number in equal
        and (
            equal[number].data.metrics["packed_bytes"] != trial.value
            or equal[number].data.metrics["val_accuracy"] != trial.user_attrs["score"]["accuracy"]
        )
    ]
    met = [run.data.metrics["packed_bytes"] for run in trials if run.data.tags["feasible"] == "true"]
    feasible = [t.values[0] for t in complete.values() if t.constraints["accuracy_floor"] <= 0]
    return {
        "trials due": options.trials,
        "complete in Optuna": len(complete),
        "finished in MLflow": len(trials),
        "lost": len(complete.keys() - set(numbers)) + abs(options.trials - len(complete)),
        "duplicated": len(numbers) - len(set(numbers)) + len(set(numbers) - complete.keys()),
        "with other values": len(differing),
        "runs left RUNNING": sum(run.info.status == "RUNNING" for run in runs),
        "trials left RUNNING": sum(t.state == optuna.trial.TrialState.RUNNING for t in study.trials),
        "studies' runs": sum(run.data.tags.get(tracking.STAGE) == "search" for run in runs),
        "study's run": next(r.info.status for r in runs if r.data.tags.get(tracking.STAGE) == "search"),
        "best is the best": min(met, default=None) == min(feasible, default=None),
        "given up": sum(t.state == optuna.trial.TrialState.FAIL for t in study.trials),
    }


def main() -> None:
    options = _options()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        killed = torture(folder, options)
        seconds = time.perf_counter() - start
        found = inspect(folder, options)
        os.chdir(before)
    print_table(["what", "count"], [["workers killed", str(killed)], *([name, str(v)] for name, v in found.items())])
    where = "a database" if options.storage else "a journal"
    print(f"in {seconds:.0f} s, {options.workers} workers at a time, the study in {where}")
    wrong = found["lost"] + found["duplicated"]
    finish(options, {"results": found, "killed": killed}, wrong, "trials lost or duplicated")


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--kills", type=int, help="workers to be killed (default 100, quick 10)")
    made.add_argument("--workers", type=int, default=3, help="at a time (default 3)")
    made.add_argument("--trials", type=int, help="of the study (default 300, quick 25)")
    made.add_argument("--storage", default="", help="as the search has it (default: a journal)")
    made.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    made.add_argument("--json", help="file for the figures")
    made.add_argument("--quick", action="store_true", help="a smaller run")
    options = made.parse_args()
    options.kills = options.kills if options.kills is not None else (10 if options.quick else 100)
    options.trials = options.trials if options.trials is not None else (25 if options.quick else 300)
    options.device = "cpu"
    return options


if __name__ == "__main__":
    run(main)
