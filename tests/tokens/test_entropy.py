"""Entropy, likelihood and rank against plain formulas in float64, and their independence of how the tokens are cut into chunks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

from rpt_core.tokens import entropy as entropy_module
from rpt_core.tokens.entropy import logits_statistics, token_statistics, topk_entropy


def reference(row: np.ndarray, target: int, k: int) -> tuple[float, float, int]:
    row = row.astype(np.float64)
    best = np.sort(row)[::-1][:k]
    weights = np.exp(best - best.max())
    nll = np.log(np.exp(row - row.max()).sum()) + row.max() - row[target]
    return float(scipy_entropy(weights / weights.sum())), float(nll), int((row > row[target]).sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 300), st.integers(1, 20), st.floats(0.01, 30), st.integers(0, 2**32 - 1))
def test_statistics_agree_with_float64_formulas(vocabulary, k, scale, seed):
    generator = np.random.default_rng(seed)
    rows = (generator.standard_normal((7, vocabulary)) * scale).astype(np.float32)
    targets = generator.integers(0, vocabulary, 7)
    found = logits_statistics(torch.from_numpy(rows), torch.from_numpy(targets), k)
    for i in range(7):
        entropy, nll, rank = reference(rows[i], targets[i], k)
        assert float(found.entropy[i]) == pytest.approx(entropy, abs=1e-4)
        assert float(found.nll[i]) == pytest.approx(nll, abs=1e-4, rel=1e-5)
        assert int(found.rank[i]) == rank
        assert int(found.top_id[i]) == rows[i].argmax()
    torch.testing.assert_close(topk_entropy(torch.from_numpy(rows), k), found.entropy)


def test_entropy_is_at_most_ln_16_and_ignores_what_is_below_the_top():
    uniform = torch.zeros(3, 2, 100)
    assert topk_entropy(uniform).shape == (3, 2)
    assert topk_entropy(uniform).max().item() == pytest.approx(math.log(16), abs=1e-6)
    tail = torch.randn(100, generator=torch.Generator().manual_seed(1))
    changed = tail.clone()
    changed[tail.argsort()[:80]] -= 3
    assert topk_entropy(tail).item() == topk_entropy(changed).item()


def test_masked_vocabulary_entries_give_no_nan():
    logits = torch.full((1, 40), -torch.inf)
    logits[0, :2] = 0.0
    assert topk_entropy(logits).item() == pytest.approx(math.log(2), abs=1e-6)
    assert topk_entropy(torch.tensor([3.0])).item() == 0.0


def test_half_precision_logits_are_widened_first():
    logits = torch.randn(5, 200, generator=torch.Generator().manual_seed(2)).bfloat16()
    torch.testing.assert_close(topk_entropy(logits), topk_entropy(logits.double()).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("elements", [1, 700, 10**9])
def test_chunks_change_nothing(monkeypatch, elements):
    generator = torch.Generator().manual_seed(3)
    hidden, targets = torch.randn(50, 8, generator=generator), torch.randint(0, 70, (50,), generator=generator)
    head = torch.nn.Linear(8, 70, bias=False)
    whole = logits_statistics(head(hidden).detach(), targets)
    widest = 0

    def watched(part):
        nonlocal widest
        widest = max(widest, part.shape[0])
        return head(part)

    monkeypatch.setitem(entropy_module.CHUNK_ELEMENTS, "cpu", elements)
    found = token_statistics(hidden, watched, targets, 70)
    assert widest == max(1, min(50, elements // 70)), "the head saw more tokens at once than the budget allows"
    for name in ("entropy", "nll", "rank", "top_id"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name))


def test_no_tokens_give_no_statistics():
    found = token_statistics(torch.zeros(0, 4), torch.nn.Linear(4, 9), torch.zeros(0, dtype=torch.long), 9)
    assert found.entropy.shape == found.rank.shape == (0,)
