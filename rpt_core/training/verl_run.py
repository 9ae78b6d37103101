"""`pretrain.backend: verl`: the exported run launched (here, or by `ray job submit`), followed step by step, and ended with the stage.

verl keeps its own checkpoints in the version's state folder and goes on from the last one, so a stage that was killed launches it again.
What it has made becomes our tables in `rpt_core.training.verl_results`."""

import json
import os
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
TRACKING = "RPT_TRACKING_URI"  # of the MLflow that holds the stage's run
LOOK_SECONDS = 0.5
STOP_SECONDS = 30.0
COMPOSE = Path(__file__).with_name("verl_compose.py")


class VerlFailed(RuntimeError):
    """verl ended without having trained all steps; the next run goes on from its last checkpoint."""


def work(config: PretrainConfig, context: Context) -> dict[str, Any]:
    """Train by verl; writes `checkpoints` and `rollouts` like the local trainer, and returns the counts to commit. UserError for what
    verl cannot do, VerlFailed where it ended early."""
    python = verl_python(config)
    files = Files(context.state.resolve() / "verl")
    stop_left_over(config, files, python)
    joined = mlflow_run(context)
    found = export(config, context.table("documents"), context.table("positions"), context.model("checkpoint").path, files.folder,
                   f"pretrain@{context.manifest.version}", bool(joined))
    context.events.message(
        f"verl {VERL}: {found.train} prompts to train on, {found.validation} to validate, {found.too_long} too long, {found.injected} left "
        f"out because they spell a control token; of {found.compared} prompts {found.retokenised} become other tokens in a chat. "
        "verl draws until a batch of unequal groups is full: pretrain.dynamic_rounds does not bound it.")
    compose(python, files)
    if saved_step(files) < config.steps:
        with terminable():
            launch(config, context, files, python, joined)
    if saved_step(files) < config.steps:
        raise VerlFailed(f"verl ended with step {saved_step(files)} of {config.steps} saved (log: {log_path(files)}).")
    context.events.message("verl is done; its checkpoints and rollouts are brought back.")
    return collect(config, context, files, python) | {
        "verl": VERL, "positions": found.train, "positions_too_long": found.too_long, "prompts_injected": found.injected,
        "prompts_compared": found.compared, "prompts_retokenised": found.retokenised}


def mlflow_run(context: Context) -> dict[str, str]:
    """What makes verl log to the stage's own MLflow run; empty where there is none."""
    run, uri = context.manifest.run_ids.get("mlflow"), os.environ.get(TRACKING)
    return {"MLFLOW_RUN_ID": run, "MLFLOW_TRACKING_URI": uri} if run and uri else {}


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


def launch(config: PretrainConfig, context: Context, files: Files, python: str, variables: dict[str, str]) -> None:
    """Run verl until it ends; VerlFailed where it failed. Its process group, or its job on the cluster, ends with this block."""
    address, submission = config.verl_address, f"rpt-{context.manifest.version}-{context.events.attempt}"
    write_json(job_path(files), {"submission": submission})
    variables = {"VERL_PYTHON": python, **variables}
    with open(log_path(files), "ab") as log, started(command(files, python, address, submission, variables), variables, log) as process:
        said = -1
        try:
            while process.poll() is None:
                done = steps_dumped(files)
                if done != said:
                    context.events.progress(done, config.steps, "steps", "verl")
                    said = done
                time.sleep(LOOK_SECONDS)
        except BaseException:
            if address:
                stop_job(python, address, submission)
            raise
    if process.returncode:
        raise VerlFailed(f"verl ended with status {process.returncode}, step {saved_step(files)} of {config.steps} saved: "
                         f"{last_error(files)} (log: {log_path(files)})")


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
    """A process in a group of its own, which does not outlive the block."""
    process = subprocess.Popen(arguments, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                               start_new_session=True)
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


def log_path(files: Files) -> Path:
    return files.folder / "verl.log"


def last_error(files: Files) -> str:
    """The last line of verl's log that names an error."""
    lines = log_path(files).read_text(encoding="utf-8", errors="replace").splitlines()
    named = [line for line in lines if "Error" in line and not line.lstrip().startswith("File")]
    return " ".join((named or lines or ["it said nothing"])[-1].split())[:300]
