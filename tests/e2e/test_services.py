"""docker/compose.yaml's services without Docker: the pipeline through Postgres and both servers, passwords on, and what
stays secret."""

import urllib.error
from pathlib import Path

import pytest

from tests.e2e.chain import PROFILE
from tests.e2e.services import Services, postgres_programs

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600), pytest.mark.xdist_group("services"),
              pytest.mark.skipif(postgres_programs() is None, reason="Postgres is not installed (apt-get install postgresql)")]
TOKEN = "hf_secretTokenOfATest0123456789"
S3_KEY = "s3SecretKeyOfATest9876543210"


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    for module in ("psycopg2", "flask_wtf"):
        pytest.importorskip(module, reason="the servers' packages are missing: pip install '.[server]'")
    services = Services(tmp_path_factory.mktemp("services"), {"HF_TOKEN": TOKEN, "AWS_SECRET_ACCESS_KEY": S3_KEY})
    try:
        services.up()
        yield services
    finally:
        services.stop()


@pytest.fixture(scope="module")
def finished(services) -> str:
    """A pipeline that ran through the services."""
    run = services.start_run("pipeline", {"profile": PROFILE, "overrides": {"pretrain.steps": 4}, "until_stage": "pretrain"})
    state = services.ended(run)
    assert state["type"] == "COMPLETED", state["message"] + (services.folder / "worker.log").read_text()[-3000:]
    return run


def test_both_servers_refuse_whoever_does_not_sign_in(services):
    asked = [("prefect", f"/{what}/filter", {}) for what in ("deployments", "flow_runs", "variables", "block_documents")]
    asked += [("mlflow", "/api/2.0/mlflow/experiments/search", {"max_results": 9}),
              ("mlflow", "/api/2.0/mlflow/runs/search", {"experiment_ids": ["0"]})]
    for service, path, body in asked:
        with pytest.raises(urllib.error.HTTPError) as refused:
            services.get(path, body, service, auth=False)
        assert refused.value.code == 401, path
    assert services.get("/deployments/filter", {})
    assert services.get("/api/2.0/mlflow/experiments/search", {"max_results": 9}, "mlflow")["experiments"]


def test_the_pipeline_runs_through_postgres_and_both_servers(services, finished):
    assert services.workspace.current("pretrain")
    version = services.workspace.current("pretrain")
    manifest = services.workspace.manifest("pretrain", version)
    run = services.get(f"/api/2.0/mlflow/runs/get?run_id={manifest.run_ids['mlflow']}", None, "mlflow")["run"]
    assert run["info"]["status"] == "FINISHED"
    alias = services.get("/api/2.0/mlflow/registered-models/alias?name=rpt&alias=rpt-latest", None, "mlflow")["model_version"]
    assert {tag["key"]: tag["value"] for tag in alias["tags"]}["version"] == version
    found = services.get("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [finished]}, "key": {"any_": ["pretrain-mlflow"]}}})
    assert found[0]["data"].endswith(f"/runs/{manifest.run_ids['mlflow']})")


def test_no_secret_is_in_logs_manifests_mlflow_or_prefects_answers(services, finished):
    secrets = [TOKEN.encode(), S3_KEY.encode(), *(value.rpartition(":")[2].encode() for value in services.secrets.values())]
    places = [*services.folder.glob("*.log"), *services.workspace.path.rglob("*")]
    held = [str(path) for path in places if Path(path).is_file() and any(secret in Path(path).read_bytes() for secret in secrets)]
    assert held == []
    for path, body in (("/deployments/filter", {}), ("/flow_runs/filter", {}), ("/logs/filter", {"limit": 200}), ("/artifacts/filter", {}),
                       ("/work_pools/filter", {})):
        answer = str(services.get(path, body)).encode()
        assert not any(secret in answer for secret in secrets), path
    experiments = services.get("/api/2.0/mlflow/experiments/search", {"max_results": 9}, "mlflow")["experiments"]
    asked = {"experiment_ids": [found["experiment_id"] for found in experiments], "max_results": 1000}
    answer = services.get("/api/2.0/mlflow/runs/search", asked, "mlflow")
    assert len(answer["runs"]) > 5  # names, parameters and tags of every run
    assert not any(secret in str(answer).encode() for secret in secrets)


@pytest.mark.parametrize(("deployment", "parameters", "sentence"), [
    ("ingest", {"config": {"sources": ["/etc/passwd"]}}, "outside the allowed roots"),
    ("pipeline", {"profile": "/etc/hosts.yaml"}, "outside the allowed roots"),
    ("pretrain", {"inputs": {"documents": "../../x@0000000000000000-1"}}, "comes from"),
], ids=lambda value: value if isinstance(value, str) and "/" not in value else "")
def test_a_form_reaches_no_file_outside_the_sources(services, finished, deployment, parameters, sentence):
    state = services.ended(services.start_run(deployment, parameters))
    assert (state["type"], state["name"]) == ("FAILED", "Refused"), state
    assert sentence in state["message"]
