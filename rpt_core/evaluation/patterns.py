"""Reasoning patterns: which kinds of thinking a response's words give away (paper §4.5, Figure 6).

A response counts for a group when it contains at least one of its keywords. Rules: letter case does not matter; a keyword
is matched at word boundaries ("either" is not in "neither", "wait" not in "waiting"); the blanks of a phrase match any run
of white space, line breaks included; "etc." needs its full stop. Words are not inflected: the paper lists none."""

import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rpt_core.evaluation.lineup import headline
from rpt_core.evaluation.patterns_config import PatternsConfig
from rpt_core.store.context import Context
from rpt_core.store.errors import UserError
from rpt_core.store.seeds import derive_seed
from rpt_core.store.tables import Manifest

KEYWORDS: dict[str, tuple[str, ...]] = {
    "transition": ("alternatively", "think differently"),
    "reflection": ("wait", "initial answer", "original answer", "looking back", "thought process"),
    "breakdown": ("break down", "break this down"),
    "hypothesis": ("probably", "something like"),
    "divergent_thinking": ("etc.", "or something", "either", "sometimes it refers", "otherwise", "exploring", "options"),
    "deduction": ("summarize", "conclusion", "conclude", "finally", "logically", "consequently"),
}


AFTER_SOURCE = "next-token thoughts, after"


def _expression(keywords: Iterable[str]) -> re.Pattern[str]:
    phrases = (r"\s+".join(re.escape(word) for word in keyword.split(" ")) for keyword in keywords)
    return re.compile("|".join(rf"(?<!\w){phrase}" + (r"(?!\w)" if phrase[-1].isalnum() else "") for phrase in phrases), re.IGNORECASE)


_EXPRESSIONS = {group: _expression(keywords) for group, keywords in KEYWORDS.items()}


def patterns_in(response: str) -> frozenset[str]:
    """The groups of which ``response`` contains a keyword."""
    return frozenset(group for group, expression in _EXPRESSIONS.items() if expression.search(response))


def pattern_shares(responses: Iterable[str]) -> dict[str, float]:
    """Share of responses, 0 to 1, that contain a keyword of each group (paper §4.5); all 0 when there are no responses."""
    found = [patterns_in(response) for response in responses]
    return {group: sum(group in one for one in found) / len(found) if found else 0.0 for group in KEYWORDS}


def run(config: PatternsConfig, context: Context) -> Manifest:
    """Next-token thoughts of the trained model (and of the model it started from) against problem solving."""
    trained = context.models("checkpoints")
    after = headline(trained, config.headline_step)
    before_id = after.parent_id if after else ""
    thoughts = context.table("predictions").read(["checkpoint_id", "response"], pc.field("mode") == "reasoning")
    own = {model.checkpoint_id for model in trained}
    sources: list[tuple[str, str, list[str]]] = []
    if after:
        sources.append((AFTER_SOURCE, after.checkpoint_id, _of(thoughts, after.checkpoint_id)))
    if before_id:
        sources.append(("next-token thoughts, before", before_id, _of(thoughts, before_id)))
    for table in context.tables("answers"):
        answers = table.read(["checkpoint_id", "response", "mode"], pc.field("mode").isin(["solve", "reasoning"]))
        for checkpoint in sorted(set(answers["checkpoint_id"].to_pylist()) - own):
            part = "before" if checkpoint == before_id else "base"
            for mode, name in (("solve", "problem solving"), ("reasoning", "multiple choice")):
                chosen = answers.filter(pc.field("mode") == mode)
                sources.append((f"{name}, {part}", checkpoint, _of(chosen, checkpoint)))
    sampled = [(name, checkpoint, _sample(found, config, checkpoint, name)) for name, checkpoint, found in sources if found]
    if not sampled:
        raise UserError("patterns found no reasoning: evaluate in mode reasoning, or benchmark in mode solve, first.")
    rows = [{"source": name, "checkpoint_id": checkpoint, "pattern": pattern, "share": share, "n": len(found)}
            for name, checkpoint, found in sampled for pattern, share in pattern_shares(found).items()]
    context.write("pattern_shares", rows)
    return context.commit({"responses": {name: len(found) for name, _, found in sampled}, "comparisons": _comparisons(sampled, config)})


def _of(table: pa.Table, checkpoint_id: str) -> list[str]:
    return table.filter(pc.field("checkpoint_id") == checkpoint_id)["response"].to_pylist()


def _sample(responses: list[str], config: PatternsConfig, *keys: str) -> list[str]:
    """At most ``config.responses`` of them, drawn without replacement, in their order."""
    if config.responses == 0 or len(responses) <= config.responses:
        return responses
    rng = np.random.Generator(np.random.Philox(derive_seed(config.seed, "patterns", *keys)))
    return [responses[index] for index in sorted(rng.choice(len(responses), config.responses, replace=False))]


def _comparisons(sampled: list[tuple[str, str, list[str]]], config: PatternsConfig) -> list[dict[str, object]]:
    """Relative difference of the first source's shares (the trained model's thoughts) against every other's, with 95 %
    bootstrap intervals over responses; null where the other never shows the pattern."""
    name, _, thoughts = sampled[0]
    if name != AFTER_SOURCE:
        return []
    rng = np.random.Generator(np.random.Philox(derive_seed(config.seed, "patterns", "bootstrap")))
    rows: list[dict[str, object]] = []
    for other, _, responses in sampled[1:]:
        for pattern in KEYWORDS:
            share = [sum(pattern in patterns_in(r) for r in found) / len(found) for found in (thoughts, responses)]
            row: dict[str, object] = {"pattern": pattern, "first": name, "second": other, "relative": None, "low": None, "high": None}
            if share[1] > 0:
                first = rng.binomial(len(thoughts), share[0], 10_000) / len(thoughts)
                second = rng.binomial(len(responses), share[1], 10_000) / len(responses)
                ratio = (first / np.where(second > 0, second, np.nan)) - 1
                low, high = np.nanquantile(ratio, [0.025, 0.975])
                row |= {"relative": share[0] / share[1] - 1, "low": float(low), "high": float(high)}
            rows.append(row)
    return rows
