"""Sizes, GPUs and cache bits as people write them; GiB and GB are different and a bare number is neither."""

from __future__ import annotations

import re

from pydantic import ByteSize, TypeAdapter

from exltune.errors import UsageError
from exltune.schema.hardware import FP16_CACHE, CacheBits, SizeUnit
from exltune.schema.mix import CACHE_BITS, REFERENCE, UNQUANTIZED_BITS

_SIZE = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?|\.\d+)\s*(?P<unit>[a-z]*)\s*", re.IGNORECASE)
_UNITS = ("TiB", "GiB", "MiB", "KiB", "TB", "GB", "MB", "KB", "B")
_SHOWN: dict[SizeUnit, tuple[tuple[str, int], ...]] = {
    "GiB": (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)),
    "GB": (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)),
}
_BYTES: TypeAdapter[ByteSize] = TypeAdapter(ByteSize)
_MANY_GPUS = 1024


def parse_size(text: str, name: str = "`size`") -> int:
    """`144GiB` -> bytes; TiB, GiB, MiB, KiB, TB, GB, MB, KB and B, in any case.

    Raises: UsageError naming the field, for a number without a unit and for nothing or less.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise UsageError(f"{name} {text!r} is not a size", fix="Write a positive number and its unit, as 24GiB")
    number, unit = found["number"], found["unit"]
    if not unit:
        raise UsageError(
            f"{name} {text!r} has no unit, and GiB and GB differ by 7 %",
            fix=f"Write {number}GiB (2^30 bytes each) or {number}GB (10^9 bytes each)",
        )
    if unit.lower() not in {known.lower() for known in _UNITS}:
        raise UsageError(f"{name} {text!r} has the unknown unit {unit!r}", fix=f"Write one of {', '.join(_UNITS)}")
    size = int(_BYTES.validate_python(f"{number}{unit}"))
    if size < 1:
        raise UsageError(f"{name} {text!r} is nothing", fix="Give a positive size, as 24GiB")
    return size


def parse_gpus(text: str, name: str = "`gpus`") -> tuple[int, ...]:
    """`6x24GiB` or `24GiB,2x48GiB` -> bytes of each card, in order. Raises: UsageError naming the field."""
    cards: list[int] = []
    for part in text.split(","):
        count, cross, size = part.rpartition("x")
        if cross and not re.fullmatch(r"\s*[1-9]\d*\s*", count):
            raise UsageError(f"{name} {part!r} has {count!r} cards", fix="Write a whole number above 0, as in 6x24GiB")
        number = int(count) if cross else 1
        if number > _MANY_GPUS:
            raise UsageError(f"{name} {part!r} has more than {_MANY_GPUS} cards", fix="Write, for example, 6x24GiB")
        cards += [parse_size(size, name)] * number
    return tuple(cards)


def parse_cache(text: str, name: str = "`cache`") -> CacheBits:
    """`5,4` -> bits of k and v; `5` is both, `fp16` is unquantized. Raises: UsageError naming the field."""
    written = text.strip().lower()
    if written in ("fp16", REFERENCE, f"{REFERENCE},{REFERENCE}"):
        return FP16_CACHE
    parts = written.split(",")
    if len(parts) > 2 or not all(re.fullmatch(r"\s*-?\d+\s*", part) for part in parts):
        digits = re.findall(r"\d+", written)
        instead = f"{digits[0]},{digits[1]}" if len(digits) == 2 else "5,4"
        raise UsageError(
            f"{name} {text!r} is not a pair of cache bits",
            fix=f"Write {instead} (k,v in 2..8), or fp16 for no quantization",
        )
    bits = [int(part) for part in parts]
    for part, width in zip("kv", bits, strict=False):
        if width not in CACHE_BITS:
            raise UsageError(
                f"{name} {text!r} has {width} bits for {part}, and exllamav3's quantized cache has 2 to 8",
                fix=f"Write k,v in 2..8, for example 5,4; fp16 ({UNQUANTIZED_BITS} bits) only for both",
            )
    return CacheBits(k=bits[0], v=bits[-1])


def unit_of(text: str) -> SizeUnit:
    """Whether a size was written in binary or in decimal units."""
    return "GiB" if "ib" in text.lower() else "GB"


def format_size(size_bytes: float, unit: SizeUnit = "GiB") -> str:
    """Bytes in binary (GiB) or decimal (GB) units, in the largest that makes one or more: 839823 -> 820.14 KiB."""
    for name, factor in _SHOWN[unit]:
        if round(abs(size_bytes) / factor, 2) >= 1:
            return f"{size_bytes / factor:.2f} {name}"
    return f"{size_bytes:.0f} B"
