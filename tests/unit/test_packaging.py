"""What is declared of the package: requirements, version, data, checks. Each has one place."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import exltune
from exltune import requirements
from exltune.exl3.writer import FORMAT_VERSION
from exltune.publish.tabby_files import dockerfile

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "exltune"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
#: Declared, but imported by another package on our behalf.
USED_THROUGH = {"cmaes": "optuna.samplers.CmaEsSampler", "psycopg": "sqlalchemy.dialects.postgresql.psycopg"}


def named(lines: list[str]) -> dict[str, Requirement]:
    """Canonical name -> requirement."""
    return {canonicalize_name((found := Requirement(line)).name): found for line in lines}


def declared() -> dict[str, Requirement]:
    """Of the base install and all extras but dev and docs, which hold tools."""
    users = [line for extra, lines in EXTRAS.items() if extra not in ("dev", "docs") for line in lines]
    return named([*PROJECT["dependencies"], *users])


@cache
def imported() -> dict[str, set[str]]:
    """Distribution -> the modules of exltune that import it, lazily or for types too."""
    owners = importlib.metadata.packages_distributions()
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        for name in set(imports_of(ast.parse(file.read_text(encoding="utf-8")))):
            owner = canonicalize_name(owners.get(name, [name])[0])
            found.setdefault(owner, set()).add(str(file.relative_to(ROOT)))
    return found


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Top-level names of what is neither exltune's nor the standard library's."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        tops = {name.split(".")[0] for name in names}
        yield from tops - sys.stdlib_module_names - {"exltune"}


def test_every_import_is_declared() -> None:
    known = declared()
    assert {name: sorted(files) for name, files in imported().items() if name not in known} == {}


def test_every_requirement_is_used() -> None:
    assert set(declared()) - set(imported()) - set(USED_THROUGH) == set()


def test_requirements_have_lower_bounds_and_one_place() -> None:
    places: dict[str, list[str]] = {}
    for place, lines in {"base": PROJECT["dependencies"], **EXTRAS}.items():
        for name, requirement in named(lines).items():
            places.setdefault(name, []).append(place)
            bounded = any(bound.operator == ">=" for bound in requirement.specifier)
            assert bounded or name == "exltune", name
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_dev_includes_all_extras_but_the_harness() -> None:
    """lm-evaluation-harness pulls some forty packages; its test says so where it is skipped."""
    (own,) = [one for one in named(EXTRAS["dev"]).values() if one.name == "exltune"]
    assert own.extras == set(EXTRAS) - {"dev", "tasks"}


def test_tests_run_with_pinned_versions_that_are_allowed() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {name: str(one.specifier) for name, one in named([x for x in lines if not x.startswith("#")]).items()}
    wanted = named([*PROJECT["dependencies"], *(line for some in EXTRAS.values() for line in some)])
    wanted.pop("exltune")
    assert set(pins) == set(wanted)
    for name, pin in pins.items():
        assert pin.startswith("=="), name
        assert pin.removeprefix("==") in wanted[name].specifier, name


def test_the_version_has_one_source() -> None:
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    # A literal, so that a build reads it without an import of what is not installed yet.
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert re.search(rf'^__version__ = "{re.escape(exltune.__version__)}"$', source, re.MULTILINE)


def test_exllamav3_has_one_requirement() -> None:
    base = named(PROJECT["dependencies"])["exllamav3"].specifier
    assert requirements.required("exllamav3") == base
    lowest = requirements.lowest("exllamav3")
    assert f"exllamav3=={lowest}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert f'"exllamav3=={lowest}"' in dockerfile()
    # The format that is written is a fact about our files, and must be one that this version reads.
    assert lowest == FORMAT_VERSION
    told = re.compile(r"(?:^|[=<>~])\s*1\.6(?:\.\d+)?$")
    places = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and told.search(node.value)
    }
    assert places == {"exl3/writer.py"}


def test_a_clone_that_is_not_installed_reads_its_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    requirements.required.cache_clear()
    monkeypatch.setattr(requirements, "requires", absent)
    assert requirements.required("exllamav3") == named(PROJECT["dependencies"])["exllamav3"].specifier
    requirements.required.cache_clear()


def test_what_is_not_declared_is_told() -> None:
    with pytest.raises(LookupError, match="does not depend on left-pad"):
        requirements.required("left-pad")
    # Of an extra: not of the base install.
    with pytest.raises(LookupError, match="does not depend on plotly"):
        requirements.required("plotly")


def test_commits_are_checked_as_make_does_and_without_a_network() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    hooks = {hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude") for hook in repository["hooks"]}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lint = makefile.partition("\nlint:")[2].partition("\n\n")[0]
    made = {line.removeprefix("$(VENV)/bin/") for line in re.findall(r"^\t(.*)$", lint, re.MULTILINE)}
    assert hooks == {re.sub(r" --check| \.$", "", line).removesuffix(" .") for line in made}


def test_ci_runs_the_test_command_alone() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith(("#", "set ", "cd "))] == ["make test"]
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")
