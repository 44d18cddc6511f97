"""Workers on a Ray cluster that keep their engines open; lost ones are replaced and their tasks run again."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from exltune.engines.base import Progress, runs_on_cpu
from exltune.engines.ray.options import AUTO, RayOptions
from exltune.engines.ray.worker import ScoreWorker, WorkerJob, WorkerPlace, WorkerQuant
from exltune.engines.tasks import ScoredTask, ScoreTask, TaskWatch
from exltune.errors import ExltuneError, UsageError, WorkerLostError
from exltune.schema.mix import Choice
from exltune.schema.score import Score

if TYPE_CHECKING:
    from torch import Tensor

_ATTEMPTS = 4
#: How long to wait for a cluster that has room for not even one worker.
_PATIENCE_SECONDS = 600.0


@dataclass
class _Worker:
    """An actor, where it runs once it is ready, and its task: None while it opens its engine."""

    actor: Any
    place: WorkerPlace | None = None
    task: ScoreTask | None = None


class Cluster:
    """Runs tasks on the workers of a cluster; a context manager that leaves the cluster when it ends.

    remark: is told of lost workers. quants: those that mixes may name; may grow. state_bytes: the most hidden states
    that a worker held since the last call began.
    Raises: UsageError without Ray or with nothing at the address, WorkerLostError for a task whose workers are lost
    again and again, and all that workers' engines raise.
    """

    def __init__(self, options: RayOptions, job: WorkerJob, remark: Callable[[str], None]) -> None:
        self.options, self.job, self.remark = options, job, remark
        self.quants: dict[Choice, WorkerQuant] = {}
        self.state_bytes = 0
        self._on_cpu, self._versions = runs_on_cpu(job.engine), job.versions(job.engine)
        self._ray = _import_ray()
        self._workers: dict[Any, _Worker] = {}
        self._idle: list[_Worker] = []

    def __enter__(self) -> Cluster:
        _connect(self._ray, self.options.address)
        try:
            for _ in range(self._room()):
                self._start_worker()
        except BaseException:
            self._ray.shutdown()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()

    def __len__(self) -> int:
        """Workers, those included that are not ready yet."""
        return len(self._workers) + len(self._idle)

    @property
    def places(self) -> list[WorkerPlace]:
        """Where the workers run that are ready."""
        workers = (*self._workers.values(), *self._idle)
        return [worker.place for worker in workers if worker.place is not None]

    def run(self, tasks: Sequence[ScoreTask], tokens: Tensor, progress: Progress) -> Iterator[ScoredTask]:
        """As RunsTasks.run_tasks, in the order in which they finish."""
        self.state_bytes = 0
        watch, rows = TaskWatch(tasks, progress), tokens.numpy()
        left, lost, done = deque(tasks), Counter[ScoreTask](), 0
        try:
            while done < len(tasks):
                while left and self._idle:
                    self._give(self._idle.pop(), left.popleft(), rows)
                worker, answer = self._next_answer(left, lost)
                task, worker.task = worker.task, None
                self._idle.append(worker)
                found = self._understood(worker, answer)
                if task is not None and found is not None:
                    done += 1
                    watch.finish(task, f"{len(self.places)} workers")
                    yield task, found
        finally:
            self._settle()

    def _settle(self) -> None:
        """Wait for tasks still under way where one has failed: nobody asks for its answer any more."""
        for reference, worker in [(ref, one) for ref, one in self._workers.items() if one.task is not None]:
            del self._workers[reference]
            worker.task = None
            try:
                self._ray.get(reference)
            except self._ray.exceptions.RayActorError:
                self._start_worker()
            else:
                self._idle.append(worker)

    def _next_answer(self, left: deque[ScoreTask], lost: Counter[ScoreTask]) -> tuple[_Worker, Any]:
        """The next worker that has opened its engine or finished a task; those that are lost meanwhile are replaced."""
        while True:
            ready, _ = self._ray.wait(list(self._workers), timeout=_PATIENCE_SECONDS if not self.places else None)
            if not ready:
                raise WorkerLostError(
                    f"the cluster has had no room for a worker for {_PATIENCE_SECONDS:.0f} seconds",
                    where=f"`ray` {self.options.address}",
                    fix="Look at `ray status`, or give another cluster",
                )
            worker = self._workers.pop(ready[0])
            try:
                answer = self._ray.get(ready[0])
            except self._ray.exceptions.RayActorError as error:
                self._replace(worker, error, left, lost)
                continue
            return worker, answer

    def _understood(self, worker: _Worker, answer: Any) -> list[Score] | None:
        """Scores, or None from a worker that is ready."""
        if isinstance(answer, ExltuneError):
            raise answer
        if isinstance(answer, WorkerPlace):
            if answer.versions != self._versions:
                raise UsageError(
                    f"the worker computes with {answer.versions}, and this machine with {self._versions}",
                    where=f"node {answer.host}",
                    fix="Install the same versions on all nodes",
                )
            worker.place = answer
            return None
        scores, state_bytes = answer
        self.state_bytes = max(self.state_bytes, state_bytes)
        return list(scores)

    def _give(self, worker: _Worker, task: ScoreTask, rows: npt.NDArray[np.int64]) -> None:
        worker.task = task
        self._workers[worker.actor.score.remote(task.mixes, rows[list(task.rows)], self.quants)] = worker

    def _replace(self, worker: _Worker, error: Exception, left: deque[ScoreTask], lost: Counter[ScoreTask]) -> None:
        """A lost worker's task comes next; a task that loses its workers again and again is given up."""
        reason = " ".join(str(error).split())
        where = "a node" if worker.place is None else f"node {worker.place.host}, process {worker.place.pid}"
        if worker.task is None:
            raise WorkerLostError(
                f"a worker died as it began: {reason}", where=where, fix="Look at the log of Ray there"
            )
        lost[worker.task] += 1
        if lost[worker.task] >= _ATTEMPTS:
            raise WorkerLostError(
                f"{_ATTEMPTS} workers were lost over the same mixes ({worker.task.mixes[0].name} and others), the "
                f"last one with: {reason}",
                where=where,
                fix="Mend the node (memory is the usual cause: `max_ram` bounds the states of each worker) and run "
                "the same command again: finished scores are kept",
            )
        self.remark(f"A worker was lost ({where}); its mixes run again")
        left.appendleft(worker.task)
        self._start_worker()

    def _start_worker(self) -> None:
        needs = {"num_cpus": self.options.cpus} if self._on_cpu else {"num_gpus": 1}
        actor = self._ray.remote(**needs)(ScoreWorker).remote(self.job)
        self._workers[actor.prepare.remote()] = _Worker(actor)

    def _room(self) -> int:
        """Workers that the cluster has room for. Raises: UsageError where it is not even one."""
        kind, each = ("CPU", self.options.cpus) if self._on_cpu else ("GPU", 1)
        have = self._ray.cluster_resources().get(kind, 0)
        if have < each:
            raise UsageError(
                f"the cluster has {have:g} {kind}s and a worker needs {each}",
                where=f"`ray` {self.options.address}",
                fix="Add nodes, or give smaller `ray_cpus`" if self._on_cpu else "Add nodes with GPUs",
            )
        return int(have // each)


def _import_ray() -> ModuleType:
    # Reports of use to Ray's makers are a user's own decision.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError("`ray` needs Ray, which is not installed", fix="pip install 'exltune[ray]'") from error
    return ray


def _connect(ray: ModuleType, address: str) -> None:
    """Join a cluster, or start one on this machine that ends with this process."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address == AUTO and isinstance(error, ConnectionError):
            # At Ray's own 15, anything else that runs on the machine starves the workers.
            os.environ.setdefault("RAY_worker_niceness", "0")
            ray.init(
                num_cpus=os.cpu_count(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                object_store_memory=_OBJECT_STORE_BYTES,
            )
            return
        raise UsageError(
            f"no Ray cluster answers there ({' '.join(str(error).split())})",
            where=f"`ray` {address}",
            fix="Start one with `ray start --head`, or give `ray` auto",
        ) from error


#: Tokens and scores are all that is in it.
_OBJECT_STORE_BYTES = 100 << 20
