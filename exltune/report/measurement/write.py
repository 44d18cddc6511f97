"""`exltune report`: from files to files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from exltune.errors import OutputExistsError, QuantMismatchError, UsageError
from exltune.report.measurement.numbers import report_of
from exltune.report.measurement.pictures import PICTURES, drawn
from exltune.schema.measurement import Measurement
from exltune.schema.recipe import Recipe
from exltune.schema.report import ReportResult
from exltune.store.files import refuse_existing_file, write_bytes, write_text
from exltune.store.records import read_recipe, read_record


def report(
    file: Path, out: Path, *, recipe: Path | None = None, pictures: Path | None = None, force: bool = False
) -> ReportResult:
    """Write a measurement as one HTML file, and as PNGs to the folder `pictures`.

    recipe: whose search scored further mixes. force replaces files that are there.
    Raises: UsageError without plotly, DataError for a file that is not a measurement, RecipeError, QuantMismatchError
    for a recipe of another model, OutputExistsError.
    """
    _check_plotly()
    from exltune.report.measurement.page import report_page

    if pictures is not None and pictures.is_file():
        raise OutputExistsError("it is a file, and pictures go into a folder", where=str(pictures), fix="Name a folder")
    names = {} if pictures is None else {name: pictures / name for name in PICTURES}
    for path in (out, *names.values()):
        refuse_existing_file(path, force=force)
    measurement = read_record(file, Measurement)
    content = report_of(measurement, file, None if recipe is None else _recipe(recipe, measurement))
    page = report_page(content)
    images = {names[name]: picture for name, picture in drawn(content).items()} if names else {}
    write_text(out, page)
    for path, picture in images.items():
        write_bytes(path, picture)
    return ReportResult(
        report=str(out),
        report_bytes=len(page.encode("utf-8")),
        pictures=tuple(str(path) for path in images),
        content=content,
    )


def _check_plotly() -> None:
    """Before anything is read. Raises: UsageError where the extra is not installed."""
    try:
        import_module("plotly")
    except ImportError as error:
        raise UsageError(
            "the report's page needs plotly, which is not installed", fix="pip install 'exltune[report]'"
        ) from error


def _recipe(path: Path, measurement: Measurement) -> Recipe:
    recipe = read_recipe(path)
    ours = measurement.exltune.provenance.model_sha256
    if recipe.exltune is not None and recipe.exltune.provenance.model_sha256 != ours:
        raise QuantMismatchError(
            "the recipe is of another model than the measurement", where=str(path), fix="Give that model's recipe"
        )
    return recipe
