"""Tables for people; every number comes from a record."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from exltune.pipeline.inspect import Inspection
from exltune.schema.evaluation import EvaluationRow, MethodRow, Verdict

#: A baseline with up to this share of bytes more counts as of the same size (DESIGN.md section 8).
_SAME_SIZE = 0.005
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(size_bytes: float) -> str:
    """Bytes in binary units: 1536 -> 1.50 KiB."""
    power = 0
    while size_bytes >= 1024 and power < len(_UNITS) - 1:
        size_bytes /= 1024
        power += 1
    return f"{size_bytes:.0f} B" if power == 0 else f"{size_bytes:.2f} {_UNITS[power]}"


def evaluation_table(rows: Sequence[EvaluationRow]) -> Table:
    """Quant | Size | bpw | KL both ways ± standard error | Perplexity | Top-1 .. Top-5."""
    table = Table(title=f"Held-out text, {rows[0].tokens:,} tokens; KL in nats/token ± standard error")
    table.add_column("Quant", no_wrap=True)
    for name in ("Size", "bpw", "KL(quant‖ref)", "KL(ref‖quant)", "Perplexity", *(f"Top-{k}" for k in range(1, 6))):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        tops = (row.top_1, row.top_2, row.top_3, row.top_4, row.top_5)
        table.add_row(
            escape(row.name),
            size(row.size_bytes),
            f"{row.bpw:.3f}",
            f"{row.kl_quant_ref:.4f} ± {row.kl_quant_ref_se:.4f}",
            f"{row.kl_ref_quant:.4f} ± {row.kl_ref_quant_se:.4f}",
            f"{row.perplexity:.3f}",
            *(f"{100 * top:.1f} %" for top in tops),
        )
    return table


def methods_table(methods: Sequence[MethodRow]) -> Table:
    """What every seed scored on the search set, best first."""
    table = Table(title="Methods at the target, on the search set; KL(ref‖mix) in nats/token")
    table.add_column("Method", no_wrap=True)
    for name in ("Size", "bpw", "measured KL", "predicted KL"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(methods, key=_score):
        measured = "-" if row.kl_ref_quant is None else f"{row.kl_ref_quant:.4f} ± {row.kl_ref_quant_se:.4f}"
        predicted = "-" if row.predicted_kld is None else f"{row.predicted_kld:.4f}"
        table.add_row(escape(row.name), size(row.size_bytes), f"{row.bpw:.3f}", measured, predicted)
    return table


def verdict_lines(verdict: Verdict) -> list[str]:
    """The verdict in words."""
    low, high = verdict.difference_ci95
    share = verdict.difference / verdict.uniform.kl_ref_quant if verdict.uniform.kl_ref_quant else 0.0
    more = verdict.uniform.size_bytes / verdict.tuned.size_bytes - 1
    excess = f", {100 * more:.1f} % more bytes than the tuned one" if more > _SAME_SIZE else ""
    outcome = "better than" if low > 0 else ("worse than" if high < 0 else "not told apart from")
    return [
        f"The tuned mix came from {verdict.source}: {size(verdict.tuned.size_bytes)}, {verdict.tuned.bpw:.3f} bpw "
        f"(uniform strategy: {size(verdict.uniform.size_bytes)}, {verdict.uniform.bpw:.3f} bpw{excess}).",
        f"KL(ref‖uniform) - KL(ref‖tuned) = {verdict.difference:.4f} nats/token, 95 % interval {low:.4f} to {high:.4f}:"
        f" {outcome} uniform, {100 * share:.1f} % less KL.",
    ]


def inspection_tables(report: Inspection) -> list[Table]:
    """Sizes by bit width, and the groups by role."""
    title = f"{report.architecture}: {report.layers} layers, {report.parameters:,} parameters"
    sizes = Table(title=title, min_width=len(title))
    for name in ("bits", "size of linears and head", "bpw"):
        sizes.add_column(name, justify="right")
    for bits, size_bytes in report.size_bytes.items():
        sizes.add_row(bits, size(size_bytes), f"{report.bpw[bits]:.3f}")
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


def _score(row: MethodRow) -> float:
    found = row.kl_ref_quant if row.kl_ref_quant is not None else row.predicted_kld
    return float("inf") if found is None else found
