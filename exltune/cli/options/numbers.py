"""Numbers, lists and times as options write them; errors name the option."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Literal

from exltune.errors import UsageError
from exltune.schema.defaults import auto_head_bits

_WEIGHTS = "For example --weights math=2,code=0.5"


def parse_numbers(option: str, text: str, example: str) -> tuple[float, ...]:
    """`2,3,2.5` -> (2.0, 3.0, 2.5). Raises: UsageError naming the option."""
    try:
        numbers = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(
            f"{option} {text!r} is not a list of numbers", fix=f"For example {option} {example}"
        ) from error
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f"{option} {text!r} holds nan or inf", fix=f"For example {option} {example}")
    if not numbers:
        raise UsageError(f"{option} names no numbers", fix=f"For example {option} {example}")
    return numbers


def parse_devices(text: str | None) -> tuple[int, ...]:
    """`0,1` -> (0, 1). Raises: UsageError."""
    numbers = parse_numbers("--devices", text, "0,1") if text is not None else ()
    if any(number < 0 or not number.is_integer() for number in numbers):
        raise UsageError(f"--devices {text!r} are not numbers of devices", fix="For example --devices 0,1")
    return tuple(int(number) for number in numbers)


def parse_quants(bits: str, head_bits: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Widths of the base quants, ascending, and bits of their heads, one for all or one each. Raises: UsageError.

    auto: heads from 3 to 8 bits, spread over the base quants.
    """
    widths = parse_numbers("--bits", bits, "2,3,4")
    if head_bits == "auto":
        ascending = tuple(sorted(set(widths)))
        return ascending, tuple(auto_head_bits(width) for width in ascending)
    heads = parse_numbers("--head-bits", head_bits, "6")
    if len(heads) == 1:
        return tuple(sorted(set(widths))), heads
    if len(heads) != len(widths):
        raise UsageError(
            f"--head-bits names {len(heads)} heads and --bits {len(widths)} base quants",
            fix="Give one number for all, or one for each of --bits",
        )
    pairs = sorted(dict(zip(widths, heads, strict=True)).items())
    return tuple(width for width, _ in pairs), tuple(head for _, head in pairs)


def parse_head(text: str | None) -> float | Literal["auto"] | None:
    """Bits of the head, or auto. Raises: UsageError."""
    if text is None or text == "auto":
        return None if text is None else "auto"
    return parse_numbers("--head-bits", text, "6")[0]


def parse_level(text: str) -> int:
    """`l3`, `3` -> 3. Raises: UsageError."""
    levels = {f"{prefix}{level}": level for prefix in ("l", "") for level in range(5)}
    if text not in levels:
        raise UsageError(
            f"there is no level {text!r}",
            fix="Choose l0 (layers), l1 (attention and MLP), l2 (their parts), l3 (their projections) or l4 (k and v, "
            "gate and up apart)",
        )
    return levels[text]


def parse_weights(text: str | None) -> dict[str, float]:
    """`math=2,code=0.5` -> {"math": 2.0, "code": 0.5}. Raises: UsageError naming the domain."""
    weights: dict[str, float] = {}
    for part in (text or "").split(","):
        domain, sign, number = (word.strip() for word in part.rpartition("="))
        if not part.strip():
            continue
        if not sign or not domain:
            raise UsageError(f"--weights {part!r} names no domain", fix=_WEIGHTS)
        if domain in weights:
            raise UsageError(f"--weights names the domain {domain!r} twice", fix=_WEIGHTS)
        try:
            weights[domain] = float(number)
        except ValueError:
            raise UsageError(f"the weight of {domain!r} is not a number: {number!r}", fix=_WEIGHTS) from None
        if not 0 < weights[domain] < math.inf:
            raise UsageError(
                f"the weight of {domain!r} is {number}", fix="Give one above zero, or leave the domain's --data out"
            )
    return weights


def parse_time(text: str) -> float:
    """`2h`, `45m`, `1h 30m` -> seconds. Raises: UsageError, also for a number without a unit."""
    from pydantic import TypeAdapter, ValidationError

    if text.strip().replace(".", "", 1).isdigit():
        raise UsageError(f"--time {text!r} has no unit", fix=f"Write {text}h, {text}m or {text}s")
    # As ISO 8601 writes a duration: P1DT2H30M.
    days, unit, rest = "".join(text.upper().split()).rpartition("D")
    try:
        time = TypeAdapter(timedelta).validate_python(f"P{days}{unit}{'T' if rest else ''}{rest}")
    except ValidationError as error:
        raise UsageError(f"--time {text!r} is not a time", fix="For example --time 2h or --time 45m") from error
    return time.total_seconds()
