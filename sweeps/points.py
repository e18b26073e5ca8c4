"""A point of the search space as Optuna has it: parameters of a trial, and back."""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial

from netprune.search_space import REACH, Point, Space

DENSITY, OFFSET = "density", "offset/"
"""Parameters of a trial; an offset's name ends with the layer's."""


class Given(RandomSampler):
    """Optuna's side of it: a trial's parameters are not drawn, they are those of the point that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.params: dict[str, float] = {}
        """Parameter → value, of the trial that is about to be asked for them."""

    def sample_independent(
        self,
        study: optuna.Study,  # noqa: ARG002 - Optuna's signature
        trial: FrozenTrial,  # noqa: ARG002
        param_name: str,
        param_distribution: BaseDistribution,  # noqa: ARG002
    ) -> float:
        """The point's."""
        return self.params[param_name]


def whole(space: Space) -> dict[str, FloatDistribution]:
    """The space as Optuna has it: parameter → its range."""
    offsets = {f"{OFFSET}{name}": FloatDistribution(-REACH, REACH) for name in space.sizes}
    return {DENSITY: FloatDistribution(space.least, space.most, log=True), **offsets}


def parameters(point: Point) -> dict[str, float]:
    """A point as Optuna has it: parameter → value."""
    return {DENSITY: point.density, **offsets_of(point)}


def offsets_of(point: Point) -> dict[str, float]:
    """The same without its density."""
    return {f"{OFFSET}{name}": value for name, value in point.offsets.items()}


def point_of(params: Mapping[str, float]) -> Point:
    """And back."""
    offsets = {name.removeprefix(OFFSET): value for name, value in params.items() if name.startswith(OFFSET)}
    return Point(density=params[DENSITY], offsets=offsets)
