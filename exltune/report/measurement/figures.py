"""Interactive figures of a measurement's groups, one width at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from math import log10
from typing import Any

import plotly.graph_objects as go

from exltune.report.measurement.scales import (
    COLOUR_SCALE,
    COLOURS,
    KLD,
    by_kld,
    columns_of,
    least_kld,
    readable,
    roles_of,
    rows_of,
    shown_kld,
    ticks,
)
from exltune.schema.report import Report, ReportGroup, ReportProbe

#: Marks by role, so that colour is never all that tells them apart.
SYMBOLS = (
    *("circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down", "star", "hexagon"),
    *("triangle-left", "triangle-right", "pentagon", "hourglass", "bowtie"),
)

#: Numbers stand in the cells, and names under the points, up to so many columns.
_FEW_COLUMNS, _FEW_GROUPS = 14, 64
_ROW_HEIGHT, _AROUND, _LEAST_HEIGHT = 34, 110, 200
#: Decades that groups at one width span.
_AT_ONE_WIDTH = 2
#: A log axis of more decades has ticks at powers of ten alone.
_MANY_DECADES = 3
_INTERVALS_HEIGHT, _NAMES_HEIGHT = 420, 70
HOVER = "%{hovertext}<extra></extra>"
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif'


@dataclass(frozen=True)
class Chart:
    """A figure; `patches` are changes of its layout by width: traces whose meta names another width are hidden."""

    figure: Any
    patches: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Hovers:
    """The text beside the pointer. Figures hold numbers of texts, as a probe is in several; the page fills them in.

    Lines end in a newline. Names are escaped, as plotly reads tags in text.
    """

    report: Report

    @cached_property
    def texts(self) -> list[str]:
        """Of all probes, in order."""
        return [_hover(group, probe) for group in self._groups for probe in group.probes]

    def number(self, group: ReportGroup, probe: ReportProbe) -> int:
        """Place of a probe's text."""
        return self._numbers[group.id, probe.choice]

    @cached_property
    def _numbers(self) -> dict[tuple[str, str], int]:
        keys = ((group.id, probe.choice) for group in self._groups for probe in group.probes)
        return {key: number for number, key in enumerate(keys)}

    @property
    def _groups(self) -> tuple[ReportGroup, ...]:
        return self.report.groups + self.report.wider


def _hover(group: ReportGroup, probe: ReportProbe) -> str:
    lines = [f"{escape(group.id, quote=False)} at {probe.bits:g} bits", f"KL(ref‖mix) {shown_kld(probe)} nats/token"]
    if probe.ci95 is not None:
        lines.append(f"95 %: {readable(probe.ci95[0])} to {readable(probe.ci95[1])}")
    if probe.law_kld is not None:
        lines.append(f"law: {readable(probe.law_kld)}")
    lines.append(f"{probe.size_bytes:,} bytes")
    return "\n".join(lines)


def heat_map(report: Report, hovers: Hovers) -> Chart:
    """Layers by rows, coloured by log KL(reference‖mix) of the swap at one width, on that width's own scale."""
    figure = go.Figure()
    for choice in report.widths:
        figure.add_trace(_cells(report, choice, hovers))
    rows = rows_of(report.groups)
    low, high = _range(report)
    marks = ticks(low, high)
    height = max(_LEAST_HEIGHT, _ROW_HEIGHT * len(rows) + _AROUND)
    bar = {
        "title": {"text": KLD, "side": "right"},
        "tickvals": [log10(mark) for mark in marks],
        "ticktext": [f"{mark:g}" for mark in marks],
        "thickness": 14,
    }
    figure.update_layout(coloraxis={"colorscale": COLOUR_SCALE, "colorbar": bar}, **layout(height))
    figure.update_xaxes(title_text="layer", type="category", showgrid=False)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    return Chart(figure)


def intervals(report: Report, hovers: Hovers) -> Chart:
    """Groups in the order of their KL(reference‖mix) with 95 % intervals, at one width."""
    figure, patches = go.Figure(), {}
    low, roles = least_kld(report.groups), roles_of(report.groups)
    for choice in report.widths:
        ranked = list(enumerate(by_kld(report, choice), 1))
        for role in roles:
            some = [(rank, group, probe) for rank, (group, probe) in ranked if group.role == role]
            trace = _points(some, role, low, hovers)
            trace.update(
                marker=mark(roles.index(role), [p for _, _, p in some]),
                meta={"choice": choice},
                visible=choice == report.widths[0],
            )
            figure.add_trace(trace)
        names = [escape(group.id, quote=False) for _, (group, _) in ranked]
        patches[choice] = {"xaxis.tickvals": [rank for rank, _ in ranked], "xaxis.ticktext": names}
    few = len(report.groups) <= _FEW_GROUPS
    figure.update_layout(legend_title_text="role", **layout(_INTERVALS_HEIGHT + _NAMES_HEIGHT * few))
    figure.update_yaxes(title_text=KLD, **log_axis(_range(report), decades=_AT_ONE_WIDTH))
    figure.update_xaxes(
        title_text="groups, the largest KL(reference‖mix) first", tickangle=-60 if few else 0, showgrid=False
    )
    if not few:
        return Chart(figure)
    first = patches[report.widths[0]]
    figure.update_xaxes(tickvals=first["xaxis.tickvals"], ticktext=first["xaxis.ticktext"], tickfont_size=10)
    return Chart(figure, patches)


def layout(height: int) -> dict[str, Any]:
    """The layout of all figures: dark on white, whatever the page around them."""
    return {
        "template": "plotly_white",
        "height": height,
        "font": {"family": _FONT, "size": 13, "color": "#1a1a1a"},
        "margin": {"l": 80, "r": 20, "t": 30, "b": 60},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hoverlabel": {"align": "left"},
    }


def error_bars(probes: Sequence[ReportProbe]) -> dict[str, Any]:
    """95 % intervals."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [0.0 if probe.ci95 is None else short(probe.ci95[1] - probe.kld_nats) for probe in probes],
        "arrayminus": [0.0 if probe.ci95 is None else short(probe.kld_nats - probe.ci95[0]) for probe in probes],
        "thickness": 1,
        "width": 2,
    }


def log_axis(values: Iterable[float], decades: float | None = None) -> dict[str, Any]:
    """A log axis with plain numbers at its ticks. decades: how many are seen at once, where not all."""
    positive = [value for value in values if value > 0]
    low, high = min(positive, default=1.0), max(positive, default=1.0)
    many = (log10(high / low) if decades is None else decades) > _MANY_DECADES
    marks = ticks(low, high, (1,) if many else (1, 2, 5))
    return {"type": "log", "tickvals": marks, "ticktext": [f"{value:g}" for value in marks]}


def short(number: float) -> float:
    """Five digits: the page holds many numbers."""
    return float(f"{number:.5g}")


def mark(number: int, probes: Sequence[ReportProbe] = ()) -> dict[str, Any]:
    """Colour and symbol of a role by its place; hollow where a probe is estimated."""
    symbol = SYMBOLS[number % len(SYMBOLS)]
    symbols = [f"{symbol}-open" if probe.estimated else symbol for probe in probes]
    return {
        "color": COLOURS[number % len(COLOURS)],
        "symbol": symbols if len(set(symbols)) > 1 else (symbols or [symbol])[0],
        "size": 7,
    }


def _cells(report: Report, choice: str, hovers: Hovers) -> Any:
    rows, columns = rows_of(report.groups), columns_of(report.groups)
    found = {(group.row, columns[group.layer]): (group, probe) for group, probe in by_kld(report, choice)}
    cells = [[found.get((row, column)) for column in columns.values()] for row in rows]
    edge = least_kld(report.groups)
    few = len(columns) <= _FEW_COLUMNS
    return go.Heatmap(
        z=[[None if cell is None else round(log10(max(cell[1].kld_nats, edge)), 4) for cell in line] for line in cells],
        x=list(columns.values()),
        y=[escape(row, quote=False) for row in rows],
        text=[["" if cell is None else shown_kld(cell[1]) for cell in line] for line in cells],
        texttemplate="%{text}" if few else None,
        customdata=[[None if cell is None else hovers.number(*cell) for cell in line] for line in cells],
        hovertemplate=HOVER,
        hoverongaps=False,
        xgap=1,
        ygap=1,
        coloraxis="coloraxis",
        meta={"choice": choice},
        visible=choice == report.widths[0],
    )


def _points(some: Sequence[tuple[int, ReportGroup, ReportProbe]], role: str, low: float, hovers: Hovers) -> Any:
    return go.Scatter(
        x=[rank for rank, _, _ in some],
        y=[short(max(probe.kld_nats, low)) for _, _, probe in some],
        error_y=error_bars([probe for _, _, probe in some]),
        mode="markers",
        name=escape(role, quote=False),
        legendgroup=role,
        customdata=[hovers.number(group, probe) for _, group, probe in some],
        hovertemplate=HOVER,
    )


def _range(report: Report) -> tuple[float, float]:
    edge = least_kld(report.groups)
    return edge, max(max(probe.kld_nats, edge) for group in report.groups for probe in group.probes)
