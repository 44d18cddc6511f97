"""Fixtures that tests of several folders share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import succeed
from real_models import GLM4_MOE, write_model, write_text

from exltune.testing.tiny_models import CONFIGS, TinyModel, make_tiny_model

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def pytest_configure(config: pytest.Config) -> None:
    """`pytest -m gpu` runs exllamav3 itself; everything else, on any machine, its Python on the stand-in."""
    if config.option.markexpr == "gpu":
        os.environ["EXLTUNE_TESTS_NATIVE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Scores of commands without an output go to a folder of the tests'; matplotlib's fonts stay where they are."""
    fonts = os.environ.get("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", fonts)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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


@pytest.fixture(scope="session")
def moe_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Glm4Moe as transformers saves it, with a tokenizer; read only."""
    return write_model(tmp_path_factory.mktemp("models") / "glm", "Glm4Moe", GLM4_MOE)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that take texts of our own, a few short rows of them."""
    folder = tmp_path_factory.mktemp("texts")
    files = [write_text(folder / "first.txt", 1), write_text(folder / "second.txt", 2)]
    return ["--data", *map(str, files), "--rows", "32", "--row-length", "32"]


@pytest.fixture(scope="session")
def quants(moe_model: Path, data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base quants of `moe_model` at 2, 3 and 4 bits, as the command line makes them; read only."""
    out = tmp_path_factory.mktemp("quants")
    succeed("quantize", moe_model, "--out", out, "--bits", "2,3,4", *data)
    return out


@pytest.fixture(scope="session")
def measurement(moe_model: Path, quants: Path, data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `measure` wrote of them at level l3; read only."""
    out = tmp_path_factory.mktemp("measured") / "measurement.json"
    succeed("measure", moe_model, "--quants", quants, "-l3", "--budget", "all", "--out", out, *data)
    return out
