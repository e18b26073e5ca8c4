"""A study on one page: what is known of it → one HTML file. Nothing is measured or looked up here."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from netprune.confidence import interval
from sweeps.progress import duration
from sweeps.table import count, percent

TEMPLATE = "page.html"
MOST_LISTED = 10
"""Trials in the table that is always open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """One network's accuracy on one split."""

    value: float
    """In [0, 1]."""
    se: float
    """Standard error that the images leave."""
    images: int | None
    """That it was measured on; None if the run does not say."""

    @property
    def interval(self) -> str:
        """The two-sided 95 % confidence interval, in words; empty without the number of images."""
        if not self.images:
            return ""
        low, high = interval(self.value, self.images)
        return f"{100 * low:.2f} to {100 * high:.2f} %"


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """One network as the table of networks shows it."""

    label: str
    val: Accuracy
    test: Accuracy | None
    """None where test has not been read for it."""
    nonzero_bytes: int
    packed_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FloorResult:
    """What the study has for one floor."""

    floor: float
    """In [0, 1]."""
    network: Network | None
    """The confirmed one."""
    accuracies: tuple[float, ...] = ()
    """Its validation accuracies, one a fresh seed."""
    lower: float = 0.0
    """Lower end of the one-sided 95 % confidence interval of its accuracy."""


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
    ending: str
    """How it ended, with the reason if that was early."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopping:
    """What stopping early saved, and how often it would have been wrong."""

    trials: int
    stopped: int
    spent_epochs: float
    saved_epochs: float
    controls: int
    """Trials with a verdict that was not acted upon."""
    wrong: int
    """Those of them that ended at the lowest floor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSeconds:
    """What one stage took, over all trials that ran to their end."""

    name: str
    seconds: float
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


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPage:
    """All that the page says."""

    name: str
    run_id: str
    about: str
    """Network and data."""
    objective: str
    """What was minimised, in words."""
    dense: Network
    floors: tuple[FloorResult, ...]
    """The highest first."""
    tried: bool
    """Whether candidates were confirmed."""
    shown: str
    """Which pruned network layers, weights and images are of; empty for none."""
    shown_network: Network | None
    layers: tuple[LayerRow, ...]
    """Of the shown network's file: together they are all of it."""
    trials: tuple[TrialRow, ...]
    """In the order they ran."""
    stopping: Stopping
    stages: tuple[StageSeconds, ...]
    comparison: Comparison | None
    no_comparison: str
    """Why there is none."""
    plots: Mapping[str, Plot]
    steps: tuple[Step, ...]
    """What next."""
    repeat: Repeat

    @property
    def confirmed(self) -> tuple[FloorResult, ...]:
        """Floors with a confirmed network."""
        return tuple(one for one in self.floors if one.network is not None)

    @property
    def smallest(self) -> tuple[TrialRow, ...]:
        """Trials that meet the floor and then the others that ran to their end, each by size: the first few of them."""
        finished = [trial for trial in self.trials if trial.val is not None]
        return tuple(sorted(finished, key=lambda trial: (not trial.feasible, trial.size_bytes))[:MOST_LISTED])

    @property
    def file_bytes(self) -> float:
        """Length of the shown network's file."""
        return sum(row.bytes for row in self.layers)

    @property
    def largest(self) -> LayerRow:
        """The tensor with the most bytes of the shown network's file."""
        return max((row for row in self.layers if row.parameters), key=lambda row: row.bytes)


def render(page: StudyPage) -> str:
    """One HTML file: pictures and style are in it, nothing is fetched, and every name is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "count": lambda number: count(round(number)),
        "duration": duration,
        "base64": lambda data: base64.b64encode(data).decode(),
        "interval": lambda part, whole: "{:.0f} to {:.0f} %".format(
            *(100 * end for end in interval(part / whole, whole))
        ),
    }
    return environment.get_template(TEMPLATE).render(page=page)
