"""Draw the picture of README.md from measurements/search.json: KL(ref‖quant) against size, three small models.

    python benchmarks/picture.py [--out docs/images/kl-against-size.png]

Nothing is measured here. `benchmarks/search.py` made the numbers.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"glm4moe": "Glm4Moe", "qwen3moe": "Qwen3Moe", "qwen3": "Qwen3 (dense)"}
_TICKS = (0.02, 0.05, 0.1, 0.2, 0.5)


class Line(NamedTuple):
    """How a method is drawn."""

    label: str
    colour: str
    style: str


LINES = {
    "exllamav3-strategy": Line("exllamav3's strategy", "#7f7f7f", "o--"),
    "best-rules": Line("best hand rule", "#c98a2b", "s:"),
    "ours-wide": Line("exltune", "#0b7a75", "o-"),
}


def points(rows: Sequence[dict], model: str, method: str) -> tuple[list[float], list[float]]:
    """KiB and held-out KL(ref‖quant) in nats/token at every target, means over seeds."""
    at: defaultdict[float, list[dict]] = defaultdict(list)
    for row in rows:
        if (row["model"], row["method"]) == (model, method):
            at[row["above_k2_bpw"]].append(row)
    found = [
        (mean(r["size_bytes"] for r in some) / 1024, mean(r["held_out_kld"] for r in some)) for some in at.values()
    ]
    sizes, klds = zip(*sorted(found), strict=True)
    return list(sizes), list(klds)


def draw(rows: Sequence[dict]) -> Figure:
    """One panel for each model, KL on a log scale."""
    figure = Figure(figsize=(10.5, 3.7), dpi=130, layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(MODELS), sharey=True)
    for axes, (model, title) in zip(panels, MODELS.items(), strict=True):
        for method, line in LINES.items():
            axes.plot(*points(rows, model, method), line.style, color=line.colour, label=line.label, markersize=4.5)
        axes.set_yscale("log")
        axes.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
        axes.minorticks_off()
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("linears and head, KiB")
        axes.grid(color="0.92", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out KL(ref‖quant), nats/token")
    panels[0].legend(frameon=False, fontsize=9, loc="lower left")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "kl-against-size.png")
    out = parser.parse_args().out
    rows = json.loads((ROOT / "measurements" / "search.json").read_text(encoding="utf-8"))["rows"]
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(rows).savefig(out, metadata={"Software": None})
    print(out)


if __name__ == "__main__":
    main()
