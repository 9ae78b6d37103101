"""Tiny models with random weights, for tests of engines."""

import torch
from transformers import LlamaConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers import LlamaForCausalLM as Llama

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3}


def tiny_qwen2(seed: int = 0, **changes: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, "tie_word_embeddings": True, **changes})).eval()


def tiny_llama(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return Llama(LlamaConfig(**{**SHAPE, "num_key_value_heads": 4})).eval()


def tiny_qwen3(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(**{**SHAPE, "head_dim": 16})).eval()
