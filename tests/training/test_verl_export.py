"""A run written out for verl: prompts and truths are ours, the reward file is ours and needs nothing, what verl cannot do is refused.
That verl takes it all is tested in tests/verl, in verl's own environment."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from rpt_core.reasoning.items import DocumentTokens, position_items
from rpt_core.reasoning.prompts import load_template
from rpt_core.store.errors import UserError
from rpt_core.tokens.bytes import ids_to_text, load_tokenizer, token_bytes
from rpt_core.training.pretrain_config import batch_arithmetic
from rpt_core.training.verl_settings import Phase, phases
from tests.training.tiny_stage import CONTROL
from tests.training.verl_world import CASES, expected, exported, small, workspace_with_dev

CALL = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("reward", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
rows = json.load(sys.stdin)
print(json.dumps([module.compute_score("rpt", **row) for row in rows]))
print(json.dumps(sorted(name for name in sys.modules if name.split(".")[0] in ("rpt_core", "torch", "numpy", "pyarrow"))))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("verl")
    return exported(root / "ws", root / "it's a run, \"really\" = 1")


def written(world, name):
    return pq.read_table(world.folder / name).to_pylist()


def test_every_selected_position_is_a_row_whose_text_truth_and_identity_are_ours(world):
    tokenizer = load_tokenizer(world.model)
    frame = load_template(world.config.template).frame(tokenizer)
    positions = world.found.tables["positions"][0].read().to_pylist()
    known = DocumentTokens(world.found.tables["documents"][0].read(), tokenizer)
    items = {item.position_id: item for item in position_items(known, positions, tokenizer, frame)}
    chat, table = load_tokenizer(world.folder / "tokenizer"), token_bytes(tokenizer)
    for name, selected in (("train.parquet", "train"), ("validation.parquet", "dev")):
        rows = written(world, name)
        assert {row["extra_info"]["position_id"] for row in rows} == {
            row["position_id"] for row in positions if row["selected"] == selected}
        assert [row["extra_info"]["index"] for row in rows] == list(range(len(rows)))
        for row in rows:
            item = items[row["extra_info"]["position_id"]]
            assert bytes.fromhex(row["reward_model"]["ground_truth"]) == item.completion
            assert tuple(row["extra_info"]["boundaries"]) == item.boundaries
            text = chat.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            assert text == ids_to_text(table, item.prompt_ids)
    assert world.exported.retokenised == 0  # bytes are bytes
    assert world.exported.compared == len(positions)


def test_the_tokenizer_keeps_control_tokens_when_verl_decodes_and_drops_the_end(world):
    chat = load_tokenizer(world.folder / "tokenizer")
    ids = [chat.convert_tokens_to_ids(token) for token in (*CONTROL[1:], CONTROL[0])]
    assert chat.decode(ids, skip_special_tokens=True) == "".join(CONTROL[1:])
    assert chat("</think>", add_special_tokens=False)["input_ids"] == ids[1:2]


def test_the_reward_file_needs_only_python_and_scores_as_ours_and_records_what_it_scored(world):
    prefill = load_template(world.config.template).frame(load_tokenizer(world.model)).prefill
    rows = [{"solution_str": response, "ground_truth": truth.hex(), "extra_info": {
        "boundaries": list(boundaries), "prefill": prefill, "position_id": f"p{number}", "split": "train"}}
        for number, (response, truth, boundaries) in enumerate(CASES)]
    done = subprocess.run([sys.executable, "-I", "-S", "-c", CALL, str(world.folder / "reward.py")], input=json.dumps(rows),
                          capture_output=True, text=True, check=True)
    scores, modules = (json.loads(line) for line in done.stdout.splitlines())
    assert modules == []
    wanted = [expected(case, prefill) for case in CASES]
    assert [score["score"] for score in scores] == [score["acc"] for score in scores] == wanted
    assert 5 < sum(wanted) < len(wanted)
    [record] = (world.folder / "scored").glob("*.jsonl")
    said = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(row["item_id"], row["response"], row["reward"]) for row in said] == [
        (f"p{number}", case[0], score) for number, (case, score) in enumerate(zip(CASES, wanted, strict=True))]


def test_a_document_that_spells_a_control_token_is_left_out_and_counted(tmp_path):
    from tests.helpers import commit_table

    workspace = workspace_with_dev(tmp_path / "ws")
    rows = workspace.table("ingest", workspace.current("ingest"), "documents").read().to_pylist()
    chosen = workspace.table("select", workspace.current("select"), "positions").read().to_pylist()
    named = chosen[0]["doc_id"]
    for row in rows:
        if row["doc_id"] == named:
            row["text"] = "<|end|>" + row["text"]
    shifted = [{**row, "position": row["position"] + 7, "byte_start": row["byte_start"] + 7, "n_prompt_tokens": row["n_prompt_tokens"] + 7}
               if row["doc_id"] == named else row for row in chosen]
    commit_table(workspace, "ingest", {"documents": rows}, key="spelled")
    commit_table(workspace, "select", {"positions": shifted}, key="spelled")
    from rpt_core.store.stage import resolve
    from rpt_core.training.pretrain_config import STAGE
    from rpt_core.training.verl_export import export

    found = resolve(STAGE, small(), workspace)
    done = export(small(), found.tables["documents"][0], found.tables["positions"][0], workspace.path / "made/model", tmp_path / "out")
    assert done.injected == sum(row["doc_id"] == named for row in chosen) > 0
    kept = pq.read_table(tmp_path / "out/train.parquet").to_pylist()
    assert named not in {row["extra_info"]["doc_id"] for row in kept}


def test_dynamic_sampling_begins_with_a_launch_of_its_own(world):
    assert phases(world.config) == [Phase(2, False), Phase(4, True, 2)]
    assert phases(small(dynamic_from_step=0)) == [Phase(4, False)]
    assert phases(small(dynamic_from_step=1)) == [Phase(4, True)]
    assert phases(small(dynamic_from_step=9)) == [Phase(4, False)]
    refills = {row["quantity"]: row["total"] for row in batch_arithmetic(world.config)}["refilled contexts, at most"]
    assert refills == "no bound"
    first, second = json.loads((world.folder / "arguments.json").read_text())
    assert set(second) - set(first) == {"trainer.total_training_steps=4", "algorithm.filter_groups.enable=true",
                                         "trainer.experiment_name=rpt-2"}
    calls = [line for line in (world.folder / "launch.sh").read_text().splitlines() if "main_ppo" in line]
    assert [call.startswith("env -u MLFLOW_RUN_ID ") for call in calls] == [False, True]  # MLflow refuses changed parameters in one run


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"reward": "dense"}, "backend verl needs pretrain.reward=prefix_matching"),
    ({"truncated": "mask"}, "backend verl needs pretrain.truncated=train"),
    ({"engine": "torch"}, "backend verl needs pretrain.engine=vllm"),
    ({"advantage_eps": 0.0}, "backend verl needs pretrain.advantage_eps=1e-06"),
    ({"advantage": "rlp"}, "grpo and dr_grpo, not rlp"),
    ({"processes": 3}, "4 contexts of 2 responses (8) do not divide by 3 GPUs"),
    ({"batch_positions": 64}, "at least a batch of prompts"),
    ({"verl_settings": ["custom_reward_function.path=x.py"]}, "is retired, and verl 0.9.1 would ignore it without a word; use reward"),
    ({"verl_settings": ["+reward_model.enable=true"]}, "reward_model.enable is retired"),
    ({"verl_settings": ["algorithm.filter_groups.max_num_gen_batches=3"]}, "verl's filtering has no bound"),
    ({"verl_settings": ["trainer.total_training_steps=2"]}, "is set by this stage, which goes on from what it says; set pretrain.steps."),
    ({"verl_settings": ["reward.custom_reward_function.name=other"]}, "reward.custom_reward_function.name is set by this stage"),
    ({"verl_settings": ["trainer.nnodes"]}, "is not of the form key=value"),
    ({"verl_settings": ["reward.custom_reward_function.path=/tmp/mine.py"]}, "names a file, an address"),
    ({"verl_settings": ["trainer.default_local_dir=/tmp/elsewhere"]}, "names a file, an address"),
    ({"verl_settings": ["trainer.default_local_dir=../elsewhere"]}, "names a file, an address"),
    ({"verl_settings": ["trainer.project_name=${oc.env:HF_TOKEN}"]}, "names a file, an address"),
    ({"verl_settings": ["hydra.run.dir=elsewhere"]}, "names a file, an address"),
    ({"verl_settings": ["+reward.x={_target_: os.system}"]}, "names a file, an address"),
])
def test_what_verl_would_do_otherwise_is_refused(tmp_path, changes, sentence):
    with pytest.raises(UserError) as refused:
        exported(tmp_path / "ws", tmp_path / "out", **changes)
    assert sentence in str(refused.value)


def test_a_folder_that_verl_would_read_as_a_pattern_is_refused(tmp_path):
    with pytest.raises(UserError, match="for a pattern or a variable; name a folder without any of"):
        exported(tmp_path / "ws", tmp_path / "run[1]")


def test_a_python_without_verl_or_with_none_there_is_named(tmp_path, monkeypatch):
    from rpt_core.training.verl_run import verl_python

    monkeypatch.setenv("RPT_VERL_PYTHON", str(tmp_path / "none"))
    with pytest.raises(UserError, match="cannot be run"):
        verl_python(small())
    monkeypatch.delenv("RPT_VERL_PYTHON")
    bare = tmp_path / "python"
    with pytest.raises(UserError, match="outside the allowed roots"):  # a form chooses no program
        verl_python(small(verl_python="/bin/sh"))
    monkeypatch.setenv("RPT_SOURCES", str(tmp_path))
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    with pytest.raises(UserError, match="has no verl, which needs an environment of its own"):
        verl_python(small(verl_python=str(bare)))
    bare.write_text("#!/bin/sh\necho 0.8.0\n")
    with pytest.raises(UserError, match=r"has verl 0\.8\.0, and the settings are those of 0\.9\.1"):
        verl_python(small(verl_python=str(bare)))
