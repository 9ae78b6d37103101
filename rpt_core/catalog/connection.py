"""How DuckDB is opened and spoken to: explicit resource limits, the one quoting helper, errors a user can act on."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from rpt_core.store.errors import UserError
from rpt_core.store.schemas import TABLES
from rpt_core.store.tables import Table

DUCKDB_TYPES = {"string": "VARCHAR", "bool": "BOOLEAN", "binary": "BLOB", "int8": "TINYINT", "int16": "SMALLINT", "int32": "INTEGER",
                "int64": "BIGINT", "float": "FLOAT", "double": "DOUBLE", "list<item: string>": "VARCHAR[]"}


def open_duckdb(path: str | Path = ":memory:", *, memory_mib: int, threads: int, temporary: Path | None,
                read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """A connection with its limits set (DuckDB's own default takes 80 % of memory and every core). ``temporary`` is the folder
    it may spill to; None forbids spilling. No extension is ever loaded or fetched."""
    config: dict[str, Any] = {"memory_limit": f"{memory_mib}MiB", "threads": str(threads), "temp_directory": str(temporary or ""),
              "autoinstall_known_extensions": "false", "autoload_known_extensions": "false", "python_enable_replacements": "false"}
    connection = _connect(path, read_only, config)
    # Footers are kept between queries: shards never change, and a table of 10^8 rows has a hundred of them.
    connection.execute("SET enable_progress_bar = false; SET TimeZone = 'UTC'; SET parquet_metadata_cache = true")
    return connection


def _connect(path: str | Path, read_only: bool, config: dict[str, Any]) -> duckdb.DuckDBPyConnection:
    """DuckDB opens a file three times (2.0): its kind, its headers, its blocks. Where the catalog was replaced in between, headers and
    blocks are of two files, and it fails: then once more, on the new one."""
    while True:
        before = Path(path).stat().st_ino if read_only else 0
        try:
            return duckdb.connect(str(path), read_only=read_only, config=config)
        except duckdb.Error:
            if not read_only or Path(path).stat().st_ino == before:
                raise


def identifier(name: str) -> str:
    """``name`` quoted as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: object) -> str:
    """A string, or a list of strings, quoted as an SQL literal; CREATE VIEW takes no parameters."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(literal(part) for part in value) + "]"
    return "'" + str(value).replace("'", "''") + "'"


def duckdb_type(arrow_type: object) -> str:
    return DUCKDB_TYPES[str(arrow_type)]


def select_parquet(table: str, paths: Iterable[Path], present: Iterable[str] | None = None, extra: str = "", chosen: str = "") -> str:
    """A SELECT of a table's columns from its shards, or of no rows where there are none. ``present`` names the columns the
    shards have (an older version may lack some: they read as NULL); ``extra`` is put before the columns; ``chosen`` is an expression
    for those of the shards to read, instead of all."""
    columns = TABLES[table].columns
    there = {c.name for c in columns} if present is None else set(present)
    files = [str(path) for path in paths]
    listed = [identifier(c.name) if files and c.name in there
              else f"CAST(NULL AS {duckdb_type(c.type)}) AS {identifier(c.name)}" for c in columns]
    source = f"FROM read_parquet({chosen or literal(files)})" if files else "WHERE false"
    return f"SELECT {extra}{', '.join(listed)} {source}"


def view_of(connection: duckdb.DuckDBPyConnection, name: str, table: Table, where: str = "true") -> None:
    """A temporary view over one committed table, or over its rows for which the condition ``where`` holds."""
    rows = select_parquet(table.name, table.paths)
    connection.execute(f"CREATE OR REPLACE TEMPORARY VIEW {identifier(name)} AS FROM ({rows}) WHERE {where}")


@contextmanager
def readable_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn DuckDB's out-of-memory and disk errors into one sentence: ``what`` was going on, ``remedy`` is what to do."""
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise UserError(f"{what} ran out of memory or of space to spill to; {remedy}.") from None
    except duckdb.IOException as error:
        if "No space left" in str(error):
            raise UserError(f"{what} found no space left on the disk; free some and run it again.") from None
        raise
