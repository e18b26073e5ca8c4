"""How much goes from which layer: a rule's name and a budget → a sparsity for each layer, within what may be pruned.

Budgets are densities, as `rules` has them; `budget.fit_bytes` turns a budget in bytes of the packed file into one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from netprune.bounds import Bounds
from netprune.curves import fit_all
from netprune.errors import InputError
from netprune.knapsack import cheapest
from netprune.masks import Sparsity
from netprune.rules import (
    Shapes,
    check_density,
    document,
    equal_drop,
    equal_slope,
    erk,
    global_magnitude,
    kept_norm,
    knapsack,
    lamp_threshold,
    shapes_of,
    uniform,
)
from netprune.sensitivity import Sensitivity
from netprune.thresholds import SortedScores


@dataclass(frozen=True, kw_only=True, slots=True)
class Basis:
    """What an allocation is made from."""

    model: nn.Module
    sensitivity: Sensitivity | None = None
    """Of `model`, as it is; needed by the rules that go by damage."""
    bounds: Bounds | None = None
    """Which layers may be pruned, and how far; None: all of them, altogether."""
    memo: SortedScores = field(default_factory=dict, repr=False, compare=False)
    """What the rules by weights have sorted, so that they sort once; `model` has to stay as it is."""

    @property
    def shapes(self) -> Shapes:
        """Of the layers that may be pruned."""
        every = shapes_of(self.model)
        return every if self.bounds is None else {name: every[name] for name in self.bounds.sizes}

    @property
    def least(self) -> float:
        """The density, in [0, 1), that no allocation goes below."""
        return 0.0 if self.bounds is None else self.bounds.least

    def of(self, names: Collection[str]) -> Basis:
        """For these layers alone, without limits."""
        sizes = {name: shape.numel() for name, shape in self.shapes.items() if name in names}
        return replace(self, bounds=Bounds(sizes=sizes))


Allocator = Callable[[Basis, float], Sparsity]
"""What there is to go by, and a density → sparsities."""


def find_allocator(name: str) -> Allocator:
    """The rule of that name.

    Raises:
        InputError: for an unknown name.
    """
    if name not in ALLOCATORS:
        raise InputError(f"unknown allocation {name!r}: choose one of {', '.join(ALLOCATORS)}.")
    return ALLOCATORS[name]


def rule_and_density(text: str) -> tuple[str, float | None]:
    """`RULE:DENSITY`, such as `lamp:0.1`; or `document`, which has numbers of its own and no density.

    Raises:
        InputError: for anything else.
    """
    if text == "document":
        return text, None
    name, _, number = text.partition(":")
    find_allocator(name)
    try:
        density = float(number)
    except ValueError:
        raise InputError(f"the allocation {text!r} lacks a density: write {name}:0.1.") from None
    check_density(density)
    return name, density


def allocation_from(text: str, basis: Basis) -> Sparsity:
    """What `rule_and_density` reads → sparsities.

    Raises:
        InputError: as there, and as the rule does.
    """
    name, density = rule_and_density(text)
    if density is not None:
        return find_allocator(name)(basis, density)
    own = document(basis.shapes)
    return own if basis.bounds is None else basis.bounds.clip(own)


def _bounded(rule: Allocator) -> Allocator:
    """The rule under the bounds of its basis; without any it is called as it is."""

    def allocate(basis: Basis, density: float) -> Sparsity:
        if basis.bounds is None:
            return rule(basis, density)
        check_density(density)
        return basis.bounds.share(density, lambda names, share: rule(basis.of(names), share))

    return allocate


def _of_shapes(rule: Callable[[Shapes, float], Sparsity]) -> Allocator:
    return _bounded(lambda basis, density: rule(basis.shapes, density))


def _document(basis: Basis, density: float) -> Sparsity:
    first = next(iter(basis.shapes))  # limits ask the rule again for the layers not held: none of them is first then
    return _of_shapes(lambda shapes, share: document(shapes, share, first))(basis, density)


def _of_model(rule: Callable[[nn.Module, float, Collection[str], SortedScores], Sparsity]) -> Allocator:
    return _bounded(lambda basis, density: rule(basis.model, density, basis.shapes, basis.memo))


def _of_scan(rule: Callable[[Sensitivity, float], Sparsity]) -> Allocator:
    return _bounded(lambda basis, density: rule(_scanned(basis, rule.__name__), density))


def _scanned(basis: Basis, rule: str) -> Sensitivity:
    """The scan of the layers that may be pruned."""
    if basis.sensitivity is None:
        raise InputError(f"the rule {rule} goes by damage: give it a scan.")
    if basis.bounds is None:
        return basis.sensitivity
    wanted = basis.bounds.sizes
    missing = wanted.keys() - set(basis.sensitivity.layers)
    if missing:
        raise InputError(f"the scan has no curve of {min(missing)}: scan that layer too, or keep it here.")
    curves = tuple(curve for curve in basis.sensitivity.curves if curve.layer in wanted)
    return replace(basis.sensitivity, curves=curves)


def _knapsack(basis: Basis, density: float) -> Sparsity:
    """Under limits its curves end at them: on dented ones a layer that it prunes past its limit may, with a limit, be
    best left far below."""
    scanned = _scanned(basis, "knapsack")
    if basis.bounds is None or not basis.bounds.limits:
        return knapsack(scanned, density)
    candidate = _of_scan(equal_slope)(basis, density)
    limits = basis.bounds.limits
    curves = {name: curve.until(limits.get(name, 1.0)) for name, curve in fit_all(scanned).items()}
    return cheapest(curves, density, candidate)


ALLOCATORS: Mapping[str, Allocator] = {
    "uniform": _of_shapes(uniform),
    "document": _document,
    "global_magnitude": _of_model(global_magnitude),
    "erk": _of_shapes(erk),
    "lamp": _of_model(lamp_threshold),
    "kept_norm": _of_model(kept_norm),
    "equal_drop": _of_scan(equal_drop),
    "equal_slope": _of_scan(equal_slope),
    "knapsack": _knapsack,
}
BY_DAMAGE = ("equal_drop", "equal_slope", "knapsack")
"""Those that need a scan."""
