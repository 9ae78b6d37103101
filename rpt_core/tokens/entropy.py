"""How uncertain a model is about a token (RPT §3.3): the entropy of its sixteen most likely next tokens, and the true token's
negative log-likelihood and rank. The full logits of a batch never exist at once: tokens pass the output layer in chunks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TOP_K = 16
CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 28}  # logits held at once, tokens times vocabulary


def topk_entropy(logits: Tensor, k: int = TOP_K) -> Tensor:
    """Entropy in nats of the ``k`` most likely tokens, renormalised among themselves: logits [..., V] -> [...], at most ln k.
    RPT filters by it over the top 16; that the 16 are renormalised and measured in nats is our reading of §3.3."""
    return _entropy(_wide(logits).topk(min(k, logits.shape[-1]), dim=-1).values)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _entropy(values: Tensor) -> Tensor:
    return torch.special.entr(values.softmax(-1)).sum(-1)


@dataclass(frozen=True)
class TokenStatistics:
    """Of N predictions, each tensor [N]."""

    entropy: Tensor  # float32, nats, renormalised top k
    nll: Tensor  # float32, nats, of the true token over the whole vocabulary
    rank: Tensor  # int64, number of tokens that are strictly more likely than the true one
    top_id: Tensor  # int64, the most likely token

    @classmethod
    def concatenate(cls, parts: "list[TokenStatistics]") -> "TokenStatistics":
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("entropy", "nll", "rank", "top_id")))


def logits_statistics(logits: Tensor, targets: Tensor, k: int = TOP_K) -> TokenStatistics:
    """Statistics of logits [N, V] against the true tokens [N]."""
    logits = _wide(logits)
    best = logits.topk(min(k, logits.shape[-1]), dim=-1)
    of_target = logits.gather(-1, targets[:, None])
    nll = logits.logsumexp(-1) - of_target[:, 0]
    return TokenStatistics(_entropy(best.values).float(), nll.float(), (logits > of_target).sum(-1), best.indices[:, 0])


@torch.inference_mode()
def token_statistics(hidden: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, vocabulary: int, k: int = TOP_K) -> TokenStatistics:
    """Statistics of last hidden states [N, D] against the tokens [N] they predict; ``head`` maps [n, D] to logits [n, vocabulary].
    Memory is that of CHUNK_ELEMENTS logits, whatever N is."""
    chunk = max(1, CHUNK_ELEMENTS["cuda" if hidden.is_cuda else "cpu"] // vocabulary)
    if not len(targets):
        return logits_statistics(hidden.new_zeros((0, max(1, vocabulary))), targets, k)
    return TokenStatistics.concatenate([logits_statistics(head(hidden[i : i + chunk]), targets[i : i + chunk], k)
                                        for i in range(0, len(targets), chunk)])
