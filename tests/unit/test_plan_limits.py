"""Budgets for the solver, the check of its mixes, calibration, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exltune.budget import (
    Limits,
    ModelProfile,
    Question,
    cache_bytes,
    cache_bytes_per_token,
    fit_mix,
    mix_weights,
    model_profile,
    plan,
    recalibrate,
    spread_bits,
    weights_budget,
    weights_budget_bytes,
    weights_of_bits,
)
from exltune.errors import BudgetError, DataError, NotAModelError, UnsupportedArchitectureError, UsageError
from exltune.schema.attention import CacheLayer
from exltune.schema.hardware import CacheBits, Hardware, Overheads, Reading, Readings, Use

GIB, MIB = 1 << 30, 1 << 20
CONFIGS = Path(__file__).resolve().parents[1] / "fixtures" / "configs"
GLM_4_7: dict[str, Any] = json.loads((CONFIGS / "glm-4.7.json").read_text())
USE = Use(context=102400, cache=CacheBits(k=5, v=4))


@pytest.fixture(scope="module")
def glm() -> ModelProfile:
    return model_profile(GLM_4_7)


def test_cache_of_glm_4_7(glm: ModelProfile) -> None:
    assert cache_bytes_per_token(glm.cache, 5, 4) == 117_760
    assert cache_bytes_per_token(glm.cache, 16, 16) == 92 * 4 * 8 * 128
    assert cache_bytes(glm.cache, 131072, 5, 4) == 131072 * 117_760
    assert cache_bytes(glm.cache, 1, 5, 4) == cache_bytes(glm.cache, 256, 5, 4) == 256 * 117_760
    assert cache_bytes(glm.cache, 257, 5, 4) == 512 * 117_760


def test_cache_by_kind_of_layer() -> None:
    latent = CacheLayer(layer=0, kind="mla", q_heads=128, kv_lora_rank=512, qk_rope_head_dim=64)
    assert cache_bytes_per_token([latent], 5, 4) == 16 * (4 * 5 + 2) + 128
    assert cache_bytes_per_token([latent], 5, 8) == cache_bytes_per_token([latent], 5, 4)
    linear = CacheLayer(layer=1, kind="linear", state_bytes=1000)
    sliding = CacheLayer(layer=2, kind="sliding", kv_heads=8, head_dim=64, window=128, state_bytes=5000)
    assert cache_bytes([linear, sliding], 4096, 5, 4) == 0
    assert cache_bytes([linear, sliding], 4096, 5, 4, slots=3) == 3 * 6000
    assert cache_bytes_per_token([linear, sliding], 16, 16) == 0


def test_budget_of_the_tightest_limit(glm: ModelProfile) -> None:
    limits = Limits(Hardware(vram_bytes=144 * GIB), target_bpw=3.0)
    found = weights_budget(glm, limits, USE)
    assert found.binding == "target_bpw"
    assert found.bpw == pytest.approx(3.0, abs=1e-7)
    head = glm.sizes.group_bytes("head", 6)
    assert found.groups_and_head_bytes == pytest.approx(glm.sizes.budget_bytes(3.0) + head, abs=1000)
    size, binding = weights_budget_bytes(glm, Limits(Hardware(vram_bytes=144 * GIB)), USE)
    routers = sum(layer.fp16_bytes for layer in glm.layers)
    assert binding == "vram"
    used = plan(Question(glm, limits, USE, spread_bits(glm, found.bits, 6))).overhead_bytes
    assert size + routers == pytest.approx(144 * GIB - 102400 * 117_760 - used, abs=1000)


def test_budget_grows_as_the_cache_shrinks(glm: ModelProfile) -> None:
    limits = Limits(Hardware(gpus=(24 * GIB,) * 6))
    sizes = [
        weights_budget(glm, limits, Use(context=102400, cache=CacheBits(k=k, v=v))).groups_and_head_bytes
        for k, v in ((8, 8), (6, 5), (4, 4), (2, 2))
    ]
    assert sizes == sorted(sizes)
    assert sizes[-1] - sizes[0] == pytest.approx(102400 * 92 * 32 * 4 * 12, rel=0.1)


def test_no_budget(glm: ModelProfile) -> None:
    with pytest.raises(BudgetError, match="no limit is given"):
        weights_budget(glm, Limits(), USE)
    with pytest.raises(BudgetError, match=r"`gpus` leaves no room.*cache of 11\.23 GiB"):
        weights_budget(glm, Limits(Hardware(gpus=(24 * GIB,))), USE)


def test_a_finished_mix_is_checked_layer_by_layer(glm: ModelProfile) -> None:
    """The same bytes fit spread evenly, and do not where they crowd on one card's worth of layers."""
    limits = Limits(Hardware(gpus=(48 * GIB,) * 3))
    even = spread_bits(glm, 3.0, 6)
    [placed] = fit_mix(glm, even, limits, USE)
    assert placed.room >= 0
    crowded = {group.id: 8.0 if group.layer is not None and 30 <= group.layer < 46 else 1.9 for group in groups(glm)}
    mix = mix_weights(glm, crowded, 6)
    assert mix.total < even.total
    with pytest.raises(BudgetError, match=r"`gpus`: the fullest card holds \d+\.\d\d GiB") as caught:
        fit_mix(glm, mix, limits, USE)
    assert caught.value.exit_code == 4
    with pytest.raises(BudgetError, match="`size`"):
        fit_mix(glm, even, Limits(size_bytes=even.total - 1), USE)
    with pytest.raises(BudgetError, match="`target_bpw`"):
        fit_mix(glm, even, Limits(target_bpw=3.0), USE)
    with pytest.raises(BudgetError, match="`ram`"):
        fit_mix(glm, even, Limits(Hardware(ram_bytes=GIB)), USE)


def groups(profile: ModelProfile) -> Any:
    return profile.inventory.groups


def test_bits_are_a_quant_or_an_average(glm: ModelProfile) -> None:
    assert weights_of_bits(glm, 3, 6).total == glm.sizes.uniform_size(3, 6).size_bytes
    assert weights_of_bits(glm, 2.5, 6).total == glm.sizes.uniform_size(2.5, 6).size_bytes
    target = (
        glm.sizes.budget_bytes(3.15) + sum(layer.fp16_bytes for layer in glm.layers) + glm.sizes.group_bytes("head", 6)
    )
    assert 0 <= target - weights_of_bits(glm, 3.15, 6).total < 1000
    # 3.01 bpw are less than a plain 3-bit quant with its scales takes; more bits never take less.
    assert weights_of_bits(glm, 3.01, 6).total == weights_of_bits(glm, 3, 6).total


@pytest.mark.parametrize("bits", [0, 0.5, -3, 8.5, 15, 17, float("nan"), float("inf")])
def test_bits_that_do_not_exist(glm: ModelProfile, bits: float) -> None:
    with pytest.raises(UsageError, match="`bits`"):
        weights_of_bits(glm, bits, 6)


@pytest.mark.parametrize(
    ("changes", "limits", "words"),
    [
        ({"context": 0}, {}, ("`context` 0",)),
        ({"context": -5}, {}, ("`context` -5",)),
        ({"context": 202753}, {}, ("`context` 202753", "202752", "max_position_embeddings")),
        ({"chunk": 0}, {}, ("`chunk` 0",)),
        ({"slots": -1}, {}, ("`slots` -1",)),
        ({"offload_layers": -1}, {}, ("`offload_layers` -1",)),
        ({"offload_layers": 90}, {}, ("`offload_layers` 90", "89")),
        ({"tensor_parallel": True}, {}, ("`tensor_parallel`", "two GPUs")),
        ({}, {"target_bpw": 0.0}, ("`target_bpw` 0",)),
        ({}, {"target_bpw": float("nan")}, ("`target_bpw` nan",)),
        ({"tensor_parallel": True, "offload_layers": 1}, {"hardware": Hardware(gpus=(GIB, GIB))}, ("tensor par",)),
    ],
)
def test_bad_use_names_the_option(
    glm: ModelProfile, changes: dict[str, Any], limits: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        plan(Question(glm, Limits(**limits), Use(**changes)))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads"])
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(NotAModelError, match=field):
        model_profile({key: value for key, value in GLM_4_7.items() if key != field})


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="NoSuchForCausalLM"):
        model_profile(GLM_4_7 | {"architectures": ["NoSuchForCausalLM"]})


def test_readings_replace_constants(glm: ModelProfile) -> None:
    readings = Readings(
        readings=(
            Reading(gpu="a", non_torch="410MiB", weights_arena_tail=90 * MIB),
            Reading(gpu="b", non_torch="430MiB", weights_arena_tail=70 * MIB),
        ),
        constants={"reserve_bytes": "96MiB", "multiprocessors": 82},
    )
    after, changed = recalibrate(readings, glm, USE)
    assert (after.context_bytes, after.arena_tail_bytes) == (430 * MIB, 90 * MIB)
    assert (after.reserve_bytes, after.multiprocessors) == (96 * MIB, 82)
    assert {found.name: (found.before, found.after) for found in changed} == {
        "context_bytes": (512 * MIB, 430 * MIB),
        "arena_tail_bytes": (128 * MIB, 90 * MIB),
        "reserve_bytes": (512 * MIB, 96 * MIB),
        "multiprocessors": (128, 82),
    }
    hardware = Limits(Hardware(gpus=(24 * GIB,) * 6))
    before = plan(Question(glm, hardware, USE)).max_bpw
    better = plan(Question(glm, hardware, USE, overheads=after)).max_bpw
    assert before is not None
    assert better is not None
    assert better > before


def test_transients_are_scaled_by_least_squares(glm: ModelProfile) -> None:
    def computed(chunk: int) -> int:
        return question_transient(glm, chunk)

    pairs = [(2048, 0.8), (4096, 0.9), (2048, 0.85)]
    readings = Readings(
        readings=tuple(Reading(largest_transient=round(share * computed(chunk)), chunk=chunk) for chunk, share in pairs)
    )
    after, _ = recalibrate(readings, glm, USE)
    top = sum(share * computed(chunk) ** 2 for chunk, share in pairs)
    assert after.transient_factor == pytest.approx(top / sum(computed(chunk) ** 2 for chunk, _ in pairs))
    scaled = plan(Question(glm, Limits(), USE, overheads=after)).overhead_bytes
    plain = plan(Question(glm, Limits(), USE)).overhead_bytes
    assert plain - scaled == pytest.approx((1 - after.transient_factor) * computed(2048), rel=1e-6)


def question_transient(profile: ModelProfile, chunk: int) -> int:
    work = Question(profile, Limits(), USE.model_copy(update={"chunk": chunk})).work
    return max(work.transient)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"readings": [{"largest_transient": "900MiB"}]}, ("largest_transient", "chunk")),
        ({"readings": [{}, {"non_torch": -1}]}, ("readings.1.non_torch", "-1")),
        ({"readings": [{"non_torch": "410"}]}, ("readings.0.non_torch", "no unit")),
        ({"constants": {"contxt_bytes": 1}}, ("contxt_bytes", "context_bytes")),
        ({"constants": {"reserve_bytes": -1}}, ("reserve_bytes",)),
        ({"constants": {"multiprocessors": 2.5}}, ("multiprocessors",)),
        ({"constants": {"transient_factor": "870MiB"}}, ("constants.transient_factor", "Give a number")),
    ],
)
def test_bad_readings_name_the_field(glm: ModelProfile, content: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises((DataError, UsageError)) as caught:
        recalibrate(Readings.model_validate(content), glm, USE)
    assert all(word in str(caught.value) for word in words)


def test_every_constant_has_its_source() -> None:
    assert all(field.description for field in Overheads.model_fields.values())
