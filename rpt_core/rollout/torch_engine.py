"""The default rollout engine: plain torch on CPU or GPU, for any transformers causal LM with full causal attention.

One prefill per prompt, shared by its group; finished completions leave the batch; chunks are fixed by the data alone, so redoing a
chunk gives the same bits on the same machine kind, threads and dtype."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rpt_core.rollout.engine import Completion, GenerationCounts, Sampling, check_request
from rpt_core.rollout.shared_attention import ATTENTION, SharedCache
from rpt_core.rollout.uniforms import uniforms
from rpt_core.store.errors import UserError
from rpt_core.tokens.models import body_and_head

CHECK_EVERY = 4  # steps between looks at which completions have ended
LEAVE_SHARE = 0.1  # rows leave the batch once this share of it has ended
_ALIGNMENT = 64  # bytes, of torch's own allocations
_BLOCK = 1024  # columns of random numbers made at a time


class TorchEngine:
    """Holds its own copy of the model, in ``dtype`` ("float32", "bfloat16" or None: the model's own). ``take`` makes the given
    model the engine's own instead, where nobody else needs it.

    ``chunk_tokens`` bounds prompt tokens (once per prompt) plus new tokens (at most ``max_new_tokens`` per completion) held at
    once; it fixes the batch plan and so enters the bits of the result."""

    def __init__(self, model: Any, *, dtype: str | None = None, chunk_tokens: int = 65_536, policy_step: int = 0, take: bool = False):
        _check_layers(model.config)
        body_and_head(model)
        self.model = (model if take else deepcopy(model)).eval().requires_grad_(False)
        if dtype:
            self.model = self.model.to(getattr(torch, dtype))
        self.model.config._attn_implementation = ATTENTION
        for parameter in self.model.parameters():
            if parameter.data_ptr() % _ALIGNMENT:  # weights mapped from a file; the CPU's matrix products round by alignment
                parameter.data = parameter.data.clone()
        self.device: torch.device = next(model.parameters()).device
        self.chunk_tokens = chunk_tokens
        self.policy_step = policy_step
        self.flops = GenerationCounts()

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling) -> list[list[Completion]]:
        """See ``Engine.generate``."""
        check_request(prompts, seeds)
        completions: list[list[Completion]] = [[] for _ in prompts]
        wanted = [index for index in range(len(prompts)) if len(seeds[index])]
        lengths, groups = [len(prompts[i]) for i in wanted], [len(seeds[i]) for i in wanted]
        for chunk in chunk_plan(lengths, groups, sampling.max_new_tokens, self.chunk_tokens):
            chosen = [wanted[index] for index in chunk]
            for index, group in zip(chosen, self._chunk([prompts[i] for i in chosen], [seeds[i] for i in chosen], sampling), strict=True):
                completions[index] = group
        return completions

    def sync(self, model: Any, policy_step: int) -> None:
        """See ``Engine.sync``. Accepts sharded (DTensor) parameters."""
        source = model.state_dict()
        with torch.no_grad():
            for name, target in self.model.state_dict().items():
                value = source[name]
                target.copy_(value.full_tensor() if hasattr(value, "full_tensor") else value)
        self.policy_step = policy_step

    def sleep(self) -> None:
        """Moves the weights to the CPU when they are on a GPU."""
        if self.device.type != "cpu":
            self.model.to("cpu")
            torch.cuda.empty_cache()

    def wake(self) -> None:
        self.model.to(self.device)

    def close(self) -> None:
        del self.model

    @torch.inference_mode()
    def _chunk(self, prompts: list[Sequence[int]], seeds: list[Sequence[int]], sampling: Sampling) -> list[list[Completion]]:
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        owner = torch.tensor([p for p, group in enumerate(seeds) for _ in group], device=self.device)
        cache = SharedCache(lengths, owner, self.model.config.num_hidden_layers, sampling.max_new_tokens)
        draw = _Sampler([seed for group in seeds for seed in group], sampling, self.device)
        logits = self._prefill(prompts, lengths, cache)[owner]
        positions = lengths[owner]
        while True:
            tokens = draw(logits)
            if draw.done:
                break
            ended = draw.leaving()
            if ended is not None:
                cache.keep(ended)
                tokens, positions = tokens[ended], positions[ended]
            logits = self._forward(tokens[:, None], positions[:, None], cache)[:, 0]
            cache.filled += 1
            positions = positions + 1
        return self._completions(prompts, seeds, draw)

    def _prefill(self, prompts: list[Sequence[int]], lengths: Tensor, cache: SharedCache) -> Tensor:
        """Logits behind each prompt, [P, V]. Prompts are padded on the right, which causal attention never looks at."""
        ids = np.zeros((len(prompts), int(lengths.max())), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        hidden = self._hidden(torch.from_numpy(ids).to(self.device), torch.arange(ids.shape[1], device=self.device)[None], cache)
        last = hidden[torch.arange(len(prompts), device=self.device), lengths - 1]
        return self.model.get_output_embeddings()(last)

    def _forward(self, ids: Tensor, positions: Tensor, cache: SharedCache) -> Tensor:
        return self.model.get_output_embeddings()(self._hidden(ids, positions, cache))

    def _hidden(self, ids: Tensor, positions: Tensor, cache: SharedCache) -> Tensor:
        return self.model.base_model(input_ids=ids, position_ids=positions, use_cache=False, shared=cache).last_hidden_state

    def _completions(self, prompts: list[Sequence[int]], seeds: list[Sequence[int]], draw: "_Sampler") -> list[list[Completion]]:
        tokens, logprobs, lengths, stopped = draw.results()
        found, row = [], 0
        for prompt, group in zip(prompts, seeds, strict=True):
            self.flops.add_prompt(len(prompt))
            completions = []
            for _ in group:
                length = int(lengths[row])
                finish: Literal["stop", "length"] = "stop" if stopped[row] else "length"
                completions.append(Completion(tokens[row, :length].tolist(), logprobs[row, :length].tolist(), finish, self.policy_step))
                self.flops.add_completion(len(prompt), length)
                row += 1
            found.append(completions)
        return found


class _Sampler:
    """Draws one token for every live row and remembers what every row has written."""

    def __init__(self, seeds: list[int], sampling: Sampling, device: torch.device):
        self.seeds, self.sampling, self.device = np.asarray(seeds, object), sampling, device
        self.stop = torch.tensor(sampling.stop_ids, dtype=torch.long, device=device)
        self.rows = torch.arange(len(seeds), device=device)  # live rows, by their first index
        self.ended = torch.zeros(len(seeds), dtype=torch.bool, device=device)  # of the live rows
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, tokens, logprobs of each step
        self.done = False
        self._random: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """logits [live, V] -> tokens [live]. Rows that have ended draw on until they leave; the surplus is cut in ``results``."""
        step = len(self.steps)
        if self.sampling.temperature == 0:
            logprobs = torch.log_softmax(logits.float(), -1)
            tokens = logits.argmax(-1)
        else:
            logprobs = torch.log_softmax(logits.float() / self.sampling.temperature, -1)
            tokens = inverse_cdf(logprobs, self._uniforms(step))
        self.steps.append((self.rows, tokens, logprobs.gather(-1, tokens[:, None])[:, 0]))
        self.ended = self.ended | torch.isin(tokens, self.stop)
        self.done = len(self.steps) == self.sampling.max_new_tokens or (self._looks() and bool(self.ended.all()))
        return tokens

    def leaving(self) -> Tensor | None:
        """Indices among the live rows that stay, when enough have ended to be worth it; those are the live rows from now on."""
        if not self._looks() or int(self.ended.sum()) < LEAVE_SHARE * len(self.rows):
            return None
        stay = torch.nonzero(~self.ended)[:, 0]
        self.rows, self.ended = self.rows[stay], self.ended[stay]
        self._random = self._random[stay] if self._random is not None else None
        return stay

    def results(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """tokens [B, T], logprobs [B, T], lengths [B], stopped [B]."""
        shape = (len(self.seeds), len(self.steps))
        tokens, logprobs = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        written = np.zeros(len(self.seeds), np.int64)
        for step, (rows, drawn, logs) in enumerate(self.steps):
            index = rows.cpu().numpy()
            tokens[index, step], logprobs[index, step] = drawn.cpu().numpy(), logs.cpu().numpy()
            written[index] = step + 1
        stops = np.isin(tokens, self.sampling.stop_ids) & (np.arange(shape[1]) < written[:, None])
        stopped = np.asarray(stops.any(1))
        return tokens, logprobs, np.where(stopped, stops.argmax(1) + 1, written), stopped

    def _looks(self) -> bool:
        return len(self.steps) % CHECK_EVERY == 0 and len(self.sampling.stop_ids) > 0

    def _uniforms(self, step: int) -> Tensor:
        block = self._random
        if block is None or step % _BLOCK == 0:
            count = min(_BLOCK, self.sampling.max_new_tokens - step)
            block = torch.from_numpy(uniforms(self.seeds[self.rows.cpu().numpy()].tolist(), step, count)).to(self.device)
            self._random = block
        return block[:, step % _BLOCK]


def inverse_cdf(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """Tokens [B] whose stretch of the cumulative distribution of ``logprobs`` [B, V] holds ``uniform`` [B]; summed in float64.
    A token of probability 0 is never drawn."""
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=logprobs.shape[-1] - 1)


def chunk_plan(lengths: Sequence[int], groups: Sequence[int], max_new: int, chunk_tokens: int) -> Iterator[list[int]]:
    """Indices of the prompts of each chunk: sorted by length, as many as fit in ``chunk_tokens``, at least one. Depends on the
    arguments alone."""
    chunk: list[int] = []
    held = 0
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        need = lengths[index] + groups[index] * max_new
        if chunk and held + need > chunk_tokens:
            yield chunk
            chunk, held = [], 0
        chunk.append(index)
        held += need
    if chunk:
        yield chunk


def _check_layers(config: Any) -> None:
    """UserError for layers this engine would compute wrongly."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise UserError(f"the torch engine cannot generate with {', '.join(sorted(kinds))} layers; use the vllm engine for this model.")
