"""MLflow with a real sqlite store: nothing is sent twice, nothing is lost, and no outage ends a run."""

import json
import multiprocessing
import shutil
import time
from types import SimpleNamespace
from typing import Any

import pytest

import tasks.stage
import tasks.system_metrics
import tasks.tracking
from rpt_core.store.errors import UserError
from rpt_core.store.stage import execute
from rpt_core.store.workspace import Workspace
from tasks.stage import perform
from tasks.tracked_files import artifact_files, flat_numbers
from tasks.tracking import Tracking, covered_seq, tracking_uri
from tests.flows.toys import TOYS, EvaluateConfig, IngestConfig, ModelConfig


@pytest.fixture(scope="module")
def new_store(tmp_path_factory):
    """An sqlite store as MLflow makes it, made once: it takes seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracked(workspace, monkeypatch, new_store):
    """A workspace with tracking on and a base checkpoint to train from."""
    monkeypatch.delenv("RPT_TRACKING")
    (workspace.path / "mlflow").mkdir()
    shutil.copy(new_store, workspace.path / "mlflow" / "mlflow.db")
    monkeypatch.setattr(tasks.stage, "refresh_catalog", lambda _: None)
    monkeypatch.setattr(tasks.stage, "FORWARD_EVERY", 0.0)
    monkeypatch.setattr(tasks.tracking, "_away_until", 0.0)
    execute(TOYS["ingest"], IngestConfig(), workspace)
    execute(TOYS["bootstrap"], ModelConfig(), workspace)
    return workspace


@pytest.fixture
def gone(monkeypatch):
    """An MLflow server that does not answer."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


def history(workspace, run_id, name):
    return [(metric.step, metric.value) for metric in Tracking(workspace).client().get_metric_history(run_id, name)]


def run_of(workspace, slot, version):
    run_id = Tracking(workspace).record(slot, version)["run_id"]
    return Tracking(workspace).client().get_run(run_id)


def test_a_stage_sends_parameters_metrics_samples_datasets_manifest_and_plots(tracked):
    version = perform(TOYS["pretrain"], ModelConfig(steps=2), tracked, {})["version"]
    run = run_of(tracked, "pretrain", version)
    assert run.info.status == "FINISHED"
    assert run.data.params["steps"] == "2"
    assert run.data.metrics["counts/steps"] == 2
    assert history(tracked, run.info.run_id, "reward") == [(1, 0.1), (2, 0.2)]
    contexts = {(entry.dataset.name, entry.tags[0].value) for entry in run.inputs.dataset_inputs}
    assert contexts == {("documents", "documents"), ("checkpoints", "checkpoint"), ("checkpoints", "output")}
    client = Tracking(tracked).client()
    names = {item.path for folder in ("", "samples", "tables", "plots") for item in client.list_artifacts(run.info.run_id, folder or None)}
    assert {"manifest.json", "samples/step_000001.json", "tables/checkpoints.json", "plots/reward.svg"} <= names
    assert not any("safetensors" in name or "config.json" in name for name in names)
    shown = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert {"path": "samples/step_000002.json", "type": "table"} in shown
    assert tracked.manifest("pretrain", version).run_ids["mlflow"] == run.info.run_id


def test_the_last_checkpoint_becomes_the_registered_model_under_its_alias(tracked):
    perform(TOYS["pretrain"], ModelConfig(steps=1), tracked, {})
    version = perform(TOYS["pretrain"], ModelConfig(steps=2), tracked, {})["version"]
    found = Tracking(tracked).client().get_model_version_by_alias("rpt", "rpt-latest")
    assert found.tags["checkpoint_id"] == "pretrain-2"
    assert found.tags["uri"] == (tracked.version_folder("pretrain", version) / "files" / "step-2").as_uri()
    assert found.run_id == Tracking(tracked).record("pretrain", version)["run_id"]


def test_best_hard_is_the_best_model_on_hard_positions_and_moves_only_to_a_better_one(tracked):
    versions = {steps: perform(TOYS["pretrain"], ModelConfig(steps=steps), tracked, {})["version"] for steps in (2, 3)}
    tracking = Tracking(tracked)
    tracking.client()

    def evaluated(accuracy: dict[int, float], positions: str) -> str:
        rows = [{"checkpoint_id": f"pretrain-{steps}", "mode": mode, "level": "hard", "positions": "all", "accuracy": value}
                for steps, value in accuracy.items() for mode, value in (("reasoning", value), ("standard", 1.0 - value))]
        trained = [{"slot": "pretrain", "version": version} for version in versions.values()]
        inputs = {"trained": trained, "positions": [{"digest": positions}]}
        manifest: Any = SimpleNamespace(inputs=inputs, counts={"accuracy": rows}, config={"sample": "test"})
        tracking.registry().register_best(manifest)
        return tracking.client().get_model_version_by_alias("rpt", "best-hard").tags["checkpoint_id"]

    assert evaluated({2: 0.7, 3: 0.4}, "a") == "pretrain-2"
    assert evaluated({3: 0.6}, "a") == "pretrain-2"  # the holder is better on the same positions
    assert evaluated({3: 0.6}, "b") == "pretrain-3"  # other positions cannot be compared
    assert len(tracking.client().search_model_versions("name='rpt'")) == 2


def test_samples_of_the_machine_survive_an_outage_and_arrive_once_under_mlflows_names(tracked, monkeypatch):
    pytest.importorskip("psutil", reason="no psutil: `make setup` installs it")
    monkeypatch.setattr(tasks.system_metrics, "EVERY", 0.01)
    monkeypatch.setattr(tasks.tracking, "_away_until", float("inf"))
    config = EvaluateConfig()
    with Tracking(tracked).sampled("evaluate", "0123456789abcdef-1"):
        time.sleep(0.2)
    monkeypatch.setattr(tasks.system_metrics, "EVERY", 3600.0)  # the stage below takes none of its own
    monkeypatch.setattr(tasks.tracking, "_away_until", 0.0)
    version = perform(TOYS["evaluate"], config, tracked, {})["version"]
    tracking = Tracking(tracked)
    tracking._system_path("evaluate", "0123456789abcdef-1").rename(tracking._system_path("evaluate", version))
    record = {**tracking.record("evaluate", version), "system": -1}
    for _ in range(2):  # the answer of the first was lost
        tracking._send_system("evaluate", version, dict(record))
    sent = history(tracked, record["run_id"], "system/cpu_utilization_percentage")
    assert [step for step, _ in sent] == list(range(len(sent)))
    assert len(sent) > 2


def test_a_run_that_mlflow_made_before_its_answer_was_lost_is_found_again(tracked, monkeypatch):
    real = Tracking._save
    monkeypatch.setattr(Tracking, "_save", lambda self, *given: None if given[-1]["run_id"] else real(self, *given))
    perform(TOYS["pretrain"], ModelConfig(steps=1), tracked, {})
    monkeypatch.setattr(Tracking, "_save", real)
    monkeypatch.setattr(tasks.tracking, "_away_until", 0.0)
    Tracking(tracked).sync()
    client = Tracking(tracked).client()
    experiment = client.get_experiment_by_name("rpt").experiment_id
    assert len(client.search_runs([experiment], "tags.`rpt.slot` = 'pretrain'")) == 1


def test_a_resumed_run_goes_on_in_its_own_mlflow_run_and_doubles_no_metric(tracked, tmp_path):
    switch = tmp_path / "die"
    switch.touch()
    config = ModelConfig(steps=3, switch=str(switch))
    with pytest.raises(KeyboardInterrupt):
        perform(TOYS["pretrain"], config, tracked, {})
    (folder,) = [folder for slot, folder in tracked.running() if slot == "pretrain"]
    killed = run_of(tracked, "pretrain", folder.name)
    assert killed.info.status == "KILLED"
    assert history(tracked, killed.info.run_id, "reward") == [(1, 0.1), (2, 0.2)]  # step 3 was said, but no closed part covers it

    version = perform(TOYS["pretrain"], config, tracked, {})["version"]
    resumed = run_of(tracked, "pretrain", version)
    assert resumed.info.run_id == killed.info.run_id
    assert resumed.info.status == "FINISHED"
    assert history(tracked, resumed.info.run_id, "reward") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert history(tracked, resumed.info.run_id, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert tracked.manifest("pretrain", version).run_ids["mlflow"] == killed.info.run_id


def test_of_a_metric_said_twice_at_a_step_the_last_stands(tracked):
    perform(TOYS["pretrain"], ModelConfig(steps=1), tracked, {})
    version = tracked.current("pretrain")
    events = (tracked.version_folder("pretrain", version) / "events.jsonl").read_text()
    assert events.count('"reward": 0.1') == 2
    assert history(tracked, Tracking(tracked).record("pretrain", version)["run_id"], "reward") == [(1, 0.1)]


def test_a_pipeline_has_a_parent_run_with_a_child_per_stage_and_a_light_child_for_what_was_cached(tracked):
    key = Tracking(tracked).begin_pipeline("pipeline toy", {"profile": "toy"})
    perform(TOYS["ingest"], IngestConfig(), tracked, {}, pipeline=key)
    version = perform(TOYS["pretrain"], ModelConfig(steps=1), tracked, {}, pipeline=key)["version"]
    parent = Tracking(tracked).end_pipeline(key, "FINISHED")
    client = Tracking(tracked).client()
    assert client.get_run(parent).info.status == "FINISHED"
    children = client.search_runs([client.get_run(parent).info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    by_name = {run.info.run_name: run for run in children}
    assert set(by_name) == {"ingest (cached)", "pretrain"}
    assert by_name["ingest (cached)"].data.metrics == {}
    assert by_name["pretrain"].data.tags["rpt.version"] == version


def test_with_mlflow_away_the_run_goes_on_with_one_warning_and_sync_sends_everything_once(tracked, gone, monkeypatch, caplog):
    key = Tracking(tracked).begin_pipeline("pipeline toy", {})
    version = perform(TOYS["pretrain"], ModelConfig(steps=2), tracked, {}, pipeline=key)["version"]
    assert Tracking(tracked).end_pipeline(key, "FINISHED") == ""
    assert sum("is away" in record.message for record in caplog.records) == 1
    with pytest.raises(UserError, match="cannot be reached"):
        Tracking(tracked).sync()

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(tasks.tracking, "_away_until", 0.0)
    assert Tracking(tracked).sync() == {"pipelines": 1, "versions": 3}  # ingest and bootstrap were made without tracking
    run = run_of(tracked, "pretrain", version)
    assert run.data.tags["mlflow.parentRunId"]
    assert history(tracked, run.info.run_id, "reward") == [(1, 0.1), (2, 0.2)]
    assert Tracking(tracked).sync() == {"pipelines": 0, "versions": 0}
    assert history(tracked, run.info.run_id, "reward") == [(1, 0.1), (2, 0.2)]


def test_an_outage_in_the_middle_of_a_run_loses_and_doubles_nothing(tracked, monkeypatch):
    key = Tracking(tracked).begin_pipeline("pipeline toy", {})
    real = Tracking._send_metrics
    calls = []

    def failing_once(self, folder, record, covered):
        calls.append(covered)
        if len(calls) == 2:
            raise ConnectionError("gone")
        return real(self, folder, record, covered)

    monkeypatch.setattr(Tracking, "_send_metrics", failing_once)
    version = perform(TOYS["pretrain"], ModelConfig(steps=3), tracked, {}, pipeline=key)["version"]
    record = Tracking(tracked).record("pretrain", version)
    assert not record["complete"]
    monkeypatch.setattr(tasks.tracking, "_away_until", 0.0)
    Tracking(tracked).end_pipeline(key, "FINISHED")
    assert history(tracked, record["run_id"], "reward") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert run_of(tracked, "pretrain", version).info.status == "FINISHED"


def test_a_failed_stage_closes_its_run_as_failed(tracked):
    with pytest.raises(RuntimeError, match="a bug"):
        perform(TOYS["ingest"], IngestConfig(mode="crash"), tracked, {})
    (folder,) = [folder for slot, folder in tracked.running() if slot == "ingest"]
    assert run_of(tracked, "ingest", folder.name).info.status == "FAILED"


def _open(path: str) -> str:
    tracking = Tracking(Workspace(path))
    tracking.client()
    return tracking._experiment


@pytest.mark.full
def test_several_processes_open_a_new_store_at_once(workspace, monkeypatch):
    monkeypatch.delenv("RPT_TRACKING")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(_open, [str(workspace.path)] * 3))) == 1


def test_tracking_can_be_off_and_the_store_stays_in_the_workspace(workspace, monkeypatch):
    assert tracking_uri(workspace) == ""
    with pytest.raises(UserError, match="tracking is off"):
        Tracking(workspace).sync()
    monkeypatch.delenv("RPT_TRACKING")
    assert tracking_uri(workspace) == f"sqlite:///{workspace.path}/mlflow/mlflow.db"


def test_a_password_in_the_servers_address_is_neither_said_nor_written_down(tracked, monkeypatch, caplog):
    from flows.deployments import worker_environment

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://rpt:aPasswordOfATest@127.0.0.1:9")
    monkeypatch.setattr(tasks.tracking, "_away_until", 0.0)
    perform(TOYS["evaluate"], EvaluateConfig(), tracked, {})
    with pytest.raises(UserError, match="cannot be reached") as refused:
        Tracking(tracked).sync()
    said = caplog.text + str(refused.value) + str(worker_environment(tracked))
    written = [path for path in tracked.path.rglob("*") if path.is_file()]
    assert "MLflow at http://rpt:***@127.0.0.1:9 is away" in said
    assert any(b"http://rpt:***@127.0.0.1:9" in path.read_bytes() for path in written)  # the record of what waits
    assert "aPasswordOfATest" not in said
    assert not [path for path in written if b"aPasswordOfATest" in path.read_bytes()]
    assert tracking_uri(tracked) == "http://rpt:aPasswordOfATest@127.0.0.1:9"


def test_only_what_a_closed_part_vouches_for_is_covered(tracked):
    assert covered_seq(tracked.path / "nowhere") == 0
    version = perform(TOYS["evaluate"], EvaluateConfig(), tracked, {})["version"]
    assert covered_seq(tracked.version_folder("evaluate", version)) == 1  # the attempt itself


def test_counts_become_metrics_with_names_mlflow_takes():
    assert flat_numbers("counts", {"a": 1, "b": {"c d": 2.5, "e:f": True}, "g": "text", "h": float("nan")}) == {
        "counts/a": 1.0, "counts/b/c d": 2.5, "counts/b/e_f": 1.0}


def test_weights_and_what_lies_beside_them_are_never_uploaded(tracked):
    version = perform(TOYS["pretrain"], ModelConfig(steps=1), tracked, {})["version"]
    assert artifact_files(tracked.manifest("pretrain", version)) == ["files/plots/reward.svg"]
