"""The process a query runs in. Reads one JSON request from stdin, writes the result as an Arrow stream to stdout; what the user
did wrong goes to stderr as one sentence with exit code 3. Each lock here holds without the others (tests/catalog/test_sql_locks)."""

import json
import os
import resource
import sys
import threading
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from rpt_core.catalog.connection import literal, open_duckdb
from rpt_core.catalog.gate import check_statement, message
from rpt_core.store.errors import UserError

REFUSED = 3
OVERHEAD_MIB = 1536  # address space that threads, stacks and allocators reserve beyond what a query uses
TRUNCATED = b"rpt.truncated"


def main() -> int:
    request = json.loads(sys.stdin.read())
    limit_process(request["memory_mib"], request["timeout_s"], request["threads"])
    try:
        check_statement(request["sql"])
        with open_for_people(Path(request["catalog"]), request["memory_mib"], request["threads"]) as connection:
            answer(connection, request)
    except (UserError, duckdb.InterruptException, duckdb.OutOfMemoryException, MemoryError, duckdb.Error) as error:
        sys.stderr.write(explain(error, request))
        return REFUSED
    return 0


def limit_process(memory_mib: int, timeout_s: float, threads: int) -> None:
    """Bound this process: address space, processor time, and no byte into any file."""
    space = address_space() + ((memory_mib + OVERHEAD_MIB) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    seconds = int(timeout_s * threads) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def address_space() -> int:
    """Bytes of address space this process has now: its libraries, before any query."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def open_for_people(catalog: Path, memory_mib: int, threads: int) -> duckdb.DuckDBPyConnection:
    """A read-only connection that reaches the catalog's own shards and no other file, and whose settings cannot be changed."""
    connection = open_duckdb(catalog, memory_mib=memory_mib, threads=threads, temporary=None, read_only=True)
    shards = [file for (file,) in connection.execute("SELECT file FROM internal.shards").fetchall()]
    connection.execute(f"SET allowed_paths = {literal(shards)}" if shards else "SET allowed_paths = []")
    connection.execute("SET enable_external_access = false; SET lock_configuration = true")
    return connection


def answer(connection: duckdb.DuckDBPyConnection, request: dict[str, Any]) -> None:
    """Stream at most ``max_rows`` rows and ``max_bytes`` bytes of the result to stdout."""
    timer = threading.Timer(request["timeout_s"], connection.interrupt)
    timer.daemon = True
    timer.start()
    relation = connection.sql(request["sql"], params=request["params"] or None)
    if relation is None:
        raise UserError("the query has no result.")
    reader = relation.to_arrow_reader(8192)
    left, size, batches, truncated = request["max_rows"], 0, [], False
    for batch in reader:
        truncated = batch.num_rows > left
        batches.append(batch.slice(0, left))
        left -= batches[-1].num_rows
        size += batches[-1].nbytes
        if size > request["max_bytes"]:
            raise UserError(f"the result is larger than {request['max_bytes'] >> 20} MiB; select fewer columns or rows.")
        if truncated:
            break
    timer.cancel()
    schema = reader.schema.with_metadata({TRUNCATED: b"true"} if truncated else None)
    with pa.ipc.new_stream(sys.stdout.buffer, schema) as out:
        for batch in batches:
            out.write_batch(batch)
    sys.stdout.flush()


def explain(error: BaseException, request: dict[str, Any]) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, duckdb.InterruptException):
        return f"the query took longer than {request['timeout_s']:g} s; make it smaller or allow more time."
    if isinstance(error, (duckdb.OutOfMemoryException, MemoryError)):
        return f"the query needs more than {request['memory_mib']} MiB of memory; make it smaller or allow more."
    return message(error)


if __name__ == "__main__":
    exit_code = main()
    sys.stderr.flush()
    os._exit(exit_code)  # nothing is left to tidy, and DuckDB's module complains about leaks when interrupted
