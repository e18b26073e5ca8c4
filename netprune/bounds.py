"""Which layers may be pruned, and how far: the one place that decides it, for every rule and for a search.

A layer that is kept is no layer for pruning: it has no sparsity, no offset in a search and no curve, and a density is
of the other layers' weights. A layer with a limit takes part, and never gets more than that sparsity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from netprune.errors import InputError
from netprune.masks import Sparsity
from netprune.weights import names_of_weights, prunable_weights

Names = tuple[str, ...]
"""Weight names, in the model's order."""
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """The layers that may be pruned, and the largest sparsity of some of them."""

    sizes: Mapping[str, int]
    """Weight name → number of weights, in the model's order; layers that are kept are not among them."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Weight name → largest sparsity, above 0 and below 1; layers that it does not name may go altogether."""

    @property
    def least(self) -> float:
        """The density, in [0, 1), of a network in which every layer is at its limit."""
        kept = sum(size * (1 - self.limits.get(name, 1.0)) for name, size in self.sizes.items())
        return kept / sum(self.sizes.values())

    def clip(self, sparsity: Sparsity) -> dict[str, float]:
        """The same for the layers that may be pruned, none above its limit; there is no budget to be met."""
        return {name: min(sparsity[name], self.limits.get(name, 1.0)) for name in self.sizes}

    def share(self, density: float, rule: Callable[[Names, float], Sparsity]) -> dict[str, float]:
        """What a rule gives at a density, with the limits heeded.

        A layer that the rule prunes past its limit is put at it, and the others share the weights that are left, by the
        same rule, until none is past its own. A layer at its limit keeps more than the rule wanted, so that the others
        get sparser and none comes back below: for a rule whose layers all fall as the density does (the threshold, the
        slope, the proportion) that is the rule's own answer under the limits, as the multipliers of a bounded problem
        have it.

        Args:
            density: of all these layers' weights, in (0, 1].
            rule: weight names and a density of their weights → their sparsities.

        Raises:
            InputError: for a density that the limits do not let one reach, and as the rule does.
        """
        held: dict[str, float] = {}
        while True:
            names = tuple(name for name in self.sizes if name not in held)
            wanted = self._left(density, held) if held else density
            found = rule(names, wanted) if names else {}
            past = {name: self.limits[name] for name in names if found[name] > self.limits.get(name, 1.0)}
            if not past:
                return {name: held.get(name, found.get(name, 0.0)) for name in self.sizes}
            held |= past

    def _left(self, density: float, held: Mapping[str, float]) -> float:
        """The density that the layers which are not held have to have."""
        total = sum(self.sizes.values())
        left = density * total - sum(self.sizes[name] * (1 - limit) for name, limit in held.items())
        others = total - sum(self.sizes[name] for name in held)
        if left < -ROUNDING * total or (left <= 0 and others):
            raise InputError(
                f"the density is {density:g} and the limits keep {self.least:g} of the weights: take a larger density, "
                f"or larger limits."
            )
        return min(1.0, left / others) if others else 0.0


def find_bounds(model: nn.Module, keep: str = "", limit: str = "") -> Bounds:
    """What two texts allow of a network, by patterns of names as a shell has them.

    A pattern matches a weight (`conv1.0.weight`), or a module with all that lies in it (`conv1.0`, `conv?`). A weight
    that several layers share is matched by any of its names.

    Args:
        model: its `Conv2d` and `Linear` layers.
        keep: patterns of what is never pruned, such as `conv1.*,classifier.4`; empty for none.
        limit: patterns with a largest sparsity in [0, 1], such as `res2.*=0.99,conv4*=0.95`; 0 is to keep. Of several
            that match a layer the least holds. It is rounded down to whole weights.

    Raises:
        InputError: for a pattern that matches no layer (all are named), a limit that is no such number, or when no
            layer is left to prune.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> find_bounds(model, keep="2", limit="1*=0.5")
    Bounds(sizes={'0.weight': 16, '1.weight': 16}, limits={'1.weight': 0.5})
    """
    weights, names = prunable_weights(model), names_of_weights(model)
    most = dict.fromkeys(weights, 1.0)
    for pattern in _parts(keep):
        most |= dict.fromkeys(_matching("keep", pattern, names), 0.0)
    for text in _parts(limit):
        pattern, value = _limit(text)
        most |= {name: min(value, most[name]) for name in _matching("limit", pattern, names)}
    # a sparsity is rounded to whole weights, and a limit must not be passed by half a one
    whole = {name: math.floor(value * weights[name].numel() + ROUNDING) for name, value in most.items()}
    sizes = {name: weight.numel() for name, weight in weights.items() if whole[name]}
    if not sizes:
        raise InputError("keep and limit leave no layer to prune: keep fewer.")
    limits = {name: whole[name] / size for name, size in sizes.items() if whole[name] < size}
    return Bounds(sizes=sizes, limits=limits)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _limit(text: str) -> tuple[str, float]:
    pattern, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not pattern or not 0 <= value <= 1:
        raise InputError(
            f"limit has {text!r}; it is a pattern of layers and their largest sparsity, from 0 to 1: res2.*=0.99."
        )
    return pattern.strip(), value


def _matching(option: str, pattern: str, names: Mapping[str, list[str]]) -> list[str]:
    """The weights of which a pattern matches one of the names."""
    found = [weight for weight, every in names.items() if any(_matches(name, pattern) for name in every)]
    if not found:
        raise InputError(f"{option} has {pattern!r}, which matches no layer: choose from {', '.join(names)}.")
    return found


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
