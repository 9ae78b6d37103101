"""The catalog: a small DuckDB file of views over committed shards, for people. Rebuilt whole under a temporary name and
renamed, so that readers keep what they opened and never see half of it.

Under a table's plain name stand the current versions of every slot that writes it; under ``<table>_versions`` every committed
version; under ``<table>_live`` the closed parts of versions still running. Marts and macros come from sql/."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

import sql
from rpt_core.catalog.connection import identifier, literal, open_duckdb, select_parquet
from rpt_core.catalog.headers import Header, read_header
from rpt_core.catalog.ranges import file_bounds
from rpt_core.store.files import digest_json, fsync_path, read_json, write_json
from rpt_core.store.locks import lock
from rpt_core.store.schemas import TABLES, TableSchema
from rpt_core.store.workspace import Workspace

FORMAT = 3  # raised when the layout of the catalog changes, so that older files are rebuilt
MACROS = ("text_before", "text_of", "position_id_of", "filtered_tokens_at")
MARTS = ("filtered_tokens", "hardest_tokens", "difficulty_summary", "entropy_histogram", "accuracy_by_difficulty", "reward_by_step",
         "token_outcomes")
BY_DOCUMENT = {"document_of": "documents", "tokens_of": "tokens"}  # macros that read only the files one document may be in
SCALAR_MACROS = ("text_before", "text_of", "position_id_of")
EXPRESSION = re.compile(r"(?:--[^\n]*\n)*SELECT\b(.*)\bAS \w+\s*", re.DOTALL)  # of a scalar macro's file
VERSIONS = (("slot", "VARCHAR", "Stage, or stage.name, that wrote the version."),
            ("version", "VARCHAR", "Identity and number; the column run of checkpoints and rollouts holds it."),
            ("current", "BOOLEAN", "The slot's pointer names it."),
            ("created", "TIMESTAMP WITH TIME ZONE", "When it was committed."),
            ("seconds", "DOUBLE", "How long its last attempt took."),
            ("attempts", "INTEGER", "Attempts it took."),
            ("rows", "BIGINT", "Rows of all its tables."),
            ("bytes", "BIGINT", "Bytes of its shards and files."),
            ("config", "JSON", "Configuration that shaped the result."),
            ("inputs", "JSON", "What it read: role to slot, version and digest."),
            ("counts", "JSON", "The stage's own statistics."))


@dataclass
class _Found:
    """One version's shards of one table, and which columns they have."""

    slot: str
    version: str
    paths: list[Path]
    columns: list[str] | None
    current: bool
    digest: str


@dataclass
class _Shown:
    """What the catalog shows: everything it is made from, read in one pass."""

    committed: dict[str, list[_Found]] = field(default_factory=dict)
    live: dict[str, list[_Found]] = field(default_factory=dict)
    versions: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def shards(self) -> list[str]:
        return sorted({str(path) for kind in (self.committed, self.live) for found in kind.values() for one in found for path in one.paths})

    @property
    def fingerprint(self) -> str:
        statements = [sql.load(f"{folder}/{name}") for folder, names in (("macros", MACROS), ("marts", MARTS)) for name in names]
        return digest_json([FORMAT, duckdb.__version__, statements, self.shards, [[*map(str, version)] for version in self.versions]])


def refresh(workspace: Workspace, force: bool = False) -> bool:
    """Make ``catalog.duckdb`` show what is committed and closed now. Returns whether it had to be rebuilt.
    Safe beside readers, other refreshes, running stages and a change of the DuckDB release."""
    with lock(workspace.lock_path("catalog")):
        shown = _look(workspace)
        if not force and workspace.catalog_path.exists() and _built_from(workspace) == shown.fingerprint:
            return False
        _build(workspace, shown)
        return True


def state_path(workspace: Workspace) -> Path:
    """Where the fingerprint of the built catalog is kept."""
    return workspace.path / "catalog.json"


def _built_from(workspace: Workspace) -> str:
    return _state(workspace).get("fingerprint", "")


def _state(workspace: Workspace) -> dict[str, Any]:
    """What the last build left; nothing where it left nothing whole."""
    try:
        found = read_json(state_path(workspace))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# --- what there is ------------------------------------------------------------------------------------------------


def _look(workspace: Workspace) -> _Shown:
    shown = _Shown()
    for slot in workspace.slots():
        pointed = workspace.current(slot)
        for version in workspace.versions(slot):
            manifest_path = workspace.version_folder(slot, version) / "manifest.json"
            try:
                manifest = read_json(manifest_path)
            except FileNotFoundError:  # collected meanwhile
                continue
            _add_version(shown, manifest, manifest_path.parent, version == pointed)
    for slot, folder in workspace.running():
        parts = sorted((folder / "parts").glob("*.json"))
        if parts:
            _add_live(shown, slot, folder, read_json(parts[-1]))
    return shown


def _add_version(shown: _Shown, manifest: dict[str, Any], folder: Path, current: bool) -> None:
    slot, version = manifest["slot"], manifest["version"]
    for name, table in manifest["tables"].items():
        if name in TABLES:
            paths = [folder / shard["file"] for shard in table["shards"] if shard["rows"]]
            shown.committed.setdefault(name, []).append(_Found(slot, version, paths, list(table["schema"]), current, table["digest"]))
    size = sum(t["bytes"] for t in manifest["tables"].values()) + sum(f["bytes"] for f in manifest["files"].values())
    shown.versions.append((slot, version, current, manifest["created"], manifest["seconds"], manifest["attempts"],
                           sum(t["rows"] for t in manifest["tables"].values()), size,
                           *(json.dumps(manifest[key], sort_keys=True) for key in ("config", "inputs", "counts"))))


def _add_live(shown: _Shown, slot: str, folder: Path, part: dict[str, Any]) -> None:
    by_table: dict[str, list[Path]] = {}
    for name in part["shards"]:
        if (folder / name).exists():
            by_table.setdefault(Path(name).parent.name, []).append(folder / name)
    for name, paths in by_table.items():
        if name in TABLES:
            shown.live.setdefault(name, []).append(_Found(slot, folder.name, paths, None, False, ""))


# --- the file -----------------------------------------------------------------------------------------------------


def _build(workspace: Workspace, shown: _Shown) -> None:
    final = workspace.catalog_path
    temporary = final.with_name(f".catalog.{os.getpid()}.tmp")
    for old in final.parent.glob(".catalog.*.tmp*"):
        old.unlink()
    connection = open_duckdb(memory_mib=256, threads=1, temporary=None)
    try:
        # attached under the name the file will have, in the storage format every supported DuckDB client reads
        connection.execute(f"ATTACH {literal(temporary)} AS catalog (STORAGE_VERSION 'v1.0.0'); USE catalog; BEGIN")
        for name, schema in TABLES.items():
            _create_tables(connection, name, schema, shown)
        _create_internal(connection, shown)
        for name in MACROS:
            _create_macro(connection, name)
        bounds = _bounds(workspace, shown)
        for name, table in BY_DOCUMENT.items():
            _create_by_document(connection, name, table, shown, bounds)
        for name in MARTS:
            _create_mart(connection, name)
        connection.execute("COMMIT; USE memory; DETACH catalog")
    finally:
        connection.close()
    fsync_path(temporary)
    os.replace(temporary, final)
    fsync_path(final.parent)
    write_json(state_path(workspace), {"fingerprint": shown.fingerprint, "bounds": bounds})


def _create_tables(connection: duckdb.DuckDBPyConnection, name: str, schema: TableSchema, shown: _Shown) -> None:
    committed = shown.committed.get(name, [])
    columns = {column.name: column.comment for column in schema.columns}
    origin = {"slot": "Slot that wrote the row.", "version": "Version that holds the row."}
    current = _distinct([found for found in committed if found.current])
    # the two scorers usually share one vocabulary: its entries count once
    union = "UNION" if name == "vocabulary" and len(current) > 1 else "UNION ALL"
    _create_view(connection, name, f" {union} ".join(_select(name, found) for found in current) or select_parquet(name, []),
                 f"{schema.comment} Current versions of every slot that writes it; key: {', '.join(schema.keys)}.", columns)
    marked = [_select(name, found, f"{literal(found.slot)} AS slot, {literal(found.version)} AS version, {found.current} AS current, ")
              for found in committed]
    _create_view(connection, f"{name}_versions",
                 " UNION ALL ".join(marked) or select_parquet(name, [], extra="'' AS slot, '' AS version, false AS current, "),
                 f"{schema.comment} Every committed version.", {**origin, "current": "The slot's pointer names the version.", **columns})
    live = [_select(name, found, f"{literal(found.slot)} AS slot, {literal(found.version)} AS version, ")
            for found in shown.live.get(name, [])]
    _create_view(connection, f"{name}_live", " UNION ALL ".join(live) or select_parquet(name, [], extra="'' AS slot, '' AS version, "),
                 f"{schema.comment} Closed parts of versions that are still running.", {**origin, **columns})


def _distinct(found: list[_Found]) -> list[_Found]:
    """One of each content: two slots may hold the same table."""
    return list({one.digest: one for one in reversed(found)}.values())[::-1]


def _select(name: str, found: _Found, extra: str = "") -> str:
    return select_parquet(name, found.paths, found.columns, extra)


def _create_view(connection: duckdb.DuckDBPyConnection, name: str, statement: str, comment: str, columns: dict[str, str]) -> None:
    connection.execute(f"CREATE VIEW {identifier(name)} AS {statement}")
    connection.execute("; ".join([f"COMMENT ON VIEW {identifier(name)} IS {literal(comment)}",
                                  *(f"COMMENT ON COLUMN {identifier(name)}.{identifier(column)} IS {literal(text)}"
                                    for column, text in columns.items())]))


def _create_internal(connection: duckdb.DuckDBPyConnection, shown: _Shown) -> None:
    connection.execute("CREATE SCHEMA internal; CREATE TABLE internal.shards (file VARCHAR)")
    if shown.shards:
        connection.execute("INSERT INTO internal.shards SELECT unnest($files)", {"files": shown.shards})
    connection.execute(f"CREATE TABLE versions ({', '.join(f'{identifier(name)} {kind}' for name, kind, _ in VERSIONS)})")
    if shown.versions:
        connection.executemany(f"INSERT INTO versions VALUES ({', '.join('?' * len(VERSIONS))})", shown.versions)
    connection.execute("COMMENT ON TABLE versions IS 'One committed version of a slot, as its manifest describes it.'")
    for name, _, comment in VERSIONS:
        connection.execute(f"COMMENT ON COLUMN versions.{identifier(name)} IS {literal(comment)}")


def _create_macro(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    statement = sql.load(f"macros/{name}")
    header = read_header(statement)
    body = re.sub(r"\$(\w+)", r"\1", statement)
    scalar = name in SCALAR_MACROS
    if scalar:  # its expression alone: as a subquery, DuckDB would gather every row it is asked for before it computes the first
        found = EXPRESSION.fullmatch(body)
        assert found, f"sql/macros/{name}.sql is not one SELECT of one named expression"
        body = f"({found[1]})"
    connection.execute(f"CREATE MACRO {identifier(name)}({', '.join(header.columns)}) AS {body if scalar else f'TABLE {body}'}")
    arguments = "; ".join(f"{parameter}: {text}" for parameter, text in header.columns.items())
    connection.execute(f"COMMENT ON MACRO {'' if scalar else 'TABLE '}{identifier(name)} IS {literal(f'{header.help} {arguments}')}")


def _bounds(workspace: Workspace, shown: _Shown) -> dict[str, tuple[str, str] | None]:
    """The lowest and highest doc_id of each shard that the macros of BY_DOCUMENT choose from, by path. Footers are read once, for a
    committed shard never changes; None, which is any document, where one does not say or cannot be read."""
    known = _state(workspace).get("bounds", {})
    found: dict[str, tuple[str, str] | None] = {}
    for table in BY_DOCUMENT.values():
        for path in (path for one in shown.committed.get(table, []) if one.current for path in one.paths):
            bounds = known.get(str(path))
            try:
                found[str(path)] = tuple(bounds) if bounds else file_bounds(path, "doc_id")
            except (OSError, ValueError, pa.ArrowException):  # damaged or collected: whoever reads it is told
                found[str(path)] = None
    return found


def _create_by_document(connection: duckdb.DuckDBPyConnection, name: str, table: str, shown: _Shown,
                        bounds: dict[str, tuple[str, str] | None]) -> None:
    """A macro of a table's rows of one document. DuckDB looks into every file of a view for it; a macro's argument is known before
    the files are opened, so the macro names those that may hold it, and the first where none does."""
    def chosen(paths: list[Path]) -> str:
        lows, highs = zip(*(bounds[str(path)] or ("", "\U0010ffff") for path in paths), strict=True)
        named = (f"list_filter({literal(paths)}, LAMBDA file, number: document = '' OR "
                 f"document BETWEEN {literal(lows)}[number] AND {literal(highs)}[number])")
        return f"coalesce(nullif({named}, []), {literal(paths[:1])})"

    alike: dict[tuple[str, ...] | None, list[Path]] = {}  # versions with the same columns are read as one, which spares planning
    for one in _distinct([one for one in shown.committed.get(table, []) if one.current]):
        alike.setdefault(tuple(one.columns) if one.columns is not None else None, []).extend(one.paths)
    rows = [select_parquet(table, paths, columns, chosen=chosen(paths)) for columns, paths in alike.items() if paths]
    connection.execute(f"CREATE MACRO {identifier(name)}(document) AS TABLE SELECT * FROM "
                       f"({' UNION ALL '.join(rows) or select_parquet(table, [])}) WHERE document = '' OR doc_id = document")
    comment = (f"What {table} holds of one document, from the files that may hold it: {name}('a doc_id'); of every document where it is "
               "blank. document: a value, not a column.")
    connection.execute(f"COMMENT ON MACRO TABLE {identifier(name)} IS {literal(comment)}")


def _create_mart(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    statement = sql.load(f"marts/{name}")
    header: Header = read_header(statement)
    _create_view(connection, name, statement, header.help, header.columns)
