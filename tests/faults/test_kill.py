"""SIGKILL at random moments of `score` and `pretrain`: the same command again ends with the same bytes. SIGTERM saves on its way out.

`make test` kills each stage at three seeded moments, `make test-full` at twenty. Those of `pretrain` fall in turn into a rollout (of a
refill round too), an update and the saving of a state or checkpoint: each at a random occurrence and a random place within it."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flows.profile import configure, load_profile
from rpt_core.store.events import read_events
from rpt_core.store.seeds import derive_seed
from rpt_core.store.stage import execute
from rpt_core.store.workspace import Workspace
from tests.faults.child import LAYOUT, PHASES

ROOT = Path(__file__).parents[2]
PROFILE = Path(__file__).with_name("micro.yaml")
BEFORE = ["ingest", "bootstrap", "score.filter", "score.difficulty", "select", "warmstart"]
MOMENTS = [*range(3), *(pytest.param(n, marks=pytest.mark.full) for n in range(3, 20))]

pytestmark = pytest.mark.xdist_group("faults")


def run_slot(workspace: Workspace, slot: str):
    return execute(*configure(load_profile(str(PROFILE)), slot), workspace).manifest


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Workspace:
    """A workspace in which every stage up to `pretrain` ran without being disturbed."""
    workspace = Workspace(tmp_path_factory.mktemp("finished") / "ws")
    for slot in [*BEFORE, "pretrain"]:
        run_slot(workspace, slot)
    return workspace


def without(finished: Workspace, slot: str, folder: Path) -> Workspace:
    """A copy of the workspace in which a slot has never run."""
    shutil.copytree(finished.path, folder / "ws")
    shutil.rmtree(folder / "ws" / "versions" / slot)
    (folder / "ws" / "pointers" / f"{slot}.json").unlink()
    return Workspace(folder / "ws")


def start(workspace: Workspace, slot: str, phases: Path | None = None) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.faults.child", str(workspace.path), str(PROFILE), slot, *([str(phases)] if phases else [])]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)


def kill_at(workspace: Workspace, slot: str, seconds: float) -> int:
    """Start the slot, kill it ``seconds`` after its version's folder appeared; the attempts that the version will have taken."""
    child = start(workspace, slot)
    versions = workspace.path / "versions" / slot
    while not (versions.exists() and list(versions.iterdir())):
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.002)
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    if workspace.versions(slot):  # asked of the dead, which commits no more
        return 1
    (folder,) = versions.iterdir()
    return 1 + any(read_events(folder / "events.jsonl"))  # killed before its first line, it is as if it had never begun


def finish(workspace: Workspace, slot: str):
    child = start(workspace, slot)
    version, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    return workspace.manifest(slot, version.strip())


def random_of(slot: str, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(derive_seed(5, slot, number)))


def end_in_phase(workspace: Workspace, folder: Path, number: int, sign: signal.Signals) -> tuple[str, int]:
    """Start `pretrain` and send it ``sign`` in the phase that is ``number``'s turn, at a random occurrence and place. Returns the phase
    the signal fell into ("" = between two) and the child's exit status."""
    random, phase = random_of("pretrain", number), list(PHASES)[number % len(PHASES)]
    occurrence = int(random.integers(1, {"rollout": 12, "update": 20, "save": 8}[phase]))  # there are 12 steps, 6 parts, 6 milestones
    pause = float(random.uniform(0, {"rollout": 0.15, "update": 0.05, "save": 0.008}[phase]))
    shown = folder / "phases"
    shown.write_bytes(struct.pack(LAYOUT, 0, 0, 0, 0))
    child = start(workspace, "pretrain", shown)
    while struct.unpack(LAYOUT, shown.read_bytes())[1 + list(PHASES).index(phase)] < occurrence:
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.0005)
    time.sleep(pause)
    child.send_signal(sign)
    if sign == signal.SIGKILL:
        child.wait()  # its pipes hold little
    found = struct.unpack(LAYOUT, shown.read_bytes())[0]
    child.communicate(timeout=120)
    return ["", *PHASES][found], child.returncode


landed: list[str] = []  # the phases that the kills of this process fell into


@pytest.mark.parametrize("number", MOMENTS)
def test_a_killed_score_ends_with_the_same_shards(finished, tmp_path, number):
    version = finished.current("score.filter")
    whole = finished.manifest("score.filter", version)
    workspace = without(finished, "score.filter", tmp_path)
    attempts = kill_at(workspace, "score.filter", float(random_of("score", number).uniform(0.05, 0.9)) * whole.seconds)
    again = finish(workspace, "score.filter")
    assert again.version == version
    assert len(whole.tables["tokens"]) > 3, "the kill must find several shards"
    for name in ("tokens", "vocabulary"):
        assert [(s.file, s.sha256) for s in again.tables[name]] == [(s.file, s.sha256) for s in whole.tables[name]]
    assert again.attempts == attempts


def assert_same_run(finished: Workspace, workspace: Workspace, again) -> None:
    """Weights, states of the account and rollouts to the byte."""
    version = finished.current("pretrain")
    whole = finished.manifest("pretrain", version)
    weights = {name: entry["sha256"] for name, entry in whole.files.items() if name.endswith(".safetensors")}
    assert weights
    assert {name: entry["sha256"] for name, entry in again.files.items() if name.endswith(".safetensors")} == weights
    assert whole.counts["tokens_trained"] > 0, "a run without a gradient would prove nothing"
    ids = "checkpoint_id parent_id step flops tokens_trained tokens_generated".split()
    there, here = (w.table("pretrain", version, "checkpoints").read(ids) for w in (finished, workspace))
    assert here == there
    there, here = (w.table("pretrain", version, "rollouts").read().drop_columns("run") for w in (finished, workspace))
    assert here == there
    assert [shard.content for shard in again.tables["rollouts"]] == [shard.content for shard in whole.tables["rollouts"]]


@pytest.mark.parametrize("number", MOMENTS)
def test_a_killed_pretrain_ends_with_the_same_weights_and_rollouts(finished, tmp_path, number):
    workspace = without(finished, "pretrain", tmp_path)
    phase, status = end_in_phase(workspace, tmp_path, number, signal.SIGKILL)
    landed.append(phase)
    assert status == -signal.SIGKILL
    assert not workspace.versions("pretrain"), "the kill must come before the commit"
    again = finish(workspace, "pretrain")
    assert again.attempts == 2
    assert_same_run(finished, workspace, again)


def test_the_kills_fell_into_rollouts_updates_and_saves():
    """Where the machine is slow to send a kill it may fall behind its phase, but not most of the time."""
    if not landed:
        pytest.skip("no kill in this process")
    print("kills fell into:", landed)
    if len(landed) >= 20:
        assert set(PHASES) <= set(landed)


@pytest.mark.parametrize("number", [4, pytest.param(5, marks=pytest.mark.full), pytest.param(6, marks=pytest.mark.full)])
def test_a_terminated_pretrain_says_so_keeps_its_last_step_and_ends_with_the_same_bytes(finished, tmp_path, number):
    workspace = without(finished, "pretrain", tmp_path)
    _, status = end_in_phase(workspace, tmp_path, number, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    (folder,) = (workspace.path / "versions" / "pretrain").iterdir()
    steps = [event["step"] for event in read_events(folder / "events.jsonl") if event["type"] == "metrics"]
    again = finish(workspace, "pretrain")
    said = [event["data"]["text"] for event in read_events(folder / "events.jsonl") if event["type"] == "message"]
    assert f"pretrain goes on from step {steps[-1]}" in said  # the last step it had finished, parts of two steps or not
    assert_same_run(finished, workspace, again)
