"""Stage ``score``: entropy, likelihood and rank of every token of every document under one model (RPT §3.3). Documents go by doc_id
into shards that depend on the data alone; each shard is scored from scratch or kept whole, so a resume repeats at most one of them."""

import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rpt_core.store.context import Context
from rpt_core.store.errors import UserError
from rpt_core.store.files import read_json, write_json
from rpt_core.store.tables import Manifest, Table, writing_shard
from rpt_core.tokens.bytes import byte_table_digest, special_ids, token_bytes
from rpt_core.tokens.models import resolve_device, set_threads, tune_allocator
from rpt_core.tokens.score_config import ScoreConfig
from rpt_core.tokens.scorer import Scorer, ShardCounts

PROGRESS_SECONDS = 1.0
FLAGGED_SHOWN = 100  # documents named in the manifest; all are counted


@dataclass(frozen=True)
class DocumentShard:
    """Documents with ``first_id`` <= doc_id <= ``last_id``, without train documents above ``last_train_id``."""

    index: int
    first_id: str
    last_id: str
    last_train_id: str
    documents: int
    n_bytes: int


@dataclass(frozen=True)
class Job:
    """What a process needs to score one shard."""

    shard: DocumentShard
    documents: Table
    model: Path
    config: ScoreConfig
    tokens_path: Path
    counts_path: Path


def run(config: ScoreConfig, context: Context) -> Manifest:
    """Writes ``tokens`` (one row per token, sorted by doc_id and position) and ``vocabulary``. A document whose bytes the tokenizer cannot
    follow exactly is left out of ``tokens``, counted and named; UserError when that is every document."""
    tune_allocator()
    documents = context.table("documents")
    shards = plan_shards(documents, config.shard_bytes, config.train_bytes)
    n_documents, n_bytes = sum(shard.documents for shard in shards), sum(shard.n_bytes for shard in shards)
    context.events.message(f"score.{config.name}: {n_documents:,} documents, {n_bytes:,} bytes, {len(shards)} shards.")
    model = context.model("checkpoint").path
    jobs = [Job(shard, documents, model, config, context.shard_path("tokens", shard.index), context.state / f"score-{shard.index:05d}.json")
            for shard in shards]
    waiting = [job for job in jobs if not (context.has_shard("tokens", job.shard.index) and job.counts_path.exists())]
    if len(waiting) < len(jobs):
        context.events.message(f"score goes on: {len(jobs) - len(waiting)} of {len(jobs)} shards were finished before.")
    workers = min(config.workers, len(waiting))
    if workers > 1 and resolve_device(config.device) == "cuda":
        raise UserError("score.workers is for the CPU; set it to 1 on a GPU and raise batch_tokens instead.")
    set_threads(config.threads)
    scorer = Scorer(model, config)
    if scorer.window < config.window:
        context.events.message(f"the model reads at most {scorer.window} tokens: the window is that, not {config.window}.")
    write_vocabulary(context, scorer)
    facts = {"window": scorer.window, "bos": scorer.bos is not None}
    progress = _Progress(context, n_bytes, sum(job.shard.n_bytes for job in jobs if job not in waiting))
    if workers > 1:
        del scorer
        _score_in_processes(waiting, workers, progress)
    else:
        for job in waiting:
            progress.shard_done(job.shard, score_shard(job, scorer, progress.more))
    return context.commit(summary([ShardCounts(**read_json(job.counts_path)) for job in jobs], context) | facts)


def plan_shards(documents: Table, shard_bytes: int, train_bytes: int = 0) -> list[DocumentShard]:
    """Consecutive documents in order of doc_id, cut where their bytes pass a multiple of ``shard_bytes``; of the train documents
    those up to the one that reaches ``train_bytes`` (0 = all)."""
    listed = documents.read(columns=["doc_id", "split", "n_bytes"]).sort_by("doc_id").combine_chunks()
    if not listed.num_rows:
        raise UserError("the documents table is empty, so there is nothing to score; ingest some documents first.")
    last_train_id = listed["doc_id"][-1].as_py()
    if train_bytes:
        train = listed.filter(pc.field("split") == "train")
        reached = int(np.searchsorted(np.cumsum(train["n_bytes"].to_numpy()), train_bytes))
        if reached < train.num_rows:
            last_train_id = train["doc_id"][reached].as_py()
        listed = listed.filter((pc.field("split") != "train") | (pc.field("doc_id") <= last_train_id)).combine_chunks()
    n_bytes = listed["n_bytes"].to_numpy()
    before = np.cumsum(n_bytes) - n_bytes
    cuts = [0, *(np.flatnonzero(np.diff(before // shard_bytes)) + 1).tolist(), listed.num_rows]
    doc_ids = listed["doc_id"]
    return [DocumentShard(index, doc_ids[begin].as_py(), doc_ids[end - 1].as_py(), last_train_id, end - begin,
                          int(n_bytes[begin:end].sum()))
            for index, (begin, end) in enumerate(itertools.pairwise(cuts))]


def read_documents(documents: Table, shard: DocumentShard) -> Iterator[tuple[str, str]]:
    """(doc_id, text) of a shard's documents, sorted by doc_id."""
    within = (pc.field("doc_id") >= shard.first_id) & (pc.field("doc_id") <= shard.last_id)
    within &= (pc.field("split") != "train") | (pc.field("doc_id") <= shard.last_train_id)
    parts = [batch for batch in documents.batches(columns=["doc_id", "text"], rows=1024, where=within) if batch.num_rows]
    if not parts:
        return
    found = pa.Table.from_batches(parts)
    doc_ids = found["doc_id"].to_pylist()
    for row in sorted(range(len(doc_ids)), key=doc_ids.__getitem__):
        yield doc_ids[row], found["text"][row].as_py()


def score_shard(job: Job, scorer: Scorer, on_bytes: Callable[[int], None] = lambda _: None) -> ShardCounts:
    """Write one shard of ``tokens``, its counts first: a shard that is there has its counts."""
    counts = ShardCounts()
    with writing_shard("tokens", job.tokens_path) as out:
        for rows in scorer.rows(read_documents(job.documents, job.shard), counts, on_bytes):
            out.write(rows)
        write_json(job.counts_path, asdict(counts))
    return counts


def write_vocabulary(context: Context, scorer: Scorer) -> None:
    """One row per entry of the tokenizer that stands for something."""
    if context.has_shard("vocabulary", 0):
        return
    table, special = token_bytes(scorer.tokenizer), special_ids(scorer.tokenizer)
    digest = byte_table_digest(scorer.tokenizer)
    context.write("vocabulary", [{"tokenizer": digest, "token_id": i, "bytes": entry, "text": entry.decode("utf-8", "replace"),
                                  "special": i in special} for i, entry in enumerate(table) if entry])


def summary(shards: list[ShardCounts], context: Context) -> dict[str, Any]:
    """Counts of all shards for the manifest; says in the events how many documents were flagged."""
    flagged = {doc_id: reason for counts in shards for doc_id, reason in counts.flagged.items()}
    documents, tokens, scored = (sum(getattr(counts, name) for counts in shards) for name in ("documents", "tokens", "scored"))
    if flagged:
        first = next(iter(flagged.items()))
        if len(flagged) == documents:
            raise UserError(f"none of the {documents} documents can be tokenised byte for byte, e.g. {first[0]}: {first[1]}")
        context.events.message(f"{len(flagged)} of {documents} documents are flagged and have no tokens, e.g. {first[0]}: {first[1]}")
    nll = sum(counts.nll for counts in shards)
    return {"documents": documents, "documents_flagged": len(flagged), "flagged": dict(sorted(flagged.items())[:FLAGGED_SHOWN]),
            "tokens": tokens, "tokens_scored": scored,
            "windows": sum(counts.windows for counts in shards), "mean_nll": nll / scored if scored else None}


class _Progress:
    """Bytes scored, with tokens a second for people."""

    def __init__(self, context: Context, total: int, done: int):
        self.context, self.total, self.done = context, total, done
        self.shards = self.tokens = 0
        self.begun = self.said = time.monotonic()
        self.shard_bytes = 0  # of the shard under way

    def more(self, n_bytes: int) -> None:
        self.shard_bytes += n_bytes
        if time.monotonic() - self.said > PROGRESS_SECONDS:
            self._say(self.done + self.shard_bytes)

    def shard_done(self, shard: DocumentShard, counts: ShardCounts) -> None:
        self.done += shard.n_bytes
        self.shard_bytes = 0
        self.shards += 1
        self.tokens += counts.tokens
        self._say(self.done)
        seconds = max(time.monotonic() - self.begun, 1e-9)
        values = {"tokens_per_second": self.tokens / seconds, "shard_nll": counts.nll / max(counts.scored, 1)}
        self.context.events.metrics(shard.index, values)

    def _say(self, done: int) -> None:
        self.said = time.monotonic()
        rate = f"{self.tokens / max(self.said - self.begun, 1e-9):,.0f} tokens/s" if self.tokens else ""
        self.context.events.progress(done, self.total, "bytes", rate)


# --- several processes --------------------------------------------------------------------------------------------------------------

_scorer: Scorer | None = None


def _score_in_processes(jobs: list[Job], workers: int, progress: _Progress) -> None:
    """Each process loads the model once and scores whole shards; shards are those of a single process up to float rounding,
    and the same to the bit where ``threads`` is set."""
    config, model = jobs[0].config, jobs[0].model
    threads = config.threads or max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker, (model, config, threads, os.getpid())) as pool:
        futures = {pool.submit(_score_one, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                progress.shard_done(futures[future].shard, future.result())
        except BrokenProcessPool:
            raise UserError("a scoring process ended on its own, most likely for lack of memory; lower score.workers or batch_tokens. "
                            "Finished shards are kept.") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin_worker(model: Path, config: ScoreConfig, threads: int, parent: int) -> None:
    global _scorer
    if sys.platform == "linux":  # a worker must not outlive the run that started it
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    tune_allocator()
    set_threads(threads)
    _scorer = Scorer(model, config)


def _score_one(job: Job) -> ShardCounts:
    assert _scorer
    return score_shard(job, _scorer)
