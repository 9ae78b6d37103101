"""One profile, unchanged: one process, two processes, and a Ray cluster of two nodes write the same tokens. Only runtime settings differ,
so the versions have the same identity too."""

from pathlib import Path

import pytest

from flows.profile import configure, load_profile, override
from rpt_core.store.stage import execute
from rpt_core.store.workspace import Workspace
from tests.helpers import two_nodes

PROFILE = Path(__file__).with_name("runners.yaml")
SLOTS = ("score.filter", "score.difficulty")


def scored(folder, settings):
    """Run the whole profile in a new workspace: by slot (version, content digests of the shards of `tokens`, runtime settings)."""
    profile, workspace = override(load_profile(str(PROFILE)), settings), Workspace(folder)
    manifests = {slot: execute(*configure(profile, slot), workspace).manifest for slot in profile.slots}
    return {slot: (manifests[slot].version, [shard.content for shard in manifests[slot].tables["tokens"]], manifests[slot].runtime)
            for slot in SLOTS}


@pytest.mark.full
def test_one_worker_two_workers_and_a_cluster_of_two_nodes_write_the_same_tokens(tmp_path):
    found = {"one": scored(tmp_path / "one", {"score.workers": 1}), "two": scored(tmp_path / "two", {"score.workers": 2})}
    with two_nodes() as (nodes, _):
        found["ray"] = scored(tmp_path / "ray", {"score.runner": "ray", "score.ray_address": nodes.address})
    for slot in SLOTS:
        version, digests, _ = found["one"][slot]
        assert len(digests) > 8
        assert {name: one[slot][:2] for name, one in found.items()} == dict.fromkeys(found, (version, digests))
        ran = {name: (one[slot][2]["runner"], one[slot][2]["workers"]) for name, one in found.items()}
        assert ran == {"one": ("local", 1), "two": ("local", 2), "ray": ("ray", 0)}
