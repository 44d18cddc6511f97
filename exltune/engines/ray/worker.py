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
from exltune.errors import ExltuneError, QuantMismatchError
from exltune.inventory import model_fingerprint
from exltune.schema.mix import Choice, Mix
from exltune.schema.score import Score


@dataclass(frozen=True)
class WorkerJob:
    """Opened by each worker; the paths must be the same on all nodes, and so must be their content.

    model_sha256: fingerprint of the model directory. versions: engine name -> what it computes with, in words.
    """

    engine: str
    model: Path
    model_sha256: str
    resources: Resources
    versions: Callable[[str], str]


@dataclass(frozen=True)
class WorkerQuant:
    """A directory that mixes may name, and its fingerprint where the scores are kept."""

    path: Path
    sha256: str


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
        self._quants: dict[Choice, WorkerQuant] = {}

    def prepare(self) -> WorkerPlace | ExltuneError:
        """Open the engine."""
        try:
            _check_content(self.job.model, self.job.model_sha256)
            name = self._open().name
        except ExltuneError as error:
            return error
        return WorkerPlace(os.getpid(), socket.gethostname(), self.job.versions(name))

    def score(
        self, mixes: Sequence[Mix], tokens: npt.NDArray[np.int64], quants: Mapping[Choice, WorkerQuant]
    ) -> tuple[list[Score], int] | ExltuneError:
        """Scores of mixes on tokens (rows, T) and the bytes of states that were held. quants: all that are known."""
        import torch

        try:
            engine = self._open()
            self._add(engine, quants)
            scores = engine.score(mixes, torch.from_numpy(np.array(tokens)))
        except ExltuneError as error:
            return error
        return scores, engine.stats.state_bytes

    def _add(self, engine: Engine, quants: Mapping[Choice, WorkerQuant]) -> None:
        """Let mixes name directories that are new here. Raises: QuantMismatchError."""
        for choice, quant in quants.items():
            if self._quants.get(choice) != quant:
                _check_content(quant.path, quant.sha256)
                engine.add_quants({choice: quant.path})
                self._quants[choice] = quant

    def _open(self) -> Engine:
        if self._engine is None:
            self._engine = open_engine(self.job.engine, self.job.model, None, self.job.resources)
        return self._engine


def _check_content(directory: Path, sha256: str) -> None:
    """Scores go under the content that the driver has read: another directory of that name would be taken for it."""
    if model_fingerprint(directory) != sha256:
        raise QuantMismatchError(
            "it is not the same on this node as where the scores are kept",
            where=f"node {socket.gethostname()}: {directory}",
            fix="Copy the directory to all nodes again",
        )
