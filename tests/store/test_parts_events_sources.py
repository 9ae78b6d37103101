"""Parts of long stages, the events that go with them, and what a stage may read from outside the workspace."""

import json
import os

import pytest

from rpt_core.store.context import Context
from rpt_core.store.errors import UserError
from rpt_core.store.events import Events, read_events
from rpt_core.store.locks import is_locked, lock
from rpt_core.store.sources import allow_source, resolve_source
from rpt_core.store.tables import Manifest
from rpt_core.store.workspace import Workspace
from tests.store.test_shards_and_identity import question


def begin(workspace: Workspace) -> Context:
    return Context(workspace, Manifest("pretrain", "pretrain", "0" * 16, "0" * 16 + "-1", 1, {}, {}, {}), {}, {})


def test_resume_keeps_what_a_closed_part_vouches_for_and_removes_the_rest(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    context = begin(workspace)
    context.write("questions", [question(1)], 0)
    with context.new_folder("model") as folder:
        (folder / "weights").write_text("old")
    context.close_part({"step": 5})
    context.write("questions", [question(2)], 1)
    context.file_path("stray").write_text("x")
    context.close()
    again = begin(workspace)
    assert again.resume() == {"step": 5}
    assert again.has_shard("questions", 0)
    assert not again.has_shard("questions", 1)
    assert (again.folder / "files" / "model" / "weights").read_text() == "old"
    assert not (again.folder / "files" / "stray").exists()
    again.close_part({"step": 6})
    assert begin(workspace).resume() == {"step": 6}


def test_a_resume_without_a_closed_part_starts_from_nothing(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    context = begin(workspace)
    context.write("questions", [question(1)], 0)
    assert context.resume() is None
    assert not context.has_shard("questions", 0)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    context = begin(Workspace(tmp_path / "ws"))

    def fill_and_fail() -> None:
        with context.new_folder("model") as folder:
            (folder / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill_and_fail()
    assert list((context.folder / "files").iterdir()) == []


def test_a_running_version_says_what_it_reads_and_forgets_it_at_the_commit(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    manifest = Manifest("pretrain", "pretrain", "0" * 16, "0" * 16 + "-1", 1, {}, {}, {"positions": [{"slot": "select", "version": "v"}]})
    context = Context(workspace, manifest, {}, {})
    begun = context.folder / "begun.json"
    assert json.loads(begun.read_text())["inputs"] == manifest.inputs
    context.commit()
    assert not begun.exists()


def test_events_an_unclosed_part_said_are_dropped_so_that_a_resume_doubles_nothing(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    context = begin(workspace)
    context.events.metrics(1, {"loss": 1.0})
    context.close_part()
    context.events.metrics(2, {"loss": 2.0})
    context.close()
    again = begin(workspace)
    again.events.metrics(2, {"loss": 2.5})
    again.close()
    found = [(e["attempt"], e["step"], e["data"]["loss"]) for e in read_events(again.folder / "events.jsonl") if e["type"] == "metrics"]
    assert found == [(1, 1, 1.0), (2, 2, 2.5)]


def test_a_line_cut_by_a_kill_is_left_out_and_numbering_goes_on(tmp_path):
    path = tmp_path / "events.jsonl"
    events = Events(path)
    events.message("whole")
    events.close()
    with open(path, "a") as file:
        file.write('{"attempt": 1, "seq": 3, "ty')
    heard: list[int] = []
    again = Events(path, (lambda event: heard.append(event["seq"]),))
    again.message("next")
    again.close()
    assert [(e["attempt"], e["seq"], e["type"]) for e in read_events(path)] == [
        (1, 1, "attempt"), (1, 2, "message"), (2, 3, "attempt"), (2, 4, "message")]
    assert heard == [3, 4]


def test_locks_exclude_other_descriptors_and_are_free_after(tmp_path):
    path = tmp_path / "x.lock"
    assert not is_locked(path)
    with lock(path):
        assert is_locked(path)
    assert not is_locked(path)


@pytest.fixture
def roots(tmp_path, monkeypatch):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "file.txt").write_text("x")
    monkeypatch.setenv("RPT_SOURCES", str(inside))
    return inside, outside


def test_sources_are_read_from_declared_roots_only(roots):
    inside, outside = roots
    assert resolve_source(inside / "file.txt") == (inside / "file.txt").resolve()
    for path, says in ((outside / "file.txt", "outside the allowed roots"),
                       (inside / ".." / "outside" / "file.txt", "outside the allowed roots"),
                       (inside / "none.txt", "does not exist"), ("file.txt", "not an absolute path"), (f"{inside}suffix", "outside")):
        with pytest.raises(UserError, match=says):
            resolve_source(path)


def test_a_symlink_leads_out_of_no_root(roots):
    inside, outside = roots
    (inside / "link").symlink_to(outside / "file.txt")
    (inside / "folder").symlink_to(outside)
    for path in (inside / "link", inside / "folder" / "file.txt"):
        with pytest.raises(UserError, match="outside the allowed roots"):
            resolve_source(path)


def test_a_path_typed_at_the_command_line_becomes_a_root_once(roots, monkeypatch):
    _, outside = roots
    allow_source(outside)
    allow_source(outside)
    assert resolve_source(outside / "file.txt").exists()
    assert os.environ["RPT_SOURCES"].count(str(outside)) == 1


def test_without_declared_roots_nothing_may_be_read(roots, monkeypatch):
    monkeypatch.delenv("RPT_SOURCES")
    with pytest.raises(UserError, match="RPT_SOURCES"):
        resolve_source(roots[0] / "file.txt")
