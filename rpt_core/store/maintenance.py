"""Looking after a workspace: list versions with their lineage, verify what is committed, move pointers, collect garbage.
``push`` and ``pull`` (transfer.py) carry versions to and from any fsspec URL. No torch, no duckdb."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rpt_core.store.errors import NotCommitted
from rpt_core.store.files import read_json, sha256_file, write_json
from rpt_core.store.locks import is_locked, lock
from rpt_core.store.tables import Manifest, Shard
from rpt_core.store.transfer import pull, push, remote_versions
from rpt_core.store.workspace import UNLISTED, Workspace

__all__ = ["Collected", "Problem", "VersionInfo", "gc", "list_versions", "pin", "pins", "pull", "push", "remote_versions", "unpin", "use",
           "verify"]

SORTED_TABLES = {"tokens": ("doc_id", "position"), "positions": ("doc_id", "position"),
                 "eligible_tokens": ("scorer", "tenth", "doc_id", "position")}  # tenth: of a nat, falling

Version = tuple[str, str]  # (slot, version)


# --- list ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VersionInfo:
    """One version as `rpt tables` shows it. ``state`` is committed, running (its lock is held) or left over (killed; the next run
    of the same identity resumes it). ``tables`` maps a table to its rows; ``inputs`` holds "role: slot@version" or "role: model"."""

    slot: str
    version: str
    state: str
    current: bool
    pinned: str
    tables: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    bytes: int = 0
    created: str = ""
    seconds: float = 0.0
    inputs: tuple[str, ...] = ()


def list_versions(workspace: Workspace) -> list[VersionInfo]:
    """Every version of every slot: committed ones oldest first, then those begun."""
    pinned = pins(workspace)
    found = []
    for slot in workspace.slots():
        current = workspace.current(slot)
        for manifest in _manifests(workspace, slot):
            version = manifest.version
            tables = {name: sum(shard.rows for shard in shards) for name, shards in manifest.tables.items()}
            found.append(VersionInfo(slot, version, "committed", version == current, pinned.get((slot, version), ""), tables,
                                     sum(tables.values()), _size(manifest), manifest.created, manifest.seconds,
                                     tuple(_describe_inputs(manifest.inputs))))
        for folder in (folder for running_slot, folder in workspace.running() if running_slot == slot):
            state = "running" if is_locked(_identity_lock(workspace, slot, folder.name)) else "left over"
            found.append(VersionInfo(slot, folder.name, state, False, pinned.get((slot, folder.name), ""), bytes=_folder_size(folder),
                                     inputs=tuple(_describe_inputs(_begun(folder)))))
    return found


def use(workspace: Workspace, slot: str, version: str) -> None:
    """Make ``version`` the slot's current one by hand. UserError when it is not committed."""
    workspace.point(slot, version, by="user")


def _manifests(workspace: Workspace, slot: str) -> Iterator[Manifest]:
    """Manifests of a slot's versions, oldest first; one that is collected meanwhile is passed over."""
    for version in workspace.versions(slot):
        with suppress(NotCommitted):
            yield workspace.manifest(slot, version)


def _describe_inputs(inputs: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    for role, given in inputs.items():
        for one in given:
            yield f"{role}: {one['slot']}@{one['version']}" if "slot" in one else f"{role}: {one.get('model') or one.get('file')}"


def _size(manifest: Manifest) -> int:
    return sum(shard.bytes for shards in manifest.tables.values() for shard in shards) + sum(f["bytes"] for f in manifest.files.values())


def _folder_size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a shard got its name, or an attempt its commit
            size += path.stat().st_size if path.is_file() else 0
    return size


# --- pins ---------------------------------------------------------------------------------------------------------


def pin(workspace: Workspace, slot: str, version: str, why: str) -> None:
    """Keep a version from gc, e.g. because its checkpoint is a registered model; ``why`` is shown in the list."""
    workspace.manifest(slot, version)
    write_json(workspace.path / "pins" / f"{slot}@{version}.json", {"why": why})


def unpin(workspace: Workspace, slot: str, version: str) -> None:
    (workspace.path / "pins" / f"{slot}@{version}.json").unlink(missing_ok=True)


def pins(workspace: Workspace) -> dict[Version, str]:
    """(slot, version) of every pinned version, with the reason."""
    found = {}
    for path in sorted((workspace.path / "pins").glob("*.json")):
        slot, _, version = path.stem.partition("@")
        found[slot, version] = read_json(path)["why"]
    return found


# --- verify -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Something committed that is not as its manifest says. ``file`` is relative to the version's folder."""

    slot: str
    version: str
    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.slot}@{self.version} {self.file}: {self.what}"


def verify(workspace: Workspace, slot: str | None = None, version: str | None = None, *, repair: bool = False,
           on_file: Callable[[str], None] | None = None) -> list[Problem]:
    """Check size, checksum, rows and row order of every committed shard and file, of one slot or version if named.
    With ``repair`` a version whose shards are damaged is taken back: the next run of its stage makes the missing shards anew
    and commits it under the same name. ``on_file`` hears each file's name before it is read."""
    if slot is not None and slot not in workspace.slots():
        raise NotCommitted(f"there is no slot {slot}; `rpt tables` lists what there is.")
    problems: list[Problem] = []
    for one_slot in [slot] if slot else workspace.slots():
        for manifest in [workspace.manifest(one_slot, version)] if version else _manifests(workspace, one_slot):
            found = _verify_version(workspace, manifest, on_file or (lambda _: None))
            if found and not _exists(workspace, manifest):
                continue  # collected while it was read
            if found and repair:
                _take_back(workspace, one_slot, manifest.version, found)
            problems += found
    return problems


def _exists(workspace: Workspace, manifest: Manifest) -> bool:
    return (workspace.version_folder(manifest.slot, manifest.version) / "manifest.json").exists()


def _verify_version(workspace: Workspace, manifest: Manifest, on_file: Callable[[str], None]) -> list[Problem]:
    folder = workspace.version_folder(manifest.slot, manifest.version)
    problems = []

    def check(file: str, size: int, digest: str, shard: Shard | None = None) -> None:
        on_file(f"{manifest.slot}@{manifest.version}/{file}")
        what = _file_trouble(folder / file, size, digest) or (_rows_trouble(folder / file, shard) if shard else "")
        if what:
            problems.append(Problem(manifest.slot, manifest.version, file, what))

    for shards in manifest.tables.values():
        for shard in shards:
            check(shard.file, shard.bytes, shard.sha256, shard)
    for name, file in manifest.files.items():
        check(name, file["bytes"], file["sha256"])
    for name in SORTED_TABLES:
        if name in manifest.tables and not problems:
            problems += [Problem(manifest.slot, manifest.version, file, what)
                         for file, what in _order_trouble(name, manifest.tables[name], folder)]
    return problems


def _file_trouble(path: Path, size: int, digest: str) -> str:
    if not path.exists():
        return "the file is missing"
    if path.stat().st_size != size:
        return f"the file has {path.stat().st_size} bytes instead of {size}"
    return "" if sha256_file(path) == digest else "the checksum differs"


def _rows_trouble(path: Path, shard: Shard) -> str:
    rows = pq.read_metadata(path).num_rows
    return "" if rows == shard.rows else f"the shard has {rows} rows instead of {shard.rows}"


def _order_trouble(name: str, shards: Iterable[Shard], folder: Path) -> Iterator[tuple[str, str]]:
    """Shards that break the table's order over all of it; tokens must also follow each other byte for byte."""
    keys = SORTED_TABLES[name]
    columns = ["entropy" if key == "tenth" else key for key in keys] + (["byte_start", "byte_len"] if name == "tokens" else [])
    last: pa.Table | None = None
    for shard in shards:
        if not shard.rows:
            continue
        for batch in pq.ParquetFile(folder / shard.file).iter_batches(65_536, columns=columns):
            rows = pa.Table.from_batches([batch])
            both = pa.concat_tables([last, rows]) if last else rows
            if not _ascends(both, keys):
                trouble = f"rows are not sorted by {', '.join(keys).replace('tenth', 'falling entropy')}"
            else:
                trouble = _gap(both, first=last is None) if name == "tokens" else ""
            if trouble:
                yield shard.file, trouble
                break
            last = rows.slice(rows.num_rows - 1)


def _ascends(rows: pa.Table, keys: tuple[str, ...]) -> bool:
    """Whether every row comes after the one before it."""
    before, after = rows.slice(0, rows.num_rows - 1), rows.slice(1)
    undecided, ascends = np.ones(after.num_rows, bool), np.zeros(after.num_rows, bool)
    for key in keys:
        if key == "tenth":
            earlier, later = (-np.floor(part["entropy"].to_numpy() * np.float32(10)) for part in (before, after))
            greater, equal = later > earlier, later == earlier
        else:
            greater, equal = (pc.call_function(how, [after[key], before[key]]).to_numpy() for how in ("greater", "equal"))
        ascends |= undecided & greater
        undecided &= equal
    return bool(np.all(ascends))


def _gap(rows: pa.Table, first: bool) -> str:
    """Whether a document's tokens leave out or repeat a byte or a position; ``first`` says no row came before."""
    position, start, length = (rows[name].to_numpy() for name in ("position", "byte_start", "byte_len"))
    same = pc.call_function("equal", [rows["doc_id"].slice(1), rows["doc_id"].slice(0, rows.num_rows - 1)]).to_numpy()
    follows = (position[1:] == position[:-1] + 1) & (start[1:] == start[:-1] + length[:-1])
    begins = np.flatnonzero(~same) + 1
    whole = np.all(follows[same]) and not np.any(position[begins] != 0) and not (first and position[0] != 0)
    return "" if whole else "the tokens of a document have a gap"


def _take_back(workspace: Workspace, slot: str, version: str, problems: list[Problem]) -> None:
    folder = workspace.version_folder(slot, version)
    with lock(_identity_lock(workspace, slot, version)):
        for problem in problems:
            (folder / problem.file).unlink(missing_ok=True)
        if (folder / "parts").exists():  # its parts build on each other: nothing can be redone alone
            for name in ("tables", "files", "parts"):
                shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "manifest.json").replace(folder / UNLISTED)


# --- garbage ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collected:
    """A version that gc removed, or would remove."""

    slot: str
    version: str
    state: str  # committed or left over
    bytes: int


def gc(workspace: Workspace, dry_run: bool = True, keep: Iterable[str] = (),
       on_unlisted: Callable[[], object] | None = None) -> list[Collected]:
    """Remove what nothing needs. Kept are: current versions, pinned ones, those named in ``keep`` ("slot@version"), everything a
    running version reads, all their ancestors, and running versions themselves. A dry run only says what would go.
    Versions first stop existing, then ``on_unlisted`` is called (refresh the catalog there), then their files go: readers that
    look up what exists never meet a half-removed version."""
    with lock(workspace.lock_path("gc")), ExitStack() as held:
        doomed, ours = [], set()
        for one in _garbage(workspace, _needed(workspace, keep)):
            path = _identity_lock(workspace, one.slot, one.version)
            if path not in ours:
                if is_locked(path):
                    continue
                held.enter_context(lock(path))
                ours.add(path)
            if workspace.current(one.slot) != one.version:  # else it was taken up meanwhile
                doomed.append(one)
        if dry_run:
            return doomed
        for one in doomed:
            manifest = workspace.version_folder(one.slot, one.version) / "manifest.json"
            if manifest.exists():
                manifest.replace(manifest.with_name(UNLISTED))
        if on_unlisted:
            on_unlisted()
        trash = workspace.path / "trash"
        for one in doomed:
            trash.mkdir(exist_ok=True)
            workspace.version_folder(one.slot, one.version).rename(trash / f"{one.slot}@{one.version}.{os.getpid()}")
        shutil.rmtree(trash, ignore_errors=True)
        return doomed


def _needed(workspace: Workspace, keep: Iterable[str]) -> set[Version]:
    waiting: list[Version] = list(pins(workspace))
    for reference in keep:
        slot, _, version = reference.partition("@")
        workspace.manifest(slot, version)
        waiting.append((slot, version))
    for slot in workspace.slots():
        current = workspace.current(slot)
        if current:
            waiting.append((slot, current))
    for slot, folder in workspace.running():
        if is_locked(_identity_lock(workspace, slot, folder.name)):
            waiting += _ancestors(_begun(folder))
    needed: set[Version] = set()
    while waiting:
        one = waiting.pop()
        if one in needed:
            continue
        needed.add(one)
        try:
            waiting += _ancestors(workspace.manifest(*one).inputs)
        except NotCommitted:
            continue
    return needed


def _garbage(workspace: Workspace, needed: set[Version]) -> Iterator[Collected]:
    for slot in workspace.slots():
        for manifest in _manifests(workspace, slot):
            if (slot, manifest.version) not in needed:
                yield Collected(slot, manifest.version, "committed", _size(manifest))
    for slot, folder in workspace.running():
        yield Collected(slot, folder.name, "left over", _folder_size(folder))


def _ancestors(inputs: dict[str, list[dict[str, Any]]]) -> list[Version]:
    return [(one["slot"], one["version"]) for given in inputs.values() for one in given if "slot" in one]


def _begun(folder: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        return read_json(folder / "begun.json")["inputs"]
    except FileNotFoundError:
        return {}


def _identity_lock(workspace: Workspace, slot: str, version: str) -> Path:
    return workspace.lock_path(f"{slot}-{version.rsplit('-', 1)[0]}")

