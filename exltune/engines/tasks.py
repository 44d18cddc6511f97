"""Work for an engine in tasks, each of which is done, and kept, by itself; an engine may run several at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from exltune.engines.base import Engine, Progress
from exltune.schema.mix import Mix
from exltune.schema.score import Score

if TYPE_CHECKING:
    from torch import Tensor

#: Progress of a task is told in thousandths of its passes over a row.
_FINE = 1000


@dataclass(frozen=True, eq=False)
class ScoreTask:
    """Mixes to score on some rows of a token set, by their numbers; their states fit into memory together."""

    mixes: tuple[Mix, ...]
    rows: tuple[int, ...]

    @property
    def passes(self) -> int:
        """Cost in passes over one row, if no prefixes were shared."""
        return len(self.mixes) * len(self.rows)


#: A task and its mixes' scores, in their order.
ScoredTask = tuple[ScoreTask, list[Score]]


@runtime_checkable
class RunsTasks(Protocol):
    """An engine that runs several tasks at once."""

    def parallel(self) -> int:
        """How many."""
        ...

    def run_tasks(self, tasks: Sequence[ScoreTask], tokens: Tensor, progress: Progress) -> Iterator[ScoredTask]:
        """Scores of tasks on their rows of tokens (rows, T), in any order, each as soon as it is done.

        Raises: as Engine.score.
        """
        ...


def run_tasks(engine: Engine, tasks: Sequence[ScoreTask], tokens: Tensor, progress: Progress) -> Iterator[ScoredTask]:
    """Scores of tasks, as RunsTasks.run_tasks; one after another where the engine runs one at a time."""
    if isinstance(engine, RunsTasks):
        yield from engine.run_tasks(tasks, tokens, progress)
        return
    watch = TaskWatch(tasks, progress)
    for task in tasks:
        scores = engine.score(task.mixes, tokens[list(task.rows)], watch.part(task))
        watch.finish(task, "")
        yield task, scores


class TaskWatch:
    """Progress over tasks of different cost."""

    def __init__(self, tasks: Iterable[ScoreTask], progress: Progress) -> None:
        self.progress, self.done = progress, 0
        self.total = _FINE * sum(task.passes for task in tasks)
        progress(0, max(1, self.total), "")

    def part(self, task: ScoreTask) -> Progress:
        """Progress of a task under way."""
        share = _FINE * task.passes
        return lambda done, total, what: self.progress(self.done + share * done // max(1, total), self.total, what)

    def finish(self, task: ScoreTask, what: str) -> None:
        """Count a task as done."""
        self.done += _FINE * task.passes
        self.progress(self.done, self.total, what)
