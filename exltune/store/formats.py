"""Versions of the files that exltune reads: older ones are migrated step by step, unknown ones refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from exltune.errors import DataError, ExltuneError, RecipeError
from exltune.schema.base import Record
from exltune.schema.compare import TaskRuns
from exltune.schema.measurement import Measurement, MeasurementDetail
from exltune.schema.recipe import Recipe, RecipeDetail
from exltune.schema.tune import TuneJob

#: The content that holds the version -> the same, one version on.
Migration = Callable[[dict[str, Any]], dict[str, Any]]

_VERSION = "schema_version"


@dataclass(frozen=True)
class Format:
    """A kind of file. steps: version -> how content of it becomes that of the next one.

    detail, block: the record that holds the version, and the field where it stands; the file's own record if None.
    """

    name: str
    detail: type[Record]
    block: str | None = None
    steps: Mapping[int, Migration] = field(default_factory=dict)

    @property
    def current(self) -> int | None:
        """The version that this exltune writes; None for files that have none."""
        found = self.detail.model_fields.get(_VERSION)
        return None if found is None else int(found.default)


def format_of(kind: type[Record]) -> Format:
    """The format of the files that hold such records."""
    return _FORMATS.get(kind) or Format(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower(), kind)


def migrated(content: object, kind: type[Record], where: str) -> object:
    """Content of a file as the current version has it; files without a version are of the first.

    Other content is left as it is, for whoever validates it.
    Raises: RecipeError or DataError for an unknown version.
    """
    form = format_of(kind)
    ours = content if form.block is None or not isinstance(content, dict) else content.get(form.block)
    if form.current is None or not isinstance(content, dict) or not isinstance(ours, dict):
        return content
    version = ours.get(_VERSION, 1)
    if not isinstance(version, int) or isinstance(version, bool) or version == form.current:
        return content
    if version > form.current or version not in form.steps:
        raise _unknown(form, version, where)
    for number in range(version, form.current):
        ours = form.steps[number](ours) | {_VERSION: number + 1}
    return ours if form.block is None else content | {form.block: ours}


def first_not_finite(content: object) -> str | None:
    """The field of the first NaN or infinity in a file's content, such as `rows.0.kl`; None where there is none."""
    return next((".".join(path) or "the whole file" for path in _not_finite(content, ())), None)


def _not_finite(content: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(content, float) and not math.isfinite(content):
        yield path
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, entry in entries:
        yield from _not_finite(entry, (*path, str(key)))


def _unknown(form: Format, version: int, where: str) -> ExltuneError:
    kind = RecipeError if form.detail is RecipeDetail else DataError
    newer = form.current is not None and version > form.current
    known = f"up to {form.current}" if newer else f"from {min((*form.steps, form.current or 1))} on"
    article = "an" if form.name[0] in "aeiou" else "a"
    return kind(
        f"it is {article} {form.name} of schema {version}, and this exltune reads {known}",
        where=where,
        fix="Update exltune, or make the file again with this one" if newer else "Make the file again",
    )


def _saliency(detail: dict[str, Any]) -> dict[str, Any]:
    """Measurement 1 to 2: `salience` of tensors is called `saliency`."""
    return _renamed_in(detail, "tensors", "salience", "saliency")


def _incumbent(detail: dict[str, Any]) -> dict[str, Any]:
    """Recipe 1 to 2: `held_kld` of the search's rounds is called `incumbent_kld`."""
    search = detail.get("search")
    return (
        detail | {"search": _renamed_in(search, "rounds", "held_kld", "incumbent_kld")}
        if isinstance(search, dict)
        else detail
    )


def _budget(job: dict[str, Any]) -> dict[str, Any]:
    """Tune job 1 to 2: a target in bpw became one of several limits, written as options."""
    target = job.get("target_bpw")
    rest = {name: value for name, value in job.items() if name != "target_bpw"}
    return rest | {"budget": ["--target-bpw", f"{target:.12g}"]} if isinstance(target, int | float) else job


def _renamed_in(content: dict[str, Any], name: str, before: str, after: str) -> dict[str, Any]:
    """The same with a field of every entry of a list under another name."""
    entries = content.get(name)
    if not isinstance(entries, list):
        return content
    return content | {name: [_renamed(entry, before, after) for entry in entries]}


def _renamed(entry: object, before: str, after: str) -> object:
    if not isinstance(entry, dict):
        return entry
    return {after if key == before else key: value for key, value in entry.items()}


_FORMATS: Mapping[type[Record], Format] = {
    Measurement: Format("measurement", MeasurementDetail, "exltune", {1: _saliency}),
    Recipe: Format("recipe", RecipeDetail, "exltune", {1: _incumbent}),
    TuneJob: Format("tune job", TuneJob, steps={1: _budget}),
    TaskRuns: Format("file of task runs", TaskRuns),
}
