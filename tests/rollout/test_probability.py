"""TokenProbability against plain forward passes, whatever the batching."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rpt_core.rollout.probability import TokenProbability
from tests.rollout.models import tiny_qwen2

MODEL = tiny_qwen2()
TOKEN = st.integers(0, 63)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.lists(TOKEN, min_size=1, max_size=8), TOKEN), min_size=1, max_size=8), st.integers(1, 40))
def test_logprobs_equal_one_forward_pass_per_context_in_the_given_order(asked, batch_tokens: int) -> None:
    found = TokenProbability(MODEL, batch_tokens)([context for context, _ in asked], [target for _, target in asked])
    with torch.inference_mode():
        expected = [torch.log_softmax(MODEL(torch.tensor([context])).logits[0, -1], -1)[target].item() for context, target in asked]
    assert found == pytest.approx(expected, abs=2e-5)


def test_many_targets_behind_one_context_cost_one_pass() -> None:
    probability = TokenProbability(MODEL)
    found = probability([[5, 6, 7]] * 64, list(range(64)))
    assert sum(torch.tensor(found).exp()).item() == pytest.approx(1.0, abs=1e-5)
    assert probability.flops.tokens_prefilled == 3


def test_it_follows_the_model_as_it_trains() -> None:
    model = tiny_qwen2(3)
    probability = TokenProbability(model)
    before = probability([[5]], [6])
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.5)
    assert probability([[5]], [6]) != before


def test_an_empty_context_is_refused() -> None:
    with pytest.raises(ValueError, match="context is empty"):
        TokenProbability(MODEL)([[]], [1])
