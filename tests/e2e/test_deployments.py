"""A real Prefect server and a process worker: what `rpt deploy` makes runs alone, with changed parameters, from any folder."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from flows.server import free_port, prefect_settings
from rpt_core.store.workspace import Workspace

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("prefect")

# deployment → parameters that differ from the defaults; in chain order, each reading what the one before it committed
RUNS: dict[str, dict] = {
    "ingest": {"config": {"generator_documents": 120, "generator_questions": 20, "seed": 5}},
}


class Stack:
    """The server, the worker and the workspace of this module's tests."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.workspace = Workspace(folder / "ws")
        port = free_port()
        self.environment = {**os.environ, **prefect_settings(folder / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
                            "RPT_HOME": str(self.workspace.path), "RPT_TRACKING": "off", "RPT_RETRIES": "0", "PYTHONPATH": str(ROOT),
                            "PREFECT_WORKER_QUERY_SECONDS": "1"}
        (folder / "prefect").mkdir()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui")
        self.wait_for(lambda: self.get("/health"), "the server")

    def start(self, *arguments: str) -> None:
        environment = {name: value for name, value in self.environment.items() if name != "RPT_HOME"}  # a worker knows no workspace
        log = open(self.folder / f"{arguments[1]}.log", "wb")  # noqa: SIM115 - the process outlives this line
        self.processes.append(subprocess.Popen([sys.executable, "-m", *arguments], env=environment, cwd=self.folder, stdout=log, stderr=log,
                                               start_new_session=True))

    def command(self, *arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", *arguments], env=self.environment, cwd=self.folder, capture_output=True, text=True,
                              timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, path: str, body: dict | None = None):
        request = urllib.request.Request(self.environment["PREFECT_API_URL"] + path, headers={"content-type": "application/json"},
                                         data=None if body is None else json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.loads(reply.read())

    def wait_for(self, what, name: str, seconds: float = 240.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                found = what()
            except OSError:
                found = None
            if found:
                return found
            time.sleep(0.5)
        raise AssertionError(f"{name} did not come within {seconds:.0f} s")

    def run_deployment(self, name: str, parameters: dict) -> dict:
        """Start a deployment's run as a user would, wait for its end and return the flow run."""
        params = [part for key, value in parameters.items() for part in ("--param", f"{key}={json.dumps(value)}")]
        self.command("prefect", "deployment", "run", f"{name}/{name}", *params)
        (latest,) = self.get("/flow_runs/filter", {"limit": 1, "sort": "EXPECTED_START_TIME_DESC",
                                                   "flows": {"name": {"any_": [name]}}})

        def ended() -> dict | None:
            found = self.get(f"/flow_runs/{latest['id']}")
            return found if found["state"]["type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"} else None

        return self.wait_for(ended, f"the run of {name}")

    def artifacts(self, flow_run: dict) -> dict[str, dict]:
        found = self.get("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run["id"]]}}})
        return {artifact["key"]: artifact for artifact in found}

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(tmp_path_factory.mktemp("e2e"))
    try:
        stack.command("flows.cli", "deploy", "--pool", "test-pool")
        stack.start("prefect", "worker", "start", "--pool", "test-pool", "--name", "test")
        yield stack
    finally:
        stack.stop()


def test_every_stage_and_the_pipeline_are_deployed_with_the_workspace_baked_in(stack):
    found = {deployment["name"]: deployment for deployment in stack.get("/deployments/filter", {})}
    in_file = {entry["name"]: entry for entry in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    assert set(found) == set(in_file)
    for name, deployment in found.items():
        assert deployment["entrypoint"] == in_file[name]["entrypoint"]
        assert deployment["pull_steps"] == []
        assert deployment["tags"] == in_file[name]["tags"]
        assert deployment["job_variables"]["env"]["RPT_HOME"] == str(stack.workspace.path)
        assert set(deployment["parameter_openapi_schema"]["properties"]) >= {"force"}
    schedule = found["pipeline"]["schedules"][0]
    assert (schedule["schedule"]["cron"], schedule["active"]) == ("0 3 * * 1", False)


def test_a_form_describes_and_bounds_every_setting(stack):
    (score,) = stack.get("/deployments/filter", {"deployments": {"name": {"any_": ["score"]}}})
    settings = score["parameter_openapi_schema"]["definitions"]["ScoreConfig"]["properties"]
    assert all(field.get("description") for field in settings.values())
    assert settings["window"]["minimum"] == 2
    assert settings["name"]["enum"] == ["filter", "difficulty"]


@pytest.mark.parametrize("name", list(RUNS))
def test_a_deployment_runs_alone_with_changed_parameters_and_shows_its_artifacts(stack, name):
    run = stack.run_deployment(name, RUNS[name])
    log = (stack.folder / "worker.log").read_text()[-4000:]
    assert run["state"]["type"] == "COMPLETED", f"{run['state']['message']}\n{log}"
    slot = next(slot for slot in stack.workspace.slots() if slot.partition(".")[0] == name)
    version = stack.workspace.current(slot)
    manifest = stack.workspace.manifest(slot, version)
    for key, value in RUNS[name]["config"].items():
        assert {**manifest.config, **manifest.runtime}[key] == value
    assert manifest.run_ids["prefect_flow_run"] == run["id"]
    artifacts = stack.artifacts(run)
    assert version in artifacts[slot.replace(".", "-")]["data"]
    assert artifacts[f"{slot.replace('.', '-')}-progress"]["data"] == 100.0


def test_bad_input_from_a_form_ends_refused_in_one_sentence_and_leaves_the_tables_alone(stack):
    before = {slot: stack.workspace.versions(slot) for slot in stack.workspace.slots()}
    run = stack.run_deployment("ingest", {"config": {"sources": ["/etc/hostname"]}})
    assert (run["state"]["type"], run["state"]["name"]) == ("FAILED", "Refused")
    assert "outside the allowed roots" in run["state"]["message"]
    assert {slot: stack.workspace.versions(slot) for slot in stack.workspace.slots()} == before
