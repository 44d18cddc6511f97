"""The exllamav3 engine keeps the contract: on CUDA under `pytest -m gpu`, else on the stand-in for its extension."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from exltune.engines.exllamav3.engine import ExllamaEngine
from exltune.testing.engines import EngineContract, OpenEngine
from exltune.testing.tiny_models import TinyModel
from tests.standin.devices import exllamav3_devices

pytestmark = pytest.mark.gpu


class TestExllamaEngine(EngineContract):
    """Scores in fp16: as near to whole models in fp32 as the rounding of weights and activations allows."""

    tolerance = 2e-3
    nll_tolerance = 5e-3
    #: fp16 moves keys and values by a step in every row; the values of a step are tested in test_exllamav3_cache.py.
    #: Attention that rounds its scores to fp16, as kernels of cards may, moves the median of three bits to 0.021.
    cache_tolerance, cache_median = 0.2, 0.04
    flips = 0.05
    stray_rows = 1
    hessian_rtol, hessian_atol = 5e-3, 0.2
    strays = 1

    @pytest.fixture
    def model(self, tiny_model: TinyModel, tmp_path: Path) -> TinyModel:
        """exllamav3 runs Qwen2 without its sliding window, in which transformers would see less."""
        return without_window(tiny_model, tmp_path / "model")

    @pytest.fixture
    def open_engine(self) -> OpenEngine:
        return partial(ExllamaEngine, devices=exllamav3_devices()[:1])


def without_window(model: TinyModel, out: Path) -> TinyModel:
    """The same model and quants, attending to everything."""
    if not json.loads((model.path / "config.json").read_text()).get("use_sliding_window"):
        return model
    quants = {choice: _seeing_all(path, out / choice) for choice, path in model.quants.items()}
    return replace(model, path=_seeing_all(model.path, out / "model"), quants=quants)


def _seeing_all(directory: Path, out: Path) -> Path:
    out.mkdir(parents=True)
    (out / "model.safetensors").symlink_to(directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"use_sliding_window": False}))
    return out
