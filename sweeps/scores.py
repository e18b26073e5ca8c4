"""What trials come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from netprune.search_space import Point

# accuracies are counts over images: a floor of 0.809 must not be missed by the last bit of 0.8388 - 0.03
ROUNDING = 1e-9
OBJECTIVES = ("packed_bytes", "nonzero_bytes")
"""The file's length; or the source document's count, nonzero parameters as fp32 without positions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What one trial came to."""

    size_bytes: int
    """The objective: one of `OBJECTIVES`; an estimate for a trial that stopped early."""
    accuracy: float
    """Validation, in [0, 1]; for a trial that stopped early, what it would hardly have passed."""
    run_id: str
    """Of the trial in MLflow."""
    checks: Mapping[float, float] = field(default_factory=dict)
    """Share of the finetuning → accuracy on the first validation images."""
    stopped: str = ""
    """Why it stopped early; empty if it did not."""
    overruled: str = ""
    """Why it would have stopped early, had it not been a control."""
    epochs: float = 0.0
    """Finetune epochs that it took."""
    start: int | None = None
    """The trial whose network it went on from; None for the dense one."""
    had: float = 0.0
    """Finetune epochs that the network had had in all, its confirmation's included where it went on from that."""
    images_had: float = 0.0
    """Epochs of training images that it had learned from: of an average, those of all its seeds."""

    def meets(self, floor: float) -> bool:
        """Whether it ran to its end and its accuracy is at the floor."""
        return not self.stopped and self.accuracy >= floor - ROUNDING

    def shortfall(self, floor: float) -> float:
        """How far below the floor, at most 0 where it is met; a trial that stopped early never meets one."""
        return max(floor - self.accuracy - ROUNDING, ROUNDING if self.stopped else -1.0)

    def as_json(self) -> dict[str, Any]:
        """With names for the shares, which JSON wants."""
        return asdict(self) | {"checks": {str(share): accuracy for share, accuracy in self.checks.items()}}

    @classmethod
    def of_json(cls, kept: Mapping[str, Any]) -> Score:
        """And back."""
        checks = {float(share): accuracy for share, accuracy in kept["checks"].items()}
        return cls(**{**kept, "checks": checks})


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A trial's network finetuned on, longer, with fresh seeds, to see whether it is accepted for a floor."""

    trial: int
    floor: float
    """For which it was chosen."""
    epochs: float
    """Finetune epochs, with each seed."""
    seeds: tuple[int, ...]
    accuracy: float
    """Validation: what its bound is of."""
    lower: float
    """That bound, or 0 where it was given up after one seed."""
    run_id: str
    """Of the network that would ship: trials, and other candidates, go on from it."""
    trained: float
    """Finetune epochs that this network has had in all."""
    images_had: float = 0.0
    """Epochs of training images that it has learned from, with one seed after the other."""
    turn: int = 0
    """How many such finetunings its network had had before, beside the trial's."""

    @classmethod
    def of_json(cls, kept: Mapping[str, Any]) -> Attempt:
        """From what `asdict` gave, once it has been JSON."""
        return cls(**{**kept, "seeds": tuple(kept["seeds"])})


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial with a result."""

    number: int
    point: Point
    score: Score


def lineage(tried: Sequence[Tried]) -> dict[int, float]:
    """Number → finetune epochs that its network has had in all, those of what it went on from included."""
    return {one.number: one.score.had + one.score.epochs for one in tried}


def judged_after(tried: Sequence[Tried]) -> dict[int, float]:
    """Number → finetune epochs after which its network has its accuracy: of a trial that stopped early, whose accuracy
    is that of a whole one, those that it would have had in the end."""
    whole = max((one.score.epochs for one in tried), default=0.0)
    return {one.number: one.score.had + (whole if one.score.stopped else one.score.epochs) for one in tried}
