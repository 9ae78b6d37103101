"""`rpt sql`, `rpt report` and `rpt explore`: look at what the stages made."""

import csv
import json
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flows.commands.common import err, open_workspace, out
from rpt_core.store.errors import UserError
from rpt_core.store.workspace import Workspace

Format = Literal["table", "csv", "json", "parquet"]


def sql(
    statement: Annotated[str, typer.Argument(metavar="[QUERY]", help="One SELECT; without it, a terminal gets a prompt.")] = "",
    name: Annotated[str, typer.Option("--name", help="Run the named query instead; `rpt sql --list` lists them.")] = "",
    params: Annotated[list[str], typer.Option("--param", metavar="NAME=VALUE", help="Value of a parameter $NAME.")] = [],  # noqa: B006
    form: Annotated[Format, typer.Option("--format", help="How to print the rows.")] = "table",
    output: Annotated[Path | None, typer.Option("--output", help="Write to this file instead (needed for parquet).")] = None,
    max_rows: Annotated[int, typer.Option(help="Most rows to return.", min=1)] = 10_000,
    timeout_s: Annotated[float, typer.Option(help="Most seconds a query may take.", min=0.1)] = 60.0,
    list_queries: Annotated[bool, typer.Option("--list", help="List the named queries with their parameters.")] = False,
) -> None:
    """Query the tables with one SELECT: read-only, bounded in rows, time and memory.

    Example: rpt sql "select difficulty, count(*) from positions group by all" --format csv
    """
    from rpt_core.catalog import sql as catalog_sql

    if list_queries:
        for query in catalog_sql.named_queries().values():
            out.print(describe_query(query), markup=False)
        return
    if form == "parquet" and output is None:
        raise UserError("--format parquet needs --output FILE.")
    if output is not None and output.exists():
        raise UserError(f"{output} exists already; name a new file.")
    workspace = open_workspace()
    values = parse_params(params)
    if statement and name:
        raise UserError("give a query or --name, not both.")
    if not statement and not name:
        if not sys.stdin.isatty():
            statement = sys.stdin.read()
        else:
            from flows.commands import sql_prompt

            sql_prompt.run(workspace, max_rows, timeout_s)
            return
    rows = ask(workspace, statement, name, values, max_rows, timeout_s)
    write_rows(rows, form, output)
    if catalog_sql.is_truncated(rows):
        err.print(f"only the first {rows.num_rows:,} rows; --max-rows N shows more", style="yellow")


def ask(workspace: Workspace, statement: str, name: str, params: dict[str, Any], max_rows: int, timeout_s: float) -> Any:
    from rpt_core.catalog import sql as catalog_sql

    limits = {"max_rows": max_rows, "timeout_s": timeout_s}
    if name:
        return catalog_sql.run_named(workspace, name, params, **limits)
    return catalog_sql.query(workspace, statement, params or None, **limits)


def parse_params(pairs: list[str]) -> dict[str, Any]:
    import yaml

    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--param {pair} is not of the form name=value.")
        found[key.strip()] = yaml.safe_load(text) if text else ""
    return found


def describe_query(query: Any) -> str:
    """A named query with its help and its parameters' defaults, on a few lines."""
    lines = [f"{query.name}: {query.help}"]
    for parameter in query.parameters:
        lines.append(f"    --param {parameter.name}={parameter.default}  {parameter.kind}: {parameter.help}")
    return "\n".join(lines)


def write_rows(rows: Any, form: Format, output: Path | None) -> None:
    """An Arrow table as a text table, CSV, JSON (a list of objects) or Parquet; to a file whole or not at all."""
    if form == "parquet":
        import pyarrow.parquet as pq

        from rpt_core.store.files import replacing

        assert output is not None
        with replacing(output.absolute()) as temporary:
            pq.write_table(rows, temporary)
        return
    text = as_text(rows, form)
    if output is None:
        sys.stdout.write(text)
        return
    from rpt_core.store.files import replacing

    with replacing(output.absolute()) as temporary:
        temporary.write_text(text, encoding="utf-8")


def plain(value: Any) -> Any:
    """A value as JSON can say it: bytes as hex, everything unknown as text."""
    return value.hex() if isinstance(value, bytes) else str(value)


def as_text(rows: Any, form: Format) -> str:
    import io

    names = rows.column_names
    records = rows.to_pylist()
    buffer = io.StringIO()
    if form == "json":
        buffer.write(json.dumps(records, ensure_ascii=False, indent=1, default=plain) + "\n")
    elif form == "csv":
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(names)
        columns = [rows.column(index).to_pylist() for index in range(len(names))]
        for row in zip(*columns, strict=True):
            writer.writerow([csv_cell(value) for value in row])
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        table = Table(*(escape(name) for name in names))
        columns = [rows.column(index).to_pylist() for index in range(len(names))]
        for row in zip(*columns, strict=True):
            table.add_row(*(Text(show(value)) for value in row))
        console = Console(file=buffer, width=None if sys.stdout.isatty() else 200, highlight=False)
        console.print(table)
        console.print(f"{rows.num_rows:,} rows")
    return buffer.getvalue()


def csv_cell(value: Any) -> Any:
    if value is None or isinstance(value, bytes):
        return (value or b"").hex()
    return value if isinstance(value, (str, int, float, bool)) else json.dumps(value, ensure_ascii=False, default=plain)


def show(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text if len(text) <= 200 else text[:199] + "…"


def report_path(workspace: Workspace, page: str = "report.html") -> Path:
    """The current report's page of that name."""
    version = workspace.current("report")
    if not version:
        raise UserError(f"there is no report yet in {workspace.path}; `rpt stage report` writes one, and RPT_HOME names another workspace.")
    if f"files/{page}" not in workspace.manifest("report", version).files:
        raise UserError(f"report@{version} holds no {page}; `rpt stage report --force` writes what the current tables give (the explorer "
                        "needs documents and their tokens).")
    return workspace.version_folder("report", version) / "files" / page


def show_page(page: str, open_page: bool) -> None:
    path = report_path(open_workspace(), page)
    out.print(str(path), markup=False)
    if open_page and not webbrowser.open(path.as_uri()):
        raise UserError(f"no browser could be started; open {path} yourself.")


Open = Annotated[bool, typer.Option("--open", help="Open it in the browser.")]


def report(open_page: Open = False) -> None:
    """Print the path of the current report, or open it.

    Example: rpt report --open
    """
    show_page("report.html", open_page)


def explore(open_page: Open = False) -> None:
    """Print the path of the token explorer, or open it: documents by entropy, predictions, rollouts. `rpt stage report` makes it anew.

    Example: rpt explore --open
    """
    show_page("explorer.html", open_page)
