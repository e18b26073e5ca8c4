"""What a study's page says, part by part, as data."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from netprune.confidence import Change, interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """One network's accuracy on one split."""

    value: float
    """In [0, 1]."""
    se: float
    """Standard error that the images leave."""
    images: int
    """That it was measured on."""

    @property
    def interval(self) -> str:
        """The two-sided 95 % confidence interval, in words."""
        low, high = interval(self.value, self.images)
        return f"{100 * low:.2f} to {100 * high:.2f} %"


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """One network as the table of networks shows it."""

    label: str
    val: Accuracy
    test: Accuracy | None
    """None where test has not been read for it."""
    change: Change | None
    """Of accuracy on test, from the dense network to this one; None where there is none."""
    nonzero_bytes: int
    packed_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FloorResult:
    """What the study has for one floor."""

    floor: float
    """In [0, 1]."""
    network: Network | None
    """The confirmed one."""
    seeds: tuple[int, ...] = ()
    """Fresh ones, with which it was finetuned again."""
    accuracies: tuple[float, ...] = ()
    """Its validation accuracies, one a seed."""
    average: float | None = None
    """The same of the network with the mean of their weights, if there is one."""
    averaged: bool = False
    """Whether that one ships; else the most accurate does."""
    lower: float = 0.0
    """Lower end of the one-sided 95 % confidence interval of its accuracy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateRow:
    """A trial whose allocation was finetuned again with fresh seeds."""

    name: str
    size_bytes: int
    """The objective, of the network that would ship."""
    start: str
    """Whose network its finetunings went on from: `dense`, or a trial, or what that had become."""
    epochs: str
    """Of each finetuning."""
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    """Validation, one a seed."""
    average: float | None
    """The same of the network with the mean of their weights, if there is one."""
    lower: float | None
    """Lower end of the one-sided 95 % confidence interval; None for a single seed, which leaves none."""
    verdict: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRow:
    """One tensor, or several together, in the file."""

    name: str
    parameters: int | None
    """None for what is no tensor."""
    kept: int | None
    bytes: float
    """Of the packed file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRow:
    """One trial of the study."""

    name: str
    val: Accuracy | None
    """None for one that stopped early."""
    sparsity: float | None
    size_bytes: int
    """The objective; an estimate for one that stopped early."""
    feasible: bool
    """Whether it meets the highest floor."""
    epochs: float
    """Finetune epochs that it took."""
    start: str
    """Whose network it went on from: `dense`, or a trial."""
    ending: str
    """How it ended, with the reason if that was early."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LostTrial:
    """A trial that came to no result."""

    name: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopping:
    """What stopping early saved, and how often it would have been wrong."""

    trials: int
    stopped: int
    spent_epochs: float
    saved_epochs: float
    looks: Mapping[float, int]
    """Share of the finetuning → how many stopped there; together they are all that stopped."""
    seconds: float
    """Wall-clock time of those that stopped, from the end of the trial before each."""
    controls: int
    """Trials with a verdict that was not acted upon."""
    wrong: int
    """Those of them that ended at the lowest floor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSeconds:
    """What one stage took, over all that ran to their end."""

    name: str
    trials: float
    """Wall-clock seconds."""
    confirmations: float
    """Wall-clock seconds."""
    passes: bool
    """Whether it consists of passes through the network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """An image that the two networks take for different classes."""

    png: bytes
    truth: str
    dense: str
    pruned: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Dense and pruned network on the same validation images."""

    images: int
    differ: int
    """Images that they take for different classes."""
    only_dense: int
    """Of these, those that the dense network alone has right."""
    only_pruned: int
    examples: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """A figure, drawn."""

    png: bytes
    title: str
    """In words: what is read out where it cannot be seen."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the PNG's header."""
        width, height = struct.unpack(">II", self.png[16:24])
        return width, height


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Something to do, and the command that does it."""

    text: str
    command: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeat:
    """All it takes to do the study again."""

    commands: tuple[Step, ...]
    versions: Mapping[str, str]
    commit: str
    """Of the code; empty if the run does not say."""
    params: Mapping[str, str]
    """Of the study's run."""
