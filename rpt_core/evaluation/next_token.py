"""Next-token distributions by plain forward passes: standard next-token prediction at many positions of a document in one pass."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

LOGITS_AT_ONCE = 1 << 27  # entries of one batch's logits


@torch.inference_mode()
def logits_at(model: PreTrainedModel, sequences: Sequence[Sequence[int]], places: Sequence[Sequence[int]],
              batch_tokens: int) -> Iterator[tuple[int, Tensor]]:
    """For each sequence of token ids its index and the logits [len(places[i]), V] that follow the tokens at ``places[i]``, in an order
    of its own. Sequences are batched by length, padded on the right (which causal attention never looks at), with at most
    ``batch_tokens`` padded tokens a pass."""
    vocabulary = model.config.get_text_config().vocab_size
    for batch in _batches([len(sequence) for sequence in sequences], places, batch_tokens, vocabulary):
        ids = np.zeros((len(batch), max(len(sequences[index]) for index in batch)), np.int64)
        for row, index in enumerate(batch):
            ids[row, : len(sequences[index])] = sequences[index]
        union = sorted({place for index in batch for place in places[index]})
        column = {place: at for at, place in enumerate(union)}
        logits = model(input_ids=torch.from_numpy(ids).to(model.device), use_cache=False,
                       logits_to_keep=torch.tensor(union, device=model.device)).logits
        for row, index in enumerate(batch):
            yield index, logits[row, [column[place] for place in places[index]]]


def _batches(lengths: Sequence[int], places: Sequence[Sequence[int]], batch_tokens: int, vocabulary: int) -> Iterator[list[int]]:
    """Indices sorted by length, cut so that neither the padded tokens nor the kept logits exceed their bounds."""
    batch: list[int] = []
    union: set[int] = set()
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        wider = union | set(places[index])
        size = len(batch) + 1
        if batch and (size * lengths[index] > batch_tokens or size * len(wider) * vocabulary > LOGITS_AT_ONCE):
            yield batch
            batch, wider = [], set(places[index])
        batch.append(index)
        union = wider
    if batch:
        yield batch


def greedy_tokens(model: PreTrainedModel, prefixes: Sequence[Sequence[int]], starts: Sequence[tuple[object, int]],
                  batch_tokens: int) -> list[int]:
    """The most likely token behind each prefix (token ids, at least one). Prefixes with the same ``starts`` entry (document, first
    token) are prefixes of one another, so the longest of them is passed through the model once."""
    longest: dict[tuple[object, int], int] = {}
    for index, key in enumerate(starts):
        if key not in longest or len(prefixes[index]) > len(prefixes[longest[key]]):
            longest[key] = index
    groups: dict[tuple[object, int], list[int]] = {}
    for index, key in enumerate(starts):
        groups.setdefault(key, []).append(index)
    keys = list(groups)
    chosen = [0] * len(prefixes)
    sequences = [prefixes[longest[key]] for key in keys]
    places = [[len(prefixes[index]) - 1 for index in groups[key]] for key in keys]
    for row, logits in logits_at(model, sequences, places, batch_tokens):
        for index, token in zip(groups[keys[row]], logits.argmax(-1).tolist(), strict=True):
            chosen[index] = token
    return chosen
