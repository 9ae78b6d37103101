"""Ours against numbers that TRL computed (make_trl.py), value and gradient."""

import json
from pathlib import Path

import pytest
import torch

from rpt_core.training.logprobs import token_logprobs
from rpt_core.training.losses import policy_loss

RECORDED = json.loads(Path(__file__).with_name("trl.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", RECORDED["losses"], ids=lambda c: f"{c['averaging']}-{c['clip_high']}-{c['tis_cap']}-{c['on_policy']}")
def test_policy_loss_and_gradient_equal_those_of_trl(case, dtype):
    tensor = {name: torch.tensor(case[name], dtype=dtype) for name in ("logprobs", "old", "engine", "advantages", "gradient")}
    logprobs = tensor["logprobs"].requires_grad_(True)
    mask = torch.tensor(case["mask"])
    loss, _ = policy_loss(logprobs, None if case["on_policy"] else tensor["old"], tensor["advantages"], mask, clip_low=case["clip_low"],
                          clip_high=case["clip_high"], averaging=case["averaging"], constant_tokens=mask.shape[1],
                          engine_logprobs=tensor["engine"] if case["tis_cap"] else None, tis_cap=case["tis_cap"])
    loss.backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6}[dtype]
    assert loss.item() == pytest.approx(case["loss"], rel=tolerance, abs=tolerance)
    torch.testing.assert_close(logprobs.grad, tensor["gradient"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", RECORDED["logprobs"], ids=lambda c: f"temperature-{c['temperature']}")
def test_log_probabilities_and_entropies_equal_those_of_trl(case):
    hidden, weight = (torch.tensor(case[name], dtype=torch.float64) for name in ("hidden", "weight"))
    logprobs, entropy = token_logprobs(hidden, weight, torch.tensor(case["targets"]), temperature=case["temperature"], with_entropy=True,
                                       chunk_tokens=4)
    torch.testing.assert_close(logprobs, torch.tensor(case["logprobs"], dtype=torch.float64), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, torch.tensor(case["entropy"], dtype=torch.float64), rtol=1e-12, atol=1e-12)
