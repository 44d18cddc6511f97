"""The whole chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from exltune.exl3.codebooks import Codebook
from exltune.library import arguments
from exltune.library.arguments import PathArgument, optional
from exltune.library.budgets import BudgetArguments, limits_of, use_of
from exltune.library.optimize import search_options
from exltune.library.quantize import HeadBits, options_of
from exltune.library.sessions import SessionArguments, session_on
from exltune.library.tables import EvaluationTable
from exltune.pipeline.common.session import Session
from exltune.pipeline.tune import evaluation_of
from exltune.pipeline.tune import tune as run
from exltune.schema.defaults import DEFAULT_WIDTHS, WIDE_WIDTHS
from exltune.schema.evaluation import Verdict
from exltune.schema.recipe import Recipe
from exltune.search.space.space import SpaceOptions
from exltune.store.records import read_recipe

_LEVELS = range(5)


class TuneArguments(BudgetArguments, SessionArguments, total=False):
    """The limits of a mix, the texts, and the engine."""


@dataclass(frozen=True)
class Tuned:
    """The result of a tune.

    Attributes:
        path: Directory of the tuned model.
        recipe: Its recipe.
        verdict: The tuned model against the uniform quant, on held-out text.
        table: Base quants, the uniform quant and the tuned model on held-out text.
    """

    path: Path
    recipe: Recipe
    verdict: Verdict
    table: EvaluationTable


def tune(
    model: PathArgument | Session,
    out: PathArgument,
    *,
    bits: float | Sequence[float] | None = None,
    head_bits: HeadBits = "auto",
    codebook: Codebook = "mul1",
    level: int = 3,
    passes: float = 48.0,
    seconds: float | None = None,
    **more: Unpack[TuneArguments],
) -> Tuned:
    """Run the whole chain in a directory, from a model to a tuned, proven quant.

    The same call again goes on where it was stopped. The search mixes the widths of `bits`; with several heads it
    chooses the head's too, in the same bytes. Quants and scores lie in `out`.

    Args:
        model: The unquantized model's directory, or a session on it that has opened no quants yet.
        out: Directory of the tune.
        bits: Bit widths of the base quants; 2 to 8, half rates too where the codebook has them, if not given.
        head_bits: Bits of the heads: one for all, one for each of `bits`, or "auto" for 3 to 8 bits.
        codebook: "mul1", "mcg" or "3inst".
        level: The parts that are swapped, as of `measure`.
        passes: Model passes over the search set that the search may spend.
        seconds: Bound of the search's time.
        **more: The budget, as of `optimize`; texts and engine, as `open_session` takes them.

    Returns:
        The tuned model, its recipe and the verdict.

    Raises:
        UsageError: An argument is of a wrong type or value, or contradicts another.
        BudgetError: Nothing fits; this is found before any work.
        ModelError: The model cannot be used.
        DataError: There are too few texts.
        OutputExistsError: `out` holds something else.

    Example:
        ```python
        tuned = exltune.tune("MODEL", "out/", gpus="2x24GiB", context=65536, cache="auto")
        print(tuned.path, tuned.verdict.difference)
        ```
    """
    arguments.refuse_unknown(more, TuneArguments.__optional_keys__, "tune")
    widths = (WIDE_WIDTHS if codebook == "mul1" else DEFAULT_WIDTHS) if bits is None else bits
    settings = options_of(widths, head_bits, codebook)
    asked = SpaceOptions(
        limits_of(more),
        use_of(more),
        cache=optional(arguments.cache_or_auto, "cache", more.get("cache")),
        head="auto" if len(settings.head_bits) > 1 else None,
    )
    number, folder = arguments.one_of("level", level, _LEVELS), arguments.path("out", out)
    given = {name: value for name, value in more.items() if name in SessionArguments.__optional_keys__}
    with session_on(model, given, "tune") as session:
        search = search_options(passes, seconds, session.data.seed)
        found = run(session, folder, asked, settings, level=number, search=search)
    return Tuned(
        Path(found.model), read_recipe(Path(found.recipe)), found.verdict, EvaluationTable(evaluation_of(folder))
    )
