"""Source files: which ones a path means, and their bytes, decompressed within bounds so that a bomb costs one sentence."""

import io
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from rpt_core.store.errors import UserError
from rpt_core.store.sources import resolve_source

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".txt": "text", ".text": "text",
           ".md": "text", ".markdown": "text"}
COMPRESSIONS = (".gz", ".zst")
GRACE_BYTES = 16 * 2**20  # output below this is never called a bomb, whatever its ratio
GZIP_CHUNK, ZSTD_CHUNK = 16 * 2**10, 2**10  # one chunk can expand to about 16 and 32 MiB


def format_of(path: Path) -> str:
    """jsonl | json | parquet | text by the name, compression suffix left aside; '' where the name says nothing."""
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return FORMATS.get(name.suffix.lower(), "")


def list_files(source: str, format: str = "auto", on_skip: Callable[[Path], None] = lambda path: None) -> list[tuple[Path, str]]:
    """(file, label) for a path: the file itself, or every readable file below a folder, sorted by relative path. Hidden files
    are left out; files of another kind go to ``on_skip``. The label is the name in ``documents.source``, free of the machine's
    folders. UserError: outside the roots, missing, or nothing readable."""
    path = resolve_source(source)
    if path.is_file():
        if format == "auto" and not format_of(path):
            raise UserError(f"the format of {source} cannot be told from its name; set ingest.format.")
        return [(path, path.name)]
    found = []
    for folder, names, files in os.walk(path):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in files:
            file = Path(folder, name)
            if name.startswith(".") or not file.exists():
                continue
            if format == "auto" and not format_of(file):
                on_skip(file)
                continue
            found.append((resolve_source(file), f"{path.name}/{file.relative_to(path).as_posix()}"))
    if not found:
        raise UserError(f"the folder {source} holds no file to read ({', '.join(sorted(FORMATS))}, also .gz and .zst).")
    return sorted(found, key=lambda pair: pair[1])


class _Stream(io.RawIOBase):
    """Chunks of bytes as a file."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._rest = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        n = min(len(buffer), len(self._rest))
        buffer[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n


def open_source(path: Path, max_expansion: float, max_bytes: int) -> io.BufferedIOBase:
    """The file's bytes, decompressed. UserError while reading: more than ``max_bytes``, more than ``max_expansion`` times the
    compressed size, cut short, or not of the kind its name says."""
    suffix = path.suffix.lower()
    if suffix not in COMPRESSIONS:
        return open(path, "rb")
    make = (lambda: zlib.decompressobj(wbits=31)) if suffix == ".gz" else zstandard.ZstdDecompressor().decompressobj
    chunks = _inflate(path, make, GZIP_CHUNK if suffix == ".gz" else ZSTD_CHUNK, max_expansion, max_bytes)
    return io.BufferedReader(_Stream(chunks), buffer_size=2**18)


def _inflate(path: Path, make: Callable[[], Any], chunk_bytes: int, max_expansion: float, max_bytes: int) -> Iterator[bytes]:
    consumed = produced = 0
    inflater, begun = make(), False
    with open(path, "rb") as file:
        while data := file.read(chunk_bytes):
            consumed += len(data)
            while data:
                begun = True
                try:
                    out = inflater.decompress(data)
                except (zlib.error, zstandard.ZstdError) as error:
                    raise UserError(f"{path} is not a sound {path.suffix[1:]} file ({error}).") from None
                produced += len(out)
                if produced > max_bytes or produced > max(GRACE_BYTES, max_expansion * consumed):
                    raise UserError(f"{path} expands to more than {produced // 2**20} MiB from {max(consumed // 2**10, 1)} KiB; if it is "
                                    "no bomb, decompress it yourself or raise ingest.max_expansion or ingest.max_source_bytes.")
                yield out
                data = b""
                if inflater.eof:
                    data, inflater, begun = inflater.unused_data, make(), False
    if begun:
        raise UserError(f"{path} ends in the middle of its compressed data; fetch it again.")
