"""The catalog, its marts and the named queries: on an empty workspace, on a filled one, against counts made in plain Python."""

import math
import os
from collections import Counter
from itertools import accumulate, pairwise
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpt_core.catalog import catalog
from rpt_core.catalog.catalog import MARTS, refresh
from rpt_core.catalog.connection import open_duckdb
from rpt_core.catalog.headers import read_header
from rpt_core.catalog.select_config import STAGE, SelectConfig
from rpt_core.catalog.sql import is_truncated, named_queries, query, run_named
from rpt_core.store.context import Context
from rpt_core.store.errors import UserError
from rpt_core.store.maintenance import gc
from rpt_core.store.schemas import TABLES
from rpt_core.store.stage import execute
from rpt_core.store.tables import Manifest
from rpt_core.store.workspace import Workspace
from sql import load, names
from tests.catalog import corpus
from tests.helpers import commit_table

SMALL = {"min_context_tokens": 4, "max_prompt_tokens": 24, "train_positions": 50, "dev_positions": 20, "test_positions": 20, "threads": 1}
LEVELS = {"easy": {"easy", "medium", "hard"}, "medium": {"medium", "hard"}, "hard": {"hard"}}


def fill(workspace: Workspace) -> list[dict[str, Any]]:
    """Everything a pipeline leaves behind, small; returns the positions."""
    corpus.commit_corpus(workspace)
    version = execute(STAGE, SelectConfig.build("select", SMALL), workspace).manifest.version
    positions = workspace.table("select", version, "positions").read().to_pylist()
    train = [p for p in positions if p["selected"] == "train"]
    test = [p for p in positions if p["selected"] == "test"]
    checkpoints = [{"checkpoint_id": f"c{step}", "parent_id": "", "kind": "pretrain", "run": "r", "seed": 1, "step": step,
                    "flops": step * 1e9, "wall_s": step * 2.0,
                    "tokens_trained": step, "tokens_generated": step, "uri": f"c{step}"} for step in (0, 2)]
    rollouts = [{"run": "r", "step": step, "item_kind": "position", "item_id": train[group]["position_id"], "sample": sample,
                 "policy_step": step, "seed": 1, "response": "r", "prediction": None if sample == 2 else "x",
                 "reward": float(group == 0 or (group == 1 and sample == 0)),
                 "components": "{}", "n_tokens": 10 * (sample + 1), "finish": "length" if sample == 2 else "stop", "logprob_gap": None,
                 "kept": group == 1} for step in (0, 1) for group in range(3) for sample in range(3)]
    commit_table(workspace, "pretrain", {"checkpoints": checkpoints, "rollouts": rollouts})
    predictions = [{"checkpoint_id": model["checkpoint_id"], "position_id": p["position_id"], "mode": mode, "sample": 0, "seed": 0,
                    "response": "r", "prediction": "x" if i % 4 else None, "correct": i % 4 != 0 and i % (2 + model["step"]) == 1,
                    "tokens_matched": 1, "n_tokens": 3, "finish": "stop"}
                   for model in checkpoints for mode in ("standard", "reasoning") for i, p in enumerate(test)]
    commit_table(workspace, "evaluate", {"predictions": predictions})
    answers = [{"checkpoint_id": "c2", "benchmark": "generated-choice", "question_id": f"q{i}", "subject": f"s{i % 2}", "mode": "solve",
                "shots": 0, "sample": 0, "response": "r", "extracted": "A" if i else None,
                "correct": i > 1, "n_tokens": 4, "finish": "stop"}
               for i in range(6)]
    commit_table(workspace, "benchmark", {"answers": answers})
    commit_table(workspace, "finetune.rpt", {"checkpoints": [{**checkpoints[1], "checkpoint_id": "f", "kind": "finetune"}], "rollouts": [],
                                             "answers": [{**answers[0], "checkpoint_id": "f"}]})
    return positions


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> tuple[Workspace, list[dict[str, Any]]]:
    workspace = Workspace(tmp_path_factory.mktemp("filled") / "ws")
    return workspace, fill(workspace)


@pytest.fixture
def opened(filled):
    """A plain client's read-only connection, and the positions."""
    refresh(filled[0])
    with duckdb.connect(str(filled[0].catalog_path), read_only=True) as connection:
        yield connection, filled[1]


def rows(connection: duckdb.DuckDBPyConnection, statement: str) -> list[dict[str, Any]]:
    return connection.sql(statement).to_arrow_table().to_pylist()


def test_an_empty_workspace_has_every_view_with_its_columns_and_types(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    refresh(workspace)
    with duckdb.connect(str(workspace.catalog_path), read_only=True) as connection:
        for name, schema in TABLES.items():
            assert connection.sql(f"FROM {name}").to_arrow_table().schema.equals(schema.arrow), name
            assert connection.sql(f"FROM {name}_versions").columns == ["slot", "version", "current", *schema.arrow.names]
            assert connection.sql(f"FROM {name}_live").columns == ["slot", "version", *schema.arrow.names]
        for mart in names("marts"):
            assert rows(connection, f"FROM {mart}") == []


def test_types_are_the_same_on_a_filled_catalog(opened):
    connection, _ = opened
    for name, schema in TABLES.items():
        assert connection.sql(f"FROM {name} LIMIT 1").to_arrow_table().schema.equals(schema.arrow), name


def test_every_view_and_every_column_has_a_comment(opened):
    connection, _ = opened
    assert rows(connection, "SELECT view_name FROM duckdb_views() WHERE NOT internal AND comment IS NULL") == []
    assert rows(connection, "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND comment IS NULL "
                            "AND schema_name = 'main'") == []
    assert rows(connection, "SELECT function_name FROM duckdb_functions() WHERE NOT internal AND comment IS NULL") == []


def test_marts_describe_exactly_the_columns_they_have(opened):
    connection, _ = opened
    assert sorted(MARTS) == names("marts")
    for mart in MARTS:
        assert connection.sql(f"FROM {mart}").columns == list(read_header(load(f"marts/{mart}")).columns), mart


def test_plain_names_are_the_current_versions_of_all_slots_together(opened):
    connection, _ = opened
    assert rows(connection, "SELECT kind, count(*) AS n FROM checkpoints GROUP BY ALL ORDER BY ALL") == [
        {"kind": "finetune", "n": 1}, {"kind": "pretrain", "n": 2}]
    assert rows(connection, "SELECT benchmark, count(*) AS n FROM answers GROUP BY ALL") == [{"benchmark": "generated-choice", "n": 7}]
    counts = rows(connection, "SELECT scorer, count(*) AS n FROM tokens GROUP BY ALL ORDER BY ALL")
    assert [c["scorer"] for c in counts] == ["difficulty", "filter"]
    assert counts[0]["n"] == counts[1]["n"] > 0


def test_two_scorers_with_one_tokenizer_list_its_vocabulary_once(opened):
    connection, _ = opened
    assert rows(connection, "SELECT count(*) AS n FROM vocabulary WHERE bytes <> ''::BLOB") == [{"n": len(corpus.VOCABULARY)}]


def test_versions_hold_every_version_and_say_which_is_current(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    old = commit_table(workspace, "ingest", {"documents": corpus.document_rows(["one"])}, key="old")
    new = commit_table(workspace, "ingest", {"documents": corpus.document_rows(["two", "three"])}, key="new")
    found = query(workspace, "SELECT version, current, count(*) AS n FROM documents_versions GROUP BY ALL ORDER BY n").to_pylist()
    assert found == [{"version": old, "current": False, "n": 1}, {"version": new, "current": True, "n": 2}]
    assert query(workspace, "SELECT count(*) AS n FROM documents").to_pylist() == [{"n": 2}]
    workspace.point("ingest", old)
    assert query(workspace, "SELECT count(*) AS n FROM documents").to_pylist() == [{"n": 1}]


def test_live_views_show_closed_parts_of_a_running_version_and_nothing_unclosed(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    context = Context(workspace, Manifest("ingest", "ingest", "0" * 16, "0" * 16 + "-1", 1, {}, {}, {}), {}, {})
    context.write("documents", corpus.document_rows(["closed"]), 0)
    context.close_part()
    context.write("documents", corpus.document_rows(["open"]), 1)
    assert query(workspace, "SELECT text FROM documents_live").to_pylist() == [{"text": "closed 0"[:-2]}]
    assert query(workspace, "SELECT count(*) AS n FROM documents").to_pylist() == [{"n": 0}]
    context.close_part()
    assert query(workspace, "SELECT count(*) AS n FROM documents_live").to_pylist() == [{"n": 2}]
    context.commit()
    context.close()
    assert query(workspace, "SELECT count(*) AS n FROM documents_live").to_pylist() == [{"n": 0}]


def test_an_older_version_without_a_newer_column_reads_as_null(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    version = commit_table(workspace, "ingest", {"documents": corpus.document_rows(["one"])})
    folder = workspace.version_folder("ingest", version)
    (shard,) = (folder / "tables" / "documents").glob("*.parquet")
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    import pyarrow.parquet as pq
    older = pq.read_table(shard).drop_columns(["n_bytes"])
    for path in (shard, manifest):
        path.unlink()
    pq.write_table(older, shard)
    manifest.write_text(text.replace('"n_bytes": "int64",', ""))
    assert query(workspace, "SELECT n_bytes, text FROM documents").to_pylist() == [{"n_bytes": None, "text": "one"}]


def test_refresh_rebuilds_only_when_something_changed_and_replaces_the_file_whole(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    assert refresh(workspace)
    assert not refresh(workspace)
    with duckdb.connect(str(workspace.catalog_path), read_only=True) as reader:
        inode = os.stat(workspace.catalog_path).st_ino
        commit_table(workspace, "ingest", {"documents": corpus.document_rows(["one"])})
        assert refresh(workspace)
        assert os.stat(workspace.catalog_path).st_ino != inode
        assert rows(reader, "SELECT count(*) AS n FROM documents") == [{"n": 0}], "what a reader opened stays as it was"
    assert sorted(p.name for p in workspace.path.iterdir() if "catalog" in p.name) == ["catalog.duckdb", "catalog.json"]
    workspace.catalog_path.unlink()
    assert refresh(workspace)


def test_a_refresh_that_dies_leaves_the_old_catalog(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path / "ws")
    refresh(workspace)
    commit_table(workspace, "ingest", {"documents": corpus.document_rows(["one"])})
    monkeypatch.setattr(catalog, "_create_mart", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        refresh(workspace)
    with duckdb.connect(str(workspace.catalog_path), read_only=True) as reader:
        assert rows(reader, "SELECT count(*) AS n FROM documents") == [{"n": 0}]
    monkeypatch.undo()
    assert query(workspace, "SELECT count(*) AS n FROM documents").to_pylist() == [{"n": 1}]


def test_a_catalog_replaced_while_it_is_opened_is_opened_again(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path / "ws")
    refresh(workspace)
    real = duckdb.connect

    def torn(*given, **more):
        if given and given[0] == str(workspace.catalog_path):
            monkeypatch.undo()
            refresh(workspace, force=True)
            raise duckdb.IOException("No more data remaining in MetadataReader")
        return real(*given, **more)

    monkeypatch.setattr(duckdb, "connect", torn)
    limits = {"memory_mib": 64, "threads": 1, "temporary": None, "read_only": True}
    with open_duckdb(workspace.catalog_path, **limits) as reader:
        assert rows(reader, "SELECT count(*) AS n FROM documents") == [{"n": 0}]
    workspace.catalog_path.write_bytes(b"no catalog")
    with pytest.raises(duckdb.IOException, match="not a valid"):
        open_duckdb(workspace.catalog_path, **limits)


def test_paths_with_quotes_and_spaces_are_no_trouble(tmp_path):
    workspace = Workspace(tmp_path / "it's a \"work\" space")
    commit_table(workspace, "ingest", {"documents": corpus.document_rows(["one"])})
    assert query(workspace, "SELECT text FROM documents").to_pylist() == [{"text": "one"}]


@pytest.mark.parametrize("mart", ["filtered_tokens", "hardest_tokens", "token_outcomes"])
def test_asking_a_mart_for_one_document_gathers_no_other(opened, mart):
    """A macro that is a subquery would be computed for every row asked for at once: 10^8 tokens did not fit in memory."""
    connection, _ = opened
    plan = "".join(text for _, text in connection.execute(f"EXPLAIN FROM {mart} WHERE doc_id = 'one'").fetchall()).lower()
    assert "delim" not in plan


# --- marts --------------------------------------------------------------------------------------------------------


def test_filtered_tokens_has_one_row_per_eligible_token_with_its_text_and_at_most_80_bytes_before_it(opened):
    connection, positions = opened
    found = {row["position_id"]: row for row in rows(connection, "FROM filtered_tokens")}
    text = {d["doc_id"]: d["text"].encode() for d in rows(connection, "SELECT doc_id, text FROM documents")}
    assert set(found) == {p["position_id"] for p in positions}
    for p in positions:
        row, data = found[p["position_id"]], text[p["doc_id"]]
        assert row["entropy"] == p["filter_entropy"]
        assert (row["selected"], row["difficulty"], row["split"]) == (p["selected"], p["difficulty"], p["split"])
        before = data[max(0, p["byte_start"] - 80) : p["byte_start"]]
        assert row["context"] == before.decode("utf-8", "ignore")
        token = corpus.VOCABULARY[row["token_id"]]
        assert row["token"] == (token.decode() if _is_utf8(token) else "\ufffd")


def _is_utf8(data: bytes) -> bool:
    try:
        return bool(data.decode()) or True
    except UnicodeDecodeError:
        return False


def test_filtered_tokens_at_filters_by_the_named_scorer(opened):
    connection, positions = opened
    for scorer, column in (("filter", "filter_entropy"), ("difficulty", "entropy")):
        found = {row["position_id"] for row in rows(connection, f"FROM filtered_tokens_at('{scorer}', 1.25)")}
        assert found == {p["position_id"] for p in positions if p[column] > 1.25}


def test_eligible_tokens_are_the_positions_by_both_scorers_in_the_order_of_entropy(opened):
    connection, positions = opened
    found = rows(connection, "FROM eligible_tokens")
    shared = ("doc_id", "position", "byte_start", "split", "difficulty", "winnable", "selected")
    expected = [{**{name: p[name] for name in shared}, "scorer": scorer, "entropy": p[column]} for p in positions
                for scorer, column in (("filter", "filter_entropy"), ("difficulty", "entropy"))]
    expected.sort(key=lambda row: (row["scorer"], -math.floor(np.float32(row["entropy"]) * np.float32(10)), row["doc_id"], row["position"]))
    assert [{name: row[name] for name in expected[0]} for row in found] == expected
    texts = {d["doc_id"]: d["text"].encode() for d in rows(connection, "SELECT doc_id, text FROM documents")}
    for row in found:
        assert texts[row["doc_id"]][row["byte_start"]:][: row["byte_len"]] == corpus.VOCABULARY[row["token_id"]]


def test_tokens_above_any_threshold_are_counted_by_split(opened):
    """Thresholds between tenths, at them, at entropies that occur and just beside them, below and above all."""
    connection, positions = opened
    statement = load("queries/tokens_above_threshold")
    edges = [n / 10 for n in (0, 3, 7, 12, 23)] + [float(np.float32(n) / np.float32(10)) for n in (3, 7, 23)]
    for scorer, column in (("filter", "filter_entropy"), ("difficulty", "entropy")):
        seen = [p[column] for p in positions[:6]]
        for threshold in [-1.0, 1.25, 3.0, *edges, *seen, *np.nextafter(seen, 0), *np.nextafter(edges, 9)]:
            found = connection.execute(statement, {"scorer": scorer, "min_entropy": float(threshold)}).fetchall()
            above = Counter(p["split"] for p in positions if p[column] > threshold)
            assert found == sorted(above.items()), threshold


def test_counts_of_tenths_hold_every_eligible_position_of_each_scorer(opened):
    connection, positions = opened
    found = {(row["scorer"], row["split"], row["tenth"]): row["tokens"] for row in rows(connection, "FROM eligible_counts")}
    assert found == Counter((scorer, p["split"], math.floor(np.float32(p[column]) * np.float32(10))) for p in positions
                            for scorer, column in (("filter", "filter_entropy"), ("difficulty", "entropy")))


CHARACTERS = st.sampled_from(["a", " ", "\n", "\x00", "\x7f", "\x80", "é", "\u07ff", "\u0800", "日", "\uffff", "🙂", "\U0010ffff"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text(CHARACTERS | st.characters(exclude_categories=["Cs"]), max_size=120), st.integers(0, 400),
                          st.integers(1, 9)), min_size=1, max_size=40))
def test_text_of_bytes_is_cut_at_characters_only(filled, given_ranges):
    ranges = pa.table({"number": range(len(given_ranges)), "text": [text for text, _, _ in given_ranges],
                      "start": pa.array([start % (len(text.encode()) + 1) for text, start, _ in given_ranges], pa.int32()),
                      "length": pa.array([length for _, _, length in given_ranges], pa.int16())})
    refresh(filled[0])
    with duckdb.connect(str(filled[0].catalog_path), read_only=True) as connection:
        connection.register("given_ranges", ranges)
        found = rows(connection, "SELECT text_of(encode(text), start, length) AS token, text_before(encode(text), start) AS context "
                                 "FROM given_ranges ORDER BY number")
    for one, row in zip(ranges.to_pylist(), found, strict=True):
        data, start = one["text"].encode(), one["start"]
        whole = decoded(data[:start]) is not None  # else the range begins inside a character
        expected = decoded(data[start : start + one["length"]]) if whole else None
        assert row["token"] == ("\ufffd" if expected is None else expected)
        contexts = [decoded(data[max(0, start - length) : start]) for length in (80, 79, 78, 77)]
        assert row["context"] == next((text for text in contexts if text is not None), None)


def decoded(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def test_a_document_is_shown_token_by_token(filled):
    workspace, positions = filled
    found = run_named(workspace, "tokens_of_document", {"doc_id": positions[0]["doc_id"]}).to_pylist()
    text = query(workspace, "SELECT text FROM documents WHERE doc_id = $d", {"d": positions[0]["doc_id"]})["text"][0].as_py()
    assert [row["token_id"] for row in found] == corpus.tokenise(text)
    assert [row["position"] for row in found] == list(range(len(found)))


def test_a_blank_shows_the_first_document_and_no_other(filled):
    workspace, _ = filled
    found = run_named(workspace, "tokens_of_document", {}).to_pylist()
    first = query(workspace, "SELECT text FROM documents LIMIT 1")["text"][0].as_py()
    assert [row["token_id"] for row in found] == corpus.tokenise(first)


def workspace_of_tokens(path, words: list[str]) -> Workspace:
    """One document, whose tokens are the words."""
    ends = list(accumulate(len(word.encode()) for word in words))
    workspace = Workspace(path / "ws")
    documents = corpus.document_rows(["".join(words)])
    commit_table(workspace, "ingest", {"documents": documents, "questions": []})
    tokens = [{"scorer": "difficulty", "doc_id": documents[0]["doc_id"], "position": i, "token_id": 0, "byte_start": start,
               "byte_len": end - start, "entropy": 1.0, "nll": 1.0, "rank": 0, "top_id": 0}
              for i, (start, end) in enumerate(pairwise([0, *ends]))]
    commit_table(workspace, "score.difficulty", {"tokens": tokens, "vocabulary": corpus.vocabulary_rows()})
    return workspace


def test_a_long_document_is_shown_in_little_memory_and_so_are_tokens_longer_than_a_piece_of_it(tmp_path):
    """DuckDB copies what a range is cut from once for every row: 1 MB, 2,048 rows at a time, is four times the limit."""
    words = ["日本" * 4 + " ", "naïve" * 4 + " ", "the" * 8 + " ", "🙂" * 6 + " "] * 10_000
    words.append("long" * 8_000)
    workspace = workspace_of_tokens(tmp_path, words)
    found = run_named(workspace, "tokens_of_document", {}, memory_mib=512).to_pylist()
    assert [row["token"] for row in found] == words


@pytest.mark.parametrize("size", [0, 4095, 4096, 4097, 8192])
def test_a_token_of_no_bytes_is_empty_wherever_the_pieces_of_a_document_end(tmp_path, size):
    words = ["", *"a" * size, ""]
    found = run_named(workspace_of_tokens(tmp_path, words), "tokens_of_document", {}).to_pylist()
    assert [row["token"] for row in found] == words


def test_difficulty_summary_cumulates_as_the_paper_does(opened):
    connection, positions = opened
    for row in rows(connection, "FROM difficulty_summary"):
        kinds = LEVELS.get(row["difficulty"], {"below"} if row["difficulty"] == "below" else {"below", *LEVELS["easy"]})
        of_split = [p for p in positions if p["split"] == row["split"]]
        of_kind = [p for p in of_split if p["difficulty"] in kinds]
        assert row["positions"] == len(of_kind)
        assert row["winnable"] == sum(p["winnable"] for p in of_kind)
        assert row["selected"] == sum(p["selected"] != "" for p in of_kind)
        assert row["share"] == pytest.approx(len(of_kind) / len(of_split))
        assert row["mean_entropy"] == pytest.approx(sum(p["entropy"] for p in of_kind) / len(of_kind))


def test_hardest_tokens_are_the_top_1000_by_difficulty_entropy(opened):
    connection, positions = opened
    top = sorted(positions, key=lambda p: (-p["entropy"], p["doc_id"], p["position"]))[:1000]
    assert [row["position_id"] for row in rows(connection, "FROM hardest_tokens")] == [p["position_id"] for p in top]


def test_entropy_histogram_counts_every_scored_token_once(opened):
    connection, _ = opened
    for scorer in ("filter", "difficulty"):
        bins = rows(connection, f"FROM entropy_histogram WHERE scorer = '{scorer}'")
        scored = [t["entropy"] for t in rows(connection, f"SELECT entropy FROM tokens WHERE scorer = '{scorer}' AND entropy IS NOT NULL")]
        assert sum(b["tokens"] for b in bins) == len(scored)
        assert sum(b["share"] for b in bins) == pytest.approx(1)
        for b in bins:
            assert b["tokens"] == sum(b["bin_start"] <= e < b["bin_start"] + 0.1 - 1e-12 for e in scored)


def test_accuracy_by_difficulty_equals_a_count_in_python(opened):
    connection, positions = opened
    by_id = {p["position_id"]: p for p in positions}
    predictions = rows(connection, "FROM predictions")
    found = rows(connection, "FROM accuracy_by_difficulty")
    assert {(r["checkpoint_id"], r["step"], r["kind"]) for r in found} == {("c0", 0, "pretrain"), ("c2", 2, "pretrain")}
    for row in found:
        kinds = LEVELS.get(row["difficulty"], {"below"} if row["difficulty"] == "below" else {"below", *LEVELS["easy"]})
        mine = [p for p in predictions if (p["checkpoint_id"], p["mode"]) == (row["checkpoint_id"], row["mode"])
                and by_id[p["position_id"]]["difficulty"] in kinds]
        assert row["predictions"] == len(mine)
        assert row["accuracy"] == pytest.approx(sum(p["correct"] for p in mine) / len(mine))
        assert row["unparsed_share"] == pytest.approx(sum(p["prediction"] is None for p in mine) / len(mine))


def test_reward_by_step_counts_groups_and_their_variance(opened):
    connection, _ = opened
    for row in rows(connection, "FROM reward_by_step"):
        assert (row["rollouts"], row["groups"]) == (9, 3)
        assert row["mean_reward"] == pytest.approx(4 / 9)
        assert row["kept_reward"] == pytest.approx(1 / 3)
        assert (row["zero_variance_share"], row["all_right_share"], row["all_wrong_share"]) == pytest.approx((2 / 3, 1 / 3, 1 / 3))
        assert (row["unparsed_share"], row["truncated_share"], row["mean_tokens"]) == pytest.approx((1 / 3, 1 / 3, 20))
        assert row["mean_logprob_gap"] is None


def test_token_outcomes_has_one_row_per_position_model_and_mode(opened):
    connection, positions = opened
    found = rows(connection, "FROM token_outcomes")
    keys = {(r["checkpoint_id"], r["mode"], r["position_id"]) for r in found}
    assert len(keys) == len(found) == 4 * sum(p["selected"] == "test" for p in positions)


# --- named queries and query() ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("queries"))
def test_every_named_query_runs_on_an_empty_and_a_filled_workspace(name, filled, tmp_path_factory):
    empty = Workspace(tmp_path_factory.getbasetemp() / "empty")
    nothing, something = run_named(empty, name), run_named(filled[0], name)
    assert something.column_names == nothing.column_names
    assert something.num_rows > 0
    assert named_queries()[name].help.endswith((".", "?"))


def test_named_queries_take_their_parameters_from_strings(filled):
    found = run_named(filled[0], "hardest_tokens_in_context", {"top": "3", "min_entropy": "2", "split": "train"}).to_pylist()
    assert len(found) == 3
    assert all(row["split"] == "train" and row["entropy"] > 2 for row in found)


def test_wins_and_losses_finds_the_positions_that_changed(filled):
    found = run_named(filled[0], "wins_and_losses", {"mode": "reasoning", "top": 1000}).to_pylist()
    wins, losses = (sum(row["outcome"] == kind for row in found) for kind in ("win", "loss"))
    before, after = ({i for i in range(20) if i % 4 and i % (2 + step) == 1} for step in (0, 2))
    assert (wins, losses) == (len(after - before), len(before - after))


@pytest.mark.parametrize(("name", "params", "says"), [
    ("hardest_tokens_in_contex", {}, "did you mean hardest_tokens_in_context"),
    ("hardest_tokens_in_context", {"topp": 1}, "did you mean top"),
    ("hardest_tokens_in_context", {"top": "many"}, "top is of kind integer"),
])
def test_wrong_names_and_parameters_are_named(filled, name, params, says):
    with pytest.raises(UserError, match=says):
        run_named(filled[0], name, params)


def test_the_query_of_the_readme_answers(filled):
    found = query(filled[0], "select difficulty, count(*) from positions group by all").to_pylist()
    assert {row["difficulty"] for row in found} == {"below", "easy", "medium", "hard"}
    assert sum(row["count_star()"] for row in found) == len(filled[1])


def test_rows_are_capped_and_the_result_says_so(filled):
    cut = query(filled[0], "SELECT range AS n FROM range(100000)", max_rows=10)
    assert (cut.num_rows, is_truncated(cut)) == (10, True)
    assert not is_truncated(query(filled[0], "SELECT range AS n FROM range(10)", max_rows=10))


def test_sums_come_back_as_plain_integers_where_they_fit(filled):
    result = query(filled[0], "SELECT sum(n) AS small, sum(n::HUGEINT * 10000000000000000000) AS large FROM range(10) AS t (n)")
    assert result.schema.field("small").type == pa.int64()
    assert result.to_pylist() == [{"small": 45, "large": 450000000000000000000}]


def test_queries_go_on_while_versions_are_collected(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    for number in range(4):
        commit_table(workspace, "ingest", {"documents": corpus.document_rows([str(number)])}, key=str(number))
    assert query(workspace, "SELECT count(*) AS n FROM documents_versions").to_pylist() == [{"n": 4}]
    gc(workspace, dry_run=False)  # without telling the catalog
    assert query(workspace, "SELECT count(*) AS n FROM documents_versions").to_pylist() == [{"n": 1}]
