"""The contract of every engine. A test class inherits it, says how its engine is opened, and may widen tolerances:

    import pytest
    from exltune.testing.engines import EngineContract, OpenEngine
    from my_package.engine import MyEngine

    class TestMyEngine(EngineContract):
        tolerance = 2e-3  # scores in fp16

        @pytest.fixture
        def open_engine(self) -> OpenEngine:
            return MyEngine  # called with (model_dir, quants)

The engine is tried on tiny random models of three architectures: dense, mixture of experts, and one with biases, a tied
head, a sliding window and padded dims. Scores are held against whole models that transformers runs in fp32.
"""

from exltune.testing.engines.caches import CacheContract
from exltune.testing.engines.captures import CaptureContract
from exltune.testing.engines.quants import QuantContract
from exltune.testing.engines.scores import ScoreContract
from exltune.testing.engines.suite import EngineOf, OpenEngine


class EngineContract(ScoreContract, QuantContract, CacheContract, CaptureContract):
    """All of it; give `open_engine`, and `model` where the engine's runtime sees a tiny model in another way."""


__all__ = [
    "CacheContract",
    "CaptureContract",
    "EngineContract",
    "EngineOf",
    "OpenEngine",
    "QuantContract",
    "ScoreContract",
]
