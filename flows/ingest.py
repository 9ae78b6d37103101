"""The ingest stage as a flow: its form is its flat configuration, the inputs (blank = current) and force."""

from typing import Any

from prefect import flow

from flows.alone import CURRENT, run_alone
from rpt_core.corpus.ingest_config import IngestConfig


@flow(name="ingest", flow_run_name="ingest{config.changed}", persist_result=False)
def ingest_corpus(config: IngestConfig = IngestConfig(), inputs: dict[str, str] = CURRENT, force: bool = False) -> Any:
    """Documents and questions from files, Hub data sets and the generator.

    Args:
        config: The stage's settings; what is left out keeps its default.
        inputs: Leave it empty: this stage reads files, not tables.
        force: Make a new version even where one with the same identity is committed.
    """
    return run_alone("ingest", config, inputs, force)
