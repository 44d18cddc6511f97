"""Memory for speculative decoding beside the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from exltune.budget import Limits, cache_bytes, model_profile
from exltune.errors import UsageError
from exltune.exl3.directory import QuantDir
from exltune.inventory import read_config
from exltune.pipeline.deployment.plan import plan
from exltune.schema.deploy import DraftMode, DraftSettings
from exltune.schema.hardware import FP16_CACHE, Use
from exltune.schema.mix import UNQUANTIZED_BITS

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True)
class DraftOptions:
    """mode "model" needs the directory of the draft model; num_tokens: to draft at a time, None for its default."""

    mode: DraftMode
    directory: Path | None = None
    num_tokens: int | None = None


def draft_settings(options: DraftOptions, source: Path, context: int, use: Use) -> DraftSettings:
    """The settings with the bytes to set aside. context: tokens, for a cache at fp16 as TabbyAPI's default is.

    Raises: UsageError for a quant without the MTP layer asked for; all that planning the draft model raises.
    """
    if options.num_tokens is not None and options.num_tokens < 1:
        raise UsageError(f"`draft_tokens` {options.num_tokens} is not above 0", fix="Give a positive number")
    directory = None if options.directory is None else options.directory.resolve()
    size = 0
    if directory is not None:
        draft_use = Use(context=context, cache=FP16_CACHE, chunk=use.chunk, slots=use.slots)
        found = plan(QuantDir(directory).path, Limits(), draft_use)
        size = found.weights_bytes + found.kv_bytes
    elif options.mode == "mtp":
        size = _mtp_bytes(source, context)
    return DraftSettings(
        mode=options.mode,
        directory=None if directory is None else str(directory),
        num_tokens=options.num_tokens,
        size_bytes=size,
    )


def _mtp_bytes(source: Path, context: int) -> int:
    """Tensors of the MTP layer and one layer's cache, the largest that the model has."""
    if not source.is_dir():
        raise UsageError("`mtp` needs the quant itself: a recipe or config does not tell its MTP layer", fix="Build it")
    quant, config = QuantDir(source), read_config(source)
    profile = model_profile(config, quant.codebook(quant.keys[0]), str(source / "config.json"))
    layers = len(profile.layers)
    sizes = [entry.nbytes for name, entry in quant.files.entries.items() if _of_mtp(name, layers)]
    if not sizes:
        raise UsageError(
            f"`mtp`: {source} holds no MTP layer",
            fix="exltune's quants leave it out, and exllamav3 drops that of GLM-4.5 to 4.7: give `draft` or `ngram`",
        )
    return sum(sizes) + max(
        cache_bytes([layer.cache], context, UNQUANTIZED_BITS, UNQUANTIZED_BITS) for layer in profile.layers
    )


def _of_mtp(name: str, layers: int) -> bool:
    """`mtp.` at any depth, or a decoder layer beyond the last."""
    found = _LAYER.search(name)
    return "mtp." in name or (found is not None and int(found[1]) >= layers)
