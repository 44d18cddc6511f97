"""The library on a small model: the chain as the README writes it, in one session, and the docstrings' examples."""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
from command_line import succeed

import exltune
from exltune.corpora import dealing
from exltune.errors import UsageError
from exltune.schema.compare import Outcome

ROOT = Path(__file__).resolve().parents[2]
_FENCED = re.compile(r"```python\n(.*?)```", re.DOTALL)
BPW = 3.15


@pytest.fixture(scope="module")
def texts(data: list[str]) -> exltune.DataOptions:
    """What `data` says to the command line."""
    files, rows, length = data[1:-4], int(data[-3]), int(data[-1])
    with exltune.open_session("MODEL", data=files, rows=rows, row_length=length) as session:
        return session.data


@pytest.fixture(scope="module")
def recipe(measurement: Path, tmp_path_factory: pytest.TempPathFactory) -> exltune.Recipe:
    """The README's second line."""
    store = tmp_path_factory.mktemp("scores") / "scores.db"
    return exltune.optimize(exltune.load_measurement(measurement), target_bpw=BPW, passes=2, store=store)


@pytest.fixture(scope="module")
def tuned(recipe: exltune.Recipe, quants: Path, tmp_path_factory: pytest.TempPathFactory) -> exltune.Built:
    """The README's third line."""
    return exltune.build(recipe, quants=quants, out=tmp_path_factory.mktemp("built") / "tuned")


def test_the_recipe_is_that_of_the_command_line(
    recipe: exltune.Recipe, measurement: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    succeed("optimize", measurement, "--target-bpw", BPW, "--passes", 2, "--out", tmp_path / "cli.yaml")
    theirs = exltune.load_recipe(tmp_path / "cli.yaml")
    capfd.readouterr()
    ours = exltune.optimize(
        str(measurement), target_bpw=BPW, passes=2, out=tmp_path / "library.yaml", store=tmp_path / "scores.db"
    )
    assert capfd.readouterr() == ("", "")
    assert ours.tensors == theirs.tensors == recipe.tensors
    assert exltune.load_recipe(tmp_path / "library.yaml") == ours
    assert recipe.exltune is not None
    assert recipe.exltune.search is not None
    assert recipe.exltune.search.searched


def test_the_model_and_its_table(
    tuned: exltune.Built,
    recipe: exltune.Recipe,
    moe_model: Path,
    quants: Path,
    texts: exltune.DataOptions,
    data: list[str],
) -> None:
    assert recipe.exltune is not None
    assert (tuned.bpw, tuned.size_bytes) == (recipe.achieved_bpw, recipe.exltune.size_bytes)
    table = exltune.evaluate(moe_model, [tuned, quants / "3bpw_H6"], data=texts, store=tuned.path.parent / "s.db")
    theirs = succeed("evaluate", moe_model, tuned.path, quants / "3bpw_H6", *data)
    assert [row.model_dump() for row in table] == theirs["rows"]
    assert (len(table), table[-1].name) == (2, "3bpw_H6")
    frame = table.to_pandas()
    assert list(frame.index) == ["tuned", "3bpw_H6"]
    assert frame.loc["tuned", "kl_ref_quant"] == table[0].kl_ref_quant
    assert f"| tuned | {tuned.size_bytes / 1024:.2f} KiB | {tuned.bpw:.3f} |" in table.to_markdown()
    assert len(table.to_markdown().splitlines()) == 4


def test_without_pandas_its_table_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tuned: exltune.Built) -> None:
    table = exltune.EvaluationTable(
        exltune.library.tables.Evaluation.model_construct(rows=(), provenance=None)  # type: ignore[arg-type]
    )
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        table.to_pandas()


@pytest.mark.slow
def test_one_session_opens_everything_once(
    moe_model: Path, texts: exltune.DataOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = dealing.read_samples
    times: list[object] = []
    monkeypatch.setattr(dealing, "read_samples", lambda *given: times.append(given) or read(*given))
    told: list[tuple[str, int, int]] = []
    folder = tmp_path / "quants"
    with exltune.open_session(
        str(moe_model),
        quants=folder,
        data=texts,
        store=str(tmp_path / "scores.db"),
        progress=lambda stage, done, total, what: told.append((stage, done, total)),
    ) as session:
        made = exltune.quantize(session, folder, bits=[4, 2])
        measured = exltune.measure(session, level=1, budget="all")
        found = exltune.optimize(measured, size=10**6, passes=1, session=session, head_bits=6)
        built = exltune.build(found, session=session, out=tmp_path / "built")
        exltune.evaluate(session, made)
        before = session.scores.counts.scored
        exltune.evaluate(session, [*made, built], out=tmp_path / "table.json")
        # Whether a quant has seen the held-out rows is told by dealing its own again.
        reads = len(times)
        result = exltune.compare(made[1], made[0], reference=session, tolerance=0.9)
    assert [path.name for path in made] == ["2bpw_H6", "4bpw_H6"]
    assert reads == 1
    assert session.scores.counts.scored <= before + 1
    assert result.outcome is Outcome.WIN
    assert {"Measuring", "Building", "Evaluating"} < {stage for stage, _, _ in told}
    assert all(0 <= done <= total for _, done, total in told)
    assert len(json.loads((tmp_path / "table.json").read_text())["rows"]) == 3
    with pytest.raises(exltune.errors.OutputExistsError):
        exltune.evaluate(session, made, out=tmp_path / "table.json")


@pytest.fixture
def user_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moe_model: Path, quants: Path, recipe: exltune.Recipe
) -> Path:
    """A folder as the docstrings' examples have it."""
    links = {"MODEL": moe_model, "quants": quants, "models": ROOT / "models", "measurements": ROOT / "measurements"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    from exltune.store.records import write_recipe

    write_recipe(tmp_path / "recipe.yaml", recipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    "names", [["load_measurement"], ["load_recipe"], ["plan"], ["optimize"], ["build", "evaluate"]]
)
def test_examples_of_docstrings_run(names: list[str], user_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in names:
        for example in _FENCED.findall(inspect.getdoc(getattr(exltune, name)) or ""):
            exec(compile(textwrap.dedent(example), f"example of {name}", "exec"), {"exltune": exltune})
        assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_tune_gives_the_model_its_recipe_and_the_verdict(
    moe_model: Path, texts: exltune.DataOptions, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stages: list[str] = []
    out = tmp_path / "tuned"
    again = [
        exltune.tune(
            moe_model,
            out,
            target_bpw=2.9,
            bits=[3, 2],
            head_bits=6,
            level=1,
            passes=1,
            data=texts,
            progress=lambda stage, *told: stages.append(stage),
        )
        for _ in range(2)
    ]
    assert capfd.readouterr() == ("", "")
    assert again[0] == again[1]
    found = again[0]
    assert found.path == out / "model"
    assert found.recipe == exltune.load_recipe(out / "recipe.yaml")
    assert [row.name for row in found.table][:2] == ["2bpw_H6", "3bpw_H6"]
    assert found.verdict.tuned in list(found.table)
    assert {"Measuring", "Building", "Evaluating"} <= set(stages)
