"""Files of every kind as samples, told apart by the endings of their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exltune.corpora.bundled import bundled_text_paths
from exltune.corpora.documents import text_documents
from exltune.corpora.files import domain_names, files_in
from exltune.corpora.jsonl import jsonl_samples
from exltune.corpora.packed import packed_samples
from exltune.corpora.parquet import parquet_samples
from exltune.corpora.sample import Sample
from exltune.corpora.tokenizer import ModelTokenizer
from exltune.errors import DataError
from exltune.schema.tokens import BUNDLED, DataSource

_JSONL = (".jsonl", ".ndjson")
_PARQUET = (".parquet",)
_PACKED = (".safetensors",)


def read_sources(sources: Sequence[DataSource], tokenizer: ModelTokenizer) -> list[Sample]:
    """The samples of all files, in their order; files of one domain are one after the other.

    `.jsonl` and `.ndjson` are JSON lines, `.parquet` tables, `.safetensors` packed tokens, all others plain UTF-8
    text. A source without a domain gives every file its own, named after its stem.

    Raises: DataError, CorruptFileError or UsageError naming the file and the row.
    """
    files = [(file, source.domain) for source in sources for file in _files(source)]
    names = iter(domain_names([file for file, domain in files if domain is None]))
    samples: list[Sample] = []
    for file, domain in files:
        samples += _read(file, domain if domain is not None else next(names), tokenizer)
    return samples


def _files(source: DataSource) -> list[Path]:
    return bundled_text_paths() if source.path == BUNDLED else files_in([source.path])


def _read(path: Path, domain: str, tokenizer: ModelTokenizer) -> Sequence[Sample]:
    kind = path.suffix.lower()
    if kind not in (*_JSONL, *_PARQUET, *_PACKED):
        return text_documents(path, domain)
    if not path.is_file():
        raise DataError("no such file", where=str(path), fix="Check the path given with `data`")
    if kind in _PACKED:
        samples: Sequence[Sample] = packed_samples(path, domain, tokenizer)
    else:
        samples = jsonl_samples(path, domain) if kind in _JSONL else parquet_samples(path, domain)
    if not samples:
        raise DataError("the file holds no chats, texts or tokens", where=str(path), fix="Give one that does")
    return samples
