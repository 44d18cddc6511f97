"""Every algorithm gives the results of its version, and no deciding source changes unseen."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from exltune.schema import versions
from exltune.schema.versions import ALGORITHMS, IDLE, owner_of
from tests.golden import results, sources, update
from tests.standin.hook import native

#: Deciding files, a text in them and another that decides otherwise.
MUTATIONS = {
    "search": ("search/loop/loop.py", "_ACCEPT_T = 2.0", "_ACCEPT_T = 1.0"),
    "search's joint budget": ("search/space/joint.py", "reverse=True", "reverse=False"),
    "judge": ("search/loop/ranking.py", "return not row.eligible", "return row.eligible"),
    "token-sets": ("schema/tokens.py", "Split.SEARCH: 2", "Split.SEARCH: 3"),
    "streaming": ("engines/streaming/prefix_tree.py", "states = [0]", "states = [1]"),
    "law": ("search/law/surrogate.py", "SWAP_SPREAD = 1.0", "SWAP_SPREAD = 0.3"),
    "metrics": ("metrics/statistics.py", "means.std(ddof=1)", "means.std(ddof=0)"),
    "format": ("exl3/cache_quant.py", "add_(1e-10)", "add_(1e-9)"),
    "convert.exllamav3": ("engines/exllamav3/converter.py", "import", "import math\nimport"),
    "memory": ("schema/hardware.py", "reserve_bytes: int = Field(_GIB // 2", "reserve_bytes: int = Field(_GIB // 4"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package's sources."""
    out = tmp_path_factory.mktemp("sources") / "exltune"
    shutil.copytree(sources.PACKAGE, out, ignore=shutil.ignore_patterns("__pycache__"))
    return out


@pytest.mark.parametrize("name", results.GOLDEN)
def test_an_algorithm_gives_the_results_of_its_version(name: str, folder: Path) -> None:
    if name.endswith("exllamav3") and native():
        pytest.skip("recorded on the stand-in for exllamav3's extension")
    recorded = results.read(name)
    assert recorded is not None, "run `python -m tests.golden.update`"
    assert recorded.versions == results.versions(name), "run `python -m tests.golden.update`"
    golden = results.GOLDEN[name]
    found = results.as_json(golden.compute(folder))
    lines = list(islice(results.differences(recorded.results, found, golden.rtol), 5))
    assert not lines, (
        f"{name} gives other results than before: raise the version of {name} in exltune/schema/versions.py and run "
        f"`python -m tests.golden.update`. {lines}"
    )


def test_every_algorithm_has_golden_results_or_a_reason_for_none() -> None:
    assert results.GOLDEN.keys() | results.WITHOUT.keys() == ALGORITHMS.keys()
    assert not results.GOLDEN.keys() & results.WITHOUT.keys()


def test_deciding_sources_are_as_they_are_locked() -> None:
    locked, now = sources.read_lock(), sources.lock()
    changed = [name for name in now if now[name] != locked.get(name)]
    assert not changed, (
        f"sources of {', '.join(changed)} have changed: run `python -m tests.golden.update`, which says whether a "
        "version in exltune/schema/versions.py must be raised"
    )


def test_every_file_decides_or_is_idle_and_every_named_path_exists() -> None:
    owned = sources.files_by_algorithm()
    assert all(owned.values()), [name for name, files in owned.items() if not files]
    missing = [
        path for algorithm in ALGORITHMS.values() for path in algorithm.paths if not (sources.PACKAGE / path).exists()
    ]
    assert not missing, "exltune/schema/versions.py names files that are gone"
    assert not {path for algorithm in ALGORITHMS.values() for path in algorithm.paths} & set(IDLE)


def test_a_package_that_nobody_named_is_noticed() -> None:
    with pytest.raises(KeyError, match=r"fresh/tricks\.py is in no algorithm"):
        owner_of("fresh/tricks.py")
    assert owner_of("search/loop/fresh.py") == "search"
    assert owner_of("engines/reference/fresh.py") == "score.reference"
    assert owner_of("engines/reference/capture.py") == "capture.reference"
    assert owner_of("cli/fresh.py") is None


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_of_a_deciding_file_is_noticed(name: str, copy: Path) -> None:
    path, before, after = MUTATIONS[name]
    file = copy / path
    text = file.read_text(encoding="utf-8")
    assert before in text, "the mutation has to be written anew"
    whole = sources.lock(copy)
    try:
        file.write_text(text.replace(before, after, 1), encoding="utf-8")
        mutated = sources.lock(copy)
    finally:
        file.write_text(text, encoding="utf-8")
    assert [one for one in whole if whole[one] != mutated[one]] == [owner_of(path)]


def test_words_and_types_are_not_locked_and_numbers_are() -> None:
    plain = sources.normalized('"""One."""\ndef f(x: int) -> int:\n    """Two."""\n    return x + 1  # three\n')
    assert plain == sources.normalized("def f(x):\n    return x + 1\n")
    assert plain != sources.normalized("def f(x):\n    return x + 2\n")
    assert plain != sources.normalized("def f(x):\n    return x - 1\n")


def test_results_are_told_apart_beyond_the_tolerance_alone() -> None:
    before = {"a": [1.0, 2], "b": "x"}
    assert list(results.differences(before, {"a": [1.0 + 1e-7, 2], "b": "x"}, 1e-6)) == []
    assert list(results.differences(before, {"a": [1.0 + 1e-5, 2], "b": "x"}, 1e-6)) == ["a.0: 1.0 became 1.00001"]
    for other in ({"a": [1.0, 3], "b": "x"}, {"a": [1.0], "b": "x"}, {"a": [1.0, 2]}, {"a": [1.0, True], "b": "x"}):
        assert list(results.differences(before, other, 1e-6))


class TestUpdate:
    """The script that records results and locks sources."""

    @pytest.fixture(autouse=True)
    def _elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(results, "FOLDER", tmp_path)
        monkeypatch.setattr(sources, "LOCK", tmp_path / "sources.json")
        monkeypatch.setattr(results, "GOLDEN", {name: self._golden(1.0) for name in ("size", "law")})

    @staticmethod
    def _golden(result: float) -> results.Golden:
        return results.Golden(lambda folder: {"kl": result}, uses=("inventory",))

    def test_other_results_of_the_same_version_are_refused_and_nothing_is_locked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert update.main() == 0
        assert sources.read_lock() == sources.lock()
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        assert before.keys() == {"size.json", "law.json", "sources.json"}
        monkeypatch.setitem(results.GOLDEN, "law", self._golden(1.5))
        monkeypatch.setattr(sources, "lock", lambda: {"law": {"version": 1, "sha256": "another"}})
        assert update.main() == 1
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
        shown = capsys.readouterr().out
        assert "kl: 1.0 became 1.5" in shown
        assert "Raise the version of law in exltune/schema/versions.py" in shown

    @pytest.mark.parametrize("raised", ["law", "inventory"])
    def test_a_raised_version_is_recorded_also_that_of_what_an_algorithm_uses(
        self, raised: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert update.main() == 0
        monkeypatch.setitem(results.GOLDEN, "law", self._golden(1.5))
        algorithm = versions.ALGORITHMS[raised]
        changed = {**versions.ALGORITHMS, raised: replace(algorithm, version=algorithm.version + 1)}
        monkeypatch.setattr(versions, "ALGORITHMS", changed)
        assert update.main() == 0
        recorded = results.read("law")
        assert recorded is not None
        assert (recorded.results, recorded.versions[raised]) == ({"kl": 1.5}, algorithm.version + 1)
