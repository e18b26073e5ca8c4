"""Where a candidate's finetuning begins: at the dense network, or at what an earlier trial has become."""

from __future__ import annotations

import copy
import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from netprune.masks import Sparsity
from netprune.packing import pack, unpack
from netprune.pruning import PruneConfig, pruned_copy
from netprune.screening import Screen
from netprune.starts import MOST, nearest
from sweeps import artifacts, registry
from sweeps.scores import Attempt, Tried
from sweeps.stages.source import Source
from sweeps.study import SparsityStudy
from sweeps.table import trial_name

PACKED_FILE = f"packed/{registry.MODEL_FILE}"
FINETUNED_FILE = f"finetuned/{registry.MODEL_FILE}"
"""Of a run whose packed file has rounded values: the network before that."""
KEPT = MOST + 1
"""Networks of earlier trials that stay in memory."""


@dataclass(frozen=True, slots=True)
class Start:
    """A network to prune and finetune."""

    number: int | None
    """Of the trial that it comes from; None for the dense one."""
    network: nn.Module | None
    """None for the dense one."""
    run_id: str = ""
    """Of the run that keeps it; none does so with the dense one."""
    had: float = 0.0
    """Finetune epochs that it has had in all."""
    images_had: float = 0.0
    """Epochs of training images that it has learned from: of an average, those of all its seeds."""
    confirmed: bool = False
    """Whether it is what became of the trial's when it was to be confirmed."""

    def __str__(self) -> str:
        if self.number is None:
            return "dense"
        return f"{trial_name(self.number)}{', finetuned longer' if self.confirmed else ''}"


DENSE = Start(None, None)


class Starts:
    """The networks of a study's trials."""

    def __init__(self, source: Source, study: SparsityStudy, config: PruneConfig, screen: Screen) -> None:
        self.source, self.study, self.config, self.screen = source, study, config, screen
        # the next trial's nearest are mostly this one's, and to decode them takes as long as to look at them
        self._fetch = functools.lru_cache(maxsize=KEPT)(lambda run_id: fetch_network(run_id, source, config))

    def find(self, sparsity: Sparsity, tried: Sequence[Tried]) -> tuple[Start, dict[str, float]]:
        """The start from which least is left to recover, before any training: of the dense network and the nearest
        trials' networks. Without finetuning a trial's network is nothing but a part of the dense one.

        Returns:
            It; and the seconds that went into looking at networks (`start`) and into having them (`fetch`).
        """
        begun = time.perf_counter()
        ended = {one.number: one for one in tried if not one.score.stopped}
        at = {number: self.study.space.at(one.point) for number, one in ended.items()}
        near = nearest(self.study.layers, sparsity, at) if self.config.finetune else []
        longer = {attempt.trial: attempt for attempt in self.study.attempts} if near else {}
        starts = [DENSE, *(self.of(ended[number], longer.get(number)) for number in near)]
        looked = [self._look(start, sparsity) for start in starts] if near else [(0.0, 0.0)]
        best = min(range(len(starts)), key=lambda i: looked[i][0])
        passes = sum(seconds for _, seconds in looked)
        return starts[best], {"start": passes, "fetch": time.perf_counter() - begun - passes}

    def of(self, tried: Tried, longer: Attempt | None = None) -> Start:
        """What a trial has become; or what that has, finetuned longer to be confirmed."""
        score = tried.score
        if longer is None:
            had, images_had = (before + score.epochs for before in (score.had, score.images_had))
            return Start(tried.number, self._fetch(score.run_id), score.run_id, had, images_had)
        network = self._fetch(longer.run_id)
        return Start(tried.number, network, longer.run_id, longer.trained, longer.images_had, confirmed=True)

    def _look(self, start: Start, sparsity: Sparsity) -> tuple[float, float]:
        """What is left to recover, in nats, and the seconds that its passes took."""
        model, dataset = self.source.model, self.source.dataset
        pruned = pruned_copy(model, dataset, sparsity, self.config.saliency, start=start.network)
        begun = time.perf_counter()
        return self.screen.left(pruned.model), time.perf_counter() - begun


def keep_network(network: nn.Module, source: Source, config: PruneConfig) -> None:
    """Keep a finetuned network in the active run, if its packed file will not."""
    if config.values.rounds:
        artifacts.log_bytes(pack(network, source.header), FINETUNED_FILE)


def artifact_of(config: PruneConfig) -> str:
    """Where a run keeps its finetuned network, before any rounding."""
    return FINETUNED_FILE if config.values.rounds else PACKED_FILE


def fetch_network(run_id: str, source: Source, config: PruneConfig) -> nn.Module:
    """The finetuned network of a run, on the data set's device.

    Raises:
        InputError: if the store has lost it.
    """
    data = artifacts.read_artifact(run_id, artifact_of(config))
    found = unpack(data, lambda _: copy.deepcopy(source.model), max_bytes=sys.maxsize)  # our own, however large
    return found.model.to(next(source.model.parameters()).device)
