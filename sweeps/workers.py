"""Several processes on this machine for one study: each is the same command, with its share of the cores and GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import torch

from netprune.errors import InputError
from sweeps import interrupts

POLL_SECONDS = 0.5
LEAST_SECONDS = 0.001
"""A timeout of 0 is none."""


def run_workers(
    count: int,
    study_name: str,
    *,
    model_uri: str,
    device: str,
    timeout: float | None,
    meanwhile: Callable[[], None],
) -> None:
    """Start workers for a study that exists, and wait for them.

    What they have found this process says in the end: of theirs only news and errors are shown. They are stopped as
    this process is: by SIGTERM, which each takes for Ctrl-C. One that fails does not stop the rest.

    Args:
        count: how many.
        study_name: of the study; all else is as this process was told.
        model_uri: of the dense network, if it is a model of the store: the newest one may be another by now.
        device: as this process was told: GPUs are dealt out where it does not say which.
        timeout: seconds that are left of its own, if any.
        meanwhile: is called again and again while they work.

    Raises:
        InputError: if none of them ends well.
    """
    words = [sys.executable, "-m", "sweeps.search_sparsity", *_without(sys.argv[1:])]
    words += ["--study-name", study_name, "--workers", "1"]
    if model_uri:
        words += ["--model-uri", model_uri]
    if timeout is not None:
        words += ["--timeout", f"{max(timeout, LEAST_SECONDS):.3f}"]
    started = [
        subprocess.Popen(words, env=_environment(i, count, device), stdout=subprocess.DEVNULL) for i in range(count)
    ]
    try:
        codes = [_wait(process, meanwhile) for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
        for process in started:
            process.wait()
    if all(codes):
        raise InputError(
            f"all {count} workers failed (exit codes {', '.join(map(str, codes))}): see their messages above."
        )


def _wait(process: subprocess.Popen[bytes], meanwhile: Callable[[], None]) -> int:
    while True:
        interrupts.check()
        meanwhile()
        try:
            return process.wait(timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def _without(words: Sequence[str]) -> list[str]:
    """The command line without what each worker is told anew."""
    kept: list[str] = []
    skip = False
    for word in words:
        name = word.partition("=")[0].replace("_", "-")
        if skip or name in ("--workers", "--study-name", "--timeout"):
            skip = not skip and "=" not in word
            continue
        kept.append(word)
    return kept


def _environment(index: int, count: int, device: str) -> Mapping[str, str]:
    """Threads and GPUs so that workers do not fight; no run of MLflow's to be taken over by accident."""
    asked = os.environ.get("OMP_NUM_THREADS", "")  # where the cores are shared with others
    cores = min(os.cpu_count() or 1, int(asked) if asked.isdecimal() and int(asked) else sys.maxsize)
    threads = max(1, cores // count)
    kept = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
    kept |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if gpus:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = seen.split(",") if seen else [str(i) for i in range(gpus)]
        kept["CUDA_VISIBLE_DEVICES"] = names[index % len(names)]
    return kept
