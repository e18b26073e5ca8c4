"""How much it hurts to prune one layer alone, by how much of it goes: what a scan found."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netprune.evaluation import Evaluation

Curve = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCurve:
    """One layer pruned to several sparsities, everything else as it was. All arrays are `(S,)`."""

    layer: str
    """Weight name."""
    size: int
    """Weights in the layer."""
    start: float
    """Fraction of them that was zero before the scan."""
    sparsities: Curve
    """Asked, rising, in (0, 1]."""
    loss: Curve
    """Nats."""
    damage: Curve
    """Change of the loss against the dense network on the same images, nats; not finite where the network's is not."""
    damage_se: Curve
    """Its standard error, paired: of the mean of the images' differences."""
    accuracy: Curve
    """In [0, 1]."""
    accuracy_se: Curve
    """Binomial."""
    count: NDArray[np.int64]
    """Images that each point was measured on, the first ones of the split."""
    changed: NDArray[np.bool_]
    """Whether any image's loss was another than the dense network's."""

    @property
    def has_effect(self) -> bool:
        """False for a layer that can be pruned without changing anything: it is dead, not robust."""
        return bool(self.changed.any())

    def while_finite(self) -> LayerCurve:
        """Its points before the first whose damage is no finite number.

        A network that divides by what an emptied layer gives has no loss there: nothing is known from that point on.
        """
        broken = np.flatnonzero(~np.isfinite(self.damage))
        if not len(broken):
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        cut: dict[str, Any] = {
            name: value[: broken[0]] for name, value in values.items() if isinstance(value, np.ndarray)
        }
        return replace(self, **cut)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """A curve for each layer, and what they were measured with."""

    curves: tuple[LayerCurve, ...]
    """In the model's order."""
    baseline: Evaluation
    """The dense network on the first images of the split: as many as the longest point took."""
    split: str
    """Which split was used."""
    val_digest: str
    """`Dataset.val_digest()` of the data."""
    digest: str
    """`weights_digest()` of the dense network."""
    max_se: float
    """What the paired error of each point was to come below, nats; 0 for all images."""
    missed: int
    """Points whose paired error is above it still, on all the images that there are."""
    compute: str
    """Number format, layout and batch size."""
    whole_passes: str
    """Why the prefix could not be reused; empty if it was."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Weight names, in the model's order."""
        return tuple(curve.layer for curve in self.curves)

    @property
    def sizes(self) -> dict[str, int]:
        """Weight name → weights in the layer."""
        return {curve.layer: curve.size for curve in self.curves}

    def __getitem__(self, layer: str) -> LayerCurve:
        """The curve of one layer; KeyError for an unknown name."""
        return {curve.layer: curve for curve in self.curves}[layer]

    def to_json(self) -> str:
        """All of it as JSON; numbers survive exactly. JSON has no NaN and no infinity: those are text."""
        return json.dumps(asdict(self), default=_as_list)

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """The inverse of `to_json`."""
        found = json.loads(text)
        curves = tuple(_curve(curve) for curve in found.pop("curves"))
        return cls(**{**found, "curves": curves, "baseline": Evaluation(**found["baseline"])})


def _as_list(array: Curve) -> list[float | str]:
    return [value if np.isfinite(value) else str(value) for value in array.tolist()]


def _curve(found: dict[str, Any]) -> LayerCurve:
    values: dict[str, Any] = {name: _as_array(v) if isinstance(v, list) else v for name, v in found.items()}
    return LayerCurve(**values)


def _as_array(values: list[float | str]) -> Curve:
    return np.array([float(value) if isinstance(value, str) else value for value in values])
