"""Records from files."""

from __future__ import annotations

from exltune.library import arguments
from exltune.library.arguments import PathArgument
from exltune.schema.measurement import Measurement
from exltune.schema.recipe import Recipe
from exltune.store.records import read_recipe, read_record


def load_measurement(path: PathArgument) -> Measurement:
    """Read a measurement; one of an older version is migrated.

    Args:
        path: The JSON file that `measure` wrote.

    Returns:
        The measurement, as `optimize` takes it.

    Raises:
        UsageError: `path` is not a path.
        DataError: The file cannot be read, is not a measurement, or is of an unknown version.

    Example:
        ```python
        measurement = exltune.load_measurement("measurements/glm4moe.json")
        print(measurement.arch_string, measurement.base_kld)
        ```
    """
    return read_record(arguments.path("path", path), Measurement)


def load_recipe(path: PathArgument) -> Recipe:
    """Read a recipe, one of exllamav3's own too; one of an older version is migrated.

    Args:
        path: The YAML file that `optimize` wrote, or any that exllamav3's `--recipe` takes.

    Returns:
        The recipe, as `build` takes it.

    Raises:
        UsageError: `path` is not a path.
        RecipeError: The file cannot be read, is not a recipe, or is of an unknown version.

    Example:
        ```python
        recipe = exltune.load_recipe("recipe.yaml")
        print(recipe.achieved_bpw, recipe.head_bits)
        ```
    """
    return read_recipe(arguments.path("path", path))


def measurement_of(value: object) -> Measurement:
    """A measurement, or that of a file. Raises: UsageError, as load_measurement."""
    if isinstance(value, Measurement):
        return value
    return read_record(arguments.path("measurement", value, "a Measurement, or the path of its file"), Measurement)


def recipe_of(value: object) -> Recipe:
    """A recipe, or that of a file. Raises: UsageError, as load_recipe."""
    if isinstance(value, Recipe):
        return value
    return read_recipe(arguments.path("recipe", value, "a Recipe, or the path of its file"))
