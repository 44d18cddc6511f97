"""Texts as Python names them: paths, paths by domain, or the record that says all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from exltune.errors import UsageError
from exltune.library import arguments
from exltune.library.arguments import PathArgument
from exltune.schema.tokens import BUNDLED, DataOptions, DataSource, Texts

#: One file or folder, several, or one or several for each domain. "bundled" stands for exllamav3's texts.
DataArgument: TypeAlias = (
    PathArgument | Sequence[PathArgument] | Mapping[str, PathArgument | Sequence[PathArgument]] | DataOptions
)
#: Settings of texts: keywords that DataOptions has too.
SETTINGS = ("rows", "row_length", "seed", "weights", "samples", "sample_tokens")
_WANTED = 'a path, a list of paths, {"domain": path}, or DataOptions'


def data_options(data: object, settings: Mapping[str, Any]) -> DataOptions:
    """The texts of token sets: exllamav3's bundled texts where `data` is None.

    settings: those of SETTINGS that were given. Raises: UsageError.
    """
    if isinstance(data, DataOptions):
        if settings:
            raise UsageError(f"`data` is DataOptions, which has `{next(iter(settings))}` too", fix="Say it there")
        return data
    sources = () if data is None else tuple(_sources(data))
    fields = dict(settings)
    if "weights" in fields:
        fields["weights"] = _weights(fields["weights"])
    try:
        return DataOptions(texts=Texts.FILES if sources else Texts.BUNDLED, sources=sources, **fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise arguments.wrong(str(first["loc"][0]), first["input"], f"another value: {first['msg']}") from error


def _sources(data: object) -> Iterator[DataSource]:
    if isinstance(data, Mapping):
        for domain, files in data.items():
            named = arguments.text("data", domain, "names of domains (str) as keys")
            yield from (_source(f"data[{named!r}]", file, named) for file in _listed(files))
    else:
        yield from (_source("data", file, None) for file in _listed(data))


def _listed(files: object) -> Iterable[object]:
    """One file is a list of one."""
    is_several = isinstance(files, Iterable) and not isinstance(files, (str, bytes))
    return files if is_several and isinstance(files, Iterable) else (files,)


def _source(name: str, file: object, domain: str | None) -> DataSource:
    found = arguments.path(name, file, _WANTED)
    return DataSource(path=BUNDLED if found == Path(BUNDLED) else str(found.resolve()), domain=domain)


def _weights(weights: object) -> tuple[tuple[str, float], ...]:
    if not isinstance(weights, Mapping):
        raise arguments.wrong("weights", weights, 'shares by domain, such as {"math": 2.0}')
    found = {str(domain): arguments.number(f"weights[{domain!r}]", share) for domain, share in weights.items()}
    return tuple(sorted(found.items()))
