"""The evaluate stage as a flow: its form is its flat configuration, the inputs (blank = current) and force."""

from typing import Any

from prefect import flow

from flows.alone import CURRENT, run_alone
from rpt_core.evaluation.evaluate_config import EvaluateConfig


@flow(name="evaluate", flow_run_name="evaluate{config.changed}", persist_result=False)
def evaluate_checkpoints(config: EvaluateConfig = EvaluateConfig(), inputs: dict[str, str] = CURRENT, force: bool = False) -> Any:
    """Next-token accuracy of every checkpoint by difficulty (Table 1).

    Args:
        config: The stage's settings; what is left out keeps its default.
        inputs: Which version each input role reads, e.g. {"documents": "ingest@VERSION"}; a role left out reads the current one.
        force: Make a new version even where one with the same identity is committed.
    """
    return run_alone("evaluate", config, inputs, force)
