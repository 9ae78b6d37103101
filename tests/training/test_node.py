"""Which of several failures a node names as the one that ended the job."""

import json
import time

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from rpt_core.training.node import describe, root_cause

NOW = int(time.time())
KILLED, TOLD_TO_END, RAISED = -9, -15, 1
PEER = "RuntimeError: Connection closed by peer"


def seen(tmp_path, *ends: tuple[int, int, str, int]) -> str:
    """What the node says of ranks that ended, in the order the agent saw it: (rank, exit code, what it recorded, seconds from now)."""
    failures = {}
    for rank, code, message, after in ends:
        recorded = tmp_path / f"{rank}.json"
        if message:
            extra = {"py_callstack": "", "timestamp": str(NOW + after)}
            recorded.write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}))
        failures[rank] = ProcessFailure(rank, 1000 + rank, code, str(recorded))
        if not message:
            failures[rank].timestamp = NOW + after  # torch takes the second in which the agent looked
    rank, cause = root_cause(ChildFailedError("rank", failures))
    found = describe(rank, cause, len(failures))
    return str(found["refusal"] or f"{rank} {found['how']}")


@pytest.mark.parametrize(("ends", "expected"), [
    ([(1, KILLED, "", 0), (0, TOLD_TO_END, "", 0)], "1 was ended by SIGKILL (out of memory?)"),
    ([(1, KILLED, "", 1), (0, TOLD_TO_END, PEER, 0)], "1 was ended by SIGKILL (out of memory?)"),  # told while it was ending
    ([(0, RAISED, PEER, 0), (1, KILLED, "", 0)], "1 was ended by SIGKILL (out of memory?)"),  # both were gone at the same look
    ([(1, RAISED, "ValueError: no\nsecond line", 0), (0, TOLD_TO_END, "", 0)], "1 failed: ValueError: no"),
    ([(1, RAISED, "ValueError: no", 0), (0, KILLED, "", 3)], "1 failed: ValueError: no"),  # it did not end when it was told
    ([(1, TOLD_TO_END, "", 0), (0, RAISED, PEER, 0)], "1 was ended by SIGTERM"),  # by somebody else
    ([(1, -11, "", 0), (0, RAISED, PEER, 0)], "1 was ended by SIGSEGV"),
    ([(0, KILLED, "", 0), (1, RAISED, "UserError: too long.", 0)], "too long."),
    ([(1, 7, "", 0)], "1 ended with exit code 7")])
def test_the_failure_that_explains_the_others_is_named(tmp_path, ends, expected):
    assert seen(tmp_path, *ends) == expected
