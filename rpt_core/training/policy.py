"""The policy a GRPO stage trains: model, tokenizer and rollout engine, opened from the checkpoint the stage starts from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rpt_core.rollout.engine import Engine
from rpt_core.store.errors import UserError
from rpt_core.store.models import ModelRef
from rpt_core.tokens.bytes import load_tokenizer, token_bytes
from rpt_core.tokens.models import load_causal_lm, max_positions, resolve_device, set_threads, tune_allocator
from rpt_core.training.grpo_config import GrpoConfig


@dataclass
class Policy:
    """``model`` holds float32 weights to be trained; ``table`` the bytes of every id the model can draw; ``stop_ids`` end a response."""

    start: ModelRef
    model: Any
    tokenizer: Any
    table: list[bytes]
    stop_ids: tuple[int, ...]
    engine: Engine


def open_policy(config: GrpoConfig, start: ModelRef) -> Policy:
    """Load ``start`` onto the configured device with an engine that generates in ``config.dtype``."""
    tune_allocator()
    set_threads(config.threads)
    model = load_causal_lm(start.path, "float32", resolve_device(config.device))
    tokenizer = load_tokenizer(start.path)
    table = token_bytes(tokenizer)
    table += [b""] * (model.config.get_text_config().vocab_size - len(table))  # padded entries can be drawn too
    return Policy(start, model, tokenizer, table, stop_ids(tokenizer), open_engine(config, model, start))


def open_engine(config: GrpoConfig, model: Any, start: ModelRef) -> Engine:
    if config.engine == "vllm":
        from rpt_core.rollout.vllm_engine import VllmEngine

        return VllmEngine(start.path, dtype=config.dtype)
    from rpt_core.rollout.torch_engine import TorchEngine

    return TorchEngine(model, dtype=config.dtype, chunk_tokens=config.rollout_chunk_tokens)


def stop_ids(tokenizer: Any) -> tuple[int, ...]:
    """The end-of-text token; a model without one always writes to the length limit."""
    return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)


def require_room(policy: Policy, prompt_lengths: Sequence[int], new_tokens: int) -> None:
    """UserError where the longest prompt and a whole response do not fit the model."""
    room, longest = max_positions(policy.model), max(prompt_lengths, default=0)
    if room and longest + new_tokens > room:
        raise UserError(f"a prompt of {longest} tokens and a response of {new_tokens} do not fit the model, which takes {room}; "
                        "set a smaller max_prompt_tokens or max_response_tokens.")
