"""Pictures of records, as PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from exltune.report.heat_map import Row, heat_map
from exltune.report.palette import bit_colour, text_colour
from exltune.schema.explain import Explanation, Prediction
from exltune.schema.search import FrontPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 120
#: Inches of one cell, of the space around a panel, and of a panel beside the heat map.
_CELL_WIDTH, _CELL_HEIGHT, _MARGIN = 0.62, 0.24, 1.6
_PANEL_WIDTH, _PANEL_HEIGHT = 4.8, 4.2
#: From this many layers on rows are this high.
_MANY_LAYERS, _LOW_CELL = 40, 0.15
#: A front of one point, or one mix, shows nothing.
_ENOUGH = 2


def explanation_png(explanation: Explanation) -> bytes:
    """The heat map; beside it the front and predicted against measured KL(reference‖mix), each where it is known."""
    from matplotlib.figure import Figure

    roles, rows = heat_map(explanation.groups)
    known = [one for one in explanation.predictions if one.predicted_kld is not None and one.measured_kld is not None]
    front = sorted(explanation.front, key=lambda point: point.bpw)
    panels = (len(front) >= _ENOUGH) + (len(known) >= _ENOUGH)
    cell = _CELL_HEIGHT if len(rows) < _MANY_LAYERS else _LOW_CELL
    widths = [_MARGIN + _CELL_WIDTH * len(roles), _PANEL_WIDTH][: 1 + (panels > 0)]
    height = max(_MARGIN + cell * len(rows), _PANEL_HEIGHT * max(panels, 1))
    figure = Figure(figsize=(sum(widths), height), dpi=_DPI, layout="constrained")
    grid = figure.add_gridspec(max(panels, 1), len(widths), width_ratios=widths)
    _draw_heat_map(figure.add_subplot(grid[:, 0]), roles, rows, _title(explanation), font=28 * cell)
    if len(front) >= _ENOUGH:
        _draw_front(figure.add_subplot(grid[0, 1]), front)
    if len(known) >= _ENOUGH:
        _draw_predictions(figure.add_subplot(grid[panels - 1, 1]), known)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw_heat_map(axes: Axes, roles: tuple[str, ...], rows: dict[int, Row], title: str, font: float) -> None:
    white = (255, 255, 255)
    axes.imshow(
        [[white if bits is None else bit_colour(bits) for bits in row] for row in rows.values()],
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_xticks(range(len(roles)), roles, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), [str(layer) for layer in rows], fontsize=font)
    axes.set_ylabel("layer")
    axes.set_title(title, fontsize=9)
    for y, row in enumerate(rows.values()):
        for x, bits in enumerate(row):
            if bits is not None:
                colour = text_colour(bit_colour(bits))
                axes.text(x, y, f"{bits:g}", ha="center", va="center", fontsize=font, color=colour)


def _draw_front(axes: Axes, front: list[FrontPoint]) -> None:
    measured = [point for point in front if point.selection_kld is not None]
    predicted = [point for point in front if point.predicted_kld is not None]
    if measured:
        axes.errorbar(
            [point.bpw for point in measured],
            [point.selection_kld or 0.0 for point in measured],
            yerr=[point.selection_kld_se or 0.0 for point in measured],
            marker="o",
            capsize=3,
            label="measured, selection set",
        )
    axes.plot([p.bpw for p in predicted], [p.predicted_kld or 0.0 for p in predicted], "x--", label="predicted")
    axes.legend(fontsize=7)
    axes.set_xlabel("bpw")
    axes.set_ylabel("KL(reference‖mix), nats/token")
    axes.set_title("Front", fontsize=9)


def _draw_predictions(axes: Axes, known: list[Prediction]) -> None:
    predicted = [one.predicted_kld or 0.0 for one in known]
    measured = [one.measured_kld or 0.0 for one in known]
    errors = [one.measured_kld_se or 0.0 for one in known]
    axes.errorbar(predicted, measured, yerr=errors, linestyle="none", marker="o", capsize=3)
    for one, x, y in zip(known, predicted, measured, strict=True):
        axes.annotate(one.name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=6)
    axes.axline((measured[0], measured[0]), slope=1, color="grey", linewidth=0.8)
    axes.set_xlabel("predicted KL(reference‖mix), nats/token")
    axes.set_ylabel("measured")
    axes.set_title("Predicted against measured", fontsize=9)


def _title(explanation: Explanation) -> str:
    name = explanation.architecture or "Bits by layer and role"
    return name if explanation.achieved_bpw is None else f"{name}, {explanation.achieved_bpw:.3f} bpw"
