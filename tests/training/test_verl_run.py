"""How verl is launched and followed, with a shell script in its place: nothing outlives the stage, metrics and errors are those of this
launch, and checkpoints that nothing will read do not stay."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rpt_core.store.errors import UserError
from rpt_core.store.stage import execute
from rpt_core.training.pretrain_config import STAGE
from rpt_core.training.verl_run import Follower, drop_superseded, last_error, log_path, started
from rpt_core.training.verl_settings import Files
from tests.training.verl_world import small, workspace_with_dev

PARENT = """
import sys, time
from rpt_core.training.verl_run import started
with open(sys.argv[1] + "/log", "wb") as log, started(["sh", "-c", sys.argv[2]], {}, log):
    time.sleep(600)
"""
SAVES_ALONE = """#!/bin/sh
case "$1 $2" in
  "-c "*) echo 0.9.1;;
  "-m verl.trainer.main_ppo")
    for word; do case $word in
      trainer.default_local_dir=*) folder=${word#*=};;
      trainer.total_training_steps=*) step=${word#*=};;
    esac; done
    mkdir -p "$folder"; printf $step > "$folder/latest_checkpointed_iteration.txt"; echo ran to $step;;
esac
"""
TREE = 'sleep 600 & echo $! > "$FOLDER/inner"; wait'  # as launch.sh: the process that works is a child of the shell


def ends(pid: int) -> bool:
    """Whether a process, of whoever it is now a child, ends within a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def number(path: Path) -> int:
    end = time.monotonic() + 120
    while not path.exists() or not path.read_text().strip():
        assert time.monotonic() < end, f"{path} is not written"
        time.sleep(0.05)
    return int(path.read_text())


def test_verl_ends_with_a_stage_that_is_killed(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), TREE], env={**os.environ, "FOLDER": str(tmp_path)})
    inner = number(tmp_path / "inner")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert ends(inner)


def test_verl_and_what_it_started_end_with_the_block(tmp_path):
    with open(tmp_path / "log", "wb") as log, started(["sh", "-c", TREE], {"FOLDER": str(tmp_path)}, log) as process:
        inner = number(tmp_path / "inner")
        assert process.poll() is None
    assert ends(inner)
    with open(tmp_path / "log", "wb") as log, started(["sh", "-c", "cat; echo said $WORD; exit 3"], {"WORD": "so"}, log) as process:
        assert process.wait(60) == 3  # its standard input is empty
    assert (tmp_path / "log").read_text() == "said so\n"


def test_the_error_is_of_this_launch_not_of_one_before(tmp_path):
    files = Files(tmp_path)
    before = "ValueError: of the first launch\n"
    log_path(files).write_text(f"{before}step 1\n  File \"x\", in Error\nRuntimeError: no  memory\nbye\n")
    assert last_error(files, len(before)) == "RuntimeError: no memory"
    log_path(files).write_text(f"{before}Killed\n")
    assert last_error(files, len(before)) == "Killed"
    log_path(files).write_text(before)
    assert last_error(files, len(before)) == "it said nothing"


class Heard:
    """A context that only listens."""

    def __init__(self):
        self.events, self.metrics_said, self.steps, self.parts = self, [], [], 0

    def metrics(self, step, values):
        self.metrics_said.append((step, values))

    def progress(self, done, total, unit, note=""):
        self.steps.append((done, total))

    def close_part(self):
        self.parts += 1


def test_metrics_are_told_as_they_come_and_a_checkpoint_closes_a_part_once_its_step_is_told(tmp_path):
    files, context = Files(tmp_path), Heard()
    files.checkpoints.mkdir()
    path = files.metrics / "launch" / "rpt" / "pretrain-1.jsonl"
    follower = Follower(small(), context, files, files.metrics / "launch")  # type: ignore[arg-type]
    follower.look()
    path.parent.mkdir(parents=True)
    line = json.dumps({"step": 1, "data": {"critic/score/mean": 0.5, "val-core/acc/mean@1": 1, "not finite": None}})
    path.write_text(f'{line}\n{{"step": 2, "da')
    follower.look()
    assert context.metrics_said == [(1, {"reward/mean": 0.5, "val-core/acc/mean_1": 1})]
    (files.checkpoints / "latest_checkpointed_iteration.txt").write_text("2")
    follower.look()
    assert context.parts == 0  # a resume would begin with step 3 and never tell of step 2
    path.write_text(f'{line}\n{{"step": 2, "data": {{"a": 2}}}}\n')
    path.with_name("pretrain-2.jsonl").write_text('{"step": 3, "data": {"a": 3}}\n')
    files.rollouts.mkdir()
    (files.rollouts / "3.jsonl").write_text("")
    follower.look()
    follower.look()
    assert context.metrics_said[1:] == [(2, {"a": 2}), (3, {"a": 3})]
    assert context.parts == 1
    assert context.steps == [(0, 4), (3, 4)]


def test_of_earlier_checkpoints_only_the_weights_of_milestones_stay(tmp_path):
    files = Files(tmp_path)
    for step in (2, 4, 6, 8):
        folder = files.checkpoints / f"global_step_{step}" / "actor"
        folder.mkdir(parents=True)
        for name in ("model_world_size_2_rank_0.pt", "optim_world_size_2_rank_0.pt", "fsdp_config.json"):
            (folder / name).touch()
    drop_superseded(files, milestones=[4, 8], saved=6)
    left = {str(path.relative_to(files.checkpoints)) for path in files.checkpoints.rglob("*") if path.is_file()}
    whole = {f"global_step_{step}/actor/{name}" for step in (6, 8)
             for name in ("model_world_size_2_rank_0.pt", "optim_world_size_2_rank_0.pt", "fsdp_config.json")}
    assert left == whole | {"global_step_4/actor/model_world_size_2_rank_0.pt", "global_step_4/actor/fsdp_config.json"}


@pytest.mark.parametrize("address", ["", "http://head:8265"])
def test_a_job_carries_what_verl_needs_to_know(tmp_path, address):
    from rpt_core.training.verl_run import command

    given = command(Files(tmp_path), "/envs/verl/bin/python", address, "rpt-1", {"VERL_FILE_LOGGER_ROOT": "/shared/metrics"})
    assert given[-2:] == ["sh", str(tmp_path / "launch.sh")]
    assert ("VERL_FILE_LOGGER_ROOT" in " ".join(given)) == bool(address)  # here it is in the environment


def test_a_cluster_that_does_not_share_the_folder_is_named_and_loses_nothing(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(SAVES_ALONE)
    python.chmod(0o755)
    monkeypatch.setenv("RPT_VERL_PYTHON", str(python))
    workspace = workspace_with_dev(tmp_path / "ws")
    for _ in range(2):  # the second time there is nothing left to launch
        with pytest.raises(UserError, match=r"no record of a response in .*/scored: that folder must be one that every node sees"):
            execute(STAGE, small(), workspace)
    [log] = workspace.path.rglob("verl.log")
    assert log.read_text() == "ran to 2\nran to 4\n"
