"""verl 0.9.1 itself on an exported run: its configuration, its data set, its reward manager, its tracker, and its launch."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from rpt_core.reasoning.prompts import load_template
from rpt_core.store.errors import UserError
from rpt_core.tokens.bytes import load_tokenizer
from rpt_core.training.verl_run import compose
from rpt_core.training.verl_settings import Files
from tests.training.verl_world import CASES, expected, exported

pytestmark = pytest.mark.verl
HERE = Path(__file__).parent
# verl's queue wants a processor for each of its storage units, beside those of its own processes: on two cores Ray would wait for ever
LOGICAL = ["ray_kwargs.ray_init.num_cpus=16", "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
           "+ray_kwargs.ray_init.include_dashboard=false"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("verl")
    return exported(root / "ws", root / "it's a run, \"really\" = 1", tis_cap=2.0, max_grad_norm=0.0, verl_settings=LOGICAL)


def response_ids(tokenizer, text):
    """As a model writes it: control tokens where they are spelled, the end token last."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]


@pytest.fixture(scope="module")
def verl(world, verl_python, tmp_path_factory):
    """verl's answers, asked in one process because its imports take long; and the MLflow run it was to join."""
    from mlflow.tracking import MlflowClient

    folder = tmp_path_factory.mktemp("asked")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    run = client.create_run(client.create_experiment("rpt", artifact_location=str(folder / "artifacts")))
    tokenizer = load_tokenizer(world.folder / "tokenizer")
    prefill = load_template(world.config.template).frame(load_tokenizer(world.model)).prefill
    cases = [{"response_ids": response_ids(tokenizer, response), "reward_model": {"style": "rule", "ground_truth": truth.hex()},
              "extra_info": {"boundaries": list(boundaries), "prefill": prefill, "position_id": f"p{number}", "split": "train"}}
             for number, (response, truth, boundaries) in enumerate(CASES)]
    arguments = json.loads((world.folder / "arguments.json").read_text())
    (folder / "asked.json").write_text(json.dumps({"arguments": arguments[-1], "cases": cases,
                                                   "steps": [{"critic/score/mean": 0.25}, {"critic/score/mean": 0.5}]}))
    done = subprocess.run([verl_python, str(HERE / "oracle.py"), str(folder / "asked.json"), str(folder / "answer.json")],
                          capture_output=True, text=True, timeout=500,
                          env={**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_RUN_ID": run.info.run_id})
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads((folder / "answer.json").read_text()), "client": client, "run": run.info.run_id, "prefill": prefill}


def test_the_settings_resolve_under_verls_configuration_and_pass_its_own_check(world, verl):
    found = verl["resolved"]
    files = Files(world.folder)
    assert found["reward"]["custom_reward_function"] == {"path": str(files.reward), "name": "compute_score"}
    assert found["custom_reward_function"] == {"path": None, "name": None}  # the retired key
    assert found["data"]["train_files"] == str(files.train)
    assert found["algorithm"]["adv_estimator"] == "grpo"
    assert found["algorithm"]["filter_groups"] == {**found["algorithm"]["filter_groups"], "enable": True, "metric": "acc"}
    assert found["algorithm"]["rollout_correction"] == {**found["algorithm"]["rollout_correction"], "rollout_is": "token",
                                                        "rollout_is_threshold": 2.0}
    assert found["trainer"] == {**found["trainer"], "total_training_steps": 4, "save_freq": 2, "n_gpus_per_node": 2, "nnodes": 1}
    actor, rollout = found["actor_rollout_ref"]["actor"], found["actor_rollout_ref"]["rollout"]
    assert actor["ppo_mini_batch_size"] == found["data"]["train_batch_size"] == 4  # one update a step: on-policy
    assert actor["optim"]["clip_grad"] == float("inf")
    assert (rollout["n"], rollout["temperature"], rollout["name"], rollout["logprobs_mode"]) == (2, 0.8, "vllm", "processed_logprobs")
    assert found["ray_kwargs"]["ray_init"]["num_cpus"] == 16


def test_verls_data_set_reads_the_files_and_its_tokens_are_ours(world, verl):
    from rpt_core.reasoning.items import DocumentTokens, position_items

    tokenizer = load_tokenizer(world.model)
    frame = load_template(world.config.template).frame(tokenizer)
    known = DocumentTokens(world.found.tables["documents"][0].read(), tokenizer)
    positions = world.found.tables["positions"][0].read().to_pylist()
    items = {item.position_id: item for item in position_items(known, positions, tokenizer, frame)}
    assert len(verl["rows"]) == len(items)
    for row in verl["rows"]:
        item = items[row["extra_info"]["position_id"]]
        assert row["prompt_ids"] == item.prompt_ids
        assert bytes.fromhex(row["reward_model"]["ground_truth"]) == item.completion
        assert tuple(row["extra_info"]["boundaries"]) == item.boundaries
        assert row["index"] == row["extra_info"]["index"]


def test_verls_reward_manager_scores_every_case_as_ours(verl):
    wanted = [expected(case, verl["prefill"]) for case in CASES]
    assert [score["reward"] for score in verl["scores"]] == wanted
    assert [score["acc"] for score in verl["scores"]] == wanted


def test_verls_tracker_joins_the_run_it_is_told(verl):
    history = verl["client"].get_metric_history(verl["run"], "critic/score/mean")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.25), (2, 0.5)]
    assert len(verl["client"].search_runs([verl["client"].get_run(verl["run"]).info.experiment_id])) == 1


@pytest.mark.parametrize(("setting", "sentence"), [
    ("actor_rollout_ref.rollout.tensor_model_paralel_size=2", "tensor_model_paralel_size"),
    ("trainer.nodes=2", "Could not override 'trainer.nodes'"),
    ("actor_rollout_ref.rollout.top_p=[", "verl refuses a setting"),
])
def test_verl_refuses_unknown_keys_and_values_it_cannot_read(tmp_path, verl_python, setting, sentence):
    world = exported(tmp_path / "ws", tmp_path / "out", verl_settings=[setting])
    with pytest.raises(UserError) as refused:
        compose(verl_python, Files(world.folder))
    assert sentence in str(refused.value)


def test_a_real_launch_gets_as_far_as_the_gpus_that_are_not_there(world, verl_python):
    done = subprocess.run(["sh", str(world.folder / "launch.sh")], capture_output=True, text=True, timeout=500,
                          env={**os.environ, "VERL_PYTHON": verl_python, "CUDA_VISIBLE_DEVICES": "", "RAY_DEDUP_LOGS": "0",
                               "RAY_ADDRESS": "local"})
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "All configuration checks passed successfully!" in said
    assert "train dataset size: 28" in said or "dataset len: 28" in said
    assert "Total available GPUs 0 is less than total desired GPUs 2" in said, said[-3000:]
