"""What an operator relies on, on a real server with a process worker: one GPU stage at a time, cancellation, dead runs, the webhook."""

import os
import signal
import time

import pytest

from rpt_core.store.events import read_events
from tests.e2e.stack import Stack, descendants

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600), pytest.mark.xdist_group("prefect")]
SMALL = {"vocab_size": 420, "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "window": 128,
         "lr": 0.01, "dtype": "float32", "threads": 1, "train_tokens": 400_000}


def times(stack: Stack, slot: str, version: str) -> tuple[float, float, float]:
    """(begun, first metric, last event) of a version's run, seconds since the epoch."""
    events = list(read_events(stack.workspace.version_folder(slot, version) / "events.jsonl"))
    return events[0]["time"], next(event["time"] for event in events if event["type"] in ("metrics", "progress")), events[-1]["time"]


def test_two_gpu_stages_started_at_once_compute_one_after_the_other(stack, chain):
    chain.upto("ingest")
    runs = [stack.start_run("bootstrap", {"config": {**SMALL, "seed": seed}}) for seed in (101, 102)]
    most = 0
    while any(stack.get(f"/flow_runs/{run}")["state"]["type"] not in ("COMPLETED", "FAILED", "CRASHED") for run in runs):
        most = max(most, stack.get("/v2/concurrency_limits/rpt-gpu")["active_slots"])
        time.sleep(0.3)
    assert [stack.ended(run)["state"]["type"] for run in runs] == ["COMPLETED"] * 2, stack.log("worker")[-3000:]
    assert most == 1
    made = [version for version in stack.workspace.versions("bootstrap")
            if stack.workspace.manifest("bootstrap", version).config["seed"] in (101, 102)]
    first, second = sorted((times(stack, "bootstrap", version) for version in made), key=lambda found: found[1])
    assert second[0] < first[2], "the second must have waited: it was begun before the first ended"
    assert second[1] >= first[2], "and computed only then"
    assert stack.get("/v2/concurrency_limits/rpt-gpu")["active_slots"] == 0


def test_a_cancelled_run_has_ended_its_processes_within_15_seconds_and_its_stage_goes_on_later(stack, chain):
    chain.upto("warmstart")
    config = {"steps": 60, "batch_positions": 16, "group_size": 4, "max_response_tokens": 32, "part_steps": 2,
              "threads": 1, "processes": 2, "seed": 77, "device": "cpu", "dynamic_from_step": 0}
    run = stack.start_run("pretrain", {"config": config})

    def trained() -> list[int]:
        state = stack.get(f"/flow_runs/{run}")["state"]
        assert state["type"] not in ("FAILED", "CRASHED"), state
        steps = [event["step"] for _, folder in stack.workspace.running() for event in read_events(folder / "events.jsonl")
                 if event["type"] == "metrics"]
        return steps if len(steps) > 3 else []

    stack.wait_for(trained, "the first steps")
    below = descendants(stack.worker.pid)
    assert len(below) >= 4, "the run, torchrun's agent and two ranks"
    begun = time.monotonic()
    stack.get(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    stack.wait_for(lambda: not any(alive(pid) for pid in below), "the end of every child process")
    seconds = time.monotonic() - begun
    print(f"{len(below)} processes ended after {seconds:.1f} s")
    assert stack.ended(run)["state"]["type"] == "CANCELLED"
    assert stack.worker.poll() is None
    ((slot, folder),) = [(slot, folder) for slot, folder in stack.workspace.running() if slot == "pretrain"]
    assert stack.get("/v2/concurrency_limits/rpt-gpu")["active_slots"] == 0

    done = max(event["step"] for event in read_events(folder / "events.jsonl") if event["type"] == "metrics")
    again = stack.run_deployment("pretrain", {"config": {**config, "steps": 60}})
    assert again["state"]["type"] == "COMPLETED", stack.log("worker")[-3000:]
    manifest = stack.workspace.manifest(slot, folder.name)
    assert manifest.attempts == 2
    said = stack.logs(again["id"])
    assert any(f"pretrain goes on from step {step}" in said for step in range(2, done + 1))
    assert seconds < 15  # last, because a machine with much else to do is slower, and the rest holds there too


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_runs_that_were_killed_are_crashed_by_the_server_and_posted_to_the_webhook(stack, chain):
    chain.upto("ingest")
    refused = stack.run_deployment("ingest", {"config": {"sources": ["/etc/hostname"]}})
    posted = stack.wait_for(lambda: [one for one in stack.webhook.received if one["id"] == refused["id"]], "the post of the refusal")
    assert posted[0]["state"] == "Refused"
    assert "outside the allowed roots" in posted[0]["message"]
    assert posted[0]["deployment"] == "ingest"

    run = stack.start_run("bootstrap", {"config": {**SMALL, "train_tokens": 50_000_000, "seed": 103}})
    stack.wait_for(lambda: stack.get("/v2/concurrency_limits/rpt-gpu")["active_slots"] == 1, "the run's GPU slot")
    time.sleep(5)  # its first heartbeat is at the server
    deployment = stack.get("/deployments/name/select/select")["id"]
    taken = stack.get(f"/deployments/{deployment}/create_flow_run", {"state": {"type": "PENDING"}})["id"]  # by a worker that then died
    worker = stack.worker
    for pid in [worker.pid, *descendants(worker.pid)]:
        os.kill(pid, signal.SIGKILL)
    stack.end(worker)
    try:
        deploy_again(stack)  # as a machine does that starts again; what the automation waits for must not go with it
        stack.wait_for(lambda: stack.get("/v2/concurrency_limits/rpt-gpu")["active_slots"] == 0, "the dead run's GPU slot")
        found = stack.ended(run)
        assert (found["state"]["type"], found["state"]["name"]) == ("CRASHED", "Crashed")
        assert "No heartbeat for 90 s" in found["state"]["message"]
        assert stack.ended(taken)["state"]["name"] == "Crashed"
        stack.wait_for(lambda: [one for one in stack.webhook.received if one["id"] == run], "the post of the crash")
    finally:
        stack.start_worker()


def deploy_again(stack: Stack) -> None:
    stack.command("flows.cli", "deploy", "--pool", "test-pool", "--automations", "--webhook", stack.webhook.url)


def test_deploying_again_keeps_the_automations_and_a_limit_that_was_changed(stack):
    limit = stack.get("/v2/concurrency_limits/rpt-gpu")
    before = {automation["name"]: automation["id"] for automation in stack.get("/automations/filter", {})}
    assert set(before) == {"rpt: dead runs are crashed", "rpt: failures call the webhook"}
    stack.patch("/v2/concurrency_limits/rpt-gpu", {"limit": 2})
    try:
        deploy_again(stack)
        assert stack.get("/v2/concurrency_limits/rpt-gpu")["limit"] == 2
    finally:
        stack.patch("/v2/concurrency_limits/rpt-gpu", {"limit": limit["limit"]})
    found = stack.get("/automations/filter", {})
    assert {automation["name"]: automation["id"] for automation in found} == before
    assert len(found) == len(before)
