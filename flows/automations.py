"""What the Prefect server does by itself: mark dead runs Crashed, and tell a webhook of runs that failed.

A run's process says every three minutes that it lives (Prefect's flow-run heartbeats). Where worker and run are killed together nobody
else would end the run: it would stay Running for ever."""

from datetime import timedelta
from typing import Any

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY

DEAD, FAILURE = "rpt: dead runs are crashed", "rpt: failures call the webhook"
WEBHOOK = "rpt-failures"
RUN = {"prefect.resource.id": "prefect.flow-run.*"}
OURS = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.rpt"}
ENDS = ("Completed", "Failed", "Refused", "TimedOut", "Cancelled", "Crashed", "Paused", "Suspended", "Scheduled", "AwaitingRetry")
MISSED = 3  # heartbeats in a row
SAID = {"run": "flow_run.name", "deployment": "deployment.name", "state": "flow_run.state.name", "message": "flow_run.state.message",
        "id": "flow_run.id | string", "url": "flow_run | ui_url"}
PAYLOAD = "{" + ", ".join(f'"{key}": {{{{ {value} | default("", true) | tojson }}}}' for key, value in SAID.items()) + "}"


def dead_run_automation() -> AutomationCore:
    """After a heartbeat, or after a worker took the run (Pending), a heartbeat or an end within three periods; else the run is Crashed.
    The period is the one this process is set to (PREFECT_FLOWS_HEARTBEAT_FREQUENCY), as its workers should be."""
    period = PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() or 180
    expected = {"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in ENDS)}
    trigger = EventTrigger(match=RUN, match_related=OURS, expect=expected, for_each={"prefect.resource.id"},  # type: ignore[arg-type]
                           after={"prefect.flow-run.heartbeat", "prefect.flow-run.Pending"},
                           posture=Posture.Proactive, threshold=1, within=timedelta(seconds=MISSED * period))
    said = f"No heartbeat for {MISSED * period} s: its process, worker or machine is gone. Run it again; it goes on from what is finished."
    crash: ActionTypes = ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=said, force=False)
    return AutomationCore(name=DEAD, description="Flow-run heartbeats that stop end the run.", trigger=trigger,
                          actions=[crash])


def failure_automation(block: object) -> AutomationCore:
    """A run of ours that ends Failed (``Refused`` too) or Crashed is posted to the webhook as JSON."""
    trigger = EventTrigger(match=RUN, match_related=OURS, posture=Posture.Reactive, threshold=1, within=timedelta(0),  # type: ignore[arg-type]
                           for_each={"prefect.resource.id"},
                           expect={f"prefect.flow-run.{end}" for end in ("Failed", "Crashed", "Refused", "TimedOut")})
    return AutomationCore(name=FAILURE, description="Failed and crashed runs are posted to the webhook block rpt-failures.",
                          trigger=trigger, actions=[CallWebhook(block_document_id=block, payload=PAYLOAD)])  # type: ignore[arg-type]


def create_automations(webhook: str) -> list[str]:
    """Create or renew the automations; the one of the webhook only where there is one. Returns their names."""
    made = [dead_run_automation()]
    if webhook:
        made.append(failure_automation(Webhook(url=webhook).save(WEBHOOK, overwrite=True)))  # type: ignore[arg-type]
    with get_client(sync_client=True) as client:
        for automation in made:
            put(client, automation)
    return [automation.name for automation in made]


def put(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Create it, or change the one of its name where it says something else. One that says the same stays: with it would go what it
    waits for, the end of runs that are dead already."""
    known = client.read_automations_by_name(automation.name)
    for twice in known[1:]:
        client.delete_automation(twice.id)
    if not known:
        client.create_automation(automation)
    elif without_ids(known[0]) != without_ids(automation):
        client.update_automation(known[0].id, automation.model_copy(update={"enabled": known[0].enabled}))


def without_ids(automation: AutomationCore) -> dict[str, Any]:
    """What an automation does, and neither its ids nor whether someone switched it off."""
    actions = [action.model_dump(exclude={"id"}) for action in automation.actions]  # as Python: sets have no order
    return {"description": automation.description, "trigger": automation.trigger.model_dump(exclude={"id"}), "actions": actions}
