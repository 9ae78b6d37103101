"""Group-relative advantages: what a rollout earned beside the other rollouts of its prompt (GRPO, DeepSeekMath 2402.03300 §4.1;
RPT §3.3), and the variants without a standard deviation (Dr. GRPO 2503.20783; RLP 2510.01265)."""

from typing import Literal

import torch
from torch import Tensor

AdvantageKind = Literal["grpo", "dr_grpo", "rlp"]


def group_advantages(rewards: Tensor, group_size: int, kind: AdvantageKind = "grpo", eps: float = 1e-6) -> Tensor:
    """Advantages of the rollouts of a step, [N] in the floating type of ``rewards`` (integers become float32).

    ``rewards`` is [N] with the ``group_size`` rollouts of one prompt side by side. ``grpo``: (r - mean) / (std + eps) with the
    unbiased standard deviation; ``dr_grpo``: r - mean; ``rlp``: G / (G - 1) · (r - mean). Groups whose rewards are all equal,
    compared exactly, get exactly 0, whatever rounding does to their mean. Raises ValueError where N is no multiple of the group
    size or a group holds fewer than two rollouts."""
    if group_size < 2:
        raise ValueError(f"a group needs at least 2 rollouts to be compared, not {group_size}")
    if rewards.ndim != 1 or rewards.numel() % group_size:
        raise ValueError(f"{tuple(rewards.shape)} rewards are not whole groups of {group_size}")
    values = rewards if rewards.is_floating_point() else rewards.float()
    groups = values.view(-1, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if kind == "grpo":
        scaled = centred / (groups.std(dim=1, keepdim=True, unbiased=True) + eps)
    elif kind == "dr_grpo":
        scaled = centred
    elif kind == "rlp":
        scaled = centred * (group_size / (group_size - 1))
    else:
        raise ValueError(f"unknown kind of advantage {kind!r}; known: grpo, dr_grpo, rlp")
    return torch.where(equal_groups(values, group_size)[:, None], torch.zeros_like(scaled), scaled).view(-1)


def equal_groups(rewards: Tensor, group_size: int) -> Tensor:
    """Which groups have rewards that are all the same, compared exactly: bool, [N / group_size]."""
    groups = rewards.view(-1, group_size)
    return (groups == groups[:, :1]).all(dim=1)
