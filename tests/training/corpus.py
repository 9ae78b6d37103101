"""A small corpus as ``ingest`` commits it, for the tests of this room."""

import json
from typing import Any

import numpy as np

from rpt_core.store.tables import hash_bytes
from rpt_core.store.workspace import Workspace
from rpt_core.training.bootstrap_config import BootstrapConfig
from tests.helpers import commit_table

DIGITS = ["", "zero", "one", "two", "three", "four", "five", "six", "seven"][1:]
MICRO = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "max_positions": 128, "window": 32,
         "batch_windows": 4, "train_tokens": 2560, "vocab_size": 300, "threads": 1, "dtype": "float32", "part_steps": 6, "log_steps": 1,
         "dev_windows": 8, "device": "cpu"}


def documents(count: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Sums whose working is hidden: ``two and three and one make six .`` with the running sums (mod 8) as working."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        terms = rng.integers(0, 8, 3)
        sums = np.cumsum(terms) % 8
        text = " and".join([""] + [f" {DIGITS[t]}" for t in terms]).removeprefix(" and ").strip() + " make"
        answer, working = f" {DIGITS[sums[-1]]}", "".join(f" {DIGITS[s]}" for s in sums)
        item = {"key": text, "byte_start": len(text.encode()), "byte_len": len(answer), "working": working, "answer": answer}
        text = f"{text}{answer} . number {index} “é” ."
        rows.append({"doc_id": hash_bytes(text.encode()), "split": ("train", "train", "train", "dev")[index % 4], "source": "test",
                     "text": text, "n_bytes": len(text.encode()), "item_keys": [item["key"]],
                     "meta": json.dumps({"generator": {"family": "sums", "items": [item]}})})
    return rows


def workspace_with_documents(path: Any, rows: list[dict[str, Any]] | None = None) -> Workspace:
    workspace = Workspace(path)
    commit_table(workspace, "ingest", {"documents": rows or documents()})
    return workspace


def micro_bootstrap(**changes: Any) -> BootstrapConfig:
    return BootstrapConfig(**{**MICRO, **changes})


def commit_positions(workspace: Workspace, rows: list[dict[str, Any]], tokenizer: Any) -> str:
    """Every position of the documents from their second token on, as ``select`` would commit them: those at an item's answer are hard,
    the rest easy; dev answers are selected for dev, train answers for train."""
    from rpt_core.tokens.bytes import byte_spans

    positions = []
    for row in rows:
        answers = {item["byte_start"] for item in json.loads(row["meta"]).get("generator", {}).get("items", [])}
        _, starts, _ = byte_spans(tokenizer, row["text"])
        for position, start in list(enumerate(starts))[1:]:
            hard = start in answers
            positions.append({
                "position_id": hash_bytes(f"{row['doc_id']} {start}".encode()), "doc_id": row["doc_id"], "position": position,
                "byte_start": start, "context_start": 0, "split": row["split"], "entropy": 2.0 if hard else 0.7,
                "filter_entropy": 2.0, "difficulty": "hard" if hard else "easy", "winnable": True,
                "selected": row["split"] if hard else "", "n_prompt_tokens": position})
    return commit_table(workspace, "select", {"positions": positions})
