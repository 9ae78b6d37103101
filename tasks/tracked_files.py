"""Which parts of a committed version MLflow receives whole (small tables, plots, pages) and which by address (token tables, weights)."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rpt_core.store.schemas import TABLES
from rpt_core.store.tables import Manifest
from rpt_core.store.workspace import Workspace

SHOWN_FILES = {".html", ".png", ".svg", ".json", ".md", ".csv", ".yaml", ".txt"}
LARGEST_FILE = 64 * 2**20  # bytes; larger uploads through a tracking server time out
INLINE_TABLES = ("fits", "pattern_shares", "checkpoints")
INLINE_ROWS = 500


def flat_numbers(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a nested mapping under ``prefix/key/key``, with characters MLflow takes in a metric's name."""
    found: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}/" + "".join(c if c.isalnum() or c in "_-. /" else "_" for c in str(key))
        if isinstance(value, Mapping):
            found |= flat_numbers(name, value)
        elif isinstance(value, (int, float)) and math.isfinite(value):
            found[name] = float(value)
    return found


def artifact_files(manifest: Manifest) -> list[str]:
    """Files of a version small enough to send and meant for people; model folders go by address."""
    models = {str(Path(name).parent) for name in manifest.files if name.endswith(".safetensors")}
    return [name for name, file in manifest.files.items()
            if Path(name).suffix in SHOWN_FILES and file["bytes"] <= LARGEST_FILE
            and not any(str(Path(name).parent) == model or str(Path(name).parent).startswith(model + "/") for model in models)]


def inline_tables(workspace: Workspace, manifest: Manifest) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Small tables of results, whole."""
    for name in INLINE_TABLES:
        if name in manifest.tables and sum(shard.rows for shard in manifest.tables[name]) <= INLINE_ROWS:
            yield name, workspace.table(manifest.slot, manifest.version, name).read().to_pylist()


def dataset_inputs(workspace: Workspace, manifest: Manifest, outputs: bool = False) -> list[Any]:
    """MLflow dataset entries (name, digest, address, rows) of what a version read, or with ``outputs`` of the tables it wrote."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = []
    if outputs:
        for name, shards in manifest.tables.items():
            table = workspace.table(manifest.slot, manifest.version, name)
            address = str(workspace.version_folder(manifest.slot, manifest.version) / "tables" / name)
            profile = json.dumps({"num_rows": sum(shard.rows for shard in shards), "bytes": sum(shard.bytes for shard in shards)})
            schema = json.dumps({column.name: str(column.type) for column in TABLES[name].columns})
            found.append(DatasetInput(Dataset(name, table.digest[:36], "local", json.dumps({"uri": address}), schema, profile),
                                      [InputTag("mlflow.data.context", "output")]))
        return found
    for role, entries in manifest.inputs.items():
        for entry in entries:
            name = entry.get("table") or entry.get("model") or entry.get("file") or role
            address = f"{entry['slot']}@{entry['version']}" if "slot" in entry else name
            found.append(DatasetInput(Dataset(str(name)[:500], entry["digest"][:36], "local", json.dumps({"uri": address})),
                                      [InputTag("mlflow.data.context", role)]))
    return found
