"""Hub names: parsing, the resolved commit in the identity, streaming, and one sentence when the Hub cannot be had."""

from types import SimpleNamespace

import pytest

from rpt_core.corpus.hub import HubSource, is_hub, parse_hub
from rpt_core.corpus.ingest_config import IngestConfig, source_digests
from rpt_core.store.errors import UserError


@pytest.mark.parametrize(("given", "parsed"), [
    ("hub:KbsdJames/Omni-MATH", HubSource("KbsdJames/Omni-MATH", "", "", "")),
    ("a/b@v1.0", HubSource("a/b", "v1.0", "", "")),
    ("hub:a/b@main:en:test[:10%]", HubSource("a/b", "main", "en", "test[:10%]")),
    ("a/b::validation", HubSource("a/b", "", "", "validation")),
])
def test_names_are_taken_apart(given, parsed):
    assert is_hub(given)
    assert parse_hub(given) == parsed


@pytest.mark.parametrize("given", ["name", "a/b/c", "hub:/a/b", "data/file.jsonl/"])
def test_what_is_neither_a_path_nor_a_hub_name_is_told(given):
    with pytest.raises(UserError, match="neither an absolute path nor a Hub dataset"):
        parse_hub(given)


@pytest.fixture
def fake_hub(monkeypatch, root):
    """The Hub's two calls answered from a local file: what is asked of them is recorded, the streaming is the real one."""
    import datasets
    import huggingface_hub

    calls: list[dict] = []
    real = datasets.load_dataset
    (root / "rows.jsonl").write_text('{"problem": "p1", "solution": "s1"}\n{"problem": "p2", "solution": "s2"}\n')

    def load(repo, config, revision, split, streaming):
        calls.append({"repo": repo, "config": config, "revision": revision, "split": split, "streaming": streaming})
        return real("json", data_files={"train": str(root / "rows.jsonl")}, split=split, streaming=streaming)

    commits = {"main": "a" * 40, "v2": "b" * 40}
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info",
                        lambda self, repo, revision=None: SimpleNamespace(sha=commits[revision or "main"]))
    monkeypatch.setattr(datasets, "load_dataset", load)
    return calls


def test_rows_stream_at_the_resolved_commit_and_the_commit_is_the_identity(fake_hub, ingest, rows):
    outcome = ingest(sources=["hub:org/data"])
    assert sorted(row["text"] for row in rows(outcome)) == ["p1\n\ns1", "p2\n\ns2"]
    assert {row["source"] for row in rows(outcome)} == {"hub:org/data"}
    assert fake_hub == [{"repo": "org/data", "config": None, "revision": "a" * 40, "split": "train", "streaming": True}]
    one, two = (source_digests(IngestConfig(sources=[name])) for name in ("org/data", "org/data@v2"))
    assert list(one.values()) == ["a" * 40]
    assert list(two.values()) == ["b" * 40]


def test_a_missing_split_is_named(fake_hub, ingest):
    with pytest.raises(UserError, match=r"org/data::nosuch could not be read: .*nosuch"):
        ingest(sources=["org/data::nosuch"])


def test_without_the_network_a_hub_name_costs_one_sentence(ingest, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="could not be looked up on the Hub"):
        ingest(sources=["org/data"])
