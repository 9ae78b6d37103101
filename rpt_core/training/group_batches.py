"""Rows for the training forward pass: the responses of a prompt stand behind one copy of it, each blind to the others.

A row is prompt | response 1 | response 2 | …; a mask lets a response see the prompt and itself, and its positions go on from the
prompt's, so the numbers are those of separate sequences while the prompt is computed once. A row with one response is the plain way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from rpt_core.training.flops import causal_pairs
from rpt_core.training.logprobs import output_head, response_hidden, token_logprobs


@dataclass(frozen=True)
class Row:
    """A prompt and some responses to it; ``members`` are the caller's numbers of those responses."""

    prompt: Sequence[int]
    responses: tuple[Sequence[int], ...]
    members: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens fed: a response's last token predicts nothing and stays out."""
        return len(self.prompt) + sum(len(response) - 1 for response in self.responses)

    @property
    def attention_pairs(self) -> int:
        prompt = len(self.prompt)
        return causal_pairs(prompt) + sum(causal_pairs(len(response) - 1, cached=prompt) for response in self.responses)


@dataclass(frozen=True)
class GroupBatch:
    """Rows padded to one length. ``source`` [N] indexes the flattened [B · L] hidden states that predict the ``targets`` [N];
    ``response`` [N] and ``offset`` [N] say which response of the batch and which of its tokens each target is."""

    input_ids: Tensor  # int64 [B, L]
    position_ids: Tensor | None  # int64 [B, L]; None where positions simply count up
    mask: Tensor | None  # bool [B, 1, L, L], True = may attend; None = causal
    source: Tensor
    targets: Tensor
    response: Tensor
    offset: Tensor
    members: list[int]  # [R] the caller's number of each response
    longest: int  # T: tokens of the longest response


def make_rows(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], group_of: Sequence[int], row_tokens: int) -> list[Row]:
    """Rows for ``responses``; ``group_of[k]`` is the index of response k's prompt. A row takes as many responses of a prompt as fit
    into ``row_tokens`` (0 = one response a row). Empty responses are left out: they have no token to train on."""
    members: dict[int, list[int]] = {}
    for number, group in enumerate(group_of):
        if len(responses[number]):
            members.setdefault(group, []).append(number)
    rows = []
    for group, numbers in members.items():
        taken: list[int] = []
        used = len(prompts[group])
        for number in numbers:
            more = len(responses[number]) - 1
            if taken and used + more > row_tokens:
                rows.append(_row(prompts[group], responses, taken))
                taken, used = [], len(prompts[group])
            taken.append(number)
            used += more
        rows.append(_row(prompts[group], responses, taken))
    return rows


def _row(prompt: Sequence[int], responses: Sequence[Sequence[int]], numbers: list[int]) -> Row:
    return Row(prompt, tuple(responses[number] for number in numbers), tuple(numbers))


def micro_batches(rows: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    """Rows sorted by length, longest first (so that a lack of memory shows at once), cut so that rows x longest row stays within
    ``tokens``; a row longer than that goes alone."""
    ordered = sorted(range(len(rows)), key=lambda index: (-rows[index].length, rows[index].members))
    batch: list[Row] = []
    for index in ordered:
        if batch and (len(batch) + 1) * batch[0].length > tokens:
            yield batch
            batch = []
        batch.append(rows[index])
    if batch:
        yield batch


def pad_rows(rows: Sequence[Row], device: torch.device | str = "cpu") -> GroupBatch:
    """Tensors of a micro-batch. Padding (token 0, on the right) is seen by no real token."""
    width = max(row.length for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    segment = torch.full((len(rows), width), -1, dtype=torch.long)
    source, targets, response, offset, members = [], [], [], [], []
    for index, row in enumerate(rows):
        prompt = len(row.prompt)
        ids[index, :prompt] = torch.as_tensor(row.prompt)
        positions[index, :prompt] = torch.arange(prompt)
        segment[index, :prompt] = 0
        begin = prompt
        for number, tokens in enumerate(row.responses, start=1):
            end = begin + len(tokens) - 1
            ids[index, begin:end] = torch.as_tensor(tokens[:-1], dtype=torch.long)
            positions[index, begin:end] = torch.arange(prompt, prompt + len(tokens) - 1)
            segment[index, begin:end] = number
            row_start = index * width
            source += [row_start + prompt - 1, *range(row_start + begin, row_start + end)]
            targets += list(tokens)
            response += [len(members)] * len(tokens)
            offset += range(len(tokens))
            members.append(row.members[number - 1])
            begin = end
    mask = None
    if any(len(row.responses) > 1 for row in rows):
        mask = _prefix_sharing_mask(segment.to(device))
    longest = max(len(tokens) for row in rows for tokens in row.responses)
    source, targets, response, offset = (torch.tensor(values, device=device) for values in (source, targets, response, offset))
    return GroupBatch(ids.to(device), positions.to(device) if mask is not None else None, mask, source, targets, response, offset,
                      members, longest)


def _prefix_sharing_mask(segment: Tensor) -> Tensor:
    """Causal, and a key must belong to the prompt (segment 0) or to the query's own segment."""
    width = segment.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=segment.device).tril()
    keys, queries = segment[:, None, :], segment[:, :, None]
    return (((keys == 0) | (keys == queries)) & causal)[:, None]


def response_logprobs(model: Module, batch: GroupBatch, temperature: float,
                      with_entropy: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    """(log-probabilities [R, T] in nats under softmax(logits / temperature), mask bool [R, T], entropies [R, T] or None) of the
    batch's responses; 0 where the mask is False. Padding passes through the layers but never through the head."""
    extra = {} if batch.mask is None else {"attention_mask": batch.mask, "position_ids": batch.position_ids}
    hidden = response_hidden(model, batch.input_ids, **extra).flatten(0, 1).index_select(0, batch.source)
    weight, bias = output_head(model)
    flat, flat_entropy = token_logprobs(hidden, weight, batch.targets, temperature=temperature, bias=bias, with_entropy=with_entropy)
    shape, where = (len(batch.members), batch.longest), (batch.response, batch.offset)
    logprobs = flat.new_zeros(shape).index_put(where, flat)
    mask = torch.zeros(shape, dtype=torch.bool, device=flat.device).index_put_(where, torch.ones_like(batch.targets, dtype=torch.bool))
    entropy = None if flat_entropy is None else flat_entropy.new_zeros(shape).index_put_(where, flat_entropy)
    return logprobs, mask, entropy
