"""Which model a recipe belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exltune.exl3.tensors import read_json
from exltune.inventory import read_config
from exltune.schema.recipe import Recipe


def config_of_recipe(recipe: Recipe, source: Path, model: Path | None) -> tuple[dict[str, Any], str] | None:
    """The config and where it is from: `model` (directory or config), beside the recipe, or the model that it notes.

    Raises: NotAModelError, CorruptFileError.
    """
    if model is not None:
        return (read_json(model), str(model)) if model.is_file() else (read_config(model), str(model))
    noted = [Path(recipe.exltune.provenance.model_path)] if recipe.exltune is not None else []
    for folder in (source.parent, *noted):
        if (folder / "config.json").is_file():
            return read_config(folder), str(folder / "config.json")
    return None
