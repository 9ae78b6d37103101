"""Which statements people may run: exactly one, and one that only reads. DuckDB's own parser decides, twice: by statement type,
and by the syntax tree, because a CTE may hold COPY or INSERT (DuckDB 2.0) and a PRAGMA may pass for a SELECT (1.5)."""

import json
from collections.abc import Iterator
from typing import Any

import duckdb

from rpt_core.store.errors import UserError

QUERY_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
# Table functions that touch nothing but their arguments and the catalog. All others (read_*, glob, query, enable_logging,
# checkpoint, arrow_scan, …) stay shut.
TABLE_FUNCTIONS = frozenset({
    "range", "generate_series", "unnest", "json_each", "json_tree", "histogram", "histogram_values", "summary",
    "duckdb_tables", "duckdb_views", "duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_types", "pragma_table_info",
    "filtered_tokens_at", "document_of", "tokens_of"})


def check_statement(sql: str) -> None:
    """Raise UserError, in one sentence, unless ``sql`` is exactly one SELECT that reads nothing but tables and harmless functions."""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise UserError(f"the query cannot be parsed: {message(error)}") from None
    if len(statements) != 1:
        raise UserError(f"give exactly one SELECT statement; this holds {len(statements)}.")
    if statements[0].type != duckdb.StatementType.SELECT:
        raise UserError(f"only SELECT statements may be run here, not {statements[0].type.name}.")
    with duckdb.connect() as parser:
        found = parser.execute("SELECT json_serialize_sql($sql)", {"sql": sql}).fetchone()
    tree: dict[str, Any] = json.loads(found[0]) if found else {"error": True}
    if tree.get("error") or len(tree["statements"]) != 1:
        raise UserError("only plain SELECT statements may be run here (no PRAGMA; write PIVOT as conditional aggregates).")
    for node in _nodes(tree):
        _check_node(node)


def _check_node(node: dict[str, Any]) -> None:
    kind = node.get("type")
    if isinstance(kind, str) and kind.endswith("_NODE") and kind not in QUERY_NODES:
        raise UserError(f"only SELECT may stand inside a query, not {kind.split('_')[0]}.")
    if kind == "TABLE_FUNCTION":
        name = str(node.get("function", {}).get("function_name", "")).lower()
        if name not in TABLE_FUNCTIONS:
            raise UserError(f"the table function {name or '(unnamed)'} may not be used here; query the catalog's tables by name.")


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from _nodes(part)
    elif isinstance(value, list):
        for part in value:
            yield from _nodes(part)


def message(error: BaseException) -> str:
    """DuckDB's message on one line, without its copy of the SQL."""
    lines = str(error).split("\nLINE ", 1)[0].split("\n")
    return " ".join(line.strip() for line in lines if line.strip()).removesuffix(".") + "."
