"""Work spread over a Ray cluster: one actor per GPU or per core loads what it needs once and then does one job after the other.

A job whose actor or node is lost goes to another; a job that failed goes to another node where there is one. Results lie on shared
storage, so a job only says that it is done. Ray is an extra (`pip install rpt[ray]`) and is imported when work begins."""

import importlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from rpt_core.store.errors import UserError

logger = logging.getLogger("rpt")

TRIES = 3  # of one job, on as many actors
ELSEWHERE_SECONDS = 60.0  # a failed job waits so long for another node
ALONE_SECONDS = 300.0  # without an actor that found room before the run gives up


@dataclass(frozen=True)
class Demand:
    """What one actor holds, and how many actors there may be (0: as many as the cluster has room for)."""

    cpus: int = 1
    gpus: int = 0
    workers: int = 0


def demand_of(ray: Any, device: str, threads: int, workers: int = 0) -> tuple[Demand, Literal["cuda", "cpu"]]:
    """What an actor needs for a stage's ``device`` (auto, cpu or cuda) and ``threads`` on a connected cluster, and the device it then has:
    with auto a GPU where the cluster has any."""
    gpu = device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1)
    return Demand(max(1, threads), int(gpu), workers), "cuda" if gpu else "cpu"


@dataclass
class _Job:
    number: int
    job: Any
    failures: int = 0
    avoid: set[str] = field(default_factory=set)  # nodes where it failed
    free_again: float = 0.0  # when such a node may have it after all, on the monotonic clock


@dataclass
class _Actor:
    handle: Any
    node: str = ""  # known once it found room there
    job: _Job | None = None


def fan_out(jobs: Sequence[Any], worker: str, arguments: Sequence[Any], demand: Demand, address: str = "",
            tell: Callable[[str], None] = logger.info) -> Iterator[tuple[int, Any]]:
    """Yield (index of a job, what it returned) as jobs end. ``worker`` is "module:class"; each actor makes ``class(*arguments)`` and
    calls its ``work(job)``. ``address`` is a cluster's ("auto", host:port); blank takes RAY_ADDRESS, or starts Ray on this machine.

    A UserError of a worker is raised as it is; another error after TRIES tries."""
    if jobs:
        with connected(address) as ray:
            yield from _Pool(ray, worker, arguments, demand, tell).run([_Job(number, job) for number, job in enumerate(jobs)])


class _Pool:
    def __init__(self, ray: Any, worker: str, arguments: Sequence[Any], demand: Demand, tell: Callable[[str], None]):
        self.ray, self.demand, self.tell = ray, demand, tell
        self.remote = ray.remote(num_cpus=demand.cpus, num_gpus=demand.gpus, max_restarts=0, max_concurrency=1)(_Worker)
        self.arguments = (worker, tuple(arguments))
        self.room = self.lost = 0  # workers to begin with; workers lost since the last job was done
        self.waiting: dict[Any, _Actor] = {}  # by the reference that is awaited: of finding room, of being ready, or of a job

    def run(self, jobs: list[_Job]) -> Iterator[tuple[int, Any]]:
        queue, left = deque(jobs), len(jobs)
        try:
            self.room = self._room(left)
            for _ in range(self.room):
                self._start()
            seen = time.monotonic()
            while left:
                ready, _ = self.ray.wait(list(self.waiting), num_returns=1, timeout=1.0)
                for reference in ready:
                    seen = time.monotonic()
                    done = self._heard(reference, queue)
                    if done:
                        left -= 1
                        yield done
                if not any(actor.node for actor in self.waiting.values()) and time.monotonic() - seen > ALONE_SECONDS:
                    raise UserError(f"the Ray cluster has had no room for a worker for {ALONE_SECONDS:.0f} seconds "
                                    f"({self.demand.cpus} CPUs, {self.demand.gpus} GPUs each); what is finished is kept.")
        finally:
            for actor in self.waiting.values():
                self.ray.kill(actor.handle)

    def _room(self, jobs: int) -> int:
        there = sum(self._fit(node["Resources"]) for node in self.ray.nodes() if node["Alive"])
        if not there:
            raise UserError(f"the Ray cluster has no node with {self.demand.cpus} CPUs and {self.demand.gpus} GPUs for a worker.")
        return max(1, min(self.demand.workers or there, there, jobs))

    def _fit(self, node: dict[str, float]) -> int:
        """Workers that a node with these resources holds."""
        asked = {"CPU": self.demand.cpus, "GPU": self.demand.gpus}
        return min(int(node.get(kind, 0)) // number for kind, number in asked.items() if number)

    def _start(self) -> None:
        handle = self.remote.remote(*self.arguments)
        self.waiting[handle.place.remote()] = _Actor(handle)

    def _heard(self, reference: Any, queue: deque[_Job]) -> tuple[int, Any] | None:
        """What an actor has said: where it is, that it is ready, or a job's end. (number, result) of a job that is done."""
        actor = self.waiting.pop(reference)
        job, actor.job = actor.job, None
        done = None
        try:
            value = self.ray.get(reference)
            if not actor.node:
                actor.node = value
                self.waiting[actor.handle.open.remote()] = actor
                return None
            if job:
                done, self.lost = (job.number, value), 0
        except self.ray.exceptions.RayTaskError as error:
            self._failed(job, actor.node, error.cause if isinstance(error.cause, Exception) else error, queue)
        except self.ray.exceptions.RayActorError as error:
            self.lost += 1
            if self.lost > TRIES * self.room:
                raise UserError(f"{self.lost} workers of the Ray cluster were lost one after the other, most likely for lack of memory; "
                                "what is finished is kept.") from error
            if job:
                self._failed(job, "", error, queue)
            self._start()  # waits for room, elsewhere where its node is gone
            return None
        self._give(actor, queue)
        return done

    def _give(self, actor: _Actor, queue: deque[_Job]) -> None:
        """The next job that has not failed on the actor's node; one that has, where for a while no other node has taken it."""
        elsewhere, now = any(other.node != actor.node for other in self.waiting.values()), time.monotonic()
        chosen = next((job for job in queue if actor.node not in job.avoid or not elsewhere or now > job.free_again), None)
        if chosen:
            queue.remove(chosen)
            actor.job = chosen
            self.waiting[actor.handle.work.remote(chosen.job)] = actor
        else:
            self.waiting[actor.handle.rest.remote()] = actor

    def _failed(self, job: _Job | None, node: str, error: Exception, queue: deque[_Job]) -> None:
        if isinstance(error, UserError) or job is None:
            raise error
        job.failures += 1
        if node:
            job.avoid.add(node)
            job.free_again = time.monotonic() + ELSEWHERE_SECONDS
        if job.failures >= TRIES and not node:
            raise UserError(f"job {job.number} was under way on {TRIES} workers of the Ray cluster that were lost, most likely for lack of "
                            "memory; what is finished is kept.") from error
        if job.failures >= TRIES:
            raise error
        self.tell(f"job {job.number} failed ({type(error).__name__}: {' '.join(str(error).split())[:200]}) and is tried again.")
        queue.appendleft(job)


class _Worker:
    """Runs in an actor's process."""

    def __init__(self, worker: str, arguments: tuple[Any, ...]):
        self.made: tuple[str, tuple[Any, ...]] = (worker, arguments)
        self.worker: Any = None

    def place(self) -> str:
        """The id of the node that had room."""
        import ray  # pyright: ignore[reportMissingImports]

        return ray.get_runtime_context().get_node_id()

    def open(self) -> None:
        """Make the worker, which may take minutes; not in the constructor, whose errors Ray tells as the actor's death."""
        worker, arguments = self.made
        module, name = worker.split(":")
        self.worker = getattr(importlib.import_module(module), name)(*arguments)

    def rest(self) -> None:
        """Nothing to do for a while: a job may yet come back."""
        time.sleep(0.5)

    def work(self, job: Any) -> Any:
        return self.worker.work(job)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster; what was not connected before is not afterwards."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("the runner ray needs Ray, which is not installed: pip install 'rpt[ray]', or set the runner to local.") from None
    import ray.exceptions  # pyright: ignore[reportMissingImports]

    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address=address or None, log_to_driver=False, include_dashboard=None if address else False, logging_level=logging.ERROR)
    except ray.exceptions.AuthenticationError as error:
        raise UserError(f"the Ray cluster {address or 'of this machine'} takes no connection without its token; set RAY_AUTH_TOKEN or "
                        f"RAY_AUTH_TOKEN_PATH to what its head has. {str(error).splitlines()[0]}") from None
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"the Ray cluster {address or 'of this machine'} cannot be reached: {str(error).splitlines()[0]}") from None
    try:
        yield ray
    finally:
        ray.shutdown()
