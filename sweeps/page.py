"""A study on one page: what is known of it → one HTML file. Nothing is measured or looked up here."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from netprune.confidence import interval
from sweeps.findings import (
    CandidateRow,
    Comparison,
    FloorResult,
    LayerRow,
    LostTrial,
    Network,
    Plot,
    Repeat,
    StageSeconds,
    Step,
    Stopping,
    TrialRow,
)
from sweeps.progress import duration
from sweeps.table import count, percent, points

TEMPLATE = "page.html"
MOST_LISTED = 10
"""Trials in the table that is always open."""


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
    """Whether the study has come to its end, where candidates are accepted or not."""
    candidates: tuple[CandidateRow, ...]
    """The smallest first."""
    shown: str
    """Which pruned network layers, weights and images are of; empty for none."""
    shown_network: Network | None
    layers: tuple[LayerRow, ...]
    """Of the shown network's file: together they are all of it."""
    trials: tuple[TrialRow, ...]
    """In the order they ran."""
    lost: tuple[LostTrial, ...]
    stopping: Stopping
    stages: tuple[StageSeconds, ...]
    comparison: Comparison | None
    no_comparison: str
    """Why there is none."""
    plots: Mapping[str, Plot]
    steps: tuple[Step, ...]
    """What next."""
    storage: str
    """Where the study lives, for the commands that go on with it; empty for the working directory."""
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
    def seconds(self) -> float:
        """All that trials and confirmations took."""
        return sum(stage.trials + stage.confirmations for stage in self.stages) + self.stopping.seconds

    @property
    def passes_share(self) -> float | None:
        """Share of passes through the network in what ran to its end; None if nothing did."""
        whole = [(stage.passes, stage.trials + stage.confirmations) for stage in self.stages]
        total = sum(seconds for _, seconds in whole)
        return sum(seconds for passes, seconds in whole if passes) / total if total else None

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
        "points": points,
        "count": lambda number: count(round(number)),
        "duration": duration,
        "base64": lambda data: base64.b64encode(data).decode(),
        "interval": lambda part, whole: "{:.0f} to {:.0f} %".format(
            *(100 * end for end in interval(part / whole, whole))
        ),
    }
    return environment.get_template(TEMPLATE).render(page=page)
