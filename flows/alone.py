"""What every stage's flow does: run the one task, and end in the task's state."""

from collections.abc import Mapping
from typing import Any

from prefect.states import Failed

from flows.stages import STAGES
from rpt_core.store.config import StageConfig
from tasks.stage import REFUSED, run_stage

CURRENT: dict[str, str] = {}  # no input said: every role reads its current version


def run_alone(name: str, config: StageConfig, inputs: Mapping[str, str], force: bool) -> Any:
    """Run one stage on the inputs given (``role: slot@version``; a missing role is the current version). Returns the result,
    or the Failed state with the sentence for the user."""
    stage = STAGES[name]
    state = run_stage(stage.slot(config), stage, config, dict(inputs), force, return_state=True)
    return Failed(name=REFUSED, message=state.message) if state.name == REFUSED else state.result()
