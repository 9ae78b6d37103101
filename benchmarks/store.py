"""What the token store costs and how fast it answers: python -m benchmarks.store [--tokens 100000000] [--folder DIR]

Builds a token table of that many rows (half by each scorer) with the product's writers and `select`, in a temporary folder unless one is
named (that one is kept, and used again), then times the named queries on the catalog against a bare scan of the one column each must
read, for the same scorer's rows, beside DuckDB and Polars on one unsorted Parquet file of those rows."""

import argparse
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.harness import Measured, Side, compare, write_result
from rpt_core.store.files import read_json, write_json

THREADS = 2  # of every query
MEMORY_MIB = 1024
THRESHOLD = 1.0
HARDEST = 100
ENVIRONMENT = {"OMP_NUM_THREADS": str(THREADS), "POLARS_MAX_THREADS": str(THREADS)}
LEVELS = "CASE WHEN entropy > 1.5 THEN 'hard' WHEN entropy > 1.0 THEN 'medium' WHEN entropy > 0.5 THEN 'easy' ELSE 'below' END"

# name: (what it is compared with, SQL or a named query)
QUERIES: dict[str, tuple[str, str]] = {
    "threshold": ("scan of entropy", "tokens_above_threshold"),
    "document": ("scan of doc_id", "tokens_of_document"),
    "hardest": ("scan of entropy", "hardest_tokens_in_context"),
    "summary": ("scan of positions", "SELECT * FROM difficulty_summary"),
}
SCANS = {"scan of entropy": "SELECT sum(entropy) FROM tokens WHERE scorer = 'difficulty'",
         "scan of doc_id": "SELECT sum(length(doc_id)) FROM tokens WHERE scorer = 'difficulty'",
         "scan of positions": "SELECT sum(entropy) FROM positions"}
UNSORTED = {"threshold": f"SELECT count(*) FROM unsorted WHERE entropy > {THRESHOLD}",
            "document": "SELECT * FROM unsorted WHERE doc_id = $doc_id ORDER BY position",
            "hardest": f"SELECT * FROM unsorted ORDER BY entropy DESC, doc_id, position LIMIT {HARDEST}",
            "summary": f"SELECT {LEVELS} AS level, count(*), avg(entropy) FROM unsorted GROUP BY level"}


def catalog_query(folder: str, statement: str, document: str) -> Callable[[], dict[str, Any]]:
    """A statement, or a named query with its parameters, on the catalog as a plain client opens it."""
    from rpt_core.catalog.connection import open_duckdb
    from rpt_core.catalog.sql import named_queries
    from rpt_core.store.workspace import Workspace

    connection = open_duckdb(Workspace(Path(folder) / "workspace").catalog_path, memory_mib=MEMORY_MIB, threads=THREADS, temporary=None,
                             read_only=True)
    named = named_queries().get(statement)
    given = {"min_entropy": THRESHOLD, "scorer": "difficulty", "top": HARDEST, "doc_id": document}
    parameters = {p.name: p.value(given.get(p.name, p.default)) for p in named.parameters} if named else None
    text = named.sql if named else statement
    return lambda: _told(connection.sql(text, params=parameters).to_arrow_table())


def duckdb_unsorted(folder: str, query: str, document: str) -> Callable[[], dict[str, Any]]:
    from rpt_core.catalog.connection import literal, open_duckdb

    connection = open_duckdb(memory_mib=MEMORY_MIB, threads=THREADS, temporary=None)
    connection.execute(f"CREATE VIEW unsorted AS FROM read_parquet({literal(Path(folder) / 'unsorted.parquet')})")
    parameters = {"doc_id": document} if query == "document" else None
    return lambda: _told(connection.sql(UNSORTED[query], params=parameters).to_arrow_table())


def polars_unsorted(folder: str, query: str, document: str) -> Callable[[], dict[str, Any]]:
    import polars as pl

    rows = pl.scan_parquet(Path(folder) / "unsorted.parquet")
    plans = {"threshold": rows.filter(pl.col("entropy") > THRESHOLD).select(pl.len()),
             "document": rows.filter(pl.col("doc_id") == document).sort("position"),
             "hardest": rows.top_k(HARDEST, by="entropy"),
             "summary": rows.group_by(pl.sql_expr(LEVELS).alias("level")).agg(pl.len(), pl.col("entropy").mean())}
    return lambda: _told(plans[query].collect(engine="streaming").to_arrow())


def _told(found: Any) -> dict[str, Any]:
    """Rows of the answer, and its total of tokens where it counts them, so that the sides can be compared."""
    counted = next((found[name] for name in ("tokens", "count_star()", "len") if name in found.column_names), None)
    return {"units": found.num_rows, "counted": sum(counted.to_pylist()) if counted is not None else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000_000, help="rows of the token table, both scorers together")
    parser.add_argument("--folder", type=Path, default=None, help="build here, keep it, and use it again")
    parser.add_argument("--build", action="store_true", help="only build, in --folder, and measure another time")
    parser.add_argument("--build-threads", type=int, default=THREADS, help="threads that write and select")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.build:
        if not arguments.folder:
            parser.error("--build needs --folder")
        arguments.folder.mkdir(parents=True, exist_ok=True)
        build(str(arguments.folder), arguments.tokens, arguments.build_threads)
        return
    with nullcontext(str(arguments.folder)) if arguments.folder else tempfile.TemporaryDirectory(prefix="rpt-store-") as folder:
        rows, ratios, built = measure(folder, arguments)
    write_result("store", rows, ratios, ("duckdb", "polars", "pyarrow", "numpy"), tokens=arguments.tokens, built=built)


def build(folder: str, tokens: int, threads: int) -> dict[str, dict[str, Any]]:
    """Write the tokens, then the positions, each in a process of its own; what was built before is only described."""
    built = {}
    for part, settings in (("write", {"tokens": tokens}), ("select", {})):
        kept = Path(folder) / f"{part}-{tokens}.json"
        if not kept.exists():
            given = {"folder": folder, "threads": threads, **settings}
            environment = dict.fromkeys(ENVIRONMENT, str(threads))
            (found,) = compare([Side(part, f"benchmarks.store_corpus:{part}", given, environment=environment)], rounds=1, warm=0)
            write_json(kept, {**found.outcomes[0], "row": found.row(threads=threads)})
        built[part] = read_json(kept)
    return built


def measure(folder: str, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float], dict[str, Any]]:
    built = build(folder, arguments.tokens, arguments.build_threads)
    settings = {"folder": folder, "document": built["write"]["document"]}

    def side(name: str, function: str, **more: str) -> Side:
        return Side(name, f"benchmarks.store:{function}", {**settings, **more}, environment=ENVIRONMENT)

    sides = [side(name, "catalog_query", statement=statement) for name, statement in SCANS.items()]
    sides += [side(name, "catalog_query", statement=statement) for name, (_, statement) in QUERIES.items()]
    peers = [side(f"{peer}: {name}", f"{peer}_unsorted", query=name) for name in QUERIES for peer in ("duckdb", "polars")]
    found = {one.side.name: one for one in compare([*sides, *peers], rounds=arguments.rounds)}
    check(found)
    ratios = {"bytes_per_token": built["write"]["bytes"] / built["write"]["rows"],
              **{f"{name}_vs_scan": found[name].cpu / found[scan].cpu for name, (scan, _) in QUERIES.items()},
              "peak_mib": max(*(part["row"]["peak_mib"] for part in built.values()), *(found[one.name].peak for one in sides))}
    rows = [*(part["row"] for part in built.values()),
            *(one.row(threads=THREADS, ours=one.side in sides, answer_rows=one.outcomes[0]["units"]) for one in found.values())]
    return rows, ratios, built


def check(found: dict[str, Measured]) -> None:
    """The peers answer the same questions."""
    for name in ("document", "hardest"):
        answers = {found[side].outcomes[0]["units"] for side in (name, f"duckdb: {name}", f"polars: {name}")}
        if len(answers) != 1:
            raise RuntimeError(f"the sides of {name} give {answers} rows")
    for name in ("threshold", "summary"):
        if found[f"duckdb: {name}"].outcomes[0]["counted"] != found[f"polars: {name}"].outcomes[0]["counted"]:
            raise RuntimeError(f"the peers count differently in {name}")


if __name__ == "__main__":
    main()
