"""The control stage as a flow: its form is its flat configuration, the inputs (blank = current) and force."""

from typing import Any

from prefect import flow

from flows.alone import CURRENT, run_alone
from rpt_core.training.control_config import ControlConfig


@flow(name="control", flow_run_name="control.{config.kind}{config.changed}", persist_result=False)
def train_control(config: ControlConfig = ControlConfig(), inputs: dict[str, str] = CURRENT, force: bool = False) -> Any:
    """A compute-matched control: next-token prediction or supervised traces instead of reinforcement.

    Args:
        config: The stage's settings; what is left out keeps its default.
        inputs: Which version each input role reads, e.g. {"checkpoint": "bootstrap@VERSION"}; a role left out reads the current one.
        force: Make a new version even where one with the same identity is committed.
    """
    return run_alone("control", config, inputs, force)
