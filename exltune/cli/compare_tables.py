"""Tables of gates; every number comes from a record."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from exltune.budget import format_size
from exltune.schema.compare import CompareMetric, CompareResult, ScoredQuant, TaskRuns, TaskVerdict


def compare_table(found: CompareResult) -> Table:
    """Metric | candidate | baseline | difference | 95 % interval | p | p by Holm | outcome."""
    tokens = f"{found.candidate.row.tokens:,} held-out tokens"
    table = Table(title=f"{found.candidate.row.name} against {found.baseline.row.name}, {tokens}", min_width=100)
    table.add_column("Metric", no_wrap=True)
    for name in ("candidate", "baseline", "better by", "95 % interval", "p", "p, Holm", "outcome"):
        table.add_column(name, justify="right", no_wrap=True)
    for metric in found.metrics:
        table.add_row(escape(metric.name), *_cells(metric))
    return table


def tasks_table(tasks: Sequence[TaskVerdict]) -> Table:
    """Task, documents, the metric on both sides, and answers that ended at the token limit."""
    table = Table(title="Benchmark tasks; cut off: answers that ended at their token limit")
    table.add_column("Task", no_wrap=True)
    table.add_column("metric")
    for name in ("docs", "candidate", "baseline", "better by", "95 % interval", "p", "p, Holm", "outcome", "cut off"):
        table.add_column(name, justify="right", no_wrap=True)
    for task in tasks:
        cut_off = f"{task.candidate_truncated} / {task.baseline_truncated}"
        table.add_row(escape(task.task), escape(task.metric.name), str(task.documents), *_cells(task.metric), cut_off)
    return table


def runs_table(found: TaskRuns) -> Table:
    """Task, documents, mean metric, answers that ended at the token limit."""
    table = Table(title=f"{found.endpoint}, lm-eval {found.harness_version}", min_width=80)
    table.add_column("Task", no_wrap=True)
    table.add_column("metric")
    for name in ("docs", "of", "mean", "cut off"):
        table.add_column(name, justify="right")
    for run in found.runs:
        docs, mean = len(run.values), sum(run.values) / len(run.values)
        metric = f"{run.metric}, {run.filter}"
        table.add_row(run.task, metric, str(docs), str(run.total), f"{mean:.4f}", str(sum(run.truncated)))
    return table


def compare_lines(found: CompareResult, alpha: float) -> list[str]:
    """The deciding numbers, how to read them, and the source of every number."""
    ours, theirs = found.candidate.row, found.baseline.row
    first = found.metrics[0]
    lines = [
        f"{ours.name}: {format_size(ours.size_bytes)}, {ours.bpw:.3f} bpw, head {ours.head_bpw:.3f}; {theirs.name}: "
        f"{format_size(theirs.size_bytes)}, {theirs.bpw:.3f} bpw, head {theirs.head_bpw:.3f}; bytes differ by "
        f"{100 * found.bytes_difference:+.3f} % ({100 * found.tolerance:g} % allowed).",
        f"{first.name} decides: {found.outcome.value}. Differences are paired by row, positive where the candidate is "
        f"better; each interval is that metric's own. The other metrics win or lose where p, adjusted by Holm over all "
        f"of them, is below {alpha:g}. Perplexity is compared by its logarithm.",
    ]
    reference = found.candidate.provenance.reference
    lines += [f"{reference.told}."] if reference is not None else []
    lines += [f"{remark}." for remark in found.remarks]
    lines += [_source("Candidate's", found.candidate), _source("Baseline's", found.baseline)]
    for name, side in (("Candidate's", found.candidate), ("Baseline's", found.baseline)):
        if side.tasks is not None:
            lines.append(f"{name} tasks: {_where(side.tasks.source.file)}, made by: {side.tasks.source.command}")
    return [*lines, f"Differences: {_where(found.source.file)}, made by: {found.source.command}"]


def _source(name: str, side: ScoredQuant) -> str:
    return f"{name} numbers: {_where(side.source.file)}, made by: {side.source.command}"


def _where(file: str | None) -> str:
    return file if file is not None else "stored nowhere (--out FILE stores them)"


def _cells(metric: CompareMetric) -> tuple[str, ...]:
    low, high = metric.ci95
    digits = 3 if metric.name == "perplexity" else 4
    return (
        f"{metric.candidate:.{digits}f}",
        f"{metric.baseline:.{digits}f}",
        f"{metric.difference:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        f"{metric.p:.2g}",
        f"{metric.p_holm:.2g}",
        metric.outcome.value,
    )
