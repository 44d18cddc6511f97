"""Sessions from plain arguments, for all functions that score or quantize."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, Unpack

from exltune.engines import Resources
from exltune.engines.ray.options import RayOptions
from exltune.errors import UsageError
from exltune.library import arguments
from exltune.library.arguments import PathArgument, SizeArgument, optional
from exltune.library.progress import CallbackReporter, ProgressCallback
from exltune.library.texts import SETTINGS, DataArgument, data_options
from exltune.pipeline.common.session import EngineOptions, Session
from exltune.store.names import SCORES


class EngineArguments(TypedDict, total=False):
    """The engine, the store of scores, and the callback of progress.

    Attributes:
        engine: "auto", "reference" (CPU), "exllamav3" (CUDA), or one of another distribution.
        devices: Numbers of CUDA devices; all if not given.
        max_ram: Hidden states in RAM at one time, of each worker: bytes, or text as "8GiB".
        max_vram: The most that may be taken of each CUDA device.
        ray: Address of a Ray cluster to score on, or "auto" for the one that runs here, or a new one.
        ray_cpus: Cores of a worker where the engine runs on the CPU.
        store: SQLite file or database URL of the scores; `scores.db` beside `out`, or in the user's cache directory
            without an `out`, if not given.
        progress: Called as (stage, done, total, what).
    """

    engine: str
    devices: Sequence[int]
    max_ram: SizeArgument
    max_vram: SizeArgument
    ray: str
    ray_cpus: int
    store: PathArgument
    progress: ProgressCallback


class SessionArguments(EngineArguments, total=False):
    """Which texts there are; and all of EngineArguments.

    Attributes:
        data: Files or folders with texts, chats (.jsonl, .parquet) or packed tokens, instead of exllamav3's bundled
            texts; by domain as a mapping.
        rows: Over all four token sets together.
        row_length: Tokens in a row.
        seed: By which texts are dealt to the sets.
        weights: Domain -> its share.
        samples: Documents taken of each domain.
        sample_tokens: Tokens after which a document is cut.
    """

    data: DataArgument | None
    rows: int
    row_length: int
    seed: int
    weights: Mapping[str, float]
    samples: int
    sample_tokens: int


def open_session(
    model: PathArgument, *, quants: PathArgument | None = None, **more: Unpack[SessionArguments]
) -> Session:
    """Open a model once for several calls: its quants, texts, engine and scores are shared by all of them.

    Opening costs nothing; every part is read when a call first needs it. Functions take the session in place of the
    model, or as `session`.

    Args:
        model: The reference: an unquantized model directory, or an EXL3 directory that stands for it.
        quants: Folder of base quants, as `quantize` makes it.
        **more: Texts and engine: `data`, `rows`, `row_length`, `seed`, `weights`, `samples`, `sample_tokens`,
            `engine`, `devices`, `max_ram`, `max_vram`, `ray`, `ray_cpus`, `store`, `progress` (SessionArguments).

    Returns:
        The session, to be used in a `with` block: an engine may hold workers of a cluster.

    Raises:
        UsageError: An argument is of a wrong type or value.

    Example:
        ```python
        with exltune.open_session("MODEL", quants="quants/", data="texts/") as session:
            measurement = exltune.measure(session)
            recipe = exltune.optimize(measurement, target_bpw=3.15, session=session)
        ```
    """
    arguments.refuse_unknown(more, SessionArguments.__optional_keys__, "open_session")
    return made(arguments.path("model", model), more, quants=optional(arguments.path, "quants", quants))


@contextmanager
def session_on(
    model: PathArgument | Session,
    given: Mapping[str, Any],
    function: str,
    *,
    argument: str = "model",
    quants: PathArgument | None = None,
    out: Path | None = None,
) -> Iterator[Session]:
    """The session that was given in place of a model, or one for this call alone.

    given: SessionArguments. argument: the name under which `model` was given. Raises: UsageError, TypeError.
    """
    arguments.refuse_unknown(given, SessionArguments.__optional_keys__, function)
    if isinstance(model, Session):
        refuse_beside_session({**given, **({} if quants is None else {"quants": quants})})
        yield model
        return
    directory = arguments.path(argument, model, "the path of a model directory, or a Session")
    with made(directory, given, quants=optional(arguments.path, "quants", quants), out=out) as session:
        yield session


def made(model: Path, given: Mapping[str, Any], *, quants: Path | None = None, out: Path | None = None) -> Session:
    """A session from SessionArguments; scores lie beside `out` where no store is named. Raises: UsageError."""
    settings = {name: given[name] for name in SETTINGS if name in given}
    return Session(
        model,
        data_options(given.get("data"), settings),
        quants=quants,
        engine=engine_options(given),
        store=store_of(given, out),
        reporter=reporter_of(given),
    )


def engine_options(given: Mapping[str, Any]) -> EngineOptions:
    """The engine, its resources, and the cluster. Raises: UsageError."""
    devices = given.get("devices", ())
    if isinstance(devices, (str, bytes)) or not isinstance(devices, Sequence):
        raise arguments.wrong("devices", devices, "a list of numbers of CUDA devices, such as [0, 1]")
    resources = Resources(
        tuple(arguments.whole(f"devices[{place}]", one, least=0) for place, one in enumerate(devices)),
        state_bytes=optional(arguments.size, "max_ram", given.get("max_ram")),
        vram_bytes=optional(arguments.size, "max_vram", given.get("max_vram")),
    )
    return EngineOptions(arguments.text("engine", given.get("engine", "auto")), resources, _ray_options(given))


def store_of(given: Mapping[str, Any], out: Path | None) -> str | Path | None:
    """Where scores are kept: a file or URL; None for the user's own file. Raises: UsageError."""
    store = given.get("store")
    if isinstance(store, str):
        return store  # A URL is not a path.
    return (None if out is None else out.with_name(SCORES)) if store is None else arguments.path("store", store)


def reporter_of(given: Mapping[str, Any]) -> CallbackReporter:
    """Who is told of the progress. Raises: UsageError."""
    progress = given.get("progress")
    if progress is not None and not callable(progress):
        raise arguments.wrong("progress", progress, "a function of (stage, done, total, what)")
    return CallbackReporter(progress)


def refuse_beside_session(given: Mapping[str, object]) -> None:
    """Raises: UsageError for arguments that the session has already."""
    for name in given:
        raise UsageError(f"`{name}` is given beside a session, which has its own", fix="Give it to open_session")


def _ray_options(given: Mapping[str, Any]) -> RayOptions | None:
    cpus = optional(lambda name, value: arguments.whole(name, value, least=1), "ray_cpus", given.get("ray_cpus"))
    if given.get("ray") is None:
        if cpus is not None:
            raise UsageError("`ray_cpus` needs `ray`", fix='Give ray="auto", or leave `ray_cpus` out')
        return None
    return RayOptions(arguments.text("ray", given["ray"]), cpus or 1)
