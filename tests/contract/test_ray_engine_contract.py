"""The Ray engine keeps the contract of the engine that it wraps, as far as scores go."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from exltune.engines import Resources
from exltune.engines.ray.engine import RayEngine
from exltune.engines.ray.options import RayOptions
from exltune.engines.reference.engine import ReferenceEngine
from exltune.engines.tasks import RunsTasks, ScoreTask, run_tasks
from exltune.errors import QuantMismatchError, UsageError
from exltune.store.identity import scoring_versions
from exltune.testing.engines import OpenEngine
from exltune.testing.engines.mixes import uniform
from exltune.testing.engines.scores import ScoreContract
from exltune.testing.tiny_models import TinyModel

pytestmark = pytest.mark.slow


class TestRayEngine(ScoreContract):
    """On two workers of a cluster of its own; everything but scores is the inner engine's."""

    #: Workers split a call, so prefixes are shared within their parts alone.
    test_single_swaps_share_their_prefixes = None

    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls) -> Iterator[dict[Path, RayEngine]]:
        """Engines by model, so that workers start once."""
        engines: dict[Path, RayEngine] = {}
        yield engines
        for engine in engines.values():
            engine.__exit__(None, None, None)

    @pytest.fixture
    def open_engine(self, opened: dict[Path, RayEngine]) -> OpenEngine:
        def opener(model_dir: Path, quants: dict[str, Path]) -> RayEngine:
            if model_dir not in opened:
                inner = ReferenceEngine(model_dir, {})
                opened[model_dir] = RayEngine(inner, Resources(), RayOptions(), scoring_versions)
            opened[model_dir].add_quants(quants)
            return opened[model_dir]

        return opener

    @pytest.fixture
    def model(self, tiny_moe: TinyModel) -> TinyModel:
        """One model: what others compute is the inner engine's business."""
        return tiny_moe

    def test_tasks_come_as_they_are_done_and_bit_for_bit(
        self, tiny_moe: TinyModel, open_engine: OpenEngine, tokens: torch.Tensor
    ) -> None:
        engine = open_engine(tiny_moe.path, tiny_moe.quants)
        plain = ReferenceEngine(tiny_moe.path, tiny_moe.quants)
        assert isinstance(engine, RunsTasks)
        groups = [group.id for group in engine.inventory.groups]
        mixes = [uniform(tiny_moe, "16", **{group: "2"}) for group in groups[:4]]
        tasks = [ScoreTask((mix,), rows) for mix in mixes for rows in ((0, 1, 2), (3, 4, 5))]
        found = dict(run_tasks(engine, tasks, tokens, lambda done, total, what: None))
        expected = dict(run_tasks(plain, tasks, tokens, lambda done, total, what: None))
        assert sorted(map(id, found)) == sorted(map(id, tasks))
        assert found == expected

    def test_workers_go_on_after_a_task_that_failed(
        self, tiny_moe: TinyModel, open_engine: OpenEngine, tokens: torch.Tensor
    ) -> None:
        engine = open_engine(tiny_moe.path, tiny_moe.quants)
        good, bad = uniform(tiny_moe, "2"), uniform(tiny_moe, "7")
        with pytest.raises(UsageError, match="choices without a quant"):
            engine.score([good, bad, uniform(tiny_moe, "3")], tokens)
        assert engine.score([good], tokens)[0].mix == good.name

    def test_a_directory_that_is_another_one_on_a_node_is_refused(
        self, tiny_moe: TinyModel, open_engine: OpenEngine, tokens: torch.Tensor, tmp_path: Path
    ) -> None:
        engine = open_engine(tiny_moe.path, tiny_moe.quants)
        stale = tmp_path / "stale"
        shutil.copytree(tiny_moe.quants["2"], stale)
        engine.add_quants({"stale": stale})
        shutil.rmtree(stale)
        shutil.copytree(tiny_moe.quants["3"], stale)
        with pytest.raises(QuantMismatchError, match="not the same on this node"):
            engine.score([uniform(tiny_moe, "stale")], tokens)
        engine.add_quants({"stale": stale})
        found, expected = engine.score([uniform(tiny_moe, "stale"), uniform(tiny_moe, "3")], tokens)
        assert found.nll == expected.nll
