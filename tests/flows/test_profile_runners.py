"""One profile, unchanged, by the command line: one process, two processes, and a Ray cluster of two nodes write the same tokens. Only
runtime settings differ, so the versions have the same identity too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rpt_core.store.workspace import Workspace
from tests.helpers import two_nodes

PROFILE = Path(__file__).with_name("runners.yaml")
SLOTS = ("score.filter", "score.difficulty")


def scored(folder, *sets):
    """Run the whole profile in a new workspace: by slot (version, content digests of the shards of `tokens`, runtime settings)."""
    given = [word for setting in sets for word in ("--set", setting)]
    environment = {**os.environ, "RPT_HOME": str(folder), "RPT_TRACKING": "off"}
    done = subprocess.run([sys.executable, "-m", "flows.cli", "run", "--profile", str(PROFILE), *given], env=environment,
                          capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr[-3000:]
    workspace, found = Workspace(folder), {}
    for slot in SLOTS:
        manifest = workspace.manifest(slot, workspace.current(slot))
        found[slot] = (manifest.version, [shard.content for shard in manifest.tables["tokens"]], manifest.runtime)
    return found


@pytest.mark.full
@pytest.mark.timeout(3000)
def test_one_worker_two_workers_and_a_cluster_of_two_nodes_write_the_same_tokens(tmp_path):
    found = {"one": scored(tmp_path / "one", "score.workers=1"), "two": scored(tmp_path / "two", "score.workers=2")}
    with two_nodes() as (nodes, _):
        found["ray"] = scored(tmp_path / "ray", "score.runner=ray", f"score.ray_address={nodes.address}")
    for slot in SLOTS:
        version, digests, _ = found["one"][slot]
        assert len(digests) > 8
        assert {name: one[slot][:2] for name, one in found.items()} == dict.fromkeys(found, (version, digests))
        ran = {name: (one[slot][2]["runner"], one[slot][2]["workers"]) for name, one in found.items()}
        assert ran == {"one": ("local", 1), "two": ("local", 2), "ray": ("ray", 0)}
