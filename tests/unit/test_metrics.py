"""Metrics against formulas written out in fp64, scipy's distributions and exllamav3's definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from exltune.errors import DataError
from exltune.metrics import (
    evaluation_row,
    mean_and_se,
    paired_difference,
    perplexity,
    row_means,
    score_from_rows,
)
from exltune.metrics.logits import ReferenceLogits, score_logits
from exltune.schema.score import Score

ROWS, LENGTH, VOCAB = 3, 7, 40


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reference and mix logits (rows, T, vocab), and ids (rows, T)."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(ROWS, LENGTH, VOCAB, generator=generator) * 3
    mix = reference + torch.randn(ROWS, LENGTH, VOCAB, generator=generator) * 0.3
    return reference, mix, torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator)


def make_score(kl: list[float], positions: int = 10, name: str = "mix") -> Score:
    zeros = [0.0] * len(kl)
    return score_from_rows(name, np.array([kl, zeros, zeros, *[zeros] * 5]), positions)


def test_kl_and_likelihood_are_those_of_the_distributions(
    logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    reference, mix, ids = logits
    sums = score_logits(reference, mix, ids)
    p, q = reference[:, :-1].double().softmax(-1).numpy(), mix[:, :-1].double().softmax(-1).numpy()
    np.testing.assert_allclose(sums[0], stats.entropy(p, q, axis=-1).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(sums[1], stats.entropy(q, p, axis=-1).sum(-1), rtol=1e-5)
    nll = [-sum(math.log(q[row, at, ids[row, at + 1]]) for at in range(LENGTH - 1)) for row in range(ROWS)]
    np.testing.assert_allclose(sums[2], nll, rtol=1e-6)


def test_agreement_is_that_of_exllamav3(logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    reference, mix, ids = logits
    sums = score_logits(reference, mix, ids)
    top_a, top_b = (x[:, :-1].topk(5, dim=-1).indices for x in (reference, mix))
    expected = [torch.eq(top_a[..., :k], top_b[..., :k]).all(-1).sum(-1).tolist() for k in range(1, 6)]
    assert sums[3:].tolist() == expected
    assert 0 < sums[7].sum() < sums[3].sum() < ROWS * (LENGTH - 1)


def test_a_mix_equal_to_the_reference_is_exactly_zero(
    logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    reference, _, ids = logits
    reference[0, 0] = 1.0  # all tied
    sums = score_logits(reference, reference.clone(), ids)
    assert sums[:2].abs().max() == 0
    assert sums[3:].unique().tolist() == [LENGTH - 1]


def test_nan_in_a_mix_reaches_its_sums(logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    reference, mix, ids = logits
    mix[1, 2, 3] = float("nan")
    finite = torch.isfinite(score_logits(reference, mix, ids)).all(0)
    assert finite.tolist() == [True, False, True]


def test_positions_may_be_compared_in_any_chunks(logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    reference, mix, _ = (x.reshape(-1, VOCAB) if x.is_floating_point() else x for x in logits)
    next_ids = torch.arange(len(reference)) % VOCAB
    whole = ReferenceLogits(reference, next_ids).compare(mix).stacked()
    parts = [
        ReferenceLogits(r, n).compare(m).stacked()
        for r, n, m in zip(reference.split(4), next_ids.split(4), mix.split(4), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-7)


def test_mean_and_standard_error_are_over_rows() -> None:
    sums = [10.0, 14.0, 9.0]
    mean, se = mean_and_se(sums, positions=10)
    assert mean == pytest.approx(1.1)
    assert se == pytest.approx(stats.sem([1.0, 1.4, 0.9]))
    assert row_means(sums, 10).tolist() == [1.0, 1.4, 0.9]
    assert math.isnan(mean_and_se([1.0], 1).se)


def test_paired_interval_is_students_t() -> None:
    baseline, tuned = [10.0, 14.0, 9.0, 11.0], [8.0, 13.0, 8.5, 8.0]
    found = paired_difference(make_score(baseline), make_score(tuned))
    expected = stats.ttest_rel(np.array(baseline) / 10, np.array(tuned) / 10)
    interval = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx(0.1625)
    assert (found.ci_low, found.ci_high) == pytest.approx((interval.low, interval.high))
    assert found.se == pytest.approx(found.mean / expected.statistic)


def test_only_scores_of_the_same_rows_are_paired() -> None:
    with pytest.raises(DataError, match="different rows"):
        paired_difference(make_score([1.0, 2.0]), make_score([1.0, 2.0, 3.0]))
    with pytest.raises(DataError, match="different rows"):
        paired_difference(make_score([1.0, 2.0]), make_score([1.0, 2.0], positions=9))
    with pytest.raises(DataError, match="at least two rows"):
        paired_difference(make_score([1.0]), make_score([1.0]))


def test_evaluation_row_holds_means_per_token() -> None:
    sums = np.array([[4.0, 6.0], [8.0, 8.0], [20.0, 30.0], [9, 10], [8, 9], [7, 8], [6, 7], [5, 5]])
    score = score_from_rows("m", sums, positions=10)
    row = evaluation_row(score, name="3bpw", path="/q", size_bytes=1000, bpw=3.03, head_bpw=6.1)
    assert (row.kl_ref_quant, row.kl_quant_ref) == (pytest.approx(0.5), pytest.approx(0.8))
    assert row.kl_ref_quant_se == pytest.approx(stats.sem([0.4, 0.6]))
    assert row.kl_quant_ref_se == 0
    assert row.perplexity == perplexity(score) == pytest.approx(math.exp(2.5))
    assert (row.top_1, row.top_5, row.tokens) == (pytest.approx(0.95), pytest.approx(0.5), 20)
