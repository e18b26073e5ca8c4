"""Where a candidate's finetuning begins: at the dense network, or at what an earlier trial has become."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from netprune.masks import Sparsity
from netprune.packing import pack, unpack
from netprune.pruning import PruneConfig, pruned_copy
from netprune.screening import Screen
from netprune.starts import nearest
from sweeps import artifacts, registry
from sweeps.scores import Tried
from sweeps.stages.source import Source
from sweeps.study import SparsityStudy

PACKED_FILE = f"packed/{registry.MODEL_FILE}"
FINETUNED_FILE = f"finetuned/{registry.MODEL_FILE}"
"""Of a run whose packed file has rounded values: the network before that."""


@dataclass(frozen=True, slots=True)
class Start:
    """A network to prune and finetune."""

    number: int | None
    """Of the trial that it comes from; None for the dense one."""
    network: nn.Module | None
    """None for the dense one."""


DENSE = Start(None, None)


class Starts:
    """The networks of a study's trials."""

    def __init__(self, source: Source, study: SparsityStudy, config: PruneConfig, screen: Screen) -> None:
        self.source, self.study, self.config, self.screen = source, study, config, screen

    def find(self, sparsity: Sparsity, tried: Sequence[Tried]) -> Start:
        """The start from which least is left to recover, before any training: of the dense network and the nearest
        trials' networks. Without finetuning a trial's network is nothing but a part of the dense one."""
        if self.config.finetune is None:
            return DENSE
        ended = {one.number: one for one in tried if not one.score.stopped}
        at = {number: self.study.space.at(one.point) for number, one in ended.items()}
        starts = [DENSE, *(self.of(ended[number]) for number in nearest(self.study.layers, sparsity, at))]
        return starts[0] if len(starts) == 1 else min(starts, key=lambda start: self._left(start, sparsity))

    def of(self, tried: Tried) -> Start:
        """What a trial has become."""
        return Start(tried.number, fetch_network(tried.score.run_id, self.source, self.config))

    def _left(self, start: Start, sparsity: Sparsity) -> float:
        model, dataset = self.source.model, self.source.dataset
        return self.screen.left(pruned_copy(model, dataset, sparsity, self.config.saliency, start=start.network).model)


def keep_network(network: nn.Module, source: Source, config: PruneConfig) -> None:
    """Keep a finetuned network in the active run, if its packed file will not."""
    if config.values.rounds:
        artifacts.log_bytes(pack(network, source.header), FINETUNED_FILE)


def fetch_network(run_id: str, source: Source, config: PruneConfig) -> nn.Module:
    """The finetuned network of a run, on the data set's device.

    Raises:
        InputError: if the store has lost it.
    """
    data = artifacts.read_artifact(run_id, FINETUNED_FILE if config.values.rounds else PACKED_FILE)
    return unpack(data, lambda _: copy.deepcopy(source.model)).model.to(next(source.model.parameters()).device)
