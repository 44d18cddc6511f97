"""Fixtures that tests of several folders share."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CONFIGS, TinyModel, make_tiny_model

# Tensors here are tiny: on a busy machine, waiting for a second thread costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture(scope="session", params=sorted(CONFIGS))
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Each of the tiny random models, with quants "2" and "3"; read only."""
    return make_tiny_model(tmp_path_factory.mktemp(request.param), CONFIGS[request.param])


@pytest.fixture(scope="session")
def tiny_moe(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """The tiny Glm4Moe alone (dense first layer, shared expert, 4 routed experts); read only."""
    return make_tiny_model(tmp_path_factory.mktemp("moe"), CONFIGS["glm4moe"])
