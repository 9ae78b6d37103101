"""The benchmark stage as a flow: its form is its flat configuration, the inputs (blank = current) and force."""

from typing import Any

from prefect import flow

from flows.alone import CURRENT, run_alone
from rpt_core.evaluation.benchmark_config import BenchmarkConfig


@flow(name="benchmark", flow_run_name="benchmark{config.changed}", persist_result=False)
def benchmark_checkpoints(config: BenchmarkConfig = BenchmarkConfig(), inputs: dict[str, str] = CURRENT, force: bool = False) -> Any:
    """Questions, zero-shot or behind worked examples (Table 3).

    Args:
        config: The stage's settings; what is left out keeps its default.
        inputs: Which version each input role reads, e.g. {"checkpoint": "bootstrap@VERSION"}; a role left out reads the current one.
        force: Make a new version even where one with the same identity is committed.
    """
    return run_alone("benchmark", config, inputs, force)
