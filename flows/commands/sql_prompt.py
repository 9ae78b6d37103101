"""`rpt sql` on a terminal: a prompt with line editing, history and completion, for statements over several lines and commands that
begin with a dot. Every query runs as one given on the command line would (rpt_core.catalog.sql)."""

import contextlib
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

from flows.commands.common import err, out
from flows.commands.data import Format, ask, describe_query, parse_params, write_rows
from rpt_core.store.errors import UserError
from rpt_core.store.workspace import Workspace

HISTORY = ".rpt_sql_history"  # in the home folder, as other clients keep theirs
HISTORY_LINES = 1000
HELP = """One SELECT, ended by ; (it may span lines), or:
  .tables             tables, marts and macros, and what a row of each is
  .columns NAME       columns of one of them
  .queries            named queries with their parameters
  .query NAME [P=V]   run a named query
  .format FORMAT      show rows as table, csv or json
  .help               this text
  .quit               leave, as Ctrl-D does; Ctrl-C drops what was typed, or stops a query"""
TABLES = """
SELECT view_name AS name, comment FROM duckdb_views() WHERE NOT internal AND NOT regexp_matches(view_name, '_(versions|live)$')
UNION ALL SELECT table_name, comment FROM duckdb_tables() WHERE schema_name = 'main'
UNION ALL SELECT function_name, comment FROM duckdb_functions() WHERE function_type = 'table_macro' AND NOT internal
ORDER BY name"""
COLUMNS = "SELECT column_name, data_type, comment FROM duckdb_columns() WHERE table_name = $name ORDER BY column_index"


def run(workspace: Workspace, max_rows: int, timeout_s: float) -> None:
    """Ask and answer until the end of input."""
    err.print("One SELECT, ended by ; · .help lists commands · Ctrl-D leaves", markup=False)
    prompt = Prompt(workspace, max_rows, timeout_s)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background jobs are born ignoring it
    with editing(prompt.words) as remember:
        while not prompt.over:
            try:
                line = input("rpt> " if not prompt.pending else "...> ")
            except EOFError:
                err.print()
                return
            except KeyboardInterrupt:
                err.print()
                prompt.pending = ""
                continue
            if entry := prompt.take(line):
                remember(entry)


class Prompt:
    """What was typed so far, and the format of answers."""

    def __init__(self, workspace: Workspace, max_rows: int, timeout_s: float):
        self.workspace = workspace
        self.max_rows, self.timeout_s = max_rows, timeout_s
        self.form: Format = "table"
        self.pending = ""  # lines of a statement that is not ended yet
        self.over = False

    def take(self, line: str) -> str:
        """Take one line; runs what it ends. Returns what to remember: a whole statement or command, or ''."""
        if not self.pending and not line.strip():
            return ""
        text = f"{self.pending}{line}\n"
        is_command = text.startswith(".")
        if not is_command and not text.rstrip().endswith(";"):
            self.pending = text
            return ""
        self.pending = ""
        try:
            if is_command:
                self._command(text.strip())
            else:
                self._show(lambda: ask(self.workspace, text, "", {}, self.max_rows, self.timeout_s))
        except UserError as error:
            err.print(str(error), style="red", markup=False)
        except KeyboardInterrupt:
            err.print("stopped", style="yellow")
        return text.strip()

    def words(self) -> list[str]:
        """What Tab completes."""
        from rpt_core.catalog.catalog import BY_DOCUMENT, MARTS
        from rpt_core.catalog.sql import named_queries
        from rpt_core.store.schemas import TABLES as SCHEMAS

        columns = {column.name for schema in SCHEMAS.values() for column in schema.columns}
        return sorted({*SCHEMAS, *MARTS, *BY_DOCUMENT, *columns, "filtered_tokens_at", "versions", *named_queries(),
                       *re.findall(r"\.\w+", HELP)})

    def _show(self, answer: Callable[[], Any]) -> None:
        from rpt_core.catalog.sql import is_truncated

        rows = answer()
        write_rows(rows, self.form, None)
        if is_truncated(rows):
            err.print(f"only the first {rows.num_rows:,} rows; begin with  rpt sql --max-rows N  to see more", style="yellow", markup=False)

    def _command(self, text: str) -> None:
        from rpt_core.catalog.sql import named_queries, query

        try:
            name, *given = shlex.split(text)
        except ValueError as error:
            raise UserError(f"{text} cannot be read: {error}.") from None
        if name == ".help":
            out.print(HELP, markup=False, highlight=False)
        elif name in (".quit", ".exit"):
            self.over = True
        elif name == ".tables":
            self._show(lambda: query(self.workspace, TABLES))
        elif name == ".columns" and len(given) == 1:
            rows = query(self.workspace, COLUMNS, {"name": given[0]})
            if not rows.num_rows:
                raise UserError(f"there is no table {given[0]}; .tables lists what there is.")
            self._show(lambda: rows)
        elif name == ".queries":
            for one in named_queries().values():
                out.print(describe_query(one).replace("--param ", ""), markup=False, highlight=False)
        elif name == ".query" and given:
            self._show(lambda: ask(self.workspace, "", given[0], parse_params(given[1:]), self.max_rows, self.timeout_s))
        elif name == ".format" and len(given) == 1 and given[0] in (forms := [form for form in get_args(Format) if form != "parquet"]):
            self.form = next(form for form in forms if form == given[0])
        else:
            raise UserError(f"{text} is no command; .help lists them.")


@contextlib.contextmanager
def editing(words: Callable[[], list[str]]) -> Iterator[Callable[[str], None]]:
    """Line editing, a history kept between sessions and completion, where Python has readline; yields how to remember an entry."""
    try:
        import readline
    except ImportError:  # Windows
        yield lambda entry: None
        return
    path = Path.home() / HISTORY
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    readline.set_auto_history(False)  # a statement over several lines is one entry
    readline.set_completer_delims(" \t\n,()=<>;'\"")
    known: list[str] = []

    def complete(text: str, state: int) -> str | None:
        known[:] = known or words()
        found = [word for word in known if word.startswith(text)]
        return found[state] if text and state < len(found) else None

    readline.set_completer(complete)
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")

    def remember(entry: str) -> None:
        # one line, because the history file is made of lines; a comment would swallow what follows it
        for line in entry.splitlines() if "--" in entry else [" ".join(entry.split("\n"))]:
            readline.add_history(line)
        with contextlib.suppress(OSError):
            readline.write_history_file(path)

    yield remember
