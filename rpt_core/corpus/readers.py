"""Readers: a source becomes records, one generator per format. What cannot be read is told with file and line, and counted."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rpt_core.corpus.documents import Record, Report
from rpt_core.corpus.files import format_of, list_files, open_source
from rpt_core.corpus.hub import is_hub, read_hub
from rpt_core.store.errors import UserError

BOM = b"\xef\xbb\xbf"
LINE_FACTOR = 8  # a JSONL line may be this many times longer than a document: escapes and other fields
PARQUET_ROWS = 64


@dataclass(frozen=True)
class Limits:
    """Bounds of reading, in bytes; ``max_expansion`` is decompressed over compressed size."""

    max_document_bytes: int = 8 * 2**20
    max_source_bytes: int = 2**36
    max_expansion: float = 200.0


def read_source(source: str, report: Report, limits: Limits, format: str = "auto") -> Iterator[Record]:
    """Every record of a file, a folder or a Hub dataset, in a fixed order. ``format``: auto (by name) | jsonl | json | parquet |
    text (a file is a document) | lines (a line is a document)."""
    if is_hub(source):
        yield from read_hub(source, report)
        return

    def skipped(path: Path) -> None:
        report.count("files_of_other_kinds")
        report.say(f"{path}: not a format that is read; skipped.")

    for path, label in list_files(source, format, skipped):
        report.count("files_read")
        yield from READERS[format_of(path) if format == "auto" else format](path, label, report, limits)


def _text(data: bytes, where: str, report: Report) -> str | None:
    """``data`` as text, or None after reporting the byte that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        report.bad("not_utf8", where, f"not UTF-8 (byte 0x{data[error.start]:02x} at offset {error.start})")
        return None


def _lines(path: Path, report: Report, limits: Limits, longest: int) -> Iterator[tuple[str, bytes]]:
    """(file:line, bytes) of every line that is not blank; lines over ``longest`` bytes are reported and passed over."""
    with open_source(path, limits.max_expansion, limits.max_source_bytes) as file:
        number = 0
        while line := file.readline(longest + 1):
            number += 1
            where, first = f"{path}:{number}", line
            while len(line) > longest and not line.endswith(b"\n"):
                line = file.readline(longest + 1)
                if not line:
                    break
            if number == 1:
                first = first.removeprefix(BOM)
            if not first.strip():
                report.count("blank_lines")
                continue
            report.count("records_read")
            if len(first) > longest:
                report.bad("too_long", where, f"a line of more than {longest} bytes")
                continue
            yield where, first.rstrip(b"\r\n")


def read_jsonl(path: Path, label: str, report: Report, limits: Limits) -> Iterator[Record]:
    for where, line in _lines(path, report, limits, LINE_FACTOR * limits.max_document_bytes):
        text = _text(line, where, report)
        if text is None:
            continue
        try:
            value = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            report.bad("not_json", where, f"not JSON ({getattr(error, 'msg', 'nested too deep')})")
            continue
        if isinstance(value, dict):
            yield Record(value, label, where)
        else:
            report.bad("not_an_object", where, f"a JSON {type(value).__name__} where an object was expected")


def read_json(path: Path, label: str, report: Report, limits: Limits) -> Iterator[Record]:
    """One object, a list of objects, or an object whose only list of objects is the data; also JSONL under this name."""
    data = _whole(path, limits, LINE_FACTOR * limits.max_document_bytes * 64)
    try:
        value = json.loads(data.removeprefix(BOM))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # several values: JSONL in disguise
            yield from read_jsonl(path, label, report, limits)
            return
        report.count("records_read")
        report.bad("not_json", f"{path}:{error.lineno}", f"not JSON ({error.msg})")
        return
    except (UnicodeDecodeError, RecursionError):
        report.count("records_read")
        report.bad("not_json", f"{path}:1", "not JSON in UTF-8, or nested too deep")
        return
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list) and part and all(isinstance(row, dict) for row in part)]
        value = lists[0] if len(lists) == 1 and not any(isinstance(part, str) for part in value.values()) else [value]
    for index, row in enumerate(value if isinstance(value, list) else [value]):
        report.count("records_read")
        where = f"{path}:[{index}]"
        if isinstance(row, dict):
            yield Record(row, label, where)
        else:
            report.bad("not_an_object", where, f"a JSON {type(row).__name__} where an object was expected")


def read_parquet(path: Path, label: str, report: Report, limits: Limits) -> Iterator[Record]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a sound Parquet file ({str(error).splitlines()[0]}).") from None
    size = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
    if size > limits.max_source_bytes:
        raise UserError(f"{path} holds {size} bytes decompressed; raise ingest.max_source_bytes (now {limits.max_source_bytes}).")
    number = 0
    try:
        for batch in file.iter_batches(PARQUET_ROWS):
            for index in range(batch.num_rows):
                number += 1
                report.count("records_read")
                where = f"{path}:row {number}"
                try:
                    yield Record(batch.slice(index, 1).to_pylist()[0], label, where)
                except UnicodeDecodeError as error:
                    report.bad("not_utf8", where, f"not UTF-8 ({error.reason})")
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} breaks off after row {number} ({str(error).splitlines()[0]}).") from None


def read_text(path: Path, label: str, report: Report, limits: Limits) -> Iterator[Record]:
    """The whole file is one document."""
    report.count("records_read")
    with open_source(path, limits.max_expansion, limits.max_source_bytes) as file:
        data = file.read(limits.max_document_bytes + 1)
    if len(data) > limits.max_document_bytes:
        report.bad("too_long", f"{path}:1", f"a document of more than {limits.max_document_bytes} bytes (format lines: each line is one)")
        return
    text = _text(data.removeprefix(BOM), f"{path}:1", report)
    if text is not None:
        yield Record({"text": text}, label, f"{path}:1")


def read_lines(path: Path, label: str, report: Report, limits: Limits) -> Iterator[Record]:
    for where, line in _lines(path, report, limits, limits.max_document_bytes):
        text = _text(line, where, report)
        if text is not None:
            yield Record({"text": text}, label, where)


def _whole(path: Path, limits: Limits, most: int) -> bytes:
    with open_source(path, limits.max_expansion, limits.max_source_bytes) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UserError(f"{path} is larger than {most} bytes, too large for one JSON value; convert it to JSONL.")
    return data


READERS: dict[str, Any] = {"jsonl": read_jsonl, "json": read_json, "parquet": read_parquet, "text": read_text, "lines": read_lines}
