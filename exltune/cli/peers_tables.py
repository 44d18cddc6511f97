"""The table of a comparison of formats; every number comes from a record."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from exltune.budget import format_size
from exltune.schema.evaluation import EvaluationRow
from exltune.schema.peers import Match, PeersResult


def peers_table(found: PeersResult) -> Table:
    """Base quants, then each peer with the EXL3 mixes within its bytes and their gain on it."""
    rows = found.base
    table = Table(title=f"Held-out text, {rows[0].tokens:,} tokens; both KL in nats/token ± standard error")
    table.add_column("Quant", no_wrap=True)
    for name in ("Size", "bpw", "KL(quant‖ref)", "KL(ref‖quant)", "Perplexity", "Top-1", "less KL(ref‖quant), 95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row, ""), "", end_section=row is rows[-1])
    for peer in found.peers:
        table.add_row(*_cells(peer.row, ""), "", end_section=not peer.matches)
        for match in peer.matches:
            table.add_row(*_cells(match.row, "  "), gain(match), end_section=match is peer.matches[-1])
    return table


def gain(match: Match) -> str:
    """The paired difference to the peer above, with its interval."""
    found = match.difference
    return f"{found.mean:+.4f} ({found.ci_low:+.4f} to {found.ci_high:+.4f})"


def peers_lines(found: PeersResult) -> list[str]:
    """How the table is to be read, and the command that made it."""
    alphas = [f"g{peer.group} {peer.mean_alpha:.2f}" for peer in found.peers if peer.mean_alpha is not None]
    return [
        "Below each peer: the largest mix of exllamav3's strategy within its bytes, with the base quants' head and "
        "with the peer's fp16 head; less KL: KL(ref‖peer) - KL(ref‖EXL3), paired by row.",
        f"The peers are simulated at the bytes that their format takes; AWQ's exponents, mean: {', '.join(alphas)}.",
        *(f"{remark}." for remark in found.remarks),
        f"Made by: {found.command}",
    ]


def _cells(row: EvaluationRow, indent: str) -> tuple[str, ...]:
    return (
        indent + escape(row.name),
        format_size(row.size_bytes),
        f"{row.bpw:.3f}",
        f"{row.kl_quant_ref:.4f} ± {row.kl_quant_ref_se:.4f}",
        f"{row.kl_ref_quant:.4f} ± {row.kl_ref_quant_se:.4f}",
        f"{row.perplexity:.3f}",
        f"{100 * row.top_1:.1f} %",
    )
