"""Carrying committed versions to and from any fsspec URL (a folder, s3://, gs://, …), by manifest: the files first, checked against
their checksums, the manifest last, so that on neither side a version exists before it is whole."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from rpt_core.store.errors import Corrupt, NotCommitted, UserError
from rpt_core.store.files import read_json, sha256_file
from rpt_core.store.locks import lock
from rpt_core.store.tables import READ_ONLY
from rpt_core.store.workspace import Workspace

BEGUN = "push.begun.json"  # beside a version that is being pushed: what its files are going to be
Listener = Callable[[str, int, int], object]  # file, its number, of how many


def push(workspace: Workspace, slot: str, version: str, url: str, *, ancestors: bool = False, on_file: Listener | None = None) -> list[str]:
    """Copy a version, and with ``ancestors`` everything it was made from, to ``url``. Files that an earlier push of the same build
    left there are not sent again, and what a whole version has lost is. Returns the versions sent or mended, "slot@version".
    Raises Corrupt for a file that no longer matches its manifest."""
    storage, root = _open(url)
    sent = []
    for one_slot, one_version in _lineage(lambda *one: _local_manifest(workspace, *one), slot, version, ancestors):
        manifest = _local_manifest(workspace, one_slot, one_version)
        folder, target = workspace.version_folder(one_slot, one_version), _remote_folder(root, one_slot, one_version)
        files = _contents(manifest)
        whole = storage.exists(f"{target}/manifest.json")
        if whole and _contents(_remote_manifest(storage, url, root, one_slot, one_version)) != files:
            raise UserError(f"{url} holds another build of {one_slot}@{one_version}; push to another place.")
        missing = _not_there(storage, target, files, whole)
        if whole and not missing:
            continue
        storage.makedirs(target, exist_ok=True)
        storage.pipe_file(f"{target}/{BEGUN}", json.dumps(files, sort_keys=True).encode())
        for number, (name, (_, digest)) in enumerate(sorted(files.items()), 1):
            if not (folder / name).exists() or sha256_file(folder / name) != digest:
                raise Corrupt(f"{one_slot}@{one_version} {name} no longer matches its checksum; `rpt tables verify` tells more.")
            if name in missing:
                storage.makedirs(str(PurePosixPath(f"{target}/{name}").parent), exist_ok=True)
                storage.put_file(str(folder / name), f"{target}/{name}")
            if on_file:
                on_file(name, number, len(files))
        for name in ("events.jsonl", "manifest.json"):
            if (folder / name).exists():
                storage.put_file(str(folder / name), f"{target}/{name}")
        storage.rm_file(f"{target}/{BEGUN}")
        sent.append(f"{one_slot}@{one_version}")
    return sent


def _not_there(storage: Any, target: str, files: dict[str, tuple[int, str]], whole: bool) -> set[str]:
    """Files to send: those that are not there in their size; all, where what is there may be of another build."""
    if not whole:
        try:
            begun = json.loads(storage.cat_file(f"{target}/{BEGUN}"))
        except (FileNotFoundError, ValueError):
            return set(files)
        if begun != json.loads(json.dumps(files)):
            return set(files)
    return {name for name, (size, _) in files.items()
            if not (storage.exists(f"{target}/{name}") and storage.size(f"{target}/{name}") == size)}


def pull(workspace: Workspace, url: str, slot: str, version: str, *, ancestors: bool = False, on_file: Listener | None = None) -> list[str]:
    """Copy a version, and with ``ancestors`` everything it was made from, from ``url`` into the workspace. Every file is checked
    before the version exists here; pointers do not move (``use`` moves them). Returns the versions fetched, "slot@version"."""
    storage, root = _open(url)
    fetched = []
    lineage = _lineage(lambda *one: _remote_manifest(storage, url, root, *one), slot, version, ancestors)
    for one_slot, one_version in reversed(lineage):
        if (workspace.version_folder(one_slot, one_version) / "manifest.json").exists():
            continue
        manifest = _remote_manifest(storage, url, root, one_slot, one_version)
        incoming = workspace.path / "incoming" / f"{one_slot}@{one_version}.{os.getpid()}"
        try:
            _fetch(storage, _remote_folder(root, one_slot, one_version), manifest, incoming, on_file)
            _take_in(workspace, one_slot, one_version, incoming)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        fetched.append(f"{one_slot}@{one_version}")
    return fetched


def remote_versions(url: str) -> list[str]:
    """The versions that lie at ``url``, "slot@version"."""
    storage, root = _open(url)
    found = [str(path).split("/")[-3:-1] for path in storage.glob(f"{root}/versions/*/*/manifest.json")]
    return sorted(f"{slot}@{version}" for slot, version in found)


def _fetch(storage: Any, source: str, manifest: dict[str, Any], incoming: Path, on_file: Listener | None) -> None:
    files = _contents(manifest)
    for number, (name, (size, digest)) in enumerate(sorted(files.items()), 1):
        path = incoming / name
        if not path.resolve().is_relative_to(incoming.resolve()):
            raise Corrupt(f"the manifest names the file {name}, which lies outside its version.")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            storage.get_file(f"{source}/{name}", str(path))
        except FileNotFoundError:
            raise Corrupt(f"{source}/{name} is missing; push the version again.") from None
        if path.stat().st_size != size or sha256_file(path) != digest:
            raise Corrupt(f"{source}/{name} does not match its checksum; remove it there and push the version again.")
        path.chmod(READ_ONLY)
        if on_file:
            on_file(name, number, len(files))
    if storage.exists(f"{source}/events.jsonl"):
        storage.get_file(f"{source}/events.jsonl", str(incoming / "events.jsonl"))
    storage.get_file(f"{source}/manifest.json", str(incoming / "manifest.json"))
    (incoming / "manifest.json").chmod(READ_ONLY)
    for path in sorted(incoming.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _take_in(workspace: Workspace, slot: str, version: str, incoming: Path) -> None:
    final = workspace.version_folder(slot, version)
    with lock(workspace.lock_path(f"{slot}-{version.rsplit('-', 1)[0]}")):
        if (final / "manifest.json").exists():
            return
        if final.exists():  # an attempt that was killed here: the whole version replaces it
            shutil.rmtree(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        incoming.rename(final)


def _lineage(manifest_of: Callable[[str, str], dict[str, Any]], slot: str, version: str, ancestors: bool) -> list[tuple[str, str]]:
    """The version, then what it was made from, nearest first."""
    found: list[tuple[str, str]] = []
    waiting = [(slot, version)]
    while waiting:
        one = waiting.pop(0)
        if one in found:
            continue
        found.append(one)
        if ancestors:
            waiting += [(given["slot"], given["version"]) for role in manifest_of(*one)["inputs"].values()
                        for given in role if "slot" in given]
    return found


def _contents(manifest: dict[str, Any]) -> dict[str, tuple[int, str]]:
    """Size and checksum of every file a manifest names."""
    shards = {shard["file"]: (shard["bytes"], shard["sha256"]) for table in manifest["tables"].values() for shard in table["shards"]}
    return shards | {name: (file["bytes"], file["sha256"]) for name, file in manifest["files"].items()}


def _open(url: str) -> tuple[Any, str]:
    try:
        storage, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url} needs a package that is not installed: {error}.") from None
    except ValueError as error:
        raise UserError(f"{url} is not a place to push to or pull from: {error}.") from None
    return storage, str(root).rstrip("/")


def _remote_folder(root: str, slot: str, version: str) -> str:
    return f"{root}/versions/{slot}/{version}"


def _local_manifest(workspace: Workspace, slot: str, version: str) -> dict[str, Any]:
    path = workspace.version_folder(slot, version) / "manifest.json"
    if not path.exists():
        raise NotCommitted(f"{slot}@{version} is not committed here; `rpt tables` lists what is.")
    return read_json(path)


def _remote_manifest(storage: Any, url: str, root: str, slot: str, version: str) -> dict[str, Any]:
    path = f"{_remote_folder(root, slot, version)}/manifest.json"
    try:
        manifest = json.loads(storage.cat_file(path))
    except FileNotFoundError:
        raise NotCommitted(f"{url} holds no {slot}@{version}.") from None
    except ValueError:
        raise Corrupt(f"the manifest of {slot}@{version} at {url} is damaged; push the version again.") from None
    if (manifest.get("slot"), manifest.get("version")) != (slot, version):
        raise Corrupt(f"the manifest of {slot}@{version} at {url} belongs to another version.")
    return manifest
