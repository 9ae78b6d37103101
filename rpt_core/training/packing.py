"""What a next-token step trains on, as a pure function of the step: windows over packed documents, or prompts with responses.

Documents are shuffled each epoch, joined with an end-of-text token between them and cut into windows; windows may span documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rpt_core.store.errors import UserError
from rpt_core.store.seeds import derive_seed

NO_LOSS = -100  # target of a token that is not trained on (torch's ignore_index)


@dataclass(frozen=True)
class Batch:
    """One optimizer step's sequences. ``inputs`` [B, T] int32; ``targets`` [B, T] int64, NO_LOSS where nothing is learnt;
    ``lengths``: real tokens of each row, padding (always on the right, never a target) left out."""

    inputs: np.ndarray
    targets: np.ndarray
    lengths: tuple[int, ...]

    @property
    def loss_tokens(self) -> int:
        return int((self.targets != NO_LOSS).sum())


class Plan(Protocol):
    """Batches by step, from 1; the same step always gives the same batch. ``steps`` is None where the plan has no end."""

    steps: int | None

    def batch(self, step: int) -> Batch: ...


class PackedDocuments:
    """Windows of ``window`` targets over packed documents, ``batch_windows`` a step; the order of documents and of windows is
    drawn anew each epoch from ``seed``. The tokens an epoch's last window cannot fill are left out of that epoch."""

    def __init__(self, documents: Sequence[np.ndarray], eos_id: int, window: int, batch_windows: int, seed: int, steps: int | None = None):
        self.steps = steps
        self._window, self._batch, self._seed = window, batch_windows, seed
        self._documents = [np.append(ids, eos_id).astype(np.int32) for ids in documents if len(ids)]
        self.tokens = sum(len(ids) for ids in self._documents)
        self.windows_per_epoch = (self.tokens - 1) // window
        if self.windows_per_epoch < 1:
            raise UserError(f"the training documents hold {self.tokens} tokens, fewer than one window of {window}; "
                            "add documents or lower the window.")
        self._epoch, self._stream, self._order = -1, np.empty(0, np.int32), np.empty(0, np.int64)

    def batch(self, step: int) -> Batch:
        first = (step - 1) * self._batch
        rows = np.stack([self._row(index) for index in range(first, first + self._batch)])
        return Batch(rows[:, :-1], rows[:, 1:].astype(np.int64), (self._window,) * self._batch)

    def _row(self, index: int) -> np.ndarray:
        epoch, within = divmod(index, self.windows_per_epoch)
        if epoch != self._epoch:
            self._begin_epoch(epoch)
        start = int(self._order[within]) * self._window
        return self._stream[start : start + self._window + 1]

    def _begin_epoch(self, epoch: int) -> None:
        generator = np.random.Generator(np.random.Philox(derive_seed(self._seed, "packing", epoch)))
        self._stream = np.concatenate([self._documents[i] for i in generator.permutation(len(self._documents))])
        self._order = generator.permutation(self.windows_per_epoch)
        self._epoch = epoch


class PromptedResponses:
    """Prompts with responses; the loss is on the response alone. Each epoch shuffles the examples and batches those of like
    length together, ``batch_examples`` a step (an epoch's last batch may be smaller); rows are padded on the right."""

    def __init__(self, examples: Sequence[tuple[Sequence[int], Sequence[int]]], batch_examples: int, seed: int, epochs: int | None = None):
        if not examples:
            raise UserError("there are no examples to train on.")
        self._examples = [(np.asarray(prompt, np.int32), np.asarray(response, np.int32)) for prompt, response in examples]
        self._lengths = np.asarray([len(prompt) + len(response) for prompt, response in self._examples])
        self._batch, self._seed = batch_examples, seed
        self.steps_per_epoch = -(-len(examples) // batch_examples)
        self.steps = None if epochs is None else epochs * self.steps_per_epoch
        self._epoch, self._batches = -1, []

    def batch(self, step: int) -> Batch:
        epoch, within = divmod(step - 1, self.steps_per_epoch)
        if epoch != self._epoch:
            self._begin_epoch(epoch)
        return pad_examples([self._examples[i] for i in self._batches[within]])

    def _begin_epoch(self, epoch: int) -> None:
        generator = np.random.Generator(np.random.Philox(derive_seed(self._seed, "examples", epoch)))
        shuffled = generator.permutation(len(self._examples))
        order = shuffled[np.argsort(self._lengths[shuffled], kind="stable")]
        batches = [order[start : start + self._batch] for start in range(0, len(order), self._batch)]
        self._batches = [batches[i] for i in generator.permutation(len(batches))]
        self._epoch = epoch


def pad_examples(examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """Rows ``prompt + response`` without their last token as inputs, shifted by one as targets, prompt targets masked."""
    lengths = tuple(len(prompt) + len(response) - 1 for prompt, response in examples)
    inputs = np.zeros((len(examples), max(lengths)), np.int32)
    targets = np.full(inputs.shape, NO_LOSS, np.int64)
    for row, (prompt, response) in enumerate(examples):
        whole = np.concatenate([prompt, response])
        inputs[row, : lengths[row]] = whole[:-1]
        targets[row, len(prompt) - 1 : lengths[row]] = response
    return Batch(inputs, targets, lengths)


def fixed_windows(documents: Sequence[np.ndarray], eos_id: int, window: int, limit: int | None = None) -> list[Batch]:
    """One-row batches that cover documents in their order exactly once (the last may be shorter), for measuring likelihood.
    ``limit`` bounds the number of windows."""
    stream = np.concatenate([np.append(np.asarray([eos_id], np.int32), ids) for ids in documents] + [np.asarray([eos_id], np.int32)])
    found = []
    for start in range(0, len(stream) - 1, window)[:limit]:
        piece = stream[start : start + window + 1].astype(np.int32)
        found.append(Batch(piece[None, :-1], piece[None, 1:].astype(np.int64), (len(piece) - 1,)))
    return found
