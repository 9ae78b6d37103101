"""`rpt up`, `rpt serve`, `rpt deploy`: the flows on a Prefect server."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.common import open_workspace, out
from flows.server import free_port, prefect_settings, wait_until_ready
from rpt_core.store.errors import UserError
from rpt_core.store.workspace import Workspace


def need_server() -> None:
    if not os.environ.get("PREFECT_API_URL"):
        raise UserError("PREFECT_API_URL is not set; start a server (`rpt up`, or `prefect server start`) and set it, "
                        "e.g. http://127.0.0.1:4200/api.")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    wait_until_ready()


def deploy(
    pool: Annotated[str, typer.Option("--pool", help="Work pool of the deployments; a process pool is made where it is missing.")] = "rpt",
    automations: Annotated[bool, typer.Option("--automations", help="Let the server mark dead runs Crashed and post failures.")] = False,
    webhook: Annotated[str, typer.Option(envvar="RPT_WEBHOOK_URL", help="Address that --automations posts failed and crashed runs to; "
                                         "better in RPT_WEBHOOK_URL, because a command line is seen by all.")] = "",
) -> None:
    """Create a deployment of every stage and of the pipeline, with this workspace and RPT_SOURCES baked in, and the limit of one GPU
    stage at a time.

    Example: PREFECT_API_URL=http://127.0.0.1:4200/api rpt deploy --pool rpt --automations
    """
    workspace = open_workspace()
    need_server()
    from flows.deployments import deployments, ensure_limit, ensure_pool

    kind = ensure_pool(pool)
    ensure_limit()
    for deployment in deployments(workspace, pool, kind):
        deployment.apply()
        out.print(f"deployed {deployment.flow_name}/{deployment.name}")
    if automations:
        from flows.automations import create_automations

        for name in create_automations(webhook):
            out.print(f"automation {name}", markup=False)
    out.print(f"start a worker with: prefect worker start --pool {pool}", markup=False)


def serve() -> None:
    """Serve every deployment from this process to the server of PREFECT_API_URL, until Ctrl-C.

    Example: PREFECT_API_URL=http://127.0.0.1:4200/api rpt serve
    """
    workspace = open_workspace()
    need_server()
    from flows.deployments import serve_all

    out.print(f"serving {workspace.path}; Ctrl-C stops", markup=False)
    serve_all(workspace)
    out.print("stopped; the deployments' schedules are paused.")


class Service:
    """A child process with its log in the workspace and the address it answers at."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], folder: Path, health: str = ""):
        self.name, self.health = name, health
        self.log = folder / f"{name}.log"
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.process = subprocess.Popen(command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=descriptor,
                                        stderr=descriptor, start_new_session=True)
        os.close(descriptor)

    def wait(self, timeout: float = 180.0) -> None:
        end = time.monotonic() + timeout
        while self.health:
            if self.process.poll() is not None or time.monotonic() > end:
                raise UserError(f"the {self.name} did not start; {self.log} says why.")
            try:
                with urllib.request.urlopen(self.health, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)

    def stop(self) -> None:
        """SIGINT to the service's whole process group, SIGKILL after ten seconds."""
        for sign, patience in ((signal.SIGINT, 10.0), (signal.SIGKILL, 5.0)):
            if self.process.poll() is None:
                try:
                    os.killpg(self.process.pid, sign)
                    self.process.wait(patience)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue


def start_all(workspace: Workspace, prefect_port: int, mlflow_port: int, pool: str) -> tuple[list[Service], dict[str, str]]:
    """Prefect server, MLflow server and a worker, with the deployments made. Returns them in starting order, and their links."""
    folder = workspace.path / "services"
    home = workspace.path / "prefect"
    for path in (folder, home, workspace.path / "mlflow"):
        path.mkdir(exist_ok=True)
    prefect_port, mlflow_port = free_port(prefect_port), free_port(mlflow_port)
    api, mlflow = f"http://127.0.0.1:{prefect_port}/api", f"http://127.0.0.1:{mlflow_port}"
    environment = {**os.environ, **prefect_settings(home), "RPT_HOME": str(workspace.path), "PREFECT_API_URL": api,
                   "MLFLOW_DISABLE_TELEMETRY": "true",
                   "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes for jobs that a pipeline never sends
    from tasks.tracking import Tracking, without_password

    services: list[Service] = []
    try:
        python, local = [sys.executable, "-m"], ["--host", "127.0.0.1", "--port"]
        services.append(Service("prefect-server", [*python, "prefect", "server", "start", *local, str(prefect_port)],
                                environment, folder, f"{api}/health"))
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            tracking = Tracking(workspace)
            tracking.client()  # makes the store and its experiment once, before a server opens it
            command = [*python, "mlflow", "server", *local, str(mlflow_port), "--workers", "1", "--backend-store-uri", tracking.uri,
                       "--artifacts-destination", str(workspace.path / "mlflow" / "artifacts")]
            services.append(Service("mlflow-server", command, environment, folder, f"{mlflow}/health"))
        mlflow = os.environ.get("MLFLOW_TRACKING_URI") or mlflow
        for service in services:
            service.wait()
            out.print(f"the {service.name} answers; its log is {service.log}", markup=False)
        out.print("making the deployments …")
        environment["MLFLOW_TRACKING_URI"] = mlflow
        command = [*python, "flows.cli", "deploy", "--pool", pool, "--automations"]
        made = subprocess.run(command, env=environment, capture_output=True, text=True)
        if made.returncode:
            said = made.stderr.strip().splitlines() or ["no reason said"]
            raise UserError(f"the deployments could not be made: {said[-1]}")
        services.append(Service("worker", [*python, "prefect", "worker", "start", "--pool", pool, "--name", "rpt-up"], environment, folder))
    except BaseException:
        for service in reversed(services):
            service.stop()
        raise
    links = {"Prefect": f"http://127.0.0.1:{prefect_port}", "MLflow": without_password(mlflow), "workspace": str(workspace.path),
             "logs": str(folder)}
    return services, links


def up(
    prefect_port: Annotated[int, typer.Option(help="Port of the Prefect server on 127.0.0.1; another free one if it is taken.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow server on 127.0.0.1; another free one if it is taken.")] = 5000,
    pool: Annotated[str, typer.Option(help="Work pool of the deployments.")] = "rpt",
) -> None:
    """Start a Prefect server, an MLflow server and a worker on this machine, with every deployment made. Ctrl-C stops them all.

    Example: rpt up
    """
    workspace = open_workspace()
    if shutil.disk_usage(workspace.path).free < 2**28:
        raise UserError(f"less than 256 MiB are free at {workspace.path}; free some space first.")
    for sign in (signal.SIGINT, signal.SIGTERM):  # what a shell put in the background ignores SIGINT, and so would its children
        signal.signal(sign, signal.default_int_handler)
    out.print("starting the servers (about half a minute) …")
    services, links = start_all(workspace, prefect_port, mlflow_port, pool)
    try:
        for name, link in links.items():
            out.print(f"{name:10} {link}", markup=False)
        out.print("Ctrl-C stops them all")
        while True:
            for service in services:
                if service.process.poll() is not None:
                    raise UserError(f"the {service.name} ended; {service.log} says why.")
            time.sleep(1)
    except KeyboardInterrupt:
        out.print("stopping …")
    finally:
        for service in reversed(services):
            service.stop()
