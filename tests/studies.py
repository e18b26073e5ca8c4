"""A study small enough for a test, and copies of it for tests that look at one and the same."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow

from netprune.scanner import ScanConfig
from sweeps.stages.data import DataRequest
from sweeps.stages.request import SearchRequest
from sweeps.stages.scanning import ScanRequest
from sweeps.stages.searching import run_search

SCAN = ScanRequest(config=ScanConfig(sparsities=(0.5, 0.9, 1.0), max_se=0, precision="fp32"))
REQUEST = SearchRequest(
    max_drop=(50.0,),
    trials=5,
    batch_size=16,
    study_name="small",
    sampler="random",
    confirm_epochs=2.0,
    confirm_most=2,
    scan=SCAN,
)
DATA = DataRequest(dataset="tiny", data_dir=".")


@dataclass(frozen=True)
class Kept:
    """The folder of a store, put aside when a study had been made in it."""

    folder: Path
    was: Path
    """Where it was: the store knows its files by whole paths."""
    outcome: Any


def keep(store, folder, outcome):
    """Put a copy of what is in `store` into `folder`."""
    for name in ("mlruns", "optuna.journal"):
        source = store / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    _copy_database(store / "mlflow.db", folder / "mlflow.db")
    return Kept(folder, store, outcome)


def restore(kept, store):
    """Make of an empty store the one that was kept."""
    assert not mlflow.search_runs(search_all_experiments=True, output_format="list"), "a copy would take their place"
    shutil.copytree(kept.folder / "mlruns", store / "mlruns", dirs_exist_ok=True)
    shutil.copy(kept.folder / "optuna.journal", store)
    moved = store / "moved.db"
    _copy_database(kept.folder / "mlflow.db", moved)
    with closing(sqlite3.connect(moved)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            texts = [
                row[1]
                for row in database.execute(f"PRAGMA table_info({table})")
                if "CHAR" in row[2] or "TEXT" in row[2]
            ]
            for column in texts:
                database.execute(
                    f'UPDATE {table} SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)',
                    (str(kept.was), str(store), str(kept.was)),
                )
        database.commit()
    _copy_database(moved, store / "mlflow.db")  # into the file that MLflow has open
    moved.unlink()


def _copy_database(source, target):
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)


class Searched:
    """`run_search` for tests: a study that an earlier test has made already is copied."""

    def __init__(self, source, store, kept, make_folder):
        self.source, self.store, self.kept, self.make_folder = source, store, kept, make_folder

    def __call__(self, request=REQUEST):
        if request in self.kept:
            restore(self.kept[request], self.store)
        else:
            self.kept[request] = keep(self.store, self.make_folder("study"), run_search(self.source, request))
        return self.kept[request].outcome
