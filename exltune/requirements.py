"""Which versions of other packages exltune asks for: told once, in pyproject.toml, and read from there."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

_PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


@cache
def required(name: str) -> SpecifierSet:
    """The versions of a package of the base install that exltune takes. Raises: LookupError where it asks for none."""
    for line in _dependencies():
        requirement = Requirement(line)
        if requirement.name == name and requirement.marker is None:
            return requirement.specifier
    raise LookupError(f"exltune does not depend on {name}")


def lowest(name: str) -> str:
    """The lowest of these versions: for exllamav3 the one that the tests run with. Raises: LookupError."""
    for bound in required(name):
        if bound.operator == ">=":
            return bound.version
    raise LookupError(f"exltune asks for no lowest version of {name}")


def _dependencies() -> list[str]:
    """Of the installed package; of the clone where one runs that was not installed (benchmarks/gpu_parity.py)."""
    try:
        return requires("exltune") or []
    except PackageNotFoundError:
        dependencies: list[str] = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
        return dependencies
