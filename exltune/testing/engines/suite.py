"""Shared by the parts of an engine's contract: tolerances, fixtures, and how scores are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from exltune.engines import Engine
from exltune.schema.mix import Choice
from exltune.schema.score import Score
from exltune.testing.tiny_models import CONFIGS, VOCAB, TinyModel, make_tiny_model

#: Opens the engine on a model directory and its base quants; a class of an engine is one.
OpenEngine = Callable[[Path, Mapping[Choice, Path]], Engine]

#: The same on a tiny model.
EngineOf = Callable[[TinyModel], Engine]

#: Largest effect of one token at another expert on a row's mean, in nats/token.
_STRAY = 0.2

#: A linear of the first layer of the tiny Glm4Moe, which is dense.
DOWN = "model.layers.0.mlp.down_proj"


class EngineSuite:
    """Tolerances are absolute, per token, in nats; the defaults are those of an engine that is exact in fp32."""

    #: From whole models in fp32.
    tolerance = 1e-6
    #: The same of the likelihood alone, which the reference model's own rounding moves too.
    nll_tolerance = 2e-6
    #: The same for rows where a rounding error moved a key or a value of the cache by a step, and for most rows.
    cache_tolerance, cache_median = 1e-3, 1e-6
    #: Share of positions where two nearly equal logits may change places.
    flips = 0.0
    #: Rows in which rounding may send a token to another expert.
    stray_rows = 0
    #: Of Hessians, which are sums over tokens: relative, and absolute.
    hessian_rtol, hessian_atol = 1e-5, 1e-3
    #: Tokens of an expert that rounding may send elsewhere.
    strays = 0

    @pytest.fixture
    def open_engine(self) -> OpenEngine:
        """How the engine is opened, called as often as a test likes; to be given."""
        raise NotImplementedError("give the fixture open_engine: it returns (model_dir, quants) -> Engine")

    @pytest.fixture
    def engine_of(self, open_engine: OpenEngine) -> EngineOf:
        """The engine on a tiny model."""
        return lambda model: open_engine(model.path, model.quants)

    @pytest.fixture(scope="class", params=sorted(CONFIGS))
    @classmethod
    def tiny_model(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
        """Each of the tiny random models, with quants "2" and "3"; read only."""
        return make_tiny_model(tmp_path_factory.mktemp(request.param), CONFIGS[request.param])

    @pytest.fixture(scope="class")
    @classmethod
    def tiny_moe(cls, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
        """The tiny Glm4Moe alone (dense first layer, shared expert, 4 routed experts); read only."""
        return make_tiny_model(tmp_path_factory.mktemp("moe"), CONFIGS["glm4moe"])

    @pytest.fixture
    def model(self, tiny_model: TinyModel) -> TinyModel:
        """Each of the tiny models, as the engine's runtime knows it."""
        return tiny_model

    @pytest.fixture
    def tokens(self) -> Tensor:
        """(6, 20) random ids."""
        return torch.randint(0, VOCAB, (6, 20), generator=torch.Generator().manual_seed(1))

    def assert_close(self, found: Score, expected: Score) -> None:
        """Two scores of one content by one engine agree."""
        for field in ("kl_ref_mix", "kl_mix_ref", "nll"):
            torch.testing.assert_close(per_token(found, field), per_token(expected, field), rtol=0, atol=1e-6)
        assert found.top_k == expected.top_k

    def assert_near(self, score: Score, expected: Mapping[str, Tensor], *fields: str) -> None:
        """A score agrees with row sums (rows,) of whole models."""
        for field in fields:
            tolerance = self.nll_tolerance if field == "nll" else self.tolerance
            errors = (per_token(score, field) - expected[field] / score.positions).abs()
            assert int((errors > tolerance).sum()) <= self.stray_rows
            assert float(errors.max()) <= (_STRAY if self.stray_rows else tolerance)

    def assert_sums(self, found: Tensor, expected: Tensor) -> None:
        """A Hessian agrees with the sum over inputs, element by element."""
        torch.testing.assert_close(found, expected, rtol=self.hessian_rtol, atol=self.hessian_atol)

    def assert_close_but_for_steps(self, found: Tensor, expected: Tensor) -> None:
        """Two fields per token (rows,) agree, in most rows as if nothing had been rounded."""
        error = (found - expected).abs()
        assert float(error.median()) < self.cache_median
        assert float(error.max()) < self.cache_tolerance


def per_token(score: Score, field: str) -> Tensor:
    """A field of a score per position, (rows,) or (5, rows)."""
    return torch.tensor(getattr(score, field), dtype=torch.float64) / score.positions
