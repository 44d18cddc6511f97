"""Win, tie and loss against scipy's paired test and Holm's procedure worked by hand; what a gate refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from exltune.cli.commands.compare import parse_tolerance
from exltune.errors import CompareRefusedError, UsageError
from exltune.evaluation.compare import adjusted, compare_metrics, task_verdicts
from exltune.metrics import score_from_rows
from exltune.schema.compare import CompareMetric, Outcome, Source, TaskRun, TaskRuns
from exltune.schema.score import Score

ROWS, POSITIONS = 20, 50
NAMES = ["KL(ref‖quant)", "KL(quant‖ref)", "perplexity", *(f"top-{k}" for k in range(1, 6))]


def score(seed: int, worse: float = 0.0) -> Score:
    """Sums per row that belong together row by row; `worse` raises KL and likelihood's loss, lowers agreement."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(0).uniform(5, 30, ROWS)
    divergence = shared + rng.normal(0, 0.3, ROWS) + worse
    tops = [np.round(40 - 5 * k - worse + rng.integers(0, 3, ROWS)) for k in range(5)]
    return score_from_rows("q", np.array([divergence, divergence * 1.1, 100 + divergence, *tops]), POSITIONS)


def test_differences_are_those_of_a_paired_test() -> None:
    ours, theirs = score(1), score(2, worse=0.5)
    found = compare_metrics(ours, theirs)
    assert [metric.name for metric in found] == NAMES
    pairs = [(theirs.kl_ref_mix, ours.kl_ref_mix), (theirs.kl_mix_ref, ours.kl_mix_ref), (theirs.nll, ours.nll)]
    pairs += list(zip(ours.top_k, theirs.top_k, strict=True))
    for metric, (high, low) in zip(found, pairs, strict=True):
        test = stats.ttest_rel(np.array(high) / POSITIONS, np.array(low) / POSITIONS)
        interval = test.confidence_interval(0.95)
        assert metric.difference == pytest.approx((np.sum(high) - np.sum(low)) / ROWS / POSITIONS)
        assert metric.ci95 == pytest.approx((interval.low, interval.high))
        assert metric.p == pytest.approx(test.pvalue)
    assert found[0].outcome is Outcome.WIN
    assert found[2].candidate == pytest.approx(math.exp(sum(ours.nll) / ROWS / POSITIONS))
    assert found[2].baseline / found[2].candidate == pytest.approx(math.exp(found[2].difference))
    assert found[3].candidate == pytest.approx(sum(ours.top_k[0]) / ROWS / POSITIONS)


def test_the_other_side_loses_and_itself_ties() -> None:
    ours, theirs = score(1), score(2, worse=3.0)
    for first, second, outcome in ((ours, theirs, Outcome.WIN), (theirs, ours, Outcome.LOSS)):
        assert {metric.outcome for metric in compare_metrics(first, second)} == {outcome}
    for metric in compare_metrics(ours, ours):
        assert (metric.difference, metric.p, metric.ci95, metric.outcome) == (0.0, 1.0, (0.0, 0.0), Outcome.TIE)


def test_the_first_metric_decides_by_its_own_interval() -> None:
    outcomes = set()
    for seed in range(40):
        first = compare_metrics(score(seed), score(seed + 100, worse=0.15))[0]
        low, high = first.ci95
        expected = Outcome.WIN if low > 0 else Outcome.LOSS if high < 0 else Outcome.TIE
        assert (first.outcome, first.p_holm) == (expected, first.p)
        outcomes.add(first.outcome)
    assert {Outcome.WIN, Outcome.TIE} <= outcomes


def test_holm_as_worked_by_hand() -> None:
    ps = [0.01, 0.04, 0.03, 0.005]
    found = adjusted([metric(p, difference=-1.0 if p == 0.01 else 1.0) for p in ps])
    assert [one.p_holm for one in found] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [one.outcome for one in found] == [Outcome.LOSS, Outcome.TIE, Outcome.TIE, Outcome.WIN]
    assert [one.p_holm for one in adjusted([metric(0.7), metric(0.9)])] == [1.0, 1.0]


def test_other_rows_are_refused() -> None:
    with pytest.raises(CompareRefusedError, match="19 rows of 50 positions, the baseline 20 of 50"):
        compare_metrics(cut(score(1), ROWS - 1), score(2))
    with pytest.raises(CompareRefusedError, match="1 rows give no interval"):
        compare_metrics(cut(score(1), 1), cut(score(2), 1))


def test_tasks_are_paired_by_document() -> None:
    values = np.random.default_rng(0).integers(0, 2, (2, 30)).astype(float)
    values[0, :12] = 1.0
    (found,) = task_verdicts(runs(run(values[0], cut_off=3)), runs(run(values[1], cut_off=7)))
    test = stats.ttest_rel(values[0], values[1])
    assert (found.documents, found.candidate_truncated, found.baseline_truncated) == (30, 3, 7)
    assert found.metric.p == pytest.approx(test.pvalue)
    assert found.metric.difference == pytest.approx(values[0].mean() - values[1].mean())
    assert (found.metric.candidate, found.metric.baseline) == pytest.approx((values[0].mean(), values[1].mean()))


def test_a_metric_that_falls_as_answers_get_better() -> None:
    ours, theirs = (run(np.full(9, value) + np.arange(9) * slope, higher=False) for value, slope in ((1, 0), (2, 0.01)))
    (found,) = task_verdicts(runs(ours), runs(theirs))
    assert found.metric.difference > 1
    assert found.metric.outcome is Outcome.WIN


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": {"max_tokens": "64"}}, "max_tokens 128 and 64"),
        ({"harness_version": "0.4.9"}, "lm-eval 0.4.13 and 0.4.9"),
        ({"runs": ()}, "only one side has the tasks sums"),
    ],
)
def test_other_settings_of_tasks_are_refused(changes: dict[str, object], words: str) -> None:
    ours = runs(run(np.ones(5)))
    with pytest.raises(CompareRefusedError, match=words):
        task_verdicts(ours, ours.model_copy(update=changes))


def test_other_documents_are_refused() -> None:
    with pytest.raises(CompareRefusedError, match="sums has 5 documents here and 4 there"):
        task_verdicts(runs(run(np.ones(5))), runs(run(np.ones(4))))
    with pytest.raises(CompareRefusedError, match="sums has 1 document"):
        task_verdicts(runs(run(np.ones(1))), runs(run(np.ones(1))))


def test_tolerances() -> None:
    assert [parse_tolerance(text) for text in ("0.5%", "0.005", "0")] == pytest.approx([0.005, 0.005, 0.0])
    for text in ("", "half", "-1%", "nan", "100%"):
        with pytest.raises(UsageError, match="--tolerance"):
            parse_tolerance(text)


def cut(whole: Score, rows: int) -> Score:
    sums = [whole.kl_ref_mix, whole.kl_mix_ref, whole.nll, *whole.top_k]
    return score_from_rows("q", np.array([values[:rows] for values in sums]), POSITIONS)


def metric(p: float, difference: float = 1.0) -> CompareMetric:
    return CompareMetric(
        name="m", unit="", candidate=0, baseline=0, difference=difference, se=1, ci95=(0, 0), p=p, p_holm=p,
        outcome=Outcome.TIE,
    )  # fmt: skip


def run(values: np.ndarray, cut_off: int = 0, higher: bool = True) -> TaskRun:
    return TaskRun(
        task="sums",
        version="1",
        metric="exact_match",
        filter="none",
        higher_is_better=higher,
        doc_hashes=tuple(map(str, range(len(values)))),
        values=tuple(values.tolist()),
        truncated=tuple(at < cut_off for at in range(len(values))),
        total=100,
    )


def runs(*found: TaskRun) -> TaskRuns:
    return TaskRuns(
        endpoint="http://here/v1",
        model="m",
        harness_version="0.4.13",
        settings={"max_tokens": "128"},
        runs=found,
        source=Source(file=None, command="exltune tasks"),
    )
