"""What the tests of several rooms need: committed tables made by hand, and the sample data."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rpt_core.store.context import Context
from rpt_core.store.files import digest_json
from rpt_core.store.tables import Manifest
from rpt_core.store.workspace import Workspace


def commit_table(workspace: Workspace, slot: str, tables: dict[str, pa.Table | Sequence[dict[str, Any]]],
                 shards: int = 1, key: str = "") -> str:
    """Commit rows under a slot as if its stage had made them, make them current, and return the version."""
    identity = digest_json(["made by a test", slot, key])[:16]
    manifest = Manifest(slot.split(".")[0], slot, identity, f"{identity}-1", 1, {}, {}, {})
    context = Context(workspace, manifest, {}, {})
    try:
        for name, rows in tables.items():
            size = max(1, -(-len(rows) // shards))
            for index in range(shards):
                piece = rows.slice(index * size, size) if isinstance(rows, pa.Table) else list(rows)[index * size : (index + 1) * size]
                context.write(name, piece, index)
        context.commit()
    finally:
        context.close()
    workspace.point(slot, manifest.version)
    return manifest.version


def data_path(name: str) -> Path:
    """A file or folder of the sample data, or a skip that says why."""
    root = Path(os.environ.get("RPT_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    path = (root / name).resolve()
    if not path.exists():
        pytest.skip(f"the sample data {name} is not at hand; set RPT_TEST_DATA to its folder")
    return path
