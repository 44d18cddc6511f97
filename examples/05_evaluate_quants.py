"""Several quants on held-out text: a table, a picture of KL against size, and a progress callback.

Usage: python examples/05_evaluate_quants.py [MODEL [FOLDER]]. FOLDER/quants holds EXL3 directories; 01 makes some.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

import exltune

MODEL, FOLDER = [*sys.argv[1:3], *("models/glm4moe", "out/examples")[len(sys.argv[1:3]) :]]


def show(stage: str, done: int, total: int, what: str) -> None:
    """Called all the time while it computes."""
    print(f"\r{stage}: {done} of {total} {what}", end="" if done < total else "\n", file=sys.stderr)


def draw(table: exltune.EvaluationTable, file: Path) -> None:
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="bpw", ylabel="KL(ref‖quant), nats/token", yscale="log")
    errors = [2 * row.kl_ref_quant_se for row in table]
    axes.errorbar([row.bpw for row in table], [row.kl_ref_quant for row in table], yerr=errors, fmt="o")
    for row in table:
        axes.annotate(row.name, (row.bpw, row.kl_ref_quant))
    figure.savefig(file)


def main() -> None:
    folder = Path(FOLDER)
    quants = sorted(path.parent for path in (folder / "quants").glob("*/config.json"))
    table = exltune.evaluate(MODEL, quants, store=folder / "scores.db", rows=32, row_length=32, progress=show)
    draw(table, folder / "quants.png")
    print(table.to_markdown())  # table.to_pandas() where pandas is installed
    print(f"Picture: {folder / 'quants.png'}")


if __name__ == "__main__":
    main()
