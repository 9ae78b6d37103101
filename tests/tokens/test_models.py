"""Models load the one way the project allows, and what cannot be loaded is said in one sentence."""

import ctypes
import json
import platform
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma2ForCausalLM

from rpt_core.store.errors import UserError
from rpt_core.tokens.models import body_and_head, load_causal_lm, max_positions, resolve_device, set_threads, tune_allocator
from tests.tokens import small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.save_small_model(tmp_path_factory.mktemp("model"), small.byte_level())


def test_a_model_is_loaded_in_the_dtype_asked_for_with_sdpa_in_eval_mode(folder):
    for dtype in ("float32", "bfloat16"):
        model = load_causal_lm(folder, dtype)
        assert model.dtype == getattr(torch, dtype)
        assert not model.training
        assert model.config._attn_implementation == "sdpa"
    assert max_positions(model) == 128


def test_sampling_settings_of_the_folder_are_not_inherited(folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").write_text(json.dumps({"temperature": 0.1, "top_k": 3, "do_sample": True}))
    assert load_causal_lm(copy).generation_config.to_diff_dict().get("top_k") is None


def test_body_and_head_give_the_models_own_logits(folder):
    model = load_causal_lm(folder)
    body, head, vocabulary = body_and_head(model)
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        torch.testing.assert_close(head(body(input_ids=ids).last_hidden_state), model(input_ids=ids).logits)
    assert vocabulary == model.config.vocab_size


def test_a_model_that_caps_its_logits_is_refused_rather_than_misread():
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=60, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                          num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.1, bos_token_id=None, eos_token_id=None,
                          pad_token_id=None)
    model = Gemma2ForCausalLM(config).eval()
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=2.0)
    with pytest.raises(UserError, match="scales or caps"):
        body_and_head(model)


@pytest.mark.parametrize(("missing", "match"), [("config.json", "no config.json"), ("model.safetensors", "no safetensors"),
                                                ("tokenizer.json", "no tokenizer")])
def test_an_incomplete_model_folder_is_a_user_error(folder, tmp_path, missing, match):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / missing).unlink()
    with pytest.raises(UserError, match=match):
        load_causal_lm(copy)


def test_broken_weights_and_unknown_names_are_user_errors(folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(UserError, match="cannot be loaded"):
        load_causal_lm(copy)
    shutil.copy(folder / "config.json", copy)
    (copy / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      torn")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_causal_lm(copy)
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights"):
        load_causal_lm(copy)
    with pytest.raises(UserError, match="dtype"):
        load_causal_lm(folder, "int8")
    with pytest.raises(UserError, match="device"):
        resolve_device("tpu")


def test_auto_is_the_gpu_only_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(UserError, match="no GPU"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda"


def test_threads_are_set_and_zero_leaves_them():
    before = torch.get_num_threads()
    assert set_threads(2) == 2
    assert set_threads(0) == 2
    set_threads(before)


def test_the_allocator_is_tuned_on_glibc_only(monkeypatch):
    assert tune_allocator() == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("called mallopt without glibc"))
    assert tune_allocator() is False
