"""Model FLOPs of dense decoders (Llama and Qwen2 shapes): the one function family that every stage's compute is counted with.

Convention: a multiply-add is 2 FLOPs; matrix products of attention, MLP and head are counted, element-wise work is not; attention is
counted by (query, key) pairs really attended, so a causal sequence of n tokens has n(n+1)/2 pairs (torch's FlopCounterMode, which the
tests compare with, counts the whole n² square); backward costs twice forward; recomputation of activations is not model FLOPs."""

from collections.abc import Iterable
from typing import Any

from rpt_core.store.errors import UserError

TRAINING_FACTOR = 3.0  # forward + backward, in forwards


def causal_pairs(length: int, cached: int = 0) -> int:
    """(query, key) pairs of ``length`` new tokens that follow ``cached`` ones: each attends to all before it and to itself."""
    return length * cached + length * (length + 1) // 2


def forward_flops(config: Any, tokens: int, attention_pairs: int, head_tokens: int | None = None) -> float:
    """FLOPs of a forward pass.

    config: Hugging Face model config; tokens: tokens that passed through the layers (padding left out, a shared prefix once);
    attention_pairs: sum over those tokens of the keys each attended to; head_tokens: tokens whose logits were computed (all, if None).
    Raises UserError for an architecture whose shape this count does not describe."""
    layer, pair, head = _unit_costs(config)
    heads = tokens if head_tokens is None else head_tokens
    return float(tokens * layer + attention_pairs * pair + heads * head)


def training_flops(config: Any, lengths: Iterable[int], head_tokens: int | None = None) -> float:
    """FLOPs of forward and backward over whole causal sequences of the given lengths (tokens). For work that shares prefixes use
    ``TRAINING_FACTOR * forward_flops(...)`` with the tokens and pairs really computed."""
    lengths = list(lengths)
    return TRAINING_FACTOR * forward_flops(config, sum(lengths), sum(causal_pairs(n) for n in lengths), head_tokens)


def _unit_costs(config: Any) -> tuple[int, int, int]:
    """FLOPs of (one token through all layers without attention scores, one attended pair in all layers, one token's logits)."""
    wanted = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    missing = [name for name in wanted if not isinstance(getattr(config, name, None), int)]
    experts = max(getattr(config, "num_experts", None) or 1, getattr(config, "num_local_experts", None) or 1)
    if missing or experts > 1:
        why = "mixture of experts" if experts > 1 else "no " + ", ".join(missing)
        kind = getattr(config, "model_type", "?")
        raise UserError(f"FLOPs are counted for dense Llama- and Qwen2-shaped decoders, not for model type {kind} ({why}).")
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    attention = 2 * hidden * head_dim * heads + 2 * hidden * head_dim * kv_heads  # query and output, key and value
    gated_mlp = 3 * hidden * config.intermediate_size
    layer = 2 * config.num_hidden_layers * (attention + gated_mlp)
    pair = 4 * config.num_hidden_layers * heads * head_dim  # scores, then the weighted sum of values
    return layer, pair, 2 * hidden * config.vocab_size
