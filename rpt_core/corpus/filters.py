"""Filters between reader and writer: validity, normalisation, exact de-duplication, splits. Each counts what it takes away.
Memory is hashes, never texts."""

import heapq
import unicodedata
from collections.abc import Iterator

from rpt_core.corpus.documents import Document, Report
from rpt_core.store.tables import hash_bytes


def usable(documents: Iterator[Document], report: Report, max_document_bytes: int) -> Iterator[Document]:
    """Pass on texts that are not empty, hold no NUL and no half surrogate, and fit the size cap; report the others."""
    for document in documents:
        text = document.text
        if not text.strip():
            report.bad("empty", document.where, "an empty text")
        elif "\0" in text:
            report.bad("nul", document.where, f"a NUL character at {text.index(chr(0))}")
        else:
            try:
                size = len(text.encode())
            except UnicodeEncodeError as error:
                report.bad("not_utf8", document.where, f"half of a surrogate pair at character {error.start}")
                continue
            if size > max_document_bytes:
                report.bad("too_long", document.where, f"a document of {size} bytes (max_document_bytes is {max_document_bytes})")
            else:
                yield document


def normalised(documents: Iterator[Document], form: str) -> Iterator[Document]:
    """Bring texts to NFC (Qwen's tokenizers do so themselves, and byte spans must be those of the text), or leave them; set doc_id."""
    for document in documents:
        if form == "nfc" and not unicodedata.is_normalized("NFC", document.text):
            document.text = unicodedata.normalize("NFC", document.text)
        document.doc_id = hash_bytes(document.text.encode())
        yield document


def distinct(documents: Iterator[Document], report: Report) -> Iterator[Document]:
    """The first document of every doc_id."""
    seen: set[int] = set()
    for document in documents:
        key = int(document.doc_id, 16)
        if key in seen:
            report.count("duplicates")
            continue
        seen.add(key)
        yield document


def place(doc_id: str) -> float:
    """A document's place in [0, 1) by its hash."""
    return int(doc_id, 16) / 16 ** len(doc_id)


def smallest(doc_ids: Iterator[str], n: int) -> frozenset[str]:
    """The ``n`` smallest distinct hashes."""
    kept: list[int] = []  # negated, so that the heap's head is the largest kept
    members: set[int] = set()
    for doc_id in doc_ids:
        key = int(doc_id, 16)
        if key in members:
            continue
        if len(kept) < n:
            heapq.heappush(kept, -key)
            members.add(key)
        elif key < -kept[0]:
            members.discard(-heapq.heappushpop(kept, -key))
            members.add(key)
    return frozenset(f"{key:016x}" for key in members)


def with_split(documents: Iterator[Document], dev_share: float, test_share: float, held_out: frozenset[str] | None) -> Iterator[Document]:
    """Smallest hashes are test, largest dev, the rest train: a document keeps its split when others are added. ``held_out``
    replaces the test share by the documents named (the paper's 200). Documents that bring their split keep it."""
    for document in documents:
        if not document.split:
            where = place(document.doc_id)
            test = where < test_share if held_out is None else document.doc_id in held_out
            document.split = "test" if test else "dev" if where >= 1 - dev_share else "train"
        yield document
