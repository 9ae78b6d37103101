"""The one place that speaks to MLflow: a parent run per pipeline, a child run per stage version.

What was sent is written down in ``<workspace>/tracking``, so a resumed stage goes on in its own run and nothing is sent twice.
When MLflow is away the run goes on; ``Tracking.sync`` (``rpt track sync``) sends later what is missing."""

import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rpt_core.store.errors import UserError
from rpt_core.store.events import read_events
from rpt_core.store.files import read_json, write_json
from rpt_core.store.locks import lock
from rpt_core.store.tables import Manifest
from rpt_core.store.workspace import Workspace
from tasks.registry import Registry
from tasks.system_metrics import system_metrics
from tasks.tracked_files import artifact_files, dataset_inputs, flat_numbers, inline_tables

logger = logging.getLogger("rpt")

EXPERIMENT = "rpt"
BATCH = 1000  # metrics an MLflow server takes at once
PARAM_LENGTH = 6000
RETRY_AFTER = 60.0  # seconds before an MLflow that was away is asked again

_away_until = 0.0  # of this process, on the monotonic clock


def tracking_uri(workspace: Workspace) -> str:
    """MLFLOW_TRACKING_URI, or an sqlite file in the workspace; '' with RPT_TRACKING=off."""
    if os.environ.get("RPT_TRACKING", "").lower() in ("off", "0", "false"):
        return ""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace.path / 'mlflow' / 'mlflow.db'}"


def without_password(uri: str) -> str:
    """The address as it may be shown and written down."""
    password = urlsplit(uri).password
    return uri.replace(f":{password}@", ":***@") if password else uri


def open_command(workspace: Workspace) -> str:
    """The shell command that shows the runs, or the server's address."""
    uri = without_password(tracking_uri(workspace))
    return f"mlflow server --backend-store-uri {uri} --port 5000" if uri.startswith("sqlite") else uri


class Tracking:
    """What this process sends to MLflow. No method raises when MLflow is away; ``sync`` says so by its result."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self._address = tracking_uri(workspace)
        self.uri = without_password(self._address)  # for people and for the records of what was sent
        self.folder = workspace.path / "tracking"
        self._client: Any = None
        self._experiment = ""

    # --- the connection -------------------------------------------------------------------------------------------

    def client(self) -> Any:
        """The MlflowClient, its store initialised once under a file lock and the experiment made with an absolute artifact folder."""
        if self._client is None:
            for name, value in (("MLFLOW_DISABLE_TELEMETRY", "true"), ("DO_NOT_TRACK", "true"), ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
                                ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"), ("MLFLOW_ENABLE_ASYNC_LOGGING", "false"),
                                ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")):
                os.environ.setdefault(name, value)
            from mlflow.tracking import MlflowClient

            for name in ("mlflow", "mlflow.store", "mlflow.store.db.utils", "alembic"):  # MLflow sets the levels when it is imported
                logging.getLogger(name).setLevel(logging.ERROR)
            local = self.uri.startswith("sqlite")
            if local:
                (self.workspace.path / "mlflow").mkdir(exist_ok=True)
            with lock(self.workspace.lock_path("mlflow")):
                client = MlflowClient(tracking_uri=self._address, registry_uri=self._address)
                found = client.get_experiment_by_name(EXPERIMENT)
                artifacts = str(self.workspace.path / "mlflow" / "artifacts") if local else None
                self._experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT, artifact_location=artifacts)
            self._client = client
        return self._client

    def registry(self) -> Registry:
        return Registry(self.client(), self.workspace, self._experiment, by_model=not self.uri.startswith("sqlite"))

    def _try(self, what: Callable[[], Any]) -> Any:
        """Do ``what``; None and one warning when MLflow is away (it is asked again after a minute)."""
        global _away_until
        if not self.uri or time.monotonic() < _away_until:
            return None
        try:
            return what()
        except Exception as error:  # noqa: BLE001 - the boundary to a service: its failure must not end a training run
            _away_until = time.monotonic() + RETRY_AFTER
            reason = str(error).replace(self._address, self.uri).splitlines()[0][:200] if str(error) else ""
            logger.warning(f"MLflow at {self.uri} is away ({type(error).__name__}: {reason}); the run goes on, "
                           "`rpt track sync` sends the rest later.")
            return None

    def run_url(self, slot: str, version: str) -> str:
        """Address of the version's run for a browser; "" where no server has it. RPT_MLFLOW_URL is the server's address as a browser
        sees it, where that is not the one of the API."""
        record = self.record(slot, version)
        if not record["run_id"] or not self.uri.startswith("http"):
            return ""
        return f"{(os.environ.get('RPT_MLFLOW_URL') or self.uri).rstrip('/')}/#/experiments/{record['experiment']}/runs/{record['run_id']}"

    # --- what was sent --------------------------------------------------------------------------------------------

    def _record_path(self, slot: str, version: str) -> Path:
        return self.folder / "stages" / f"{slot}@{version}.json"

    def record(self, slot: str, version: str) -> dict[str, Any]:
        """What was sent of one version: {uri, run_id, experiment, seq, system, complete, pipeline}. Empty for another server than
        today's."""
        path = self._record_path(slot, version)
        found = read_json(path) if path.exists() else {}
        new = {"uri": self.uri, "run_id": "", "experiment": "", "seq": 0, "system": -1, "complete": False,
               "pipeline": found.get("pipeline", "")}
        return {**new, **found} if found.get("uri") == self.uri else new

    def _save(self, slot: str, version: str, record: dict[str, Any]) -> None:
        write_json(self._record_path(slot, version), record)

    @contextmanager
    def _alone(self, slot: str, version: str) -> Iterator[None]:
        with lock(self.workspace.lock_path(f"track-{slot}@{version}")):
            yield

    # --- a pipeline -----------------------------------------------------------------------------------------------

    def begin_pipeline(self, name: str, params: Mapping[str, Any]) -> str:
        """Key of a new pipeline; its parent run is made now, or by sync."""
        key = uuid.uuid4().hex
        self._save_pipeline(key, {"name": name, "params": dict(params), "begun": time.time(), "ended": None, "status": "RUNNING",
                                  "uri": self.uri, "run_id": "", "sent": "", "children": []})
        self._try(lambda: self._send_pipeline(key))
        return key

    def end_pipeline(self, key: str, status: str) -> str:
        """Close the pipeline's run (FINISHED, FAILED or KILLED), after sending what an outage left behind. Returns its run id or ''."""
        with self._alone("pipeline", key):
            pipeline = {**self._pipeline(key), "status": status, "ended": time.time()}
            self._save_pipeline(key, pipeline)
        for child in pipeline["children"]:
            record = self.record(child["slot"], child["version"])
            if not child["cached"] and record["run_id"] and not record["complete"]:
                self._try(lambda child=child: self._send_version(child["slot"], child["version"]))
        self._try(lambda: self._send_pipeline(key))
        return self._pipeline(key)["run_id"]

    def _pipeline_path(self, key: str) -> Path:
        return self.folder / "pipelines" / f"{key}.json"

    def _pipeline(self, key: str) -> dict[str, Any]:
        return read_json(self._pipeline_path(key))

    def _save_pipeline(self, key: str, pipeline: dict[str, Any]) -> None:
        write_json(self._pipeline_path(key), pipeline)

    def _send_pipeline(self, key: str) -> None:
        with self._alone("pipeline", key):
            self._send_pipeline_alone(key)

    def _send_pipeline_alone(self, key: str) -> None:
        pipeline = self._pipeline(key)
        if pipeline["uri"] != self.uri:
            pipeline.update(uri=self.uri, run_id="", sent="")
        if not pipeline["run_id"]:
            pipeline["run_id"] = self._new_run(pipeline["name"], "", {"rpt.pipeline": key}, pipeline["begun"])
            self._save_pipeline(key, pipeline)
            self._log_params(pipeline["run_id"], pipeline["params"])
        for child in pipeline["children"]:
            if child["cached"] and not child["run_id"]:
                child["run_id"] = self._send_cached(child, pipeline["run_id"])
                self._save_pipeline(key, pipeline)
        if pipeline["status"] != "RUNNING" and pipeline["sent"] != pipeline["status"]:
            self.client().set_terminated(pipeline["run_id"], pipeline["status"], int(pipeline["ended"] * 1000))
            pipeline["sent"] = pipeline["status"]
            self._save_pipeline(key, pipeline)

    def _add_child(self, key: str, slot: str, version: str, cached: bool) -> None:
        if not key:
            return
        with self._alone("pipeline", key):
            pipeline = self._pipeline(key)
            if not any(child["slot"] == slot and child["version"] == version for child in pipeline["children"]):
                pipeline["children"].append({"slot": slot, "version": version, "cached": cached, "run_id": ""})
                self._save_pipeline(key, pipeline)

    def _send_cached(self, child: dict[str, Any], parent: str) -> str:
        """A light run that only says which version was found; metrics stay with the run that made it."""
        made_by = self.record(child["slot"], child["version"])["run_id"]
        run_id = self._new_run(f"{child['slot']} (cached)", parent, {"rpt.slot": child["slot"], "rpt.version": child["version"],
                                                                    "rpt.cached": "true", "rpt.made_by_run": made_by})
        self.client().set_terminated(run_id, "FINISHED")
        return run_id

    # --- a stage --------------------------------------------------------------------------------------------------

    def begin_version(self, manifest: Manifest, pipeline: str = "") -> str:
        """The run of a version about to be made: the one of its earlier attempt, or a new one. '' when MLflow is away."""
        if not self.uri:
            return ""
        slot, version = manifest.slot, manifest.version
        with self._alone(slot, version):
            record = {**self.record(slot, version), "complete": False}
            record["pipeline"] = record["pipeline"] or pipeline
            self._save(slot, version, record)
        self._add_child(pipeline, slot, version, cached=False)
        self._try(lambda: self._open(manifest))
        return self.record(slot, version)["run_id"]

    def found_version(self, manifest: Manifest, pipeline: str) -> None:
        """A pipeline took a committed version."""
        if self.uri and pipeline:
            self._add_child(pipeline, manifest.slot, manifest.version, cached=True)
            self._try(lambda: self._send_pipeline(pipeline))

    def sampled(self, slot: str, version: str) -> AbstractContextManager[None]:
        """Sample the machine while the version is made; nothing while tracking is off."""
        return system_metrics(self._system_path(slot, version)) if self.uri else nullcontext()

    def _system_path(self, slot: str, version: str) -> Path:
        return self.folder / "system" / f"{slot}@{version}.jsonl"

    def forward(self, slot: str, version: str) -> None:
        """Send the metrics that closed parts cover and that were not sent before."""
        self._try(lambda: self._send_version(slot, version))

    def end_version(self, slot: str, version: str, status: str = "FINISHED") -> None:
        """Send the rest of a committed version, or close the run of one that failed (it reopens when it resumes)."""
        def close() -> None:
            self._send_version(slot, version)
            run_id = self.record(slot, version)["run_id"]
            if status != "FINISHED" and run_id:
                self.client().set_terminated(run_id, status)

        self._try(close)

    def _open(self, manifest: Manifest) -> None:
        slot, version = manifest.slot, manifest.version
        with self._alone(slot, version):
            record = self.record(slot, version)
            if record["run_id"]:
                self.client().update_run(record["run_id"], status="RUNNING")
                return
            parent = ""
            if record["pipeline"] and self._pipeline_path(record["pipeline"]).exists():
                self._send_pipeline(record["pipeline"])
                parent = self._pipeline(record["pipeline"])["run_id"]
            tags = {"rpt.slot": slot, "rpt.version": version, "rpt.identity": manifest.identity, "rpt.cached": "false"}
            record["run_id"] = self._begun_run(slot, version) or self._new_run(slot, parent, tags)
            record["experiment"] = self._experiment
            self._save(slot, version, record)
            self._log_params(record["run_id"], {**manifest.config, **manifest.runtime})
            self.client().log_inputs(record["run_id"], dataset_inputs(self.workspace, manifest))

    def _begun_run(self, slot: str, version: str) -> str:
        """The version's run that MLflow made although its answer was lost, or ""."""
        asked = {"rpt.slot": slot, "rpt.version": version, "rpt.workspace": str(self.workspace.path), "rpt.cached": "false"}
        terms = " and ".join(f"tags.`{name}` = '{value}'" for name, value in asked.items() if "'" not in value)
        client = self.client()
        found = client.search_runs([self._experiment], terms, max_results=1)
        return found[0].info.run_id if found else ""

    def _send_version(self, slot: str, version: str) -> None:
        folder = self.workspace.version_folder(slot, version)
        committed = (folder / "manifest.json").exists()
        if not self.record(slot, version)["run_id"]:
            if not committed:
                return
            self._open(self.workspace.manifest(slot, version))
        with self._alone(slot, version):
            record = self.record(slot, version)
            if record["complete"]:
                return
            self._send_metrics(folder, record, covered_seq(folder))
            self._send_system(slot, version, record)
            self._save(slot, version, record)
            if committed:
                self._send_outputs(self.workspace.manifest(slot, version), record["run_id"])
                record["complete"] = True
                self._save(slot, version, record)

    def _send_metrics(self, folder: Path, record: dict[str, Any], covered: int) -> None:
        """Metrics and tables with record.seq < seq <= covered; of a (name, step) said twice the last stands."""
        from mlflow.entities import Metric

        sent: set[tuple[str, int]] = set()
        metrics: dict[tuple[str, int], Any] = {}
        for event in read_events(folder / "events.jsonl"):
            if event["seq"] > covered:
                continue
            new = event["seq"] > record["seq"]
            if event["type"] == "metrics":
                for name, value in event["data"].items():
                    key = (name, event["step"])
                    if not new:
                        sent.add(key)
                    elif key not in sent:
                        metrics[key] = Metric(name, value, int(event["time"] * 1000), event["step"])
            elif event["type"] == "table" and new:
                self._log_table(record["run_id"], f"{event['data']['name']}/step_{event['step']:06d}.json", event["data"]["rows"])
        pending = list(metrics.values())
        for begin in range(0, len(pending), BATCH):
            self.client().log_batch(record["run_id"], metrics=pending[begin : begin + BATCH])
        record["seq"] = max(record["seq"], covered)

    def _send_system(self, slot: str, version: str, record: dict[str, Any]) -> None:
        """Samples of the machine after record.system; a step is a sample."""
        from mlflow.entities import Metric

        new = [line for line in read_events(self._system_path(slot, version)) if line["seq"] > record["system"]]
        pending = [Metric(f"system/{name}", value, int(line["time"] * 1000), line["seq"])
                   for line in new for name, value in line["values"].items()]
        for begin in range(0, len(pending), BATCH):
            self.client().log_batch(record["run_id"], metrics=pending[begin : begin + BATCH])
        record["system"] = max((line["seq"] for line in new), default=record["system"])

    def _send_outputs(self, manifest: Manifest, run_id: str) -> None:
        from mlflow.entities import Metric

        client = self.client()
        now = int(time.time() * 1000)
        numbers = {**flat_numbers("counts", manifest.counts), "seconds": manifest.seconds, "attempts": manifest.attempts}
        client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in numbers.items()])
        client.log_text(run_id, json.dumps(manifest.to_json(), indent=1, ensure_ascii=False), "manifest.json")
        client.log_inputs(run_id, dataset_inputs(self.workspace, manifest, outputs=True))
        for name, rows in inline_tables(self.workspace, manifest):
            self._log_table(run_id, f"tables/{name}.json", rows)
        folder = self.workspace.version_folder(manifest.slot, manifest.version)
        for name in artifact_files(manifest):
            inside = Path(name).relative_to("files").parent
            client.log_artifact(run_id, str(folder / name), None if inside == Path(".") else str(inside))
        if manifest.slot == "pretrain":
            self.registry().register_last(manifest, run_id)
        elif manifest.slot == "evaluate":
            self.registry().register_best(manifest)
        client.set_terminated(run_id, "FINISHED")

    # --- small pieces ---------------------------------------------------------------------------------------------

    def _new_run(self, name: str, parent: str, tags: Mapping[str, str], begun: float | None = None) -> str:
        client = self.client()
        all_tags = {**tags, "rpt.workspace": str(self.workspace.path), **({"mlflow.parentRunId": parent} if parent else {})}
        run = client.create_run(self._experiment, start_time=int((begun or time.time()) * 1000), tags=all_tags, run_name=name)
        return run.info.run_id

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        texts = {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in params.items()}
        found = [Param(key, text[:PARAM_LENGTH]) for key, text in texts.items()]
        for begin in range(0, len(found), 100):
            self.client().log_batch(run_id, params=found[begin : begin + 100])

    def _log_table(self, run_id: str, name: str, rows: list[dict[str, Any]]) -> None:
        """Rows as an artifact that MLflow's pages show as a table; sent again it replaces itself."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        data = {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]}
        client = self.client()
        client.log_text(run_id, json.dumps(data, ensure_ascii=False, default=str), name)
        shown = json.loads(client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
        entry = {"path": name, "type": "table"}
        if entry not in shown:
            client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*shown, entry]))

    # --- catching up ----------------------------------------------------------------------------------------------

    def sync(self) -> dict[str, int]:
        """Send everything that is not in MLflow yet: pipelines, then versions, running ones included. Returns how many of each,
        or raises UserError when MLflow is away."""
        global _away_until
        _away_until = 0.0
        if not self.uri:
            raise UserError("tracking is off (RPT_TRACKING=off); unset it to send runs to MLflow.")
        sent = {"pipelines": 0, "versions": 0}
        for path in sorted((self.folder / "pipelines").glob("*.json")):
            pipeline = read_json(path)
            if pipeline["uri"] != self.uri or not pipeline["run_id"] or pipeline["sent"] != pipeline["status"] or any(
                    child["cached"] and not child["run_id"] for child in pipeline["children"]):
                self._required(lambda path=path: self._send_pipeline(path.stem))
                sent["pipelines"] += 1
        committed = [(slot, version) for slot in self.workspace.slots() for version in self.workspace.versions(slot)]
        running = [(slot, folder.name) for slot, folder in self.workspace.running() if self._record_path(slot, folder.name).exists()]
        for slot, version in [*committed, *running]:
            if not self.record(slot, version)["complete"]:
                self._required(lambda slot=slot, version=version: self._send_version(slot, version))
                sent["versions"] += 1
        return sent

    def _required(self, what: Callable[[], None]) -> None:
        self._try(what)
        if time.monotonic() < _away_until:
            raise UserError(f"MLflow at {self.uri} cannot be reached; start it (or unset MLFLOW_TRACKING_URI) "
                            "and run `rpt track sync` again.")


def covered_seq(folder: Path) -> int:
    """The last event that a closed part vouches for; all of them once the version is committed."""
    if (folder / "manifest.json").exists():
        return max((event["seq"] for event in read_events(folder / "events.jsonl")), default=0)
    parts = sorted((folder / "parts").glob("*.json"))
    return read_json(parts[-1])["events"] if parts else 0
