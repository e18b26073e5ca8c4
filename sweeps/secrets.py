"""Addresses without their passwords: for messages, tags, params and logs."""

from __future__ import annotations

import re

CREDENTIALS = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)(?P<user>[^\s:@/]*):[^\s@]*@")


def masked(text: str) -> str:
    """Every password in an address is replaced by three asterisks.

    >>> masked("cannot open postgresql+psycopg://me:s3cr:et@host:5432/db, sorry")
    'cannot open postgresql+psycopg://me:***@host:5432/db, sorry'
    >>> masked("http://host:5000 and me@example.org")
    'http://host:5000 and me@example.org'
    """
    return CREDENTIALS.sub(r"\g<scheme>\g<user>:***@", text)
