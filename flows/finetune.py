"""The finetune stage as a flow: its form is its flat configuration, the inputs (blank = current) and force."""

from typing import Any

from prefect import flow

from flows.alone import CURRENT, run_alone
from rpt_core.training.finetune_config import FinetuneConfig


@flow(name="finetune", flow_run_name="finetune.{config.name}{config.changed}", persist_result=False)
def finetune_policy(config: FinetuneConfig = FinetuneConfig(), inputs: dict[str, str] = CURRENT, force: bool = False) -> Any:
    """RLVR on questions with checkable answers, from one starting point (Table 2).

    Args:
        config: The stage's settings; what is left out keeps its default.
        inputs: Which version each input role reads, e.g. {"questions": "ingest@VERSION"}; a role left out reads the current one.
        force: Make a new version even where one with the same identity is committed.
    """
    return run_alone("finetune", config, inputs, force)
