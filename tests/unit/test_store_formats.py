"""Versions of files: older ones are migrated, unknown ones refused by name, and numbers are finite."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from exltune.errors import DataError, ExltuneError, RecipeError
from exltune.schema.base import Record
from exltune.schema.card import Card
from exltune.schema.compare import CompareResult, TaskRuns
from exltune.schema.deploy import Deployment
from exltune.schema.evaluation import Evaluation, EvaluationRow, Verdict
from exltune.schema.measurement import Measurement, TensorSaliency
from exltune.schema.provenance import Provenance
from exltune.schema.quant import QuantRecord
from exltune.schema.recipe import Recipe, RecipeDetail
from exltune.schema.search import Round, SearchDetail
from exltune.schema.tune import TuneJob
from exltune.store.formats import format_of
from exltune.store.records import read_recipe, read_record, write_recipe, write_record
from exltune.testing.laws import measured, random_law

PROVENANCE = Provenance(exltune_version="0", engine="e", model_path="m", model_sha256="s")
TENSOR = TensorSaliency(key="k", group="g", rfn=0.1, input_rms=1.0, tokens=None, saliency=0.1)
ROUND = Round(number=1, passes=2.0, sources={"exact": 1}, incumbent_kld=(0.5, None), gamma=0.8)
ROW = EvaluationRow(
    **dict.fromkeys(("kl_quant_ref", "kl_quant_ref_se", "kl_ref_quant", "kl_ref_quant_se"), 0.1),
    **dict.fromkeys(("top_1", "top_2", "top_3", "top_4", "top_5"), 0.5),
    **{"name": "q", "path": None, "size_bytes": 1, "bpw": 3.0, "head_bpw": 6.0, "perplexity": 2.0, "tokens": 9},
)


def measurement() -> Measurement:
    made = measured(random_law())
    return made.model_copy(update={"exltune": made.exltune.model_copy(update={"tensors": (TENSOR,)})})


def recipe() -> Recipe:
    search = SearchDetail(outcome="search", searched=True, passes=2.0, rounds=(ROUND,), standings=())
    block = RecipeDetail(
        source="search", choices={}, size_bytes=1, head_choice="6", search=search, provenance=PROVENANCE
    )
    return Recipe(target_bpw=3.0, tensors={"a": 3.0}, exltune=block)


RECORDS: Mapping[str, Record] = {
    "evaluation": Evaluation(rows=(ROW,), provenance=PROVENANCE),
    "verdict": Verdict(
        source="search",
        searched=True,
        tuned=ROW,
        uniform=ROW,
        difference=0.1,
        difference_ci95=(0.0, 0.2),
        standings=(),
    ),
    "quant record": QuantRecord(
        bits=2, head_bits=6, codebook="mul1", job="j", rare_experts=(), tensors={}, provenance=PROVENANCE
    ),
    "tune job": TuneJob(model="m", budget=("--target-bpw", "3.1"), level=3, job="j"),
    "measurement": measurement(),
    "recipe": recipe(),
}


def written(record: Record, file: Path) -> dict[str, Any]:
    if isinstance(record, Recipe):
        write_recipe(file, record)
        return dict(yaml.safe_load(file.read_text()))
    write_record(file, record)
    return dict(json.loads(file.read_text()))


def read(content: Mapping[str, Any], file: Path, kind: type[Record]) -> Record:
    """As the stages read it."""
    file.write_text(yaml.safe_dump(content) if kind is Recipe else json.dumps(content))
    return read_recipe(file) if kind is Recipe else read_record(file, kind)


@pytest.mark.parametrize("name", RECORDS)
def test_an_unknown_version_is_refused_by_name(name: str, tmp_path: Path) -> None:
    record, file = RECORDS[name], tmp_path / "file"
    content = written(record, file)
    block = content["exltune"] if name in ("measurement", "recipe") else content
    current = block["schema_version"]
    assert read(content, file, type(record)) == record
    error: type[ExltuneError] = RecipeError if name == "recipe" else DataError
    for version in (current + 1, 99):
        block["schema_version"] = version
        article = "an" if name == "evaluation" else "a"
        told = (
            rf"it is {article} {name} of schema {version}, and this exltune reads up to {current}\. \(?Update exltune"
        )
        with pytest.raises(error, match=told) as caught:
            read(content, file, type(record))
        assert str(file) in str(caught.value)
    block["schema_version"] = 0
    with pytest.raises(error, match=f"{name} of schema 0, and this exltune reads from 1 on"):
        read(content, file, type(record))


@pytest.mark.parametrize("name", ["evaluation", "verdict", "quant record"])
def test_files_without_a_version_are_of_the_first(name: str, tmp_path: Path) -> None:
    content = written(RECORDS[name], tmp_path / "file")
    del content["schema_version"]
    assert read(content, tmp_path / "file", type(RECORDS[name])) == RECORDS[name]


def _salience(content: dict[str, Any]) -> None:
    for tensor in content["exltune"]["tensors"]:
        tensor["salience"] = tensor.pop("saliency")
    content["exltune"]["schema_version"] = 1


def _held(content: dict[str, Any]) -> None:
    for one in content["exltune"]["search"]["rounds"]:
        one["held_kld"] = one.pop("incumbent_kld")
    content["exltune"]["schema_version"] = 1


def _target(content: dict[str, Any]) -> None:
    del content["budget"]
    content |= {"target_bpw": 3.1, "schema_version": 1}


@pytest.mark.parametrize(("name", "age"), [("measurement", _salience), ("recipe", _held), ("tune job", _target)])
def test_files_of_an_older_version_are_migrated(
    name: str, age: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    content = written(RECORDS[name], tmp_path / "file")
    age(content)
    assert read(content, tmp_path / "file", type(RECORDS[name])) == RECORDS[name]
    # Nobody guesses: the same fields under the new version are wrong.
    (content if name == "tune job" else content["exltune"])["schema_version"] = 2
    with pytest.raises((DataError, RecipeError), match="that this version of exltune reads"):
        read(content, tmp_path / "file", type(RECORDS[name]))


def test_files_that_are_not_ours_keep_their_errors(tmp_path: Path) -> None:
    """A measurement of exllamav3, and one whose block or version is no such thing."""
    theirs = written(RECORDS["measurement"], tmp_path / "file")
    block = theirs.pop("exltune")
    with pytest.raises(DataError, match="exltune: Field required"):
        read(theirs, tmp_path / "file", Measurement)
    with pytest.raises(DataError, match="exltune: Input should be"):
        read(theirs | {"exltune": []}, tmp_path / "file", Measurement)
    for version in ("2", True, 2.5, None):
        with pytest.raises(DataError, match=r"exltune\.schema_version: Input should be 2"):
            read(theirs | {"exltune": block | {"schema_version": version}}, tmp_path / "file", Measurement)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match="that this version of exltune reads: the whole file"):
        read_record(tmp_path / "list.json", Measurement)
    assert read({"tensors": {"a": 3}}, tmp_path / "file", Recipe) == Recipe(tensors={"a": 3.0})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused_by_field(number: str, tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    write_record(file, RECORDS["evaluation"])
    file.write_text(file.read_text().replace('"perplexity": 2.0', f'"perplexity": {number}'))
    with pytest.raises(DataError, match=r"rows\.0\.perplexity: NaN and infinity"):
        read_record(file, Evaluation)
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text("tensors: {a: 3}\ntarget_bpw: .nan\n")
    with pytest.raises(RecipeError, match="target_bpw: NaN and infinity"):
        read_recipe(recipe_file)


@pytest.mark.parametrize(
    "kind",
    [Measurement, Recipe, QuantRecord, TuneJob, Evaluation, Verdict, CompareResult, TaskRuns, Card, Deployment],
)
def test_every_file_that_is_read_back_has_a_version(kind: type[Record]) -> None:
    form = format_of(kind)
    assert form.current is not None
    assert sorted(form.steps) == list(range(1, form.current))
