"""`pretrain.backend: verl`: the exported run launched (here, or by `ray job submit`), followed step by step, and ended with the stage.

verl keeps its own checkpoints in the version's state folder and goes on from the last one, so a stage that was killed launches it again.
Its metrics become events of the stage, and so its MLflow run's. What it has made becomes our tables in `rpt_core.training.verl_results`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rpt_core.store.context import Context
from rpt_core.store.errors import UserError
from rpt_core.store.files import read_json, write_json
from rpt_core.store.sources import resolve_source
from rpt_core.training.interrupts import terminable
from rpt_core.training.pretrain_config import PretrainConfig
from rpt_core.training.verl_export import export
from rpt_core.training.verl_results import collect, saved_step, steps_dumped
from rpt_core.training.verl_settings import VERL, Files

PYTHON = "RPT_VERL_PYTHON"
LOOK_SECONDS = 0.5
STOP_SECONDS = 30.0
# runs its arguments; its process group ends at once where the writer of its standard input is gone, however that ended
GUARD = 'exec 3<&0; { read line <&3; kill -KILL 0; } & exec "$@" 3<&- </dev/null'
# verl's names for what our own trainer measures too
NAMES = {"critic/score/mean": "reward/mean", "response_length/mean": "response/tokens_mean", "actor/pg_loss": "policy/loss",
         "actor/grad_norm": "policy/grad_norm", "actor/lr": "policy/lr"}
COMPOSE = Path(__file__).with_name("verl_compose.py")


class VerlFailed(RuntimeError):
    """verl ended without having trained all steps; the next run goes on from its last checkpoint."""


def work(config: PretrainConfig, context: Context) -> dict[str, Any]:
    """Train by verl; writes `checkpoints` and `rollouts` like the local trainer, and returns the counts to commit. UserError for what
    verl cannot do, VerlFailed where it ended early."""
    python = verl_python(config)
    files = Files(context.state.resolve() / "verl")
    stop_left_over(config, files, python)
    found = export(config, context.table("documents"), context.table("positions"), context.model("checkpoint").path, files.folder,
                   f"pretrain@{context.manifest.version}", loggers=("file",))
    context.events.message(
        f"verl {VERL}: {found.train} prompts to train on, {found.validation} to validate, {found.too_long} too long, {found.injected} left "
        f"out because they spell a control token; of {found.compared} prompts {found.retokenised} become other tokens in a chat. "
        "verl draws until a batch of unequal groups is full: pretrain.dynamic_rounds does not bound it.")
    compose(python, files)
    if saved_step(files) < config.steps:
        with terminable():
            launch(config, context, files, python)
    if saved_step(files) < config.steps:
        raise VerlFailed(f"verl ended with step {saved_step(files)} of {config.steps} saved (log: {log_path(files)}).")
    context.events.message("verl is done; its checkpoints and rollouts are brought back.")
    return collect(config, context, files, python) | {
        "verl": VERL, "positions": found.train, "positions_too_long": found.too_long, "prompts_injected": found.injected,
        "prompts_compared": found.compared, "prompts_retokenised": found.retokenised}


def verl_python(config: PretrainConfig) -> str:
    """The interpreter that has verl. UserError where it is not there, or has no verl or another one, or where ``config`` names one outside
    the allowed roots: a form chooses no program, the worker's environment does."""
    if config.verl_python:
        resolve_source(config.verl_python)  # as it is named here, because a virtual environment's Python is a link
    python = config.verl_python or os.environ.get(PYTHON) or sys.executable
    code = "from importlib.metadata import version; print(version('verl'))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=120)
    except OSError as error:
        raise UserError(f"verl's Python, {python}, cannot be run ({error.strerror}); set pretrain.verl_python.") from None
    if done.returncode:
        raise UserError(f"{python} has no verl, which needs an environment of its own (docs/scale.md); set pretrain.verl_python or "
                        f"{PYTHON} to its Python.")
    if done.stdout.strip() != VERL:
        raise UserError(f"{python} has verl {done.stdout.strip()}, and the settings are those of {VERL}; install verl=={VERL} there.")
    return python


def compose(python: str, files: Files) -> None:
    """Let verl's own configuration take the settings before anything is started. UserError with its sentence where it does not."""
    done = subprocess.run([python, str(COMPOSE), str(files.arguments)], capture_output=True, text=True, timeout=300)
    if done.returncode == 2:
        raise UserError(f"verl refuses a setting: {' '.join(done.stderr.split())}")
    if done.returncode:
        raise VerlFailed(f"verl's configuration could not be read: {done.stderr.strip().splitlines()[-1]}")


def launch(config: PretrainConfig, context: Context, files: Files, python: str) -> None:
    """Run verl until it ends; VerlFailed where it failed. Its process group, or its job on the cluster, ends with this block."""
    address, submission = config.verl_address, f"rpt-{context.manifest.version}-{time.time_ns() // 1_000_000}"
    write_json(job_path(files), {"submission": submission})
    follower = Follower(config, context, files, files.metrics / submission)
    variables = {"VERL_PYTHON": python, "VERL_FILE_LOGGER_ROOT": str(follower.metrics)}
    with open(log_path(files), "ab") as log, started(command(files, python, address, submission, variables), variables, log) as process:
        said = log.tell()
        try:
            while process.poll() is None:
                follower.look()
                time.sleep(LOOK_SECONDS)
        except BaseException:
            if address:
                stop_job(python, address, submission)
            raise
        finally:
            follower.look()
    if process.returncode:
        raise VerlFailed(f"verl ended with status {process.returncode}, step {saved_step(files)} of {config.steps} saved: "
                         f"{last_error(files, said)} (log: {log_path(files)})")


class Follower:
    """Tells the stage's events what verl has done since the last look. A checkpoint of verl's closes a part, because that is where a
    resume goes on: MLflow gets the metrics up to there, and what was said of later steps is dropped with them."""

    def __init__(self, config: PretrainConfig, context: Context, files: Files, metrics: Path):
        self.config, self.context, self.files, self.metrics = config, context, files, metrics
        self._read: dict[Path, int] = {}  # bytes of the metrics' files, one per phase
        self._dumped, self._told, self._closed = -1, 0, saved_step(files)

    def look(self) -> None:
        for path in sorted(self.metrics.glob("*/*.jsonl")):
            with open(path, "rb") as file:
                file.seek(self._read.get(path, 0))
                added = file.read()
            lines = added[: added.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(lines)
            for line in lines.splitlines():
                self._metrics(**json.loads(line))
        if (dumped := steps_dumped(self.files)) != self._dumped:
            self._dumped = dumped
            self.context.events.progress(dumped, self.config.steps, "steps", "verl")
        saved = saved_step(self.files)
        if self._closed < saved <= self._told:  # verl saves a step before it tells its metrics
            self._closed = saved
            drop_superseded(self.files, self.config.milestones, saved)
            self.context.close_part()

    def _metrics(self, step: int, data: dict[str, Any]) -> None:
        numbers = {name: value for name, value in data.items() if isinstance(value, int | float)}  # null stands for what is not finite
        self.context.events.metrics(step, {NAMES.get(name, re.sub(r"[^/\w.\- :]", "_", name)): value for name, value in numbers.items()})
        self._told = max(self._told, step)


def drop_superseded(files: Files, milestones: list[int], saved: int) -> None:
    """verl resumes from its last checkpoint alone: of those before step ``saved`` only a milestone's weights are needed."""
    for folder in files.checkpoints.glob("global_step_*"):
        step = int(folder.name.rpartition("_")[2])
        if step < saved and step not in milestones:
            shutil.rmtree(folder)
        elif step < saved:
            for path in (folder / "actor").glob("optim_world_size_*"):
                path.unlink()


def command(files: Files, python: str, address: str, submission: str, variables: dict[str, str]) -> list[str]:
    """What starts verl: the script itself, or Ray's command that hands it to a cluster and follows it to its end."""
    if not address:
        return ["sh", str(files.launch)]
    return [*ray_job(python), "submit", "--address", address, "--submission-id", submission,
            "--runtime-env-json", json.dumps({"env_vars": variables}), "--", "sh", str(files.launch)]


def ray_job(python: str) -> list[str]:
    return [python, "-m", "ray.scripts.scripts", "job"]


def job_path(files: Files) -> Path:
    return files.folder / "job.json"


def stop_left_over(config: PretrainConfig, files: Files, python: str) -> None:
    """On a cluster the job of an attempt that was killed may still run."""
    if config.verl_address and job_path(files).exists():
        stop_job(python, config.verl_address, read_json(job_path(files))["submission"])


def stop_job(python: str, address: str, submission: str) -> None:
    subprocess.run([*ray_job(python), "stop", "--address", address, submission], capture_output=True, timeout=120)


@contextmanager
def started(arguments: list[str], variables: dict[str, str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, which outlives neither the block nor this process."""
    process = subprocess.Popen(["sh", "-c", GUARD, "sh", *arguments], env={**os.environ, **variables}, stdin=subprocess.PIPE, stdout=log,
                               stderr=log, start_new_session=True)
    assert process.stdin
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()


def log_path(files: Files) -> Path:
    return files.folder / "verl.log"


def last_error(files: Files, begun: int) -> str:
    """The last line that names an error in verl's log, of what was written behind its first ``begun`` bytes."""
    with open(log_path(files), "rb") as log:
        log.seek(begun)
        lines = log.read().decode("utf-8", "replace").splitlines()
    named = [line for line in lines if "Error" in line and not line.lstrip().startswith("File")]
    return " ".join((named or lines or ["it said nothing"])[-1].split())[:300]
