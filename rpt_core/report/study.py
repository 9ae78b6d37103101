"""What a study of several seeds shows: accuracy of every part of the line-up, the endpoints with hierarchical intervals, what keeps the
claim honest, and what it cost. From committed tables alone; one Markdown page and the same as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rpt_core.evaluation.accuracy import LEVELS, SCORED, Scores, read_scores
from rpt_core.evaluation.intervals import bootstrap_mean, seed_difference
from rpt_core.report.page import TEMPLATES
from rpt_core.report.sections import part_name
from rpt_core.report.summary import honesty_summary
from rpt_core.store.errors import UserError
from rpt_core.store.files import replacing
from rpt_core.store.workspace import Workspace

Key = tuple[str, str]  # (part of the line-up, mode)
HEADLINE: Key = ("after", "reasoning")
# A control's best mode: what it was trained for. Reasoning where the traces taught it, standard prediction elsewhere.
COMPARATORS: tuple[Key, ...] = (
    ("before", "reasoning"), ("base", "standard"), ("control.ntp", "standard"), ("control.ntp_traces", "reasoning"),
    ("control.sft", "reasoning"), ("control.ntp_wall", "standard"), ("control.sft_wall", "reasoning"))
MODES = ("standard", "reasoning", "no_thought")
PRIMARY = "hard"
SHOWN = ("easy", "medium", "hard", "below")


@dataclass(frozen=True)
class StudyRun:
    """One chain of a study: the versions it made, by slot."""

    arm: str
    seed: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Evaluated:
    """One run's scores, with the checkpoint that plays each part."""

    seed: int
    scores: Scores
    checkpoints: Mapping[str, str]
    counts: Mapping[str, Any]

    def values(self, key: Key) -> np.ndarray | None:
        """Share of right samples per position [P], nan where none was made; None where this run has no such model and mode."""
        checkpoint = self.checkpoints.get(key[0])
        return self.scores.values.get((checkpoint, key[1])) if checkpoint else None


def read_run(workspace: Workspace, run: StudyRun) -> Evaluated:
    version = run.versions["evaluate"]
    counts = workspace.manifest("evaluate", version).counts
    predictions = workspace.table("evaluate", version, "predictions").read(list(SCORED))
    positions = workspace.table("select", run.versions["select"], "positions").read(
        ["position_id", "doc_id", "difficulty", "winnable"], where=pc.field("selected") == counts["sample"])
    parts = {part: model["checkpoint_id"] for model in counts["models"] for part in model["parts"] if part != "milestone"}
    return Evaluated(run.seed, read_scores(predictions, positions), parts, counts)


def study_results(workspace: Workspace, runs: Sequence[StudyRun], about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the page shows, as JSON: ``about``, and per arm accuracy, endpoints, honesty, fits and costs."""
    arms: dict[str, list[StudyRun]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    found = {arm: arm_results(workspace, members) for arm, members in arms.items()}
    first = next(iter(found.values()))
    return {**about, "sample": first["sample"], "level": PRIMARY, "results": found}


def arm_results(workspace: Workspace, runs: Sequence[StudyRun]) -> dict[str, Any]:
    evaluated = [read_run(workspace, run) for run in runs]
    keys = list(dict.fromkeys((part, mode) for one in evaluated for part in one.checkpoints for mode in MODES
                              if one.values((part, mode)) is not None))
    counts = evaluated[0].counts
    return {"seeds": [run.seed for run in runs], "sample": counts["sample"], "temperature": counts["temperature"],
            "positions": [one.counts["positions"] for one in evaluated], "documents": [one.counts["documents"] for one in evaluated],
            "accuracy": [row for key in keys for row in accuracy(evaluated, key)],
            "endpoints": [row for key in COMPARATORS for row in endpoint(evaluated, key)],
            "honesty": [row for one in evaluated for row in honesty(one)], "group_temperature": counts.get("group_temperature"),
            "responses": [row for one in evaluated for row in responses(one)],
            "fits": [{"seed": run.seed, **fit} for run in runs if "scaling" in run.versions
                     for fit in workspace.manifest("scaling", run.versions["scaling"]).counts["fits"]],
            "costs": [{"seed": run.seed, **cost} for run in runs for cost in costs(workspace, run)]}


def accuracy(runs: Sequence[Evaluated], key: Key) -> list[dict[str, Any]]:
    """A row per level: mean over seeds, interval over seeds and documents, each seed's value."""
    rows = []
    for level in SHOWN:
        pairs = [(values[mask], one.scores.documents[mask]) for one in runs if (values := one.values(key)) is not None
                 if (mask := one.scores.among(level) & ~np.isnan(values)).any()]
        if pairs:
            rows.append({"part": key[0], "mode": key[1], "level": level, "n": [len(values) for values, _ in pairs], **_interval(pairs)})
    return rows


def endpoint(runs: Sequence[Evaluated], against: Key) -> list[dict[str, Any]]:
    """A row per level: reasoning after reinforcement minus ``against``, paired position by position."""
    rows = []
    for level in SHOWN:
        pairs = []
        for one in runs:
            first, second = one.values(HEADLINE), one.values(against)
            if first is None or second is None:
                continue
            mask = one.scores.among(level) & ~np.isnan(first) & ~np.isnan(second)
            if mask.any():
                pairs.append((first[mask] - second[mask], one.scores.documents[mask]))
        if pairs:
            found = _interval(pairs)
            rows.append({"against": against[0], "mode": against[1], "level": level, **found,
                         "excludes_0": found["low"] > 0 or found["high"] < 0})
    return rows


def _interval(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Mean over seeds of (values, their documents); over documents alone where there is one seed, which says nothing of others."""
    if len(pairs) == 1:
        found = bootstrap_mean(*pairs[0])
    else:
        seeds = np.concatenate([np.full(len(values), index) for index, (values, _) in enumerate(pairs)])
        found = seed_difference(np.concatenate([values for values, _ in pairs]), seeds, np.concatenate([names for _, names in pairs]))
    return {"estimate": found.estimate, "low": found.low, "high": found.high, "by_seed": [float(values.mean()) for values, _ in pairs]}


def honesty(one: Evaluated) -> list[dict[str, Any]]:
    """What keeps each reasoning model's accuracy honest, under the part it plays: {seed, part, checks: {label: text}}."""
    return [{"seed": one.seed, "part": row["part"], "checks": row["checks"]} for row in honesty_summary(one.counts)]


def responses(one: Evaluated) -> list[dict[str, Any]]:
    """The evaluation's figures of each model's responses, one row per part and mode."""
    parts = {checkpoint: part for part, checkpoint in one.checkpoints.items()}
    return [{"seed": one.seed, "part": parts[row["checkpoint_id"]], **{k: v for k, v in row.items() if k != "checkpoint_id"}}
            for row in one.counts.get("responses", []) if row["checkpoint_id"] in parts and row["mode"] != "standard"]


def costs(workspace: Workspace, run: StudyRun) -> list[dict[str, Any]]:
    """FLOPs, seconds and tokens of every training stage of a run, from the last of its checkpoints."""
    rows = []
    for slot, version in run.versions.items():
        if slot.partition(".")[0] in ("bootstrap", "warmstart", "pretrain", "control"):
            last = max(workspace.table(slot, version, "checkpoints").read().to_pylist(), key=lambda row: row["step"])
            rows.append({"slot": slot, **{name: last[name] for name in ("step", "flops", "wall_s", "tokens_trained", "tokens_generated")}})
    return rows


# --- the page -----------------------------------------------------------------------------------------------------------


def write_study(folder: Path, results: Mapping[str, Any]) -> None:
    """``results.json`` and ``results.md`` in ``folder``, each whole or not at all."""
    with replacing(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(folder / "results.md") as temporary:
        temporary.write_text(study_page(results), encoding="utf-8")


def place_section(page: Path, name: str, text: str) -> None:
    """Put ``text`` as the section of study ``name`` into ``page``: in the place of its earlier one, else at the end."""
    begin, end = f"<!-- study {name} -->", f"<!-- end of study {name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    known = page.read_text(encoding="utf-8") if page.exists() else ""
    before, found, rest = known.partition(begin)
    _, closed, after = rest.partition(end)
    if found and not closed:
        raise UserError(f"{page} has no line {end!r} after {begin!r}; mend it by hand, or name another file.")
    new = f"{before}{section}{after}" if found else "\n\n".join(filter(None, [known.strip(), section])) + "\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    with replacing(page) as temporary:
        temporary.write_text(new, encoding="utf-8")


def side_by_side(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per arm, for one table: reasoning before and after reinforcement, the gain, and what is gained over SFT on the same traces."""
    rows = []
    for arm, found in results.items():
        said = {(row["part"], row["mode"], row["level"]): row for row in found["accuracy"]}
        gained = {(row["against"], row["level"]): row for row in found["endpoints"]}
        rows.append({"arm": arm, "before": said.get(("before", "reasoning", PRIMARY)), "after": said.get((*HEADLINE, PRIMARY)),
                     "gain": gained.get(("before", PRIMARY)), "over_sft": gained.get(("control.sft", PRIMARY)),
                     "easy": said.get((*HEADLINE, "easy")), "n": said.get((*HEADLINE, PRIMARY), {}).get("n", [])})
    return rows


def study_page(results: Mapping[str, Any]) -> str:
    """The study as Markdown."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=False, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)
    environment.filters.update(percent=_percent, points=_points, mean=_mean)
    return environment.get_template("study.md.j2").render(**results, shown=SHOWN, part_name=part_name, levels=LEVELS, grid=grid,
                                                         side_by_side=side_by_side)


def grid(rows: Sequence[Mapping[str, Any]], first: str) -> list[tuple[str, str, dict[str, Mapping[str, Any]]]]:
    """Rows as (part, mode, {level: row}), in their order; ``first`` names the column with the part."""
    found: dict[Key, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row[first], row["mode"]), {})[row["level"]] = row
    return [(part, mode, levels) for (part, mode), levels in found.items()]


def _percent(row: Mapping[str, Any] | None) -> str:
    return "–" if not row else f"{100 * row['estimate']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _points(row: Mapping[str, Any] | None) -> str:
    return "–" if not row else f"{100 * row['estimate']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
