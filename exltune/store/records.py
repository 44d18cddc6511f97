"""Records as JSON and YAML files, read with errors that name the file and the field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from exltune.errors import DataError, ExltuneError, RecipeError
from exltune.schema.base import Record
from exltune.schema.recipe import Recipe
from exltune.store.files import write_text

AnyRecord = TypeVar("AnyRecord", bound=Record)


def write_record(path: Path, record: Record) -> None:
    """Write a record as indented JSON, atomically."""
    write_text(path, record.model_dump_json(indent=1) + "\n")


def read_record(path: Path, kind: type[AnyRecord]) -> AnyRecord:
    """A record from a JSON file. Raises: DataError naming the file and the first wrong field."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise _unreadable(DataError, path, _words(kind), error) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _not_read(DataError, path, error) from error


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write a recipe as the YAML that exllamav3's `--recipe` takes, atomically."""
    content = recipe.model_dump(mode="json", exclude_none=True)
    content["tensors"] = {key: int(bits) if bits == int(bits) else bits for key, bits in recipe.tensors.items()}
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def read_recipe(path: Path) -> Recipe:
    """A recipe from YAML. Raises: RecipeError naming the file and the first wrong field."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _not_read(RecipeError, path, error) from error
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise _unreadable(RecipeError, path, "recipe", error) from error


def _not_read(kind: type[ExltuneError], path: Path, error: Exception) -> ExltuneError:
    reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
    return kind(f"it cannot be read ({reason})", where=str(path), fix="Check the path")


def _unreadable(kind: type[ExltuneError], path: Path, what: str, error: ValidationError) -> ExltuneError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the whole file"
    return kind(
        f"it is no {what} that this version of exltune reads: {field}: {first['msg']}",
        where=str(path),
        fix="Mend that field, or make the file again",
    )


def _words(kind: type[Record]) -> str:
    """TuneJob -> "tune job"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()


def canonical(content: object) -> str:
    """JSON with sorted keys: equal content, equal text."""
    return json.dumps(content, sort_keys=True, ensure_ascii=True)
