"""Names of params and metrics, and the keys that MLflow takes in their place."""

from __future__ import annotations

import re

REFUSED, CODED = re.compile(r"[^\w./ -]|(?<![^/])[/.]|/\Z"), re.compile(r":([0-9a-f]{1,5}):")
"""Characters of names that MLflow refuses, among them those that would make another path of one; and their codes."""


def key_of(name: str) -> str:
    """A param's or metric's name as MLflow takes it: what it refuses is replaced by its code in colons, as is a colon.

    A layer of a user's network may be called almost anything (`nn.ModuleDict`), and names that differ have to stay so.

    >>> key_of("sparsity/blocks.conv+relu (a:b).weight"), key_of("damage/block 1/conv_2-a.weight")
    ('sparsity/blocks.conv:2b:relu :28:a:3a:b:29:.weight', 'damage/block 1/conv_2-a.weight')
    """
    return REFUSED.sub(lambda found: f":{ord(found[0]):x}:", name)


def name_of(key: str) -> str:
    """A param's or metric's name out of `key_of`."""
    return CODED.sub(lambda found: chr(int(found[1], 16)), key)
