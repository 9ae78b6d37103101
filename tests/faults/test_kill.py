"""SIGKILL at random moments of `score` and `pretrain`: the same command again ends with the same bytes.

`make test` kills each stage at three seeded moments, `make test-full` at twenty."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flows.profile import configure, load_profile
from rpt_core.store.seeds import derive_seed
from rpt_core.store.stage import execute
from rpt_core.store.workspace import Workspace

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


def start(workspace: Workspace, slot: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "tests.faults.child", str(workspace.path), str(PROFILE), slot], cwd=ROOT,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_at(workspace: Workspace, slot: str, seconds: float) -> bool:
    """Start the slot, kill it ``seconds`` after its version's folder appeared; whether the kill came before the commit."""
    child = start(workspace, slot)
    versions = workspace.path / "versions" / slot
    while not (versions.exists() and list(versions.iterdir())):
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.005)
    time.sleep(seconds)
    before_commit = not workspace.versions(slot)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    return before_commit


def finish(workspace: Workspace, slot: str):
    child = start(workspace, slot)
    version, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    return workspace.manifest(slot, version.strip())


def moment(slot: str, number: int, seconds: float) -> float:
    """A seeded moment of a run that takes ``seconds``."""
    return float(np.random.Generator(np.random.Philox(derive_seed(5, slot, number))).uniform(0.05, 0.9)) * seconds


@pytest.mark.parametrize("number", MOMENTS)
def test_a_killed_score_ends_with_the_same_shards(finished, tmp_path, number):
    version = finished.current("score.filter")
    whole = finished.manifest("score.filter", version)
    workspace = without(finished, "score.filter", tmp_path)
    killed_early = kill_at(workspace, "score.filter", moment("score", number, whole.seconds))
    again = finish(workspace, "score.filter")
    assert again.version == version
    assert len(whole.tables["tokens"]) > 3, "the kill must find several shards"
    for name in ("tokens", "vocabulary"):
        assert [(s.file, s.sha256) for s in again.tables[name]] == [(s.file, s.sha256) for s in whole.tables[name]]
    assert again.attempts == (2 if killed_early else 1)


@pytest.mark.parametrize("number", MOMENTS)
def test_a_killed_pretrain_ends_with_the_same_weights_and_rollouts(finished, tmp_path, number):
    version = finished.current("pretrain")
    whole = finished.manifest("pretrain", version)
    workspace = without(finished, "pretrain", tmp_path)
    killed_early = kill_at(workspace, "pretrain", moment("pretrain", number, whole.seconds))
    again = finish(workspace, "pretrain")
    weights = {name: entry["sha256"] for name, entry in whole.files.items() if name.endswith(".safetensors")}
    assert weights
    assert {name: entry["sha256"] for name, entry in again.files.items() if name.endswith(".safetensors")} == weights
    assert whole.counts["tokens_trained"] > 0, "a run without a gradient would prove nothing"
    ids = "checkpoint_id parent_id step flops tokens_trained tokens_generated".split()
    there, here = (w.table("pretrain", version, "checkpoints").read(ids) for w in (finished, workspace))
    assert here == there
    there, here = (w.table("pretrain", version, "rollouts").read().drop_columns("run") for w in (finished, workspace))
    assert here == there
    assert again.attempts == (2 if killed_early else 1)
