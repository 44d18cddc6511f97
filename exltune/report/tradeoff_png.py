"""A tradeoff as a picture: the cost of a longer context, cache by cache."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from exltune.budget import format_size
from exltune.schema.tradeoff import Tradeoff, TradeoffRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI, _SIZE = 120, (12.0, 4.8)
_MARKERS = "osD^v<>P*X"
#: The best caches are circled.
_CIRCLE = 140


def tradeoff_png(tradeoff: Tradeoff) -> bytes:
    """Predicted KL(reference‖mix) against context, one line for each cache, and the bpw that each leaves, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    kld, bpw = figure.subplots(1, 2)
    fitting: dict[str, list[TradeoffRow]] = {row.cache: [] for row in tradeoff.rows}
    for row in tradeoff.rows:
        if row.fits:
            fitting[row.cache].append(row)
    for number, (cache, rows) in enumerate(fitting.items()):
        if rows:
            _draw(kld, bpw, cache, rows, _MARKERS[number % len(_MARKERS)])
    best = [row for row in tradeoff.rows if row.best]
    for axes, values in ((kld, [row.predicted_kld for row in best]), (bpw, [row.bpw for row in best])):
        axes.scatter([row.context for row in best], values, s=_CIRCLE, facecolors="none", edgecolors="black")
    _label(kld, tradeoff, "predicted KL(reference‖mix), nats/token", log_scale=bool(best))
    _label(bpw, tradeoff, "bpw of the weights beside the cache", log_scale=False)
    if best:
        kld.legend(title="cache k,v; best circled", fontsize=7, title_fontsize=7)
    figure.suptitle(f"{tradeoff.architecture} in {memory_of(tradeoff)}, by prediction", fontsize=10)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def memory_of(tradeoff: Tradeoff) -> str:
    """`144.00 GiB`, or the cards."""
    pool = [] if tradeoff.vram_bytes is None else [format_size(tradeoff.vram_bytes, tradeoff.unit)]
    cards = [format_size(size, tradeoff.unit) for size in tradeoff.gpus]
    counted = [f"{cards.count(card)} x {card}" for card in dict.fromkeys(cards)]
    return ", ".join((*pool, *counted))


def _draw(kld: Axes, bpw: Axes, cache: str, rows: list[TradeoffRow], marker: str) -> None:
    contexts = [row.context for row in rows]
    for axes, values in ((kld, [row.predicted_kld or 0.0 for row in rows]), (bpw, [row.bpw or 0.0 for row in rows])):
        axes.plot(contexts, values, marker=marker, label=cache)


def _label(axes: Axes, tradeoff: Tradeoff, what: str, *, log_scale: bool) -> None:
    contexts = sorted({row.context for row in tradeoff.rows})
    if log_scale:
        axes.set_yscale("log")
    axes.set_xticks(contexts, [f"{context:,}" for context in contexts], fontsize=8, rotation=30, ha="right")
    axes.set_xlabel("context, tokens")
    axes.set_ylabel(what)
    axes.grid(alpha=0.3)
