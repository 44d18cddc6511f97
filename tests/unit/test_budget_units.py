"""Sizes, GPUs and cache bits as people write them."""

from __future__ import annotations

import pytest

from exltune.budget import format_size, parse_cache, parse_gpus, parse_size, unit_of
from exltune.errors import UsageError
from exltune.schema.hardware import FP16_CACHE, CacheBits

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("144GiB", 144 * GIB),
        ("144GB", 144 * 10**9),
        ("1.5 GiB", 3 * GIB // 2),
        ("512mib", 512 << 20),
        ("512MB", 512 * 10**6),
        ("1TiB", 1 << 40),
        ("2tb", 2 * 10**12),
        ("64KiB", 64 << 10),
        ("64kB", 64_000),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("144", ("no unit", "144GiB", "144GB")),
        ("24.5", ("no unit", "24.5GiB")),
        ("144G", ("unknown unit", "GiB")),
        ("144Gb/s", ("is not a size",)),
        ("144gbit", ("unknown unit",)),
        ("-3GiB", ("is not a size", "positive")),
        ("0GiB", ("nothing",)),
        ("0.2B", ("nothing",)),
        ("", ("is not a size",)),
        ("infGiB", ("is not a size",)),
        ("1e3GiB", ("is not a size",)),
    ],
)
def test_bad_sizes_name_option_and_fix(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text, "--vram")
    assert all(word in str(caught.value) for word in ("--vram", *words))


def test_gpus() -> None:
    assert parse_gpus("6x24GiB") == (24 * GIB,) * 6
    assert parse_gpus("24GiB,48GiB") == (24 * GIB, 48 * GIB)
    assert parse_gpus("2x24GB, 1x80GiB") == (24 * 10**9, 24 * 10**9, 80 * GIB)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        *(("0x24GiB", "'0' cards"), ("-1x24GiB", "'-1' cards"), ("1.5x24GiB", "'1.5' cards"), ("x24GiB", "'' cards")),
        *(
            ("6x24", "no unit"),
            ("24GiB,", "is not a size"),
            ("", "is not a size"),
            ("6x0GiB", "nothing"),
            ("9999x1GiB", "1024"),
        ),
    ],
)
def test_bad_gpus(text: str, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_gpus(text)
    assert word in str(caught.value)
    assert "`gpus`" in str(caught.value)


def test_cache_bits() -> None:
    assert parse_cache("5,4") == CacheBits(k=5, v=4)
    assert parse_cache(" 8 , 2 ") == CacheBits(k=8, v=2)
    assert parse_cache("6") == CacheBits(k=6, v=6)
    assert parse_cache("FP16") == parse_cache("16,16") == FP16_CACHE
    assert [str(parse_cache(text)) for text in ("5,4", "fp16")] == ["5,4", "fp16"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("k5v4", ("Write 5,4",)),
        ("Q4", ("k,v in 2..8",)),
        ("5,4,3", ("5,4", "k,v")),
        ("", ("Write 5,4",)),
        ("1,4", ("1 bits for k",)),
        ("5,9", ("9 bits for v",)),
        ("0", ("0 bits for k",)),
        ("-4,4", ("-4 bits for k",)),
        ("16,4", ("16 bits for k", "only for both")),
        ("4.5,4", ("k,v in 2..8",)),
    ],
)
def test_bad_cache_bits(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_cache(text)
    assert all(word in str(caught.value) for word in ("`cache`", *words))


def test_sizes_are_printed_in_the_units_that_were_given() -> None:
    assert format_size(3 * GIB // 2) == "1.50 GiB"
    assert format_size(GIB // 2) == "512.00 MiB"
    assert format_size(839_823) == "820.14 KiB"
    assert format_size((1 << 20) - 1) == "1.00 MiB"
    assert format_size(1536 * GIB) == "1.50 TiB"
    assert format_size(-GIB) == "-1.00 GiB"
    assert format_size(50 << 20) == "50.00 MiB"
    assert format_size(24 * 10**9, unit_of("24GB")) == "24.00 GB"
    assert format_size(24 * 10**9, unit_of("24GiB")) == "22.35 GiB"
    assert format_size(7) == "7 B"
