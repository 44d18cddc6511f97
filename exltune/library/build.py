"""The mixed EXL3 model of a recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, cast, get_args

from exltune.errors import UsageError
from exltune.exl3.codebooks import Codebook
from exltune.library import arguments
from exltune.library.arguments import PathArgument, optional
from exltune.library.files import recipe_of
from exltune.library.sessions import SessionArguments, refuse_beside_session, reporter_of, session_on
from exltune.pipeline.common.session import Session
from exltune.pipeline.quants.build import build as splice
from exltune.pipeline.quants.requantize import requantize as anew
from exltune.schema.mix import MixSize
from exltune.schema.recipe import Recipe
from exltune.store.quants.base_quants import find_base_quants


@dataclass(frozen=True)
class Built(os.PathLike[str]):
    """An EXL3 model that was built; it is a path wherever one is taken.

    Attributes:
        path: Its directory.
        size_bytes: Bytes of linears and head.
        bpw: Bits per weight of all linears but the head, as exllamav3 counts them.
        head_bpw: The same of the head.
        recipe: Its recipe.
    """

    path: Path
    size_bytes: int
    bpw: float
    head_bpw: float
    recipe: Recipe

    def __fspath__(self) -> str:
        return str(self.path)


def build(
    recipe: Recipe | PathArgument,
    *,
    out: PathArgument,
    quants: PathArgument | None = None,
    model: PathArgument | None = None,
    session: Session | None = None,
    requantize: bool = False,
    codebook: Codebook = "mul1",
    force: bool = False,
    **more: Unpack[SessionArguments],
) -> Built:
    """Build the mixed EXL3 model of a recipe: from base quants, bit for bit, or quantized anew from the model.

    Args:
        recipe: A recipe of `optimize`, or a recipe file, exllamav3's own too.
        out: Directory of the model.
        quants: Folder of the base quants to take from.
        model: The unquantized model: for linears that stay at 16 bits, and for `requantize`.
        session: A session with quants and model, instead of these two.
        requantize: Quantize the model anew with the recipe; a little better, much longer.
        codebook: Of a model that is quantized anew.
        force: Whether `out` may be replaced.
        **more: Texts and engine of `requantize`, as `open_session` takes them; `progress` otherwise.

    Returns:
        Where the model is, and its size.

    Raises:
        UsageError: An argument is of a wrong type or value, or contradicts another.
        RecipeError: The recipe cannot be read, or does not fit the model.
        QuantMismatchError: The quants are not those that the recipe was made for.
        OutputExistsError: `out` is there.

    Example:
        ```python
        tuned = exltune.build("recipe.yaml", quants="quants/", out="tuned/")
        print(tuned.path, tuned.size_bytes, tuned.bpw)
        ```
    """
    made, directory = recipe_of(recipe), arguments.path("out", out)
    book = cast(Codebook, arguments.one_of("codebook", codebook, get_args(Codebook)))
    force = arguments.flag("force", force)
    arguments.refuse_unknown(more, SessionArguments.__optional_keys__, "build")
    if session is not None and not isinstance(session, Session):
        raise arguments.wrong("session", session, "a session of open_session")
    if session is not None:
        refuse_beside_session({name: one for name, one in (("quants", quants), ("model", model)) if one is not None})
    if arguments.flag("requantize", requantize):
        source = session or model
        if source is None:
            raise UsageError("`requantize` needs the unquantized model", fix="Give `model`")
        with session_on(source, more, "build") as opened:
            size = anew(opened, made, directory, codebook=book, force=force)
    else:
        size = _spliced(made, directory, quants, model, session, more, force)
    return Built(directory, size.size_bytes, size.bpw, size.head_bpw, made)


def _spliced(
    recipe: Recipe,
    out: Path,
    quants: PathArgument | None,
    model: PathArgument | None,
    session: Session | None,
    given: Mapping[str, Any],
    force: bool,
) -> MixSize:
    """From base quants, whose bits no engine and no text changes."""
    if session is not None:
        refuse_beside_session(given)
        return splice(recipe, session.base_quants, out, model=session.model, force=force, reporter=session.reporter)
    for name in given.keys() - {"progress"}:
        raise UsageError(f"`{name}` goes with `requantize` alone", fix=f"Leave `{name}` out, or set requantize=True")
    if quants is None:
        raise UsageError("there are no base quants to take from", fix="Give `quants`, or `model` and requantize=True")
    source = optional(arguments.path, "model", model)
    found = find_base_quants(arguments.path("quants", quants), source)
    return splice(recipe, found, out, model=source, force=force, reporter=reporter_of(given))
