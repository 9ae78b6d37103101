"""Rewards for a group of rollouts at one position: prefix matching (RPT Eq. 3), the variants of its App. A, and information gain (RLP).

Every reward is ``reward(group, probability) -> (totals, components)``: one float and one dict of its parts per rollout."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rpt_core.reasoning.answer import extract
from rpt_core.reasoning.items import Item
from rpt_core.reasoning.prompts import Frame, encode_plain
from rpt_core.tokens.boxes import END_OF_THOUGHT
from rpt_core.tokens.bytes import ids_to_text

# Given contexts and one target id for each, the model's log-probabilities (nats, temperature 1) of the targets directly behind
# their contexts. The trainer supplies it; `rpt_core.rollout.probability.TokenProbability` is one.
LogProbability = Callable[[Sequence[Sequence[int]], Sequence[int]], list[float]]
Components = list[dict[str, float]]
Reward = Callable[["Group", LogProbability | None], tuple[list[float], Components]]


@dataclass(frozen=True)
class Group:
    """G responses to one position. Per rollout: ``predictions`` (None where nothing was extracted), ``first_ids`` (first token of
    the prediction's text; None likewise), ``thought_ids`` (prompt and thought, closed and with the box opened: what the truth
    would follow). Per group: ``completion`` and ``boundaries`` as in ``Item``, ``truth_id``, ``context_ids`` (the context alone,
    as in standard next-token prediction). Rewards that ask no model need only the first line and the completion."""

    predictions: tuple[str | None, ...]
    completion: bytes
    boundaries: tuple[int, ...]
    truth_id: int = -1
    first_ids: tuple[int | None, ...] = ()
    context_ids: tuple[int, ...] = ()
    thought_ids: tuple[tuple[int, ...], ...] = ()


def prefix_match(prediction: str | bytes, completion: bytes, boundaries: Sequence[int]) -> float:
    """RPT Eq. 3: 1.0 iff the prediction's bytes are the first bytes of ``completion`` and end at one of its token
    ``boundaries`` (cumulative byte lengths), else 0.0. An empty prediction earns 0."""
    data = prediction.encode("utf-8", "surrogatepass") if isinstance(prediction, str) else prediction
    return float(bool(data) and len(data) in boundaries and completion.startswith(data))


def tokens_matched(prediction: str | bytes | None, completion: bytes, boundaries: Sequence[int]) -> int:
    """How many document tokens a right prediction covers; 0 when it is wrong or missing."""
    if prediction is None or not prefix_match(prediction, completion, boundaries):
        return 0
    data = prediction.encode("utf-8", "surrogatepass") if isinstance(prediction, str) else prediction
    return list(boundaries).index(len(data)) + 1


def prefix_matching(group: Group, probability: LogProbability | None = None) -> tuple[list[float], Components]:
    """RPT Eq. 3 for each rollout; the components also count the document tokens covered."""
    covered = [tokens_matched(prediction, group.completion, group.boundaries) for prediction in group.predictions]
    totals = [float(count > 0) for count in covered]
    return totals, [{"prefix_matching": total, "tokens_matched": float(count)} for total, count in zip(totals, covered, strict=True)]


def first_token(group: Group, probability: LogProbability | None = None) -> tuple[list[float], Components]:
    """RPT App. A: 1.0 when the prediction's first token is the true one, whatever follows. A prediction that matches whole
    (Eq. 3) counts too, however its text tokenises alone."""
    totals = [float(right) for right in _first_token_right(group)]
    return totals, [{"first_token": total} for total in totals]


def dense(group: Group, probability: LogProbability | None = None) -> tuple[list[float], Components]:
    """RPT App. A: 1.0 when the first token is right, else the model's own probability of the predicted (wrong) first token given
    the context alone; 0.0 without a prediction."""
    right = _first_token_right(group)
    wrong = sorted({token for token, hit in zip(group.first_ids, right, strict=True) if token is not None and not hit})
    known: dict[int | None, float] = {None: 0.0}
    if wrong:
        logs = _asked(probability, "dense")([group.context_ids] * len(wrong), wrong)
        known.update((token, math.exp(log)) for token, log in zip(wrong, logs, strict=True))
    totals = [1.0 if hit else known[token] for token, hit in zip(group.first_ids, right, strict=True)]
    return totals, [{"first_token": float(hit), "probability_of_wrong": 0.0 if hit else total}
                    for hit, total in zip(right, totals, strict=True)]


def conditional_dense(group: Group, probability: LogProbability | None = None) -> tuple[list[float], Components]:
    """RPT App. A: ``dense``, but only in groups where at least one rollout has the first token right; elsewhere 0.0 for all."""
    if any(_first_token_right(group)):
        return dense(group, probability)
    return [0.0] * len(group.predictions), [{"first_token": 0.0, "probability_of_wrong": 0.0} for _ in group.predictions]


def information_gain(group: Group, probability: LogProbability | None = None) -> tuple[list[float], Components]:
    """RLP (arXiv 2510.01265): log p(true token | context, thought) - log p(true token | context), in nats; needs no prediction.
    Both terms come from the ``probability`` given, so an EMA baseline is the caller's choice."""
    contexts = [group.context_ids, *group.thought_ids]
    base, *with_thought = _asked(probability, "information_gain")(contexts, [group.truth_id] * len(contexts))
    totals = [log - base for log in with_thought]
    return totals, [{"information_gain": total, "logp_with_thought": log, "logp_without": base}
                    for total, log in zip(totals, with_thought, strict=True)]


REWARDS: dict[str, Reward] = {
    "prefix_matching": prefix_matching,
    "first_token": first_token,
    "dense": dense,
    "conditional_dense": conditional_dense,
    "information_gain": information_gain,
}
NEEDS_PROBABILITY = frozenset({"dense", "conditional_dense", "information_gain"})


def response_group(item: Item, responses: Sequence[Sequence[int]], tokenizer: Any, table: Sequence[bytes],
                   frame: Frame) -> tuple[Group, list[str]]:
    """The group of one item's responses (token ids each) and their texts (without the frame's prefill, special tokens kept).
    ``table`` is the tokenizer's byte table (``token_bytes``)."""
    texts = [ids_to_text(table, ids) for ids in responses]
    predictions = tuple(extract(frame.prefill + text) for text in texts)
    first_ids = tuple(first_token_of(tokenizer, prediction) if prediction else None for prediction in predictions)
    eos = tokenizer.eos_token_id
    written = [ids[:-1] if len(ids) and ids[-1] == eos else ids for ids in responses]
    thoughts = tuple((*item.prompt_ids, *thought_of(ids, table), *frame.box_ids) for ids in written)
    return Group(predictions, item.completion, item.boundaries, item.truth_id, first_ids,
                 tuple(frame.context_prompt(item.prefix_ids)), thoughts), texts


def thought_of(response: Sequence[int], table: Sequence[bytes]) -> list[int]:
    """The tokens of a response before its last ``</think>``; all of them where the thought was never closed."""
    pieces = [table[token] if token < len(table) else b"" for token in response]  # padded entries can be drawn too
    end = b"".join(pieces).rfind(END_OF_THOUGHT.encode())
    if end < 0:
        return list(response)
    kept, length = [], 0
    for token, piece in zip(response, pieces, strict=True):
        length += len(piece)
        if length > end:
            break
        kept.append(token)
    return kept


def first_token_of(tokenizer: Any, text: str) -> int | None:
    """First token of a text, or None for text the tokenizer cannot write byte for byte."""
    try:
        return encode_plain(tokenizer, text)[0]
    except ValueError:
        return None


def _first_token_right(group: Group) -> list[bool]:
    return [(token is not None and token == group.truth_id) or bool(tokens_matched(prediction, group.completion, group.boundaries))
            for prediction, token in zip(group.predictions, group.first_ids, strict=True)]


def _asked(probability: LogProbability | None, reward: str) -> LogProbability:
    if probability is None:
        raise ValueError(f"the reward {reward} needs the model's probabilities")
    return probability
