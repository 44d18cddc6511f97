"""Measurements from few swaps: what is scored, what is estimated, and the intervals of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from exltune.budget import SizeModel
from exltune.engines.base import LayerCapture
from exltune.exl3.distortion import nmse
from exltune.exl3.hessian import Hessian
from exltune.measurement import (
    ExhaustivePlan,
    FewSwapsPlan,
    ProbePlan,
    QuantHead,
    QuantReference,
    QuantSizes,
    summarize,
    swap_units,
    tensor_saliency,
)
from exltune.measurement.estimates import log_error
from exltune.schema.measurement import Measurement
from exltune.schema.provenance import Provenance
from exltune.schema.score import Score
from exltune.schema.tokens import DataOptions
from exltune.testing.laws import INVENTORY

QUANTS = {"2": 2.0, "3": 3.0, "4": 4.0, "6": 6.0, "8": 8.0}
HEAD = QuantHead("6", 6.0, "mul1", {"2": 4.0, "6": 6.0, "8": 8.0})
ROWS, POSITIONS = 64, 10
UNITS = swap_units(INVENTORY, 3, QUANTS, HEAD.distinct)


def true_klds(seed: int) -> dict[str, float]:
    """KL of every swap by the law, and of the uniform mixes by nothing in particular."""
    rng = np.random.default_rng(seed)
    klds = {f"uniform@{choice}": 0.4 * 4.0 ** (2 - bits) for choice, bits in QUANTS.items()}
    for unit in UNITS:
        scale, b = np.exp(rng.normal(-2.0, 0.4)), 0.05 * unit.routers**0.8
        for mix, bits in zip(unit.mixes, unit.bits, strict=True):
            error = 2.0 ** (2 - bits) if unit.of_cache else float(np.sqrt(nmse(bits) / nmse(2.0)))
            # At 2 bits KL is a tenth above what the codec's other widths say.
            error *= 1.04 if bits == 2 and not unit.of_cache else 1.0
            klds[mix.name] = (scale * error) ** 2 + b * scale * error
    return klds


def scored(plan: ProbePlan, klds: dict[str, float], seed: int = 0) -> dict[str, Score]:
    """Scores of a plan's mixes: hard rows are hard for all."""
    rng = np.random.default_rng(seed)
    hard = rng.gamma(6.0, 1 / 6.0, ROWS)
    scores = {}
    for batch in plan.next({}):
        for mix in batch.mixes:
            rows = klds[mix.name] * POSITIONS * hard * rng.gamma(20.0, 1 / 20.0, ROWS)
            kept = tuple(rows[: batch.rows.stop])
            scores[mix.name] = Score(
                mix=mix.name, positions=POSITIONS, kl_ref_mix=kept, kl_mix_ref=(), nll=(), top_k=()
            )
    return scores


def measured(scores: dict[str, Score], reference: QuantReference | None = None) -> Measurement:
    model = SizeModel(INVENTORY, "mul1")
    quants = [
        QuantSizes(
            choice, Path(choice), "", bits, bits, 1, {g.id: model.group_bytes(g.id, bits) for g in INVENTORY.groups}
        )
        for choice, bits in QUANTS.items()
    ]
    nothing = Provenance(exltune_version="0", engine="none", model_path="", model_sha256="")
    return summarize(INVENTORY, 3, quants, HEAD, scores, DataOptions(), nothing, reference=reference)


def few_swaps() -> FewSwapsPlan:
    return FewSwapsPlan.of(INVENTORY, 3, QUANTS, HEAD, ROWS, 8.0)


#: The 8-bit quant is the reference: its own weights in every group, and in the head.
EIGHT = QuantReference(8.0, 8.0, frozenset({f"{unit.id}@8" for unit in UNITS if not unit.of_cache} | {"uniform@8"}))


def test_a_reference_that_is_a_base_quant_costs_nothing_by_definition() -> None:
    plan = ExhaustivePlan.of(INVENTORY, 3, list(QUANTS), HEAD, ROWS, EIGHT.same)
    asked = {mix.name for batch in plan.next({}) for mix in batch.mixes}
    assert not asked & EIGHT.same
    few = FewSwapsPlan.of(INVENTORY, 3, QUANTS, HEAD, ROWS, 8.0, EIGHT.same)
    for scores in (scored(plan, true_klds(0)), scored(few, true_klds(0))):
        found = measured(scores, EIGHT)
        for group in found.exltune.groups:
            *others, own = group.probes
            assert not any(probe.of_reference for probe in others)
            assert (own.of_reference, own.kld_nats, own.kld_se_nats, own.estimated) == (True, 0.0, 0.0, False)
            assert (own.kld_rows, own.kld_ci95_nats) == ((), None)
        for group, legacy in zip(found.exltune.groups, found.groups, strict=True):
            assert legacy.candidates[-1].dkld == pytest.approx(-group.probes[0].kld_nats)
        assert [row.kl_ref_quant for row in found.exltune.mixes][-1] is None


def test_swaps_two_bits_up_pass_over_the_reference() -> None:
    """Of 2, 3 and 4 bits against the 4-bit quant, 3 is what is left to tell smooth errors from routers'."""
    quants = {"2": 2.0, "3": 3.0, "4": 4.0}
    same = {f"{unit.id}@4" for unit in UNITS if not unit.of_cache}
    plan = FewSwapsPlan.of(INVENTORY, 3, quants, HEAD, ROWS, 8.0, same)
    asked = {mix.name.rpartition("@")[2] for batch in plan.batches[1:-1] for mix in batch.mixes}
    assert asked == {"2", "3"}


def test_the_errors_of_two_quants_add_up() -> None:
    """Against a quant its own error counts too, being independent: a Monte Carlo of two roundings says the same."""
    unit = next(unit for unit in UNITS if unit.layer is not None)
    rng = np.random.default_rng(0)
    noise = {bits: rng.normal(0, np.sqrt(nmse(bits)), 400_000) for bits in (*unit.bits, 8.0)}
    reference = rng.normal(0, np.sqrt(nmse(8.0)), 400_000)
    expected = [np.log(np.std(noise[bits] - reference) / np.std(noise[2.0] - reference)) for bits in unit.bits]
    # What the codec adds to its law at 2 bits, 0.04, is in all others.
    assert log_error(unit, EIGHT) - log_error(unit, EIGHT)[1] == pytest.approx(
        np.array(expected) - expected[1] + np.where(np.array(unit.bits) == 2, 0.04, 0.0), abs=0.01
    )
    assert log_error(unit, EIGHT)[-1] > log_error(unit)[-1] + 0.3


def test_an_exhaustive_measurement_holds_what_was_scored() -> None:
    scores = scored(ExhaustivePlan.of(INVENTORY, 3, list(QUANTS), HEAD, ROWS), true_klds(0))
    detail = measured(scores).exltune
    for group in (*detail.groups, *detail.wider):
        for probe in group.probes:
            rows = np.array(scores[f"{group.id}@{probe.choice}"].kl_ref_mix) / POSITIONS
            assert probe.kld_nats == pytest.approx(rows.mean())
            assert probe.kld_se_nats == pytest.approx(rows.std(ddof=1) / np.sqrt(ROWS))
            assert probe.kld_rows == pytest.approx(rows)
            assert (probe.estimated, probe.kld_ci95_nats) == (False, None)
    assert detail.law is None
    assert all(one.dkld_ci95 is None for group in measured(scores).groups for one in group.candidates)


@pytest.mark.slow
def test_few_swaps_are_marked_as_estimates_and_their_intervals_hold_the_truth() -> None:
    inside, dinside = [], []
    for seed in range(20):
        klds = true_klds(seed)
        scores = scored(few_swaps(), klds, seed)
        found = measured(scores)
        for group in (*found.exltune.groups, *found.exltune.wider):
            for probe in group.probes:
                assert probe.estimated
                assert probe.kld_ci95_nats is not None
                low, high = probe.kld_ci95_nats
                assert low < probe.kld_nats < high
                inside.append(low < klds[f"{group.id}@{probe.choice}"] < high)
                name = f"{group.id}@{probe.choice}"
                assert len(probe.kld_rows) == (len(scores[name].kl_ref_mix) if name in scores else 0)
        for group, legacy in zip(found.exltune.groups, found.groups, strict=True):
            for probe, candidate in zip(group.probes[1:], legacy.candidates, strict=True):
                assert candidate.dkld_ci95 is not None
                low, high = candidate.dkld_ci95
                assert low < candidate.dkld < high
                truth = klds[f"{group.id}@{probe.choice}"] - klds[f"{group.id}@2"]
                dinside.append(low < truth < high)
    assert 0.92 < np.mean(inside) < 0.99
    assert 0.88 < np.mean(dinside) < 0.99


def test_what_was_not_scored_whole_has_no_kl() -> None:
    found = measured(scored(few_swaps(), true_klds(1)))
    whole = {row.name: row.kl_ref_quant for row in found.exltune.mixes}
    assert [name for name, kld in whole.items() if kld is not None] == ["uniform@2", "uniform@3", "uniform@4"]
    assert list(whole) == [f"uniform@{choice}" for choice in QUANTS]
    assert found.base_kld == whole["uniform@2"]
    assert found.exltune.law is not None
    swaps = sum(bool(p.kld_rows) for group in (*found.exltune.groups, *found.exltune.wider) for p in group.probes)
    assert found.exltune.law.swaps == swaps


def test_kl_never_rises_with_bits() -> None:
    for group in measured(scored(few_swaps(), true_klds(2))).exltune.groups:
        klds = [probe.kld_nats for probe in group.probes]
        assert klds == sorted(klds, reverse=True)


def test_salience_is_the_weights_error_times_the_inputs_norm() -> None:
    expert, query = "model.layers.1.mlp.experts.0", "model.layers.1.self_attn.q_proj"
    inputs = torch.tensor([[3.0, 4.0], [0.0, 5.0]], dtype=torch.float64)
    hessian = Hessian(inputs.T @ inputs, len(inputs))
    hessians = {f"{expert}.down_proj": hessian, query: hessian, "model.layers.1.mlp.gate": hessian}
    errors = {f"{expert}.down_proj": 0.3, query: 0.1}
    found = tensor_saliency(INVENTORY, errors, [LayerCapture(1, hessians, {expert: 1})])
    assert [one.key for one in found] == [query, f"{expert}.down_proj"]
    rms = np.sqrt((9 + 16 + 25) / 4)
    assert [one.input_rms for one in found] == pytest.approx([rms, rms])
    assert [one.saliency for one in found] == pytest.approx([0.1 * rms, 0.3 * rms * np.sqrt(0.5)])
    assert [one.tokens for one in found] == [None, 1]
    assert [one.group for one in found] == ["1.attn.q", "1.experts.down"]
