"""Configuration of ``select``: which positions are eligible, how hard they are, which ones are trained on and evaluated
(RPT §3.2: token filtering by entropy; §3.3 and Table 1: difficulty buckets)."""

from typing import Literal, Self

from pydantic import model_validator

from rpt_core.store.config import StageConfig, runtime, semantic
from rpt_core.store.stage import Read, Stage

REVISION = 3  # 2: eligible_tokens; 3: eligible_counts


class SelectConfig(StageConfig):
    selector: Literal["entropy", "band", "top_share", "random"] = semantic(
        "entropy", "How training positions are chosen: filter entropy above min_entropy; between min_entropy and max_entropy; "
        "the top_share with the highest filter entropy; or at random.")
    min_entropy: float = semantic(0.5, "Training positions have a filter entropy above this, nats (selectors entropy and band).", ge=0.0)
    max_entropy: float = semantic(2.0, "Training positions have a filter entropy of at most this, nats (selector band).", ge=0.0)
    top_share: float = semantic(0.2, "Share of the training split's winnable positions kept (selector top_share), 0 to 1.", gt=0.0, le=1.0)
    easy_entropy: float = semantic(0.5, "A position is easy when the difficulty scorer's entropy exceeds this, nats (paper: 0.5).", ge=0.0)
    medium_entropy: float = semantic(1.0, "A position is medium above this entropy, nats (paper: 1.0).", ge=0.0)
    hard_entropy: float = semantic(1.5, "A position is hard above this entropy, nats (paper: 1.5).", ge=0.0)
    min_context_tokens: int = semantic(16, "Tokens of prefix a position needs at least.", ge=1)
    max_prompt_tokens: int = semantic(256, "Tokens of prefix shown at most, truncated on the left (paper: prompts of 4,096).", ge=1)
    winnable_tokens: int = semantic(4, "Token boundaries tried when asking whether the boxed truth can earn the reward.", ge=1, le=16)
    train_positions: int = semantic(4096, "Size of the training sample, positions.", ge=1)
    dev_positions: int = semantic(256, "Size of the dev sample, positions; 0 for none.", ge=0)
    test_positions: int = semantic(512, "Size of the test sample, positions; 0 for none.", ge=0)
    below_share: float = semantic(0.2, "Share of the dev and test samples at or below easy_entropy, 0 to 1.", ge=0.0, lt=1.0)
    seed: int = semantic(0, "Seed of the samples.", ge=0)
    memory_mib: int = runtime(1024, "Memory DuckDB may use before it spills to disk, MiB.", ge=64)
    threads: int = runtime(2, "Threads DuckDB may use.", ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.easy_entropy <= self.medium_entropy <= self.hard_entropy:
            raise ValueError("easy_entropy, medium_entropy and hard_entropy must not decrease")
        if self.selector == "band" and self.max_entropy <= self.min_entropy:
            raise ValueError("selector band needs max_entropy above min_entropy")
        if self.max_prompt_tokens < self.min_context_tokens:
            raise ValueError("max_prompt_tokens must be at least min_context_tokens")
        return self


STAGE = Stage(
    "select", revision=REVISION, config=SelectConfig,
    reads=(Read("documents", "documents", ("ingest",)),
           Read("filter", "tokens", ("score.filter",)),
           Read("difficulty", "tokens", ("score.difficulty",)),
           Read("vocabulary", "vocabulary", ("score.filter",)),
           Read("difficulty_vocabulary", "vocabulary", ("score.difficulty",))),
    writes=("positions", "eligible_tokens", "eligible_counts"), run="rpt_core.catalog.select:run")
