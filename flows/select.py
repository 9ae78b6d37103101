"""The select stage as a flow: its form is its flat configuration, the inputs (blank = current) and force."""

from typing import Any

from prefect import flow

from flows.alone import CURRENT, run_alone
from rpt_core.catalog.select_config import SelectConfig


@flow(name="select", flow_run_name="select{config.changed}", persist_result=False)
def select_positions(config: SelectConfig = SelectConfig(), inputs: dict[str, str] = CURRENT, force: bool = False) -> Any:
    """Eligible positions, their difficulty, and the train, dev and test samples.

    Args:
        config: The stage's settings; what is left out keeps its default.
        inputs: Which version each input role reads, e.g. {"documents": "ingest@VERSION"}; a role left out reads the current one.
        force: Make a new version even where one with the same identity is committed.
    """
    return run_alone("select", config, inputs, force)
