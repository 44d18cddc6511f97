"""The joint optimum of weights, head and cache against brute force, and the table made of it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from synthetic_measurement import synthetic_measurement

from exltune.budget import Limits, ModelProfile, fit_mix, mix_weights, model_profile
from exltune.errors import BudgetError, UsageError
from exltune.pipeline.optimization.tradeoff import TradeoffOptions, tradeoff
from exltune.report.tradeoff_png import tradeoff_png
from exltune.schema.hardware import FP16_CACHE, CacheBits, Hardware, Use
from exltune.schema.mix import CACHE_K, CACHE_V
from exltune.schema.tradeoff import Tradeoff, TradeoffRow
from exltune.search import Option, solve_knapsack
from exltune.search.space.joint import Joint, Optimum, groups_budget
from exltune.search.space.space import SpaceOptions, search_space
from exltune.store.records import write_record

CONFIG: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "moe_intermediate_size": 256,
    "n_routed_experts": 8,
    "first_k_dense_replace": 1,
    "vocab_size": 1024,
    "max_position_embeddings": 65536,
}
WIDTHS, HEADS = (2.0, 3.0, 4.0, 6.0), (4.0, 5.0, 6.0, 8.0)
PROFILE: ModelProfile = model_profile(CONFIG)
MEASUREMENT = synthetic_measurement(PROFILE.inventory, WIDTHS, HEADS)
#: Rows of a trade share the law: it is fitted once for all tests.
OPEN = Joint(PROFILE, MEASUREMENT, head_open=True)
CONTEXT = 8192
QUANTIZED = [CacheBits(k=k, v=v) for k, v in product(range(2, 9), repeat=2)]


def _vram(bits: float, cache: CacheBits, context: int = CONTEXT) -> int:
    """The pool that a uniform quant with a 6-bit head fills beside a cache, to the byte."""
    groups = dict.fromkeys((group.id for group in PROFILE.inventory.groups), bits)
    (placed,) = fit_mix(PROFILE, mix_weights(PROFILE, groups, 6.0), _pool(1 << 40), Use(context=context, cache=cache))
    return (1 << 40) - placed.room


def _pool(vram_bytes: int) -> Limits:
    return Limits(Hardware(vram_bytes=vram_bytes))


VRAM = _vram(3.5, CacheBits(k=5, v=5))


def _fits(found: Optimum, vram_bytes: int, **changes: str) -> bool:
    """Whether the found mix, some of its choices changed, fits by the planner's own count."""
    choices = {**found.candidate.choices, **changes}
    bits = {group.id: float(choices[group.id]) for group in PROFILE.inventory.groups}
    head_bits = MEASUREMENT.exltune.heads[choices["head"]]
    k, v = (int(choices.get(key, 16)) for key in (CACHE_K, CACHE_V))
    try:
        fit_mix(
            PROFILE,
            mix_weights(PROFILE, bits, head_bits),
            _pool(vram_bytes),
            Use(context=CONTEXT, cache=CacheBits(k=k, v=v)),
        )
    except BudgetError:
        return False
    return True


def _upgrades(found: Optimum) -> list[dict[str, str]]:
    """Every single unit one option up, the cache's halves too."""
    heads = {bits: choice for choice, bits in MEASUREMENT.exltune.heads.items()}
    steps = []
    for key, choice in found.candidate.choices.items():
        if key == "head":
            above = [heads[bits] for bits in HEADS if bits > MEASUREMENT.exltune.heads[choice]]
        elif key in (CACHE_K, CACHE_V):
            above = [str(bits) for bits in range(int(choice) + 1, 9)]
        else:
            above = [f"{bits:g}" for bits in WIDTHS if bits > float(choice)]
        steps += [{key: above[0]}] if above else []
    return steps


@pytest.mark.parametrize("vram", [VRAM, _vram(2.6, CacheBits(k=4, v=4)), _vram(5, CacheBits(k=8, v=8)) + 12345])
def test_the_joint_optimum_is_the_best_of_every_cache_and_head_alone(vram: int) -> None:
    units, energies = OPEN.problem.units, OPEN.law.energies()
    numbers = {unit.id: number for number, unit in enumerate(units)}
    groups = [unit for unit in units if unit.id not in ("head", CACHE_K, CACHE_V)]
    items = {
        unit.id: [
            Option(str(i), option.size_bytes, float(energies[numbers[unit.id]][i]))
            for i, option in enumerate(unit.options)
        ]
        for unit in groups
    }
    klds, solved = [], {}
    for cache in (FP16_CACHE, *QUANTIZED):
        for number, head in enumerate(units[numbers["head"]].options):
            use = Use(context=CONTEXT, cache=cache)
            try:
                budget = groups_budget(PROFILE, WIDTHS, _pool(vram), use, head.bits)
            except BudgetError:
                continue
            if budget.size_bytes not in solved:
                solved[budget.size_bytes] = solve_knapsack(items, budget.size_bytes)
            assignment = solved[budget.size_bytes]
            energy = (
                sum(energies[numbers[name]][int(i)] for name, i in assignment.items())
                + energies[numbers["head"]][number]
            )
            if cache.quantized:
                energy += energies[numbers[CACHE_K]][cache.k - 2] + energies[numbers[CACHE_V]][cache.v - 2]
            klds.append(energy**OPEN.law.gamma)
    found = OPEN.best(_pool(vram), Use(context=CONTEXT))
    assert len(klds) > 70
    assert found.predicted_kld == pytest.approx(min(klds), rel=1e-9)


@pytest.mark.parametrize("spare", [0, 1, 1023, 77_777])
def test_every_byte_is_counted(spare: int) -> None:
    vram = VRAM + spare
    found = OPEN.best(_pool(vram), Use(context=CONTEXT))
    assert found.cache.quantized
    assert _fits(found, vram)
    steps = _upgrades(found)
    assert len(steps) > 20
    assert not any(_fits(found, vram, **step) for step in steps)


def test_to_the_byte() -> None:
    """The pool that a mix fills holds it; a byte less holds another one."""
    found = OPEN.best(_pool(VRAM), Use(context=CONTEXT))
    bits = {group.id: float(found.candidate.choices[group.id]) for group in PROFILE.inventory.groups}
    use = Use(context=CONTEXT, cache=found.cache)
    (placed,) = fit_mix(PROFILE, mix_weights(PROFILE, bits, found.head_bits), _pool(VRAM), use)
    exact = VRAM - placed.room
    assert OPEN.best(_pool(exact), Use(context=CONTEXT)).candidate.choices == found.candidate.choices
    less = OPEN.best(_pool(exact - 1), Use(context=CONTEXT))
    assert less.candidate.choices != found.candidate.choices
    assert less.predicted_kld > found.predicted_kld


def test_the_search_starts_from_the_joint_optimum() -> None:
    asked = SpaceOptions(_pool(VRAM), Use(context=CONTEXT), cache="auto", head="auto")
    space = search_space(CONFIG, Path("config.json"), MEASUREMENT, asked)
    found = OPEN.best(_pool(VRAM), Use(context=CONTEXT))
    assert space.problem.extras == {CACHE_K: str(found.cache.k), CACHE_V: str(found.cache.v)}
    assignment = space.problem.assignment_of(found.candidate.choices)
    assert assignment is not None
    assert space.problem.within(assignment)
    assert space.problem.budget_bytes - space.problem.bytes_of(assignment) < 8192


def test_an_fp16_cache_where_there_is_room_for_it() -> None:
    vram = _vram(6, FP16_CACHE)
    asked = SpaceOptions(_pool(vram), Use(context=CONTEXT), cache="auto")
    assert search_space(CONFIG, Path("config.json"), MEASUREMENT, asked).problem.extras == {}


def test_bytes_that_the_target_keeps_from_the_weights_are_the_caches() -> None:
    """--target-bpw binds: the cache takes what memory is left, and no smaller cache lifts the weights above it."""
    limits = replace(_pool(_vram(3.5, CacheBits(k=8, v=8))), target_bpw=3.3)
    space = search_space(
        CONFIG, Path("config.json"), MEASUREMENT, SpaceOptions(limits, Use(context=CONTEXT), cache="auto")
    )
    assert space.budget.binding == "target_bpw"
    assert space.problem.extras == {CACHE_K: "8", CACHE_V: "8"}
    lowest = [0 if unit.role in (CACHE_K, CACHE_V) else None for unit in space.problem.units]
    sizes = {unit.id: [option.size_bytes for option in unit.options] for unit in space.problem.units}
    assert lowest.count(0) == 2
    assert sizes[CACHE_K] == sizes[CACHE_V] == [0] * 7


def test_a_fixed_head() -> None:
    fixed = Joint(PROFILE, MEASUREMENT, head_bits=6.0).best(_pool(VRAM), Use(context=CONTEXT))
    assert fixed.head_bits == 6.0
    assert fixed.candidate.choices["head"] == "4"
    with pytest.raises(UsageError, match=r"no measured head has 3 bits. Measured are 4, 5, 6, 8"):
        Joint(PROFILE, MEASUREMENT, head_bits=3.0)


def _trade(folder: Path, asked: TradeoffOptions, **changes: Any) -> Tradeoff:
    write_record(folder / "m.json", MEASUREMENT)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return tradeoff(folder / "m.json", asked, model=folder / "config.json", **changes)


def test_rows_of_a_trade(tmp_path: Path) -> None:
    contexts = (16384, 4096, 8192, 4096)
    found = _trade(tmp_path, TradeoffOptions(_pool(VRAM), contexts, head="auto"))
    assert [row.context for row in found.rows] == sorted(row.context for row in found.rows)
    for context in (4096, 8192, 16384):
        rows = [row for row in found.rows if row.context == context]
        fitting = [row.predicted_kld for row in rows if row.predicted_kld is not None]
        best = [row for row in rows if row.best]
        assert len(best) == 1
        assert best[0].predicted_kld == min(fitting)
        assert best[0].predicted_kld == pytest.approx(OPEN.best(_pool(VRAM), Use(context=context)).predicted_kld)
        assert len({row.cache for row in rows}) == len(rows)
        bpws = [row.bpw for row in rows if row.bpw is not None]
        assert [row.kv_bytes for row in rows] == sorted((row.kv_bytes for row in rows), reverse=True)
        assert len(bpws) >= 2
    gone = [row for row in found.rows if not row.fits]
    assert gone
    for row in gone:
        assert row.reason is not None
        assert row.reason.startswith("`vram` leaves")
        assert (row.bpw, row.predicted_kld, row.weights_bytes, row.best) == (None, None, None, False)


def test_more_context_never_predicts_less_kl(tmp_path: Path) -> None:
    found = _trade(tmp_path, TradeoffOptions(_pool(VRAM), (1024, 4096, 8192), head="auto"))
    for cache in ("5,4", "4,4", "2,2"):
        klds = [row.predicted_kld for row in found.rows if row.cache == cache]
        assert None not in klds
        assert klds == sorted(klds, key=lambda kld: kld or 0.0)


def test_nothing_fits(tmp_path: Path) -> None:
    caches = (FP16_CACHE, CacheBits(k=2, v=2))
    found = _trade(tmp_path, TradeoffOptions(_pool(1 << 20), (CONTEXT,), caches))
    assert [(row.cache, row.fits, row.best) for row in found.rows] == [("fp16", False, False), ("2,2", False, False)]
    assert matplotlib.image.imread(io.BytesIO(tradeoff_png(found))).size


@pytest.mark.slow
def test_gpus_are_split_layer_by_layer(tmp_path: Path) -> None:
    overhead = _vram(2, CacheBits(k=2, v=2), 256) - PROFILE.sizes.uniform_size(2, 6).size_bytes
    cards = 2 * (overhead + (VRAM - overhead) * 2 // 5,)
    found = _trade(tmp_path, TradeoffOptions(Limits(Hardware(gpus=cards)), (4096,), (CacheBits(k=4, v=4),)))
    row = next(row for row in found.rows if row.best)
    pool = _trade(tmp_path, TradeoffOptions(_pool(sum(cards) - overhead), (4096,), (CacheBits(k=4, v=4),)))
    assert row.binding == "gpus"
    assert row.predicted_kld is not None
    assert row.predicted_kld > (next(row for row in pool.rows if row.best).predicted_kld or np.inf)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Give `vram` or `gpus`"):
        _trade(tmp_path, TradeoffOptions(Limits(), (1024,)))
    with pytest.raises(UsageError, match="Give `contexts`"):
        _trade(tmp_path, TradeoffOptions(_pool(VRAM), ()))
    with pytest.raises(UsageError, match="`context` 65537 is above the model's limit of 65536"):
        _trade(tmp_path, TradeoffOptions(_pool(VRAM), (1024, 65537)))
    with pytest.raises(UsageError, match="`context` 0 is not above 0"):
        _trade(tmp_path, TradeoffOptions(_pool(VRAM), (0,)))


def test_a_measurement_without_these_caches() -> None:
    few = synthetic_measurement(PROFILE.inventory, WIDTHS, HEADS, cache_bits=(4.0, 6.0))
    with pytest.raises(UsageError, match=r"no measured cache.k has 5 bits. Measured are 4, 6"):
        Joint(PROFILE, few).optimum(_pool(VRAM), Use(context=CONTEXT, cache=CacheBits(k=5, v=4)))
    without = few.model_copy(update={"exltune": few.exltune.model_copy(update={"wider": ()})})
    with pytest.raises(UsageError, match="no probes of head and cache"):
        Joint(PROFILE, without)


def test_a_plot_has_what_fits_alone() -> None:
    row = TradeoffRow(context=1024, cache="5,4", fits=True, best=True, kv_bytes=1, bpw=3.0, predicted_kld=0.1)
    gone = TradeoffRow(context=2048, cache="8,8", fits=False, best=False, kv_bytes=2, reason="it is too large")
    picture = tradeoff_png(Tradeoff(architecture="A", vram_bytes=1 << 30, gpus=(), rows=(row, gone)))
    assert matplotlib.image.imread(io.BytesIO(picture)).shape[0] > 400
