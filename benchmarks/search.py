"""The smallest confirmed file at equal cost: our search beside what is done otherwise.

Every method may spend the same finetune epochs on its trials, of the same length, for the same floors, and hands what
it tried to the same confirmation. `bisected RULE` looks for the density at which one rule's allocations come to what a
confirmation needs, a part of its trials for each floor, and spends what is left on larger networks, so that a
confirmation which fails has a next one to take; `plain optuna` is TPE over raw per-layer sparsities with the floor as a
constraint. Ours may stop trials early, and spends what that saves on more trials; its trials and confirmations go on
from whichever of its networks has least left to recover; the others' trials from the dense network, and their
confirmations from the trial's. What nothing is confirmed for counts as the dense file. Test is read once for each
confirmed network and decides nothing: all are chosen for their validation accuracy, and test says how much of it is
luck.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from torch import nn

from benchmarks.baselines import RULES, Found, Terms, bisect, plain
from benchmarks.setting import Kept, Setting, finish, open_setting, parser, print_table, require_counts, run
from netprune.allocation import Basis
from netprune.callbacks import Callbacks
from netprune.candidate import prune_candidate
from netprune.confirmation import Candidate
from netprune.evaluation import evaluate
from netprune.header import header_for
from netprune.masks import Sparsity
from netprune.models import Architecture
from netprune.packing import pack, unpack
from netprune.precision import fit_to_device
from netprune.pruning import PruneConfig, finetuning
from netprune.quantise import Values
from netprune.scanner import scan
from netprune.weights import prunable_weights
from sweeps import artifacts, tracking
from sweeps.proposing import SAMPLERS
from sweeps.scores import OBJECTIVES
from sweeps.stages.confirming import confirm
from sweeps.stages.contest import FRESH, Confirmation, Confirmed, Contest
from sweeps.stages.data import DataRequest
from sweeps.stages.request import SearchRequest
from sweeps.stages.scanning import ScanRequest
from sweeps.stages.searching import run_search
from sweeps.stages.source import Source
from sweeps.stages.starting import PACKED_FILE, Start, artifact_of
from sweeps.store import open_store
from sweeps.table import trial_name

OURS, PLAIN = "ours", "plain optuna"
METHODS = (OURS, *(f"bisected {rule}" for rule in RULES), PLAIN)


class Bench:
    """One dense network, and what is tried on it."""

    def __init__(self, setting: Setting, options: argparse.Namespace) -> None:
        self.setting, self.options = setting, options
        architecture = Architecture(name="net10", num_classes=len(setting.dataset.classes), width=options.width)
        header = header_for(setting.model, setting.dataset, architecture)
        data = DataRequest(dataset=options.dataset, data_dir=options.data_dir, device=options.device)
        self.source = Source(setting.model, header, setting.dataset, data, options.weights or "trained on the spot")
        self.dense_accuracy = evaluate(setting.model, setting.dataset.val, setting.dataset).accuracy
        self.dense_bytes = len(pack(setting.model, header))

    @cached_property
    def basis(self) -> Basis:
        """What the rules of the bisections allocate by."""
        return Basis(model=self.setting.model, sensitivity=scan(self.setting.model, self.setting.dataset))

    def terms(self, seed: int) -> Terms:
        """For one seed of everything."""

        def config(epochs: float) -> PruneConfig:
            values = Values.parse(self.options.values)
            made = finetuning(epochs, values=values, batch_size=self.options.batch_size, seed=seed)
            assert made.finetune is not None
            fitted, _ = fit_to_device(self.setting.model, self.setting.dataset, made.finetune, self.options.precision)
            return replace(made, finetune=fitted)

        return Terms(
            floors=tuple(self.dense_accuracy - drop / 100 for drop in sorted(self.options.max_drop)),
            trials=self.options.trials,
            finetune=config(self.options.finetune_epochs),
            confirmation=config(self.options.confirm_epochs),
            most=self.options.confirm_most,
            seed=seed,
            images=len(self.setting.dataset.val),
        )

    def trial(self, sparsity: Sparsity, terms: Terms) -> Found:
        """Prune, finetune, pack: as a trial of ours without early stopping."""
        networks: list[nn.Module] = []
        result, data = prune_candidate(
            self.source.subject,
            sparsity,
            terms.finetune,
            callbacks=Callbacks(on_finetuned=lambda network: networks.append(copy.deepcopy(network))),
        )
        return Found(sparsity, len(data), result.val.accuracy, networks[0])

    def baseline(self, method: str, terms: Terms) -> list[Found]:
        """The trials of a method that is not ours."""

        def trial(sparsity: Sparsity) -> Found:
            return self.trial(sparsity, terms)

        if method == PLAIN:
            return plain(prunable_weights(self.setting.model), terms, trial)
        return bisect(method.removeprefix("bisected "), self.basis, terms, trial)

    def confirmed(self, name: str, found: Sequence[Found], terms: Terms) -> dict[float, Confirmed | None]:
        """The same confirmation as a search of ours has."""

        def start(number: int) -> Start:
            with tracking.tracked_run("trial", trial_name(number), {}) as run_id:
                artifacts.log_bytes(pack(found[number].network, self.source.header), artifact_of(terms.confirmation))
            return Start(number, found[number].network, run_id, terms.finetune.epochs)

        contest = Contest(
            name=name,
            run_id=tracking.active_run_id(),
            floors=terms.floors,
            objective=OBJECTIVES[0],
            candidates=tuple(
                Candidate(i, one.size_bytes, one.accuracy, one.accuracy + terms.gain) for i, one in enumerate(found)
            ),
            sparsities={i: one.sparsity for i, one in enumerate(found)},
            start=start,
        )
        seeds = (terms.seed + FRESH, terms.seed + FRESH + 1)
        return confirm(self.source, contest, Confirmation(config=terms.confirmation, seeds=seeds, most=terms.most))

    def ours(self, name: str, terms: Terms) -> dict[float, Confirmed | None]:
        """The command's own search."""
        request = SearchRequest(
            max_drop=tuple(self.options.max_drop),
            trials=10 * terms.trials,
            epochs=terms.epochs,
            finetune_epochs=self.options.finetune_epochs,
            batch_size=self.options.batch_size,
            values=self.options.values,
            sampler=self.options.sampler,
            confirm_epochs=self.options.confirm_epochs,
            confirm_most=terms.most,
            seed=terms.seed,
            study_name=name,
            scan=ScanRequest.of(
                {"sparsities": "auto", "max_se": 0.02, "precision": self.options.precision, "saliency": "magnitude"}
            ),
        )
        return {one.floor: one.confirmed for one in run_search(self.source, request).floors}

    def test_accuracy(self, won: Confirmed) -> float:
        """Of the file that ships."""
        data = artifacts.read_artifact(won.run_id, PACKED_FILE)
        shipped = unpack(data, lambda _: copy.deepcopy(self.setting.model), max_bytes=sys.maxsize).model  # our own
        return evaluate(shipped.to(self.options.device), self.setting.dataset.test, self.setting.dataset).accuracy

    def measure(self, method: str, seed: int) -> dict[str, Any]:
        """Confirmed bytes (the dense file's where there are none) and accuracies by floor, and what epochs and seconds
        they took."""
        terms, name = self.terms(seed), f"{method} {seed}"
        begun = time.perf_counter()
        if method == OURS:
            winners = self.ours(name, terms)
            spent = sum(one.metrics["finetune_epochs"] for one in _runs(name, "trial"))
        else:
            found = self.baseline(method, terms)
            spent = len(found) * terms.finetune.epochs
            with tracking.tracked_run("search", name, {}, tags={tracking.STUDY: name}):
                winners = self.confirmed(name, found, terms)
        return {
            "bytes": [won.size_bytes if won else self.dense_bytes for won in winners.values()],
            "confirmed": [won is not None for won in winners.values()],
            "lower": [won.lower if won else None for won in winners.values()],
            "val": [won.accuracy if won else None for won in winners.values()],
            "test": [self.test_accuracy(won) if won else None for won in winners.values()],
            "trial epochs": spent,
            "confirm epochs": sum(one.metrics["finetune_epochs"] for one in _runs(name, "confirm")),
            "seconds": time.perf_counter() - begun,
        }


def _runs(study: str, stage: str) -> list[tracking.FoundRun]:
    return tracking.find_runs({tracking.STUDY: study, tracking.STAGE: stage})


def main() -> None:
    options = _options()
    results = Kept(options)
    torch.set_num_threads(max(1, torch.get_num_threads() // options.workers))
    bench = Bench(open_setting(options), options)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    every = [(method, seed) for seed in seeds for method in options.methods]
    for key, result in _measured(options, [one for one in every if _key(*one) not in results]):
        results[key] = result
        print(f"{key}: {result}", flush=True)
    table = {method: [results[_key(method, seed)] for seed in seeds] for method in options.methods}
    _print(table, bench, options)
    baselines = [np.mean([one["bytes"][0] for one in runs]) for method, runs in table.items() if method != OURS]
    both = baselines and OURS in table
    ratio = float(min(baselines) / np.mean([one["bytes"][0] for one in table[OURS]])) if both else None
    what = (
        f"times the confirmed bytes of ours in the best baseline, mean over seeds at {min(options.max_drop):g} points"
    )
    finish(options, {"results": results}, ratio, what)


def _key(method: str, seed: int) -> str:
    return f"{method}|{seed}"


def _measured(options: argparse.Namespace, due: Sequence[tuple[str, int]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each as soon as it is there. After one that fails no other begins; those that have begun are waited for."""
    with ThreadPoolExecutor(options.workers) as pool:
        made = {pool.submit(_apart, options, *one): one for one in due}
        failure = None
        try:
            for one in as_completed(made):
                if one.cancelled():
                    continue
                if one.exception() is None:
                    yield _key(*made[one]), one.result()
                    continue
                failure = failure or one.exception()
                for other in made:
                    other.cancel()  # a pool that is shut down would not say that it has
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # at Ctrl-C
        if failure:
            raise failure


def _apart(options: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """In a process of its own, because MLflow and Optuna keep one store to a process; and not by a fork, which neither
    torch's threads survive nor what is on a GPU."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, options, method, seed, torch.get_num_threads()).result()


def _measure(options: argparse.Namespace, method: str, seed: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    bench = Bench(open_setting(options), options)
    with _own_store():
        return bench.measure(method, seed)


def _print(table: dict[str, list[dict[str, Any]]], bench: Bench, options: argparse.Namespace) -> None:
    drops = sorted(options.max_drop)
    rows = []
    for method, runs in table.items():
        cells = []
        for i in range(len(drops)):
            sizes = [one["bytes"][i] for one in runs]
            none = sum(not one["confirmed"][i] for one in runs)
            spread = np.std(sizes, ddof=1) if len(sizes) > 1 else 0.0
            cells.append(f"{np.mean(sizes):,.0f} ± {spread:,.0f}" + (f" ({none} none)" if none else ""))
            cells.append(", ".join(_mean_percent([one[what][i] for one in runs]) for what in ("val", "test")))
        epochs = [f"{np.mean([one[what] for one in runs]):.2f}" for what in ("trial epochs", "confirm epochs")]
        rows.append([method, *cells, *epochs])
    columns = [text for drop in drops for text in (f"bytes at {drop:g} points", "val, test")]
    print_table(["method", *columns, "trial epochs", "confirm epochs"], rows)
    dense_test = evaluate(bench.setting.model, bench.setting.dataset.test, bench.setting.dataset).accuracy
    print(
        f"confirmed bytes, mean ± std over {options.seeds} seeds from {options.first_seed} on; "
        f"dense {bench.dense_bytes:,} bytes, {100 * bench.dense_accuracy:.2f} %, test {100 * dense_test:.2f} %; "
        f"a trial is {options.finetune_epochs:g} epochs, a confirmation {options.confirm_epochs:g} twice; "
        f"none: counted as the dense file"
    )


def _mean_percent(accuracies: Sequence[float | None]) -> str:
    known = [one for one in accuracies if one is not None]
    return f"{100 * np.mean(known):.2f} %" if known else "none"


@contextmanager
def _own_store() -> Iterator[None]:
    """An MLflow store and a study file in a folder that goes away."""
    before = Path.cwd()
    for name in ("RUN_ID", "EXPERIMENT_NAME", "EXPERIMENT_ID"):  # of another store
        os.environ.pop(f"MLFLOW_{name}", None)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        open_store()
        try:
            yield
        finally:
            os.chdir(before)


def _options() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--seeds", type=int, help="of everything (default 3, quick 1)")
    made.add_argument("--first-seed", type=int, default=0, help="the others follow it (default 0)")
    made.add_argument("--max-drop", type=float, nargs="+", default=[2.0], help="points (default 2)")
    made.add_argument("--trials", type=int, help="of each method (default 6, quick 4)")
    made.add_argument("--finetune-epochs", type=float, default=0.1, help="of a trial (default 0.1)")
    made.add_argument("--confirm-epochs", type=float, default=0.2, help="of a candidate, with each seed (default 0.2)")
    made.add_argument("--confirm-most", type=int, help="finetunings of candidates a floor (default 2, quick 1)")
    made.add_argument("--batch-size", type=int, default=64, help="images a step (default 64)")
    made.add_argument("--values", default="fp32", help="as the search has it (default fp32)")
    made.add_argument("--sampler", default="tpe", choices=SAMPLERS, help="of ours (default tpe)")
    made.add_argument("--precision", default="auto", choices=("auto", "fp32"), help="of the finetuning (default auto)")
    made.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="default: all")
    made.add_argument(
        "--workers", type=int, help="measured at once, each with its share of the cores (default 1; on a CPU 1 a core)"
    )
    made.add_argument("--kept", help="JSON file of single results, so that an interrupted run goes on")
    options = made.parse_args()
    usual = {"seeds": (3, 1), "trials": (6, 4), "confirm_most": (2, 1)}
    for name, values in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, values[options.quick])
    if options.workers is None:
        measurements = max(1, options.seeds * len(options.methods))
        options.workers = min(torch.get_num_threads(), measurements) if options.device == "cpu" else 1
    require_counts(options, "seeds", "trials", "confirm_most", "workers")
    return options


if __name__ == "__main__":
    run(main)
