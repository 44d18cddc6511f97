"""Records as JSON and YAML files: older versions are migrated, and errors name the file and the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import from_json

from exltune.errors import DataError, ExltuneError, RecipeError
from exltune.schema.base import Record
from exltune.schema.recipe import Recipe
from exltune.store.files import write_text
from exltune.store.formats import first_not_finite, format_of, migrated

AnyRecord = TypeVar("AnyRecord", bound=Record)


def write_record(path: Path, record: Record) -> None:
    """Write a record as indented JSON, atomically."""
    write_text(path, record.model_dump_json(indent=1) + "\n")


def read_record(path: Path, kind: type[AnyRecord]) -> AnyRecord:
    """A record from a JSON file, migrated where it is of an older version.

    Raises: DataError naming the file, and the first wrong field or the version that is unknown.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _not_read(DataError, path, error) from error
    try:
        content = from_json(text)
    except ValueError as error:
        raise _unreadable(DataError, path, kind, "the whole file", f"Invalid JSON: {error}") from error
    content = _current(DataError, path, kind, content)
    try:
        return kind.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise _invalid(DataError, path, kind, error) from error


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write a recipe as the YAML that exllamav3's `--recipe` takes, atomically."""
    content = recipe.model_dump(mode="json", exclude_none=True)
    content["tensors"] = {key: int(bits) if bits == int(bits) else bits for key, bits in recipe.tensors.items()}
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def read_recipe(path: Path) -> Recipe:
    """A recipe from YAML, migrated where it is of an older version.

    Raises: RecipeError naming the file, and the first wrong field or the version that is unknown.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _not_read(RecipeError, path, error) from error
    content = _current(RecipeError, path, Recipe, content)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise _invalid(RecipeError, path, Recipe, error) from error


def _current(error: type[ExltuneError], path: Path, kind: type[Record], content: object) -> object:
    """The content as the current version has it, all of whose numbers are finite."""
    content = migrated(content, kind, str(path))
    field = first_not_finite(content)
    if field is not None:
        raise _unreadable(error, path, kind, field, "NaN and infinity are not numbers of a result")
    return content


def _not_read(kind: type[ExltuneError], path: Path, error: Exception) -> ExltuneError:
    reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
    return kind(f"it cannot be read ({reason})", where=str(path), fix="Check the path")


def _invalid(error: type[ExltuneError], path: Path, kind: type[Record], invalid: ValidationError) -> ExltuneError:
    first = invalid.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the whole file"
    return _unreadable(error, path, kind, field, first["msg"])


def _unreadable(error: type[ExltuneError], path: Path, kind: type[Record], field: str, reason: str) -> ExltuneError:
    return error(
        f"it is not a valid {format_of(kind).name} that this version of exltune reads: {field}: {reason}",
        where=str(path),
        fix="Mend that field, or make the file again",
    )


def canonical(content: object) -> str:
    """JSON with sorted keys: equal content, equal text."""
    return json.dumps(content, sort_keys=True, ensure_ascii=True)
