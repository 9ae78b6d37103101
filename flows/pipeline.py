"""The chain as one flow: every stage of a profile in order, each reading exactly the versions this pipeline made or found."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Failed

from flows.plan import Step, boundaries, kept_steps, references, wire
from flows.profile import Profile, configure_all, is_own, load_profile, override
from rpt_core.store.errors import UserError
from rpt_core.store.sources import resolve_source
from rpt_core.store.workspace import Workspace
from tasks.boundary import tolerant
from tasks.stage import REFUSED, run_stage
from tasks.summary import table
from tasks.tracking import Tracking

AS_WRITTEN: dict[str, Any] = {}  # no override: the profile as its file says


def run_name() -> str:
    """What the run is called in Prefect: pipeline-tiny select…evaluate seed=7."""
    given = flow_run.parameters
    stages = f" {given['from_stage']}…{given['until_stage']}" if given["from_stage"] or given["until_stage"] else ""
    changed = "".join(f" {key}={value}" for key, value in given["overrides"].items())
    arm = f" {given['arm']}" if given["arm"] else ""
    return f"pipeline-{Path(given['profile']).stem}{arm}{stages}{changed}{' forced' if given['force'] else ''}"[:120]


@flow(name="pipeline", flow_run_name=run_name, persist_result=False)
def pipeline(profile: str = "tiny", overrides: dict[str, Any] = AS_WRITTEN, from_stage: str = "", until_stage: str = "",
             force: bool = False, arm: str = "") -> Any:
    """Run a profile's stages, from documents to the report. Stages whose result is committed already are not run again.
    A profile with a study runs them for each of its arms and seeds, and then writes one page of results.

    Args:
        profile: Name of a packaged profile (tiny, tiny-science, tiny-ablations, tiny-text, small-gpu, paper-14b), or the path of a file
            that lies within RPT_SOURCES.
        overrides: Settings on top of the profile, as {"stage.setting": value}, e.g. {"select.min_entropy": 1.0, "seed": 7}.
        from_stage: First stage to run; earlier ones are taken as they are committed. Blank = the first of the profile.
        until_stage: Last stage to run. Blank = the last of the profile.
        force: Run the stages even where their result is committed.
        arm: Name of one run of a study; blank = all of them, or a profile without a study.
    """
    try:
        workspace = Workspace.from_environment()
        if is_own(profile):
            resolve_source(profile)  # a form may name a file; a worker reads only what lies in the allowed roots
        chosen = override(load_profile(profile), overrides)
        if chosen.study and not arm:
            return study_of(profile, chosen, overrides, force, workspace)
        steps = [Step(slot, stage, config) for slot, stage, config in configure_all(chosen)]
        begin, end = boundaries(chosen.slots, from_stage, until_stage)
        made = kept_steps(steps[:begin], workspace)
    except UserError as error:
        return Failed(name=REFUSED, message=str(error))
    tracking = Tracking(workspace)
    title = f"pipeline {chosen.name}" + (f" {arm} {chosen.seed}" if arm else "")
    key = tracking.begin_pipeline(title, {"profile": profile, **dict(overrides), "from_stage": from_stage,
                                                              "until_stage": until_stage, "force": force})
    status = "KILLED"
    results: list[dict[str, Any]] = []
    try:
        for step in steps[begin:end]:
            state = run_wired(step, made, workspace, force, key)
            if state.is_failed():
                status = "FAILED"
                if state.name == REFUSED:
                    return Failed(name=REFUSED, message=state.message)
            result = state.result()
            made[step.slot] = result["version"]
            results.append(result)
        status = "FINISHED"
    except UserError as error:
        status = "FAILED"
        return Failed(name=REFUSED, message=str(error))
    except Exception:
        status = "FAILED"
        raise
    finally:
        run_id = tracking.end_pipeline(key, status)
    kept = [{"slot": s.slot, "version": s.version, "cached": True, "seconds": 0.0, "counts": {}} for s in steps[:begin] if s.version]
    with tolerant("the pipeline's summary"):
        if FlowRunContext.get():
            said = [(r, "kept") for r in kept] + [(r, "cached" if r["cached"] else "run") for r in results]
            rows = [[r["slot"], r["version"], how, r["seconds"]] for r, how in said]
            text = f"## {chosen.name}\n\nWorkspace `{workspace.path}`, MLflow run `{run_id or 'not sent yet'}`.\n\n"
            create_markdown_artifact(text + table(["stage", "version", "", "seconds"], rows) + "\n", key="pipeline")
    return {"profile": chosen.name, "stages": results, "kept": [r["slot"] for r in kept], "mlflow_run": run_id}


def study_of(profile: str, chosen: Profile, overrides: Mapping[str, Any], force: bool, workspace: Workspace) -> Any:
    """Every arm and seed as a pipeline of its own, then the page of results; ends in the state of the first that fails."""
    from flows.study import run_study

    class Ended(Exception):
        def __init__(self, state: Any) -> None:
            self.state = state

    def chain(settings: Mapping[str, Any], arm: str, until: str) -> Mapping[str, Any]:
        state = pipeline(profile, dict(settings), "", until, force, arm=arm, return_state=True)
        if not state.is_completed():
            raise Ended(state)
        return state.result()

    for each in chosen.study.arms if chosen.study else ():  # what can be known to be wrong is said before the first run
        configure_all(override(chosen, each.overrides))
    try:
        result = run_study(chosen, overrides, workspace, chain)
    except Ended as ended:
        return ended.state
    with tolerant("the study's page"):
        if FlowRunContext.get():
            create_markdown_artifact((Path(result["folder"]) / "results.md").read_text(encoding="utf-8"), key="study")
    return {"profile": chosen.name, "stages": [], "kept": [], "study": result}


def run_wired(step: Step, made: Mapping[str, str | None], workspace: Workspace, force: bool, key: str) -> Any:
    """Wire a step to what the pipeline has made so far and run it as one task; returns the task's final state."""
    wired = wire(step.slot, step.stage, step.config, made, workspace)
    step = replace(step, inputs=references(wired, made))
    return run_stage(step.slot, step.stage, step.config, step.inputs, force, key, return_state=True)
