"""`rpt track sync`: send to MLflow what an outage left behind."""

import typer

from flows.commands.common import open_workspace, out

app = typer.Typer(no_args_is_help=True)


@app.callback()
def track() -> None:
    """MLflow runs of this workspace.

    Example: rpt track sync
    """


@app.command()
def sync() -> None:
    """Send every run, metric and artifact that is not in MLflow yet; what is there already is not sent twice.

    Example: MLFLOW_TRACKING_URI=http://127.0.0.1:5000 rpt track sync
    """
    from tasks.tracking import Tracking

    tracking = Tracking(open_workspace())
    sent = tracking.sync()
    out.print(f"sent {sent['pipelines']} pipelines and {sent['versions']} stage versions to {tracking.uri}", markup=False)
