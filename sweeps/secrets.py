"""Addresses without their passwords: for messages, tags, params and logs."""

from __future__ import annotations

import re

CREDENTIALS = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.-]*://)(?P<user>[^\s:/]*):(?!\d+(?:[\s/,;)]|\.?$))(?:(?!://).)*@", re.MULTILINE
)
"""To the last @ before another address: a password may hold others, and blanks, and so may a user's name hold an @. A
number that ends there is no password but a port."""
QUERY = re.compile(r"(?P<name>[?&][^=&\s]*(?:pass|pwd|secret|token)[^=&\s]*=)[^&\s]*", re.IGNORECASE)


def masked(text: str) -> str:
    """Every password in an address, before its host or as a parameter, is replaced by three asterisks.

    >>> masked("cannot open postgresql+psycopg://me:s3cr:et@host:5432/db, sorry")
    'cannot open postgresql+psycopg://me:***@host:5432/db, sorry'
    >>> masked("postgresql://me:p@ss/w:rd@host/db")
    'postgresql://me:***@host/db'
    >>> masked("postgresql://me@server:s3cret@host/db, http://me@example.org:5000")
    'postgresql://me@server:***@host/db, http://me@example.org:5000'
    >>> masked("postgresql://db/study?user=me&password=s3cret&sslmode=require")
    'postgresql://db/study?user=me&password=***&sslmode=require'
    >>> masked("http://host:5000 and me@example.org")
    'http://host:5000 and me@example.org'
    >>> masked("storage postgresql://me:two words@host/db cannot be used")
    'storage postgresql://me:***@host/db cannot be used'
    """
    return QUERY.sub(r"\g<name>***", CREDENTIALS.sub(r"\g<scheme>\g<user>:***@", text))
