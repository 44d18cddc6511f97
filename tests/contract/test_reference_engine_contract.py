"""The reference engine keeps the engine contract."""

from __future__ import annotations

import pytest

from exltune.engines.reference.engine import ReferenceEngine
from exltune.testing.engines import EngineContract, OpenEngine


class TestReferenceEngine(EngineContract):
    """Exact, on any machine."""

    @pytest.fixture
    def open_engine(self) -> OpenEngine:
        return ReferenceEngine
