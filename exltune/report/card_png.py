"""KL(reference‖quant) by size: the gain of a mix over one width for all."""

from __future__ import annotations

import io
from collections.abc import Sequence

from exltune.publish.card_rows import front
from exltune.schema.card import CardRow

_DPI = 120
_SIZE = (7.5, 4.8)
#: Points; below for tuned mixes, which lie just under a uniform one.
_ABOVE, _BELOW = (5, 4), (5, -11)


def kl_against_size(rows: Sequence[CardRow]) -> bytes:
    """PNG: KL(reference‖quant) over GiB, log scale, with the uniform line, the tuned mixes and the front of all.

    A reference that is a quant itself is left out: its KL(reference‖quant) is 0 by definition.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    rows = [row for row in rows if not row.is_reference]
    best = front(rows)
    axes.plot([r.size_gib for r in best], [r.kl_ref_quant for r in best], color="0.8", linewidth=5, label="front")
    for kinds, style, label in ((("base", "uniform"), "o--", "uniform"), (("tuned",), "*", "tuned")):
        some = [row for row in rows if row.kind in kinds]
        if some:
            axes.errorbar(
                [row.size_gib for row in some],
                [row.kl_ref_quant for row in some],
                yerr=[row.kl_ref_quant_half for row in some],
                fmt=style,
                markersize=11 if kinds == ("tuned",) else 5,
                capsize=3,
                label=label,
            )
    for row in rows:
        place = _BELOW if row.kind == "tuned" else _ABOVE
        axes.annotate(row.name, (row.size_gib, row.kl_ref_quant), xytext=place, textcoords="offset points", fontsize=7)
    if all(row.kl_ref_quant > 0 for row in rows):
        axes.set_yscale("log")
    axes.set_xlabel("size of linears and head, GiB")
    axes.set_ylabel("KL(reference‖quant), nats/token")
    axes.legend(fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
