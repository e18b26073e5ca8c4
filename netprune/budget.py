"""A budget in bytes of the packed file, turned into a density."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

from torch import nn

from netprune.errors import InputError
from netprune.header import PackedHeader
from netprune.masks import Sparsity, apply_masks, make_masks
from netprune.packing import pack

TOLERANCE = 0.001
LEAST_DENSITY = 1e-4
BISECTIONS = 40


def packed_bytes(model: nn.Module, header: PackedHeader, sparsity: Sparsity) -> int:
    """Bytes of the packed file of `model`, pruned in one shot; finetuned values take about as many."""
    pruned = copy.deepcopy(model)
    apply_masks(pruned, make_masks(pruned, sparsity))
    return len(pack(pruned, header))


def fit_bytes(
    allocate: Callable[[float], Sparsity], measure: Callable[[Sparsity], int], budget_bytes: int
) -> tuple[Sparsity, int]:
    """The allocation whose file fills the budget: never above it, and to 0.1 % where the file's steps allow.

    Args:
        allocate: density → sparsities.
        measure: sparsities → bytes, such as `packed_bytes`.
        budget_bytes: of the whole file.

    Returns:
        The sparsities, and the file's bytes. A budget above what the network takes as it is prunes nothing; files that
        grow in larger steps (tiny networks, compression) end on the largest that the bisection met below the budget.

    Raises:
        InputError: if even the least density (0.01 %, or what the allocator's scan reached) takes more.
    """
    most, fullest = _fullest(allocate)
    size = measure(fullest)
    if size <= budget_bytes:
        return fullest, size
    low, high = math.log(LEAST_DENSITY), math.log(most)
    found: tuple[Sparsity, int] | None = None
    least = size
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        try:
            sparsity = allocate(math.exp(middle))
        except InputError:  # below what the scan reached
            low = middle
            continue
        size = measure(sparsity)
        least = min(least, size)
        if size > budget_bytes:
            high = middle
            continue
        low, found = middle, (sparsity, size)
        if size >= budget_bytes * (1 - TOLERANCE):
            break
    if found is None:
        raise InputError(f"no allocation fits into {budget_bytes:,} bytes: the sparsest takes {least:,}.")
    return found


def _fullest(allocate: Callable[[float], Sparsity]) -> tuple[float, Sparsity]:
    """The largest density that can be allocated, and its sparsities: below 1 where a pruned network was scanned."""
    low, high = 1.0, 1.0
    while True:
        try:
            found = allocate(low)
            break
        except InputError:
            if low < LEAST_DENSITY:
                raise
            low, high = low * 0.8, low
    for _ in range(BISECTIONS if low < high else 0):
        middle = (low + high) / 2
        try:
            low, found = middle, allocate(middle)
        except InputError:
            high = middle
    return low, found
