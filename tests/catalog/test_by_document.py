"""``document_of`` and ``tokens_of``: the rows of one document, from no other files than those that may hold it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from rpt_core.catalog import catalog
from rpt_core.catalog.catalog import BY_DOCUMENT, refresh
from rpt_core.catalog.sql import query, run_named
from rpt_core.store.workspace import Workspace
from tests.catalog import corpus
from tests.helpers import commit_table

SHARDS = 4
MACROS = sorted(BY_DOCUMENT.items())


@pytest.fixture
def sharded(tmp_path) -> tuple[Workspace, list[str]]:
    """Documents and two scorers' tokens in several shards each, whose edges fall within documents; the doc_ids in order."""
    workspace = Workspace(tmp_path / "ws")
    documents = corpus.document_rows(corpus.texts())
    commit_table(workspace, "ingest", {"documents": documents, "questions": []}, shards=SHARDS)
    for scorer in ("filter", "difficulty"):
        tokens = {"tokens": corpus.token_rows(documents, scorer), "vocabulary": corpus.vocabulary_rows()}
        commit_table(workspace, f"score.{scorer}", tokens, shards=SHARDS)
    return workspace, [document["doc_id"] for document in documents]


def rows(workspace: Workspace, statement: str, *given: Any) -> list[tuple[Any, ...]]:
    refresh(workspace)
    with duckdb.connect(str(workspace.catalog_path), read_only=True) as connection:
        return sorted(connection.execute(statement, list(given)).fetchall())


def shards_of(workspace: Workspace, table: str) -> dict[Path, set[str]]:
    """The documents of each current shard of ``documents`` or ``tokens``."""
    slots = ["ingest"] if table == "documents" else ["score.filter", "score.difficulty"]
    paths = [path for slot in slots for path in workspace.table(slot, workspace.current(slot), table).paths]
    return {path: set(pq.read_table(path, columns=["doc_id"])["doc_id"].to_pylist()) for path in paths}


@pytest.mark.parametrize(("macro", "table"), MACROS)
def test_the_rows_of_a_document_are_those_of_the_view(sharded, macro, table):
    workspace, doc_ids = sharded
    held = list(shards_of(workspace, "tokens").values())[:SHARDS]
    assert any(one & next_one for one, next_one in pairwise(held)), "a document lies in two shards of a scorer"
    for doc_id in doc_ids:
        expected = rows(workspace, f"FROM {table} WHERE doc_id = ?", doc_id)
        assert expected
        assert rows(workspace, f"FROM {macro}('{doc_id}')") == expected
        assert rows(workspace, f"FROM {macro}(?)", doc_id) == expected, "as a parameter"
    assert rows(workspace, f"FROM {macro}('')") == rows(workspace, f"FROM {table}"), "blank is every document"
    for unknown in ("0" * 32, "zz", "it's not there", "日"):
        assert rows(workspace, f"FROM {macro}(?)", unknown) == []


@pytest.mark.parametrize(("macro", "table"), MACROS)
def test_other_files_are_not_opened(sharded, macro, table):
    workspace, doc_ids = sharded
    wanted = doc_ids[-1]
    expected = rows(workspace, f"FROM {table} WHERE doc_id = ?", wanted)
    others = [path for path, held in shards_of(workspace, table).items() if wanted < min(held) or wanted > max(held)]
    assert others
    for path in others:
        path.unlink()
    assert rows(workspace, f"FROM {macro}('{wanted}')") == expected
    with pytest.raises(duckdb.IOException):
        rows(workspace, f"FROM {table} WHERE doc_id = ?", wanted)


def test_a_damaged_shard_breaks_only_its_own_documents_and_no_refresh(sharded):
    workspace, doc_ids = sharded
    refresh(workspace)
    held = shards_of(workspace, "documents")
    damaged = max(held, key=lambda path: max(held[path]))
    damaged.chmod(0o644)
    damaged.write_bytes(b"PAR1 no footer")
    assert refresh(workspace, force=True)
    assert len(rows(workspace, f"FROM document_of('{doc_ids[0]}')")) == 1
    with pytest.raises(duckdb.Error):
        rows(workspace, f"FROM document_of('{doc_ids[-1]}')")
    catalog.state_path(workspace).unlink()
    assert refresh(workspace), "nor a refresh that never saw its footer"
    damaged.unlink()
    assert refresh(workspace, force=True), "or finds the file gone"


def test_footers_are_read_once(sharded, monkeypatch):
    workspace, doc_ids = sharded
    refresh(workspace)
    read: list[Path] = []
    real = catalog.file_bounds
    monkeypatch.setattr(catalog, "file_bounds", lambda path, column: (read.append(path), real(path, column))[1])
    assert refresh(workspace, force=True)
    assert read == []
    commit_table(workspace, "ingest", {"documents": corpus.document_rows(corpus.texts(4, seed=1)), "questions": []}, key="new")
    assert refresh(workspace)
    assert read == workspace.table("ingest", workspace.current("ingest"), "documents").paths
    assert rows(workspace, f"FROM document_of('{doc_ids[0]}')") == [], "a superseded version is not shown"


@pytest.mark.parametrize("left", ["", "[]", "null", '{"bounds": {"x": 1}}', "{"])
def test_what_a_last_build_left_damaged_is_made_again(sharded, left):
    workspace, doc_ids = sharded
    refresh(workspace)
    catalog.state_path(workspace).write_text(left)
    assert len(rows(workspace, f"FROM document_of('{doc_ids[0]}')")) == 1


def test_an_empty_workspace_has_the_macros(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    for macro, table in MACROS:
        assert rows(workspace, f"FROM {macro}('one')") == rows(workspace, f"FROM {macro}('')") == []
        assert query(workspace, f"FROM {macro}('')").schema == query(workspace, f"FROM {table}").schema


def test_rpt_sql_takes_the_macros_and_the_query_of_a_document_uses_them(sharded):
    workspace, doc_ids = sharded
    (count,) = query(workspace, f"SELECT count(*) AS n FROM tokens_of('{doc_ids[3]}') WHERE scorer = 'filter'")["n"].to_pylist()
    found = run_named(workspace, "tokens_of_document", {"doc_id": doc_ids[3]}).to_pylist()
    assert count == len(found) > 0
    text = query(workspace, f"SELECT text FROM document_of('{doc_ids[3]}')")["text"].to_pylist()[0]
    assert [row["token"] for row in found] == [
        corpus.VOCABULARY[token].decode("utf-8", "replace") for token in corpus.tokenise(text)]
