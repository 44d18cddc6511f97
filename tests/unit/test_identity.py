"""Identities: another one for each input, each version of an algorithm and each version of a library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import pytest
from real_models import write_text

from exltune.budget import Limits
from exltune.corpora.dealing import data_options_of
from exltune.errors import DataError, OutputExistsError
from exltune.pipeline import tune as tuning
from exltune.pipeline.common.session import EngineOptions, Session
from exltune.pipeline.optimization.optimize import OptimizeOptions
from exltune.pipeline.quants.quantize import QuantizeOptions
from exltune.schema import versions
from exltune.schema.base import TOLD, Record
from exltune.schema.generate import GenerateOptions
from exltune.schema.hardware import CacheBits, Hardware, Use
from exltune.schema.heuristics import Heuristics, Match, Rule
from exltune.schema.mix import Mix
from exltune.schema.provenance import Provenance
from exltune.schema.tokens import DataOptions, Texts
from exltune.search import SearchOptions
from exltune.search.space.space import SpaceOptions
from exltune.store import identity as module
from exltune.store.identity import engine_version, identity, plain, scoring_algorithms, scoring_versions
from exltune.store.stages import STAGES, Stage

RULE = Heuristics(name="floor", description="test", rules=(Rule(match=Match(), min_bits=3, source="test"),))
ASKED = SpaceOptions(Limits(target_bpw=3.1))
OPTIONS = QuantizeOptions((2.0, 3.0), (6.0,))

#: Input of any stage -> a value, and others that must tell.
INPUTS: Mapping[str, tuple[object, ...]] = {
    "model_sha256": ("a", "b"),
    "tokens_sha256": ("a", "b"),
    "tokenizer_sha256": ("a", "b"),
    "tensors": ("a", "b"),
    "served_model": ("a", "b"),
    "codebook": ("mul1", "mcg"),
    "tokens": ({"search": "a", "held_out": "b"}, {"search": "a", "held_out": "c"}),
    "level": (3, 4),
    "bits": (2.0, 2.5),
    "head_bits": (6.0, 8.0),
    "batch": (8, 4),
    "prompts": ([((1, 1), {"text": "a"})], [((1, 2), {"text": "a"})], [((1, 1), {"text": "b"})]),
    "measurement": (Provenance(exltune_version="1", engine="e", model_path="m", model_sha256="a"), RULE),
    "budgets": ([1000], [1001]),
    "units": ([("a", ["2", "3"])], [("a", ["2"])]),
    "defaults": (("6", {}), ("6", {"cache.k": "4"})),
    "rules": ((), (RULE,)),
    "options": (OPTIONS, replace(OPTIONS, codebook="mcg"), replace(OPTIONS, hq=1), GenerateOptions(seed=1)),
    "quantize": (
        OPTIONS,
        replace(OPTIONS, widths=(2.0, 4.0)),
        replace(OPTIONS, head_bits=(8.0,)),
        replace(OPTIONS, codebook="mcg"),
        replace(OPTIONS, hq=1),
    ),
    "data": (
        DataOptions(),
        DataOptions(texts=Texts.SMALL_MODEL),
        DataOptions(seed=1),
        DataOptions(rows=128),
        DataOptions(row_length=128),
        DataOptions(weights=(("code", 2.0),)),
        DataOptions(samples=9),
    ),
    "asked": (
        ASKED,
        replace(ASKED, floors=(RULE,)),
        replace(ASKED, keep_fused=True),
        replace(ASKED, head=8.0),
        replace(ASKED, head="auto"),
        replace(ASKED, cache=CacheBits(k=5, v=4)),
        replace(ASKED, use=Use(context=4096)),
        replace(ASKED, limits=Limits(Hardware(gpus=(1 << 34,)), target_bpw=3.1)),
        replace(ASKED, limits=Limits(target_bpw=3.2)),
    ),
    "search": (
        OptimizeOptions(),
        OptimizeOptions(SearchOptions(passes=5)),
        OptimizeOptions(SearchOptions(seed=1)),
        OptimizeOptions(SearchOptions(refit=False)),
        OptimizeOptions(rules=(RULE,)),
        OptimizeOptions(front=(4.0,)),
        OptimizeOptions(sampler="random"),
        OptimizeOptions(seconds=60.0),
    ),
}
CHANGES = [
    (stage, name, other) for stage in STAGES for name in STAGES[stage].inputs for other in range(1, len(INPUTS[name]))
]


def engine_of(stage: Stage) -> str | None:
    return "exllamav3" if stage.scores or stage.quantizes else None


def made(stage: str, **changes: object) -> str:
    """The identity of a stage's result; changes: inputs, or the engine."""
    inputs = {name: INPUTS[name][0] for name in STAGES[stage].inputs}
    return STAGES[stage].identity(**{"engine": engine_of(STAGES[stage]), **inputs, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("stage", "name", "other"), CHANGES)
def test_every_input_tells(stage: str, name: str, other: int) -> None:
    assert made(stage) == made(stage)
    assert made(stage) != made(stage, **{name: INPUTS[name][other]})


@pytest.mark.parametrize("engine", ["reference", "exllamav3"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_version_of_an_algorithm_tells(stage: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on = engine if engine_of(STAGES[stage]) else None
    before = made(stage, engine=on)
    names = STAGES[stage].algorithms_on(on)
    assert names
    for name, algorithm in versions.ALGORITHMS.items():
        raised = {name: replace(algorithm, version=algorithm.version + 1)}
        with monkeypatch.context() as patched:
            patched.setattr(versions, "ALGORITHMS", {**versions.ALGORITHMS, **raised})
            assert (made(stage, engine=on) != before) == (name in names), name


@pytest.mark.parametrize("engine", ["reference", "exllamav3"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_version_of_a_library_tells(stage: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on = engine if engine_of(STAGES[stage]) else None
    before = made(stage, engine=on)
    libraries = STAGES[stage].libraries_on(on)
    for name in libraries:
        with monkeypatch.context() as patched:
            patched.setattr(module, "version", lambda asked, name=name: version(asked) + ("1" if asked == name else ""))
            assert made(stage, engine=on) != before, name
    assert ("exllamav3" in libraries) == (on == "exllamav3")


def test_a_tune_depends_on_whatever_decides_but_the_other_engine() -> None:
    """What its stages and its judging go through; answers to prompts are no part of it."""
    other = {name for name in versions.ALGORITHMS if name.endswith(".exllamav3")} | {"generate"}
    assert set(STAGES["tune"].algorithms_on("reference")) == set(versions.ALGORITHMS) - other
    assert {"torch", "transformers", "numpy", "scipy", "optuna", "numba"} == set(
        STAGES["tune"].libraries_on("reference")
    )


@pytest.mark.parametrize("stage", [name for name in STAGES if engine_of(STAGES[name])])
def test_another_engine_tells(stage: str) -> None:
    assert len({made(stage, engine=engine) for engine in ("reference", "exllamav3", "other")}) == 3


def test_inputs_are_those_that_are_declared() -> None:
    with pytest.raises(TypeError, match="quant depends on"):
        STAGES["quant"].identity(tensors="a", bits=2)
    with pytest.raises(TypeError, match="quant depends on"):
        STAGES["quant"].identity(tensors="a", bits=2, head_bits=6, device=0)
    with pytest.raises(KeyError, match="guessing"):
        identity("stage", algorithms=("guessing",))


def test_equal_values_are_equal_and_places_are_no_input() -> None:
    assert identity("s", algorithms=(), a=(3.0, 2.5), b={"x": 1, "y": 2}, c={"p", "q"}) == identity(
        "s", algorithms=(), c={"q", "p"}, b={"y": 2, "x": 1}, a=[3, 2.5]
    )
    assert identity("s", algorithms=(), a=1) != identity("s", algorithms=(), a="1")
    assert identity("s", algorithms=(), a=1) != identity("s", algorithms=(), a=True)
    assert identity("s", algorithms=(), a=1) != identity("other", algorithms=(), a=1)
    with pytest.raises(TypeError, match="PosixPath is not an input"):
        identity("s", algorithms=(), out=Path("x"))


def test_records_are_taken_as_a_whole_but_for_what_is_told() -> None:
    class Old(Record):
        a: int = 1
        path: Annotated[str, TOLD] = "here"

    class New(Old):
        b: int = 2

    @dataclass(frozen=True)
    class Options:
        mix: Mix
        old: Old

    assert plain(Old()) == {"a": 1}
    assert plain(Old()) == plain(Old(path="there"))
    assert plain(New()) == {"a": 1, "b": 2}
    mix = Mix(name="m", choices={"g": "2"})
    assert plain(Options(mix, Old())) == {"mix": {"name": "m", "choices": {"g": "2"}}, "old": {"a": 1}}


def test_where_a_search_is_stored_and_where_a_model_lies_decide_nothing() -> None:
    assert made("tune") == made("tune", search=OptimizeOptions(storage="sqlite:///elsewhere.db"))
    here = INPUTS["measurement"][0]
    assert isinstance(here, Provenance)
    there = here.model_copy(update={"model_path": "elsewhere", "exltune_version": "2"})
    assert made("search") == made("search", measurement=there)


def test_further_widths_go_on_with_the_same_tensors() -> None:
    """As pipeline/quants/quantize.py asks for them."""
    more = replace(OPTIONS, widths=(2.0, 3.0, 5.0), head_bits=(6.0, 6.0, 8.0))
    bare = [replace(one, widths=(), head_bits=()) for one in (OPTIONS, more)]
    assert made("tensors", options=bare[0]) == made("tensors", options=bare[1])


def test_scores_are_told_by_versions_that_people_can_read() -> None:
    libraries = f"torch {version('torch')}, transformers {version('transformers')}"
    shared = "streaming 1, metrics 1, format 1, inventory 1"
    assert scoring_versions("reference") == f"score.reference 1, {shared}, {libraries}"
    ours = f"score.exllamav3 1, {shared}, {libraries}, exllamav3 {version('exllamav3')}"
    assert scoring_versions("exllamav3") == ours
    for engine in ("reference", "exllamav3"):
        assert scoring_algorithms(engine)[0] == f"score.{engine}"


def test_engines_of_other_packages_have_a_version_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def __init__(self, engine: type) -> None:
            self.load = lambda: engine

    versioned = {"theirs": type("Theirs", (), {"version": 7}), "plain": type("Plain", (), {})}

    def entries(*, group: str, name: str) -> list[Any]:
        assert group == "exltune.engines"
        return [Entry(versioned[name])] if name in versioned else []

    monkeypatch.setattr(module, "entry_points", entries)
    assert [engine_version(name) for name in ("theirs", "plain", "unknown", "reference")] == [7, 1, 1, None]
    assert scoring_versions("theirs").startswith("score.theirs 7, streaming 1, ")
    before = made("search", engine="theirs")
    versioned["theirs"].version = 8  # type: ignore[attr-defined]
    assert made("search", engine="theirs") != before


class TestTune:
    """Another request in a tune's directory is refused, and does not get the recipe of the first one."""

    @pytest.fixture(autouse=True)
    def _stopped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A tune that ends when its first stage has begun."""

        def begin(_: Session, out: Path, *args: object, **options: object) -> None:
            out.mkdir(exist_ok=True)
            raise DataError("stopped here")

        monkeypatch.setattr(tuning, "quantize", begin)

    def test_other_options_are_another_tune(self, moe_model: Path, tmp_path: Path) -> None:
        asked = SpaceOptions(Limits(target_bpw=4.5))
        first = {"asked": asked, "settings": replace(OPTIONS, widths=(2.0, 3.0, 4.0, 6.0)), "level": 3}

        file = write_text(tmp_path / "texts.txt", 1)
        texts = data_options_of([file], rows=32, row_length=32)

        def run(data: DataOptions = texts, **changes: object) -> None:
            with Session(moe_model, data, engine=EngineOptions("reference")) as session:
                tuning.tune(session, tmp_path / "out", **{**first, **changes})

        for _ in range(2):
            with pytest.raises(DataError, match="stopped here"):
                run()
        settings = first["settings"]
        for changes in (
            {"asked": replace(asked, floors=(RULE,))},
            {"asked": replace(asked, keep_fused=True)},
            {"asked": replace(asked, head=6.0)},
            {"settings": replace(settings, head_bits=(8.0,))},
            {"settings": replace(settings, codebook="mcg")},
            {"level": 2},
            {"data": texts.model_copy(update={"rows": 48})},
            {"search": OptimizeOptions(SearchOptions(passes=3))},
        ):
            with pytest.raises(OutputExistsError, match="another tune was begun here"):
                run(**changes)
        write_text(file, 2)
        with pytest.raises(OutputExistsError, match="what is in them"):
            run()
