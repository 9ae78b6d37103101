"""Log-probabilities of given tokens under softmax(logits / temperature), without ever holding the logits of all tokens: the head
runs over chunks of tokens and is computed again in the backward pass, so memory does not grow with tokens x vocabulary."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from rpt_core.store.errors import UserError

CHUNK_LOGITS = 1 << 22  # logits held at once: 16 MiB in float32


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, bias: Tensor | None = None,
                   with_entropy: bool = False, chunk_tokens: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Log-probability in nats of each target, [N] float32 (float64 for float64 inputs), and the entropy of each distribution in
    nats, [N] without gradient, where asked for.

    ``hidden`` [N, H]: last hidden states; ``weight`` [V, H] and ``bias`` [V]: the head; ``targets`` [N]: token ids. The softmax is
    taken in float32 whatever the type of the matrix product. ``chunk_tokens`` defaults to about 4 million logits a chunk."""
    if temperature <= 0:
        raise ValueError(f"log-probabilities need a temperature above 0, not {temperature}")
    size = chunk_tokens or max(16, CHUNK_LOGITS // weight.shape[0])
    logprobs, entropy = _ChunkedLogProbs.apply(hidden, weight, bias, targets, float(temperature), size, with_entropy)  # pyright: ignore[reportGeneralTypeIssues]
    return logprobs, entropy if with_entropy else None


def response_hidden(model: Module, input_ids: Tensor, **inputs: Any) -> Tensor:
    """Last hidden states [B, L, H] of a causal language model, its head left out."""
    return model.base_model(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state  # pyright: ignore[reportCallIssue]


def output_head(model: Module) -> tuple[Tensor, Tensor | None]:
    """(weight [V, H], bias [V] or None) of the language-model head. UserError for a head that is more than a linear map."""
    config = model.config  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise UserError(f"the model's head changes its logits ({name}), which training does not support; choose another model.")
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    return head.weight, getattr(head, "bias", None)


class _ChunkedLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, size: int,
                with_entropy: bool) -> tuple[Tensor, Tensor]:
        kind = hidden.device.type
        compute = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        head = weight.to(compute)
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs = torch.empty(len(targets), dtype=wide, device=hidden.device)
        normalisers = torch.empty_like(logprobs)
        entropy = torch.empty_like(logprobs) if with_entropy else logprobs.new_empty(0)
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            logits = _logits(hidden[part].to(compute), head, bias, temperature, wide)
            normaliser = torch.logsumexp(logits, dim=-1)
            normalisers[part] = normaliser
            logprobs[part] = logits.gather(1, targets[part, None]).squeeze(1) - normaliser
            if with_entropy:  # H = log Z - sum p · logit; exp in place, since the logits are not needed again
                probability = torch.exp(logits - normaliser[:, None])
                entropy[part] = normaliser - torch.einsum("nv,nv->n", probability, logits)
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers)
        ctx.temperature, ctx.size, ctx.compute, ctx.wide = temperature, size, compute, wide
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        head = weight.to(ctx.compute)
        grad_hidden = torch.empty_like(hidden)
        # Sums over chunks are kept in float32: adding hundreds of bfloat16 parts would lose them.
        grad_weight = torch.zeros(weight.shape, dtype=ctx.wide, device=weight.device) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for start in range(0, len(targets), ctx.size):
            part = slice(start, start + ctx.size)
            rows = hidden[part].to(ctx.compute)
            slope = _logits(rows, head, bias, ctx.temperature, ctx.wide)
            slope.sub_(normalisers[part, None]).exp_().neg_()  # d logprob / d logits = onehot - softmax
            slope.scatter_add_(1, targets[part, None], torch.ones_like(grad[part, None]))
            slope.mul_(grad[part, None] / ctx.temperature)
            narrow = slope.to(ctx.compute)
            grad_hidden[part] = (narrow @ head).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += (narrow.t() @ rows).to(ctx.wide)
            if grad_bias is not None:
                grad_bias += slope.sum(dim=0).to(grad_bias.dtype)
        return grad_hidden, grad_weight.to(weight.dtype) if grad_weight is not None else None, grad_bias, None, None, None, None


def _logits(rows: Tensor, head: Tensor, bias: Tensor | None, temperature: float, wide: torch.dtype) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        logits = (rows @ head.t()).to(wide)
    if bias is not None:
        logits = logits + bias.to(wide)
    return logits / temperature if temperature != 1.0 else logits
