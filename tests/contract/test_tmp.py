from __future__ import annotations
from collections.abc import Iterator
from functools import partial
import pytest, torch
from exltune.engines.exllamav3.engine import ExllamaEngine
from exltune.testing.engines import OpenEngine
from tests.contract.test_exllamav3_engine_contract import TestExllamaEngine as Base
from tests.standin.hook import install
install()
from tests.standin.pretend import cards

class TestCards(Base):
    @pytest.fixture
    def open_engine(self) -> Iterator[OpenEngine]:
        with cards(2):
            yield partial(ExllamaEngine, devices=[1])
