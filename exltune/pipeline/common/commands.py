"""Command lines that make a record's numbers again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path, PurePath

from exltune.schema.tokens import DataOptions, DataSource, Texts
from exltune.search.space.space import SpaceOptions


def command_line(words: Sequence[str], data: DataOptions, more: Sequence[str] = (), out: Path | None = None) -> str:
    """`exltune` with these words, the data's options, `more` and the output.

    Small models' own texts have no option: a comment tells of them, and the script that took them is to be run again.
    """
    taken = data_words(data)
    written = ["--out", str(out)] if out is not None else []
    line = shlex.join(["exltune", *words, *taken, *more, *written])
    return f"{line}  # from Python, on the texts of the small models" if data.texts is Texts.SMALL_MODEL else line


def data_words(data: DataOptions, *, published: bool = False) -> list[str]:
    """The options that give these settings; published: files by their names alone, without this machine's folders."""
    words = [word for source in data.sources for word in ("--data", _entry(source, published=published))]
    if data.weights:
        words += ["--weights", ",".join(f"{domain}={weight!r}" for domain, weight in data.weights)]
    for option, value in (("--samples", data.samples), ("--sample-tokens", data.sample_tokens)):
        words += [] if value is None else [option, str(value)]
    return [*words, "--rows", str(data.rows), "--row-length", str(data.row_length), "--seed", str(data.seed)]


def _entry(source: DataSource, *, published: bool) -> str:
    path = PurePath(source.path).name if published else source.path
    return path if source.domain is None else f"{source.domain}={path}"


def budget_words(asked: SpaceOptions) -> tuple[str, ...]:
    """The options that ask for this budget, sizes to the byte; without its floors and the head."""
    hardware, use = asked.limits.hardware, asked.use
    values = {
        "--target-bpw": None if asked.limits.target_bpw is None else f"{asked.limits.target_bpw:.12g}",
        "--size": _bytes(asked.limits.size_bytes),
        "--vram": _bytes(hardware.vram_bytes),
        "--gpus": ",".join(f"{size}B" for size in hardware.gpus) or None,
        "--ram": _bytes(hardware.ram_bytes),
        "--context": use.context,
        "--cache": asked.cache,
        "--chunk": use.chunk if hardware.gpus or hardware.vram_bytes else None,
        "--slots": use.slots if hardware.gpus or hardware.vram_bytes else None,
        "--offload-layers": use.offload_layers or None,
    }
    words = [word for option, value in values.items() if value is not None for word in (option, str(value))]
    return (*words, *(["--tensor-parallel"] if use.tensor_parallel else []))


def _bytes(size: int | None) -> str | None:
    return None if size is None else f"{size}B"
