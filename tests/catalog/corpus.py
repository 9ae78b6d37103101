"""A small corpus with a byte-level toy vocabulary, scored by two made-up scorers, as ingest and score would commit it."""

import json
import random
from typing import Any

import numpy as np

from rpt_core.store.tables import hash_bytes
from rpt_core.store.workspace import Workspace
from tests.helpers import commit_table

MERGES = [" the", " be", "ing", "\\frac", "}", "{", "{}", "}}", "\\boxed{", "é", " ", "。", "\n", "x^2", " of", "</think>"]
SPECIAL = 256 + len(MERGES)
VOCABULARY: list[bytes] = [bytes([b]) for b in range(256)] + [m.encode() for m in MERGES] + [b"<|end|>"]
PIECES = ["the ", "to be ", "naïve é ", "x^2 {a} ", "\\frac{1}{2} ", "日本。", "}", "}}", "{",
          "\\boxed{7} ", "of the thing ", "🙂", "\n", " <"]


def tokenise(text: str) -> list[int]:
    """Greedy longest match over VOCABULARY; bytes where nothing longer fits, so characters may be split."""
    data, at, ids = text.encode(), 0, []
    longest = sorted(range(256, SPECIAL), key=lambda i: -len(VOCABULARY[i]))
    while at < len(data):
        found = next((i for i in longest if data.startswith(VOCABULARY[i], at)), data[at])
        ids.append(found)
        at += len(VOCABULARY[found])
    return ids


def texts(count: int = 12, pieces: int = 60, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randint(pieces // 2, pieces))) + f" {number}" for number in range(count)]


def document_rows(given: list[str], splits: list[str] | None = None) -> list[dict[str, Any]]:
    cycle = splits or ["train", "train", "dev", "test"]
    return sorted(({"doc_id": hash_bytes(text.encode()), "split": cycle[i % len(cycle)], "source": f"toy-{i % 2}.txt", "text": text,
                    "n_bytes": len(text.encode()), "meta": json.dumps({"number": i}), "item_keys": []} for i, text in enumerate(given)),
                  key=lambda row: row["doc_id"])


def token_rows(documents: list[dict[str, Any]], scorer: str, seed: int = 0) -> list[dict[str, Any]]:
    rows = []
    for document in documents:
        start = 0
        draw = np.random.default_rng([seed, len(scorer), int(document["doc_id"][:8], 16)])
        for position, token_id in enumerate(tokenise(document["text"])):
            entropy = None if position == 0 else float(np.float32(draw.uniform(0, 2.7)))
            rows.append({"scorer": scorer, "doc_id": document["doc_id"], "position": position, "token_id": token_id, "byte_start": start,
                         "byte_len": len(VOCABULARY[token_id]), "entropy": entropy, "nll": None if position == 0 else 1.0,
                         "rank": -1 if position == 0 else 0, "top_id": -1 if position == 0 else 32})
            start += len(VOCABULARY[token_id])
    return rows


def vocabulary_rows(padding: int = 0, entries: list[bytes] | None = None) -> list[dict[str, Any]]:
    table = (entries or VOCABULARY) + [b""] * padding
    return [{"tokenizer": hash_bytes(b"".join(entries or VOCABULARY)), "token_id": i, "bytes": b, "text": b.decode("utf-8", "replace"),
             "special": i >= SPECIAL} for i, b in enumerate(table)]


def commit_corpus(workspace: Workspace, given: list[str] | None = None, splits: list[str] | None = None,
                  seed: int = 0) -> list[dict[str, Any]]:
    """Commit documents, both scorers' tokens and their vocabularies (padded to different sizes); returns the documents."""
    documents = document_rows(given if given is not None else texts(), splits)
    commit_table(workspace, "ingest", {"documents": documents, "questions": []})
    for scorer, padding in (("filter", 0), ("difficulty", 5)):
        scored = {"tokens": token_rows(documents, scorer, seed), "vocabulary": vocabulary_rows(padding)}
        commit_table(workspace, f"score.{scorer}", scored, key=str(seed))
    return documents
