"""Paragraphs, lists and tables of Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

_WIDTH = 100


def paragraph(text: str) -> str:
    """The text in lines of at most 100 characters."""
    return _filled(text, "", "")


def bullets(items: Sequence[str]) -> str:
    """A list."""
    return "\n".join(_filled(item, "- ", "  ") for item in items)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _filled(text: str, first: str, following: str) -> str:
    # Nothing is broken but between words: addresses and numbers stay whole.
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=following,
        break_long_words=False,
        break_on_hyphens=False,
    )
