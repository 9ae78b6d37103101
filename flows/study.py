"""A study: the chain run for every arm and seed of a profile, then one page of results with intervals.

It runs nothing of its own: each arm and seed is a pipeline, and what is committed already is not run again. Opening a test sample is
put on record, with the commit of the code and what was run, before the first result is seen."""

import json
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.profile import Arm, Profile, configure
from rpt_core.report.study import StudyRun, study_results, write_study
from rpt_core.store.files import digest_json
from rpt_core.store.workspace import Workspace

RunChain = Callable[[Mapping[str, Any], str, str], Mapping[str, Any]]  # (overrides, arm, until_stage) -> the pipeline's result


def run_study(chosen: Profile, overrides: Mapping[str, Any], workspace: Workspace, chain: RunChain) -> dict[str, Any]:
    """Run every arm and seed with ``chain`` and write ``studies/<its name>/`` of the workspace: results.md, results.json, openings.jsonl.
    Returns {folder, runs, openings}."""
    assert chosen.study is not None
    folder = workspace.path / "studies" / chosen.study.name
    folder.mkdir(parents=True, exist_ok=True)
    openings = record_opening(folder, chosen)
    runs = []
    for arm in chosen.study.arms:
        for seed in arm.seeds:
            runs.append(StudyRun(arm.name, seed, run_arm(chosen, overrides, arm, seed, workspace, chain)))
    about = {"name": chosen.study.name, "profile": chosen.name, "openings": openings,
             "arms": {arm.name: dict(arm.overrides) for arm in chosen.study.arms}, "code": code_version(),
             "date": datetime.now(UTC).date().isoformat()}
    write_study(folder, study_results(workspace, runs, about))
    return {"folder": str(folder), "runs": len(runs), "openings": len(openings)}


def run_arm(chosen: Profile, overrides: Mapping[str, Any], arm: Arm, seed: int, workspace: Workspace, chain: RunChain) -> dict[str, str]:
    """Versions by slot of one arm and seed. Controls of equal wall time run last of the training: their seconds are known then."""
    assert chosen.study is not None
    settings = {**overrides, **arm.overrides, "seed": seed}
    if chosen.study.wall_matched:
        first = versions_of(chain(settings, arm.name, "pretrain"))
        settings |= wall_budgets(chosen.study.wall_matched, first, workspace)
    return versions_of(chain(settings, arm.name, ""))


def versions_of(result: Mapping[str, Any]) -> dict[str, str]:
    return {made["slot"]: made["version"] for made in result["stages"]}


def wall_budgets(slots: tuple[str, ...], versions: Mapping[str, str], workspace: Workspace) -> dict[str, float]:
    """``{"control.sft_wall.budget_wall_s": seconds}``: the seconds of pretrain, and of the warm start for a control from the base."""
    spent = {slot: max(workspace.table(slot, versions[slot], "checkpoints").read(["wall_s"])["wall_s"].to_pylist())
             for slot in ("warmstart", "pretrain") if slot in versions}
    return {f"{slot}.budget_wall_s": float(round(sum(seconds for stage, seconds in spent.items()
                                                     if stage == "pretrain" or not slot.startswith("control.sft"))))
            for slot in slots}


def record_opening(folder: Path, chosen: Profile) -> list[dict[str, Any]]:
    """Put on record that this study looks at a test sample; returns every opening so far. A study on dev opens nothing."""
    path = folder / "openings.jsonl"
    known = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    if "evaluate" not in chosen.slots or getattr(configure(chosen, "evaluate")[1], "sample", "") != "test":
        return known
    assert chosen.study is not None
    settings = {slot: configure(chosen, slot)[1].semantic_values() for slot in chosen.slots}
    arms = [[arm.name, dict(arm.overrides), list(arm.seeds)] for arm in chosen.study.arms]
    opening = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "code": code_version(),
               "design": digest_json([settings, arms])[:16], "test_seed": settings.get("ingest", {}).get("generator_test_seed")}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(opening) + "\n")
    return [*known, opening]


def code_version() -> str:
    """The commit of the source tree, with ``+`` where files differ from it; the package's version outside a repository."""
    from importlib.metadata import version

    root = Path(__file__).parents[1]
    try:
        commit = subprocess.run(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True,
                                 check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"rpt {version('rpt')}"
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
