"""The scaling stage as a flow: its form is its flat configuration, the inputs (blank = current) and force."""

from typing import Any

from prefect import flow

from flows.alone import CURRENT, run_alone
from rpt_core.evaluation.scaling_config import ScalingConfig


@flow(name="scaling", flow_run_name="scaling{config.changed}", persist_result=False)
def fit_scaling(config: ScalingConfig = ScalingConfig(), inputs: dict[str, str] = CURRENT, force: bool = False) -> Any:
    """The scaling law of accuracy in training compute (Eq. 5, Figure 5).

    Args:
        config: The stage's settings; what is left out keeps its default.
        inputs: Which version each input role reads, e.g. {"predictions": "evaluate@VERSION"}; a role left out reads the current one.
        force: Make a new version even where one with the same identity is committed.
    """
    return run_alone("scaling", config, inputs, force)
