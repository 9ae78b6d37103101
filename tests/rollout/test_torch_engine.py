"""The torch engine against a plain forward pass: what it draws, with which probabilities, however it batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rpt_core.rollout.engine import Completion, Engine, GenerationCounts, Sampling
from rpt_core.rollout.torch_engine import TorchEngine, chunk_plan, inverse_cdf
from rpt_core.rollout.uniforms import uniforms
from rpt_core.store.errors import UserError
from tests.rollout.models import tiny_llama, tiny_qwen2, tiny_qwen3


def requests(n: int = 10, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of 1 to 19 tokens with ragged groups of 0 to 5 seeds."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(5, 60, int(length)).tolist() for length in rng.integers(1, 20, n)]
    return prompts, [[100 * i + j for j in range(int(size))] for i, size in enumerate(rng.integers(0, 6, n))]


@torch.inference_mode()
def expected_logprobs(model, prompt: list[int], completion: Completion, temperature: float) -> torch.Tensor:
    """[T, V] by one forward pass over prompt and completion."""
    logits = model(torch.tensor([prompt + completion.token_ids])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1)


@pytest.mark.parametrize("model", [tiny_qwen2(), tiny_llama(), tiny_qwen3()], ids=["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("chunk_tokens", [1, 400, 100_000])
def test_logprobs_and_draws_equal_a_plain_forward_pass(model, chunk_tokens: int) -> None:
    prompts, seeds = requests()
    engine = TorchEngine(model, chunk_tokens=chunk_tokens)
    sampling = Sampling(0.7, 37, (3, 4))
    for prompt, group, found in zip(prompts, seeds, engine.generate(prompts, seeds, sampling), strict=True):
        assert len(found) == len(group)
        for seed, completion in zip(group, found, strict=True):
            logprobs = expected_logprobs(model, prompt, completion, 0.7)
            drawn = torch.tensor(completion.token_ids)
            torch.testing.assert_close(logprobs.gather(-1, drawn[:, None])[:, 0], torch.tensor(completion.logprobs), atol=3e-5, rtol=0)
            again = inverse_cdf(logprobs, torch.from_numpy(uniforms([seed], 0, len(drawn))[0]))
            assert (again == drawn).float().mean() > 0.95  # rounding may move a draw across the edge of a token's stretch


def test_stop_tokens_end_a_completion_and_are_kept() -> None:
    prompts, seeds = requests(30)
    found = [c for group in TorchEngine(tiny_qwen2()).generate(prompts, seeds, Sampling(1.0, 25, (3, 4, 9))) for c in group]
    assert {c.finish for c in found} == {"stop", "length"}
    for completion in found:
        stops = [k for k, token in enumerate(completion.token_ids) if token in (3, 4, 9)]
        assert stops == ([len(completion.token_ids) - 1] if completion.finish == "stop" else [])
        assert len(completion.token_ids) == 25 or completion.finish == "stop"
        assert len(completion.logprobs) == len(completion.token_ids)


def test_without_stop_tokens_every_completion_runs_to_its_length() -> None:
    found = TorchEngine(tiny_qwen2()).generate([[5, 6], [7]], [[1, 2], [3]], Sampling(1.0, 70))
    assert [[len(c.token_ids) for c in group] for group in found] == [[70, 70], [70]]
    assert {c.finish for group in found for c in group} == {"length"}


def test_a_completion_does_not_depend_on_its_company() -> None:
    model, sampling = tiny_qwen2(), Sampling(0.8, 30, (3,))
    prompts, seeds = requests()
    together = TorchEngine(model).generate(prompts, seeds, sampling)
    for prompt, group, found in zip(prompts, seeds, together, strict=True):
        alone = TorchEngine(model).generate([prompt], [group], sampling)[0]
        assert [c.token_ids for c in alone] == [c.token_ids for c in found]


def test_the_same_request_gives_the_same_bits() -> None:
    prompts, seeds = requests()
    first, second = (TorchEngine(tiny_qwen2(), chunk_tokens=500).generate(prompts, seeds, Sampling(0.8, 30, (3,))) for _ in range(2))
    assert first == second


def test_greedy_takes_the_most_likely_token_whatever_the_seed() -> None:
    model = tiny_qwen2()
    prompts, _ = requests()
    for prompt, (a, b) in zip(prompts, TorchEngine(model).generate(prompts, [[1, 2]] * len(prompts), Sampling(0.0, 12)), strict=True):
        assert a.token_ids == b.token_ids
        expected = torch.tensor([prompt])
        for _ in range(12):
            expected = torch.cat([expected, model(expected).logits[:, -1].argmax(-1)[None]], 1)
        assert a.token_ids == expected[0, len(prompt) :].tolist()


def test_draws_follow_the_model_distribution() -> None:
    model = tiny_qwen2()
    found = TorchEngine(model).generate([[5, 6, 7]], [list(range(4000))], Sampling(0.8, 1))[0]
    expected = torch.log_softmax(model(torch.tensor([[5, 6, 7]])).logits[0, -1] / 0.8, -1).exp().detach().double().numpy() * 4000
    counts = np.bincount([c.token_ids[0] for c in found], minlength=len(expected))
    likely = expected > 5
    observed = [*counts[likely], counts[~likely].sum()]
    wanted = [*expected[likely], expected[~likely].sum()]
    assert stats.chisquare(observed, np.asarray(wanted) * sum(observed) / sum(wanted)).pvalue > 1e-3


def test_sync_takes_the_new_weights_and_stamps_the_step() -> None:
    old, new = tiny_qwen2(0), tiny_qwen2(1)
    engine = TorchEngine(old)
    assert engine.generate([[5]], [[1]], Sampling(1.0, 3))[0][0].policy_step == 0
    engine.sync(new, 7)
    found = engine.generate([[5, 6]], [[1]], Sampling(1.0, 20))
    assert found[0][0].policy_step == 7
    assert [c.token_ids for c in found[0]] == [c.token_ids for c in TorchEngine(new).generate([[5, 6]], [[1]], Sampling(1.0, 20))[0]]


def test_training_the_model_changes_nothing_before_sync() -> None:
    model = tiny_qwen2()
    engine = TorchEngine(model)
    before = engine.generate([[5, 6]], [[1]], Sampling(1.0, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)
    assert engine.generate([[5, 6]], [[1]], Sampling(1.0, 10)) == before


def test_bfloat16_rollout_stays_close_to_the_float32_model() -> None:
    model = tiny_qwen2(initializer_range=0.05)
    engine = TorchEngine(model, dtype="bfloat16")
    prompts, seeds = requests()
    for prompt, group in zip(prompts, engine.generate(prompts, seeds, Sampling(0.8, 20)), strict=True):
        for completion in group:
            expected = expected_logprobs(model, prompt, completion, 0.8).gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            assert (expected - torch.tensor(completion.logprobs)).abs().mean() < 0.02


def test_counts_are_those_of_the_tokens_really_needed() -> None:
    engine = TorchEngine(tiny_qwen2())
    engine.generate([[5, 6, 7], [8]], [[1, 2], [3]], Sampling(1.0, 4))
    # prompts once: 3 and 1 tokens; 3 completions of 4 tokens, 3 of them fed back; pairs by summing visible keys token by token
    pairs = sum(range(1, 4)) + 1 + 2 * (4 + 5 + 6) + (2 + 3 + 4)
    assert engine.flops == GenerationCounts(tokens_prefilled=4, tokens_generated=12, tokens_decoded=9, attention_pairs=pairs)
    earlier = engine.flops.snapshot()
    engine.generate([[5]], [[1]], Sampling(1.0, 1))
    assert engine.flops.since(earlier) == GenerationCounts(1, 1, 0, 1)
    assert engine.flops.tokens_computed == 4 + 9 + 1


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), max_size=30), st.integers(1, 40), st.integers(1, 800))
def test_the_batch_plan_covers_every_prompt_once_and_respects_the_bound(sizes: list[tuple[int, int]], max_new: int, bound: int) -> None:
    lengths, groups = [length for length, _ in sizes], [group for _, group in sizes]
    plan = list(chunk_plan(lengths, groups, max_new, bound))
    assert sorted(index for chunk in plan for index in chunk) == list(range(len(sizes)))
    assert [lengths[index] for chunk in plan for index in chunk] == sorted(lengths)
    for chunk in plan:
        assert len(chunk) == 1 or sum(lengths[i] + groups[i] * max_new for i in chunk) <= bound


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logprobs = torch.tensor([[float("-inf"), 0.0, float("-inf")]]).expand(3, 3)
    assert inverse_cdf(logprobs, torch.tensor([1e-15, 0.5, 1 - 1e-15], dtype=torch.float64)).tolist() == [1, 1, 1]


def test_bad_requests_are_refused() -> None:
    engine = TorchEngine(tiny_qwen2())
    assert isinstance(engine, Engine)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        engine.generate([[5], []], [[1], [1]], Sampling(1.0, 2))
    with pytest.raises(ValueError, match="2 prompts came with 1"):
        engine.generate([[5], [6]], [[1]], Sampling(1.0, 2))
    with pytest.raises(ValueError, match="max_new_tokens"):
        Sampling(1.0, 0)
    assert engine.generate([], [], Sampling(1.0, 2)) == []
    with pytest.raises(UserError, match="sliding_attention"):
        TorchEngine(tiny_qwen2(use_sliding_window=True, sliding_window=8, max_window_layers=0))
