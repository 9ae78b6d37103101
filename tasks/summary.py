"""What a finished stage shows in Prefect: a page (version, links, tables, results, inputs, settings), a table of its results, its links."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rpt_core.store.stage import Outcome
from rpt_core.store.tables import Manifest
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


SUMMARY_ROWS = 200


def artifact_key(slot: str, what: str = "") -> str:
    """Prefect's artifact keys take lower-case letters, digits and dashes."""
    return "-".join(filter(None, [*slot.replace("_", ".").split("."), what]))


def summary_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """The stage's results as rows of a table: accuracies, fits, answers or losses where it has them, else every number it counted."""
    counts = manifest.counts
    if "accuracy" in counts:
        from rpt_core.report.summary import LEVELS, accuracy_summary, cell

        return [{"model": row["model"], "part": row["part"], "mode": row["mode"],
                 **{f"{level}, % [95 %]": cell(row["levels"].get(level)) for level in LEVELS}} for row in accuracy_summary(counts)]
    for listed in ("fits", "results"):
        if isinstance(counts.get(listed), list):
            return [{key: short(value) for key, value in row.items() if not isinstance(value, (list, dict))}
                    for row in counts[listed][:SUMMARY_ROWS]]
    tables = {f"{name} rows": sum(shard.rows for shard in shards) for name, shards in manifest.tables.items()}
    numbers = {**tables, **dict(flat(counts)), "seconds": manifest.seconds, "attempts": manifest.attempts}
    return [{"what": name, "value": short(value)} for name, value in list(numbers.items())[:SUMMARY_ROWS]]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers of a nested mapping, named by their path."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key} / ")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", value


def short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def links(outcome: Outcome, workspace: Workspace, run_url: str) -> dict[str, str]:
    """Names to addresses: the MLflow run, and the report's page where there is one. ``run_url`` is "" while MLflow has not heard."""
    found = {"MLflow run": run_url} if run_url else {}
    page = workspace.version_folder(outcome.manifest.slot, outcome.manifest.version) / "files" / "report.html"
    if "files/report.html" in outcome.manifest.files:
        found["report"] = f"{run_url}/artifacts/report.html" if run_url else page.as_uri()
    return found


def outcome_markdown(outcome: Outcome, workspace: Workspace, run_url: str = "", ui_url: str = "") -> str:
    """A page for people: what was made, from what, how much, in which time, and where to look further. Every version that was read is
    a link to the page of the stage that made it."""
    manifest = outcome.manifest
    made = "found committed" if outcome.cached else f"made in {manifest.seconds:.1f} s"
    folder = workspace.version_folder(manifest.slot, manifest.version)
    parts = [f"## {manifest.slot}\n\nVersion `{manifest.version}`, {made}, in `{folder}`."]
    parts.append("".join(f"[{name}]({address}) · " for name, address in links(outcome, workspace, run_url).items())
                 + f"`rpt tables use {manifest.slot}@{manifest.version}`")
    if manifest.tables:
        rows = [[name, f"{sum(s.rows for s in shards):,}", f"{sum(s.bytes for s in shards):,}", len(shards),
                 f"`rpt sql \"from {name} limit 10\"`"] for name, shards in manifest.tables.items()]
        parts.append("### Tables\n\n" + table(["table", "rows", "bytes", "shards", "to look"], rows))
    results = summary_rows(manifest)
    if results:
        columns = list(dict.fromkeys(key for row in results for key in row))
        parts.append("### Results\n\n" + table(columns, [[row.get(key, "") for key in columns] for row in results]))
    inputs = [[role, f"[{e['slot']}@{e['version']}]({ui_url}/artifacts/key/{artifact_key(e['slot'])})" if "slot" in e
               else e.get("model") or e.get("file", ""), e["digest"][:16]]
              for role, entries in manifest.inputs.items() for e in entries]
    if inputs:
        parts.append("### Inputs\n\n" + table(["role", "version", "content"], inputs))
    parts.append("### Settings\n\n" + table(["setting", "value"], [[k, v] for k, v in {**manifest.config, **manifest.runtime}.items()]))
    return "\n\n".join(parts) + "\n"
