"""Scoring on a Ray cluster: the rows of the local runner whatever the cluster does, and a node that is lost costs its shards only.

The cluster is two nodes on this machine's loopback that the test starts, each a process tree of its own."""

import os
import time
from pathlib import Path

import pytest

from rpt_core.store import cluster
from rpt_core.store.errors import UserError
from rpt_core.store.events import read_events
from rpt_core.store.stage import execute
from rpt_core.store.workspace import Workspace
from rpt_core.tokens.score_config import STAGE, ScoreConfig
from tests.helpers import commit_table, two_nodes
from tests.tokens import small
from tests.tokens.test_score import TEXTS, documents, settings

ROOM_SECONDS = 15.0  # a loaded machine takes several to start an actor
MANY = [f"{text} {number}" for number in range(4) for text in TEXTS if text]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.save_small_model(tmp_path_factory.mktemp("model"), small.byte_level())


@pytest.fixture
def world(tmp_path, model, monkeypatch):
    """A function that makes a workspace of the same documents."""
    monkeypatch.setenv("RPT_SOURCES", str(model))

    def make(name):
        workspace = Workspace(tmp_path / name)
        commit_table(workspace, "ingest", {"documents": documents(MANY)})
        return workspace

    return make


def digest(outcome):
    return outcome.manifest.tables["tokens"], [shard.content for shard in outcome.manifest.tables["tokens"]]


def local(world, model, workers):
    return execute(STAGE, settings(model, workers=workers), world(f"local-{workers}"))


def test_without_ray_the_runner_says_what_to_install(world, model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"which is not installed: pip install 'rpt\[ray\]', or set the runner to local"):
        execute(STAGE, settings(model, runner="ray"), world("none"))


def test_the_runner_does_not_change_the_identity():
    assert ScoreConfig(runner="ray", ray_address="auto").semantic_values() == ScoreConfig().semantic_values()


@pytest.mark.full
def test_one_worker_two_workers_and_a_cluster_that_loses_a_node_write_the_same_rows(world, model, monkeypatch):
    one, two = local(world, model, 1), local(world, model, 2)
    with two_nodes() as (nodes, both):
        workspace, killed = world("ray"), []
        whole = cluster._Pool.run

        def losing_a_node(pool, jobs):
            for done in whole(pool, jobs):
                yield done
                if not killed:
                    busy = next(actor.node for actor in pool.waiting.values() if actor.job)
                    killed.append(busy)
                    nodes.remove_node(next(node for node in both if node.node_id == busy), allow_graceful=False)

        monkeypatch.setattr(cluster._Pool, "run", losing_a_node)
        found = execute(STAGE, settings(model, runner="ray", ray_address=nodes.address), workspace)
    assert killed
    assert len(found.manifest.tables["tokens"]) > 4
    assert digest(found) == digest(one) == digest(two)
    assert found.manifest.counts == one.manifest.counts
    folder = workspace.version_folder(found.manifest.slot, found.manifest.version)
    said = [event["data"]["text"] for event in read_events(folder / "events.jsonl") if event["type"] == "message"]
    assert sum("is tried again" in text for text in said) == 1, said  # the shard that was under way there, and no other


class Fails:
    """A worker that cannot do job 3 on the first node that tries it, refuses job 99, and ends its process at job 77."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def work(self, job):
        import ray

        here = ray.get_runtime_context().get_node_id()
        if job == 99:
            raise UserError("job 99 is refused.")
        if job == 77:
            os._exit(1)
        if job == 3:
            mark = self.folder / "failed-on"
            if not mark.exists():
                mark.write_text(here)
                raise OSError("a bad disk")
            assert mark.read_text() != here
        return here


@pytest.mark.full
def test_a_job_that_failed_is_done_by_another_node_and_a_refusal_is_the_users(tmp_path):
    with two_nodes() as (nodes, _):
        arguments = (f"{__name__}:Fails", (str(tmp_path),), cluster.Demand(), nodes.address)
        done = dict(cluster.fan_out(list(range(8)), *arguments))
        assert sorted(done) == list(range(8))
        assert (tmp_path / "failed-on").exists()
        with pytest.raises(UserError, match=r"^job 99 is refused\.$"):
            list(cluster.fan_out([1, 99], *arguments))
        with pytest.raises(UserError, match=r"job 1 was under way on 3 workers of the Ray cluster that were lost"):
            list(cluster.fan_out([1, 77, 2], *arguments))


class Slow:
    """A worker that takes longer to be made than a run waits for room."""

    def __init__(self):
        time.sleep(ROOM_SECONDS + 5)

    def work(self, job):
        return job


@pytest.mark.full
def test_a_model_that_loads_slowly_is_waited_for_and_a_worker_without_room_is_not(monkeypatch):
    monkeypatch.setattr(cluster, "ALONE_SECONDS", ROOM_SECONDS)
    with two_nodes() as (nodes, _):
        assert dict(cluster.fan_out([5], f"{__name__}:Slow", (), cluster.Demand(), nodes.address)) == {0: 5}
        with pytest.raises(UserError, match="no node with 2 CPUs and 0 GPUs for a worker"):
            list(cluster.fan_out([5], f"{__name__}:Slow", (), cluster.Demand(cpus=2), nodes.address))
        with cluster.connected(nodes.address) as ray:
            holders = [ray.remote(num_cpus=1)(Slow).remote() for _ in range(2)]
            assert [ray.get(holder.work.remote(1), timeout=120) for holder in holders] == [1, 1]
            with pytest.raises(UserError, match="has had no room for a worker for 15 seconds"):
                list(cluster.fan_out([5], f"{__name__}:Slow", (), cluster.Demand(), nodes.address))


def test_a_wrong_token_is_named(monkeypatch):
    ray = pytest.importorskip("ray")

    def refuses(**_):
        raise ray.exceptions.AuthenticationError("InvalidAuthToken: the token is another")

    monkeypatch.setattr(ray, "init", refuses)
    with pytest.raises(UserError, match=r"head:6379 takes no connection without its token; set RAY_AUTH_TOKEN or .* InvalidAuthToken"):
        with cluster.connected("head:6379"):
            pass
