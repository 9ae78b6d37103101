"""A synthetic corpus with realistic distributions for the store benchmark, written through the product's own writers and `select`.

Token ids follow a Zipf-Mandelbrot law over Qwen2's vocabulary size, document lengths a log-normal one, byte lengths what was measured.
Entropies are what a small language model shows: over half of the tokens nearly certain, the rest spread up to ln 16; likelihoods and
ranks go with them. Floats carry their full 24 bits."""

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rpt_core.catalog.catalog import refresh
from rpt_core.catalog.select_config import STAGE, SelectConfig
from rpt_core.store.context import Context
from rpt_core.store.files import digest_json
from rpt_core.store.schemas import TABLES
from rpt_core.store.stage import execute
from rpt_core.store.tables import Manifest, hash_bytes
from rpt_core.store.workspace import Workspace

SCORERS = ("filter", "difficulty")
VOCABULARY = 151_643
CHUNK_TOKENS = 1_000_000  # made at a time
SHARD_CHUNKS = 4  # of a shard: what score.shard_bytes=14_000_000 gives, which docs/sql.md advises for tables of this size
MEAN_TOKENS = 500
# Qwen2's tokenizer on 2.7 M tokens of textbook, novel and mathematics: shares of tokens of 1, 2, … bytes; entropy of the token
# ids 9.98 bits (the law below: 10.7)
BYTE_LENGTHS = (0.253, 0.181, 0.156, 0.139, 0.104, 0.057, 0.037, 0.029, 0.019, 0.012, 0.006, 0.003, 0.002, 0.001)


def write(folder: str, tokens: int, threads: int) -> Callable[[], dict[str, Any]]:
    """A side for the harness: ``tokens`` rows of the token table (half of them by each scorer), and ``unsorted.parquet``, the difficulty
    scorer's rows shuffled in one file as a data frame library writes it."""
    return lambda: _write(Path(folder), tokens, threads)


def select(folder: str, threads: int) -> Callable[[], dict[str, Any]]:
    """A side for the harness: the positions `select` makes of what ``write`` wrote, and the catalog."""
    return lambda: _select(Workspace(Path(folder) / "workspace"), threads)


def _write(folder: Path, tokens: int, threads: int) -> dict[str, Any]:
    pa.set_cpu_count(threads)
    workspace = Workspace(folder / "workspace")
    per_scorer = tokens // len(SCORERS)
    words = _words(np.random.default_rng(1))
    contexts = {slot: _context(workspace, slot) for slot in ("ingest", *(f"score.{scorer}" for scorer in SCORERS))}
    spent = {"make": 0.0, "write": 0.0, "unsorted": 0.0}
    n_documents = round(per_scorer / MEAN_TOKENS)
    doc_ids = sorted(hash_bytes(str(i).encode()) for i in range(n_documents))
    lengths = _lengths(n_documents, per_scorer)
    with pq.ParquetWriter(folder / "unsorted.parquet", TABLES["tokens"].arrow, compression="zstd") as unsorted:
        for shard, chunks in enumerate(_shards(_cuts(lengths))):
            clock = time.perf_counter()
            with ExitStack() as open_shards:
                documents = open_shards.enter_context(contexts["ingest"].shard("documents", shard))
                scored = {scorer: open_shards.enter_context(contexts[f"score.{scorer}"].shard("tokens", shard)) for scorer in SCORERS}
                for index, (begin, end) in chunks:
                    draw = np.random.default_rng([2, index])
                    clock = _spend(spent, "write", clock)
                    shared = _token_columns(draw, doc_ids[begin:end], lengths[begin:end], words[1])
                    texts = _documents(draw, doc_ids[begin:end], shared)
                    clock = _spend(spent, "make", clock)
                    documents.write(texts)
                    clock = _spend(spent, "write", clock)
                    for scorer in SCORERS:
                        rows = _scored(draw, scorer, shared)
                        clock = _spend(spent, "make", clock)
                        scored[scorer].write(rows)
                        clock = _spend(spent, "write", clock)
                    unsorted.write_table(rows.take(pa.array(draw.permutation(rows.num_rows))))
                    clock = _spend(spent, "unsorted", clock)
            _spend(spent, "write", clock)  # what closing the shards takes
    clock = time.perf_counter()
    for scorer in SCORERS:
        contexts[f"score.{scorer}"].write("vocabulary", words[0])
    for slot, context in contexts.items():
        context.commit({}, tables=("documents", "questions") if slot == "ingest" else ())
        context.close()
        workspace.point(slot, context.manifest.version)
    _spend(spent, "write", clock)
    scored = [workspace.table(f"score.{scorer}", contexts[f"score.{scorer}"].manifest.version, "tokens") for scorer in SCORERS]
    middle = scored[0].shards[len(scored[0].shards) // 2]
    document = pq.read_table(scored[0].folder / middle.file, columns=["doc_id"])["doc_id"][middle.rows // 2].as_py()
    rows = sum(table.rows for table in scored)
    return {"rows": rows, "bytes": sum(table.bytes for table in scored), "seconds": spent, "document": document,
            "write_rows_per_s": rows / spent["write"], "unsorted_bytes": (folder / "unsorted.parquet").stat().st_size}


def _select(workspace: Workspace, threads: int) -> dict[str, Any]:
    config = SelectConfig.build("select", {"memory_mib": 1024, "threads": threads})
    manifest = execute(STAGE, config, workspace, force=True).manifest
    refresh(workspace)
    made = {name: workspace.table("select", manifest.version, name) for name in STAGE.writes}
    return {**{f"{name}_rows": table.rows for name, table in made.items()},
            **{f"{name}_bytes": table.bytes for name, table in made.items()}}


def _spend(spent: dict[str, float], on: str, since: float) -> float:
    now = time.perf_counter()
    spent[on] += now - since
    return now


def _context(workspace: Workspace, slot: str) -> Context:
    identity = digest_json(["benchmark", slot])[:16]
    return Context(workspace, Manifest(slot.split(".")[0], slot, identity, f"{identity}-1", 1, {}, {}, {}), {}, {})


def _words(draw: np.random.Generator) -> tuple[pa.Table, np.ndarray]:
    """The vocabulary's rows, and the byte length of every entry."""
    lengths = draw.choice(np.arange(1, len(BYTE_LENGTHS) + 1), VOCABULARY, p=np.array(BYTE_LENGTHS) / sum(BYTE_LENGTHS))
    letters = draw.choice(np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", np.uint8), int(lengths.sum())).tobytes()
    ends = np.cumsum(lengths)
    entries = [letters[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    rows = pa.table({"tokenizer": ["benchmark"] * VOCABULARY, "token_id": pa.array(range(VOCABULARY), pa.int32()), "bytes": entries,
                     "text": [entry.decode() for entry in entries], "special": [False] * VOCABULARY}, schema=TABLES["vocabulary"].arrow)
    return rows, lengths.astype(np.int16)


def _lengths(documents: int, tokens: int) -> np.ndarray:
    """Tokens of each document: log-normal, ``tokens`` in all."""
    raw = np.random.default_rng(0).lognormal(0, 0.9, documents)
    lengths = np.maximum(2, np.floor(raw * tokens / raw.sum())).astype(np.int64)
    lengths[-1] = max(2, lengths[-1] + tokens - lengths.sum())
    return lengths


def _cuts(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Documents [begin, end) of every chunk."""
    chunk = (np.cumsum(lengths) - lengths) // CHUNK_TOKENS
    bounds = np.flatnonzero(np.diff(chunk)) + 1
    yield from itertools.pairwise([0, *bounds.tolist(), len(lengths)])


def _shards(chunks: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, tuple[int, int]]]]:
    """The numbered chunks of every shard."""
    numbered = enumerate(chunks)
    while of_shard := list(itertools.islice(numbered, SHARD_CHUNKS)):
        yield of_shard


def _ids(draw: np.random.Generator, count: int) -> np.ndarray:
    """Zipf-Mandelbrot by the inverse of its continuous distribution function; exponent 1.15, shift 2.7."""
    low, high = 2.7**-0.15, (VOCABULARY + 2.7) ** -0.15
    return np.minimum((low - draw.random(count) * (low - high)) ** (-1 / 0.15) - 2.7, VOCABULARY - 1).astype(np.int32)


def _token_columns(draw: np.random.Generator, doc_ids: list[str], lengths: np.ndarray, byte_lengths: np.ndarray) -> dict[str, Any]:
    count = int(lengths.sum())
    first = np.cumsum(lengths) - lengths
    ids = _ids(draw, count)
    byte_len = byte_lengths[ids]
    ends = np.cumsum(byte_len, dtype=np.int64)
    start = ends - byte_len
    names = pa.DictionaryArray.from_arrays(pa.array(np.repeat(np.arange(len(doc_ids), dtype=np.int32), lengths)), doc_ids)
    return {"doc_id": names.cast(pa.string()), "position": (np.arange(count) - np.repeat(first, lengths)).astype(np.int32), "token_id": ids,
            "byte_start": (start - np.repeat(start[first], lengths)).astype(np.int32), "byte_len": byte_len, "first": first,
            "n_bytes": np.add.reduceat(byte_len, first, dtype=np.int64)}


def _scored(draw: np.random.Generator, scorer: str, shared: dict[str, Any]) -> pa.Table:
    ids = shared["token_id"]
    count = len(ids)
    certain = draw.random(count) < 0.6
    spread = np.clip(draw.normal(1.1, 0.6, count), 0.01, np.log(16))
    entropy = np.where(certain, np.minimum(np.exp(draw.normal(-3.5, 1.8, count)), 2.6), spread).astype(np.float32)
    likely = np.exp(-0.75 * entropy) * draw.uniform(0.85, 1, count)
    right = draw.random(count) < likely
    rank = np.where(right, 0, np.minimum(1 + np.floor(draw.pareto(0.6, count)), VOCABULARY - 1)).astype(np.int32)
    wrong = -np.log(1 - likely + 1e-6) + 1.3 * np.log(rank + 0.5) + draw.normal(0.3, 0.3, count)
    nll = np.where(right, -np.log(likely), wrong).clip(1e-6, 25).astype(np.float32)
    top = np.where(right, ids, _ids(draw, count)).astype(np.int32)
    unscored = np.zeros(count, bool)
    unscored[shared["first"]] = True
    rank[unscored] = top[unscored] = -1
    return pa.table({"scorer": pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), [scorer]).cast(pa.string()),
                     **{name: shared[name] for name in ("doc_id", "position", "token_id", "byte_start", "byte_len")},
                     "entropy": pa.array(entropy, mask=unscored), "nll": pa.array(nll, mask=unscored), "rank": rank, "top_id": top},
                    schema=TABLES["tokens"].arrow)


def _documents(draw: np.random.Generator, doc_ids: list[str], shared: dict[str, Any]) -> pa.Table:
    """Documents of the right lengths, in an arrival order of their own; their letters are as compressible as text is."""
    n_bytes = shared["n_bytes"]
    alphabet = np.frombuffer(b"    eeeettaaooiinnsshhrrddllu", np.uint8)
    letters = alphabet[draw.integers(0, len(alphabet), int(n_bytes.sum()))].tobytes().decode()
    ends = np.cumsum(n_bytes)
    rows = [{"doc_id": doc_id, "split": ("dev", "test")[int(doc_id[-1] == "1")] if doc_id[-1] in "01" else "train", "source": "benchmark",
             "text": letters[end - size : end], "n_bytes": size, "meta": json.dumps({"n": int(size)}), "item_keys": []}
            for doc_id, end, size in zip(doc_ids, ends.tolist(), n_bytes.tolist(), strict=True)]
    return pa.Table.from_pylist([rows[i] for i in draw.permutation(len(rows))], schema=TABLES["documents"].arrow)
