"""How a study scales: simulated trials, a sleep and a known function, with 1, 2, 4, … 64 workers.

Everything but the pruning and finetuning is the search's own: workers, sampler, storage, a run a trial with its file,
its metrics and tags. Without `--storage` a PostgreSQL server is started on loopback for the study and for MLflow;
`--sqlite` takes a journal and an SQLite store, up to 4 workers. A worker's cycle is from one start of a trial to its
next; ideal is a cycle of nothing but the sleep. (All workers are on this one machine, whose cores they share.)
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import optuna
import torch

from benchmarks.faults import SCAN, tiny_source
from benchmarks.postgresql import missing, server
from benchmarks.setting import finish, print_table, run
from netprune.candidate import PruneResult
from netprune.evaluation import Evaluation
from netprune.packing import pack
from sweeps import tracking
from sweeps.stages import trials
from sweeps.stages.request import SearchRequest
from sweeps.stages.searching import run_search
from sweeps.storage import open_storage
from sweeps.store import open_store

COUNTS, SQLITE_COUNTS = (1, 2, 4, 8, 16, 32, 64), (1, 2, 4)


def simulated(seconds: float) -> Any:
    """In place of `prune_candidate`: sleeps, and knows what comes out."""
    source = tiny_source()
    file = pack(source.model, source.header)

    def prune(_dense: Any, _dataset: Any, _header: Any, sparsity: Mapping[str, float], *_: Any, **__: Any) -> Any:
        time.sleep(seconds)
        density = sum(1 - value for value in sparsity.values()) / len(sparsity)
        accuracy = 0.9 - 0.01 / (density + 0.01)
        found = Evaluation(loss=0.5, loss_se=0.01, accuracy=accuracy, accuracy_se=0.005, count=5000)
        size = round(1e6 * density)
        result = PruneResult(
            asked=dict(sparsity),
            measured=dict(sparsity),
            one_shot=found,
            val=found,
            dense_bytes=1_000_000,
            nonzero_bytes=size,
            packed_bytes=size,
            sparsity=1 - density,
            seed=0,
            seconds={"finetune": seconds},
        )
        return result, file

    return prune


def work(folder: str, request: SearchRequest, tracking_uri: str, seconds: float, barrier: Any) -> None:
    """One worker; the clock starts when all are there."""
    os.chdir(folder)
    torch.set_num_threads(1)
    with Path("workers.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    mlflow.set_tracking_uri(tracking_uri)
    open_store()
    setattr(trials, "prune_candidate", simulated(seconds))  # noqa: B010 - mypy sees no such export
    barrier.wait()
    run_search(tiny_source(), request)


def measure(count: int, options: argparse.Namespace, url: str, folder: str) -> dict[str, float]:
    """One number of workers: trials an hour, of ideal, seconds of everything but the sleep, duplicates, lost."""
    name, total = f"scale-{count}", count * options.rounds
    storage = f"{url}study" if url else ""
    uri = f"{url}mlflow" if url else f"sqlite:///{folder}/mlflow.db"
    request = SearchRequest(
        max_drop=(50.0,),
        trials=total,
        finetune_epochs=0,
        sampler=options.sampler,
        confirm_seeds=0,
        study_name=name,
        storage=storage,
        scan=SCAN,
    )
    _run(folder, replace(request, trials=1), uri, 0.0, 1)  # the study's run, its scan and its path are there
    seconds = _run(folder, request, uri, options.seconds, count)
    # in a process of its own: connections that this one had opened would be shared by the workers it forks
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(_inspect, folder, request, uri, options.seconds).result() | {"wall seconds": seconds}


def _inspect(folder: str, request: SearchRequest, uri: str, sleep: float) -> dict[str, float]:
    os.chdir(folder)
    study = optuna.load_study(study_name=request.study_name, storage=open_storage(request.storage))
    done = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    mlflow.set_tracking_uri(uri)
    runs = tracking.find_runs({tracking.STUDY: request.study_name, tracking.STAGE: "trial"}, limit=100_000)
    numbers, cycles = [run.tags[tracking.TRIAL] for run in runs], _cycles(done)
    workers = len({trial.user_attrs["session"] for trial in done}) - 1  # one made the first trial alone
    return {
        "trials": len(done),
        "trials an hour": workers * 3600 / float(np.mean(cycles)),
        "of ideal": sleep / float(np.mean(cycles)),
        "overhead": float(np.mean(cycles)) - sleep,
        "duplicates": len(numbers) - len(set(numbers)) + max(0, len(done) - request.trials),
        "same points": len(done) - len({tuple(sorted(t.params.items())) for t in done}),
        "lost": request.trials - len(set(numbers)),
    }


def _cycles(done: Sequence[optuna.trial.FrozenTrial]) -> list[float]:
    """Seconds from each start of a trial to the same worker's next."""
    starts: dict[str, list[float]] = {}
    for trial in done:
        if trial.datetime_start is not None:
            starts.setdefault(trial.user_attrs["session"], []).append(trial.datetime_start.timestamp())
    return [b - a for times in starts.values() for a, b in itertools.pairwise(sorted(times))]


def _run(folder: str, request: SearchRequest, uri: str, seconds: float, count: int) -> float:
    """Seconds that so many workers take for the request."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(count + 1)
    crew = [context.Process(target=work, args=(folder, request, uri, seconds, barrier)) for _ in range(count)]
    for worker in crew:
        worker.start()
    barrier.wait()
    start = time.perf_counter()
    for worker in crew:
        worker.join()
    if any(worker.exitcode for worker in crew):
        raise RuntimeError(f"a worker failed: {(Path(folder) / 'workers.log').read_text()[-2000:]}")
    return time.perf_counter() - start


def main() -> None:
    options = _options()
    why = missing()
    if not options.storage and not options.sqlite and why:
        raise SystemExit(f"{why}: name a database with --storage, or take --sqlite.")
    own = server() if not options.storage and not options.sqlite else nullcontext(options.storage)
    results: dict[int, dict[str, float]] = {}
    with own as url, tempfile.TemporaryDirectory() as folder:
        for count in options.workers:
            results[count] = measure(count, options, "" if options.sqlite else url, folder)
            print(f"{count} workers: {results[count]}", flush=True)
    rows = [
        [
            str(count),
            f"{found['trials an hour']:,.0f}",
            f"{100 * found['of ideal']:.1f} %",
            f"{found['overhead']:.2f}",
            *(f"{found[what]:.0f}" for what in ("duplicates", "same points", "lost")),
        ]
        for count, found in results.items()
    ]
    header = ["workers", "trials an hour", "of ideal", "seconds a trial beside", "duplicates", "same points", "lost"]
    print_table(header, rows)
    print(f"trials of {options.seconds:g} s, {options.rounds} a worker, sampler {options.sampler}")
    most = max(results)
    finish(options, {"results": results}, results[most]["of ideal"], f"of the ideal rate, at {most} workers")


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--storage", default="", help="a server, up to its databases (default: a new one)")
    made.add_argument("--sqlite", action="store_true", help="a journal and an SQLite store instead")
    made.add_argument("--workers", type=int, nargs="+", help="numbers of them (default 1 to 64 in powers of two)")
    made.add_argument("--seconds", type=float, help="of a trial (default 20, quick 2)")
    made.add_argument("--rounds", type=int, help="trials a worker (default 3)", default=3)
    made.add_argument("--sampler", default="tpe", help="as the search has it (default tpe)")
    made.add_argument("--json", help="file for the figures")
    made.add_argument("--quick", action="store_true", help="up to 4 workers, trials of 2 s")
    options = made.parse_args()
    options.seconds = options.seconds or (2.0 if options.quick else 20.0)
    options.workers = options.workers or (SQLITE_COUNTS if options.quick or options.sqlite else COUNTS)
    options.device = "cpu"
    return options


if __name__ == "__main__":
    run(main)
