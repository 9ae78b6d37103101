"""`python -m benchmarks.scale`: what the paper's run and corpora of 10^9 to 10^12 tokens would cost, for docs/scale.md (``--write`` puts
the tables there). Arithmetic only: model FLOPs from the package's own count, shapes and lengths measured on files at hand, and the shares
of a GPU's peak that work may reach as a range, because no GPU was at hand. Every assumption is a constant of this file."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rpt_core.training.flops import TRAINING_FACTOR, causal_pairs, forward_flops

ROOT = Path(__file__).parents[1]
PAGE, BEGIN, END = ROOT / "docs/scale.md", "<!-- benchmarks.scale begins -->", "<!-- benchmarks.scale ends -->"

# Shapes as the models' own config.json has them (R1-Distill-Qwen 1.5B and 14B).
PROXY: Any = SimpleNamespace(model_type="qwen2", hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
                             num_key_value_heads=2, vocab_size=151936)
POLICY: Any = SimpleNamespace(model_type="qwen2", hidden_size=5120, intermediate_size=13824, num_hidden_layers=48, num_attention_heads=40,
                              num_key_value_heads=8, vocab_size=152064)
POLICY_PARAMETERS = 14.77e9

# Assumed: the GPU, prices, and shares of its peak (low, high).
GPU, PEAK_FLOPS = "H100 SXM, bfloat16", 989e12
GPU_HOUR, TERABYTE_MONTH = 2.5, 20.0  # dollars
SCORING, TRAINING, GENERATION = (0.30, 0.60), (0.25, 0.45), (0.03, 0.15)

# Measured here (docs/log.md): Omni-MATH's 2,821 documents at hand and the template `plain_context` in Qwen2's tokens.
DOCUMENT_TOKENS, BYTES_A_TOKEN, MEAN_PREFIX = 417.9, 2.863, 335
TEMPLATE_TOKENS = 90
# The paper: 4,428 documents, 1,000 steps of 256 contexts and 8 rollouts; its responses' bound. Others' count of an RPT thought: 872 tokens.
PAPER_DOCUMENTS, STEPS, CONTEXTS, GROUP, DYNAMIC_FROM = 4428, 1000, 256, 8, 500
THOUGHT, BOUND = 872, 8192
ROUNDS = 3  # batches a step with dynamic sampling draws at most: 1 + dynamic_rounds


@dataclass(frozen=True)
class Range:
    """A figure at the low and at the high share of the peak."""

    low: float
    high: float

    def __str__(self) -> str:
        first, second = sorted((self.low, self.high))
        return short(first) if short(first) == short(second) else f"{short(first)} – {short(second)}"


def short(value: float) -> str:
    """Two digits, with thousands as they are usually said."""
    for size, name in ((1e15, " · 10¹⁵"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"


def read(name: str) -> dict[str, Any]:
    """A benchmark's result."""
    return json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text(encoding="utf-8"))


def scoring_flops(model: Any) -> float:
    """Model FLOPs of one token of a document no longer than the window."""
    return forward_flops(model, 1, MEAN_PREFIX)


def gpu_hours(flops: float, shares: tuple[float, float]) -> Range:
    return Range(*(flops / (PEAK_FLOPS * share) / 3600 for share in shares))


def rollout_flops(response: int) -> tuple[float, float]:
    """Model FLOPs of one context: (generation, update). The prompt is read once for its group in both, as this package does."""
    prompt = MEAN_PREFIX + TEMPLATE_TOKENS
    tokens, pairs = prompt + GROUP * response, causal_pairs(prompt) + GROUP * causal_pairs(response, prompt)
    generation = forward_flops(POLICY, tokens, pairs, GROUP * response)
    return generation, TRAINING_FACTOR * generation


def run_hours(contexts: float, response: int, drawn: float = 1.0) -> Range:
    """GPU-hours of ``contexts`` trained on; ``drawn`` contexts are generated for each."""
    generation, update = rollout_flops(response)
    low, high = (gpu_hours(contexts * drawn * generation, GENERATION), gpu_hours(contexts * update, TRAINING))
    return Range(low.low + high.low, low.high + high.high)


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads), *("| " + " | ".join(row) + " |" for row in rows), ""]


def dollars(hours: Range) -> Range:
    return Range(hours.low * GPU_HOUR, hours.high * GPU_HOUR)


def report() -> str:
    """The tables of docs/scale.md."""
    measured = read("scoring")["ratios"]
    store = read("store")  # rows of `tokens`, half of them by each of two scorers
    row_bytes = store["ratios"]["bytes_per_token"]
    select = next(row["cpu_s_median"] for row in store["rows"] if row["name"] == "select") / (store["tokens"] / 2)
    paper_tokens = PAPER_DOCUMENTS * DOCUMENT_TOKENS
    density = STEPS * CONTEXTS / paper_tokens
    shares = ", ".join(f"in {name} {low:.0%} – {high:.0%}" for name, (low, high) in (
        ("scoring", SCORING), ("training", TRAINING), ("generation", GENERATION)))
    lines = [f"Assumed: {GPU}, peak {PEAK_FLOPS / 1e12:.0f} TFLOP/s; ${GPU_HOUR:.2f} a GPU-hour, ${TERABYTE_MONTH:.0f} a terabyte and "
             f"month; share of the peak {shares}. Measured, on a CPU: scoring reaches {measured['of_gemm_limit_50m']:.0%} (float32) and "
             f"{measured['of_gemm_limit_50m_bfloat16']:.0%} (bfloat16) of what matrix products alone reach "
             "(benchmarks/results/scoring.json, 50 M parameters).", ""]
    lines += ["**Scoring**: tokens a second and GPU = peak × share / model FLOPs of a token.", ""]
    lines += table(["scorer", "FLOPs a token", "tokens a second and GPU", "GPU-hours for 10⁹ tokens", "dollars for 10⁹ tokens"], [
        [name, f"{scoring_flops(model):.2e}", str(Range(*(PEAK_FLOPS * share / scoring_flops(model) for share in SCORING))),
         str(gpu_hours(1e9 * scoring_flops(model), SCORING)), str(dollars(gpu_hours(1e9 * scoring_flops(model), SCORING)))]
        for name, model in (("1.5 B proxy", PROXY), ("14 B", POLICY))])
    lines += [f"**The paper's run**: {paper_tokens / 1e6:.2f} M tokens, {STEPS * CONTEXTS:,} contexts, "
              f"{STEPS * CONTEXTS * GROUP / 1e6:.2f} M rollouts, prompts of {MEAN_PREFIX + TEMPLATE_TOKENS} tokens.", ""]
    share_late = (STEPS - DYNAMIC_FROM) / STEPS
    rows = []
    for response, drawn in ((THOUGHT, 1.0), (THOUGHT, 1 - share_late + share_late * ROUNDS), (BOUND, 1.0)):
        generation, update = rollout_flops(response)
        hours = run_hours(STEPS * CONTEXTS, response, drawn)
        rows.append([f"{response:,}", f"{drawn:.1f}", short(STEPS * CONTEXTS * GROUP * response * drawn),
                     f"{STEPS * CONTEXTS * (drawn * generation + update):.1e}", str(hours), str(dollars(hours))])
    lines += table(["tokens a response", "batches drawn", "rollout tokens", "model FLOPs", "GPU-hours", "dollars"], rows)
    lines += [f"**Larger corpora**: one copy of `tokens` per scorer at {row_bytes:.2f} bytes a token and `select` in {1e6 * select:.1f} "
              f"core-microseconds a token (benchmarks/results/store.json, {store['tokens'] / 1e6:.0f} M rows), text at {BYTES_A_TOKEN} "
              "bytes a token before compression, of documents and of responses; every token scored by the proxy, dev and test (assumed "
              f"10⁸ tokens at most, a tenth at most) by the 14 B model; trained on as densely as the paper ({density:.3f} contexts a "
              f"token, {THOUGHT} tokens a response) or on the paper's {STEPS * CONTEXTS:,} contexts only.", ""]
    rows = []
    for name, tokens in (("10⁹", 1e9), ("10¹¹", 1e11), ("10¹²", 1e12)):
        held_out = min(1e8, tokens / 10)
        scored = gpu_hours(tokens * scoring_flops(PROXY), SCORING)
        graded = gpu_hours(held_out * scoring_flops(POLICY), SCORING)
        scoring = Range(scored.low + graded.low, scored.high + graded.high)
        stored = (tokens + held_out) * row_bytes + tokens * BYTES_A_TOKEN
        dense = run_hours(tokens * density, THOUGHT)
        rows.append([name, str(scoring), str(dollars(scoring)), f"{short(stored)}B", f"{short(stored / 1e12 * TERABYTE_MONTH)}",
                     short(tokens * select / 3600), short(tokens * density * GROUP * THOUGHT),
                     f"{short(tokens * density * GROUP * THOUGHT * BYTES_A_TOKEN)}B", str(dense), str(dollars(dense)),
                     f"{100 * STEPS * CONTEXTS / tokens:.2g} %"])
    lines += table(["tokens", "scoring, GPU-hours", "dollars", "stored", "dollars a month", "`select`, core-hours",
                    "rollout tokens, as dense", "their text", "GPU-hours", "dollars", "tokens the paper's run trains on"], rows)
    state, checkpoint = 12 * POLICY_PARAMETERS, 4 * POLICY_PARAMETERS
    lines += [f"A 14 B checkpoint is {short(checkpoint)}B (float32), a state to resume from {short(state)}B, of which two stay: the "
              f"paper's run keeps {short(6 * checkpoint + 2 * state)}B."]
    return "\n".join(lines)


def page(text: str, tables: str) -> str:
    """The page with the tables between its two marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n\n" + tables + "\n\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    found = report()
    print(found)
    if "--write" in sys.argv:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
