"""A model's own log-probability of one token behind a context: what dense rewards and information gain ask for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rpt_core.rollout.engine import GenerationCounts


class TokenProbability:
    """Callable as a reward's ``probability``. Reads ``model`` (a transformers causal LM) at each call, so it follows training.

    Many targets behind the same context cost one forward pass of it. ``batch_tokens`` bounds the padded tokens of one pass."""

    def __init__(self, model: Any, batch_tokens: int = 16_384):
        self.model = model
        self.batch_tokens = batch_tokens
        self.flops = GenerationCounts()

    def __call__(self, contexts: Sequence[Sequence[int]], targets: Sequence[int]) -> list[float]:
        """log softmax(logits)[target] directly behind each context, nats, temperature 1, float32. Contexts hold at least one token."""
        if len(contexts) != len(targets):
            raise ValueError(f"{len(contexts)} contexts came with {len(targets)} targets")
        askers: dict[tuple[int, ...], list[int]] = {}
        for index, context in enumerate(contexts):
            askers.setdefault(tuple(context), []).append(index)
        found = [0.0] * len(targets)
        distinct = sorted(askers, key=len)
        begin = 0
        while begin < len(distinct):
            end = begin + 1
            while end < len(distinct) and (end + 1 - begin) * len(distinct[end]) <= self.batch_tokens:
                end += 1
            batch = distinct[begin:end]
            rows = [row for row, context in enumerate(batch) for _ in askers[context]]
            indices = [index for context in batch for index in askers[context]]
            logs = self._logprobs(batch)
            for index, value in zip(indices, logs[rows, [targets[i] for i in indices]].tolist(), strict=True):
                found[index] = value
            begin = end
        return found

    @torch.inference_mode()
    def _logprobs(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        """[B, V] behind right-padded contexts."""
        ids = np.zeros((len(contexts), len(contexts[-1])), np.int64)
        for row, context in enumerate(contexts):
            if not len(context):
                raise ValueError("a context is empty; a probability needs at least one token before it")
            ids[row, : len(context)] = context
            self.flops.add_prompt(len(context))
        device = next(self.model.parameters()).device
        hidden = self.model.base_model(input_ids=torch.from_numpy(ids).to(device), use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(contexts), device=device), torch.tensor([len(c) - 1 for c in contexts], device=device)]
        return torch.log_softmax(self.model.get_output_embeddings()(last).float(), -1).cpu()
