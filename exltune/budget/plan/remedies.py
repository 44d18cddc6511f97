"""Changes that would make it fit: each alone, with its number."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from exltune.budget.placement.demand import ram_bytes
from exltune.budget.placement.placement import place
from exltune.budget.plan.question import Question, fits, largest_context
from exltune.budget.units import format_size
from exltune.schema.hardware import CacheBits
from exltune.schema.plan import Limit, Remedy

#: Cards to try beyond those that are there.
_MORE_CARDS = 64
_SHORTEST_CHUNK = 256
_GIB = 1 << 30
#: Larger cards to try, each twice the one before.
_DOUBLINGS = 12


def remedies(question: Question, max_bpw: float | None, broken: Collection[Limit]) -> tuple[Remedy, ...]:
    """The changes that help, in the order: context, cache, chunk, bpw, cards or larger ones, pool, RAM; no others."""
    found = [*_less_context(question), *_fewer_cache_bits(question), *_shorter_chunk(question)]
    found += _fewer_bits(max_bpw)
    found += _more_cards(question, broken)
    found += _more_bytes(question, broken)
    return tuple(found)


def _less_context(question: Question) -> Iterator[Remedy]:
    longest = largest_context(question)
    if question.use.context is None or not longest or not fits(question.with_use(context=longest)):
        return
    yield Remedy(change="context", value=longest, text=f"`context` {longest}")


def _fewer_cache_bits(question: Question) -> Iterator[Remedy]:
    """The most bits that fit; v first gives a bit away, as exllamav3's users do: keys need them more."""
    asked = question.use.cache
    if question.use.context is None:
        return
    pairs = [CacheBits(k=k, v=v) for k in range(8, 1, -1) for v in (k, k - 1) if v >= 2]
    for pair in pairs:
        if pair.k + pair.v < asked.k + asked.v and fits(question.with_use(cache=pair)):
            yield Remedy(change="cache", value=str(pair), text=f"`cache` {pair}")
            return


def _shorter_chunk(question: Question) -> Iterator[Remedy]:
    chunk = question.use.chunk // 2
    while chunk >= _SHORTEST_CHUNK:
        if fits(question.with_use(chunk=chunk)):
            yield Remedy(change="chunk", value=chunk, text=f"`chunk` {chunk}")
            return
        chunk //= 2


def _fewer_bits(max_bpw: float | None) -> Iterator[Remedy]:
    if max_bpw is not None:
        yield Remedy(change="bpw", value=max_bpw, text=f"at most {int(max_bpw * 1e3) / 1e3:.3f} bpw")


def _more_cards(question: Question, broken: Collection[Limit]) -> Iterator[Remedy]:
    gpus = question.limits.hardware.gpus
    if "gpus" not in broken:
        return
    for more in range(1, _MORE_CARDS + 1):
        if fits(question.with_hardware(gpus=(*gpus, *(gpus[-1:] * more)))):
            cards = "another GPU" if more == 1 else f"{more} more GPUs"
            yield Remedy(change="gpus", value=more, text=f"{cards} of {format_size(gpus[-1], question.unit)}")
            return
    # A layer that is larger than a card: no number of them helps.
    size = _larger_cards(question)
    if size is not None:
        yield Remedy(change="gpu_size", value=size, text=f"GPUs of {format_size(size, question.unit)} each")


def _larger_cards(question: Question) -> int | None:
    """Bytes, in whole GiB, that each of as many cards needs."""
    count, low = len(question.limits.hardware.gpus), max(1, max(question.limits.hardware.gpus) // _GIB)
    high = next((low << step for step in range(1, _DOUBLINGS) if _on_cards(question, count, low << step)), None)
    while high is not None and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _on_cards(question, count, middle) else (middle, high)
    return None if high is None else high * _GIB


def _on_cards(question: Question, count: int, gib: int) -> bool:
    return fits(question.with_hardware(gpus=(gib * _GIB,) * count))


def _more_bytes(question: Question, broken: Collection[Limit]) -> Iterator[Remedy]:
    work, weights, hardware = question.work, question.weights, question.limits.hardware
    assert weights is not None
    if "vram" in broken and hardware.vram_bytes is not None:
        missing = -place(work, weights, (hardware.vram_bytes,)).room
        if fits(question.with_hardware(vram_bytes=hardware.vram_bytes + missing)):
            yield Remedy(change="vram", value=missing, text=f"{format_size(missing, question.unit)} more VRAM")
    if "ram" in broken and hardware.ram_bytes is not None:
        missing = ram_bytes(work, weights) + work.overheads.host_reserve_bytes - hardware.ram_bytes
        if fits(question.with_hardware(ram_bytes=hardware.ram_bytes + missing)):
            yield Remedy(change="ram", value=missing, text=f"{format_size(missing, question.unit)} more RAM")
