"""The ``questions`` table of ``ingest``: the named files and the generated questions, each with its split by hash."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from rpt_core.corpus.documents import Report
from rpt_core.corpus.filters import place
from rpt_core.corpus.generated_questions import KINDS, generated_rows
from rpt_core.corpus.ingest_config import IngestConfig
from rpt_core.corpus.questions import named_source, question_rows, questions_table
from rpt_core.corpus.readers import Limits
from rpt_core.store.errors import UserError
from rpt_core.store.tables import hash_bytes


def collect_questions(config: IngestConfig, limits: Limits, say: Callable[[str], None]) -> tuple[pa.Table, dict[str, Any]]:
    """The table and its counts: rows per source and split, duplicates, malformed rows."""
    report = Report(say, config.max_malformed_share, config.malformed_shown)
    rows: list[dict[str, Any]] = []
    for given in config.question_sources:
        benchmark, source = named_source(given)
        found = list(question_rows(source, benchmark, report, limits))
        report.check()
        if not found:
            raise UserError(f"the question source {source} is empty: it holds no question.")
        rows += found
    if config.generates_questions:
        for kind in KINDS:
            rows += generated_rows(config.generator_questions, config.seed, kind)
    for row in rows:
        where = place(hash_bytes(row["question_id"].encode()))
        test, dev = where < config.question_test_share, where >= 1 - config.question_dev_share
        row["split"] = "test" if test else "dev" if dev else "train"
    table = questions_table(rows)
    counts = Counter((row["source"], row["split"]) for row in table.select(["source", "split"]).to_pylist())
    by_source: dict[str, dict[str, int]] = {}
    for (source, split), n in sorted(counts.items()):
        by_source.setdefault(source, {})[split] = n
    return table, {**report.to_json(), "duplicates": len(rows) - len(table), "sources": by_source}
