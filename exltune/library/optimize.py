"""The search for the best mix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Unpack

from exltune.library import arguments
from exltune.library.arguments import PathArgument, optional
from exltune.library.budgets import BudgetArguments, limits_of, use_of
from exltune.library.files import measurement_of
from exltune.library.sessions import (
    EngineArguments,
    engine_options,
    refuse_beside_session,
    reporter_of,
    store_of,
)
from exltune.library.texts import DataArgument, data_options
from exltune.pipeline.common.session import Session
from exltune.pipeline.measurement.measured import session_of
from exltune.pipeline.optimization.optimize import OptimizeOptions
from exltune.pipeline.optimization.optimize import optimize as run
from exltune.schema.heuristics import Heuristics
from exltune.schema.measurement import Measurement
from exltune.schema.recipe import Recipe
from exltune.schema.tokens import DataOptions
from exltune.search import SearchOptions, load_all_rules, load_rules
from exltune.search.space.space import SpaceOptions


class OptimizeArguments(BudgetArguments, EngineArguments, total=False):
    """The limits of a mix, and the engine."""


def optimize(
    measurement: Measurement | PathArgument,
    *,
    head_bits: float | Literal["auto"] | None = None,
    floors: Sequence[PathArgument] = (),
    rules: Sequence[PathArgument] = (),
    keep_fused: bool = False,
    passes: float = 48.0,
    seconds: float | None = None,
    sampler: str = "tpe",
    seed: int = 0,
    model: PathArgument | None = None,
    quants: PathArgument | None = None,
    data: DataArgument | None = None,
    session: Session | None = None,
    out: PathArgument | None = None,
    force: bool = False,
    **more: Unpack[OptimizeArguments],
) -> Recipe:
    """Search the best mix within a budget and judge it on fresh rows against every other method.

    Scores are kept in `store`: the same call again takes those that are there, and comes to the same recipe. Where the
    base quants are not at hand the best prediction wins, and nothing is scored.

    Args:
        measurement: The result of `measure`, or its file.
        head_bits: Bits of the head, or "auto" for the search to choose them; the measurement's if not given.
        floors: Rules (names or files) that no mix may fall below.
        rules: Your own rules (files) as one more method each.
        keep_fused: Whether k and v, and gate and up, must have equal bits.
        passes: Model passes over the search set that the search may spend.
        seconds: Bound of the search's time.
        sampler: Optuna's sampler of the search's knobs.
        seed: Of the search.
        model: The model's directory, if it moved since it was measured.
        quants: The folder of base quants, if they moved.
        data: The texts, if they moved.
        session: A session on the measured model, instead of these three and of engine, store and progress.
        out: YAML file to write the recipe to; none if not given.
        force: Whether `out` may be replaced.
        **more: The budget (`target_bpw`, `size`, `vram`, `gpus`, `ram`, `context`, `cache`, `chunk`, `slots`,
            `tensor_parallel`, `offload_layers`: BudgetArguments), and the engine (`engine`, `devices`, `max_ram`,
            `max_vram`, `ray`, `ray_cpus`, `store`, `progress`: EngineArguments).

    Returns:
        The recipe; `recipe.exltune.search.standings` tells how every method stands.

    Raises:
        UsageError: An argument is of a wrong type or value, or contradicts another.
        BudgetError: Nothing fits.
        QuantMismatchError: Model or quants are not those that were measured.
        DataError: The measurement cannot be read, or the texts are not those that were measured.
        OutputExistsError: `out` is there.

    Example:
        ```python
        measurement = exltune.load_measurement("measurements/glm4moe.json")
        recipe = exltune.optimize(measurement, target_bpw=3.4, model="models/glm4moe")
        print(recipe.exltune.source, recipe.achieved_bpw)
        ```
    """
    arguments.refuse_unknown(more, OptimizeArguments.__optional_keys__, "optimize")
    measured = measurement_of(measurement)
    asked = SpaceOptions(
        limits_of(more),
        use_of(more),
        cache=optional(arguments.cache_or_auto, "cache", more.get("cache")),
        head=optional(arguments.number_or_auto, "head_bits", head_bits),
        floors=_floors(floors),
        keep_fused=arguments.flag("keep_fused", keep_fused),
    )
    own = tuple(load_rules(file) for file in arguments.paths("rules", rules))
    settings = search_options(passes, seconds, seed, sampler=sampler, rules=own)
    file, force = optional(arguments.path, "out", out), arguments.flag("force", force)
    moved = {"model": model, "quants": quants, "data": data}
    with _session(session, measured, moved, more, file) as opened:
        return run(opened, measured, asked, file, settings=settings, force=force).recipe


def search_options(
    passes: object, seconds: object, seed: object, *, sampler: object = "tpe", rules: Iterable[Heuristics] = ()
) -> OptimizeOptions:
    """How to search. Raises: UsageError."""
    wanted = "a number of 0 or more"
    return OptimizeOptions(
        SearchOptions(
            passes=arguments.number("passes", passes, wanted, least=0), seed=arguments.whole("seed", seed, least=0)
        ),
        tuple(rules),
        sampler=arguments.text("sampler", sampler),
        seconds=optional(lambda name, value: arguments.number(name, value, wanted, least=0), "seconds", seconds),
    )


@contextmanager
def _session(
    session: object, measured: Measurement, moved: Mapping[str, Any], given: Mapping[str, Any], out: Path | None
) -> Iterator[Session]:
    """The session that was given, or one on the measured model for this call alone."""
    if isinstance(session, Session):
        beside = {name: value for name, value in moved.items() if value is not None}
        opened_with = {name: value for name, value in given.items() if name in EngineArguments.__optional_keys__}
        refuse_beside_session({**beside, **opened_with})
        yield session
        return
    if session is not None:
        raise arguments.wrong("session", session, "a session of open_session")
    with session_of(
        measured,
        model=optional(arguments.path, "model", moved["model"]),
        quants=optional(arguments.path, "quants", moved["quants"]),
        data=_moved_data(moved["data"], measured.exltune.data),
        engine=engine_options(given),
        store=store_of(given, out),
        reporter=reporter_of(given),
    ) as opened:
        yield opened


def _moved_data(data: object, measured: DataOptions) -> DataOptions | None:
    """The texts at their new places, dealt as they were measured."""
    if data is None or isinstance(data, DataOptions):
        return data
    given = data_options(data, {})
    return measured.model_copy(update={"texts": given.texts, "sources": given.sources})


def _floors(floors: object) -> tuple[Heuristics, ...]:
    known = {rules.name: rules for rules in load_all_rules()}
    return tuple(
        known[str(one)] if str(one) in known else load_rules(one)
        for one in arguments.paths("floors", floors, "a list of names or files of rules")
    )
