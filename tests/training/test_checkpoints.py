"""Saved models load elsewhere; saved states come back bit for bit; nothing is pickled."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from rpt_core.store.context import Context
from rpt_core.store.errors import Corrupt, UserError
from rpt_core.store.tables import Manifest
from rpt_core.store.workspace import Workspace
from rpt_core.training.checkpoints import checkpoint_id, checkpoint_row, load_state, save_model, save_state, weights_digest
from rpt_core.training.optimizer import clip_gradients, learning_rate, make_optimizer
from tests.helpers import data_path


def shape(layers):
    return Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
                       num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=64)


@pytest.fixture
def context(tmp_path):
    identity = "0" * 16
    found = Context(Workspace(tmp_path / "ws"), Manifest("pretrain", "pretrain", identity, f"{identity}-1", 1, {}, {}, {}), {}, {})
    yield found
    found.close()


def micro(seed=0):
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(shape(2))


def steps(model, optimizer, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        ids = torch.randint(0, 64, (2, 16), generator=generator)
        model(input_ids=ids, labels=ids).loss.backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def test_a_saved_model_is_a_hugging_face_folder_with_the_sources_tokenizer_and_no_sampling_settings(context):
    model, source = micro(), data_path("tokenizers/gpt2")
    digest = save_model(context, "final", model, source)
    folder = context.file_path("final")
    assert not (folder / "generation_config.json").exists()
    assert not [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert weights_digest(loaded) == digest == weights_digest(model)
    text = "Naïve café \U0001f9ee"
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == AutoTokenizer.from_pretrained(source)(text).input_ids


def test_a_model_source_without_tokenizer_leaves_no_folder_behind(context, tmp_path):
    with pytest.raises(UserError, match="tokenizer"):
        save_model(context, "final", micro(), tmp_path)
    assert not context.file_path("final").exists()


def test_checkpoint_ids_tell_kind_step_and_weights_apart(context):
    ids = {checkpoint_id(kind, step, weights_digest(micro(seed))) for kind in ("a", "b") for step in (0, 1) for seed in (0, 1)}
    assert len(ids) == 8
    row = checkpoint_row(context, "final", "pretrain", weights="w", parent_id="p", seed=3, step=4, flops=5, wall_s=6, tokens_trained=7)
    context.write("checkpoints", [row])
    assert row["uri"].endswith("files/final")
    assert row["run"] == context.manifest.version


def test_training_from_a_loaded_state_equals_training_that_never_stopped_bit_for_bit(context):
    whole, resumed = micro(), micro()
    optimizer = make_optimizer(whole, 1e-2)
    steps(whole, optimizer, 3)
    name = save_state(context, 3, whole, optimizer, {"step": 3, "flops": 0.1 + 0.2})
    steps(whole, optimizer, 3, seed=1)
    other = make_optimizer(resumed, 5e-1, betas=(0.5, 0.5))
    steps(resumed, other, 1, seed=9)
    assert load_state(context, name, resumed, other) == {"step": 3, "flops": 0.1 + 0.2}
    steps(resumed, other, 3, seed=1)
    assert weights_digest(resumed) == weights_digest(whole)


def test_states_keep_the_last_two_and_hold_no_pickle(context):
    model = micro()
    optimizer = make_optimizer(model, 1e-3)
    steps(model, optimizer, 1)
    names = [save_state(context, step, model, optimizer, {}, keep=1) for step in (9, 10, 100)]
    assert sorted(path.name for path in context.state.iterdir()) == names[1:]
    files = {path.name for path in (context.state / names[-1]).iterdir()}
    assert files == {"model.safetensors", "optimizer.safetensors", "state.json"}
    json.loads((context.state / names[-1] / "state.json").read_text())


def test_a_state_of_another_model_or_a_missing_one_is_refused(context):
    model = micro()
    optimizer = make_optimizer(model, 1e-3)
    name = save_state(context, 1, model, optimizer, {})
    other = Qwen2ForCausalLM(shape(1))
    with pytest.raises(Corrupt, match="another model"):
        load_state(context, name, other, make_optimizer(other, 1e-3))
    with pytest.raises(Corrupt, match="missing"):
        load_state(context, "step-00000099", model, optimizer)


def test_the_schedule_warms_up_then_holds_or_falls_to_its_final_share():
    assert [learning_rate(step, 1.0, warmup_steps=4) for step in (1, 2, 4, 5, 100)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    for schedule in ("linear", "cosine"):
        values = [learning_rate(step, 2.0, 2, 12, schedule, final_share=0.1) for step in range(2, 13)]
        assert values == sorted(values, reverse=True)
        assert values[0] == 2.0
        assert values[-1] == pytest.approx(0.2)


def test_clipping_bounds_the_norm_and_reports_what_it_was():
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 3.0)
    assert clip_gradients([parameter], 0.2) == pytest.approx(6.0)
    assert float(parameter.grad.norm()) == pytest.approx(0.2, rel=1e-4)
    assert clip_gradients([parameter], 0.0) == pytest.approx(0.2, rel=1e-4)
    assert float(parameter.grad.norm()) == pytest.approx(0.2, rel=1e-4)
