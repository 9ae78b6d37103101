"""The fault matrix: every stage, and in the middle of it the kill of a part of the installation.

    python -m tests.faults.matrix --folder /tmp/matrix [--component mlflow] [--stage select …] [--minutes 14]

Postgres, Prefect server, MLflow server and worker run as docker/compose.yaml says (tests/e2e/services.py). A stage is started through its
deployment; its processes are held still (SIGSTOP) when it is at work, so that a short stage is not over before the kill; the component is
killed with SIGKILL, the stage goes on, and the component is started again. The cell is green when the stage then ends, on its own or
after one further run, with the content of an undisturbed run, once in MLflow; a run that died with its worker must end Crashed.
Results are added to benchmarks/results/fault_matrix.json, from which docs/reliability.md has its table."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from flows.profile import configure, load_profile
from rpt_core.store.events import read_events
from rpt_core.store.files import digest_json, write_json
from rpt_core.store.locks import lock
from rpt_core.store.tables import Table
from rpt_core.store.workspace import Workspace
from tasks.tracking import Tracking
from tests.e2e.services import ENDED, ROOT, Services
from tests.e2e.stack import PATIENCE, descendants, signal_process

PROFILE = str(Path(__file__).with_name("micro.yaml"))
COMPONENTS = {"worker": "worker", "prefect": "Prefect server", "postgres": "Postgres", "mlflow": "MLflow server"}
RESULTS = ROOT / "benchmarks" / "results" / "fault_matrix.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- fault matrix: python -m tests.faults.matrix -->", "<!-- end of the fault matrix -->"
ENVIRONMENT = {"RPT_GPU_LIMIT": ""}  # a killed machine's slot is free after a minute; the matrix does not wait for it


def digest(table: Table) -> str:
    """The table's digest; where its rows name the run they are about, without the number of its version: a forced one has another."""
    if table.name != "fits":
        return table.digest
    return digest_json([{**row, "run_id": row["run_id"].rsplit("-", 1)[0]} for row in table.read().to_pylist()])


def content(workspace: Workspace, slot: str) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of a slot's tables and of its weights, of the current version; other files, such as the report's pages, by name."""
    version = workspace.current(slot)
    assert version, f"{slot} has no version"
    manifest = workspace.manifest(slot, version)
    tables = {name: digest(workspace.table(slot, version, name)) for name in manifest.tables}
    return tables, {name: file["sha256"] if name.endswith(".safetensors") else "" for name, file in manifest.files.items()}


def undisturbed(folder: Path) -> Workspace:
    """The whole chain without a kill, made once."""
    workspace = Workspace(folder / "undisturbed")
    if workspace.current("report"):
        return workspace
    environment = {**os.environ, "RPT_HOME": str(workspace.path), "RPT_TRACKING": "off"}
    subprocess.run([sys.executable, "-m", "flows.cli", "run", "--profile", PROFILE], env=environment, check=True, cwd=folder,
                   stdout=subprocess.DEVNULL)
    return workspace


def settings(slot: str) -> dict[str, Any]:
    return configure(load_profile(PROFILE), slot)[1].model_dump(mode="json", exclude_defaults=True)


def inputs_of(reference: Workspace, workspace: Workspace, slot: str) -> dict[str, str]:
    """The inputs of the undisturbed run, as the versions of the same slots here."""
    version = reference.current(slot)
    assert version
    stage, config = configure(load_profile(PROFILE), slot)
    used, found = reference.manifest(slot, version).inputs, {}
    for read in stage.inputs(config):
        found[read.role] = ",".join(f"{entry['slot']}@{workspace.current(entry['slot'])}" for entry in used[read.role]) or "none"
    return found


def begun(workspace: Workspace, slot: str) -> Path | None:
    """Folder of the slot's version that is being made."""
    return next((folder for found, folder in workspace.running() if found == slot and (folder / "events.jsonl").exists()), None)


def at_work(folder: Path) -> bool:
    """Whether the stage has said more than that it begins, or finished a shard or file."""
    said = any(event["type"] != "attempt" for event in read_events(folder / "events.jsonl"))
    return said or any((folder / "tables").glob("*/*")) or any((folder / "files").rglob("*"))


def patience(reference: Workspace, slot: str) -> float | None:
    """Seconds from a stage's first word to the kill, a third of what it took undisturbed, at most 15; None for a stage that says nothing
    before its end, which is killed as soon as it has begun."""
    version = reference.current(slot)
    assert version
    said = [event["time"] for event in read_events(reference.version_folder(slot, version) / "events.jsonl") if event["type"] != "attempt"]
    return min((said[-1] - said[0]) / 3, 15.0) if len(said) > 1 else None


def hold(services: Services, run: str, slot: str, wait: float | None, seconds: float = PATIENCE) -> str:
    """Wait until the stage is at its work (with ``wait`` None: has begun), ``wait`` seconds longer, and hold the run's processes still
    with SIGSTOP. Returns "work", or "begin", or "" where the stage was committed first."""
    worker, end, folder, runs = services.running["worker"].pid, time.monotonic() + seconds, None, set()
    looked = 0.0
    while time.monotonic() < end:
        if time.monotonic() - looked > 0.5:
            runs, looked = descendants(worker), time.monotonic()
            state = services.state(run)
            assert state["type"] not in ENDED - {"COMPLETED"}, f"{slot}: {state['message']}"
        folder = folder or begun(services.workspace, slot)
        if folder and (folder / "manifest.json").exists():
            return ""
        if folder and (wait is None or at_work(folder)):
            time.sleep(wait or 0.0)
            for pid in [*runs, *(descendants(worker) - runs)]:  # those known first: a short stage is over soon
                signal_process(pid, signal.SIGSTOP)
            if not (folder / "manifest.json").exists():
                return "work" if at_work(folder) else "begin"
            thaw(services)
            return ""
        time.sleep(0.005)
    raise AssertionError(f"{slot} was not begun within {seconds:.0f} s")


def thaw(services: Services) -> None:
    """Let the runs go on that ``hold`` held still, where their worker lives."""
    if "worker" in services.running:
        for pid in descendants(services.running["worker"].pid):
            signal_process(pid, signal.SIGCONT)


def cell(services: Services, reference: Workspace, slot: str, component: str, force: bool) -> dict[str, Any]:
    """Run one cell: {outcome, note, at, seconds, and for a killed worker the id of the run that died with it}."""
    start, workspace = time.monotonic(), services.workspace
    stage = slot.partition(".")[0]
    parameters = {"config": settings(slot), "inputs": inputs_of(reference, workspace, slot), "force": force}
    run = services.start_run(stage, parameters)
    at = hold(services, run, slot, patience(reference, slot))
    if not at:  # it was over before it could be held: made once more, and held at its beginning
        services.ended(run)
        parameters["force"] = True
        run = services.start_run(stage, parameters)
        at = hold(services, run, slot, None)
    found: dict[str, Any] = {"outcome": "failed", "at": at}
    if not at:
        return {**found, "note": "committed before the kill", "seconds": round(time.monotonic() - start, 1)}
    services.kill(component)
    thaw(services)
    time.sleep(1.0)
    services.start(component)
    notes, before = [], len(services.restarted)
    if component == "worker":  # nobody is left to end that run; the heartbeat automation does
        found["run"] = run
        notes.append("run again")
        run = services.start_run(stage, parameters)
    state = services.ended(run)
    if state["type"] != "COMPLETED":
        notes.append(f"run again after {state['name']}")
        state = services.ended(services.start_run(stage, parameters))
    if state["type"] != "COMPLETED":
        wrong = f"{state['name']}: {state['message']}"
    elif content(workspace, slot) != content(reference, slot):
        wrong = "other content"
    else:
        wrong = in_mlflow(services, slot)
    notes += [f"the {COMPONENTS[name]} was started again too" for name in dict.fromkeys(services.restarted[before:])]
    return {**found, "outcome": "failed" if wrong else "ok", "note": "; ".join(filter(None, [*notes, wrong])),
            "seconds": round(time.monotonic() - start, 1)}


def in_mlflow(services: Services, slot: str) -> str:
    """'' where MLflow holds the version in one finished run with every metric of its events once; else what is wrong."""
    sync(services)
    workspace, version = services.workspace, services.workspace.current(slot) or ""
    asked = f"tags.`rpt.version` = '{version}' and tags.`rpt.cached` = 'false' and tags.`rpt.slot` = '{slot}'"
    body = {"experiment_ids": [experiment(services)], "filter": asked}
    found = services.get("/api/2.0/mlflow/runs/search", body, "mlflow").get("runs", [])
    if len(found) != 1 or found[0]["info"]["status"] != "FINISHED":
        return f"{len(found)} MLflow runs"
    said: dict[str, set[int]] = {}
    for event in read_events(workspace.version_folder(slot, version) / "events.jsonl"):
        if event["type"] == "metrics":
            for name in event["data"]:
                said.setdefault(name, set()).add(event["step"])
    for name in list(said)[:5]:
        asked = urlencode({"run_id": found[0]["info"]["run_id"], "metric_key": name})
        history = services.get(f"/api/2.0/mlflow/metrics/get-history?{asked}", None, "mlflow").get("metrics", [])
        if sorted(int(metric.get("step", 0)) for metric in history) != sorted(said[name]):
            return f"MLflow's {name} differs"
    return ""


def experiment(services: Services) -> str:
    found = services.get("/api/2.0/mlflow/experiments/get-by-name?experiment_name=rpt", None, "mlflow")
    return found["experiment"]["experiment_id"]


def sync(services: Services) -> None:
    """What `rpt track sync` does, as an operator after an outage. Requests know server and password from the environment."""
    given = services.environment("worker")
    os.environ.update({name: value for name, value in given.items() if name.startswith("MLFLOW_")})
    Tracking(services.workspace).sync()


def without_end(services: Services) -> list[str]:
    """Runs that no end has reached after the heartbeat's patience (three periods of 30 s) and the server's own."""
    def names() -> list[str]:
        found = services.get("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}})
        return [run["name"] for run in found]

    end = time.monotonic() + 240
    while names() and time.monotonic() < end:
        time.sleep(2)
    return names()


def column(services: Services, reference: Workspace, component: str, stages: list[str] | None, end: float) -> None:
    """Every cell of a component that is not green yet, in the order of the chain; then how the runs ended that died with their worker."""
    dead: dict[str, dict[str, Any]] = {}
    for slot in load_profile(PROFILE).slots:
        made, known = services.workspace.current(slot), load_results()["cells"].get(f"{slot} {component}", {})
        wanted = not stages or slot in stages
        if made and (known.get("outcome") == "ok" or not wanted):
            continue
        if wanted and time.monotonic() > end:
            break
        if not wanted:
            state = services.ended(services.start_run(slot.partition(".")[0], {
                "config": settings(slot), "inputs": inputs_of(reference, services.workspace, slot)}))
            assert state["type"] == "COMPLETED", state
            continue
        found = cell(services, reference, slot, component, force=made is not None)
        if "run" in found:
            dead[slot] = found
        record(f"{slot} {component}", found)
        print(slot, component, found, flush=True)
    left = without_end(services)
    for slot, found in dead.items():
        state = services.state(found["run"])
        found["note"] += f", the dead run {state['name']}"
        if (state["type"], state["name"]) != ("CRASHED", "Crashed"):
            found["outcome"] = "failed"
        record(f"{slot} {component}", found)
    with recorded() as results:
        results["left_running"][component] = left


def page(results: dict[str, Any]) -> str:
    """The table of docs/reliability.md; a cell without a result says so."""
    slots = load_profile(PROFILE).slots
    lines = ["| stage | " + " | ".join(COMPONENTS.values()) + " |", "|" + " --- |" * (1 + len(COMPONENTS))]
    for slot in slots:
        cells = []
        for component in COMPONENTS:
            found = results["cells"].get(f"{slot} {component}")
            early = "at its beginning" if found and found["at"] == "begin" else ""
            cells.append(" · ".join(filter(None, [found["outcome"], early, found["note"]])) if found else "not run")
        lines.append(f"| `{slot}` | " + " | ".join(cells) + " |")
    ran = list(results["cells"].values())
    green, missing = sum(entry["outcome"] == "ok" for entry in ran), len(slots) * len(COMPONENTS) - len(ran)
    left = ", ".join(name for names in results["left_running"].values() for name in names)
    left = f"{left or 'none'} (looked for after: {', '.join(results['left_running'])})" if results["left_running"] else "not looked for"
    lines.append(f"\n{green} of {len(ran)} cells that were run are green; {missing} were not run. Runs left without an end: {left}. "
                 f"Last run: {results['date'] or 'never'}.")
    return "\n".join(lines)


def write_page(results: dict[str, Any]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{page(results)}\n{END}{after}", encoding="utf-8")


def load_results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"date": "", "cells": {}, "left_running": {}}


@contextmanager
def recorded() -> Iterator[dict[str, Any]]:
    """The results, to be changed; two processes may run different components. The page is written with them."""
    with lock(PAGE):
        results = load_results()
        yield results
        results["date"] = datetime.now(UTC).date().isoformat()
        write_json(RESULTS, results)
        write_page(results)


def record(name: str, found: dict[str, Any]) -> None:
    with recorded() as results:
        results["cells"][name] = {key: value for key, value in found.items() if key != "run"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder, or that of an earlier call, which is gone on with")
    parser.add_argument("--component", action="append", choices=COMPONENTS, help="all four where none is named")
    parser.add_argument("--stage", action="append", help="slots to kill in; the others run undisturbed")
    parser.add_argument("--minutes", type=float, default=14.0, help="no cell is begun after this time")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.minutes
    reference = undisturbed(given.folder)
    for component in given.component or list(COMPONENTS):
        services = Services(given.folder / component, ENVIRONMENT)
        try:
            services.up()
            column(services, reference, component, given.stage, end)
        finally:
            services.stop()
    results = load_results()
    return int(any(entry["outcome"] == "failed" for entry in results["cells"].values()) or any(results["left_running"].values()))


if __name__ == "__main__":
    sys.exit(main())
