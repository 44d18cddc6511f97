"""Win, tie or loss per metric, from the sums per row of two quants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr

from exltune.errors import CompareRefusedError
from exltune.metrics import mean_and_se, mean_interval, perplexity
from exltune.schema.compare import CompareMetric, Outcome, TaskRuns, TaskVerdict
from exltune.schema.score import Score

#: A difference whose p value, adjusted by Holm, is below this is a win or a loss.
ALPHA = 0.05
_NATS = "nats/token"


def compare_metrics(candidate: Score, baseline: Score) -> tuple[CompareMetric, ...]:
    """KL(ref‖quant), which decides alone, then KL(quant‖ref), perplexity and top-1 to top-5.

    Perplexities are compared by their logarithm, the mean -log p of the next token. Raises: CompareRefusedError for
    scores of different rows or of fewer than two.
    """
    _check_rows(candidate, baseline)
    positions = baseline.positions
    sides = ((candidate.kl_ref_mix, baseline.kl_ref_mix), (candidate.kl_mix_ref, baseline.kl_mix_ref))
    metrics = [
        _metric(name, _NATS, *pair, positions, lower_is_better=True)
        for name, pair in zip(("KL(ref‖quant)", "KL(quant‖ref)"), sides, strict=True)
    ]
    log_perplexity = _metric("perplexity", f"{_NATS}, of its log", candidate.nll, baseline.nll, positions, True)
    shown = {"candidate": perplexity(candidate), "baseline": perplexity(baseline)}
    metrics.append(log_perplexity.model_copy(update=shown))
    metrics += [
        _metric(f"top-{k}", "share of positions", *pair, positions, lower_is_better=False)
        for k, pair in enumerate(zip(candidate.top_k, baseline.top_k, strict=True), start=1)
    ]
    return (metrics[0], *adjusted(metrics[1:]))


def task_verdicts(candidate: TaskRuns, baseline: TaskRuns) -> tuple[TaskVerdict, ...]:
    """All tasks of both sides, adjusted over the tasks. Raises: CompareRefusedError for other documents or settings."""
    _check_runs(candidate, baseline)
    theirs = {(run.task, run.metric, run.filter): run for run in baseline.runs}
    pairs = [(run, theirs[run.task, run.metric, run.filter]) for run in candidate.runs]
    metrics = [
        _metric(f"{ours.metric}, {ours.filter}", "", ours.values, other.values, 1, not ours.higher_is_better)
        for ours, other in pairs
    ]
    return tuple(
        TaskVerdict(
            task=ours.task,
            documents=len(ours.values),
            metric=metric,
            candidate_truncated=sum(ours.truncated),
            baseline_truncated=sum(other.truncated),
        )
        for (ours, other), metric in zip(pairs, adjusted(metrics), strict=True)
    )


def adjusted(metrics: Sequence[CompareMetric]) -> list[CompareMetric]:
    """The same metrics with p values adjusted over all of them, and the outcome that follows.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = sorted(range(len(metrics)), key=lambda at: metrics[at].p)
    adjusted_p = dict.fromkeys(order, 0.0)
    highest = 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * metrics[at].p))
        adjusted_p[at] = highest
    return [
        metric.model_copy(update={"p_holm": adjusted_p[at], "outcome": _outcome(metric.difference, adjusted_p[at])})
        for at, metric in enumerate(metrics)
    ]


def _metric(
    name: str, unit: str, ours: Sequence[float], theirs: Sequence[float], positions: int, lower_is_better: bool
) -> CompareMetric:
    sign = -1.0 if lower_is_better else 1.0
    gains = sign * (np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64))  # (rows,)
    found = mean_interval(gains.tolist(), positions)
    p = _p_value(found.mean, found.se, len(gains) - 1)
    return CompareMetric(
        name=name,
        unit=unit,
        candidate=mean_and_se(ours, positions).mean,
        baseline=mean_and_se(theirs, positions).mean,
        difference=found.mean,
        se=found.se,
        ci95=(found.ci_low, found.ci_high),
        p=p,
        p_holm=p,
        outcome=_outcome(found.mean, p),
    )


def _p_value(mean: float, se: float, freedom: int) -> float:
    if se == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return min(1.0, 2.0 * float(stdtr(freedom, -abs(mean) / se)))


def _outcome(difference: float, p: float) -> Outcome:
    if p >= ALPHA:
        return Outcome.TIE
    return Outcome.WIN if difference > 0 else Outcome.LOSS


def _check_rows(candidate: Score, baseline: Score) -> None:
    rows = len(candidate.kl_ref_mix), len(baseline.kl_ref_mix)
    if rows[0] != rows[1] or candidate.positions != baseline.positions:
        raise CompareRefusedError(
            f"the candidate has {rows[0]} rows of {candidate.positions} positions, the baseline {rows[1]} of "
            f"{baseline.positions}",
            fix="Score both on the same tokens",
        )
    if rows[0] < 2:
        raise CompareRefusedError(f"{rows[0]} rows give no interval", fix="Score more rows")


def _check_runs(candidate: TaskRuns, baseline: TaskRuns) -> None:
    """Equal harness, settings, tasks and documents."""
    told = f"{candidate.source.file or candidate.endpoint} and {baseline.source.file or baseline.endpoint}"
    fix = "Run the tasks of both sides with the same options and the same lm-eval"
    if (candidate.harness_version, candidate.settings) != (baseline.harness_version, baseline.settings):
        ours = {"lm-eval": candidate.harness_version, **candidate.settings}
        theirs = {"lm-eval": baseline.harness_version, **baseline.settings}
        other = [
            f"{key} {ours.get(key)} and {theirs.get(key)}" for key in ours | theirs if ours.get(key) != theirs.get(key)
        ]
        raise CompareRefusedError(f"tasks were run with different settings: {', '.join(other)}", where=told, fix=fix)
    ours_by, theirs_by = (_documents(side) for side in (candidate, baseline))
    if ours_by.keys() != theirs_by.keys():
        only = sorted({task for task, *_ in ours_by.keys() ^ theirs_by.keys()})
        raise CompareRefusedError(f"only one side has the tasks {', '.join(only)}", where=told, fix=fix)
    for key, documents in ours_by.items():
        if documents != theirs_by[key]:
            raise CompareRefusedError(
                f"{key[0]} has {len(documents)} documents here and {len(theirs_by[key])} there, or others",
                where=told,
                fix=fix,
            )
        if len(documents) < 2:
            raise CompareRefusedError(
                f"{key[0]} has {len(documents)} document: no interval", where=told, fix="Take more"
            )


def _documents(side: TaskRuns) -> dict[tuple[str, str, str, str], tuple[str, ...]]:
    return {(run.task, run.version, run.metric, run.filter): run.doc_hashes for run in side.runs}
