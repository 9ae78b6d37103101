"""The report stage as a flow: its form is its flat configuration, the inputs (blank = current) and force."""

from typing import Any

from prefect import flow

from flows.alone import CURRENT, run_alone
from rpt_core.report.report_config import ReportConfig


@flow(name="report", flow_run_name="report{config.changed}", persist_result=False)
def write_report(config: ReportConfig = ReportConfig(), inputs: dict[str, str] = CURRENT, force: bool = False) -> Any:
    """One self-contained HTML file with every table and plot.

    Args:
        config: The stage's settings; what is left out keeps its default.
        inputs: Which version each input role reads, e.g. {"documents": "ingest@VERSION"}; a role left out reads the current one.
        force: Make a new version even where one with the same identity is committed.
    """
    return run_alone("report", config, inputs, force)
