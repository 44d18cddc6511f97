"""The actor in a Ray worker: an engine that stays open, so that its layers stay warm from task to task."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from exltune.engines.base import Engine, Resources, open_engine
from exltune.errors import ExltuneError
from exltune.schema.mix import Choice, Mix
from exltune.schema.score import Score


@dataclass(frozen=True)
class WorkerJob:
    """The engine that a worker opens; the paths must be the same on all nodes. versions: tells an engine's versions."""

    engine: str
    model: Path
    resources: Resources
    versions: Callable[[str], str]


@dataclass(frozen=True)
class WorkerPlace:
    """Where a worker runs, and its engine's versions."""

    pid: int
    host: str
    versions: str


class ScoreWorker:
    """An actor: one engine on one GPU, or on some cores.

    An error that a user can mend is returned rather than raised: Ray would wrap it in a trace of its own.
    """

    def __init__(self, job: WorkerJob) -> None:
        self.job = job
        self._engine: Engine | None = None

    def prepare(self) -> WorkerPlace | ExltuneError:
        """Open the engine."""
        try:
            name = self._open().name
        except ExltuneError as error:
            return error
        return WorkerPlace(os.getpid(), socket.gethostname(), self.job.versions(name))

    def score(
        self, mixes: Sequence[Mix], tokens: npt.NDArray[np.int64], quants: Mapping[Choice, Path]
    ) -> tuple[list[Score], int] | ExltuneError:
        """Scores of mixes on tokens (rows, T) and the bytes of states that were held. quants: all that are known."""
        import torch

        try:
            engine = self._open()
            engine.add_quants(quants)
            scores = engine.score(mixes, torch.from_numpy(np.array(tokens)))
        except ExltuneError as error:
            return error
        return scores, engine.stats.state_bytes

    def _open(self) -> Engine:
        if self._engine is None:
            self._engine = open_engine(self.job.engine, self.job.model, None, self.job.resources)
        return self._engine
