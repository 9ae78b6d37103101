"""What a stage's ``run(config, context)`` works with: its inputs, its output shards and files, its parts and its events."""

import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rpt_core.store.errors import UserError
from rpt_core.store.events import Events, Listener
from rpt_core.store.files import filling, read_json, sha256_file, write_json
from rpt_core.store.keys import COUNTED, require_unique
from rpt_core.store.models import ModelRef
from rpt_core.store.schemas import TABLES
from rpt_core.store.tables import READ_ONLY, Manifest, ShardWriter, Table, describe_shard, writing_shard
from rpt_core.store.workspace import UNLISTED, Workspace


class Context:
    """One attempt at one version. Shards and files that are already there were finished by an earlier attempt."""

    writes = True  # one of several processes at the same version does, the others only read (rpt_core.training.rank)

    def __init__(self, workspace: Workspace, manifest: Manifest, tables: dict[str, list[Table]], models: dict[str, ModelRef],
                 listeners: tuple[Listener, ...] = ()):
        self.workspace = workspace
        self.manifest = manifest
        self.folder = workspace.version_folder(manifest.slot, manifest.version)
        self.committed = False
        taken_back = self.folder / UNLISTED
        self._tables, self._models = tables, models
        self._begun = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        #: The manifest this version had before ``verify --repair`` took it back; None for a version that was never committed.
        #: Its sound shards are there (``has_shard``), and its ``counts`` are those of all of them, the damaged ones included.
        self.recorded: Manifest | None = Manifest.from_json(read_json(taken_back)) if taken_back.exists() else None
        # what a running version reads, so that gc leaves it alone
        write_json(self.folder / "begun.json", {"slot": manifest.slot, "version": manifest.version, "inputs": manifest.inputs})
        part = self.last_part()
        self.events = Events(self.folder / "events.jsonl", listeners, covered=part["events"] if part else None)

    def handover(self) -> dict[str, Any]:
        """What another process needs to work at the same version, as JSON."""
        tables = {role: [[table.slot, table.version, table.name] for table in found] for role, found in self._tables.items()}
        models = {role: {**asdict(model), "path": str(model.path)} for role, model in self._models.items()}
        return {"workspace": str(self.workspace.path), "manifest": self.manifest.to_json(), "tables": tables, "models": models}

    # --- inputs ---------------------------------------------------------------------------------------------------

    def table(self, role: str) -> Table:
        """The one table of a role."""
        found = self.tables(role)
        if not found:
            raise UserError(f"{self.manifest.stage} was given no {role}.")
        return found[0]

    def tables(self, role: str) -> list[Table]:
        """Every table of a role; empty where an optional input is missing."""
        return self._tables.get(role, [])

    def models(self, role: str) -> list[ModelRef]:
        """Every checkpoint of a role's ``checkpoints`` tables, in table order, steps ascending within a run."""
        if role in self._models:
            return [self._models[role]]
        found = []
        for table in self.tables(role):
            for row in sorted(table.read().to_pylist(), key=lambda row: row["step"]):
                uri = Path(row["uri"])
                path = uri if uri.is_absolute() else self.workspace.path / uri
                found.append(ModelRef(path, row["checkpoint_id"], row["kind"], row["run"], row["step"], row["flops"], row["parent_id"],
                                      row["seed"]))
        return found

    def model(self, role: str = "checkpoint") -> ModelRef:
        """The last checkpoint of a role, or the external model that replaces it."""
        found = self.models(role)
        if not found:
            raise UserError(f"{self.manifest.stage} was given no model: run the stage that trains one, or set {self.manifest.stage}.model.")
        return found[-1]

    # --- output shards --------------------------------------------------------------------------------------------

    def shard_path(self, table: str, index: int) -> Path:
        return self.folder / "tables" / table / f"{index:05d}.parquet"

    def has_shard(self, table: str, index: int) -> bool:
        """An earlier attempt finished it."""
        return self.shard_path(table, index).exists()

    def shard(self, table: str, index: int = 0) -> AbstractContextManager[ShardWriter]:
        """Stream one shard: ``with context.shard("tokens", 3) as out: out.write(batch)``."""
        return writing_shard(table, self.shard_path(table, index))

    def write(self, table: str, rows: pa.Table | Sequence[dict[str, Any]], index: int = 0) -> None:
        """Write one whole shard."""
        with self.shard(table, index) as out:
            out.write(rows)

    # --- output files ---------------------------------------------------------------------------------------------

    def new_folder(self, name: str) -> AbstractContextManager[Path]:
        """Fill a folder under ``files/`` that appears whole or not at all, e.g. a checkpoint."""
        return filling(self.folder / "files" / name)

    def file_path(self, name: str) -> Path:
        """Path of a file or folder under ``files/``."""
        path = self.folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def uri(self, name: str) -> str:
        """``files/name`` relative to the workspace, as stored in ``checkpoints.uri``."""
        return str((self.folder / "files" / name).relative_to(self.workspace.path))

    @property
    def state(self) -> Path:
        """Working state that a resume needs and a commit removes."""
        path = self.folder / "state"
        path.mkdir(exist_ok=True)
        return path

    # --- parts ----------------------------------------------------------------------------------------------------

    def last_part(self) -> dict[str, Any] | None:
        """The last closed part: {index, events, shards, files, state}, or None."""
        parts = sorted((self.folder / "parts").glob("*.json"))
        return read_json(parts[-1]) if parts else None

    def close_part(self, state: dict[str, Any] | None = None) -> None:
        """Vouch for every shard and file finished so far and every event said so far; ``state`` is JSON a resume starts from."""
        last = self.last_part()
        index = last["index"] + 1 if last else 1
        self.events.sync()
        write_json(self.folder / "parts" / f"{index:05d}.json",
                   {"index": index, "events": self.events.seq, "shards": self._shard_files(), "files": self._output_files(),
                    "state": state or {}})

    def resume(self) -> dict[str, Any] | None:
        """State of the last closed part, or None at a fresh start. Removes shards and files no closed part vouches for."""
        part = self.last_part()
        known = set(part["shards"] + part["files"]) if part else set()
        for name in [*self._shard_files(), *self._output_files()]:
            if name not in known:
                (self.folder / name).unlink()
        return part["state"] if part else None

    def _shard_files(self) -> list[str]:
        return sorted(str(p.relative_to(self.folder)) for p in (self.folder / "tables").glob("*/*.parquet") if not p.name.startswith("."))

    def _output_files(self) -> list[str]:
        return sorted(str(p.relative_to(self.folder)) for p in (self.folder / "files").rglob("*") if p.is_file())

    # --- commit ---------------------------------------------------------------------------------------------------

    def commit(self, counts: dict[str, Any] | None = None, tables: Sequence[str] = ()) -> Manifest:
        """Check and describe every shard and file, then write the manifest: from here on the version exists. Raises Corrupt where
        predictions or answers share a key, within a shard or across shards.
        ``tables`` names tables that exist even when they hold no shard. ``counts`` are the stage's own statistics (JSON)."""
        manifest = self.manifest
        for unfinished in (path for where in (".*.tmp", "parts/.*.tmp", "tables/*/.*.tmp") for path in self.folder.glob(where)):
            unfinished.unlink()  # of an attempt that was killed
        shards = {name: [] for name in tables}
        for name in self._shard_files():
            path = self.folder / name
            shards.setdefault(path.parent.name, []).append(describe_shard(path.parent.name, self.folder, path))
        for name in sorted(set(COUNTED) & {name for name, found in shards.items() if found}):
            keys = list(TABLES[name].keys)
            require_unique(name, pa.concat_tables([pq.read_table(self.folder / one.file, columns=keys) for one in shards[name]]))
        manifest.tables = {name: list(found) for name, found in sorted(shards.items())}
        for name in self._output_files():
            path = self.folder / name
            path.chmod(READ_ONLY)
            manifest.files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        manifest.counts = counts or {}
        manifest.created = datetime.now(UTC).isoformat(timespec="microseconds")
        manifest.seconds = round(time.monotonic() - self._begun, 3)
        manifest.attempts = self.events.attempt
        self._compare_with_recorded()
        self.events.sync()
        write_json(self.folder / "manifest.json", manifest.to_json(), READ_ONLY)
        self.committed = True
        (self.folder / UNLISTED).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "state", ignore_errors=True)
        (self.folder / "begun.json").unlink(missing_ok=True)
        return manifest

    def _compare_with_recorded(self) -> None:
        """A repaired shard should say what the lost one said; where it does not, what was made from it is out of date."""
        if not self.recorded:
            return
        before = {shard.file: shard.content for shards in self.recorded.tables.values() for shard in shards}
        for shards in self.manifest.tables.values():
            for shard in shards:
                if before.get(shard.file, shard.content) != shard.content:
                    self.events.message(f"{shard.file} was made anew with other rows than before; what was made from it will run again.")

    def close(self) -> None:
        self.events.close()
