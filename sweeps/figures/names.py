"""Names of layers and classes, as matplotlib draws them unread."""

from __future__ import annotations

MOST_LETTERS = 18
"""Of a name that has little room."""


def drawn(name: str) -> str:
    r"""A name that is drawn as it is: `$` would begin a formula, and a leading `_` would leave the legend.

    >>> drawn("conv1.0.weight"), drawn("$x$"), drawn("_head.weight")
    ('conv1.0.weight', '\\$x\\$', ' _head.weight')
    """
    plain = name.replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def short(name: str) -> str:
    """A name that is drawn as it is, its end left out where it is long.

    >>> short("automobile"), short("a very long name indeed")
    ('automobile', 'a very long name …')
    """
    return drawn(name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…")
