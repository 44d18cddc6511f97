"""An engine of your own, and the contract that every engine keeps: `exltune.testing` ships its tests.

Usage: python examples/04_own_engine.py, or pytest examples/04_own_engine.py
In a package of yours, pyproject.toml makes it known, and `--engine logged` or engine="logged" takes it:

    [project.entry-points."exltune.engines"]
    logged = "my_package.engine:LoggedEngine"
"""

import logging
import subprocess
import sys
from collections.abc import Sequence

import pytest
from torch import Tensor

from exltune.engines.base import Progress
from exltune.engines.reference.engine import ReferenceEngine
from exltune.schema.mix import Mix
from exltune.schema.score import Score
from exltune.testing.engines import OpenEngine, ScoreContract


class LoggedEngine(ReferenceEngine):
    """The engine of the CPU, which also logs what every call cost."""

    name = "logged"

    def score(self, mixes: Sequence[Mix], tokens: Tensor, progress: Progress | None = None) -> list[Score]:
        scores = super().score(mixes, tokens, progress)
        seconds, forwards = self.stats.total_seconds, self.stats.layer_forwards
        logging.getLogger("my_package").info("%d mixes: %d layers in %.1f s", len(mixes), forwards, seconds)
        return scores


class TestLoggedEngine(ScoreContract):
    """What scores must be; EngineContract has the rest too: quants, caches, Hessians."""

    @pytest.fixture
    def open_engine(self) -> OpenEngine:
        return LoggedEngine


if __name__ == "__main__":
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", __file__, *sys.argv[1:]]))
