"""Plans: published fits, layer splits, and what may never happen."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exltune.budget import (
    Limits,
    ModelProfile,
    Question,
    model_profile,
    parse_cache,
    parse_gpus,
    parse_size,
    plan,
    weights_of_bits,
)
from exltune.budget.plan.question import fits
from exltune.schema.hardware import FP16_CACHE, CacheBits, Hardware, Use
from exltune.schema.plan import Plan

GIB = 1 << 30
CONFIGS = Path(__file__).resolve().parents[1] / "fixtures" / "configs"
#: Grouped attention with experts, latent attention, linear attention, dense.
MODELS = ("glm-4.7", "moonlight-16b-a3b", "qwen3.5-35b-a3b", "llama-3.1-8b", "gpt-oss-20b")


@cache
def profile(name: str = "glm-4.7") -> ModelProfile:
    return model_profile(json.loads((CONFIGS / f"{name}.json").read_text()))


def question(bits: float | None = None, head_bits: float = 6, name: str = "glm-4.7", **changes: Any) -> Question:
    """gpus, vram as written; cache as written; the rest as in Use."""
    gpus, vram, pair = changes.pop("gpus", None), changes.pop("vram", None), changes.pop("cache", "fp16")
    target, size = changes.pop("target_bpw", None), changes.pop("size", None)
    hardware = Hardware(gpus=parse_gpus(gpus) if gpus else (), vram_bytes=parse_size(vram) if vram else None)
    weights = None if bits is None else weights_of_bits(profile(name), bits, head_bits)
    use = Use(cache=parse_cache(pair), **changes)
    return Question(profile(name), Limits(hardware, target, size), use, weights, head_bits)


def answer(bits: float | None = None, **changes: Any) -> Plan:
    return plan(question(bits, **changes))


@pytest.mark.parametrize(
    ("bits", "head_bits", "gib"), [(2, 6, 83), (3, 6, 124), (4, 6, 165), (5, 8, 206), (6, 8, 247), (8, 8, 328)]
)
def test_published_sizes(bits: float, head_bits: float, gib: int) -> None:
    found = answer(bits, head_bits=head_bits)
    assert round(found.weights_bytes / GIB) == gib
    assert found.fits
    assert found.binding is None
    # The embedding in fp16, and norms.
    assert found.disk_bytes - found.weights_bytes == pytest.approx(2 * 151552 * 5120, rel=0.002)


def test_published_fp16_size() -> None:
    assert round(answer(16, head_bits=16).weights_bytes / GIB) == 656


@pytest.mark.parametrize(
    ("bpw", "context", "pair", "vram"),
    [
        (2.57, 160000, "5,4", "128GiB"),
        (2.57, 102400, "5,4", "120GiB"),
        (3.15, 102400, "5,4", "144GiB"),
        (3.84, 202752, "6,5", "192GiB"),
    ],
)
def test_published_fits_are_feasible_in_total(bpw: float, context: int, pair: str, vram: str) -> None:
    found = answer(bpw, vram=vram, context=context, cache=pair)
    assert found.fits
    assert found.bpw == pytest.approx(bpw, abs=1e-6)
    assert found.max_bpw is not None
    assert found.max_bpw >= bpw
    assert found.max_context is not None
    assert found.max_context >= context
    assert found.slack_bytes == parse_size(vram) - found.weights_bytes - found.kv_bytes - found.overhead_bytes


def test_a_published_fit_that_arithmetic_forbids() -> None:
    found = answer(2.10, vram="96GiB", context=131072, cache="5,4")
    assert not found.fits
    assert found.binding == "vram"
    assert round((found.weights_bytes + found.kv_bytes) / GIB, 1) == 100.8
    assert found.bare_slack_bytes == 96 * GIB - found.weights_bytes - found.kv_bytes


def test_no_contiguous_split_on_six_small_cards() -> None:
    found = answer(3.15, gpus="6x24GiB", context=102400, cache="5,4")
    assert not found.fits
    assert found.binding == "gpus"
    assert found.fullest_bytes is not None
    assert round(found.fullest_bytes / GIB, 2) == 24.02
    assert found.weights_bytes + found.kv_bytes < 144 * GIB


def test_three_larger_cards_keep_too_little_for_prefill() -> None:
    found = answer(3.15, gpus="3x48GiB", context=102400, cache="5,4", chunk=2048)
    assert not found.fits
    assert found.bare_slack_bytes is not None
    assert round(found.bare_slack_bytes / GIB, 2) == 0.50
    assert min(card.overhead_bytes for card in found.per_gpu) > found.bare_slack_bytes


def test_two_large_cards_fit() -> None:
    found = answer(3.15, gpus="2x96GiB", context=102400, cache="5,4")
    assert found.fits
    assert [card.layers for card in found.per_gpu] == [(0, 61), (62, 91)]
    assert [card.head for card in found.per_gpu] == [False, True]
    assert sum(card.weights_bytes for card in found.per_gpu) == found.weights_bytes
    assert sum(card.kv_bytes for card in found.per_gpu) == found.kv_bytes
    assert all(card.slack_bytes >= 0 for card in found.per_gpu)


@pytest.mark.parametrize("gpus", ["3x48GiB", "6x24GiB", "80GiB", "8x16GiB"])
def test_every_remedy_helps_and_no_less_would(gpus: str) -> None:
    asked = question(3.15, gpus=gpus, context=102400, cache="5,4")
    found = plan(asked)
    assert not found.fits
    for remedy in found.remedies:
        assert fits_with(asked, remedy.change, remedy.value), remedy
    values = {remedy.change: remedy.value for remedy in found.remedies}
    assert "gpus" in values
    assert values["gpus"] == 1 or not fits_with(asked, "gpus", int(values["gpus"]) - 1)
    assert "context" not in values or not fits_with(asked, "context", int(values["context"]) + 256)


def fits_with(asked: Question, change: str, value: int | float | str) -> bool:
    gpus = asked.limits.hardware.gpus
    if change == "bpw":
        weights = weights_of_bits(asked.profile, float(value) - 1e-6, 6)
        return fits(Question(asked.profile, asked.limits, asked.use, weights))
    if change == "gpus":
        return fits(asked.with_hardware(gpus=gpus + gpus[-1:] * int(value)))
    return fits(asked.with_use(**{change: parse_cache(value) if isinstance(value, str) else value}))


def test_the_largest_model_that_fits() -> None:
    found = answer(gpus="6x24GiB", context=102400, cache="5,4")
    assert found.fits
    assert found.max_bpw == found.bpw
    assert found.slack_bytes is not None
    assert 0 <= found.slack_bytes < 1 << 20
    assert not answer(found.bpw + 0.001, gpus="6x24GiB", context=102400, cache="5,4").fits


def test_the_tightest_limit_binds_and_is_named() -> None:
    room = {"context": 102400, "cache": "5,4"}
    assert answer(vram="144GiB", target_bpw=3.0, **room).binding == "target_bpw"
    assert answer(vram="144GiB", target_bpw=3.3, **room).binding == "vram"
    assert answer(vram="144GiB", gpus="6x24GiB", target_bpw=3.0, **room).binding == "gpus"
    assert answer(vram="144GiB", size=110 * GIB, target_bpw=3.0, **room).binding == "size"
    found = answer(size=110 * GIB)
    assert 110 * GIB - 1000 < found.weights_bytes <= 110 * GIB
    assert answer(target_bpw=3.15).bpw == pytest.approx(3.15, abs=1e-6)
    assert not answer(3.15, target_bpw=3.0).fits
    assert not answer(target_bpw=1.9).fits


def test_what_does_not_fit_at_two_bits_says_what_would() -> None:
    found = answer(vram="90GiB", context=102400, cache="5,4")
    assert not found.fits
    assert found.bpw == pytest.approx(2.016, abs=1e-3)
    assert found.max_bpw is not None
    assert 1 < found.max_bpw < found.bpw
    assert {remedy.change for remedy in found.remedies} == {"context", "bpw", "vram"}


def test_offloaded_experts_leave_the_cards_for_ram() -> None:
    on_cards = answer(3, gpus="2x96GiB", context=8192)
    offloaded = answer(3, gpus="2x96GiB", context=8192, offload_layers=40)
    moved = sum(card.weights_bytes for card in on_cards.per_gpu) - sum(card.weights_bytes for card in offloaded.per_gpu)
    # 40 layers x 160 experts x 3 matrices of 5120 x 1536 at 3 bits; their scales stay.
    assert moved == 40 * 160 * 3 * 5120 * 1536 * 3 // 8
    assert offloaded.ram_bytes - on_cards.ram_bytes == moved
    assert offloaded.weights_bytes == on_cards.weights_bytes
    ram = moved + 2 * 151552 * 5120 + 2 * GIB
    hardware = {"gpus": (96 * GIB,) * 2}
    asked = question(3, context=8192, offload_layers=40)
    assert fits(asked.with_hardware(ram_bytes=ram, **hardware))
    assert plan(asked.with_hardware(ram_bytes=ram - 1, **hardware)).binding == "ram"


def test_tensor_parallel_levels_the_cards() -> None:
    found = answer(3, gpus="4x48GiB", context=65536, cache="5,4", tensor_parallel=True)
    assert found.fits
    assert len({card.weights_bytes for card in found.per_gpu}) == 1
    assert all(card.layers == (0, 91) and card.head for card in found.per_gpu)
    # Routers and one spare channel on every card, nothing else twice.
    total = sum(card.weights_bytes for card in found.per_gpu)
    assert found.weights_bytes < total < 1.01 * found.weights_bytes


BITS = st.sampled_from([1, 1.5, 2, 2.01, 2.57, 3, 3.01, 3.15, 4, 4.6, 6, 7.99, 8, 16])
CACHES = [CacheBits(k=k, v=v) for k, v in ((2, 2), (3, 2), (4, 4), (5, 4), (8, 8))] + [FP16_CACHE]
CONTEXTS = st.integers(1, 8000)
CARDS = st.lists(st.sampled_from([6, 8, 12, 24, 32, 48, 96]), min_size=2, max_size=8)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(MODELS), BITS, CONTEXTS, st.sampled_from(CACHES), CARDS, st.booleans(), st.data())
def test_asking_for_more_never_makes_it_fit(
    name: str, bits: float, context: int, pair: CacheBits, cards: list[int], parallel: bool, data: st.DataObject
) -> None:
    def fitting(bits: float, context: int, pair: CacheBits, cards: list[int], chunk: int = 2048) -> bool:
        use = Use(context=context, cache=pair, chunk=chunk, tensor_parallel=parallel)
        limits = Limits(Hardware(gpus=tuple(card * GIB for card in cards)))
        return fits(Question(profile(name), limits, use, weights_of_bits(profile(name), bits, 6)))

    longer = context + data.draw(CONTEXTS)
    more_bits = data.draw(BITS.filter(lambda found: found >= bits))
    wider = data.draw(st.sampled_from(CACHES[CACHES.index(pair) :]))
    lost = data.draw(st.integers(0, len(cards) - 1))
    greedier = [
        fitting(bits, longer, pair, cards),
        fitting(more_bits, context, pair, cards),
        fitting(bits, context, wider, cards),
        fitting(bits, context, pair, cards[:lost] + cards[lost + 1 :]),
        fitting(bits, context, pair, cards, chunk=4096),
    ]
    assert fitting(bits, context, pair, cards) or not any(greedier)


@pytest.mark.parametrize("name", MODELS)
def test_the_last_byte_decides(name: str) -> None:
    """Where a plan fits exactly, a page, a bit or a byte more is too much."""
    asked: dict[str, Any] = {"name": name, "context": 4096, "cache": "5,4"}
    exact = 900 * GIB - (answer(3, vram="900GiB", **asked).slack_bytes or 0)
    assert answer(3, vram=f"{exact}B", **asked).fits
    assert not answer(3, vram=f"{exact - 1}B", **asked).fits
    for more in ({"context": 4096 + 256}, {"cache": "6,4"}):
        assert not answer(3, vram=f"{exact}B", **asked | more).fits
    assert not answer(3.5, vram=f"{exact}B", **asked).fits


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(MODELS), st.sampled_from([2, 3.15, 8, None]), st.integers(1, 8000), CARDS)
def test_the_answer_agrees_with_itself(name: str, bits: float | None, context: int, cards: list[int]) -> None:
    found = answer(bits, name=name, gpus=",".join(f"{card}GiB" for card in cards), context=context)
    assert found.slack_bytes is not None
    assert found.fits == (found.slack_bytes >= 0)
    assert found.fits == (not found.remedies)
    assert found.max_context is not None
    assert found.fits == (found.max_context >= context)
    for card in found.per_gpu:
        used = card.weights_bytes + card.kv_bytes + card.overhead_bytes
        assert card.capacity_bytes == used + card.slack_bytes
    if bits is not None and found.max_bpw is not None:
        assert found.fits == (found.max_bpw >= found.bpw - 1e-9)


def test_a_plan_takes_less_than_a_second() -> None:
    config = json.loads((CONFIGS / "glm-4.7.json").read_text())
    start = time.process_time()
    found = model_profile(config)
    plan(Question(found, Limits(Hardware(gpus=(24 * GIB,) * 6)), Use(context=102400, cache=parse_cache("5,4"))))
    assert len(found.inventory.groups) == 822
    # 0.6 s on one core.
    assert time.process_time() - start < 2.5
