"""Committed tables: immutable Parquet shards named by a manifest, written atomically and checked before they count."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from rpt_core.store.errors import Corrupt, UserError
from rpt_core.store.files import digest_json, replacing, sha256_file
from rpt_core.store.schemas import DICTIONARY, TABLES, Column

READ_ONLY = 0o444
ROW_GROUP_ROWS = 131_072  # what a query for one document reads of a token table
DIGEST_ROWS = 65_536


@dataclass(frozen=True)
class Shard:
    file: str  # relative to the version's folder
    rows: int
    bytes: int
    sha256: str
    content: str  # digest of what the shard says, volatile columns left out


@dataclass(frozen=True)
class Table:
    """One table of one committed version; what a stage reads."""

    name: str
    slot: str
    version: str
    folder: Path  # the version's folder
    shards: tuple[Shard, ...]

    @property
    def digest(self) -> str:
        return table_digest(self.name, self.shards)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def paths(self) -> list[Path]:
        return [self.folder / shard.file for shard in self.shards]

    def dataset(self) -> ds.Dataset:
        return ds.dataset([str(path) for path in self.paths], schema=TABLES[self.name].arrow, format="parquet")

    def read(self, columns: Sequence[str] | None = None, where: ds.Expression | None = None) -> pa.Table:
        """The whole table, in shard order. ``where`` is a pyarrow.dataset filter expression."""
        return self.dataset().to_table(columns=list(columns) if columns else None, filter=where)

    def batches(self, columns: Sequence[str] | None = None, rows: int = 8192,
                where: ds.Expression | None = None) -> Iterator[pa.RecordBatch]:
        """Stream the table in shard order with bounded memory."""
        for path in self.paths:
            part = ds.dataset([str(path)], schema=TABLES[self.name].arrow, format="parquet")
            yield from part.to_batches(columns=list(columns) if columns else None, filter=where, batch_size=rows,
                                       batch_readahead=1, fragment_readahead=1)


def table_digest(name: str, shards: Sequence[Shard]) -> str:
    return digest_json([name, [shard.content for shard in shards]])


def conform(name: str, data: pa.Table | Sequence[dict[str, Any]]) -> pa.Table:
    """``data`` in exactly the columns and types of the table's schema, or UserError naming the column that does not fit."""
    schema = TABLES[name].arrow
    if not isinstance(data, pa.Table):
        return pa.Table.from_pylist(list(data), schema=schema)
    table = cast(pa.Table, data)
    wrong = set(table.column_names) ^ set(schema.names)
    if wrong:
        raise UserError(f"table {name} has other columns than its schema: {', '.join(sorted(wrong))}")
    return table.select(schema.names).cast(schema)


class ShardWriter:
    """Streams rows into one shard; use through ``Context.shard``. Row groups have ROW_GROUP_ROWS rows however the rows arrive, or
    about the table's ``group_bytes`` bytes where rows are wide."""

    def __init__(self, table: str, path: Path):
        self.table = table
        self.path = path  # readable once the writer is closed
        self.rows = 0
        self._held: list[pa.Table] = []
        self._held_rows = self._held_bytes = 0
        columns = TABLES[table].columns
        by_dictionary = [_leaf(c) for c in columns if c.encoding == DICTIONARY]
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pq.ParquetWriter(self._file, TABLES[table].arrow, version="2.6", data_page_version="2.0", compression="zstd",
                                        compression_level=4, use_dictionary=cast(Any, by_dictionary),
                                        column_encoding={c.name: c.encoding for c in columns if c.encoding != DICTIONARY})

    def write(self, data: pa.Table | Sequence[dict[str, Any]]) -> None:
        part = conform(self.table, data)
        if not part.num_rows:
            return
        self.rows += part.num_rows
        self._held.append(part)
        self._held_rows += part.num_rows
        self._held_bytes += part.nbytes
        if self._held_rows >= ROW_GROUP_ROWS or self._held_bytes >= TABLES[self.table].group_bytes:
            self._flush(last=False)

    def _flush(self, last: bool) -> None:
        held = pa.concat_tables(self._held)
        group_rows = min(ROW_GROUP_ROWS, max(1, held.num_rows * TABLES[self.table].group_bytes // max(1, held.nbytes)))
        whole = held.num_rows if last else held.num_rows - held.num_rows % group_rows
        self._writer.write_table(held.slice(0, whole), row_group_size=group_rows)
        rest = held.slice(whole)
        self._held, self._held_rows, self._held_bytes = [rest] if rest.num_rows else [], rest.num_rows, rest.nbytes

    def describe(self, key: str, value: str) -> None:
        """Keep ``value`` in the shard's footer."""
        self._writer.add_key_value_metadata({key: value})

    def close(self) -> None:
        """Write what is held and the footer. The file is closed even where that fails (a full disk), so that its room comes back."""
        with self._file:
            if self._held:
                self._flush(last=True)
            self._writer.close()

    def abandon(self) -> None:
        """Close the file as it is, after a failure: writing on to it would hide the cause behind an error of its own."""
        self._writer.is_open = False  # or its destructor writes the footer
        self._file.close()


def _leaf(column: Column) -> str:
    """A column's path in Parquet: a list's values lie one level down."""
    return f"{column.name}.list.element" if pa.types.is_list(column.type) else column.name


@contextmanager
def writing_shard(table: str, path: Path) -> Iterator[ShardWriter]:
    """Write one shard under a temporary name; it appears under ``path``, checked, durable and read-only, or not at all."""
    with replacing(path, READ_ONLY) as temporary:
        writer = ShardWriter(table, temporary)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
        writer.close()
        footer = pq.read_metadata(temporary)
        if footer.num_rows != writer.rows:
            raise Corrupt(f"{path.name}: the footer says {footer.num_rows} rows, {writer.rows} were written")


def describe_shard(table: str, folder: Path, path: Path) -> Shard:
    """Rows, bytes and digests of a finished shard."""
    return Shard(str(path.relative_to(folder)), pq.read_metadata(path).num_rows, path.stat().st_size, sha256_file(path),
                 content_digest(table, path))


def content_digest(table: str, path: Path) -> str:
    """sha256 of what a shard says: its rows, volatile columns left out, however they are encoded, compressed or grouped."""
    stable = [column.name for column in TABLES[table].columns if not column.volatile]
    digest = hashlib.sha256(json.dumps([table, stable]).encode())
    held: list[pa.RecordBatch] = []
    rows = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(DIGEST_ROWS, columns=stable, use_threads=False):
            while rows + batch.num_rows >= DIGEST_ROWS:
                need = DIGEST_ROWS - rows
                _add_rows(digest, [*held, batch.slice(0, need)])
                batch, held, rows = batch.slice(need), [], 0
            held.append(batch)
            rows += batch.num_rows
    _add_rows(digest, held)
    return digest.hexdigest()


def _add_rows(digest: Any, batches: Sequence[pa.RecordBatch]) -> None:
    """Every column's buffers in Arrow's own layout; the slots of nulls, which may hold anything, are set to zero first."""
    for name in batches[0].schema.names if batches else ():
        column = pa.chunked_array([batch.column(name) for batch in batches]).combine_chunks()
        parts = [pc.cast(column, pa.uint8()) if pa.types.is_boolean(column.type) else column]
        if column.null_count and not pa.types.is_nested(column.type):
            zero = pa.scalar(0 if pa.types.is_primitive(column.type) else "" if pa.types.is_string(column.type) else b"")
            parts = [pc.fill_null(parts[0], zero.cast(parts[0].type)), pc.call_function("is_null", [column]).cast(pa.uint8())]
        for part in parts:
            digest.update(pa.RecordBatch.from_arrays([part], ["values"]).serialize())


@dataclass
class Manifest:
    """What makes a version exist: tables with their shards, files, inputs, configuration, counts."""

    stage: str
    slot: str
    identity: str
    version: str
    revision: int
    config: dict[str, Any]
    runtime: dict[str, Any]
    inputs: dict[str, list[dict[str, Any]]]
    tables: dict[str, list[Shard]] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    run_ids: dict[str, str] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    attempts: int = 1

    def to_json(self) -> dict[str, Any]:
        value = dict(self.__dict__)
        value["tables"] = {
            name: {"digest": table_digest(name, shards), "rows": sum(s.rows for s in shards), "bytes": sum(s.bytes for s in shards),
                   "schema": {c.name: str(c.type) for c in TABLES[name].columns}, "shards": [s.__dict__ for s in shards]}
            for name, shards in self.tables.items()
        }
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Manifest":
        tables = {name: [Shard(**shard) for shard in table["shards"]] for name, table in value["tables"].items()}
        return cls(**{**value, "tables": tables})


def hash_bytes(data: bytes, digits: int = 16) -> str:
    """First hex digits of sha256; used for doc_id and position_id."""
    return hashlib.sha256(data).hexdigest()[:digits]
