"""The workspace: one absolute folder that holds every version, pointer and lock. Nothing depends on the working directory.

    versions/<slot>/<identity>-<n>/   manifest.json, tables/<table>/00000.parquet, files/…, events.jsonl (state/, parts/ while running)
    pointers/<slot>.json              the current version of a slot
    locks/                            one per identity, one for the pointers, one for the catalog
    catalog.duckdb                    views for people (rpt_core.catalog)

A slot is a stage, or a stage under a name: ``ingest``, ``score.filter``, ``control.ntp``."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rpt_core.store.errors import NotCommitted, UserError
from rpt_core.store.files import read_json, write_json
from rpt_core.store.locks import lock
from rpt_core.store.tables import Manifest, Table

UNLISTED = "manifest.removed.json"  # a manifest under this name no longer makes its version exist
SLOT = re.compile(r"[a-z_]+(\.[a-z0-9_]+)?")


class Workspace:
    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        if not self.path.is_absolute():
            raise UserError(f"the workspace {path} is not an absolute path; set RPT_HOME to one.")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"the workspace {self.path} is a file; set RPT_HOME to a folder.")
        self.path.mkdir(parents=True, exist_ok=True)

    @classmethod
    def from_environment(cls) -> "Workspace":
        """The folder named by RPT_HOME; UserError where it is not set (a worker must not guess)."""
        home = os.environ.get("RPT_HOME")
        if not home:
            raise UserError("RPT_HOME is not set; name the workspace folder in it (the `rpt` command defaults to ./rpt-workspace).")
        return cls(home)

    @property
    def catalog_path(self) -> Path:
        return self.path / "catalog.duckdb"

    def lock_path(self, name: str) -> Path:
        return self.path / "locks" / f"{name}.lock"

    def version_folder(self, slot: str, version: str) -> Path:
        if not SLOT.fullmatch(slot) or not re.fullmatch(r"[0-9a-f]{16}-\d+", version):
            raise UserError(f"{slot}@{version} does not name a version; `rpt tables` lists them.")
        return self.path / "versions" / slot / version

    def slots(self) -> list[str]:
        folder = self.path / "versions"
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.exists() else []

    def versions(self, slot: str) -> list[str]:
        """Committed versions of a slot, oldest first; what is collected while they are read is left out."""
        folder = self.path / "versions" / slot
        found = []
        for entry in folder.iterdir() if folder.exists() else ():
            with suppress(FileNotFoundError, NotADirectoryError):
                found.append((read_json(entry / "manifest.json")["created"], entry.name))
        return [name for _, name in sorted(found)]

    def running(self) -> Iterator[tuple[str, Path]]:
        """(slot, folder) of versions begun and not committed."""
        for slot in self.slots():
            for entry in sorted((self.path / "versions" / slot).iterdir()):
                if entry.is_dir() and not (entry / "manifest.json").exists():
                    yield slot, entry

    def manifest(self, slot: str, version: str) -> Manifest:
        try:
            return Manifest.from_json(read_json(self.version_folder(slot, version) / "manifest.json"))
        except FileNotFoundError:
            raise NotCommitted(f"{slot}@{version} is not committed; `rpt tables` lists what is.") from None

    def table(self, slot: str, version: str, name: str) -> Table:
        manifest = self.manifest(slot, version)
        if name not in manifest.tables:
            raise UserError(f"{slot}@{version} holds no table {name}; it holds {', '.join(manifest.tables) or 'none'}.")
        return Table(name, slot, version, self.version_folder(slot, version), tuple(manifest.tables[name]))

    def current(self, slot: str) -> str | None:
        """The version the slot's pointer names, or None."""
        if not SLOT.fullmatch(slot):
            raise UserError(f"{slot} does not name a slot; `rpt tables` lists them.")
        path = self.path / "pointers" / f"{slot}.json"
        return read_json(path)["version"] if path.exists() else None

    def point(self, slot: str, version: str, by: str = "run") -> None:
        """Make ``version`` the slot's current one."""
        self.manifest(slot, version)
        pointer = self.path / "pointers" / f"{slot}.json"
        with lock(self.lock_path("pointers")):
            for unfinished in pointer.parent.glob(f".{pointer.name}.*.tmp"):  # of a process that was killed
                unfinished.unlink()
            write_json(pointer, {"version": version, "by": by})

    def find(self, slot: str, identity: str) -> str | None:
        """The newest committed version of an identity, or None."""
        numbers = [int(v.rsplit("-", 1)[1]) for v in self.versions(slot) if v.startswith(identity + "-")]
        return f"{identity}-{max(numbers)}" if numbers else None
