"""A real Prefect server and a process worker: what `rpt deploy` makes runs alone, with changed parameters, from any folder.

The runs are the chain at its smallest, in order: each reads what the deployments before it committed, nothing is prepared."""

import base64
import json
import re
import signal
import subprocess

import pytest
import yaml

from flows.deployments import job_variables
from flows.stages import STAGES
from rpt_core.store.workspace import Workspace
from tasks.summary import artifact_key
from tests.e2e.chain import PROFILE, RUNS
from tests.e2e.stack import ROOT, Stack

pytestmark = pytest.mark.xdist_group("prefect")


def test_every_stage_and_the_pipeline_are_deployed_with_the_workspace_baked_in(stack):
    found = {deployment["name"]: deployment for deployment in stack.get("/deployments/filter", {})}
    in_file = {entry["name"]: entry for entry in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    assert set(found) == set(in_file) == {*STAGES, "pipeline"}
    for name, deployment in found.items():
        assert deployment["entrypoint"] == in_file[name]["entrypoint"]
        assert deployment["pull_steps"] == []
        assert deployment["tags"] == in_file[name]["tags"]
        assert deployment["job_variables"]["env"]["RPT_HOME"] == str(stack.workspace.path)
        assert set(deployment["parameter_openapi_schema"]["properties"]) >= {"force"}
    schedule = found["pipeline"]["schedules"][0]
    assert (schedule["schedule"]["cron"], schedule["active"]) == ("0 3 * * 1", False)


def test_a_docker_pools_runs_see_the_workspace_and_the_sources_where_they_are_here(tmp_path, monkeypatch):
    monkeypatch.setenv("RPT_SOURCES", str(tmp_path / "texts"))
    workspace = Workspace(tmp_path / "ws")
    found = job_variables(workspace, "docker")
    assert found["volumes"] == [f"{workspace.path}:{workspace.path}", f"{tmp_path}/texts:{tmp_path}/texts:ro"]
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    assert found["image"] == compose["worker"]["image"]
    assert found["env"] == job_variables(workspace, "process")["env"]


def test_a_form_describes_every_field_and_bounds_every_number(stack):
    for deployment in stack.get("/deployments/filter", {}):
        schema = deployment["parameter_openapi_schema"]
        fields = {**schema["properties"], **{name: field for form in schema.get("definitions", {}).values()
                                             for name, field in form["properties"].items()}}
        assert all(field.get("description") for field in fields.values()), deployment["name"]
        assert not [name for name, field in fields.items() if field.get("type") in ("integer", "number")
                    and not {"minimum", "exclusiveMinimum"} & field.keys()], deployment["name"]
        assert not [name for name, field in fields.items() if "anyOf" in field]  # a union is two forms in one
        if deployment["name"] not in ("ingest", "pipeline"):
            role, slot = re.findall(r'{"(\w+)": "([\w.]+)@VERSION"}', schema["properties"]["inputs"]["description"])[0]
            stage = STAGES[deployment["name"]]
            assert slot in next(read.slots for read in stage.inputs(stage.config()) if read.role == role)
    (score,) = stack.get("/deployments/filter", {"deployments": {"name": {"any_": ["score"]}}})
    settings = score["parameter_openapi_schema"]["definitions"]["ScoreConfig"]["properties"]
    assert all(field.get("description") for field in settings.values())
    assert settings["window"]["minimum"] == 2
    assert settings["window"]["title"] == "window"
    assert settings["window"]["description"].endswith(" (≥ 2, ≤ 1,048,576)")
    assert settings["threads"]["description"].endswith(" Does not change the result.")
    runtime = [not field["semantic"] for field in settings.values()]
    assert runtime == sorted(runtime)
    assert True in runtime
    assert settings["name"]["enum"] == ["filter", "difficulty"]


def test_every_stages_deployment_is_run():
    assert {run.stage for run in RUNS} == set(STAGES)


@pytest.mark.parametrize("run", [pytest.param(run, id=run.slot, marks=[] if run.in_make_test else pytest.mark.full) for run in RUNS])
def test_a_deployment_runs_alone_with_changed_parameters_and_shows_its_artifacts(stack, chain, run):
    flow_run, version = chain.upto(run.slot)
    assert flow_run["name"].startswith(f"{run.slot} ")  # and then what differs from the defaults
    assert all(f"{key}=" in flow_run["name"] for key in list(run.settings)[:1])
    manifest = stack.workspace.manifest(run.slot, version)
    assert manifest.run_ids["prefect_flow_run"] == flow_run["id"]
    used = {**manifest.config, **manifest.runtime}
    assert {key: used[key] for key in run.settings} == run.settings
    assert run.settings.keys() & manifest.config.keys(), "a run with the defaults would not show that parameters arrive"
    for role, source in run.pinned.items():
        assert [(entry["slot"], entry["version"]) for entry in manifest.inputs[role]] == [(source, chain.made[source][1])]
    artifacts = stack.artifacts(flow_run)
    assert version in artifacts[artifact_key(run.slot)]["data"]
    assert artifacts[artifact_key(run.slot, "progress")]["data"] == 100.0
    assert json.loads(artifacts[artifact_key(run.slot, "summary")]["data"])
    if run.stage != "report":  # its page is the picture
        picture = artifacts[artifact_key(run.slot, "plot")]["data"].partition("(data:image/png;base64,")[2].removesuffix(")")
        assert base64.b64decode(picture).startswith(b"\x89PNG")


def test_the_pipelines_deployment_takes_what_the_stages_deployments_committed_and_runs_the_rest(stack, chain):
    chain.upto("bootstrap")
    changed = {"bootstrap.train_tokens": 40_000, "score.filter.min_context": 16}
    before = {slot: stack.workspace.versions(slot) for slot in ("ingest", "bootstrap", "score.filter")}
    run = stack.run_deployment("pipeline", {"profile": PROFILE, "overrides": changed, "until_stage": "score.filter"})
    assert run["state"]["type"] == "COMPLETED", f"{run['state']['message']}\n{stack.log('worker')[-4000:]}"
    after = {slot: stack.workspace.versions(slot) for slot in before}
    assert (after["ingest"], after["bootstrap"]) == (before["ingest"], before["bootstrap"])
    (new,) = set(after["score.filter"]) - set(before["score.filter"])
    assert stack.workspace.manifest("score.filter", new).config["min_context"] == 16
    artifacts = stack.artifacts(run)
    rows = [line for line in artifacts["pipeline"]["data"].splitlines() if "| cached |" in line or "| run |" in line]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == ["ingest", "bootstrap", "score.filter"]
    assert [row.split(" | ")[2] for row in rows] == ["cached", "cached", "run"]
    assert artifacts["score-filter-progress"]["data"] == 100.0
    assert new in artifacts["score-filter"]["data"]


def test_bad_input_from_a_form_ends_refused_in_one_sentence_and_leaves_the_tables_alone(stack):
    before = {slot: stack.workspace.versions(slot) for slot in stack.workspace.slots()}
    run = stack.run_deployment("ingest", {"config": {"sources": ["/etc/hostname"]}})
    assert (run["state"]["type"], run["state"]["name"]) == ("FAILED", "Refused")
    assert "outside the allowed roots" in run["state"]["message"]
    assert {slot: stack.workspace.versions(slot) for slot in stack.workspace.slots()} == before


def children(pid: int) -> list[str]:
    return subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()


@pytest.mark.full
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM], ids=lambda sign: sign.name)
def test_rpt_serve_offers_every_deployment_runs_one_and_a_signal_ends_it_in_order(tmp_path, sign):
    stack = Stack(tmp_path)
    try:
        served = stack.start("serve", "flows.cli", "serve", home=True)
        names = {*STAGES, "pipeline"}
        stack.wait_for(lambda: {deployment["name"] for deployment in stack.get("/deployments/filter", {})} == names, "every deployment")
        settings = {"generator_documents": 60, "generator_questions": 5, "dev_share": 0.2, "test_share": 0.2}
        run = stack.run_deployment("ingest", {"config": settings})
        assert run["state"]["type"] == "COMPLETED", stack.log("serve")[-4000:]
        version = stack.workspace.current("ingest")
        assert version
        manifest = stack.workspace.manifest("ingest", version)
        assert {key: manifest.config[key] for key in settings} == settings
        assert manifest.run_ids["prefect_flow_run"] == run["id"]
        assert artifact_key("ingest") in stack.artifacts(run)
        stack.wait_for(lambda: not children(served.pid), "the end of the run's process", 30)
        assert stack.end(served, sign) == 0  # a service that was told to end has not failed
        assert "Traceback" not in stack.log("serve")
        assert "stopped" in stack.log("serve").splitlines()[-1]
    finally:
        stack.stop()
