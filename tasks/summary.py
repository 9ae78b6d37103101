"""What a finished stage shows on its page in Prefect: the version, its inputs, its tables and counts, as markdown."""

import json
from typing import Any

from rpt_core.store.stage import Outcome
from rpt_core.store.workspace import Workspace


def cell(value: Any) -> str:
    """One table cell: numbers short, everything else as text that cannot break the table."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
    return text if len(text) <= 300 else text[:297] + "…"


def table(header: list[str], rows: list[list[Any]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(cell(value) for value in row) + " |" for row in rows)])


def outcome_markdown(outcome: Outcome, workspace: Workspace) -> str:
    """A page for people: what was made, from what, how much, in which time."""
    manifest = outcome.manifest
    made = "found committed" if outcome.cached else f"made in {manifest.seconds:.1f} s"
    folder = workspace.version_folder(manifest.slot, manifest.version)
    parts = [f"## {manifest.slot}\n\nVersion `{manifest.version}`, {made}, in `{folder}`."]
    if manifest.tables:
        rows = [[name, sum(s.rows for s in shards), sum(s.bytes for s in shards), len(shards)] for name, shards in manifest.tables.items()]
        parts.append("### Tables\n\n" + table(["table", "rows", "bytes", "shards"], rows))
    if manifest.counts:
        parts.append("### Counts\n\n" + table(["what", "value"], [[key, value] for key, value in manifest.counts.items()]))
    inputs = [[role, f"{e['slot']}@{e['version']}" if "slot" in e else e.get("model") or e.get("file", ""), e["digest"][:16]]
              for role, entries in manifest.inputs.items() for e in entries]
    if inputs:
        parts.append("### Inputs\n\n" + table(["role", "version", "content"], inputs))
    parts.append("### Settings\n\n" + table(["setting", "value"], [[k, v] for k, v in {**manifest.config, **manifest.runtime}.items()]))
    return "\n\n".join(parts) + "\n"
