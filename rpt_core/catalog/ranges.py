"""Ranges of documents, and which shards of a sorted table hold them: what lets ``select`` join a table of any size piece by piece,
each piece read from the few files that hold it, and a query about one document open only its own."""

from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from rpt_core.catalog.connection import identifier, literal
from rpt_core.store.tables import Shard, Table


@dataclass(frozen=True)
class DocumentRange:
    """Documents with ``first_id`` <= doc_id <= ``last_id``."""

    number: int
    first_id: str
    last_id: str

    def condition(self, column: str) -> str:
        return f"{identifier(column)} BETWEEN {literal(self.first_id)} AND {literal(self.last_id)}"


@dataclass(frozen=True)
class ShardBounds:
    """A table's shards with the lowest and highest key of each; None where a footer does not say."""

    table: Table
    shards: tuple[tuple[Shard, tuple[str, str] | None], ...]

    def overlapping(self, wanted: DocumentRange) -> Table:
        """The table with only those shards that may hold documents of the range."""
        return replace(self.table, shards=tuple(
            shard for shard, bounds in self.shards if bounds is None or (bounds[0] <= wanted.last_id and wanted.first_id <= bounds[1])))


def shard_bounds(table: Table, column: str) -> ShardBounds:
    """Read the bounds of a text column from the footers of a table's shards."""
    return ShardBounds(table, tuple((shard, file_bounds(table.folder / shard.file, column)) for shard in table.shards))


def file_bounds(path: Path, column: str) -> tuple[str, str] | None:
    """The lowest and highest value of a Parquet file's text column; None where its footer does not say."""
    footer = pq.read_metadata(path)
    index = footer.schema.names.index(column)
    groups = [footer.row_group(group).column(index).statistics for group in range(footer.num_row_groups)]
    if not groups or any(found is None or not found.has_min_max for found in groups):
        return None
    return min(found.min for found in groups), max(found.max for found in groups)
