"""The score stage as a flow: its form is its flat configuration, the inputs (blank = current) and force."""

from typing import Any

from prefect import flow

from flows.alone import CURRENT, run_alone
from rpt_core.tokens.score_config import ScoreConfig


@flow(name="score", flow_run_name="score.{config.name}{config.changed}", persist_result=False)
def score_tokens(config: ScoreConfig = ScoreConfig(), inputs: dict[str, str] = CURRENT, force: bool = False) -> Any:
    """Entropy and likelihood of every token of every document, by one scorer (paper §3.1).

    Args:
        config: The stage's settings; what is left out keeps its default.
        inputs: Which version each input role reads, e.g. {"documents": "ingest@VERSION"}; a role left out reads the current one.
        force: Make a new version even where one with the same identity is committed.
    """
    return run_alone("score", config, inputs, force)
