"""Runs TRL's own loss and log-probability code on seeded inputs and writes what came out to trl.json, with versions.

    pip install --target /tmp/trl --no-deps "trl==1.16.*" accelerate
    PYTHONPATH=/tmp/trl python -m tests.parity.make_trl"""

import itertools
import json
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

TARGET = Path(__file__).with_name("trl.json")
# TRL's names for our averagings; "dapo" is a token mean over the whole step, "grpo" a mean of response means.
LOSS_TYPES = {"token": "dapo", "sequence": "grpo", "constant": "dr_grpo"}
ONE_PROCESS = SimpleNamespace(num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x)
CLIPS = ((0.2, 0.2), (0.2, 0.28))


def loss_case(seed: int, averaging: str, clip: tuple[float, float], tis_cap: float | None, on_policy: bool) -> dict[str, Any]:
    """Inputs [B, T] of one call and TRL's loss and gradient for them, in float64."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = 5, 7
    draw = lambda scale: torch.randn(rows, width, generator=generator, dtype=torch.float64) * scale  # noqa: E731
    logprobs = -draw(1.0).abs()
    old = logprobs.clone() if on_policy else logprobs + draw(0.3)
    engine = old + draw(0.3)
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([width, 1, 4, 6, 3])
    mask = (torch.arange(width)[None] < lengths[:, None]).long()
    loss, gradient = trl_loss(logprobs, None if on_policy else old, advantages, mask, engine if tis_cap else None, averaging, clip, tis_cap)
    return {"averaging": averaging, "clip_low": clip[0], "clip_high": clip[1], "tis_cap": tis_cap, "on_policy": on_policy,
            "logprobs": logprobs.tolist(), "old": old.tolist(), "engine": engine.tolist(), "advantages": advantages.tolist(),
            "mask": mask.tolist(), "loss": loss, "gradient": gradient}


def trl_loss(logprobs: Any, old: Any, advantages: Any, mask: Any, engine: Any, averaging: str, clip: tuple[float, float],
             tis_cap: float | None) -> tuple[float, list[list[float]]]:
    """TRL's GRPOTrainer._compute_loss, the model's forward pass replaced by given log-probabilities."""
    from trl import GRPOTrainer

    given = logprobs.clone().requires_grad_(True)
    trainer: Any = GRPOTrainer.__new__(GRPOTrainer)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (given, torch.zeros_like(given), None)
    trainer.__dict__.update(
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token", beta=0.0,
        loss_type=LOSS_TYPES[averaging], epsilon_low=clip[0], epsilon_high=clip[1], use_vllm=tis_cap is not None,
        vllm_importance_sampling_correction=True, max_completion_length=mask.shape[1], current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False, args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True), accelerator=ONE_PROCESS,
        _metrics=defaultdict(lambda: defaultdict(list)))
    tokens = torch.zeros_like(mask)
    inputs = {"prompt_ids": tokens[:, :1], "prompt_mask": torch.ones_like(tokens[:, :1]), "completion_ids": tokens, "completion_mask": mask,
              "advantages": advantages, "old_per_token_logps": old, "num_items_in_batch": mask.sum()}
    if tis_cap is not None:
        reference = logprobs if old is None else old
        inputs["importance_sampling_ratio"] = torch.exp(reference - engine).clamp(max=tis_cap)  # its token-level truncation
    loss = trainer._compute_loss(trainer.model, inputs)
    (gradient,) = torch.autograd.grad(loss, given)
    return loss.item(), gradient.tolist()


def logprob_case(seed: int, temperature: float) -> dict[str, Any]:
    """TRL divides the logits by the temperature, then takes selective_log_softmax and entropy_from_logits."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(9, (6,), generator=generator)
    logits = hidden @ weight.t() / temperature
    return {"temperature": temperature, "hidden": hidden.tolist(), "weight": weight.tolist(), "targets": targets.tolist(),
            "logprobs": selective_log_softmax(logits, targets).tolist(), "entropy": entropy_from_logits(logits).tolist()}


def main() -> None:
    settings = itertools.product(LOSS_TYPES, CLIPS, (None, 1.2), (True, False))
    losses = [loss_case(seed, *setting) for seed, setting in enumerate(settings)]
    logprobs = [logprob_case(seed, temperature) for seed, temperature in enumerate((0.8, 1.0, 1.7))]
    versions = {name: version(name) for name in ("trl", "torch", "transformers")}
    TARGET.write_text(json.dumps({"versions": versions, "losses": losses, "logprobs": logprobs}) + "\n")


if __name__ == "__main__":
    main()
