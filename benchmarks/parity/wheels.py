"""The packages that the box lacks: what exltune, its tests and exllamav3 need beside what is installed there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Those whose import exltune, exllamav3 or a test needs, with what these need in turn.
PACKAGES = (
    *("exllamav3", "marisa-trie", "llguidance", "pydantic", "pydantic-core", "annotated-types"),
    *("typing-extensions", "typing-inspection", "optuna", "alembic", "mako", "markupsafe", "colorlog", "sqlalchemy"),
    *("cmaes", "httpx2", "httpcore2", "truststore", "tenacity", "filelock", "platformdirs"),
)
#: What the box has of them, by its own list (python3 -m pip list, 2026-11-17).
BOX_HAS = frozenset(
    [
        *(
            "accelerate",
            "anyio",
            "certifi",
            "click",
            "fsspec",
            "h11",
            "httpcore",
            "httpx",
            "huggingface-hub",
            "hypothesis",
        ),
        *(
            "idna",
            "iniconfig",
            "jinja2",
            "llvmlite",
            "markdown-it-py",
            "matplotlib",
            "mdurl",
            "networkx",
            "ninja",
            "numba",
        ),
        *("numpy", "packaging", "pandas", "pillow", "pluggy", "pygments", "pytest", "pytest-xdist", "pyyaml", "regex"),
        *(
            "requests",
            "rich",
            "safetensors",
            "scipy",
            "setuptools",
            "shellingham",
            "sympy",
            "tokenizers",
            "torch",
            "tqdm",
        ),
        *("transformers", "triton", "typer", "urllib3"),
    ]
)
_PLATFORMS = (
    *("manylinux_2_39", "manylinux_2_35", "manylinux_2_34", "manylinux_2_31", "manylinux_2_28", "manylinux_2_24"),
    *("manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1"),
)


def collect(folder: Path, python: str) -> None:
    """Download them for a Python ("3.12") and Linux on x86-64; what is there is kept. Raises: CalledProcessError."""
    folder.mkdir(parents=True, exist_ok=True)
    platforms = [word for name in _PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    words = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    command = [sys.executable, "-m", "pip", "download", "-q", "-c", str(ROOT / "constraints.txt"), "-d", str(folder)]
    subprocess.run([*command, *words, *PACKAGES], check=True)


def install(folder: Path, site: Path, python: str | Path = sys.executable) -> None:
    """Install every wheel of the folder into `site`. Raises: CalledProcessError."""
    wheels = sorted(str(path) for path in folder.glob("*.whl"))
    words = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(site)]
    subprocess.run([str(python), "-m", "pip", "install", "-q", *words, *wheels], check=True)
