"""Every flow as a deployment: one per stage and the pipeline, found by module path so that no working directory matters."""

import asyncio
import importlib
import inspect
import os
import signal
from contextlib import suppress
from typing import Any

from prefect.deployments.runner import RunnerDeployment
from prefect.flows import Flow
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from rpt_core.store.errors import UserError
from rpt_core.store.sources import source_roots
from rpt_core.store.workspace import Workspace
from tasks.limits import GPU_LIMIT
from tasks.tracking import without_password

FLOWS: dict[str, str] = {
    "ingest": "flows.ingest.ingest_corpus",
    "bootstrap": "flows.bootstrap.bootstrap_model",
    "score": "flows.score.score_tokens",
    "select": "flows.select.select_positions",
    "warmstart": "flows.warmstart.warmstart_policy",
    "pretrain": "flows.pretrain.pretrain_policy",
    "control": "flows.control.train_control",
    "evaluate": "flows.evaluate.evaluate_checkpoints",
    "scaling": "flows.scaling.fit_scaling",
    "finetune": "flows.finetune.finetune_policy",
    "benchmark": "flows.benchmark.benchmark_checkpoints",
    "patterns": "flows.patterns.count_patterns",
    "report": "flows.report.write_report",
    "pipeline": "flows.pipeline.pipeline",
}
TRAINING = ("bootstrap", "warmstart", "pretrain", "control", "finetune")
GPU = (*TRAINING, "score", "evaluate", "benchmark")  # stages with a device: they take a slot of the GPU limit
TAGS = {name: ["rpt", *(["training"] if name in TRAINING else []), *(["gpu"] if name in GPU else [])] for name in FLOWS}
IMAGE = "rpt:0.1.0"  # as docker/compose.yaml builds it
WEEKLY = "0 3 * * 1"  # Mondays at three


def flow_of(name: str) -> Flow[..., Any]:
    module, _, function = FLOWS[name].rpartition(".")
    return getattr(importlib.import_module(module), function)


def worker_environment(workspace: Workspace) -> dict[str, str]:
    """What a worker's run must know: the workspace, the source roots, where MLflow is. Nothing secret: an address with a password in it
    is the worker's own to know, as tokens are."""
    found = {"RPT_HOME": str(workspace.path), "RPT_RETRIES": os.environ.get("RPT_RETRIES", "2"),
             "RPT_GPU_LIMIT": os.environ.get("RPT_GPU_LIMIT", GPU_LIMIT)}
    for name in ("RPT_SOURCES", "MLFLOW_TRACKING_URI", "RPT_MLFLOW_URL", "RPT_TRACKING", "HF_HOME", "HF_HUB_OFFLINE"):
        value = os.environ.get(name, "")
        if value and value == without_password(value):
            found[name] = value
    return found


def job_variables(workspace: Workspace, pool_type: str) -> dict[str, Any]:
    """What a run in the pool is given. A container of a docker pool sees the workspace, and the sources read-only, where they are here."""
    found: dict[str, Any] = {"env": worker_environment(workspace)}
    if pool_type == "docker":
        found["image"] = os.environ.get("RPT_IMAGE", IMAGE)
        found["image_pull_policy"] = "IfNotPresent"
        found["volumes"] = [f"{workspace.path}:{workspace.path}", *(f"{root}:{root}:ro" for root in source_roots())]
    return found


def deployments(workspace: Workspace, pool: str | None = None, pool_type: str = "process") -> list[RunnerDeployment]:
    """One deployment per flow; with ``pool`` for that work pool, RPT_HOME and RPT_SOURCES in its job variables."""
    found = []
    for name in FLOWS:
        flow = flow_of(name)
        extra: dict[str, Any] = {"work_pool_name": pool, "job_variables": job_variables(workspace, pool_type)} if pool else {}
        if name == "pipeline":
            extra.update(schedule=Cron(WEEKLY, timezone="UTC", active=False))  # paused until someone switches it on
        said = inspect.cleandoc((flow.description or "").partition("Args:")[0])
        found.append(RunnerDeployment.from_flow(flow, name=name, description=said, tags=TAGS[name],
                                                entrypoint_type=EntrypointType.MODULE_PATH, **extra))
    return found


class Server(Runner):
    """Prefect's runner, which SIGTERM ends as Ctrl-C does; its own handler starts a stop it never awaits."""

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        signal.raise_signal(signal.SIGINT)


def serve_all(workspace: Workspace) -> None:
    """Run what is asked of any deployment, each run in a process of its own, until Ctrl-C or SIGTERM; schedules are paused then."""
    os.environ.update(worker_environment(workspace))  # a run inherits it
    ensure_limit()
    server = Server(pause_on_shutdown=True)
    for deployment in deployments(workspace):
        server.add_deployment(deployment)
    with suppress(KeyboardInterrupt):
        asyncio.run(server.start())


def ensure_limit() -> None:
    """Create the GPU limit of one slot where it is missing; a size that someone chose in the UI stays."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectNotFound

    name = os.environ.get("RPT_GPU_LIMIT", GPU_LIMIT)
    if not name:
        return
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))


def ensure_pool(name: str) -> str:
    """Type of the work pool, process or docker; a process pool is created where there is none. UserError where it is of another type."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            found = client.read_work_pool(name)
        except ObjectNotFound:
            found = client.create_work_pool(WorkPoolCreate(name=name, type="process"))
    if found.type not in ("process", "docker"):
        raise UserError(f"the work pool {name} is of type {found.type}; name a process or docker pool.")
    return found.type
