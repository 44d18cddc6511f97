"""Constants of the overhead from a real machine's readings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from exltune.budget.memory.profile import ModelProfile
from exltune.budget.placement.demand import workload
from exltune.budget.units import parse_size
from exltune.errors import DataError
from exltune.schema.hardware import Overheads, Reading, Readings, Recalibrated, Use

#: Overhead -> the reading that replaces it: the largest one, so that every card that was read would fit.
_REPLACED = {"context_bytes": "non_torch", "arena_tail_bytes": "weights_arena_tail"}
#: How the names of those constants end that are sizes; the others are counts and factors.
_SIZE = "_bytes"


def recalibrate(
    readings: Readings, profile: ModelProfile, use: Use, overheads: Overheads | None = None
) -> tuple[Overheads, tuple[Recalibrated, ...]]:
    """The constants that the readings imply, and which of them changed.

    Context and arena tail become the largest reading. Transients and static buffers, which are computed from shapes,
    are scaled by the least-squares fit through the origin of measured over computed; the readings must come from the
    model that is planned. `constants` replaces any constant by name, last.
    Raises: DataError naming the reading and its field.
    """
    before = overheads or Overheads()
    changes: dict[str, Any] = {}
    for constant, field in _REPLACED.items():
        seen = _sizes(readings.readings, field)
        if seen:
            changes[constant] = max(size for _, size in seen)
    changes |= _factors(readings.readings, profile, use, before)
    changes |= {name: _constant(name, value) for name, value in readings.constants.items()}
    try:
        after = Overheads.model_validate(before.model_dump() | changes)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(
            f"constants.{field}: {first['msg']}", fix=f"Known are: {', '.join(Overheads.model_fields)}"
        ) from error
    return after, _changed(before, after)


def _factors(readings: Sequence[Reading], profile: ModelProfile, use: Use, overheads: Overheads) -> dict[str, float]:
    found: dict[str, float] = {}
    measured = [(reading.chunk, size) for reading, size in _sizes(readings, "largest_transient")]
    if any(chunk is None for chunk, _ in measured):
        raise DataError("a reading with largest_transient lacks its chunk", fix="Add the chunk size of that load")
    computed = {chunk: _largest_transient(profile, use, overheads, chunk) for chunk, _ in measured if chunk}
    if measured:
        found["transient_factor"] = _fit((size, computed[chunk]) for chunk, size in measured if chunk)
    statics = [size for _, size in _sizes(readings, "statics")]
    static = max(workload(profile, use, overheads).static)
    if statics and static:
        found["static_factor"] = _fit((size, static) for size in statics)
    return found


def _largest_transient(profile: ModelProfile, use: Use, overheads: Overheads, chunk: int) -> int:
    return max(workload(profile, use.model_copy(update={"chunk": chunk}), overheads).transient)


def _fit(pairs: Iterable[tuple[int, int]]) -> float:
    """The slope through the origin that least squares gives: measured over computed."""
    found = list(pairs)
    return sum(measured * computed for measured, computed in found) / sum(computed**2 for _, computed in found)


def _sizes(readings: Iterable[Reading], field: str) -> list[tuple[Reading, int]]:
    return [
        (reading, _bytes(f"readings.{number}.{field}", value))
        for number, reading in enumerate(readings)
        if (value := getattr(reading, field)) is not None
    ]


def _bytes(where: str, value: int | str) -> int:
    size = parse_size(value, where) if isinstance(value, str) else value
    if size < 0:
        raise DataError(f"{where} is {size}, and no memory is negative", fix="Correct the reading")
    return size


def _constant(name: str, value: float | str) -> float | int:
    where = f"constants.{name}"
    if isinstance(value, str):
        if not name.endswith(_SIZE):
            raise DataError(f"{where} is {value!r}, and it is not a size", fix="Give a number")
        return parse_size(value, where)
    if not 0 <= value < float("inf"):
        raise DataError(f"{where} is {value:g}", fix="Give a number from 0 on")
    return value


def _changed(before: Overheads, after: Overheads) -> tuple[Recalibrated, ...]:
    return tuple(
        Recalibrated(name=name, before=getattr(before, name), after=getattr(after, name))
        for name in Overheads.model_fields
        if getattr(before, name) != getattr(after, name)
    )
