"""Group advantages against the formula written out in plain Python floats."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rpt_core.training.advantages import equal_groups, group_advantages

GROUPS = st.integers(2, 9).flatmap(
    lambda size: st.lists(st.lists(st.floats(-5, 5, width=32), min_size=size, max_size=size), min_size=1, max_size=5))


def reference(group: list[float], kind: str, eps: float) -> list[float]:
    size, mean = len(group), math.fsum(group) / len(group)
    if all(value == group[0] for value in group):
        return [0.0] * size
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in group) / (size - 1))
    scale = {"grpo": 1 / (std + eps), "dr_grpo": 1.0, "rlp": size / (size - 1)}[kind]
    return [(value - mean) * scale for value in group]


@settings(max_examples=60, deadline=None)
@given(GROUPS, st.sampled_from(["grpo", "dr_grpo", "rlp"]))
def test_advantages_equal_the_formula_in_float64(groups, kind):
    rewards = torch.tensor(groups, dtype=torch.float64)
    ours = group_advantages(rewards.view(-1), rewards.shape[1], kind)
    expected = torch.tensor([value for group in groups for value in reference(group, kind, 1e-6)], dtype=torch.float64)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.floats(-1e3, 1e3, width=32), st.integers(2, 16))
def test_groups_of_equal_rewards_get_exactly_zero_whatever_rounding_does_to_their_mean(value, size):
    rewards = torch.full((size,), value, dtype=torch.float32)
    assert torch.equal(group_advantages(rewards, size), torch.zeros(size))


def test_binary_rewards_of_eight_give_the_known_values():
    one_right = group_advantages(torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64), 8)
    assert one_right[0].item() == pytest.approx(0.875 / (math.sqrt(0.125) + 1e-6), rel=1e-12)
    assert one_right.sum().abs().item() < 1e-12


def test_a_larger_eps_damps_the_advantage_as_in_trl():
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert group_advantages(rewards, 2, eps=1e-4)[0].item() == pytest.approx(0.5 / (math.sqrt(0.5) + 1e-4), rel=1e-12)


def test_equal_groups_are_told_apart_exactly():
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.1 + 1e-7])
    assert equal_groups(rewards, 2).tolist() == [True, False]


@pytest.mark.parametrize(("count", "size"), [(7, 2), (4, 1), (3, 4)])
def test_rewards_that_are_not_whole_groups_are_refused(count, size):
    with pytest.raises(ValueError, match="group"):
        group_advantages(torch.zeros(count), size)
