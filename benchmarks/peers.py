"""What EXL3 buys over W4A16, and two quants of the same bytes compared, as the README shows them.

    python benchmarks/peers.py [--model models/glm4moe] [--tuned out/measurements/glm4moe] [--out FILE]

--tuned: what `exltune tune` made of the model with the data of the demo (benchmarks/measurements.py). Compared are
its mix and exllamav3's strategy at no fewer bytes, built as a directory.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from exltune.budget import SizeModel, directory_size, format_size
from exltune.cli.compare_tables import compare_lines
from exltune.cli.peers_tables import gain, peers_lines
from exltune.exl3.directory import QuantDir
from exltune.pipeline.common.session import EngineOptions, Session
from exltune.pipeline.demo import DEMO_DATA, DEMO_MODEL
from exltune.pipeline.evaluation.compare import CompareOptions, Side, compare
from exltune.pipeline.evaluation.peers import ENGINE, peers
from exltune.pipeline.quants.build import build
from exltune.schema.evaluation import EvaluationRow
from exltune.schema.recipe import Recipe
from exltune.search import smallest_strategy_at_least
from exltune.store.names import MODEL, QUANTS, SCORES
from exltune.store.quants.base_quants import head_source


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--tuned", type=Path, default=Path("out/measurements/glm4moe"))
    parser.add_argument("--out", type=Path, help="folder for peers.json and compare.json")
    arguments = parser.parse_args()
    tuned, out = arguments.tuned, arguments.out
    with Session(
        arguments.model, DEMO_DATA, quants=tuned / QUANTS, engine=EngineOptions(ENGINE), store=tuned / SCORES
    ) as session:
        _print_peers(session, out)
        _print_comparison(session, tuned / MODEL, out)


def _print_peers(session: Session, out: Path | None) -> None:
    start = time.monotonic()
    found = peers(session, out=out and out / "peers.json", force=True)
    print(f"\n{found.base[0].tokens:,} held-out tokens, {time.monotonic() - start:.0f} s\n")
    print(
        "| Quant | Size | bpw | KL(quant‖ref) | KL(ref‖quant) | Perplexity | Top-1 | less KL(ref‖quant) than the peer |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for row in found.base:
        print(_line(row.name, row, ""))
    for peer in found.peers:
        print(_line(f"**{peer.row.name}**", peer.row, ""))
        for match in peer.matches:
            print(_line(match.row.name, match.row, gain(match)))
    print("\n" + "\n".join(peers_lines(found)))


def _line(name: str, row: EvaluationRow, gained: str) -> str:
    kl_q, kl_r = (
        f"{row.kl_quant_ref:.4f} ± {row.kl_quant_ref_se:.4f}",
        f"{row.kl_ref_quant:.4f} ± {row.kl_ref_quant_se:.4f}",
    )
    cells = (
        name,
        format_size(row.size_bytes),
        f"{row.bpw:.3f}",
        kl_q,
        kl_r,
        f"{row.perplexity:.3f}",
        f"{100 * row.top_1:.1f} %",
    )
    return f"| {' | '.join(cells)} | {gained} |"


def _print_comparison(session: Session, tuned: Path, out: Path | None) -> None:
    with TemporaryDirectory() as folder:
        uniform = Path(folder) / "uniform"
        _build_uniform(session, tuned, uniform)
        # A recipe by hand notes no texts; its base quants are the tuned mix's own.
        settings = CompareOptions(trust_data=True)
        file = out and out / "compare.json"
        found = compare(session, Side(tuned), Side(uniform), settings, out=file, force=True)
    print(
        "\n| Metric | tuned | uniform | better by | 95 % interval | p | p, Holm | |\n|---|--:|--:|--:|--:|--:|--:|---|"
    )
    for metric in found.metrics:
        low, high = metric.ci95
        cells = [metric.name, f"{metric.candidate:.4f}", f"{metric.baseline:.4f}", f"{metric.difference:+.4f}"]
        cells += [f"{low:+.4f} to {high:+.4f}", f"{metric.p:.2g}", f"{metric.p_holm:.2g}", metric.outcome.value]
        print(f"| {' | '.join(cells)} |")
    print("\n" + "\n".join(compare_lines(found, 0.05)))


def _build_uniform(session: Session, tuned: Path, out: Path) -> None:
    """exllamav3's strategy at the smallest size with at least the tuned mix's bytes."""
    inventory, quants = session.inventory, session.base_quants
    head, wanted = head_source(quants, None), directory_size(inventory, QuantDir(tuned)).size_bytes
    sizes = SizeModel(inventory, head.codebook)
    found = smallest_strategy_at_least(sizes, wanted, [quant.bits for quant in quants], head.head_bits, head.choice)
    tensors = {key: float(found.choices[group.id]) for group in inventory.groups for key in group.tensors}
    recipe = Recipe(target_bpw=found.bpw, achieved_bpw=found.bpw, head_bits=head.head_bits, tensors=tensors)
    build(recipe, quants, out, model=session.model)


if __name__ == "__main__":
    main()
