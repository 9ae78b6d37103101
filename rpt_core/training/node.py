"""One node's part of a training job: torchrun's elastic agent, which starts the ranks and ends them together.

`python -m rpt_core.training.node JOB` is what the stage runs on its own node, and what a user runs on each further one; JOB is the
file the stage names. No restarts: a rank that fails fails the job."""

import json
import signal
import sys
from pathlib import Path
from tempfile import mkdtemp

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rpt_core.store.files import read_json

REFUSAL = "UserError: "  # how the message of a rank that refused begins
SHUTDOWN_SECONDS = 3  # a rank has to end once another has failed, or the agent is told to end


def main(job_path: str, logs: str = "") -> int:
    job = read_json(Path(job_path))
    folder = Path(logs or mkdtemp(prefix="rpt-node-"))
    (folder / "ranks").mkdir(exist_ok=True)
    alone = job["nodes"] == 1
    launch = LaunchConfig(
        min_nodes=job["nodes"], max_nodes=job["nodes"], nproc_per_node=job["processes"], run_id=job["id"], max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint=job["rendezvous"] or "127.0.0.1:0", local_addr="127.0.0.1" if alone else None,
        logs_specs=DefaultLogsSpecs(str(folder / "ranks"), redirects=Std.ALL), shutdown_timeout=SHUTDOWN_SECONDS)
    try:
        elastic_launch(launch, sys.executable)("-m", "rpt_core.training.rank", job_path)
    except ChildFailedError as error:
        rank, cause = root_cause(error)
        found = describe(rank, cause, job["nodes"] * job["processes"])
        (folder / "failure.json").write_text(json.dumps(found), encoding="utf-8")
        print(found["refusal"] or f"process {rank} {found['how']} (logs: {folder})", file=sys.stderr)
        return 1
    except SignalException as error:
        return 128 + error.sigval
    return 0


def root_cause(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """The failure that explains the others: a refusal, else a rank that a signal not of the agent's ended before it could say why, else
    the first that the agent saw end. The agent ends the others with SIGTERM and, ``SHUTDOWN_SECONDS`` later, SIGKILL."""
    first = min(failure.timestamp for failure in error.failures.values())

    def order(entry: tuple[int, ProcessFailure]) -> tuple[bool, bool]:
        _, failure = entry
        message = message_of(failure)
        killed = not message and failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM \
            and failure.timestamp < first + SHUTDOWN_SECONDS
        return not message.startswith(REFUSAL), not killed

    return min(error.failures.items(), key=order)  # of equals the first, and the agent lists them as it saw them end


def describe(rank: int, failure: ProcessFailure, size: int) -> dict[str, object]:
    """{refusal, rank, size, how}: the user's sentence of a rank that refused, or how a process came to its end."""
    message = message_of(failure)
    if message.startswith(REFUSAL):
        return {"refusal": message.removeprefix(REFUSAL), "rank": rank, "size": size, "how": ""}
    if message:
        how = f"failed: {message.splitlines()[0]}"
    elif failure.exitcode < 0:
        how = f"was ended by {failure.signal_name()}" + (" (out of memory?)" if failure.exitcode == -signal.SIGKILL else "")
    else:
        how = f"ended with exit code {failure.exitcode}"
    return {"refusal": "", "rank": rank, "size": size, "how": how}


def message_of(failure: ProcessFailure) -> str:
    """The text of the exception a rank recorded, with its type in front; what torch makes up where it recorded none."""
    message = failure.error_file_data.get("message")
    return message["message"] if isinstance(message, dict) else ""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
