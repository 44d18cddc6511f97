"""The reference engine keeps the engine contract."""

from __future__ import annotations

import pytest
from engine_contract import EngineContract, Open

from exltune.engines import open_engine


class TestReferenceEngine(EngineContract):
    """Exact, on any machine."""

    @pytest.fixture
    def open_engine(self) -> Open:
        return lambda model: open_engine("reference", model.path, model.quants)
