"""A process that runs one slot of a profile, to be killed from outside: python -m tests.faults.child WORKSPACE PROFILE SLOT"""

import sys

from flows.profile import configure, load_profile
from rpt_core.store.stage import execute
from rpt_core.store.workspace import Workspace


def main(workspace: str, profile: str, slot: str) -> None:
    stage, config = configure(load_profile(profile), slot)
    outcome = execute(stage, config, Workspace(workspace))
    print(outcome.manifest.version)


if __name__ == "__main__":
    main(*sys.argv[1:])
