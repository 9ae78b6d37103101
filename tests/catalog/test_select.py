"""select against an oracle in plain Python, its samples' stability, its errors, and a digest that holds it to its REVISION."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpt_core.catalog import select
from rpt_core.catalog.select_config import STAGE, SelectConfig
from rpt_core.store.errors import UserError
from rpt_core.store.files import digest_json
from rpt_core.store.stage import execute
from rpt_core.store.tables import hash_bytes
from rpt_core.store.workspace import Workspace
from rpt_core.tokens.boxes import can_be_boxed
from tests.catalog import corpus
from tests.helpers import commit_table

SMALL = {"min_context_tokens": 4, "max_prompt_tokens": 24, "train_positions": 50, "dev_positions": 20, "test_positions": 20, "threads": 1}


def run(workspace: Workspace, **settings: Any) -> list[dict[str, Any]]:
    outcome = execute(STAGE, SelectConfig.build("select", {**SMALL, **settings}), workspace)
    return workspace.table("select", outcome.manifest.version, "positions").read().to_pylist()


def oracle(documents: list[dict[str, Any]], config: SelectConfig, seed: int = 0) -> dict[str, dict[str, Any]]:
    """What positions must hold, samples left out, by the words of the design."""
    difficulty_entropy = {(r["doc_id"], r["position"]): r["entropy"] for r in corpus.token_rows(documents, "difficulty", seed)}
    expected = {}
    for document in documents:
        data = document["text"].encode()
        tokens = corpus.token_rows([document], "filter", seed)
        starts = [t["byte_start"] for t in tokens] + [len(data)]
        for p, token in enumerate(tokens):
            if p < config.min_context_tokens or not _is_utf8(data[: starts[p]]):
                continue
            first = max(0, p - config.max_prompt_tokens)
            while not _is_utf8(data[starts[first] : starts[p]]):
                first += 1
            if p - first < config.min_context_tokens:
                continue
            truths = [data[starts[p] : starts[k]] for k in range(p + 1, min(p + config.winnable_tokens, len(tokens)) + 1)]
            entropy = difficulty_entropy[document["doc_id"], p]
            expected[hash_bytes(f"{document['doc_id']}:{starts[p]}".encode())] = {
                "doc_id": document["doc_id"], "position": p, "byte_start": starts[p], "context_start": starts[first],
                "split": document["split"],
                "entropy": entropy, "filter_entropy": token["entropy"], "n_prompt_tokens": p - first,
                "difficulty": "hard" if entropy > 1.5 else "medium" if entropy > 1.0 else "easy" if entropy > 0.5 else "below",
                "winnable": any(_is_utf8(t) and can_be_boxed(t.decode()) for t in truths)}
    return expected


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
        return True
    except UnicodeDecodeError:
        return False


def test_positions_equal_a_plain_python_reading_of_the_rules(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    documents = corpus.commit_corpus(workspace)
    rows = run(workspace, winnable_tokens=2)
    expected = oracle(documents, SelectConfig(**SMALL, winnable_tokens=2))
    found = {row.pop("position_id"): {k: v for k, v in row.items() if k != "selected"} for row in map(dict, rows)}
    assert found == expected
    assert 0 < sum(not row["winnable"] for row in rows) < len(rows)
    assert sum(row["winnable"] for row in run(workspace)) > sum(row["winnable"] for row in rows), "longer boundaries must win more"
    assert any(row["context_start"] > 0 for row in rows)
    assert [(r["doc_id"], r["position"]) for r in rows] == sorted((r["doc_id"], r["position"]) for r in rows)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.lists(st.sampled_from([*corpus.PIECES, "é", "\u0301", "ﷺ"]), min_size=8, max_size=25), min_size=1, max_size=3),
       st.integers(1, 6), st.integers(6, 12))
def test_every_prefix_and_context_is_whole_utf8_whatever_the_text(tmp_path_factory, pieces, min_context, max_prompt):
    workspace = Workspace(tmp_path_factory.mktemp("ws"))
    documents = corpus.commit_corpus(workspace, ["".join(p) + str(i) for i, p in enumerate(pieces)], splits=["train"])
    given_settings = {"selector": "random", "min_context_tokens": min_context, "max_prompt_tokens": max_prompt,
                      "dev_positions": 0, "test_positions": 0}
    expected = oracle(documents, SelectConfig(**{**SMALL, **given_settings}))
    if not any(row["winnable"] for row in expected.values()):
        return
    rows = run(workspace, **given_settings)
    assert {row["position_id"] for row in rows} == set(expected)
    text = {d["doc_id"]: d["text"].encode() for d in documents}
    for row in rows:
        shown = text[row["doc_id"]][row["context_start"] : row["byte_start"]].decode()
        assert shown.encode() == text[row["doc_id"]][row["context_start"] : row["byte_start"]]
        assert min_context <= row["n_prompt_tokens"] <= max_prompt


@pytest.mark.parametrize(("selector", "fits"), [
    ({"selector": "entropy", "min_entropy": 1.2}, lambda row, ranked: row["filter_entropy"] > 1.2),
    ({"selector": "band", "min_entropy": 0.8, "max_entropy": 1.6}, lambda row, ranked: 0.8 < row["filter_entropy"] <= 1.6),
    ({"selector": "top_share", "top_share": 0.1}, lambda row, ranked: row["position_id"] in ranked),
    ({"selector": "random"}, lambda row, ranked: True),
])
def test_each_selector_takes_winnable_training_positions_it_names_first_by_hash(tmp_path, selector, fits):
    workspace = Workspace(tmp_path / "ws")
    corpus.commit_corpus(workspace)
    rows = run(workspace, **selector)
    pool = [row for row in rows if row["split"] == "train" and row["winnable"]]
    top = sorted(pool, key=lambda row: (-row["filter_entropy"], row["position_id"]))[: math.ceil(0.1 * len(pool))]
    candidates = [row for row in pool if fits(row, {r["position_id"] for r in top})]
    first = sorted(candidates, key=lambda row: hash_bytes(f"0:{row['position_id']}".encode(), 64))[: SMALL["train_positions"]]
    assert {row["position_id"] for row in rows if row["selected"] == "train"} == {row["position_id"] for row in first}


def test_a_sample_of_n_is_part_of_a_sample_of_2n_and_of_no_other_seed(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    corpus.commit_corpus(workspace)

    def chosen(**changed: Any) -> dict[str, set[str]]:
        rows = run(workspace, **changed)
        return {split: {r["position_id"] for r in rows if r["selected"] == split} for split in ("train", "dev", "test")}

    small, large = chosen(), chosen(train_positions=100, dev_positions=40, test_positions=40)
    for split in small:
        assert small[split] < large[split]
        assert len(large[split]) == 2 * len(small[split])
    assert chosen(seed=1)["train"] != small["train"]


def test_held_out_samples_hold_the_asked_share_below_the_threshold_and_stay_in_their_split(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    corpus.commit_corpus(workspace)
    rows = run(workspace, below_share=0.25)
    for split in ("dev", "test"):
        sample = [row for row in rows if row["selected"] == split]
        assert {row["split"] for row in sample} == {split}
        assert sum(row["difficulty"] == "below" for row in sample) == 5
        assert len(sample) == 20


def test_counts_in_the_manifest_add_up_to_the_rows(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    documents = corpus.commit_corpus(workspace)
    outcome = execute(STAGE, SelectConfig(**SMALL), workspace)
    counts = outcome.manifest.counts
    rows = workspace.table("select", outcome.manifest.version, "positions").read().to_pylist()
    for split in ("train", "dev", "test"):
        for difficulty in ("below", "easy", "medium", "hard"):
            of_kind = [r for r in rows if (r["split"], r["difficulty"]) == (split, difficulty)]
            assert counts["eligible"][split][difficulty] == len(of_kind)
            assert counts["winnable"][split][difficulty] == sum(r["winnable"] for r in of_kind)
            assert counts["selected"][split][difficulty] == sum(r["selected"] != "" for r in of_kind)
    assert counts["tokens"] == sum(len(corpus.tokenise(d["text"])) for d in documents)
    assert counts["winnable_share"] == pytest.approx(sum(r["winnable"] for r in rows) / len(rows), abs=1e-6)


def test_a_special_token_ends_the_eligible_part_of_its_document(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    documents = corpus.commit_corpus(workspace)
    struck = documents[0]["doc_id"]
    for scorer in ("filter", "difficulty"):
        tokens = corpus.token_rows(documents, scorer)
        for row in tokens:
            if row["doc_id"] == struck and row["position"] == 9:
                row["token_id"] = corpus.SPECIAL
        commit_table(workspace, f"score.{scorer}", {"tokens": tokens, "vocabulary": corpus.vocabulary_rows()}, key="special")
    rows = run(workspace)
    assert max(row["position"] for row in rows if row["doc_id"] == struck) < 9


def test_output_does_not_depend_on_threads_memory_ranges_or_where_a_shard_ends(tmp_path, monkeypatch):
    rows = []
    for name, threads, shard_rows in (("a", 1, 1_000_000), ("b", 2, 37)):
        workspace = Workspace(tmp_path / name)
        corpus.commit_corpus(workspace)
        monkeypatch.setattr(select, "SHARD_ROWS", shard_rows)
        monkeypatch.setattr(select, "RANGE_TOKENS", shard_rows)
        config = SelectConfig.build("select", {**SMALL, "threads": threads, "memory_mib": 64 * threads})
        made = execute(STAGE, config, workspace).manifest
        rows.append([made.counts, *(workspace.table("select", made.version, name).read().to_pylist() for name in STAGE.writes)])
    assert rows[0] == rows[1]


def test_a_killed_run_goes_on_from_its_finished_shards(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path / "ws")
    corpus.commit_corpus(workspace)
    whole = run(workspace)
    monkeypatch.setattr(select, "SHARD_ROWS", 50)
    monkeypatch.setattr(select, "_counts", lambda session: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(workspace, seed=5)
    ((_, folder),) = workspace.running()
    shards = sorted((folder / "tables" / "positions").glob("*.parquet"))
    assert len(shards) > 3
    shards[1].unlink()
    before = shards[0].stat().st_mtime_ns
    monkeypatch.undo()
    monkeypatch.setattr(select, "SHARD_ROWS", 50)
    again = run(workspace, seed=5)
    assert shards[0].stat().st_mtime_ns == before
    assert [r["position_id"] for r in again] == [r["position_id"] for r in whole]


def test_tokenizers_that_differ_in_bytes_are_refused_by_name_and_nothing_is_lost(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    documents = corpus.commit_corpus(workspace)
    kept = execute(STAGE, SelectConfig(**SMALL), workspace).manifest.version
    other = list(corpus.VOCABULARY)
    other[260] = b"{{"
    commit_table(workspace, "score.difficulty", {"tokens": corpus.token_rows(documents, "difficulty"),
                                                 "vocabulary": corpus.vocabulary_rows(entries=other)}, key="other")
    with pytest.raises(UserError, match=r"tokenizers differ in bytes: token 260 is b'}' in one and b'{{' in the other"):
        run(workspace)
    assert workspace.current("select") == kept


def test_scorers_that_saw_other_documents_are_refused(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    documents = corpus.commit_corpus(workspace)
    commit_table(workspace, "score.difficulty", {"tokens": corpus.token_rows(documents[1:], "difficulty"),
                                                 "vocabulary": corpus.vocabulary_rows()}, key="fewer")
    with pytest.raises(UserError, match=documents[0]["doc_id"]):
        run(workspace)


@pytest.mark.parametrize(("splits", "changed", "says"), [
    (["train"], {}, r"dev split holds no eligible position.*ingest\.dev_share"),
    (["train", "dev"], {}, r"test split holds no eligible position.*ingest\.test_share"),
    (["dev", "test"], {}, "train split holds no eligible position"),
    (None, {"min_entropy": 2.69, "train_positions": 5}, "no training position has a filter entropy above 2.69 nats"),
    (None, {"min_context_tokens": 5000, "max_prompt_tokens": 5000}, "no position is eligible"),
])
def test_an_empty_split_or_sample_says_what_to_change(tmp_path, splits, changed, says):
    workspace = Workspace(tmp_path / "ws")
    corpus.commit_corpus(workspace, splits=splits)
    if "min_entropy" in changed:
        changed = {**changed, "selector": "band", "max_entropy": 2.6901}
        says = "at most 2.6901"
    with pytest.raises(UserError, match=says):
        run(workspace, **changed)


@pytest.mark.parametrize(("wrong", "says"), [
    ({"easy_entropy": 1.2}, "must not decrease"), ({"selector": "band", "min_entropy": 2.0, "max_entropy": 1.0}, "band needs"),
    ({"max_prompt_tokens": 2}, "max_prompt_tokens"), ({"min_entropi": 1}, "did you mean select.min_entropy"),
])
def test_settings_that_contradict_each_other_are_refused(wrong, says):
    with pytest.raises(UserError, match=says):
        SelectConfig.build("select", {**SMALL, **wrong})


def test_golden_digest_of_the_output(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    corpus.commit_corpus(workspace)
    positions = run(workspace)
    others = [workspace.table("select", workspace.current("select") or "", name).read().to_pylist() for name in STAGE.writes[1:]]
    found = digest_json([positions, *others])[:16]
    assert found == "083e37e57e461937", "select's output changed: if meant, raise REVISION in select_config.py and set this constant"
