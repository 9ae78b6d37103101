"""The warmstart stage as a flow: its form is its flat configuration, the inputs (blank = current) and force."""

from typing import Any

from prefect import flow

from flows.alone import CURRENT, run_alone
from rpt_core.training.warmstart_config import WarmstartConfig


@flow(name="warmstart", flow_run_name="warmstart{config.changed}", persist_result=False)
def warmstart_policy(config: WarmstartConfig = WarmstartConfig(), inputs: dict[str, str] = CURRENT, force: bool = False) -> Any:
    """A policy that holds the format: a thought, then one boxed prediction.

    Args:
        config: The stage's settings; what is left out keeps its default.
        inputs: Which version each input role reads, e.g. {"documents": "ingest@VERSION"}; a role left out reads the current one.
        force: Make a new version even where one with the same identity is committed.
    """
    return run_alone("warmstart", config, inputs, force)
