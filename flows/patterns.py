"""The patterns stage as a flow: its form is its flat configuration, the inputs (blank = current) and force."""

from typing import Any

from prefect import flow

from flows.alone import CURRENT, run_alone
from rpt_core.evaluation.patterns_config import PatternsConfig


@flow(name="patterns", flow_run_name="patterns{config.changed}", persist_result=False)
def count_patterns(config: PatternsConfig = PatternsConfig(), inputs: dict[str, str] = CURRENT, force: bool = False) -> Any:
    """Shares of reasoning patterns in responses (§4.5, Figure 6).

    Args:
        config: The stage's settings; what is left out keeps its default.
        inputs: Which version each input role reads, e.g. {"predictions": "evaluate@VERSION"}; a role left out reads the current one.
        force: Make a new version even where one with the same identity is committed.
    """
    return run_alone("patterns", config, inputs, force)
