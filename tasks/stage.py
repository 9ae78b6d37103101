"""The one Prefect task: run a stage, show its progress, then refresh the catalog and tracking.

The stage itself knows neither Prefect nor MLflow; what it says through its events is carried to both from here."""

import errno
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol
from uuid import UUID

from prefect import task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_UI_URL
from prefect.states import Failed

from rpt_core.store.config import StageConfig
from rpt_core.store.context import Context
from rpt_core.store.errors import UserError
from rpt_core.store.stage import Outcome, Stage, execute
from rpt_core.store.workspace import Workspace
from tasks.boundary import tolerant
from tasks.key_plot import key_plot
from tasks.limits import gpu_slot
from tasks.summary import artifact_key, links, outcome_markdown, summary_rows
from tasks.tracking import Tracking

logger = logging.getLogger("rpt")

REFUSED = "Refused"  # name of the failed state whose message is one sentence for the user
PROGRESS_EVERY = 5.0  # seconds between two updates of the progress artifact
FORWARD_EVERY = 10.0  # seconds between two looks for closed parts to send to MLflow


class Observer(Protocol):
    """Someone in this process who watches stages, e.g. the command line's progress bars."""

    def begin(self, slot: str) -> None: ...
    def event(self, slot: str, event: dict[str, Any]) -> None: ...
    def end(self, slot: str, result: dict[str, Any] | None) -> None: ...


_observers: list[Observer] = []


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Let ``observer`` hear every stage this process runs meanwhile."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def _worth_a_retry(task: Any, run: Any, state: State) -> bool:
    """A refusal (bad input, full disk) would only be one again; an exception may not. Prefect hands over a state whose data is
    the exception, or the state the task returned."""
    return not (isinstance(state.data, State) and state.data.name == REFUSED)


@task(name="stage", task_run_name="{slot}", cache_policy=NO_CACHE, persist_result=False, retries=int(os.environ.get("RPT_RETRIES", "0")),
      retry_delay_seconds=10, retry_condition_fn=_worth_a_retry)
def run_stage(slot: str, stage: Stage, config: StageConfig, inputs: Mapping[str, str], force: bool = False, pipeline: str = "") -> Any:
    """Run one stage in the workspace named by RPT_HOME. Returns {slot, version, cached, seconds, counts}, or a failed state named
    Refused whose message is the one sentence for the user. ``pipeline`` is the tracking key of the pipeline the stage runs in."""
    try:
        with forwarded_logs():
            return perform(stage, config, Workspace.from_environment(), inputs, force, pipeline)
    except UserError as error:
        return refused(slot, str(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return refused(slot, f"the disk is full ({error.filename or os.environ.get('RPT_HOME')}); what is committed is whole: "
                                 "free some space and run the same command again.")
        raise


def refused(slot: str, sentence: str) -> State:
    if TaskRunContext.get():
        get_run_logger().error(f"{slot}: {sentence}")
    return Failed(name=REFUSED, message=sentence)


def perform(stage: Stage, config: StageConfig, workspace: Workspace, inputs: Mapping[str, str], force: bool = False,
            pipeline: str = "") -> dict[str, Any]:
    """``execute`` with its events carried to the observers, to Prefect's progress artifact and to MLflow."""
    slot = stage.slot(config)
    carrier = Carrier(slot, Tracking(workspace), pipeline)
    before = workspace.current(slot)
    for observer in _observers:
        observer.begin(slot)
    result = None
    slot_held = ExitStack()

    def begin(context: Context) -> None:  # only what is not committed yet comes here, alone with its identity
        if TaskRunContext.get():
            slot_held.enter_context(gpu_slot(config))
        carrier.begin(context)
        slot_held.enter_context(carrier.tracking.sampled(slot, context.manifest.version))

    try:
        with slot_held:
            outcome = execute(stage, config, workspace, inputs, force=force, listeners=(carrier.hear,), on_begin=begin)
        if not outcome.cached or outcome.manifest.version != before or not workspace.catalog_path.exists():
            refresh_catalog(workspace)
        result = carrier.end(outcome)
        return result
    except BaseException as error:
        carrier.fail("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    finally:
        for observer in _observers:
            observer.end(slot, result)


def refresh_catalog(workspace: Workspace) -> None:
    """Let the catalog show what was committed. The catalog is derived and every reader refreshes it first, so a failure here
    (a full disk, a broken DuckDB) is a warning: what is committed stands, and the stage has done its work."""
    try:
        from rpt_core.catalog.catalog import refresh  # here, so that duckdb is loaded only when tables changed

        refresh(workspace)
    except Exception as error:  # noqa: BLE001
        logger.warning(f"the catalog could not be refreshed ({type(error).__name__}: {' '.join(str(error).split())}); "
                       "the result is committed, and the next `rpt sql` refreshes it.")


class Carrier:
    """Carries one stage's events to the observers, the progress artifact and MLflow, each no oftener than it can take."""

    def __init__(self, slot: str, tracking: Tracking, pipeline: str):
        self.slot = slot
        self.tracking = tracking
        self.pipeline = pipeline
        self.version = ""
        self._artifact: UUID | None = None
        self._shown = self._forwarded = time.monotonic()

    def begin(self, context: Context) -> None:
        manifest = context.manifest
        self.version = manifest.version
        manifest.run_ids = {**manifest.run_ids, **prefect_run_ids()}
        run_id = self.tracking.begin_version(manifest, self.pipeline)
        if run_id:
            manifest.run_ids["mlflow"] = run_id
        with tolerant("the progress artifact"):
            if TaskRunContext.get():
                created = create_progress_artifact(0.0, key=artifact_key(self.slot, "progress"), description=f"{self.slot}@{self.version}")
                self._artifact = created if isinstance(created, UUID) else None

    def hear(self, event: dict[str, Any]) -> None:
        for observer in _observers:
            observer.event(self.slot, event)
        now = time.monotonic()
        data = event["data"]
        if event["type"] == "progress" and self._artifact and data["total"] and now - self._shown > PROGRESS_EVERY:
            self._shown = now
            with tolerant("the progress artifact"):
                update_progress_artifact(self._artifact, progress=round(min(100.0, 100 * data["done"] / data["total"]), 1))
        if event["type"] in ("metrics", "table") and now - self._forwarded > FORWARD_EVERY:
            self._forwarded = now
            self.tracking.forward(self.slot, self.version)

    def end(self, outcome: Outcome) -> dict[str, Any]:
        manifest = outcome.manifest
        result = {"slot": self.slot, "version": manifest.version, "cached": outcome.cached, "seconds": round(outcome.seconds, 3),
                  "counts": manifest.counts}
        if outcome.cached:
            self.tracking.found_version(manifest, self.pipeline)
        else:
            self.tracking.end_version(self.slot, manifest.version)
        if TaskRunContext.get():
            with tolerant("the stage's artifacts"):
                if self._artifact:
                    update_progress_artifact(self._artifact, progress=100.0)
                self.show(outcome)
        return result

    def show(self, outcome: Outcome) -> None:
        """The stage's artifacts: its page, the table of its results, its plot, and links."""
        manifest, workspace = outcome.manifest, self.tracking.workspace
        named = f"{self.slot}@{manifest.version}"
        run_url = self.tracking.run_url(self.slot, manifest.version)
        page = outcome_markdown(outcome, workspace, run_url, str(PREFECT_UI_URL.value() or ""))
        create_markdown_artifact(page, key=artifact_key(self.slot), description=named)
        create_table_artifact(summary_rows(manifest), key=artifact_key(self.slot, "summary"), description=named)
        for name, address in links(outcome, workspace, run_url).items():
            create_link_artifact(address, name, key=artifact_key(self.slot, name.split()[0].lower()), description=named)
        picture = key_plot(workspace, manifest)
        if picture:
            # markdown, because an image artifact prints its address below the picture: here all of its bytes
            create_markdown_artifact(f"![{named}]({picture})", key=artifact_key(self.slot, "plot"), description=named)

    def fail(self, status: str) -> None:
        if self.version:
            self.tracking.end_version(self.slot, self.version, status)


def prefect_run_ids() -> dict[str, str]:
    context = TaskRunContext.get()
    if not context:
        return {}
    found = {"prefect_task_run": str(context.task_run.id)}
    if context.task_run.flow_run_id:
        found["prefect_flow_run"] = str(context.task_run.flow_run_id)
    return found


@contextmanager
def forwarded_logs() -> Iterator[None]:
    """What the library logs under ``rpt`` appears in the Prefect run's log (whose logger also prints it on a worker's console)."""
    if not TaskRunContext.get():
        yield
        return
    target = get_run_logger()

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            target.log(record.levelno, record.getMessage())

    handler = Forward(level=logging.INFO)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    logger.propagate = False  # Prefect's root handler would print every line a second time
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
