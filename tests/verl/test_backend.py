"""`pretrain.backend: verl` as a stage, with a stand-in for the part of verl that needs GPUs: launched in two phases, failed once and gone
on, its checkpoints merged by verl's own merger, its rollouts back in our tables, and the next stage running on them."""

import json
import secrets
import shlex
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from rpt_core.store.events import read_events
from rpt_core.store.maintenance import verify
from rpt_core.store.sources import allow_source
from rpt_core.store.stage import execute
from rpt_core.tokens.models import load_causal_lm
from rpt_core.training.checkpoints import checkpoint_id, weights_digest
from rpt_core.training.pretrain_config import STAGE
from rpt_core.training.verl_run import VerlFailed
from tasks.stage import perform
from tasks.tracking import Tracking
from tests.training.verl_world import small, workspace_with_dev

pytestmark = pytest.mark.verl
HERE = Path(__file__).parent
STEP_ADDS = 0.125  # the stand-in, to every weight
PROXY = """#!/bin/sh
case "$1 $2" in
  "-m verl.trainer.main_ppo") shift 2; exec {python} {stand_in} "$@";;
esac
exec {python} "$@"
"""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory, verl_python):
    """verl's Python, but for the trainer."""
    path = tmp_path_factory.mktemp("proxy") / "python"
    path.write_text(PROXY.format(python=shlex.quote(verl_python), stand_in=shlex.quote(str(HERE / "stand_in.py"))))
    path.chmod(0o755)
    allow_source(path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, proxy):
    root = tmp_path_factory.mktemp("backend")
    workspace, config = workspace_with_dev(root / "ws"), small(verl_python=str(proxy))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAND_IN_DIES", str(root / "died"))
        for name in ("RPT_TRACKING", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        with pytest.raises(VerlFailed, match="step 2 of 4 saved: RuntimeError: the stand-in dies"):
            perform(STAGE, config, workspace, {})
        version = perform(STAGE, config, workspace, {})["version"]
    return workspace, workspace.manifest("pretrain", version)


def rows(workspace, manifest, name):
    return workspace.table("pretrain", manifest.version, name).read().to_pylist()


def test_rollouts_come_back_with_positions_steps_and_what_filtering_left_out(trained):
    workspace, manifest = trained
    found = rows(workspace, manifest, "rollouts")
    selected = {row["position_id"] for row in workspace.table("select", workspace.current("select"), "positions").read().to_pylist()
                if row["selected"] == "train"}
    assert {row["item_id"] for row in found} <= selected
    assert manifest.counts["rollouts_without_position"] == 0
    kept = Counter(row["step"] for row in found if row["kept"])
    assert kept == {1: 8, 2: 8, 3: 8, 4: 8}  # 4 contexts of 2
    assert all(row["response"].startswith(f"step {row['step']}\u2028") for row in found if row["kept"])
    assert len({(row["step"], row["item_id"], row["sample"]) for row in found}) == len(found)
    assert {row["policy_step"] - row["step"] for row in found} == {-1}
    equal = [row for row in found if row["step"] in (3, 4) and row["kept"] and row["item_id"] not in {
        other["item_id"] for other in found if other["step"] == row["step"] and other["reward"] != row["reward"]}]
    assert not equal  # from step 3 equal groups are not in the update …
    assert any(not row["kept"] and row["reward"] == 1.0 for row in found)  # … and are recorded all the same
    assert manifest.counts["tokens_generated"] == sum(row["n_tokens"] for row in found)
    one = next(row for row in found if row["reward"] == 1.0)
    assert json.loads(one["components"]) == {"prefix_matching": 1.0, "tokens_matched": 1.0}


def test_checkpoints_come_back_merged_from_their_shards_and_are_what_their_ids_say(trained):
    workspace, manifest = trained
    found = sorted(rows(workspace, manifest, "checkpoints"), key=lambda row: row["step"])
    assert [row["step"] for row in found] == [0, 2, 4]
    assert found[0]["flops"] == 0 < found[1]["flops"] < found[2]["flops"] == manifest.counts["flops"]
    [start] = workspace.table("bootstrap", workspace.current("bootstrap"), "checkpoints").read().to_pylist()
    assert {row["parent_id"] for row in found} == {start["checkpoint_id"]}
    before = load_causal_lm(workspace.path / "made/model", "float32").state_dict()
    for row in found[1:]:
        folder = workspace.path / row["uri"]
        merged = load_causal_lm(folder, "float32")
        assert row["checkpoint_id"] == checkpoint_id("pretrain", row["step"], weights_digest(merged))
        after = merged.state_dict()
        assert after.keys() == before.keys()
        for name, weight in before.items():  # what two processes saved a half of each; verl's merger rounds to bfloat16
            assert torch.equal(after[name], (weight + STEP_ADDS * row["step"]).bfloat16().float()), name
        assert (folder / "tokenizer.json").read_bytes() == (workspace.path / "made/model/tokenizer.json").read_bytes()
    assert verify(workspace, "pretrain") == []


def test_the_failed_attempt_was_gone_on_with_and_said_so(trained):
    workspace, manifest = trained
    assert manifest.attempts == 2
    events = list(read_events(workspace.version_folder("pretrain", manifest.version) / "events.jsonl"))
    said = [event["data"]["text"] for event in events if event["type"] == "message"]
    assert any("0 left out because they spell a control token" in text for text in said)
    assert not (workspace.version_folder("pretrain", manifest.version) / "state").exists()


def test_the_stages_own_mlflow_run_has_verls_metrics_of_every_step_once(trained):
    workspace, manifest = trained
    client = Tracking(workspace).client()
    run = client.get_run(manifest.run_ids["mlflow"])
    assert run.info.status == "FINISHED"
    rewards = {step: [row["reward"] for row in rows(workspace, manifest, "rollouts") if row["kept"] and row["step"] == step]
               for step in (1, 2, 3, 4)}
    said = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "reward/mean")]
    assert said == [(step, sum(found) / len(found)) for step, found in rewards.items()]
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "perf/step")] == [1, 2, 3, 4]
    assert "timing_s/step" not in run.data.metrics  # not finite
    assert len(client.search_runs([run.info.experiment_id], "tags.mlflow.runName LIKE 'pretrain%'")) == 1


def test_the_next_stage_goes_on_from_it(trained):
    from rpt_core.evaluation.evaluate_config import STAGE as EVALUATE
    from rpt_core.evaluation.evaluate_config import EvaluateConfig

    workspace, manifest = trained
    done = execute(EVALUATE, EvaluateConfig(sample="dev", threads=1, device="cpu", max_response_tokens=8, max_positions=4), workspace)
    models = {model["checkpoint_id"] for model in done.manifest.counts["models"]}
    assert {row["checkpoint_id"] for row in rows(workspace, manifest, "checkpoints") if row["step"]} <= models


@contextmanager
def ray_head(python, folder):
    """A Ray cluster that takes jobs, on loopback; its dashboard's address."""
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    with open(folder / "head.log", "wb") as log:
        head = subprocess.Popen([python, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus",
                                 "4", "--node-ip-address", "127.0.0.1", "--port", str(ports[0]), "--dashboard-host", "127.0.0.1",
                                 "--dashboard-port", str(ports[1])], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        address, end = f"http://127.0.0.1:{ports[1]}", time.monotonic() + 500
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
                break
            except urllib.error.HTTPError:  # it answers; Ray's own commands know its token
                break
            except OSError:
                assert head.poll() is None, (folder / "head.log").read_text()
                assert time.monotonic() < end, "the dashboard does not answer"
                time.sleep(0.5)
        yield address
    finally:
        head.terminate()
        head.wait(60)


def test_a_job_that_is_submitted_to_a_cluster_trains_and_one_that_fails_says_so(tmp_path, proxy, verl_python, monkeypatch):
    workspace = workspace_with_dev(tmp_path / "ws")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # as Ray's head asks for it; the job's command inherits both
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
    with ray_head(verl_python, tmp_path) as address:
        config = small(verl_python=str(proxy), verl_address=address, steps=2, dynamic_from_step=0, checkpoint_steps=[2])
        manifest = execute(STAGE, config, workspace).manifest
        assert Counter(row["step"] for row in rows(workspace, manifest, "rollouts")) == {1: 8, 2: 8}
        bad = small(verl_python=str(proxy), verl_address=address, steps=4, dynamic_from_step=0, checkpoint_steps=[4],
                    verl_settings=["trainer.validation_data_dir=fails"])
        with pytest.raises(VerlFailed, match=r"verl ended with status .*, step 0 of 4 saved: RuntimeError: the stand-in fails"):
            execute(STAGE, bad, workspace)
