"""``select``: which tokens become positions. Everything is SQL over the two scorers' token tables (sql/staging), joined range by range
of documents so that the cost per token does not grow; Python only asks which truths can be boxed. RPT §3.2, §3.3."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import duckdb
import pyarrow as pa

from rpt_core.catalog.connection import identifier, open_duckdb, readable_errors, view_of
from rpt_core.catalog.ranges import DocumentRange, ShardBounds, shard_bounds
from rpt_core.catalog.select_config import STAGE, SelectConfig
from rpt_core.store.context import Context
from rpt_core.store.errors import UserError
from rpt_core.store.tables import Manifest
from rpt_core.tokens.boxes import can_be_boxed
from sql import load

SHARD_ROWS = 1_000_000  # a constant: where shards end enters their digests
RANGE_TOKENS = 1_000_000  # tokens joined at a time: few enough to need no disk
SCORERS = ("filter", "difficulty")
HELD_OUT = ("dev", "test")


def run(config: SelectConfig, context: Context) -> Manifest:
    """Write ``positions``: every eligible position, sorted by document and position, with its difficulty and its sample; and
    for people's queries ``eligible_tokens``, the same positions as each scorer saw them, sorted by entropy, and ``eligible_counts``.
    Raises UserError when the scorers do not agree on the documents' bytes, or a split or sample comes out empty."""
    scratch = context.state / "select"
    scratch.mkdir(exist_ok=True)
    database = scratch / "select.duckdb"
    for old in scratch.glob("select.duckdb*"):
        old.unlink()
    connection = open_duckdb(database, memory_mib=config.memory_mib, threads=config.threads, temporary=scratch / "spill")
    try:
        with readable_errors("select", "raise select.memory_mib or free disk space"):
            connection.execute("SET preserve_insertion_order = false")
            session = _Session(connection, config)
            _open_inputs(session, context)
            _check_scorers_agree(session)
            context.events.progress(1, 4, "steps", "scorers agree")
            ranges = _find_positions(session, context)
            context.events.progress(2, 4, "steps", "positions found")
            _draw_samples(session)
            context.events.progress(3, 4, "steps", "samples drawn")
            by_document = (session.stream("positions", range_number=one.number) for one in ranges)
            _write(context, "positions", itertools.chain.from_iterable(by_document))
            _write(context, "eligible_tokens", session.stream("eligible_tokens"))
            _write(context, "eligible_counts", session.stream("eligible_counts"))
            context.events.progress(4, 4, "steps", "positions written")
            counts = _counts(session)
    finally:
        connection.close()
    _say(context, counts)
    return context.commit(counts, tables=STAGE.writes)


class _Session:
    """A connection and the configuration its statements take their parameters from."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, config: SelectConfig):
        self.connection = connection
        self.config = config
        self.unboxable: dict[int, bool] = {}  # of every token id met so far: its bytes alone cannot be boxed
        self.documents_with_special_tokens = 0

    def execute(self, name: str, /, **parameters: Any) -> duckdb.DuckDBPyConnection:
        """Run sql/staging/<name>.sql; the parameters it names come from ``parameters``, else from the configuration."""
        statement = load(f"staging/{name}")
        return self.connection.execute(statement, self._bind(statement, parameters))

    def create(self, table: str, name: str, /, *, temporary: bool = False, **parameters: Any) -> None:
        """Keep the rows of sql/staging/<name>.sql as a table; a temporary one stays in memory while there is room."""
        statement = load(f"staging/{name}")
        self.connection.execute(f"CREATE OR REPLACE {'TEMPORARY ' if temporary else ''}TABLE {identifier(table)} AS {statement}",
                                self._bind(statement, parameters))

    def append(self, table: str, name: str, /, **parameters: Any) -> None:
        """Put the rows of sql/staging/<name>.sql behind those of a table."""
        statement = load(f"staging/{name}")
        self.connection.execute(f"INSERT INTO {identifier(table)} BY NAME {statement}", self._bind(statement, parameters))

    def stream(self, name: str, /, **parameters: Any) -> Iterator[pa.RecordBatch]:
        """The rows of sql/staging/<name>.sql in its order, one statement at a time."""
        statement = load(f"staging/{name}")
        yield from self.connection.sql(statement, params=self._bind(statement, parameters)).to_arrow_reader(65_536)

    def add(self, table: str, rows: pa.Table) -> None:
        """Keep rows made in Python as a temporary table."""
        self.connection.register("rows_from_python", rows)
        self.connection.execute(f"CREATE OR REPLACE TEMPORARY TABLE {identifier(table)} AS SELECT * FROM rows_from_python")
        self.connection.unregister("rows_from_python")

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql).fetchall()

    def _bind(self, statement: str, parameters: dict[str, Any]) -> dict[str, Any]:
        known = {**self.config.semantic_values(), **parameters}
        named = set(re.findall(r"\$(\w+)", statement))
        return {key: value for key, value in known.items() if key in named}


# --- inputs -------------------------------------------------------------------------------------------------------


def _open_inputs(session: _Session, context: Context) -> None:
    for scored, words in (("filter", "vocabulary"), ("difficulty", "difficulty_vocabulary")):
        tokens, vocabulary = context.table(scored), context.table(words)
        if tokens.version != vocabulary.version:
            raise UserError(f"select was given {scored} from {tokens.slot}@{tokens.version} and {words} from {vocabulary.slot}@"
                            f"{vocabulary.version}; give both from the same version.")
        view_of(session.connection, f"{scored}_tokens", tokens)
        view_of(session.connection, words, vocabulary)
    view_of(session.connection, "documents", context.table("documents"))
    session.create("stg_vocabulary", "stg_vocabulary")


def _check_scorers_agree(session: _Session) -> None:
    differing = session.execute("vocabulary_differences").fetchone()
    if differing:
        token_id, ours, theirs = differing
        raise UserError(f"the filter and the difficulty scorer's tokenizers differ in bytes: token {token_id} is {ours!r} in one "
                        f"and {theirs!r} in the other; give score.filter and score.difficulty models that share a tokenizer.")
    for scorer in SCORERS:
        session.connection.execute(f"CREATE OR REPLACE TEMPORARY VIEW scored_tokens AS FROM {identifier(scorer + '_tokens')}")
        session.create(f"{scorer}_documents", "document_fingerprints")
    differing = session.execute("token_differences").fetchone()
    if differing:
        doc_id, ours, theirs = differing
        raise UserError(f"the two scorers' tokens of document {doc_id} differ ({ours} from score.filter, {theirs} from score.difficulty); "
                        "score both from the same documents with models that share a tokenizer.")


# --- positions ----------------------------------------------------------------------------------------------------


def _find_positions(session: _Session, context: Context) -> list[DocumentRange]:
    """Fill ``int_positions`` range by range of documents; returns the ranges, in order of doc_id."""
    session.create("int_documents", "int_documents", range_tokens=RANGE_TOKENS)
    ranges = [DocumentRange(*row) for row in session.execute("document_ranges").fetchall()]
    bounds = {scorer: shard_bounds(context.table(scorer), "doc_id") for scorer in SCORERS}
    for done, one in enumerate(ranges):
        _find_positions_of(session, one, bounds, first=done == 0)
        context.events.progress(done + 1, len(ranges), "ranges", "positions found")
    if not session.rows("SELECT 1 FROM int_positions LIMIT 1"):
        raise UserError("no position is eligible: no document is longer than select.min_context_tokens "
                        f"({session.config.min_context_tokens}); lower it, or ingest longer documents.")
    return ranges


def _find_positions_of(session: _Session, one: DocumentRange, bounds: dict[str, ShardBounds], first: bool) -> None:
    for scorer in SCORERS:
        table = bounds[scorer].overlapping(one)
        view_of(session.connection, f"{scorer}_tokens", table, where=one.condition("doc_id"))
    session.create("range_documents", "range_documents", temporary=True, range_number=one.number)
    session.create("int_special_starts", "int_special_starts", temporary=True)
    session.documents_with_special_tokens += session.rows("SELECT count(*) FROM int_special_starts")[0][0]
    session.create("int_candidate_tokens", "int_candidate_tokens", temporary=True)
    session.create("int_boundaries", "int_boundaries", temporary=True)
    session.create("int_eligible", "int_eligible", temporary=True)
    _find_winnable(session)
    if first:
        session.create("int_positions", "int_positions", range_number=one.number)
    else:
        session.append("int_positions", "int_positions", range_number=one.number)


def _find_winnable(session: _Session) -> None:
    """A truth is winnable when boxing it reads back as itself, tried on the first token alone and, only where that fails,
    on the first 2 … ``winnable_tokens``; asked once per distinct truth."""
    for token_id, truth in session.rows("SELECT token_id, bytes FROM stg_vocabulary WHERE token_id IN (SELECT token_id FROM int_eligible)"):
        if token_id not in session.unboxable:
            session.unboxable[token_id] = not _winnable(truth)
    unboxable = [token_id for token_id, is_unboxable in session.unboxable.items() if is_unboxable]
    session.add("unboxable_tokens", pa.table({"token_id": pa.array(unboxable, pa.int32())}))
    session.create("int_longer_truths", "int_longer_truths", temporary=True)
    longer = session.rows("SELECT DISTINCT truth FROM int_longer_truths")
    session.add("boxable_truths", pa.table({"truth": pa.array([t for (t,) in longer if _winnable(bytes.fromhex(t))], pa.string())}))
    session.create("int_winnable_positions", "int_winnable_positions", temporary=True)


def _winnable(truth: bytes) -> bool:
    try:
        return can_be_boxed(truth.decode("utf-8"))
    except UnicodeDecodeError:
        return False


# --- samples ------------------------------------------------------------------------------------------------------


def _draw_samples(session: _Session) -> None:
    config = session.config
    session.create("train_candidates", f"candidates_{config.selector}")
    session.create("samples", "sample_train", n_positions=config.train_positions)
    if not session.rows("SELECT 1 FROM samples LIMIT 1"):
        raise UserError(_why_train_is_empty(session))
    for split in HELD_OUT:
        wanted = config.dev_positions if split == "dev" else config.test_positions
        if not wanted:
            continue
        below = round(wanted * config.below_share)
        session.create("held_out", "sample_held_out", split=split, n_above=wanted - below, n_below=below)
        if not session.rows("SELECT 1 FROM held_out LIMIT 1"):
            raise UserError(f"the {split} split holds no eligible position; raise ingest.{split}_share (or ingest.holdout_smallest), "
                            f"or set select.{split}_positions=0.")
        session.connection.execute("INSERT INTO samples FROM held_out")


def _why_train_is_empty(session: _Session) -> str:
    in_split, winnable, highest = session.rows(
        "SELECT count(*), count(*) FILTER (winnable), max(filter_entropy) FILTER (winnable) FROM int_positions WHERE split = 'train'")[0]
    if not in_split:
        return "the train split holds no eligible position; lower ingest.dev_share and ingest.test_share, or ingest more documents."
    if not winnable:
        return "no position of the train split is winnable: none of its truths can be boxed; raise select.winnable_tokens."
    config = session.config
    band = f" and at most {config.max_entropy}" if config.selector == "band" else ""
    return (f"no training position has a filter entropy above {config.min_entropy}{band} nats (the highest is {highest:.3f}); "
            "change select.min_entropy, select.max_entropy or select.selector.")


# --- output -------------------------------------------------------------------------------------------------------


def _write(context: Context, table: str, rows: Iterable[pa.RecordBatch]) -> None:
    """Write rows, in their order, as the shards of a table."""
    for index, batches in enumerate(_shards(iter(rows), SHARD_ROWS)):
        if context.has_shard(table, index):
            for _ in batches:
                pass
            continue
        with context.shard(table, index) as out:
            for batch in batches:
                out.write(pa.Table.from_batches([batch]))


def _shards(reader: Iterator[pa.RecordBatch], rows: int) -> Iterator[Iterator[pa.RecordBatch]]:
    """Cut a stream of batches into streams of ``rows`` rows; each must be used up before the next."""
    pending: list[pa.RecordBatch] = []

    def one_shard() -> Iterator[pa.RecordBatch]:
        left = rows
        while left:
            batch = pending.pop() if pending else next(reader, None)
            if batch is None:
                return
            if batch.num_rows > left:
                pending.append(batch.slice(left))
                batch = batch.slice(0, left)
            left -= batch.num_rows
            yield batch

    while True:
        if not pending:
            batch = next(reader, None)
            if batch is None:
                return
            pending.append(batch)
        yield one_shard()


def _counts(session: _Session) -> dict[str, Any]:
    """Positions by split and difficulty, how many are winnable and selected, and how many tokens they were found among."""
    counts: dict[str, Any] = {"eligible": {}, "winnable": {}, "selected": {}}
    for split, difficulty, eligible, winnable, selected in session.execute("position_counts").fetchall():
        for name, number in (("eligible", eligible), ("winnable", winnable), ("selected", selected)):
            counts[name].setdefault(split, {})[difficulty] = number
    total, tokens = _total(counts["eligible"]), session.rows("SELECT sum(n_tokens)::BIGINT FROM filter_documents")[0][0]
    counts["winnable_share"] = round(_total(counts["winnable"]) / total, 6)
    counts["tokens"] = tokens
    counts["train_candidates"] = session.rows("SELECT count(*) FROM train_candidates")[0][0]
    counts["documents_with_special_tokens"] = session.documents_with_special_tokens
    counts["unboxable_truths"] = sum(session.unboxable.values())
    return counts


def _total(by_split: dict[str, dict[str, int]]) -> int:
    return sum(sum(by_difficulty.values()) for by_difficulty in by_split.values())


def _say(context: Context, counts: dict[str, Any]) -> None:
    config: dict[str, Any] = context.manifest.config
    context.events.message(f"select: {_total(counts['eligible'])} eligible positions among {counts['tokens']} tokens, "
                           f"{100 * counts['winnable_share']:.1f} % winnable.")
    for split in ("train", *HELD_OUT):
        wanted, drawn = config[f"{split}_positions"], sum(counts["selected"].get(split, {}).values())
        if drawn < wanted:
            context.events.message(f"select: the {split} sample holds {drawn} positions instead of {wanted}; its split has no more.")

