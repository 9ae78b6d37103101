"""What may go wrong with the tables: `select` killed, two runs at once, a full disk, a clock that goes back, readers beside it all.

`make test` kills `select` at three seeded moments, `make test-full` at twenty; the readers read for a fifth of the time."""

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from flows.profile import configure, load_profile
from rpt_core.catalog.catalog import refresh
from rpt_core.catalog.connection import open_duckdb
from rpt_core.store import context as context_module
from rpt_core.store import maintenance
from rpt_core.store.errors import UserError
from rpt_core.store.events import read_events
from rpt_core.store.locks import lock
from rpt_core.store.stage import execute
from rpt_core.store.tables import Manifest
from rpt_core.store.workspace import Workspace
from tests.catalog import corpus
from tests.faults.test_kill import MOMENTS, PROFILE, ROOT, kill_at, random_of
from tests.helpers import commit_table

pytestmark = pytest.mark.xdist_group("faults")


def run_select(workspace: Workspace, **changed: Any) -> Manifest:
    stage, config = configure(load_profile(str(PROFILE)), "select")
    return execute(stage, type(config).build("select", {**config.model_dump(), **changed}), workspace).manifest


def start(workspace: Workspace, **limits: Any) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "tests.faults.child", str(workspace.path), str(PROFILE), "select"], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **limits)


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Workspace:
    """Documents and both scorers' tokens, enough of them that a kill finds `select` at work."""
    workspace = Workspace(tmp_path_factory.mktemp("scored") / "ws")
    corpus.commit_corpus(workspace, corpus.texts(80, 100))
    return workspace


@pytest.fixture(scope="module")
def whole(scored, tmp_path_factory) -> Manifest:
    """What an undisturbed run commits."""
    return run_select(copy(scored, tmp_path_factory.mktemp("whole")))


def copy(workspace: Workspace, folder: Path) -> Workspace:
    shutil.copytree(workspace.path, folder / "ws")
    return Workspace(folder / "ws")


def shards(manifest: Manifest) -> dict[str, list[tuple[str, str, str]]]:
    return {name: [(s.file, s.sha256, s.content) for s in found] for name, found in manifest.tables.items()}


# --- select killed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", MOMENTS)
def test_a_killed_select_ends_with_the_same_tables(scored, whole, tmp_path, number):
    workspace = copy(scored, tmp_path)
    attempts = kill_at(workspace, "select", float(random_of("select", number).uniform(0.0, 1.0)) * whole.seconds)
    again = run_select(workspace)
    assert shards(again) == shards(whole)
    assert again.attempts == attempts
    assert maintenance.verify(workspace) == []
    assert not list(workspace.path.rglob(".*.tmp")), "nothing half written is left"
    assert not (workspace.version_folder("select", again.version) / "state").exists()


@pytest.mark.parametrize(("table", "how"), [("positions", "cut"), ("eligible_tokens", "flip"), ("positions", "delete")])
def test_a_damaged_table_is_named_and_made_anew_alone(scored, whole, tmp_path, table, how):
    workspace = copy(scored, tmp_path)
    version = run_select(workspace).version
    folder = workspace.version_folder("select", version) / "tables"
    damaged = folder / table / "00000.parquet"
    others = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet") if path != damaged}
    data = bytearray(damaged.read_bytes())
    damaged.unlink()
    if how != "delete":
        data[len(data) // 2] ^= 1
        damaged.write_bytes(data if how == "flip" else data[:-7])
    (problem,) = maintenance.verify(workspace, repair=True)
    assert problem.file == f"tables/{table}/00000.parquet"
    assert shards(run_select(workspace)) == shards(whole)
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert maintenance.verify(workspace) == []
    said = [e["data"]["text"] for e in read_events(folder.parent / "events.jsonl") if e["type"] == "message"]
    assert not [text for text in said if "made anew" in text], "it says what it said before"


# --- two runs, full disk, clock -----------------------------------------------------------------------------------


def test_of_two_runs_at_once_the_second_waits_and_finds_it_done(scored, whole, tmp_path):
    workspace = copy(scored, tmp_path)
    children = [start(workspace) for _ in range(2)]
    versions = set()
    for child in children:
        out, error = child.communicate(timeout=120)
        assert child.returncode == 0, error
        versions.add(out.strip())
    (version,) = versions
    again = workspace.manifest("select", version)
    assert (again.attempts, shards(again)) == (1, shards(whole))


def test_a_disk_that_fills_up_ends_select_and_the_next_run_goes_on(scored, whole, tmp_path):
    """A limit on file sizes stands for the full disk: the kernel refuses the bytes, whoever writes them."""
    workspace = copy(scored, tmp_path)
    small = min(shard.bytes for found in whole.tables.values() for shard in found) // 2

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (small, small))

    child = start(workspace, preexec_fn=limit)
    _, error = child.communicate(timeout=120)
    assert child.returncode == 1, error
    assert workspace.versions("select") == []
    assert workspace.current("select") is None
    assert not list(workspace.path.glob("versions/select/*/tables/*/*.parquet")), "no shard is there that is not whole"
    assert shards(run_select(workspace)) == shards(whole)


@pytest.mark.parametrize("at", ["manifest.json", "00000.parquet"])
def test_no_space_left_while_committing_loses_nothing(scored, whole, tmp_path, monkeypatch, at):
    workspace = copy(scored, tmp_path)
    real = os.replace

    def full(source: Any, target: Any, **more: Any) -> None:
        if str(target).endswith(at) and "/select/" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target, **more)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        run_select(workspace)
    monkeypatch.undo()
    assert workspace.current("select") is None
    assert shards(run_select(workspace)) == shards(whole)


def test_a_clock_that_goes_back_changes_no_order_and_loses_nothing(scored, tmp_path, monkeypatch):
    """Versions of one identity are ordered by number, pointers and gc by lineage, events by sequence: none by the clock."""
    workspace = copy(scored, tmp_path)
    first = run_select(workspace).version

    class Past(context_module.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return super().now(tz).replace(year=2001)

    monkeypatch.setattr(context_module, "datetime", Past)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    second = run_select(workspace, train_positions=64).version
    stage, config = configure(load_profile(str(PROFILE)), "select")
    forced = execute(stage, config, workspace, force=True).manifest.version
    assert forced == f"{first[:-2]}-2"
    assert workspace.find("select", first[:-2]) == forced, "the newest of an identity has the highest number, whatever the clock says"
    assert run_select(workspace).version == workspace.current("select") == forced
    refresh(workspace)
    with duckdb.connect(str(workspace.catalog_path), read_only=True) as connection:
        assert connection.execute("SELECT version FROM versions WHERE slot = 'select' AND current").fetchall() == [(forced,)]
    gone = {one.version for one in maintenance.gc(workspace, dry_run=False)}
    assert gone == {first, second}, "gc asks what is needed, not how old it is"
    assert workspace.versions("select") == [forced]
    events = list(read_events(workspace.version_folder("select", forced) / "events.jsonl"))
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)


def test_a_lock_ends_with_its_holder_not_with_the_clock(tmp_path):
    path = tmp_path / "one.lock"
    ready, leave = multiprocessing.Event(), multiprocessing.Event()

    def hold() -> None:
        with lock(path):
            ready.set()
            leave.wait()

    holder = multiprocessing.get_context("fork").Process(target=hold)
    holder.start()
    ready.wait()
    os.utime(path, (0, 0))
    waited: list[int] = []
    assert holder.pid
    with lock(path, on_wait=lambda: (waited.append(1), os.kill(holder.pid or 0, signal.SIGKILL))):
        pass
    holder.join()
    assert waited


# --- readers beside writers ---------------------------------------------------------------------------------------


def blocked_clock() -> float:
    """Seconds this thread neither computed nor waited for a processor: what is left is waiting for others."""
    waited_for_processor = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return time.monotonic() - time.thread_time() - waited_for_processor


def read_in_a_loop(path: Path, allowed: dict[str, set[int]], leave: Any, answers: Any) -> None:
    """Open the catalog as `rpt sql` does, count, compare; the longest block, how often, and what was wrong."""
    longest, rounds, wrong = 0.0, 0, []
    while not leave.is_set():
        for name, right in allowed.items():
            begun = blocked_clock()
            try:
                with open_duckdb(path, memory_mib=256, threads=1, temporary=None, read_only=True) as connection:
                    count = (connection.execute(f"SELECT count(doc_id) FROM {name}").fetchone() or (-1,))[0]
                if count not in right:
                    wrong.append(f"{name}: {count}")
            except (duckdb.Error, OSError) as error:
                wrong.append(f"{name}: {error}")
            longest = max(longest, blocked_clock() - begun)
            rounds += 1
    answers.put((longest, rounds, wrong))


@pytest.mark.parametrize("times", [pytest.param(4, id="short"), pytest.param(40, id="long", marks=pytest.mark.full)])
def test_eight_readers_meet_no_error_no_wrong_count_and_no_wait_while_stages_and_gc_run(scored, tmp_path, times):
    """Scores are committed and `select` and gc run ``times`` times, while eight processes open the catalog and count."""
    free = os.getloadavg()[0] < 2 * (os.cpu_count() or 1)  # on a machine overloaded by others the disk alone blocks for a second
    workspace = copy(scored, tmp_path)
    filtered = workspace.table("score.filter", workspace.current("score.filter") or "", "tokens").read()
    both = filtered.num_rows + workspace.table("score.difficulty", workspace.current("score.difficulty") or "", "tokens").rows
    contexts = (16, 24)
    positions = {workspace.table("select", run_select(workspace, min_context_tokens=n).version, "positions").rows for n in contexts}
    assert len(positions) == 2, "readers must be able to see either"
    refresh(workspace)
    allowed = {"positions": positions, "eligible_tokens": {2 * n for n in positions}, "tokens": {both}}
    spawn = multiprocessing.get_context("spawn")
    answers, leave = spawn.Queue(), spawn.Event()
    still, quiet = copy(workspace, tmp_path / "still"), spawn.Queue()  # a reader where nobody writes: what a busy disk alone costs
    refresh(still)
    readers = [spawn.Process(target=read_in_a_loop, args=(workspace.catalog_path, allowed, leave, answers)) for _ in range(8)]
    readers.append(spawn.Process(target=read_in_a_loop, args=(still.catalog_path, allowed, leave, quiet)))
    for reader in readers:
        reader.start()
    removed = 0
    try:
        for number in range(times):
            scores = {"tokens": filtered, "vocabulary": corpus.vocabulary_rows()}
            commit_table(workspace, "score.filter", scores, shards=4, key=f"again {number}")
            refresh(workspace)
            run_select(workspace, min_context_tokens=contexts[number % 2], seed=number)
            refresh(workspace)
            removed += len(maintenance.gc(workspace, dry_run=False, on_unlisted=lambda: refresh(workspace)))
    finally:
        leave.set()
    found, (by_itself, _, none) = [answers.get(timeout=120) for _ in readers[1:]], quiet.get(timeout=120)
    for reader in readers:
        reader.join()
    assert [wrong for _, _, wrong in found if wrong] == none == []
    assert min(rounds for _, rounds, _ in found) >= 3
    assert removed >= times
    longest = max(longest for longest, _, _ in found)
    assert longest < 1.0 + by_itself or not free, f"a reader was blocked for {longest:.2f} s, one left alone for {by_itself:.2f} s"


def test_a_version_that_is_gone_is_said_in_one_sentence(scored, tmp_path):
    workspace = copy(scored, tmp_path)
    with pytest.raises(UserError, match="not committed"):
        maintenance.use(workspace, "select", "0" * 16 + "-1")
