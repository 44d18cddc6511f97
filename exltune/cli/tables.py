"""Tables for people; every number comes from a record."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from exltune.budget import format_size
from exltune.pipeline.quants.inspect import Inspection
from exltune.schema.evaluation import EvaluationRow, Verdict
from exltune.schema.provenance import ReferenceQuant
from exltune.schema.recipe import Recipe
from exltune.schema.search import SearchDetail, Standing

#: A baseline with up to this share of bytes more counts as of the same size (DESIGN.md section 8).
_SAME_SIZE = 0.005


def evaluation_table(rows: Sequence[EvaluationRow], reference: ReferenceQuant | None = None) -> Table:
    """Quant | Size | bpw | KL(quant‖ref) | KL(ref‖quant), ± standard error | Perplexity | Top-1 .. Top-5."""
    table = Table(
        title=f"Held-out text, {rows[0].tokens:,} tokens; both KL in nats/token ± standard error",
        caption=None if reference is None else f"{reference.told}.",
    )
    table.add_column("Quant", no_wrap=True)
    for name in ("Size", "bpw", "KL(quant‖ref)", "KL(ref‖quant)", "Perplexity", *(f"Top-{k}" for k in range(1, 6))):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        tops = (row.top_1, row.top_2, row.top_3, row.top_4, row.top_5)
        table.add_row(
            escape(row.name) + (" (the reference: 0 by definition)" if row.is_reference else ""),
            format_size(row.size_bytes),
            f"{row.bpw:.3f}",
            f"{row.kl_quant_ref:.4f} ± {row.kl_quant_ref_se:.4f}",
            f"{row.kl_ref_quant:.4f} ± {row.kl_ref_quant_se:.4f}",
            f"{row.perplexity:.3f}",
            *(f"{100 * top:.1f} %" for top in tops),
        )
    return table


def standings_table(standings: Sequence[Standing]) -> Table:
    """Every method at the target, the one that is handed over first."""
    table = Table(
        title="Methods at the target: KL(ref‖mix) in nats/token; more: than the one handed over, 95 % interval"
    )
    table.add_column("Method", no_wrap=True)
    for name in ("Size", "bpw", "predicted", "search set", "fresh rows", "more"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in standings:
        table.add_row(
            escape(row.name) + ("" if row.eligible else " (breaks a floor or the GPU split)"),
            format_size(row.size_bytes),
            f"{row.bpw:.3f}",
            _kld(row.predicted_kld, None),
            _kld(row.search_kld, row.search_kld_se),
            _kld(row.selection_kld, row.selection_kld_se),
            _margin(row),
        )
    return table


def search_lines(recipe: Recipe, detail: SearchDetail) -> list[str]:
    """The result of the search, in words."""
    lines = [f"Warning: {warning}" for warning in detail.warnings]
    if recipe.exltune is not None and recipe.exltune.provenance.reference is not None:
        lines.append(f"{recipe.exltune.provenance.reference.told}.")
    lines += [f"Dropped, its scores are not finite: {name}" for name in detail.dropped]
    if detail.searched:
        scored = sum(sum(done.sources.values()) for done in detail.rounds)
        lines.append(f"{scored} mixes searched in {len(detail.rounds)} rounds, {detail.passes:.1f} passes.")
    if detail.rounds:
        done = detail.rounds[-1]
        rank = "-" if done.rank_correlation is None else f"{done.rank_correlation:.2f}"
        error = "-" if done.log_error is None else f"{100 * done.log_error:.1f} %"
        lines.append(f"The law's predictions in the last round: rank correlation {rank}, error {error}.")
    if not detail.searched:
        won = f"Nothing was scored: {detail.outcome} has the best prediction and is handed over"
    elif detail.outcome.startswith("search"):
        won = "The search's mix is handed over"
    else:
        won = f"The search did not beat {detail.outcome}, which is handed over"
    made = recipe.exltune
    cache = f", cache {made.cache}" if made is not None and made.cache else ""
    lines.append(f"{won}: {recipe.achieved_bpw:.3f} bpw, head {recipe.head_bits:g} bits{cache}.")
    if made is not None and made.budget is not None and len(made.budget.limits) > 1:
        allowed = ", ".join(f"{name} {bpw:.3f}" for name, bpw in made.budget.limits.items())
        lines.append(f"{made.budget.binding} binds (bpw that each limit allows: {allowed}).")
    lines += [
        f"{point.bpw:.3f} bpw: KL(ref‖mix) {_kld(point.selection_kld, point.selection_kld_se)} "
        f"by {point.winner}, {point.recipe}"
        for point in detail.front
    ]
    return lines


def verdict_lines(verdict: Verdict) -> list[str]:
    """The verdict in words."""
    low, high = verdict.difference_ci95
    source = "the search" if verdict.searched else f"{verdict.source} (the search did not beat it)"
    share = verdict.difference / verdict.uniform.kl_ref_quant if verdict.uniform.kl_ref_quant else 0.0
    more = verdict.uniform.size_bytes / verdict.tuned.size_bytes - 1
    excess = f", {100 * more:.1f} % more bytes than the tuned one" if more > _SAME_SIZE else ""
    outcome = "better than" if low > 0 else ("worse than" if high < 0 else "not told apart from")
    return [
        f"The tuned mix came from {source}: {format_size(verdict.tuned.size_bytes)}, {verdict.tuned.bpw:.3f} bpw "
        f"(uniform strategy: {format_size(verdict.uniform.size_bytes)}, {verdict.uniform.bpw:.3f} bpw{excess}).",
        f"KL(ref‖uniform) - KL(ref‖tuned) = {verdict.difference:.4f} nats/token, 95 % interval {low:.4f} to {high:.4f}:"
        f" {outcome} uniform, {100 * share:.1f} % less KL(ref‖quant).",
    ]


def inspection_tables(report: Inspection) -> list[Table]:
    """Sizes by bit width, and the groups by role."""
    title = f"{report.architecture}: {report.layers} layers, {report.parameters:,} parameters"
    sizes = Table(title=title, min_width=len(title))
    for name in ("bits", "size of linears and head", "bpw"):
        sizes.add_column(name, justify="right")
    for bits, size_bytes in report.size_bytes.items():
        sizes.add_row(bits, format_size(size_bytes), f"{report.bpw[bits]:.3f}")
    roles: dict[str, list[int]] = {}
    for group in report.groups:
        roles.setdefault(group.role.value, []).append(group.numel)
    title = f"{len(report.groups)} groups, {report.quantizable_parameters:,} quantizable weights"
    groups = Table(title=title, min_width=len(title))
    for name in ("role", "groups", "weights"):
        groups.add_column(name, justify="left" if name == "role" else "right")
    for role, numels in roles.items():
        groups.add_row(role, str(len(numels)), f"{sum(numels):,}")
    return [sizes, groups]


def _kld(mean: float | None, se: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.4f}" if se is None else f"{mean:.4f} ± {se:.4f}"


def _margin(row: Standing) -> str:
    if row.margin is None or row.margin_ci95 is None or row.margin == 0:
        return "-"
    low, high = row.margin_ci95
    return f"{row.margin:+.4f} ({low:+.4f} to {high:+.4f})"
