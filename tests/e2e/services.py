"""The services of docker/compose.yaml without Docker: the same commands, environments and health checks on loopback, Postgres from the
system's package. Each runs in a process group of its own and can be killed and started again."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from flows.server import free_port
from rpt_core.store.workspace import Workspace
from tests.e2e.stack import PATIENCE, answer, descendants, signal_process

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def postgres_programs() -> Path | None:
    """Folder of initdb and postgres, or None where they are not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


class Services:
    """postgres, prefect, mlflow and worker by name; ``deploy`` is the one-shot. ``extra`` is added to every environment."""

    def __init__(self, folder: Path, extra: dict[str, str] | None = None):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.workspace = Workspace(folder / "ws")
        (folder / "docker").mkdir(exist_ok=True)
        shutil.copy(ROOT / "docker" / "make-env.sh", folder / "docker")
        if not (folder / "docker" / ".env").exists():
            subprocess.run(["bash", "make-env.sh"], cwd=folder / "docker", check=True, capture_output=True)
        self.secrets = dict(line.split("=", 1) for line in (folder / "docker" / ".env").read_text().splitlines())
        auth = (ROOT / "docker" / "mlflow-auth.ini").read_text().replace("/workspace", str(self.workspace.path))
        (folder / "docker" / "mlflow-auth.ini").write_text(auth)
        self.ports = {name: free_port() for name in ("postgres", "prefect", "mlflow", "worker")}
        self.extra = {"RPT_SOURCES": str(ROOT / "tests" / "faults"), **(extra or {})}
        self._data = Path(tempfile.mkdtemp(prefix="rpt-postgres-"))  # not below ``folder``, which Postgres' own user may not enter
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.restarted: list[str] = []  # services that ended by themselves

    # --- what compose.yaml says, for this machine -----------------------------------------------------------------------

    def _here(self, text: str) -> str:
        """Addresses, folders and secrets of the containers as they are here."""
        for name, value in self.secrets.items():
            text = re.sub(r"\$\{" + name + r"(:\?[^}]*)?\}", lambda _, value=value: value, text)
        text = re.sub(r"\$\{[A-Z_]+:-\}", "", text)
        at = {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}
        for inside, outside in (("@postgres/", f"@{at['postgres']}/"), ("prefect:4200", at["prefect"]), ("mlflow:5000", at["mlflow"]),
                                ("127.0.0.1:4200", at["prefect"]), ("127.0.0.1:5000", at["mlflow"]), ("localhost:5000", at["mlflow"]),
                                ("/opt/rpt/docker", str(self.folder / "docker")), ("/workspace", str(self.workspace.path)),
                                ("0.0.0.0", "127.0.0.1")):
            text = text.replace(inside, outside)
        return {"4200": str(self.ports["prefect"]), "5000": str(self.ports["mlflow"])}.get(text, text)

    def environment(self, name: str) -> dict[str, str]:
        """What the container would know, and what the image sets; nothing else of this process but the paths of its programs."""
        kept = {key: os.environ[key] for key in ("LANG", "TMPDIR", "OMP_NUM_THREADS", "HF_HUB_OFFLINE") if key in os.environ}
        given = {key: self._here(str(value)) for key, value in COMPOSE[name]["environment"].items()}
        home = self.folder / ("prefect-home" if name == "prefect" else f"{name}-home")
        (home / ".prefect").mkdir(parents=True, exist_ok=True)
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return {**kept, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": paths, "HOME": str(home),
                "PREFECT_HOME": str(home / ".prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
                "RPT_HOME": str(self.workspace.path),
                "PREFECT_WORKER_WEBSERVER_PORT": str(self.ports["worker"]), "PREFECT_WORKER_QUERY_SECONDS": "1",
                "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30", **self.extra, **given}

    # --- starting, killing ------------------------------------------------------------------------------------------------

    def up(self) -> None:
        for name in ("postgres", "prefect", "mlflow"):
            self.start(name)
        self.one_shot("deploy")
        self.start("worker")

    def start(self, name: str) -> None:
        """Start a service and wait until its health check passes."""
        if name == "postgres":
            command, environment = self._postgres()
        else:
            command, environment = [self._here(part) for part in COMPOSE[name]["command"]], self.environment(name)
            if "--workers" in command:  # one is enough for a test, and starts in half the time
                command[command.index("--workers") + 1] = "1"
        user: dict[str, Any] = {"user": "postgres", "group": "postgres"} if name == "postgres" and os.getuid() == 0 else {}
        with open(self.folder / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(command, env=environment, cwd="/", stdout=log, stderr=log, start_new_session=True, **user)
        self.wait_for(lambda: self.healthy(name), f"the health of {name}", PATIENCE)

    def healthy(self, name: str) -> bool:
        """The health check of compose.yaml, from this process."""
        if self.running[name].poll() is not None:
            raise AssertionError(f"{name} ended: {(self.folder / f'{name}.log').read_text()[-2000:]}")
        if name == "postgres":
            programs = postgres_programs()
            check = [f"{programs}/pg_isready", "-h", "127.0.0.1", "-p", str(self.ports[name]), "-q"]
            return subprocess.run(check).returncode == 0
        path = re.search(r"http://127.0.0.1:\d+(/[a-z/]*)", " ".join(COMPOSE[name]["healthcheck"]["test"]))
        assert path
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}{path[1]}", timeout=5) as reply:
            return reply.status == 200

    def _postgres(self) -> tuple[list[str], dict[str, str]]:
        """The database with its two databases, made once."""
        programs, data = postgres_programs(), self._data / "data"
        environment = {"PATH": f"{programs}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        if not data.exists():
            data.mkdir()
            password = self._data / "password"
            password.write_text(self.secrets["POSTGRES_PASSWORD"])
            user: dict[str, Any] = {}
            if os.getuid() == 0:
                user = {"user": "postgres", "group": "postgres"}
                for path in (self._data, data, password):
                    shutil.chown(path, "postgres", "postgres")
            made = [f"{programs}/initdb", "-D", str(data), "-U", "rpt", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync"]
            subprocess.run(made, check=True, env=environment, capture_output=True, cwd="/", **user)
            for sql in ("CREATE DATABASE prefect OWNER rpt;\n", (ROOT / "docker" / "init-databases.sql").read_text()):
                subprocess.run([f"{programs}/postgres", "--single", "-D", str(data), "postgres"], input=sql.replace("\n", " ") + "\n",
                               text=True, check=True, env=environment, capture_output=True, cwd="/", **user)
            password.unlink()
        return [f"{programs}/postgres", "-D", str(data), "-h", "127.0.0.1", "-p", str(self.ports["postgres"]), "-k", str(data)], environment

    def one_shot(self, name: str) -> None:
        done = subprocess.run([self._here(part) for part in COMPOSE[name]["command"]], env=self.environment(name), cwd="/", text=True,
                              capture_output=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr

    def kill(self, name: str) -> None:
        """SIGKILL to the service and everything below it: the machine it runs on is gone."""
        process = self.running.pop(name)
        for pid in [*descendants(process.pid), process.pid]:
            signal_process(pid, signal.SIGKILL)
        process.wait()

    def tend(self) -> None:
        """The restart policy of compose.yaml (unless-stopped): a service that ended by itself is started again."""
        for name, process in list(self.running.items()):
            if process.poll() is not None:
                self.restarted.append(name)
                self.start(name)

    def stop(self) -> None:
        for name in ("worker", "mlflow", "prefect", "postgres"):
            process = self.running.get(name)
            if process:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    self.kill(name)
        shutil.rmtree(self._data, ignore_errors=True)

    # --- as a client ------------------------------------------------------------------------------------------------------

    def get(self, path: str, body: dict | None = None, service: str = "prefect", auth: bool = True) -> Any:
        """JSON of the Prefect API (paths below /api) or of MLflow's server."""
        given = self.secrets["PREFECT_AUTH"] if service == "prefect" else f"admin:{self.secrets['MLFLOW_PASSWORD']}"
        headers = {"content-type": "application/json"}
        if auth:
            headers["authorization"] = "Basic " + base64.b64encode(given.encode()).decode()
        url = f"http://127.0.0.1:{self.ports[service]}{'/api' if service == 'prefect' else ''}{path}"
        request = urllib.request.Request(url, headers=headers, data=None if body is None else json.dumps(body).encode())
        return answer(request)

    def start_run(self, name: str, parameters: dict[str, Any]) -> str:
        deployment = self.get(f"/deployments/name/{name}/{name}")
        return self.get(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})["id"]

    def state(self, run: str) -> dict[str, Any]:
        return self.get(f"/flow_runs/{run}")["state"]

    def ended(self, run: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """The run's state once it has ended."""
        def found() -> dict[str, Any] | None:
            self.tend()
            state = self.state(run)
            return state if state["type"] in ENDED else None

        return self.wait_for(found, "the end of the run", seconds)

    @staticmethod
    def wait_for(what: Callable[[], Any], name: str, seconds: float) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                found = what()
            except (OSError, urllib.error.URLError):
                found = None
            if found:
                return found
            time.sleep(0.2)
        raise AssertionError(f"{name} did not come within {seconds:.0f} s")
