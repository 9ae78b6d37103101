"""Listing, verifying, pointing, collecting, pushing and pulling versions."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from rpt_core.store import maintenance
from rpt_core.store import workspace as workspace_module
from rpt_core.store.context import Context
from rpt_core.store.errors import Corrupt, NotCommitted, UserError
from rpt_core.store.events import read_events
from rpt_core.store.files import digest_json, read_json, sha256_file
from rpt_core.store.locks import lock
from rpt_core.store.stage import Stage, execute
from rpt_core.store.tables import Manifest
from rpt_core.store.transfer import BEGUN
from rpt_core.store.workspace import UNLISTED, Workspace
from tests.helpers import commit_table
from tests.store.test_shards_and_identity import Config, question, write_questions

STAGE = Stage("ingest", 1, Config, (), ("questions",), f"{write_questions.__module__}:write_questions")


def tokens(*documents: tuple[str, int]) -> list[dict[str, Any]]:
    return [{"scorer": "filter", "doc_id": doc_id, "position": p, "token_id": p, "byte_start": 2 * p, "byte_len": 2, "entropy": 1.0,
             "nll": 1.0, "rank": 0, "top_id": 0} for doc_id, n in documents for p in range(n)]


def commit(workspace: Workspace, slot: str, key: str = "", inputs: list[tuple[str, str]] = [], current: bool = True) -> str:  # noqa: B006
    """A version with a shard, a file, and lineage."""
    identity = digest_json([slot, key])[:16]
    described = {f"role{i}": [{"slot": s, "version": v, "table": "questions", "digest": "d"}] for i, (s, v) in enumerate(inputs)}
    described["files"] = [{"file": "/somewhere", "digest": "d"}]
    context = Context(workspace, Manifest(slot.split(".")[0], slot, identity, f"{identity}-1", 1, {}, {}, described), {}, {})
    context.write("questions", [question(i, text=key) for i in range(3)])
    context.file_path("note.txt").write_text(f"{slot} {key}")
    context.commit()
    context.close()
    if current:
        workspace.point(slot, f"{identity}-1")
    return f"{identity}-1"


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "ws")


def names(found: list[Any]) -> set[tuple[str, str]]:
    return {(one.slot, one.version) for one in found}


# --- list, use ----------------------------------------------------------------------------------------------------


def test_the_list_shows_sizes_lineage_pointers_and_unfinished_versions(workspace):
    first = commit(workspace, "ingest", "a")
    second = commit(workspace, "select", "b", [("ingest", first)])
    folder = workspace.version_folder("ingest", "f" * 16 + "-1")
    folder.mkdir(parents=True)
    with lock(workspace.lock_path("ingest-" + "f" * 16)):
        assert {v.state for v in maintenance.list_versions(workspace)} == {"committed", "running"}
    found = {(v.slot, v.version): v for v in maintenance.list_versions(workspace)}
    assert found["ingest", "f" * 16 + "-1"].state == "left over"
    info = found["select", second]
    assert (info.current, info.rows, info.tables) == (True, 3, {"questions": 3})
    assert set(info.inputs) == {f"role0: ingest@{first}", "files: /somewhere"}
    assert info.bytes == sum(p.stat().st_size for p in workspace.version_folder("select", second).rglob("*")
                             if p.is_file() and p.parent.name in ("questions", "files"))


def test_use_moves_the_pointer_to_what_is_committed_only(workspace):
    first, second = commit(workspace, "ingest", "a"), commit(workspace, "ingest", "b")
    assert workspace.current("ingest") == second
    maintenance.use(workspace, "ingest", first)
    assert workspace.current("ingest") == first
    with pytest.raises(UserError, match="not committed"):
        maintenance.use(workspace, "ingest", "0" * 16 + "-1")
    assert workspace.current("ingest") == first


# --- verify -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("damage", "says"), [
    (lambda data: data[:-5], "bytes instead of"),
    (lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:], "checksum differs"), (None, "missing"),
])
def test_a_shard_cut_flipped_or_deleted_is_found_and_named(workspace, damage, says):
    version = commit_table(workspace, "ingest", {"questions": [question(i) for i in range(6)]}, shards=3)
    commit(workspace, "select", "sound")
    assert maintenance.verify(workspace) == []
    path = workspace.version_folder("ingest", version) / "tables" / "questions" / "00001.parquet"
    data = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(data))
    (problem,) = maintenance.verify(workspace)
    assert (problem.slot, problem.version, problem.file) == ("ingest", version, "tables/questions/00001.parquet")
    assert says in problem.what
    assert maintenance.verify(workspace, "select") == []


def test_a_damaged_output_file_is_found(workspace):
    version = commit(workspace, "ingest")
    path = workspace.version_folder("ingest", version) / "files" / "note.txt"
    path.chmod(0o644)
    path.write_text("another text")
    assert [p.file for p in maintenance.verify(workspace, "ingest", version)] == ["files/note.txt"]


@pytest.mark.parametrize(("rows", "says"), [
    (tokens(("b", 3), ("a", 3)), "not sorted"), (tokens(("a", 3))[::-1], "not sorted"),
    ([row for row in tokens(("a", 5)) if row["position"] != 2], "gap"), (tokens(("a", 3))[1:], "gap"),
    ([{**row, "byte_len": 3} for row in tokens(("a", 3))], "gap"),
])
@pytest.mark.parametrize("shards", [1, 2])
def test_tokens_out_of_order_or_with_gaps_are_found(workspace, rows, says, shards):
    commit_table(workspace, "score.filter", {"tokens": rows}, shards=shards)
    problems = maintenance.verify(workspace)
    assert problems
    assert all(says in problem.what for problem in problems)


@pytest.mark.parametrize("shards", [1, 3])
def test_eligible_tokens_out_of_the_order_of_entropy_are_found(workspace, shards):
    rows = [{"scorer": scorer, "entropy": entropy, "doc_id": doc_id, "position": position, "byte_start": 0, "byte_len": 1, "token_id": 0,
             "split": "train", "difficulty": "hard", "winnable": True, "selected": ""}
            for scorer in ("difficulty", "filter") for entropy, doc_id, position in
            ((2.7, "a", 3), (2.75, "b", 0), (1.31, "a", 1), (1.30, "a", 2), (1.35, "b", 1), (0.0, "a", 0))]
    commit_table(workspace, "select", {"eligible_tokens": rows}, shards)
    assert maintenance.verify(workspace) == []
    commit_table(workspace, "select", {"eligible_tokens": [*rows[:4], rows[5], rows[4], *rows[6:]]}, shards, key="wrong")
    (problem, *_) = maintenance.verify(workspace)
    assert "falling entropy" in problem.what


def test_sound_tokens_pass_across_shards(workspace):
    commit_table(workspace, "score.filter", {"tokens": tokens(("a", 5), ("b", 1), ("c", 9))}, shards=4)
    assert maintenance.verify(workspace) == []


def test_repair_lets_the_next_run_make_only_the_damaged_shard_again(workspace):
    version = execute(STAGE, Config(), workspace).manifest.version
    folder = workspace.version_folder("ingest", version) / "tables" / "questions"
    kept, damaged = folder / "00000.parquet", folder / "00001.parquet"
    sound, before = sha256_file(damaged), kept.stat().st_mtime_ns
    damaged.chmod(0o644)
    damaged.write_bytes(b"x")
    assert len(maintenance.verify(workspace, repair=True)) == 1
    assert workspace.versions("ingest") == []
    again = execute(STAGE, Config(), workspace)
    assert not again.cached
    assert again.manifest.version == version
    assert (sha256_file(damaged), kept.stat().st_mtime_ns) == (sound, before)
    assert maintenance.verify(workspace) == []


def test_a_repaired_version_knows_what_was_recorded_and_says_where_it_came_out_otherwise(workspace):
    version = execute(STAGE, Config(), workspace).manifest.version
    folder = workspace.version_folder("ingest", version)
    (folder / "tables" / "questions" / "00001.parquet").unlink()
    maintenance.verify(workspace, repair=True)
    manifest = Manifest("ingest", "ingest", version[:16], version, 1, {}, {}, {})
    context = Context(workspace, manifest, {}, {})
    assert context.recorded
    assert context.recorded.counts == {"written": 6}
    assert [context.has_shard("questions", index) for index in range(2)] == [True, False]
    context.write("questions", [question(99)], 1)
    context.commit()
    context.close()
    said = [event["data"]["text"] for event in read_events(folder / "events.jsonl") if event["type"] == "message"]
    assert len(said) == 1
    assert "00001.parquet was made anew" in said[0]
    assert not (folder / UNLISTED).exists()
    sound = Context(workspace, manifest, {}, {})
    assert sound.recorded is None
    sound.close()


def test_an_unknown_slot_or_version_is_said(workspace):
    commit(workspace, "ingest")
    with pytest.raises(NotCommitted):
        maintenance.verify(workspace, "ingestt")
    with pytest.raises(NotCommitted):
        maintenance.verify(workspace, "ingest", "0" * 16 + "-1")


# --- gc -----------------------------------------------------------------------------------------------------------


def lineage(workspace: Workspace) -> dict[str, str]:
    """ingest a ← select a (current), ingest b ← select b, ingest c (current)."""
    made = {}
    for key in ("a", "b", "c"):
        made[f"ingest {key}"] = commit(workspace, "ingest", key)
    for key in ("b", "a"):
        made[f"select {key}"] = commit(workspace, "select", key, [("ingest", made[f"ingest {key}"])])
    return made


def test_a_dry_run_removes_nothing_and_says_what_a_real_one_then_removes(workspace):
    made = lineage(workspace)
    would = maintenance.gc(workspace)
    assert len(workspace.versions("ingest")) == 3
    assert names(would) == {("ingest", made["ingest b"]), ("select", made["select b"])}
    assert maintenance.gc(workspace, dry_run=False) == would
    assert set(workspace.versions("ingest")) == {made["ingest a"], made["ingest c"]}, "the current select's ancestor stays"
    assert workspace.versions("select") == [made["select a"]]
    assert maintenance.verify(workspace) == []
    assert not (workspace.path / "trash").exists()


@pytest.mark.parametrize("how", ["keep", "pin", "running"])
def test_what_is_named_pinned_or_read_by_a_running_version_stays_with_its_ancestors(workspace, how):
    made = lineage(workspace)
    keep: list[str] = []
    described = {"positions": [{"slot": "select", "version": made["select b"], "table": "positions", "digest": "d"}]}
    running = Manifest("pretrain", "pretrain", "0" * 16, "0" * 16 + "-1", 1, {}, {}, described)
    if how == "keep":
        keep = [f"select@{made['select b']}"]
    elif how == "pin":
        maintenance.pin(workspace, "select", made["select b"], "registered as rpt/1")
        assert maintenance.pins(workspace) == {("select", made["select b"]): "registered as rpt/1"}
    else:
        Context(workspace, running, {}, {}).close()
    with lock(workspace.lock_path("pretrain-" + "0" * 16)):
        assert maintenance.gc(workspace, dry_run=False, keep=keep) == []
    maintenance.unpin(workspace, "select", made["select b"])
    gone = names(maintenance.gc(workspace, dry_run=False))
    assert {("ingest", made["ingest b"]), ("select", made["select b"])} <= gone
    assert (("pretrain", running.version) in gone) == (how == "running"), "a killed attempt whose lock is free goes"


def test_versions_stop_existing_before_the_catalog_is_told_and_files_go_after(workspace):
    made = lineage(workspace)
    shard = workspace.version_folder("ingest", made["ingest b"]) / "tables" / "questions" / "00000.parquet"
    seen: list[tuple[bool, bool]] = []
    maintenance.gc(workspace, dry_run=False, on_unlisted=lambda: seen.append(
        (made["ingest b"] in workspace.versions("ingest"), shard.exists())))
    assert seen == [(False, True)]
    assert not shard.exists()


def test_a_gc_killed_half_way_loses_nothing_a_next_run_needs(workspace):
    version = execute(STAGE, Config(), workspace).manifest.version
    execute(STAGE, Config(count=9), workspace)

    def die() -> None:
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=maintenance.gc, args=(workspace,),
                                                        kwargs={"dry_run": False, "on_unlisted": die})
    process.start()
    process.join()
    assert process.exitcode == 9
    assert execute(STAGE, Config(), workspace).manifest.version == version
    assert maintenance.verify(workspace) == []


def test_forced_versions_of_one_identity_go_together(workspace):
    for force in (False, True):
        execute(STAGE, Config(), workspace, force=force)
    execute(STAGE, Config(count=9), workspace)
    assert len(maintenance.gc(workspace, dry_run=False)) == 2


def test_keeping_what_does_not_exist_is_an_error(workspace):
    lineage(workspace)
    with pytest.raises(UserError):
        maintenance.gc(workspace, dry_run=False, keep=["select@" + "0" * 16 + "-1"])
    assert len(workspace.versions("ingest")) == 3


# --- push and pull ------------------------------------------------------------------------------------------------


def places(tmp_path: Path) -> list[str]:
    return [str(tmp_path / "remote"), f"file://{tmp_path}/remote-url", f"memory://{tmp_path.name}"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_version_and_its_ancestors_come_back_byte_for_byte(workspace, tmp_path, place):
    url = places(tmp_path)[place]
    first = commit(workspace, "ingest", "a")
    second = commit(workspace, "select", "b", [("ingest", first)])
    assert maintenance.push(workspace, "select", second, url, ancestors=True) == [f"select@{second}", f"ingest@{first}"]
    assert maintenance.push(workspace, "select", second, url, ancestors=True) == [], "what lies there is not sent again"
    assert maintenance.remote_versions(url) == [f"ingest@{first}", f"select@{second}"]
    other = Workspace(tmp_path / "other")
    assert maintenance.pull(other, url, "select", second, ancestors=True) == [f"ingest@{first}", f"select@{second}"]
    assert maintenance.verify(other) == []
    assert other.current("select") is None
    for slot, version in (("ingest", first), ("select", second)):
        here, there = (read_json(place.version_folder(slot, version) / "manifest.json") for place in (workspace, other))
        assert here == there
    shard = other.version_folder("select", second) / "tables" / "questions" / "00000.parquet"
    assert shard.stat().st_mode & 0o777 == 0o444
    assert maintenance.pull(other, url, "select", second) == []


def test_without_ancestors_one_version_is_carried(workspace, tmp_path):
    second = commit(workspace, "select", "b", [("ingest", commit(workspace, "ingest", "a"))])
    assert maintenance.push(workspace, "select", second, str(tmp_path / "remote")) == [f"select@{second}"]


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_file_is_refused_on_pull_and_leaves_nothing(workspace, tmp_path, damage):
    version = commit(workspace, "ingest")
    maintenance.push(workspace, "ingest", version, str(tmp_path / "remote"))
    (path,) = (tmp_path / "remote").rglob("00000.parquet")
    data = path.read_bytes()
    path.unlink()
    if damage != "delete":
        path.write_bytes(data[:-1] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
    other = Workspace(tmp_path / "other")
    with pytest.raises(Corrupt, match=r"00000\.parquet"):
        maintenance.pull(other, str(tmp_path / "remote"), "ingest", version)
    assert other.versions("ingest") == []
    assert not any(path.is_file() for path in other.path.rglob("*.parquet"))
    if damage == "flip":  # of the right size: nobody can tell without reading it
        path.unlink()
    assert maintenance.push(workspace, "ingest", version, str(tmp_path / "remote")) == [f"ingest@{version}"], "what is lost is sent again"
    assert maintenance.pull(other, str(tmp_path / "remote"), "ingest", version) == [f"ingest@{version}"]


@pytest.mark.parametrize("same", [True, False])
def test_what_a_push_left_is_kept_only_where_it_was_of_this_build(workspace, tmp_path, same, monkeypatch):
    version = commit(workspace, "ingest")
    remote, sent = tmp_path / "remote", []
    maintenance.push(workspace, "ingest", version, str(remote))
    (shard,), (manifest,) = remote.rglob("00000.parquet"), remote.rglob("manifest.json")
    described = json.loads(manifest.read_text())
    files = {name: [one["bytes"], one["sha256"]] for name, one in described["files"].items()}
    files |= {one["file"]: [one["bytes"], one["sha256"]] for table in described["tables"].values() for one in table["shards"]}
    manifest.unlink()
    if not same:
        files["tables/questions/00000.parquet"][1] = "0" * 64
        shard.chmod(0o644)
        shard.write_bytes(b"\0" * shard.stat().st_size)
    manifest.with_name(BEGUN).write_text(json.dumps(files))
    put = LocalFileSystem.put_file
    monkeypatch.setattr(LocalFileSystem, "put_file", lambda self, *paths, **more: (sent.append(paths[1]), put(self, *paths, **more)))
    maintenance.push(workspace, "ingest", version, str(remote))
    assert any(name.endswith("00000.parquet") for name in sent) is not same
    assert not list(remote.rglob(BEGUN))
    maintenance.pull(Workspace(tmp_path / "other"), str(remote), "ingest", version)


def test_listing_checking_and_refreshing_pass_over_what_is_collected_meanwhile(workspace, monkeypatch):
    """gc renames a manifest between the look at a folder and the reading of it."""
    kept, gone = commit(workspace, "ingest", "a"), commit(workspace, "ingest", "b")
    read = workspace_module.read_json
    folder = workspace.version_folder("ingest", gone)

    def vanishing(path: Path):
        found = read(path)
        if path == folder / "manifest.json":
            path.rename(folder / "manifest.removed.json")
        return found

    for look in (lambda: [info.version for info in maintenance.list_versions(workspace) if info.state == "committed"],
                 lambda: [problem.file for problem in maintenance.verify(workspace)],
                 lambda: [one.version for one in maintenance.gc(workspace) if one.state == "committed"]):
        with monkeypatch.context() as patched:
            patched.setattr(workspace_module, "read_json", vanishing)
            assert gone not in look()
        (folder / "manifest.removed.json").rename(folder / "manifest.json")
    assert workspace.versions("ingest") == [kept, gone]


def test_a_damaged_shard_is_not_pushed(workspace, tmp_path):
    version = commit(workspace, "ingest")
    path = workspace.version_folder("ingest", version) / "tables" / "questions" / "00000.parquet"
    path.chmod(0o644)
    path.write_bytes(b"x")
    with pytest.raises(Corrupt):
        maintenance.push(workspace, "ingest", version, str(tmp_path / "remote"))
    assert maintenance.remote_versions(str(tmp_path / "remote")) == []


def test_a_manifest_that_names_a_file_outside_its_version_is_refused(workspace, tmp_path):
    version = commit(workspace, "ingest")
    maintenance.push(workspace, "ingest", version, str(tmp_path / "remote"))
    (manifest,) = (tmp_path / "remote").rglob("manifest.json")
    manifest.chmod(0o644)
    manifest.write_text(manifest.read_text().replace("tables/questions/00000.parquet", "../../../../escaped.parquet"))
    with pytest.raises(Corrupt, match="outside"):
        maintenance.pull(Workspace(tmp_path / "other"), str(tmp_path / "remote"), "ingest", version)
    assert not list(tmp_path.rglob("escaped.parquet"))


def test_another_build_under_the_same_name_is_not_overwritten(workspace, tmp_path):
    version = commit(workspace, "ingest")
    maintenance.push(workspace, "ingest", version, str(tmp_path / "remote"))
    (manifest,) = (tmp_path / "remote").rglob("manifest.json")
    manifest.chmod(0o644)
    digest = sha256_file(workspace.version_folder("ingest", version) / "files" / "note.txt")
    manifest.write_text(manifest.read_text().replace(digest, "0" * 64))
    with pytest.raises(UserError, match="another build"):
        maintenance.push(workspace, "ingest", version, str(tmp_path / "remote"))


@pytest.mark.parametrize("url", ["nosuchprotocol://x/y"])
def test_places_that_do_not_exist_are_said_in_one_sentence(workspace, tmp_path, url):
    version = commit(workspace, "ingest")
    with pytest.raises(UserError) as error:
        maintenance.push(workspace, "ingest", version, url)
    assert "\n" not in str(error.value)
    with pytest.raises(NotCommitted, match="holds no"):
        maintenance.pull(workspace, str(tmp_path / "empty"), "ingest", "0" * 16 + "-1")
