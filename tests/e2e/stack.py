"""A Prefect server, its deployments and a process worker, each a process of its own as in an installation."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from flows.server import free_port, prefect_settings
from rpt_core.store.workspace import Workspace

ROOT = Path(__file__).parents[2]
PATIENCE = 900.0  # seconds for what a free machine does in one or ten: these tests are not about the clock
TERMINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Stack:
    """A server with an empty database and a workspace; ``start`` adds a process, ``stop`` ends them all, last one first."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.workspace = Workspace(folder / "ws")
        port = free_port()
        self.environment = {**os.environ, **prefect_settings(folder / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
                            "RPT_HOME": str(self.workspace.path), "RPT_TRACKING": "off", "RPT_RETRIES": "0", "PYTHONPATH": str(ROOT),
                            "RPT_SOURCES": str(ROOT / "tests" / "faults"), "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
                            "PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
        (folder / "prefect").mkdir()
        self.webhook = Webhook()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start("server", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), home=False)
        self.wait_for(lambda: self.get("/health"), "the server")

    def start(self, name: str, *arguments: str, home: bool) -> subprocess.Popen[bytes]:
        """Start a process whose output goes to ``<name>.log``; without ``home`` it knows no workspace, as a worker does not."""
        environment = {key: value for key, value in self.environment.items() if home or key != "RPT_HOME"}
        with open(self.folder / f"{name}.log", "wb") as log:
            self.processes.append(subprocess.Popen([sys.executable, "-m", *arguments], env=environment, cwd=self.folder, stdout=log,
                                                   stderr=log, start_new_session=True))
        return self.processes[-1]

    def start_worker(self) -> subprocess.Popen[bytes]:
        self.worker = self.start("worker", "prefect", "worker", "start", "--pool", "test-pool", "--name", "test", home=False)
        return self.worker

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def command(self, *arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", *arguments], env=self.environment, cwd=self.folder, capture_output=True, text=True,
                              timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, path: str, body: dict | None = None, method: str = "") -> Any:
        """What the API answers; with ``body`` to a POST, or to ``method``."""
        request = urllib.request.Request(self.environment["PREFECT_API_URL"] + path, headers={"content-type": "application/json"},
                                         data=None if body is None else json.dumps(body).encode(), method=method or None)
        return answer(request)

    def patch(self, path: str, body: dict) -> None:
        self.get(path, body, "PATCH")

    def wait_for(self, what: Callable[[], Any], name: str, seconds: float = PATIENCE) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                found = what()
            except OSError:
                found = None
            if found:
                return found
            time.sleep(0.25)
        raise AssertionError(f"{name} did not come within {seconds:.0f} s")

    def run_deployment(self, name: str, parameters: dict) -> dict:
        """Start a deployment's run as the UI does, wait for its end and return the flow run."""
        return self.ended(self.start_run(name, parameters))

    def start_run(self, name: str, parameters: dict) -> str:
        """Id of a new run of the deployment."""
        deployment = self.get(f"/deployments/name/{name}/{name}")
        return self.get(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})["id"]

    def ended(self, run_id: str, seconds: float = PATIENCE) -> dict:
        """The flow run once it has ended."""
        def found() -> dict | None:
            run = self.get(f"/flow_runs/{run_id}")
            return run if run["state"]["type"] in TERMINAL else None

        return self.wait_for(found, "the end of the run", seconds)

    def logs(self, run_id: str) -> str:
        """The run's log as the UI shows it."""
        found = self.get("/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC", "limit": 200})
        return "\n".join(line["message"] for line in found)

    def artifacts(self, flow_run: dict) -> dict[str, dict]:
        found = self.get("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run["id"]]}}})
        return {artifact["key"]: artifact for artifact in found}

    def end(self, process: subprocess.Popen[bytes], sign: int = signal.SIGTERM) -> int:
        """Signal a process, wait for it (SIGKILL after 20 s) and return its exit code."""
        self.processes.remove(process)
        process.send_signal(sign)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def stop(self) -> None:
        for process in reversed(self.processes[:]):
            self.end(process)
        self.webhook.stop()


def answer(request: urllib.request.Request) -> Any:
    """The JSON of the reply; asked again while the server is busy, as Prefect's own clients do (503: its database is locked)."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.loads(reply.read() or "null")
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > end:
                raise
            time.sleep(1.0)


class Webhook:
    """A local HTTP server that keeps what is posted to it."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()


def descendants(pid: int) -> set[int]:
    """Every process below ``pid``, sessions of their own included."""
    try:
        return {child.pid for child in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def signal_process(pid: int, sign: int) -> None:
    """Send a signal to a process that may have ended meanwhile."""
    with suppress(ProcessLookupError):
        os.kill(pid, sign)
