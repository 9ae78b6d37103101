"""The policy loss against a reference that loops over tokens in Python floats, written from the formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rpt_core.training.losses import policy_loss, step_normaliser


def reference(logprobs, old, advantages, mask, low, high, averaging, constant=None, engine=None, cap=None) -> float:
    """-min(ratio A, clip(ratio) A), summed and divided as each averaging says."""
    total, tokens, responses = 0.0, 0, 0
    for i in range(len(logprobs)):
        length = sum(mask[i])
        responses += length > 0
        tokens += length
        for t in range(len(logprobs[i])):
            if not mask[i][t]:
                continue
            ratio = math.exp(logprobs[i][t] - old[i][t])
            value = -min(ratio * advantages[i], max(1 - low, min(1 + high, ratio)) * advantages[i])
            if cap is not None:
                value *= min(math.exp(old[i][t] - engine[i][t]), cap)
            total += value / length if averaging == "sequence" else value
    divisor = {"token": tokens, "sequence": responses, "constant": len(logprobs) * (constant or 0)}[averaging]
    return total / max(divisor, 1)


def random_case(seed: int, rows: int, width: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logprobs = -torch.rand(rows, width, generator=generator, dtype=dtype) * 3
    old = logprobs + torch.randn(rows, width, generator=generator, dtype=dtype) * 0.3
    engine = old + torch.randn(rows, width, generator=generator, dtype=dtype) * 0.3
    advantages = torch.randn(rows, generator=generator, dtype=dtype)
    lengths = torch.randint(0, width + 1, (rows,), generator=generator)
    mask = torch.arange(width)[None] < lengths[:, None]
    return logprobs, old, advantages, mask, engine


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 7), st.sampled_from(["token", "sequence", "constant"]),
       st.sampled_from([None, 0.9, 2.0]))
def test_loss_equals_the_formula_token_by_token(seed, rows, width, averaging, cap):
    logprobs, old, advantages, mask, engine = random_case(seed, rows, width)
    ours, _ = policy_loss(logprobs, old, advantages, mask, clip_low=0.2, clip_high=0.28, averaging=averaging, constant_tokens=width,
                          engine_logprobs=engine, tis_cap=cap)
    expected = reference(logprobs.tolist(), old.tolist(), advantages.tolist(), mask.int().tolist(), 0.2, 0.28, averaging, width,
                         engine.tolist(), cap)
    assert ours.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["token", "sequence", "constant"]), st.integers(1, 4))
def test_micro_batches_add_up_to_the_step_exactly(seed, averaging, size):
    logprobs, old, advantages, mask, _ = random_case(seed, 6, 5)
    whole, _ = policy_loss(logprobs, old, advantages, mask, averaging=averaging, constant_tokens=5)
    normaliser = step_normaliser(mask, averaging, 5)
    parts = [policy_loss(logprobs[i : i + size], old[i : i + size], advantages[i : i + size], mask[i : i + size], averaging=averaging,
                         constant_tokens=5, normaliser=normaliser)[0] for i in range(0, 6, size)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-14)


def test_on_policy_gradient_is_that_of_reinforce():
    logprobs, _, advantages, mask, _ = random_case(3, 4, 6)
    logprobs.requires_grad_(True)
    loss, metrics = policy_loss(logprobs, None, advantages, mask)
    loss.backward()
    expected = -(advantages[:, None] * mask) / mask.sum()
    torch.testing.assert_close(logprobs.grad, expected, rtol=1e-12, atol=0)
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=0)
    assert metrics["clip_high_share"] == metrics["clip_low_share"] == 0


def test_clipped_tokens_pass_no_gradient_and_clip_higher_is_asymmetric():
    # Ratios 1.25 and 0.75 with A > 0: only the first lies above 1.2, and neither above 1.28.
    logprobs = torch.log(torch.tensor([[1.25, 0.75]], dtype=torch.float64)).requires_grad_(True)
    old, mask, advantage = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2), torch.ones(1, dtype=torch.float64)
    narrow, metrics = policy_loss(logprobs, old, advantage, mask, clip_low=0.2, clip_high=0.2)
    (grad,) = torch.autograd.grad(narrow, logprobs)
    assert grad[0, 0] == 0
    assert grad[0, 1] != 0
    assert metrics["clip_high_share"] == 0.5
    wide, _ = policy_loss(logprobs, old, advantage, mask, clip_low=0.2, clip_high=0.28)
    (grad,) = torch.autograd.grad(wide, logprobs)
    assert (grad != 0).all()


def test_masked_entries_may_hold_anything_even_infinities():
    logprobs, old, advantages, mask, _ = random_case(5, 3, 4)
    expected, _ = policy_loss(logprobs, old, advantages, mask)
    dirty = torch.where(mask, logprobs, -torch.inf).requires_grad_(True)
    loss, _ = policy_loss(dirty, torch.where(mask, old, -torch.inf), advantages, mask)
    loss.backward()
    assert loss.item() == expected.item()
    assert torch.isfinite(dirty.grad).all()


def test_a_batch_without_a_single_token_has_loss_zero():
    loss, metrics = policy_loss(torch.zeros(2, 3), None, torch.ones(2), torch.zeros(2, 3))
    assert loss.item() == 0
    assert all(math.isfinite(value) for value in metrics.values())


def test_the_gap_is_the_mean_difference_over_kept_tokens():
    mask = torch.tensor([[1, 1, 0]])
    _, metrics = policy_loss(torch.zeros(1, 3), None, torch.ones(1), mask, engine_logprobs=torch.tensor([[0.5, -0.25, 9.0]]), tis_cap=1.0)
    assert metrics["engine_gap"] == pytest.approx(0.375)
    assert metrics["tis_capped_share"] == pytest.approx(0.5)


def test_unknown_averaging_is_refused():
    with pytest.raises(ValueError, match="averaging"):
        policy_loss(torch.zeros(1, 1), None, torch.ones(1), torch.ones(1, 1), averaging="mean")  # pyright: ignore[reportArgumentType]
