"""Identities of results: equal identities mean equal results, so that finished work can be taken up again.

An identity is declared: the stage, the versions of the algorithms and libraries that compute there, and all inputs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib.metadata import entry_points, version

from exltune.schema.base import TOLD, Record
from exltune.schema.versions import ALGORITHMS, versions_of
from exltune.store.records import canonical

#: Entry points of engines from other packages.
ENGINE_GROUP = "exltune.engines"

#: Libraries of every engine's scores beside its own code.
_SCORING = ("streaming", "metrics", "format", "inventory")
_SCORING_LIBRARIES = ("torch", "transformers")
#: Engines whose own package computes.
_OF_ENGINE: Mapping[str, tuple[str, ...]] = {"exllamav3": ("exllamav3",)}


def identity(stage: str, *, algorithms: Iterable[str], libraries: Iterable[str] = (), **inputs: object) -> str:
    """sha256 (hex) over all that a result of a stage depends on.

    algorithms: names in exltune/schema/versions.py. libraries: distributions that compute there. inputs: plain values,
    records and dataclasses, each taken as a whole but for fields marked TOLD: a new field is part of it by itself.
    Raises: KeyError for an unknown algorithm, TypeError for an input that is not a plain value, such as a path.
    """
    content = {
        "stage": stage,
        "algorithms": versions_of(algorithms),
        "libraries": {library: version(library) for library in libraries},
        "inputs": plain(inputs),
    }
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def scoring_algorithms(engine: str) -> tuple[str, ...]:
    """Algorithms that decide a mix's scores on given tokens; an engine of another package versions its own code."""
    own = f"score.{engine}"
    return (own, *_SCORING) if own in ALGORITHMS else _SCORING


def scoring_libraries(engine: str) -> tuple[str, ...]:
    """Distributions that compute a score."""
    return (*_SCORING_LIBRARIES, *_OF_ENGINE.get(engine, ()))


def scoring_versions(engine: str) -> str:
    """The versions behind an engine's scores here, to be read: "score.reference 1, streaming 1, ..., torch 2.13.0"."""
    algorithms = versions_of(scoring_algorithms(engine))
    if (theirs := engine_version(engine)) is not None:
        algorithms = {f"score.{engine}": theirs, **algorithms}
    libraries = {library: version(library) for library in scoring_libraries(engine)}
    return ", ".join(f"{name} {number}" for name, number in (*algorithms.items(), *libraries.items()))


def engine_version(engine: str) -> int | None:
    """The version of an engine from another package: its class attribute `version`, 1 where it has none.

    None for an engine of exltune's own, whose algorithms have versions.
    """
    if f"score.{engine}" in ALGORITHMS:
        return None
    found = entry_points(group=ENGINE_GROUP, name=engine)
    return int(getattr(next(iter(found)).load(), "version", 1)) if found else 1


def plain(value: object) -> object:
    """A value as JSON has it; equal for numbers that are equal, such as 3 and 3.0.

    Raises: TypeError for anything that is not a record, a dataclass, a collection or a plain value.
    """
    if isinstance(value, Record):
        deciding = (name for name, field in type(value).model_fields.items() if TOLD not in field.metadata)
        return {name: plain(getattr(value, name)) for name in deciding}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value) if TOLD not in field.metadata}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, AbstractSet):
        return sorted((plain(entry) for entry in value), key=canonical)
    return _scalar(value)


def _scalar(value: object) -> object:
    if isinstance(value, Enum):
        return _scalar(value.value)
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else value
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{type(value).__name__} is not an input of an identity: {value!r}")
