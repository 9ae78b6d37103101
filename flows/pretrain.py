"""The pretrain stage as a flow: its form is its flat configuration, the inputs (blank = current) and force."""

from typing import Any

from prefect import flow

from flows.alone import CURRENT, run_alone
from rpt_core.training.pretrain_config import PretrainConfig


@flow(name="pretrain", flow_run_name="pretrain{config.changed}", persist_result=False)
def pretrain_policy(config: PretrainConfig = PretrainConfig(), inputs: dict[str, str] = CURRENT, force: bool = False) -> Any:
    """Reinforcement pre-training: GRPO on next-token reasoning (paper §3.2).

    Args:
        config: The stage's settings; what is left out keeps its default.
        inputs: Which version each input role reads, e.g. {"documents": "ingest@VERSION"}; a role left out reads the current one.
        force: Make a new version even where one with the same identity is committed.
    """
    return run_alone("pretrain", config, inputs, force)
