"""Loads the SQL statements of this folder: ``staging/`` for select, ``marts/`` and ``queries/`` for people, one file each.

A file is one SELECT. The comment lines at its head describe it: ``-- help:``, ``-- param name: type = default | text``
(for queries) and ``-- column name: text`` (for marts)."""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent


@cache
def load(name: str) -> str:
    """Text of one statement, e.g. ``load("marts/filtered_tokens")``; KeyError when there is no such file."""
    path = FOLDER / f"{name}.sql"
    if not path.exists():
        raise KeyError(f"no SQL file {name}.sql")
    return path.read_text(encoding="utf-8")


def names(folder: str) -> list[str]:
    """Names of a folder's statements, sorted: ``names("marts")``."""
    return sorted(path.stem for path in (FOLDER / folder).glob("*.sql"))
