"""The public library: its names, what they say of themselves, and how it answers wrong arguments."""

from __future__ import annotations

import ast
import inspect
import logging
import pkgutil
import re
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import exltune
from exltune.errors import UsageError
from exltune.library import budgets, sessions
from exltune.library.progress import CallbackReporter
from exltune.schema.hardware import CacheBits
from exltune.schema.tokens import DataSource, Texts

PUBLIC = [
    *("Built", "DataOptions", "EvaluationTable", "ExltuneError", "Measurement", "Recipe", "Session"),
    *("build", "compare", "errors", "evaluate", "load_measurement", "load_recipe", "measure", "open_session"),
    *("optimize", "plan", "quantize", "tune"),
]
FUNCTIONS = [name for name in PUBLIC if name.islower() and name != "errors"]
SECTIONS = ("Args", "Returns", "Raises", "Example")
_FENCED = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_public_names() -> None:
    assert exltune.__all__ == PUBLIC
    assert dir(exltune) == sorted([*PUBLIC, "__version__"])
    for name in PUBLIC:
        assert inspect.getdoc(getattr(exltune, name))
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        exltune.quantise  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_what_is_imported() -> None:
    source = ast.parse(Path(exltune.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in source.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {**exltune._HOMES, "errors": "exltune"}
    for name, home in exltune._HOMES.items():
        assert getattr(exltune, name) is getattr(import_module(home), name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_say_all(name: str) -> None:
    function = getattr(exltune, name)
    doc = inspect.getdoc(function) or ""
    assert [section for section in SECTIONS if f"\n{section}:\n" in doc] == list(SECTIONS)
    arguments = doc.partition("\nArgs:\n")[2].partition("\nReturns:\n")[0]
    for parameter in inspect.signature(function).parameters.values():
        written = f"**{parameter.name}" if parameter.kind is parameter.VAR_KEYWORD else parameter.name
        assert re.search(rf"^    {re.escape(written)}: \S", arguments, re.MULTILINE), written
    for raised in re.findall(
        r"^    (\w+): ", doc.partition("\nRaises:\n")[2].partition("\nExample:\n")[0], re.MULTILINE
    ):
        assert issubclass(getattr(exltune.errors, raised), exltune.ExltuneError)
    examples = [textwrap.dedent(block) for block in _FENCED.findall(doc)]
    assert examples
    for example in examples:
        assert f"exltune.{name}" in example
        assert ast.parse(example)


def test_import_costs_nothing() -> None:
    code = (
        "import sys, exltune\ndir(exltune), exltune.__version__, exltune.__all__\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'scipy', 'optuna', 'transformers', 'pandas', 'exllamav3'}\n"
        "print(sorted(heavy & set(sys.modules)), sorted(name for name in sys.modules if name.startswith('exltune.')))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[] []\n"


def test_no_function_has_the_name_of_a_package() -> None:
    """Python binds a package to its parent as soon as anything imports it: the function would be gone."""
    rooms = {module.name for module in pkgutil.iter_modules(exltune.__path__)}
    assert rooms.intersection(PUBLIC) == {"errors"}


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("optimize", {"measurement": 3.15}, r"`measurement` is 3.15 \(float\)\. Give a Measurement, or the path"),
    ("optimize", {"measurement": None}, r"`measurement` is None"),
    ("load_measurement", {"path": b"m.json"}, r"`path` is b'm.json' \(bytes\)\. Give a path"),
    ("load_recipe", {"path": ""}, r"`path` is ''"),
    ("build", {"recipe": 3, "out": "x"}, r"`recipe` is 3 \(int\)\. Give a Recipe"),
    ("evaluate", {"model": "M", "quants": "3bpw_H6"}, r"`quants` is '3bpw_H6' \(str\)\. Give a list"),
    ("evaluate", {"model": "M", "quants": ["a", 3]}, r"`quants\[1\]` is 3"),
    (
        "evaluate",
        {"model": 3, "quants": []},
        r"`model` is 3 \(int\)\. Give the path of a model directory, or a Session",
    ),
    ("compare", {"candidate": "a", "against": "b", "reference": None}, r"`reference` is None"),
    ("compare", {"candidate": "a", "against": "b", "reference": "M", "tolerance": "1%"}, r"`tolerance` is '1%'"),
    ("quantize", {"model": "M", "out": "q", "bits": "2,3"}, r"`bits` is '2,3' \(str\)"),
    ("quantize", {"model": "M", "out": "q", "bits": [2, 3], "head_bits": [6, 6, 6]}, "`head_bits` names 3 heads"),
    ("quantize", {"model": "M", "out": "q", "codebook": "mul2"}, "`codebook` is 'mul2'.*'mul1', 'mcg', '3inst'"),
    ("quantize", {"model": "M", "out": "q", "force": 1}, r"`force` is 1 \(int\)\. Give True or False"),
    ("measure", {"model": "M", "level": 7}, r"`level` is 7.*0, 1, 2, 3, 4"),
    ("measure", {"model": "M", "level": True}, r"`level` is True"),
    ("measure", {"model": "M", "budget": 0}, r"`budget` is 0"),
    ("measure", {"model": "M", "budget": []}, r"`budget` is \[\]"),
    ("tune", {"model": "M", "out": "o", "passes": "all"}, r"`passes` is 'all'"),
    ("tune", {"model": "M", "out": "o", "seconds": float("nan")}, r"`seconds` is nan"),
    ("plan", {"source": "config.json", "bits": "3"}, r"`bits` is '3' \(str\)"),
    ("plan", {"source": "config.json", "cache": "auto"}, "`cache` 'auto'"),
    ("open_session", {"model": 1}, r"`model` is 1"),
]


@pytest.mark.parametrize(("name", "given", "told"), WRONG)
def test_wrong_arguments_are_told_by_name(name: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        getattr(exltune, name)(**given)


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"rows": 3}, "`rows` is 3.*16"),
    ({"rows": "many"}, "`rows` is 'many'"),
    ({"data": 3}, r"`data` is 3 \(int\).*DataOptions"),
    ({"data": {"math": 3}}, r"`data\['math'\]` is 3"),
    ({"data": {3: "x"}}, r"`data` is 3 \(int\)\. Give names of domains"),
    ({"data": exltune.DataOptions(), "rows": 32}, "`data` is DataOptions, which has `rows` too"),
    ({"weights": "math=2"}, "`weights` is 'math=2'"),
    ({"weights": {"math": "2"}}, r"`weights\['math'\]` is '2'"),
    ({"devices": "0,1"}, "`devices` is '0,1'"),
    ({"devices": [-1]}, r"`devices\[0\]` is -1"),
    ({"max_ram": "8"}, "`max_ram` '8' has no unit"),
    ({"max_ram": 0}, "`max_ram` is 0"),
    ({"engine": 1}, "`engine` is 1"),
    ({"ray_cpus": 2}, "`ray_cpus` needs `ray`"),
    ({"store": 7}, "`store` is 7"),
    ({"progress": "bar"}, "`progress` is 'bar'.*stage, done, total, what"),
]


@pytest.mark.parametrize(("given", "told"), SETTINGS)
def test_wrong_settings_of_a_session_are_told_by_name(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        exltune.open_session("MODEL", **given)


@pytest.mark.parametrize("name", ["open_session", "measure", "plan"])
def test_unknown_keywords_are_refused_as_python_does(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument 'row'"):
        getattr(exltune, name)("MODEL", row=3)


def test_budgets_are_read_in_every_form() -> None:
    limits = budgets.limits_of({"target_bpw": 3, "size": "1GiB", "gpus": "2x24GiB", "vram": 5, "ram": "1KB"})
    assert (limits.target_bpw, limits.size_bytes, limits.hardware.gpus) == (3.0, 1 << 30, (24 << 30, 24 << 30))
    assert (limits.hardware.vram_bytes, limits.hardware.ram_bytes) == (5, 1000)
    assert budgets.limits_of({"gpus": ["24GiB", 7]}).hardware.gpus == (24 << 30, 7)
    for given, told in (
        ({"gpus": 7}, "`gpus` is 7"),
        ({"gpus": [7, None]}, r"`gpus\[1\]` is None"),
        ({"size": 1.5}, "`size`"),
    ):
        with pytest.raises(UsageError, match=told):
            budgets.limits_of(given)
    with pytest.raises(UsageError, match="`context` is '64k'"):
        budgets.use_of({"context": "64k"})
    found = [exltune.library.arguments.cache("cache", one) for one in ("5,4", (5, 4), CacheBits(k=5, v=4))]
    assert found == [CacheBits(k=5, v=4)] * 3
    assert budgets.unit_of_sizes({"size": "1GB", "ram": "1GiB"}) == "GB"
    assert budgets.unit_of_sizes({"size": 10**9}) == "GiB"


def test_texts_are_read_in_every_form(tmp_path: Path) -> None:
    file = tmp_path / "a=b.txt"
    forms: list[Any] = [file, str(file), [file], (str(file),)]
    for form in forms:
        made = sessions.made(tmp_path, {"data": form, "rows": 32, "weights": {"b": 2, "a": 1}}).data
        assert made.sources == (DataSource(path=str(file)),)
        assert (made.texts, made.rows, made.weights) == (Texts.FILES, 32, (("a", 1.0), ("b", 2.0)))
    by_domain = sessions.made(tmp_path, {"data": {"math": [file, file], "rest": "bundled"}}).data
    assert [source.domain for source in by_domain.sources] == ["math", "math", "rest"]
    assert by_domain.sources[2].path == "bundled"
    assert sessions.made(tmp_path, {}).data == exltune.DataOptions()


def test_scores_lie_beside_the_output_unless_a_store_is_named(tmp_path: Path) -> None:
    assert sessions.store_of({}, None) is None
    assert sessions.store_of({}, tmp_path / "out.json") == tmp_path / "scores.db"
    assert sessions.store_of({"store": "postgresql://host/db"}, tmp_path / "out.json") == "postgresql://host/db"


def test_a_session_is_taken_as_it_is() -> None:
    session = exltune.open_session("MODEL", quants="quants")
    for given in ({"quants": "other"}, {"rows": 32}, {"engine": "reference"}):
        with pytest.raises(UsageError, match=f"`{next(iter(given))}` is given beside a session"):
            exltune.measure(session, **given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`model` is given beside a session"):
        exltune.build(exltune.Recipe(tensors={}), out="x", model="M", session=session)


def test_progress_goes_to_the_callback_and_remarks_to_the_log(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, int, int, str]] = []
    with CallbackReporter(lambda *one: told.append(one)).stage("Measuring") as progress:
        progress(1, 2, "layer 0")
    with CallbackReporter().stage("Measuring") as progress:
        progress(2, 2, "layer 1")
    assert told == [("Measuring", 1, 2, "layer 0")]
    with caplog.at_level(logging.INFO, logger="exltune"):
        CallbackReporter().remark("100 % of it")
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("exltune", "100 % of it")]
    assert capfd.readouterr() == ("", "")
