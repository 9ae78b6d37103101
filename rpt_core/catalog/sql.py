"""SQL for people: one SELECT over the catalog, run in a child process that can neither read anything else nor change anything.

The locks, each tested alone: the statement gate (gate.py); a read-only connection without external access except the shown
shards, settings locked; RLIMIT_AS, RLIMIT_CPU, RLIMIT_FSIZE; a wall-clock limit inside and a kill outside; caps on rows and
bytes; an environment without secrets; shards of mode 0444."""

import difflib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

import rpt_core
from rpt_core.catalog.catalog import refresh
from rpt_core.catalog.headers import Parameter, read_header
from rpt_core.catalog.sql_child import REFUSED, TRUNCATED
from rpt_core.store.errors import UserError
from rpt_core.store.workspace import Workspace
from sql import load, names

MAX_BYTES = 256 << 20
VANISHED = ("No files found", "No such file", "Cannot open file")
GRACE_S = 10.0  # start-up of the child, and its own way out after its own limit


@dataclass(frozen=True)
class NamedQuery:
    """A query of sql/queries: what it answers and its parameters."""

    name: str
    help: str
    parameters: tuple[Parameter, ...]
    sql: str


def query(workspace: Workspace, sql: str, params: Mapping[str, Any] | None = None, *, max_rows: int = 100_000, timeout_s: float = 60.0,
          memory_mib: int = 2048, threads: int = 2) -> pa.Table:
    """Rows of one SELECT over the catalog (refreshed first), read-only and bounded. ``params`` fill ``$name`` in the statement.
    At most ``max_rows`` rows come back; ``is_truncated`` tells whether there were more.
    Raises UserError with one sentence for anything but one SELECT, an error in it, or a limit passed."""
    refresh(workspace)
    request = {"catalog": str(workspace.catalog_path), "sql": sql, "params": dict(params or {}), "max_rows": max_rows,
               "max_bytes": MAX_BYTES, "timeout_s": timeout_s, "memory_mib": memory_mib, "threads": threads}
    code, output, error = _run_child(request)
    if code == REFUSED and any(sign in error for sign in VANISHED):
        # a version was collected between refresh and reading: once more, on the catalog as it is now
        refresh(workspace)
        code, output, error = _run_child(request)
    if code == REFUSED:
        raise UserError(error)
    if code != 0:
        raise UserError(_why_it_died(code, request, error))
    with pa.ipc.open_stream(output) as reader:
        return _plain_integers(reader.read_all())


def is_truncated(result: pa.Table) -> bool:
    """Whether ``query`` cut the result at ``max_rows``."""
    return (result.schema.metadata or {}).get(TRUNCATED) == b"true"


def named_queries() -> dict[str, NamedQuery]:
    """The queries of sql/queries by name, with help and parameters."""
    found = {}
    for name in names("queries"):
        text = load(f"queries/{name}")
        header = read_header(text)
        found[name] = NamedQuery(name, header.help, tuple(header.parameters), text)
    return found


def run_named(workspace: Workspace, name: str, params: Mapping[str, Any] | None = None, **limits: Any) -> pa.Table:
    """Run a named query; parameters not given take their defaults, strings are read as the parameter's kind.
    ``limits`` are those of ``query``. UserError for an unknown query or parameter, with the nearest name."""
    known = named_queries()
    if name not in known:
        raise UserError(f"there is no query {name}{_nearest(name, known)}; known are: {', '.join(known)}.")
    parameters = {parameter.name: parameter for parameter in known[name].parameters}
    for given in params or {}:
        if given not in parameters:
            raise UserError(f"the query {name} has no parameter {given}{_nearest(given, parameters)}; "
                            f"it takes {', '.join(parameters) or 'none'}.")
    values = {key: parameter.value((params or {}).get(key, parameter.default)) for key, parameter in parameters.items()}
    return query(workspace, known[name].sql, values, **limits)


def child_environment() -> dict[str, str]:
    """What the child sees: where the package lies and nothing of the caller's environment."""
    return {"PYTHONPATH": str(Path(rpt_core.__file__).parents[1]), "PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2"}


def _run_child(request: dict[str, Any]) -> tuple[int, bytes, str]:
    command = [sys.executable, "-P", "-m", "rpt_core.catalog.sql_child"]
    try:
        done = subprocess.run(command, input=json.dumps(request).encode(), capture_output=True, env=child_environment(), cwd="/",
                              timeout=request["timeout_s"] + GRACE_S, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"the query took longer than {request['timeout_s']:g} s and was stopped; "
                        "make it smaller or allow more time.") from None
    return done.returncode, done.stdout, done.stderr.decode("utf-8", "replace").strip()


def _plain_integers(result: pa.Table) -> pa.Table:
    """DuckDB's sums of integers are 128 bits wide; where they fit, 64 do, and every client understands those."""
    for index, column in enumerate(result.schema):
        if column.type == pa.decimal128(38, 0):
            try:
                result = result.set_column(index, column.name, result.column(index).cast(pa.int64()))
            except pa.ArrowInvalid:
                continue
    return result


def _why_it_died(code: int, request: dict[str, Any], error: str) -> str:
    if code in (-24, -9):  # SIGXCPU, SIGKILL
        return f"the query used up its processor time ({request['timeout_s']:g} s on {request['threads']} threads); make it smaller."
    last = error.splitlines()[-1] if error else f"exit code {code}"
    return f"the query could not be run within {request['memory_mib']} MiB of memory ({last}); make it smaller or allow more memory."


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
