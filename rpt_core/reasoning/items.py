"""From positions to work: a prompt of the document's own tokens, and the bytes and boundaries its prediction is checked against."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rpt_core.reasoning.prompts import Frame
from rpt_core.store.errors import UserError
from rpt_core.tokens.bytes import byte_spans


@dataclass(frozen=True)
class Item:
    """One position as a task. ``completion`` holds the bytes of the next ``horizon`` document tokens and ``boundaries`` their
    cumulative byte lengths (RPT Eq. 3); ``prefix_ids`` are the document tokens that ``prompt_ids`` frames."""

    position_id: str
    doc_id: str
    position: int
    prompt_ids: list[int]
    completion: bytes
    boundaries: tuple[int, ...]
    truth_id: int
    difficulty: str
    winnable: bool
    entropy: float
    split: str
    prefix_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class _TokenisedDocument:
    data: bytes
    ids: np.ndarray  # int32 [T]
    starts: np.ndarray  # int32 [T + 1]: byte offset of each token, then the document's length


class DocumentTokens:
    """Documents by doc_id, tokenised on first use and kept (about 8 bytes a token)."""

    def __init__(self, documents: pa.Table, tokenizer: Any):
        self._tokenizer = tokenizer
        texts = documents.column("text")
        self._texts = {doc_id: texts[row] for row, doc_id in enumerate(documents.column("doc_id").to_pylist())}
        self._known: dict[str, _TokenisedDocument] = {}

    def __getitem__(self, doc_id: str) -> _TokenisedDocument:
        if doc_id not in self._known:
            if doc_id not in self._texts:
                raise UserError(f"the positions name document {doc_id}, which the documents do not hold; run select on these documents.")
            text = self._texts[doc_id].as_py()
            ids, starts, _ = byte_spans(self._tokenizer, text)
            data = text.encode()
            self._known[doc_id] = _TokenisedDocument(data, np.asarray(ids, np.int32), np.asarray([*starts, len(data)], np.int32))
        return self._known[doc_id]


def position_items(documents: pa.Table | DocumentTokens, positions: pa.Table | Iterable[dict[str, Any]], tokenizer: Any, frame: Frame, *,
                   horizon_tokens: int = 16) -> list[Item]:
    """One item per row of ``positions``, in its order. The prefix is the document's tokens from ``context_start`` up to ``position``.

    ``horizon_tokens`` bounds how many tokens a prediction may span (the paper's completion runs to the document's end).
    Pass one ``DocumentTokens`` to share tokenised documents between calls. Raises UserError where tokenizer and positions
    disagree about the document's tokens."""
    known = documents if isinstance(documents, DocumentTokens) else DocumentTokens(documents, tokenizer)
    rows = positions.to_pylist() if isinstance(positions, pa.Table) else positions  # pyright: ignore[reportAttributeAccessIssue]
    return [_item(known[row["doc_id"]], row, frame, horizon_tokens) for row in rows]


def _item(document: _TokenisedDocument, row: dict[str, Any], frame: Frame, horizon: int) -> Item:
    position, starts = row["position"], document.starts
    if position >= len(document.ids) or starts[position] != row["byte_start"]:
        raise UserError(f"position {row['position_id']} is not a token of document {row['doc_id']} under this tokenizer; "
                        "run score and select with the tokenizer of the model.")
    first = int(np.searchsorted(starts, row["context_start"]))
    if starts[first] != row["context_start"]:
        raise UserError(f"the context of position {row['position_id']} starts inside a token under this tokenizer; run select with it.")
    end = min(position + horizon, len(document.ids))
    begin = int(starts[position])
    prefix = tuple(document.ids[first:position].tolist())
    boundaries = tuple(int(start) - begin for start in starts[position + 1 : end + 1])
    return Item(row["position_id"], row["doc_id"], position, frame.prompt(prefix), document.data[begin : int(starts[end])], boundaries,
                int(document.ids[position]), row["difficulty"], row["winnable"], row["entropy"], row["split"], prefix)
