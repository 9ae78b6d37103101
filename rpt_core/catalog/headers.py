"""What the comment lines at the head of an SQL file say: its help, its parameters (queries), its columns (marts)."""

import re
from dataclasses import dataclass, field
from typing import Any

from rpt_core.store.errors import UserError

PARAMETER = re.compile(r"(\w+): (text|integer|number) =([^|]*)\| (.+)")
COLUMN = re.compile(r"(\w+): (.+)")
KINDS = {"text": str, "integer": int, "number": float}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a named query. ``kind`` is text, integer or number."""

    name: str
    kind: str
    default: Any
    help: str

    def value(self, given: Any) -> Any:
        """``given`` (a string from a command line will do) as a value of this kind, or UserError."""
        try:
            return KINDS[self.kind](given)
        except (TypeError, ValueError):
            raise UserError(f"the parameter {self.name} is of kind {self.kind}, and {given!r} is not.") from None


@dataclass
class Header:
    help: str = ""
    parameters: list[Parameter] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)


def read_header(sql: str) -> Header:
    """Read ``-- help: …``, ``-- param name: kind = default | text`` and ``-- column name: text``; ``--   …`` continues a line."""
    lines: list[str] = []
    for line in sql.splitlines():
        if line.startswith("--   ") and lines:
            lines[-1] += " " + line[2:].strip()
        elif line.startswith("-- "):
            lines.append(line[3:])
        else:
            break
    header = Header()
    for line in lines:
        if line.startswith("help: "):
            header.help = line.removeprefix("help: ")
        elif line.startswith("param ") and (found := PARAMETER.fullmatch(line.removeprefix("param "))):
            name, kind, default, text = found.groups()
            header.parameters.append(Parameter(name, kind, KINDS[kind](default.strip()), text))
        elif line.startswith("column ") and (found := COLUMN.fullmatch(line.removeprefix("column "))):
            header.columns[found[1]] = found[2]
        else:
            raise ValueError(f"not a header line: {line}")
    return header
