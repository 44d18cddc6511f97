"""A wheel that was built from a copy of the sources and installed away from them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from synthetic_measurement import synthetic_measurement

import exltune
from exltune.inventory import inventory_from_config
from exltune.requirements import lowest
from exltune.schema.card import Card, CardRow, License
from exltune.search import load_all_rules

ROOT = Path(__file__).resolve().parents[2]
GLM = ROOT / "tests" / "fixtures" / "configs" / "glm-4.7.json"

#: Run where the installed package alone is found: prints what it has.
LISTED = """
import importlib.metadata, json, sys
import exltune
from exltune.requirements import lowest
from exltune.search import load_all_rules
print(json.dumps({
    "file": exltune.__file__,
    "version": importlib.metadata.version("exltune"),
    "exllamav3": lowest("exllamav3"),
    "rules": [rules.name for rules in load_all_rules()],
}))
"""
RENDERED = """
import sys
from pathlib import Path
from exltune.publish.card_render import render_card
from exltune.report.measurement import report
from exltune.requirements import lowest
from exltune.schema.card import Card
measurement, card = map(Path, sys.argv[1:])
report(measurement, Path("report.html"))
Path("README.md").write_text(render_card(Card.model_validate_json(card.read_text())))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, from a copy: a build leaves folders beside what it builds."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "exltune", folder / "exltune", ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", out, folder)
    (found,) = out.glob("exltune-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pip install --target DIR`."""
    folder = tmp_path_factory.mktemp("target")
    pip("install", "--target", folder, wheel)
    return folder


@pytest.fixture(scope="module")
def zipped(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip file on the path; numba knows those by their ending."""
    return Path(shutil.copy(wheel, tmp_path_factory.mktemp("zipped") / "exltune.zip"))


def pip(command: str, *words: object) -> None:
    run([sys.executable, "-m", "pip", command, "-q", "--no-index", "--no-deps", *map(str, words)])


def python(code: str, *arguments: object, path: Path, here: Path) -> str:
    """Standard output of code that finds the package on `path` first."""
    environment = {"PYTHONPATH": str(path), "NUMBA_CACHE_DIR": str(here)}
    return run([sys.executable, "-P", "-c", code, *map(str, arguments)], cwd=here, env=os.environ | environment)


def run(command: list[str], **more: Any) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("place", ["installed", "zipped"])
def test_rules_and_version_are_found(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(place)
    found = json.loads(python(LISTED, path=path, here=tmp_path))
    assert Path(found.pop("file")).is_relative_to(path)
    assert found == {
        "version": exltune.__version__,
        "exllamav3": lowest("exllamav3"),
        "rules": [rules.name for rules in load_all_rules()],
    }
    assert found["rules"]


def test_templates_are_rendered(installed: Path, tmp_path: Path) -> None:
    inventory = inventory_from_config(json.loads(GLM.read_text(encoding="utf-8")))
    measurement = synthetic_measurement(inventory, (2.0, 4.0), (6.0,))
    (tmp_path / "m.json").write_text(measurement.model_dump_json(), encoding="utf-8")
    (tmp_path / "card.json").write_text(card().model_dump_json(), encoding="utf-8")
    python(RENDERED, tmp_path / "m.json", tmp_path / "card.json", path=installed, here=tmp_path)
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "# A title of ours" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_wheel_has_all_data_and_no_more(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    folder = ROOT / "exltune"
    files = [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    sources = {str(file.relative_to(ROOT)) for file in files if file.suffix not in (".nbi", ".nbc")}
    assert {name for name in names if ".dist-info/" not in name} == sources
    assert "exltune/py.typed" in names


def card() -> Card:
    """The least that a card says."""
    row = CardRow(
        name="3bpw",
        branch=None,
        kind="base",
        size_bytes=1,
        size_gib=1,
        size_gb=1,
        download_bytes=None,
        download_gb=None,
        bpw=3,
        head_bpw=6,
        kl_quant_ref=0.1,
        kl_quant_ref_half=0.01,
        kl_ref_quant=0.1,
        kl_ref_quant_half=0.01,
        perplexity=7,
        top=(1, 2, 3, 4, 5),
        contexts=(),
    )
    return Card(
        title="A title of ours",
        repo_id="someone/something",
        base_model="someone/model",
        license=License(id="mit"),
        pipeline_tag="text-generation",
        tags=(),
        languages=(),
        architecture="Glm4MoeForCausalLM",
        exllamav3_version="1.6.5",
        codebook="mul1",
        calibration_rows=None,
        calibration_row_length=None,
        model_sha256="0" * 64,
        tokens_sha256="0" * 64,
        held_out_tokens=1,
        engine="reference",
        confidence=95,
        cache="fp16",
        memories=(),
        rows=(row,),
        runs=(),
        text=None,
        serve=None,
        plot="plot.png",
        files={},
    )
