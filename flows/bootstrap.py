"""The bootstrap stage as a flow: its form is its flat configuration, the inputs (blank = current) and force."""

from typing import Any

from prefect import flow

from flows.alone import CURRENT, run_alone
from rpt_core.training.bootstrap_config import BootstrapConfig


@flow(name="bootstrap", flow_run_name="bootstrap{config.changed}", persist_result=False)
def bootstrap_model(config: BootstrapConfig = BootstrapConfig(), inputs: dict[str, str] = CURRENT, force: bool = False) -> Any:
    """A tokenizer and a small base model, trained from scratch on the documents.

    Args:
        config: The stage's settings; what is left out keeps its default.
        inputs: Which version each input role reads, e.g. {"documents": "ingest@VERSION"}; a role left out reads the current one.
        force: Make a new version even where one with the same identity is committed.
    """
    return run_alone("bootstrap", config, inputs, force)
